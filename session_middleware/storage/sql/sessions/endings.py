"""The end of sessions: by their users, or because they are due.

`expiry.py` lists the sessions that are due. The transaction that ends one checks that again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from session_middleware import lifecycle
from session_middleware.errors import SessionLimitReached
from session_middleware.models import Ended, Identity, OnExpire, Pin, SessionInfo, Status, SweepResult, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.sql.checkpoints import checkpoints, pruning
from session_middleware.storage.sql.checkpoints.pruning import free_unused
from session_middleware.storage.sql.connection import Connection, lock_found
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import memories
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import to_json
from session_middleware.storage.sql.sessions import archives, events, leases, session_rows, tombstones
from session_middleware.storage.types import DeletionCounts, TombstoneInfo

# On purpose


def end(
    connection: Connection,
    rules: EngineContext,
    session_id: str,
    status: Ended,
    *,
    reason: str,
    detail: Mapping[str, Any],
) -> SessionInfo:
    """End a session as its user or the operator says. Raises `InvalidTransition`, `SessionNotFound`."""
    now = rules.clock()
    session = session_rows.get_for(connection, session_id, None, rules)
    lifecycle.check_transition(session_id, lifecycle.status_at(session, rules.settings, now), status)
    _close(connection, [Ending(session, reason, now)], status, dict(detail), rules)
    return session_rows.get(connection, session_id)


class Ending(NamedTuple):
    session: SessionInfo
    reason: str
    at: datetime


def _close(
    connection: Connection,
    ended: Sequence[Ending],
    status: Status,
    detail: dict[str, Any] | Callable[[SessionInfo], dict[str, Any]],
    rules: EngineContext,
) -> None:
    is_expired = status == "expired"
    connection.executemany(
        "UPDATE sessions SET version = version + 1, last_seq = last_seq + 1, status = ?, reason = ?, ended_at = ?,"
        " expires_at = ? WHERE id = ?",
        [(status, reason, to_text(at), to_text(at) if is_expired else None, each.id) for each, reason, at in ended],
    )
    found = [(each.id, status, reason, detail(each) if callable(detail) else detail) for each, reason, _ in ended]
    events.append_all(connection, found, rules.clock())


def expire(connection: Connection, ended: Sequence[Ending], rules: EngineContext) -> None:
    """Store that sessions have expired, unless they had ended, and prune those whose strategy says so."""
    ended = [each for each in ended if each.session.status == "active"]
    _close(connection, ended, "expired", _idle_since, rules)
    _prune(connection, [each.id for each, *_ in ended if lifecycle.terms_of(each, rules.settings).on_expire == "prune"])


def _prune(connection: Connection, session_ids: Sequence[str]) -> set[str]:
    """Prune sessions that have expired; returns those of which that was not done before."""
    if not session_ids:
        return set()
    sql = "UPDATE sessions SET pruned = 1 WHERE id IN (SELECT value FROM json_each(?)) AND pruned = 0 RETURNING id"
    due = [session_id for (session_id,) in connection.execute(sql, (json.dumps(session_ids),)).fetchall()]
    pruning.prune(connection, due)
    return set(due)


def pin(connection: Connection, rules: EngineContext, session_id: str, pin: Pin | None) -> SessionInfo:
    """Exempt a session from ending, or end that. One that has expired stays so, whether or not a sweep came."""
    now = rules.clock()
    session = session_rows.get_for(connection, session_id, None, rules)
    if pin is None and session.pinned is None:
        return session
    due, status = lifecycle.expiry_of(session, rules.settings), lifecycle.status_at(session, rules.settings, now)
    if due is not None and (session.status, status) == ("active", "expired"):
        _close(connection, [Ending(session, due.reason, due.at)], "expired", _idle_since, rules)
    text = None if pin is None else to_json(pin.model_dump(mode="json"))
    connection.execute("UPDATE sessions SET pinned = ? WHERE id = ?", (text, session_id))
    detail = {"by": pin.by} if pin is not None else {}
    events.append(connection, session_id, "pinned" if pin else "unpinned", pin.why if pin else None, detail, now)
    if pin is None:  # it has been exempt until now
        session_rows.touch(connection, session_id, rules, now)
    session_rows.write_expiry(connection, session_id, rules)
    return session_rows.get_for(connection, session_id, None, rules)


def _idle_since(session: SessionInfo) -> dict[str, Any]:
    return {"last_active_at": to_text(session.last_active_at)}


def rename_expired(connection: Connection, session: SessionInfo, rules: EngineContext, now: datetime) -> str:
    """Keep an expired session under another id, which is returned, so that its own is free for a fresh one.

    It is abandoned, not expired: it can be read, and resumed by its new id, like any that has ended.
    """
    renamed = _free_id(connection, session.id)
    due = lifecycle.expiry_of(session, rules.settings)
    expire(connection, [Ending(session, due.reason if due else "idle_timeout", due.at if due else now)], rules)
    tombstones.put(connection, [session.id], "renamed", renamed, now)
    family = renamed if session.family_id == session.id else session.family_id
    connection.execute(
        "UPDATE sessions SET id = ?, family_id = ?, status = 'abandoned' WHERE id = ?", (renamed, family, session.id)
    )
    runs.rename(connection, session.id, renamed)
    memories.rename(connection, session.id, renamed)
    checkpoints.rename(connection, session.home, session.id, renamed)
    if family == renamed:
        connection.execute("UPDATE sessions SET family_id = ? WHERE home = ?", (renamed, session.home))
    archives.remove([session], rules)
    events.append(connection, renamed, "renamed", "fresh", {"was": session.id}, now)
    return renamed


def rename_archived(connection: Connection, session_id: str) -> str | None:
    """Keep an archived session under another id, which is returned; ``None`` if none is archived."""
    tombstone = tombstones.find(connection, session_id)
    if tombstone is None or tombstone.archive is None:
        return None
    renamed = _free_id(connection, session_id)
    connection.execute("UPDATE tombstones SET id = ? WHERE id = ?", (renamed, session_id))
    return renamed


def _free_id(connection: Connection, session_id: str) -> str:
    number = 1
    while (
        session_rows.find(connection, renamed := f"{session_id}~{number}") is not None
        or tombstones.find(connection, renamed) is not None
    ):
        number += 1
    return renamed


def delete(
    connection: Connection,
    session_ids: Sequence[str],
    rules: EngineContext,
    *,
    reason: str | None = None,
    action: str = "deleted",
    archive: str | None = None,
    digest: str | None = None,
) -> DeletionCounts:
    """Delete everything of sessions, also if their rows are damaged, and put tombstones."""
    sessions = session_rows.find_remains(connection, session_ids)
    if not sessions:
        return DeletionCounts()
    ids, now = [session.id for session in sessions], rules.clock()
    tombstones.put(connection, ids, action, reason, now, archive=archive, digest=digest)
    remembered = memories.delete_sessions(connection, ids)
    kept = checkpoints.delete(connection, ids)
    connection.execute("DELETE FROM sessions WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))
    recorded = runs.delete(connection, ids)
    free_unused(connection, {session.home for session in sessions})
    for session in sessions if action != "forgotten" else ():
        events.announce(connection, session.id, action, reason, {"user_id": session.user_id}, now)
    left = archives.remove(sessions, rules) if action == "deleted" else 0
    messages, tool_calls = recorded["messages"].rowcount, recorded["tool_calls"].rowcount
    return DeletionCounts(len(ids), kept.rowcount, messages, tool_calls, remembered.rowcount, left)


def delete_archived(
    connection: Connection, session_id: str, rules: EngineContext, by: Identity | None
) -> DeletionCounts:
    """An archived session, with its file. Raises `SessionNotFound`, also when it was another user's."""
    return _delete_archive(connection, tombstones.get_archived(connection, session_id, by), rules, "by_user")


