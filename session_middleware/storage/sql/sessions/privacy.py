"""Users: revoking one, and forgetting one."""

from __future__ import annotations

import json
from functools import partial

from session_middleware import lifecycle
from session_middleware.models import ErasureReceipt, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.sql.connection import Connection, lock_found
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import memories
from session_middleware.storage.sql.sessions import archives, endings, leases, session_rows
from session_middleware.storage.sql.sessions.tombstones import hash_of, hashed


def revoke(connection: Connection, user_id: str, rules: EngineContext, *, reason: str | None, lift: bool) -> list[str]:
    if lift:
        connection.execute("DELETE FROM revoked WHERE user_hash = ?", (hash_of(user_id),))
        return []
    now = rules.clock()
    connection.execute(
        "INSERT INTO revoked (user_hash, reason, since) VALUES (?, ?, ?) ON CONFLICT (user_hash) DO NOTHING",
        (hash_of(user_id), reason, to_text(now)),
    )
    lock_found(connection, partial(_concerned, connection, user_id))
    connection.execute(_THEIRS_CHANGED, (user_id, user_id))
    theirs = connection.execute("SELECT * FROM sessions WHERE user_id = ? AND status = 'active'", (user_id,))
    ended, live = [], leases.live(connection, rules)
    for session in list(session_rows.readable(theirs, rules)):
        if session is None:
            continue
        if session.id in live or lifecycle.status_at(session, rules.settings, now) in lifecycle.OPEN:
            detail = {} if reason is None else {"why": reason}
            endings.end(connection, rules, session.id, "abandoned", reason="owner_revoked", detail=detail)
            ended.append(session.id)
    return ended


def _concerned(connection: Connection, user_id: str) -> set[str]:
    """The sessions that name the user in rows which others change too, and the archived ones."""
    return {session_id for sql in _CONCERNED for (session_id,) in connection.execute(sql, (user_id,))}


_PINNED_BY = "pinned IS NOT NULL AND json_extract(pinned, '$.by') = ?"
_CONCERNED = (
    "SELECT id FROM sessions WHERE user_id = ?",
    "SELECT session_id FROM leases WHERE user_id = ?",
    f"SELECT id FROM sessions WHERE {_PINNED_BY}",
    "SELECT id FROM tombstones WHERE user_id = ? AND archive IS NOT NULL",
)
# A run in progress checks its user and its lease when its session has another version.
_THEIRS_CHANGED = """
    UPDATE sessions SET version = version + 1
    WHERE user_id = ? OR id IN (SELECT session_id FROM leases WHERE user_id = ?)
"""


def forget(connection: Connection, user_id: str, rules: EngineContext, *, dry_run: bool) -> ErasureReceipt:
    """Delete all data of a user, also archives; returns how much that was."""
    lock_found(connection, partial(_concerned, connection, user_id))
    connection.execute("SAVEPOINT forgetting")
    rows = connection.execute("SELECT id FROM sessions WHERE user_id = ?", (user_id,)).fetchall()
    theirs = [session_id for (session_id,) in rows]
    sessions = session_rows.find_remains(connection, theirs)
    tombstones = connection.execute("SELECT id, archive FROM tombstones WHERE user_id = ?", (user_id,)).fetchall()
    gone = [session_id for session_id, _ in tombstones]
    memories_gone = memories.delete_of_user(connection, user_id, [*theirs, *gone])
    deleted = endings.delete(connection, theirs, rules, action="forgotten")
    traces = sum(connection.execute(erase, (user_id,)).rowcount for erase in _TRACES)
    ids = json.dumps([*theirs, *gone])
    connection.execute(_THEIRS_CHANGED, (user_id, user_id))
    connection.execute(_DELETE_LEASES, (user_id, ids))
    renamed = [(hashed(session_id), session_id) for session_id in {*theirs, *gone}]
    connection.execute(_DELETE_TOMBSTONES, (json.dumps([new_id for new_id, _ in renamed]),))
    connection.executemany(_HASH_TOMBSTONE, renamed)
    archived = [rules.archive_at(path) for _, path in tombstones if path is not None]
    bytes_freed = 0
    if not dry_run:  # before the commit: afterwards nothing refers to the files
        bytes_freed = sum(jsonl.remove(path) for path in archived)
        bytes_freed += archives.remove(sessions, rules)
    counts = deleted._replace(memories=memories_gone + deleted.memories, bytes_freed=bytes_freed)._asdict()
    forgotten = ErasureReceipt(**counts, archives=len(archived), traces=traces, dry_run=dry_run)
    if dry_run:
        connection.execute("ROLLBACK TO forgetting")
    connection.execute("RELEASE forgetting")
    return forgotten


_DELETE_TOMBSTONES = "DELETE FROM tombstones WHERE id IN (SELECT value FROM json_each(?))"
_HASH_TOMBSTONE = """
    UPDATE tombstones SET id = ?, user_id = NULL, group_id = NULL, title = NULL, action = 'forgotten', reason = NULL,
    archive = NULL, digest = NULL, on_resume = NULL, retention_seconds = NULL WHERE id = ?
"""
_DELETE_LEASES = "DELETE FROM leases WHERE user_id = ? OR session_id IN (SELECT value FROM json_each(?))"
_TRACES = (  # mentions in sessions of others, each found by an index of its own
    "UPDATE events SET detail = json_set(detail, '$.user_id', 'forgotten') WHERE json_extract(detail, '$.user_id') = ?",
    "UPDATE events SET detail = json_set(detail, '$.by', 'forgotten') WHERE json_extract(detail, '$.by') = ?",
    f"UPDATE sessions SET pinned = json_set(pinned, '$.by', 'forgotten') WHERE {_PINNED_BY}",
    "UPDATE questions SET answered_by = 'forgotten' WHERE answered_by = ?",
    "UPDATE runs SET user_id = 'forgotten' WHERE user_id = ?",
)
