"""Tombstones in SQLite: which ids were deleted or archived, whose they were, and why.

They outlive their session for good. So a run that is slower than the deletion of its session is told
apart from one that opens the id anew: each time an id is used again is one more incarnation of it.
Of what was forgotten on its user's wish, only the hash of the id is kept.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from session_middleware.errors import SessionNotFound
from session_middleware.models import Identity, OnResume, SessionInfo, from_text, to_text
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.row_mapping import values_of
from session_middleware.storage.sql.sessions import revocations
from session_middleware.storage.sql.sessions.revocations import hashed
from session_middleware.storage.types import ArchivedSession


class Tombstone(NamedTuple):
    id: str
    user_id: str | None
    group_id: str | None
    incarnation: int
    action: str  # deleted, archived, put aside, forgotten
    reason: str | None
    archive: str | None  # where it is, if it was archived
    digest: str | None
    on_resume: OnResume | None  # its own, if it had one
    ended_at: datetime | None
    buried_at: datetime


_REPLACED = ", ".join(
    f"{column} = excluded.{column}" for column in ("user_id", "group_id", "title", *Tombstone._fields[3:])
)


def find(connection: Connection, session_id: str) -> Tombstone | None:
    row = connection.execute(
        "SELECT id, user_id, group_id, incarnation, action, reason, archive, digest, on_resume, ended_at, buried_at"
        " FROM tombstones WHERE id IN (?, ?) ORDER BY buried_at DESC LIMIT 1",
        (session_id, hashed(session_id)),
    ).fetchone()
    if row is None:
        return None
    tombstone = Tombstone(*row)
    return tombstone._replace(
        ended_at=None if row[-2] is None else from_text(row[-2]),
        buried_at=from_text(row[-1]),
    )


def next_incarnation(connection: Connection, session_id: str) -> int:
    row = connection.execute(
        "SELECT MAX(incarnation) FROM tombstones WHERE id IN (?, ?)", (session_id, hashed(session_id))
    ).fetchone()
    return 1 if row[0] is None else int(row[0]) + 1


def put(
    connection: Connection,
    session: SessionInfo,
    action: str,
    reason: str | None,
    now: datetime,
    *,
    archive: str | None = None,
    digest: str | None = None,
) -> None:
    forgotten = action == "forgotten"
    connection.execute(
        "INSERT INTO tombstones"
        " (id, user_id, group_id, title, incarnation, action, reason, archive, digest, on_resume, ended_at,"
        " buried_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        f" {_REPLACED}",
        (hashed(session.id) if forgotten else session.id, None if forgotten else session.user_id)
        + (None if forgotten else session.group_id, None if archive is None else session.title)
        + (session.incarnation, action, reason, archive, digest)
        + (
            None if forgotten else session.on_resume,
            None if session.ended_at is None else to_text(session.ended_at),
            to_text(now),
        ),
    )


def get_archived(connection: Connection, session_id: str, by: Identity | None) -> Tombstone:
    """The tombstone of an archived session, for its owner or the operator (``None``).

    Raises `SessionNotFound`, also when the session was another user's; and `UserRevoked`.
    """
    if by is not None:
        revocations.check_not_revoked(connection, session_id, by.user_id)
    tombstone = find(connection, session_id)
    is_theirs = by is None or (tombstone is not None and tombstone.user_id == by.user_id is not None)
    if tombstone is None or tombstone.archive is None or not is_theirs:
        raise SessionNotFound(session_id)
    return tombstone


def deleted(connection: Connection, session_id: str, now: datetime) -> None:
    """The archive is deleted; the tombstone stays for the incarnations there were."""
    connection.execute(
        "UPDATE tombstones SET action = 'deleted', reason = 'by_user', title = NULL, archive = NULL, digest = NULL,"
        " buried_at = ?"
        " WHERE id = ?",
        (to_text(now), session_id),
    )


def delete(connection: Connection, session_id: str) -> None:
    connection.execute("DELETE FROM tombstones WHERE id = ?", (session_id,))


def rename(connection: Connection, session_id: str, to: str) -> None:
    connection.execute("UPDATE tombstones SET id = ? WHERE id = ?", (to, session_id))


_ARCHIVED = """
    SELECT id AS session_id, user_id, group_id, title, reason, ended_at, buried_at AS archived_at, archive AS path
    FROM tombstones WHERE archive IS NOT NULL AND {whose} {page} ORDER BY buried_at DESC, id DESC LIMIT ?
"""


def list_archived(
    connection: Connection, user_id: str | None, *, limit: int | None, before: tuple[datetime, str] | None
) -> list[ArchivedSession]:
    whose, values = ("1", []) if user_id is None else ("user_id = ?", [user_id])
    page = "" if before is None else "AND (buried_at, id) < (?, ?)"
    values += [] if before is None else [to_text(before[0]), before[1]]
    statement = _ARCHIVED.format(whose=whose, page=page)
    return values_of(ArchivedSession, connection.execute(statement, (*values, UNLIMITED if limit is None else limit)))