def _delete_archive(
    connection: Connection, tombstone: TombstoneInfo, rules: EngineContext, reason: str
) -> DeletionCounts:
    now = rules.clock()
    tombstones.forget_archive(connection, tombstone.session_id, reason, now)
    events.announce(connection, tombstone.session_id, "deleted", reason, {"user_id": tombstone.user_id}, now)
    # Nothing leads to the file after the commit.
    return DeletionCounts(1, bytes_freed=jsonl.remove(rules.archive_at(str(tombstone.archive))))


# Ending what is due


def end_due(
    connection: Connection, listed: Sequence[SweepResult], rules: EngineContext, now: datetime
) -> list[SweepResult]:
    """End the listed sessions that are still due and have no run in progress; returns the ended ones.

    The caller has their locks.
    """
    live, ids = leases.live(connection, rules), [due.session_id for due in listed]
    cursor = connection.execute(
        "SELECT * FROM sessions WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    )
    sessions = {each.id: each for each in session_rows.readable(cursor, rules) if each is not None}
    groups: dict[tuple[OnExpire, str | None], dict[str, Ending]] = {}
    for due in listed:
        session = sessions.get(due.session_id)
        found = _still_due(due, session, rules, now) if session is not None and session.id not in live else None
        if found is not None:
            action, ending = found
            groups.setdefault((action, ending.reason if action == "delete" else None), {})[due.session_id] = ending
    done: set[str] = {
        due.session_id
        for due in listed
        if due.reason == "retention" and due.session_id not in sessions and _end_archive(connection, due, rules, now)
    }
    for (action, _), ended in groups.items():
        done |= STRATEGIES[action].end(connection, ended, rules)
    return [due for due in listed if due.session_id in done]


def _end_archive(connection: Connection, due: SweepResult, rules: EngineContext, now: datetime) -> bool:
    """Delete an archive that is still past its retention; returns whether it was."""
    tombstone = tombstones.find(connection, due.session_id)
    until = None if tombstone is None else tombstone.archive_ends_at(rules.settings.retention)
    if tombstone is None or until is None or until > now:
        return False
    _delete_archive(connection, tombstone, rules, "retention")
    return True


def _still_due(
    due: SweepResult, session: SessionInfo, rules: EngineContext, now: datetime
) -> tuple[OnExpire, Ending] | None:
    """The strategy, and the reason and time of the end."""
    if session.pinned is not None:
        return None
    if due.reason == "older_than":
        is_due = session.last_active_at < due.expired_at
        return ("delete", Ending(session, due.reason, due.expired_at)) if is_due else None
    if due.reason == "on_expire":  # it expired before its strategy was set
        is_due = session.status == "expired" and lifecycle.terms_of(session, rules.settings).on_expire == due.action
        ending = Ending(session, str(session.reason), session.ended_at or rules.clock())
        return (due.action, ending) if is_due else None
    if session.status == "active":
        end = lifecycle.expiry_of(session, rules.settings)
        return None if end is None or end.at > now else (due.action, Ending(session, end.reason, end.at))
    until = lifecycle.deleted_at(session, rules.settings)
    return None if until is None or until > now else ("delete", Ending(session, "retention", until))


Endings: TypeAlias = Mapping[str, Ending]  # by the session's id


def _keep(connection: Connection, ended: Endings, rules: EngineContext) -> set[str]:
    expire(connection, [*ended.values()], rules)
    expired = [session_id for session_id, ending in ended.items() if ending.session.status != "active"]
    return ended.keys() - set(expired) | _prune(connection, expired)


def _delete(connection: Connection, ended: Endings, rules: EngineContext) -> set[str]:
    delete(connection, [*ended], rules, reason=next(iter(ended.values())).reason)
    return set(ended)


def _archive(connection: Connection, ended: Endings, rules: EngineContext) -> set[str]:
    for session, reason, at in ended.values():
        connection.execute(
            "UPDATE sessions SET status = 'expired', reason = ?, ended_at = ? WHERE id = ?",
            (reason, to_text(at), session.id),
        )
        archive, digest = archives.write(connection, session, rules)
        delete(connection, [session.id], rules, action="archived", reason=reason, archive=archive, digest=digest)
    return set(ended)


class Strategy(NamedTuple):
    """A value of `on_expire`."""

    end: Callable[[Connection, Endings, EngineContext], set[str]]  # of one reason if it deletes; returns what it ended
    applies_to: Sequence[int] = (0, 1)  # `pruned` of the expired sessions that are still to be ended so
    is_alone: bool = False  # each session has a transaction of its own
    frees: bool = True  # rows are deleted


STRATEGIES: dict[OnExpire, Strategy] = {
    "keep": Strategy(_keep, (), frees=False),
    "prune": Strategy(_keep, (0,)),
    "archive": Strategy(_archive, is_alone=True),
    "delete": Strategy(_delete),
}


def postpone(connection: Connection, rules: EngineContext, session_id: str, until: datetime) -> None:
    connection.execute("UPDATE sessions SET postponed_until = ? WHERE id = ?", (to_text(until), session_id))
    events.append(connection, session_id, "postponed", None, {"until": to_text(until)}, rules.clock())
    session_rows.write_expiry(connection, session_id, rules)


# Limits

_OPEN = (
    f"FROM sessions WHERE status = 'active' AND {session_rows.NOT_DUE} AND id != :but"
    " AND (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id)"
)
_OLDEST = (
    f"SELECT * {_OPEN} AND pinned IS NULL AND id NOT IN (SELECT value FROM json_each(:live))"
    " ORDER BY last_active_at, id LIMIT :limit"
)


def _oldest(
    connection: Connection, values: Mapping[str, Any], most: int, rules: EngineContext
) -> dict[str, SessionInfo]:
    return {each.id: each for each in session_rows.first(connection, _OLDEST, values, most, rules)}


def limit_locks(user_id: str | None, rules: EngineContext) -> list[str]:
    """The locks under which the open sessions are counted."""
    settings, of_user = rules.settings, user_id is not None and rules.settings.max_sessions_per_user is not None
    return ["\0sessions"] * (settings.max_sessions is not None) + [f"\0sessions of {user_id}"] * of_user


def make_room(
    connection: Connection, user_id: str | None, rules: EngineContext, now: datetime, *, but: str = "", more: int = 1
) -> None:
    """Ensure, in the transaction that opens a session, that so many more may be open, of all and of this user's.

    Raises:
        SessionLimitReached: there is no room, and ``on_limit`` is ``"reject"``, or all have a run in progress.
    """
    settings = rules.settings
    connection.lock(limit_locks(user_id, rules))
    limits = [(settings.max_sessions, None), (settings.max_sessions_per_user if user_id is not None else None, user_id)]
    for limit, of_user in reversed(limits):
        if limit is None:
            continue
        live = json.dumps(sorted(leases.live(connection, rules)))
        values = session_rows.moments(rules, now) | {"but": but, "live": live, "user_id": of_user}
        surplus = connection.execute(f"SELECT COUNT(*) {_OPEN}", values).fetchone()[0] + more - limit
        if surplus <= 0:
            continue
        oldest: dict[str, SessionInfo] = {}
        if settings.on_limit == "expire_oldest":
            oldest = lock_found(connection, partial(_oldest, connection, values, surplus, rules))
        if len(oldest) < surplus:
            raise SessionLimitReached(limit, user_id=of_user)
        expire(connection, [Ending(session, "limit", rules.clock()) for session in oldest.values()], rules)
