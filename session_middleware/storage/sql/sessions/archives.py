"""Archives: a session exported to a file of its own (`storage/jsonl.py`), deleted, and restored when asked.

The file is written inside the transaction that deletes the session, so it holds all that is deleted. What is
shared in a family is written as far as the session refers to it, and gets new ids when it is restored.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.models import SessionInfo, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import find_blob
from session_middleware.storage.sql.checkpoints.lists import USED_BY_SESSION
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, resealed
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import memories
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.sessions import events, session_rows, tombstones
from session_middleware.storage.sql.sessions.tombstones import Tombstone

# Writing

Rows = Mapping[str, list[dict[str, Any]]]  # by table

_TABLES = (*runs.TABLES, "checkpoints", "heads", "writes")
_OF_SESSION = ((table, f"SELECT * FROM {table} WHERE session_id = :id") for table in _TABLES)
_ITEMS = "FROM used_lists JOIN list_items ON list_id = used_lists.id AND position < upto"
_QUERIES = (
    ("sessions", "SELECT * FROM sessions WHERE id = :id"),
    *_OF_SESSION,
    ("memories", "SELECT * FROM memories WHERE namespace = :own OR namespace >= :above AND namespace < :below"),
    ("lists", f"{USED_BY_SESSION} SELECT * FROM lists WHERE id IN (SELECT id FROM used_lists) ORDER BY id"),
    ("list_items", f"{USED_BY_SESSION} SELECT list_items.* {_ITEMS}"),
    (
        "blobs",
        f"{USED_BY_SESSION} SELECT * FROM blobs WHERE id IN (SELECT blob_id {_ITEMS} UNION SELECT id FROM used_values)",
    ),
)


def write(connection: sqlite3.Connection, session: SessionInfo, rules: EngineContext) -> tuple[str, str]:
    """Write everything of a session to its file; returns its path and digest."""
    path = _path_of(connection, session.id, session.incarnation, rules)
    if path is None:
        raise StorageError(rules.path, "there is no folder for archives", advice="set archive_path")
    header = {"id": session.id, "user_id": session.user_id, "incarnation": session.incarnation}
    return str(path.absolute()), jsonl.write(path, header, _rows(connection, session.id))


def _rows(connection: sqlite3.Connection, session_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    own, above, below = memories.own_namespaces(session_id)
    values = {"id": session_id, "own": own, "above": above, "below": below}
    for table, query in _QUERIES:
        cursor = connection.execute(query, values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield table, dict(zip(names, row, strict=True))


def _path_of(connection: sqlite3.Connection, session_id: str, incarnation: int, rules: EngineContext) -> Path | None:
    """The file for one incarnation of an id; two databases may share a folder."""
    if rules.archives is None:
        return None
    made = connection.execute(
        "SELECT MIN(applied_at) FROM _sqlite_migrations WHERE migration_set = 'session_middleware'"
    ).fetchone()
    mark = hashlib.sha256(str(made[0]).encode()).hexdigest()[:8]
    return rules.archives / f"{jsonl.file_name(session_id)}.{mark}.{incarnation}.jsonl"


def remove(connection: sqlite3.Connection, session_id: str, incarnation: int, rules: EngineContext) -> int:
    """Delete the file that a killed process left of a session it did not archive; its bytes."""
    path = _path_of(connection, session_id, incarnation, rules)
    return 0 if path is None else jsonl.remove(path)


# Restoring


def restore(connection: sqlite3.Connection, stone: Tombstone, rows: Rows, rules: EngineContext) -> SessionInfo:
    """Insert an archived session as it was, active from now on; its tombstone goes."""
    (session,) = rows["sessions"]
    was, now = session["id"], rules.clock()
    family_id = stone.id if session["family_id"] == was else session["family_id"]
    active = {"status": "active", "reason": "restored", "opened_as": "revived", "ended_at": None, "pruned": 0}
    named = {"id": stone.id, "family_id": family_id, "began_at": to_text(now)}
    _insert(connection, "sessions", [session | active | named])
    for table in runs.TABLES:
        _insert(connection, table, [row | {"session_id": stone.id} for row in rows.get(table, ())])
    memories.restore(connection, rows.get("memories", ()), was, stone.id)
    _restore_state(connection, stone.id, family_id, rows)
    tombstones.delete(connection, stone.id)
    session_rows.touch(connection, stone.id, rules, now)
    events.record(connection, stone.id, "restored", "archive", now, detail={"archived_at": to_text(stone.buried_at)})
    return session_rows.get(connection, stone.id)


def _restore_state(connection: sqlite3.Connection, session_id: str, family_id: str, rows: Rows) -> None:
    blobs: dict[int, int] = {}
    for row in rows.get("blobs", ()):
        there = find_blob(connection, family_id, row["digest"])
        new = row | {"id": None, "family_id": family_id}
        blobs[row["id"]] = there if there is not None else _insert(connection, "blobs", [new])
    lists: dict[int | None, int | None] = {None: None}
    for row in rows.get("lists", ()):  # in the order of their ids: a parent is older than its branches
        new = row | {"id": None, "family_id": family_id, "parent_id": lists[row["parent_id"]]}
        lists[row["id"]] = _insert(connection, "lists", [new])
    items = [
        row | {"list_id": lists[row["list_id"]], "blob_id": blobs[row["blob_id"]]} for row in rows.get("list_items", ())
    ]
    _insert(connection, "list_items", items)

    def mapped(ref: Any) -> Any:
        return [lists[ref[0]], *ref[1:]] if isinstance(ref, list) else blobs[ref] if isinstance(ref, int) else ref

    def written(ref: Any) -> Any:
        return [[blobs[blob], length] for blob, length in ref] if isinstance(ref, list) else mapped(ref)

    for row in rows.get("checkpoints", ()):
        channels = _json({name: mapped(ref) for name, ref in json.loads(row["channels"]).items()})
        sealed = resealed(Row(**row), session_id=session_id, channels=channels)
        _insert(connection, "checkpoints", [sealed._asdict()])
    for row in rows.get("writes", ()):
        sealed_write = resealed(WriteRow(**row), session_id=session_id, value=_json(written(json.loads(row["value"]))))
        _insert(connection, "writes", [sealed_write._asdict()])
    for row in rows.get("heads", ()):
        latest_checkpoint.insert(connection, tuple(row.values()), session_id)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert rows, with those of their columns that the table has; the id of the last one."""
    there = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    last = 0
    for row in rows:
        columns = [name for name in row if name in there]
        cursor = connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            [row[name] for name in columns],
        )
        last = cursor.lastrowid or 0
    return last
