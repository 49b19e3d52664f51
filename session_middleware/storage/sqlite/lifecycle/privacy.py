"""Users in SQLite: refusing one from now on, and forgetting one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from session_middleware import lifecycle
from session_middleware.findings import Forgotten
from session_middleware.model import to_text
from session_middleware.storage.sqlite.lifecycle import archives, ends, sessions
from session_middleware.storage.sqlite.lifecycle.revocations import hash_of
from session_middleware.storage.sqlite.lifecycle.tombstones import hashed
from session_middleware.storage.sqlite.memory import memories
from session_middleware.storage.sqlite.rules import Rules
from session_middleware.storage.sqlite.state.blobs import is_sum
from session_middleware.storage.sqlite.state.sealed import WRONG, Row


def revoke(connection: sqlite3.Connection, user_id: str, reason: str | None, rules: Rules) -> list[str]:
    now = rules.clock()
    connection.execute(
        "INSERT INTO revoked (user_hash, reason, since) VALUES (?, ?, ?) ON CONFLICT (user_hash) DO NOTHING",
        (hash_of(user_id), reason, to_text(now)),
    )
    theirs = connection.execute("SELECT id FROM sessions WHERE user_id = ? AND status = 'active'", (user_id,))
    ended = []
    for (session_id,) in theirs.fetchall():
        session = sessions.find_readable(connection, session_id, rules)
        if session is not None and lifecycle.status_at(session, rules.settings, now) in lifecycle.OPEN:
            detail = {} if reason is None else {"why": reason}
            ends.end(connection, session_id, "abandoned", rules, reason="owner_revoked", detail=detail, by=None)
            ended.append(session_id)
    return ended


# Forgetting


def forget(connection: sqlite3.Connection, user_id: str, rules: Rules, *, dry_run: bool) -> tuple[Forgotten, list[str]]:
    """All that is kept of a user, in one transaction; what that was, and the files of archives that are to go."""
    connection.execute("SAVEPOINT forgetting")
    rows = connection.execute(
        "SELECT id, CAST(incarnation AS INTEGER) FROM sessions WHERE user_id = ?", (user_id,)
    ).fetchall()
    theirs = [session_id for session_id, _ in rows]
    stones = connection.execute(
        "SELECT id, incarnation, archive FROM tombstones WHERE user_id = ?", (user_id,)
    ).fetchall()
    gone = [session_id for session_id, _, _ in stones]
    memories_gone = memories.delete_of_user(connection, user_id, [*theirs, *gone])
    deleted = [ends.delete(connection, session_id, rules, action="forgotten") for session_id in theirs]
    traces = _erase_from_checkpoints(connection, user_id) + _erase_traces(connection, user_id, [*theirs, *gone])
    for session_id, _, _ in stones:
        connection.execute(
            "UPDATE OR REPLACE tombstones SET id = ?, user_id = NULL, group_id = NULL, title = NULL,"
            " action = 'forgotten', reason = NULL, archive = NULL, digest = NULL, on_resume = NULL,"
            " visibility = NULL WHERE id = ?",
            (hashed(session_id), session_id),
        )
    kept = [rules.archive_at(path) for _, _, path in stones if path is not None]
    rows += [(session_id, incarnation) for session_id, incarnation, _ in stones]
    files = [name for row in rows for name in archives.names_of(connection, rules, *row)]
    forgotten = Forgotten(
        sessions=len(theirs),
        checkpoints=sum(each.checkpoints for each in deleted),
        messages=sum(each.messages for each in deleted),
        tool_calls=sum(each.tool_calls for each in deleted),
        memories=memories_gone + sum(each.memories for each in deleted),
        archives=len(kept),
        traces=traces,
        dry_run=dry_run,
    )
    if dry_run:
        connection.execute("ROLLBACK TO forgetting")
    connection.execute("RELEASE forgetting")
    return forgotten, [] if dry_run else [*kept, *files]


_TRACES = (  # each found by an index of such mentions alone
    "UPDATE events SET detail = json_set(detail, '$.user_id', 'forgotten') WHERE json_extract(detail, '$.user_id') = ?",
    "UPDATE events SET detail = json_set(detail, '$.by', 'forgotten') WHERE json_extract(detail, '$.by') = ?",
    "UPDATE sessions SET pinned = json_set(pinned, '$.by', 'forgotten')"
    " WHERE pinned IS NOT NULL AND json_extract(pinned, '$.by') = ?",
    "UPDATE runs SET user_id = 'forgotten' WHERE user_id = ?",
)


def _erase_from_checkpoints(connection: sqlite3.Connection, user_id: str) -> int:
    """LangGraph keeps a run's config in the metadata of its checkpoints, also of a run in another's session."""
    name, other = (_as_msgpack(text) for text in (user_id, "forgotten"))
    found = connection.execute(
        "SELECT * FROM checkpoints WHERE session_id IN (SELECT session_id FROM runs WHERE user_id = ?"
        " UNION SELECT id FROM sessions WHERE visibility = 'group-write') AND instr(body, ?)",
        (user_id, name),
    )
    rows = [Row(*row) for row in found.fetchall()]
    for row in rows:
        erased = row._replace(body=row.body.replace(name, other))
        connection.execute(
            "UPDATE checkpoints SET body = ?, checksum = ?"
            " WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            (erased.body, erased.sum() if is_sum(row.sum, row.checksum) else WRONG, *row.key),
        )
    return len(rows)


def _as_msgpack(text: str) -> bytes:
    """https://github.com/msgpack/msgpack/blob/master/spec.md#str-format-family"""
    data = text.encode()
    if len(data) < 32:
        return bytes([0xA0 | len(data)]) + data
    size = next(size for size in (1, 2, 4) if len(data) < 256**size)
    return {1: b"\xd9", 2: b"\xda", 4: b"\xdb"}[size] + len(data).to_bytes(size, "big") + data


def _erase_traces(connection: sqlite3.Connection, user_id: str, theirs: Sequence[str]) -> int:
    """Mentions elsewhere: who was refused where, who ran and runs, what hooks are to be told. How many."""
    gone = sum(connection.execute(erase, (user_id,)).rowcount for erase in _TRACES)
    ids = json.dumps(list(theirs))
    connection.execute("DELETE FROM outbox WHERE session_id IN (SELECT value FROM json_each(?))", (ids,))
    connection.execute(
        "DELETE FROM leases WHERE user_id = ? OR session_id IN (SELECT value FROM json_each(?))", (user_id, ids)
    )
    return gone
