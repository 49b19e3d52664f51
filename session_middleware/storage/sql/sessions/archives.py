"""Archives: a session exported to a file of its own (`storage/jsonl.py`), deleted, and restored when asked.

The file is written inside the transaction that deletes the session, so it holds all that is deleted. What is
shared in a family is written as far as the session refers to it, and gets new ids when it is restored.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.models import SessionInfo, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.sql.checkpoints import lists
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, resealed
from session_middleware.storage.sql.checkpoints.unused import find_reachable
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import memories
from session_middleware.storage.sql.memory.items import ARCHIVED
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.sessions import events, session_rows, tombstones
from session_middleware.storage.sql.sessions.tombstones import Tombstone

# Writing

Rows = Mapping[str, list[dict[str, Any]]]  # by table

_STATE = ("checkpoints", "writes")
_OF_SESSION = (
    ("sessions", "SELECT * FROM sessions WHERE id = :id"),
    *((table, f"SELECT * FROM {table} WHERE session_id = :id") for table in runs.TABLES),
    *((table, f"SELECT * FROM {table} WHERE home = :home AND session_id = :id") for table in _STATE),
    (
        "memories",
        f"SELECT {ARCHIVED} FROM memories WHERE namespace = :own OR namespace >= :above AND namespace < :below",
    ),
)


def write(connection: Connection, session: SessionInfo, rules: EngineContext) -> tuple[str, str]:
    """Write everything of a session to its file; returns its path and digest."""
    path = _path_of(connection, session.id, session.incarnation, rules)
    if path is None:
        raise StorageError(rules.path, "there is no folder for archives", advice="set archive_path")
    header = {"id": session.id, "user_id": session.user_id, "incarnation": session.incarnation}
    return str(path.absolute()), jsonl.write(path, header, _rows(connection, session))


def _rows(connection: Connection, session: SessionInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    own, above, below = memories.own_namespaces(session.id)
    values = {"id": session.id, "home": session.home, "own": own, "above": above, "below": below}
    for table, query in _OF_SESSION:
        for row in _dicts(connection, query, values):
            yield table, row
    lengths, digests = find_reachable(connection, session.home, session.id)
    home = {"home": session.home}
    for table, key in (("lists", "id"), ("list_items", "list_id")):
        for row in _dicts(connection, f"SELECT * FROM {table} WHERE home = :home", home):
            if row[key] in lengths and row.get("position", 0) < lengths[row[key]]:
                digests |= {row["digest"]} if "digest" in row and row["data"] is None else set()
                yield table, row
    for row in _dicts(connection, "SELECT * FROM blobs WHERE home = :home", home):
        if row["digest"] in digests:
            yield "blobs", row


def _dicts(connection: Connection, query: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def _path_of(connection: Connection, session_id: str, incarnation: int, rules: EngineContext) -> Path | None:
    """The file for one incarnation of an id; two databases may share a folder."""
    if rules.archives is None:
        return None
    made = connection.execute(
        "SELECT MIN(applied_at) FROM _sqlite_migrations WHERE migration_set = 'session_middleware'"
    ).fetchone()
    mark = hashlib.sha256(str(made[0]).encode()).hexdigest()[:8]
    return rules.archives / f"{jsonl.file_name(session_id)}.{mark}.{incarnation}.jsonl"


def remove(connection: Connection, session_id: str, incarnation: int, rules: EngineContext) -> int:
    """Delete the file that a killed process left of a session it did not archive; its bytes."""
    path = _path_of(connection, session_id, incarnation, rules)
    return 0 if path is None else jsonl.remove(path)


# Restoring


def restore(connection: Connection, tombstone: Tombstone, rows: Rows, rules: EngineContext) -> SessionInfo:
    """Insert an archived session as it was, active from now on; its tombstone goes."""
    (session,) = rows["sessions"]
    was, now = session["id"], rules.clock()
    family_id = tombstone.id if session["family_id"] == was else session["family_id"]
    active = {"status": "active", "reason": "restored", "opened_as": "revived", "ended_at": None, "pruned": 0}
    version = random.getrandbits(48)  # no process takes what it knew of the session for current
    named = {"id": tombstone.id, "family_id": family_id, "began_at": to_text(now), "version": version}
    _insert(connection, "sessions", [session | active | named])
    for table in runs.TABLES:
        _insert(connection, table, [row | {"session_id": tombstone.id} for row in rows.get(table, ())])
    memories.restore(connection, rows.get("memories", ()), was, tombstone.id)
    _restore_state(connection, tombstone.id, session["home"], rows)
    tombstones.delete(connection, tombstone.id)
    session_rows.touch(connection, tombstone.id, rules, now)
    events.record(
        connection, tombstone.id, "restored", "archive", now, detail={"archived_at": to_text(tombstone.buried_at)}
    )
    return session_rows.get(connection, tombstone.id)


def _restore_state(connection: Connection, session_id: str, home: int, rows: Rows) -> None:
    """Lists get new ids: the family may have cut and extended those that it still has."""
    _insert(connection, "blobs", [row | {"home": home} for row in rows.get("blobs", ())], _KEEP)
    ids: dict[int, int] = defaultdict(lists.new_id)
    for row in rows.get("lists", ()):
        _insert(connection, "lists", [row | {"home": home, "id": ids[row["id"]], "parent_id": ids[row["parent_id"]]}])
    items = [row | {"home": home, "list_id": ids[row["list_id"]]} for row in rows.get("list_items", ())]
    _insert(connection, "list_items", items)
    own = {"home": home, "session_id": session_id}
    for row in rows.get("checkpoints", ()):
        channels = {
            name: [ids[ref[0]], *ref[1:]] if isinstance(ref, list) else ref
            for name, ref in json.loads(row["channels"]).items()
        }
        sealed = resealed(Row(**row), **own, channels=json.dumps(channels, separators=(",", ":")))
        _insert(connection, "checkpoints", [sealed._asdict()])
    for row in rows.get("writes", ()):
        _insert(connection, "writes", [resealed(WriteRow(**row), **own)._asdict()])


_KEEP = "ON CONFLICT DO NOTHING"


def _insert(connection: Connection, table: str, rows: Iterable[Mapping[str, Any]], tail: str = "") -> None:
    """Insert rows, with those of their columns that the table has."""
    there = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    for row in rows:
        columns = [name for name in row if name in there]
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) {tail}",
            [row[name] for name in columns],
        )
