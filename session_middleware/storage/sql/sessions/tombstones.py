"""Tombstones: the deleted and archived session ids, their owners, and the reasons; and the revoked users.

Tombstones are never deleted. They count the incarnations of an id, which distinguish a run that outlives the deletion
of its session from a run that opens the id again. Of a session that was forgotten for its user, only the hash of the id
remains. Of a revoked user only a hash is stored, and each operation of a user checks it in its transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache

from session_middleware.errors import SessionNotFound, UserRevoked
from session_middleware.models import Identity, from_text, to_text
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.row_mapping import values_of
from session_middleware.storage.types import ArchivedSession, TombstoneInfo


def hashed(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


_COLUMNS = (
    *("id", "user_id", "group_id", "title", "on_resume", "incarnation"),
    *("action", "reason", "archive", "digest", "retention_seconds", "ended_at", "deleted_at"),
)
_PUT = f"""
    INSERT INTO tombstones ({", ".join(_COLUMNS)})
    SELECT id, user_id, group_id, CASE WHEN CAST(:archive AS TEXT) IS NULL THEN NULL ELSE title END, on_resume,
        CAST(incarnation AS INTEGER), :action, COALESCE(CAST(:reason AS TEXT), reason), :archive, :digest,
        CASE WHEN CAST(:archive AS TEXT) IS NULL THEN NULL ELSE retention_seconds END,
        CASE WHEN CAST(:archive AS TEXT) IS NULL THEN NULL ELSE ended_at END, :now
    FROM sessions WHERE id IN (SELECT value FROM json_each(:ids))
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[1:])}
"""


_FIND = """
    SELECT action, reason, archive, deleted_at, user_id, on_resume, digest, ended_at, retention_seconds
    FROM tombstones WHERE id IN (?, ?) ORDER BY deleted_at DESC LIMIT 1
"""
_LAST_INCARNATION = "SELECT MAX(incarnation) FROM tombstones WHERE id IN (?, ?)"


def find(connection: Connection, session_id: str) -> TombstoneInfo | None:
    row = connection.execute(_FIND, (session_id, hashed(session_id))).fetchone()
    if row is None:
        return None
    ended_at = None if row[7] is None else from_text(row[7])
    return TombstoneInfo(session_id, *row)._replace(deleted_at=from_text(row[3]), ended_at=ended_at)


def next_incarnation(connection: Connection, session_id: str) -> int:
    ids = (session_id, hashed(session_id))
    row = connection.execute(_LAST_INCARNATION, ids).fetchone()
    return 1 + int(row[0] or 0)


def prefetch(connection: Connection, session_id: str, *, opens: bool) -> None:
    """Announce the statement of `find`, and with `opens` that of `next_incarnation`."""
    ids = (session_id, hashed(session_id))
    connection.prefetch(_FIND, ids)
    if opens:
        connection.prefetch(_LAST_INCARNATION, ids)


def put(
    connection: Connection,
    session_ids: Sequence[str],
    action: str,
    reason: str | None,
    now: datetime,
    *,
    archive: str | None = None,
    digest: str | None = None,
) -> None:
    """Put the tombstones of sessions that are about to be deleted or renamed. `reason` replaces their own reasons."""
    values = {"action": action, "reason": reason, "archive": archive, "digest": digest, "now": to_text(now)}
    connection.execute(_PUT, values | {"ids": json.dumps([*session_ids])})


def get_archived(connection: Connection, session_id: str, by: Identity | None) -> TombstoneInfo:
    """The tombstone of an archived session, for its owner or the operator (``None``).

    Raises `SessionNotFound`, also when the session was another user's; and `UserRevoked`.
    """
    if by is not None:
        check_not_revoked(connection, session_id, by.user_id)
    tombstone = find(connection, session_id)
    is_theirs = by is None or (tombstone is not None and tombstone.user_id == by.user_id is not None)
    if tombstone is None or tombstone.archive is None or not is_theirs:
        raise SessionNotFound(session_id)
    return tombstone


def forget_archive(connection: Connection, session_id: str, reason: str, now: datetime) -> None:
    """The archive is deleted; the tombstone remains, because it counts the incarnations."""
    connection.execute(
        "UPDATE tombstones SET action = 'deleted', reason = ?, title = NULL, archive = NULL, digest = NULL,"
        " retention_seconds = NULL, deleted_at = ? WHERE id = ?",
        (reason, to_text(now), session_id),
    )


_ARCHIVED = """
    SELECT id AS session_id, user_id, group_id, title, reason, ended_at, deleted_at AS archived_at, archive AS path
    FROM tombstones WHERE archive IS NOT NULL AND {whose} {page} ORDER BY deleted_at DESC, id DESC LIMIT ?
"""


def list_archived(
    connection: Connection,
    rules: EngineContext,
    *,
    user_id: str | None,
    limit: int | None,
    before: tuple[datetime, str] | None = None,
) -> list[ArchivedSession]:
    whose, values = ("TRUE", []) if user_id is None else ("user_id = ?", [user_id])
    page = "" if before is None else "AND (deleted_at, id) < (?, ?)"
    values += [] if before is None else [to_text(before[0]), before[1]]
    statement = _ARCHIVED.format(whose=whose, page=page)
    cursor = connection.execute(statement, (*values, UNLIMITED if limit is None else limit))
    found = values_of(ArchivedSession, cursor)
    return [each.model_copy(update={"path": str(rules.archive_at(each.path))}) for each in found]


# Revoked users


@lru_cache(maxsize=1024)
def hash_of(user_id: str | None) -> str | None:
    return None if user_id is None else hashed(user_id)


_FIND_REVOKED = "SELECT 1 FROM revoked WHERE user_hash = ?"


def list_revoked(connection: Connection, user_ids: Collection[str | None]) -> list[str]:
    by_hash = {hashed(user_id): user_id for user_id in user_ids if user_id is not None}
    sql = "SELECT user_hash FROM revoked WHERE user_hash IN (SELECT value FROM json_each(?))"
    return sorted(by_hash[user_hash] for (user_hash,) in connection.execute(sql, (json.dumps(list(by_hash)),)))


def prefetch_revoked(connection: Connection, user_id: str | None) -> None:
    """Announce the statement of `check_not_revoked`."""
    if user_id is not None:
        connection.prefetch(_FIND_REVOKED, (hash_of(user_id),))


def check_not_revoked(connection: Connection, session_id: str, user_id: str | None) -> None:
    """Raises `UserRevoked`."""
    if user_id is not None and connection.execute(_FIND_REVOKED, (hash_of(user_id),)).fetchone() is not None:
        raise UserRevoked(session_id, user_id=user_id)
