"""Archives: a session exported to a file of its own (`storage/jsonl.py`), deleted, and restored on request.

The file is written in the transaction that deletes the session. It contains the part of the family's shared state that
the session refers to; restoring gives the lists new ids.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from session_middleware.errors import StorageError
from session_middleware.models import SessionInfo, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.sql.checkpoints import lists
from session_middleware.storage.sql.checkpoints.pruning import find_reachable
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, resealed
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import items, memories
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import namespace_text
from session_middleware.storage.sql.sessions import events, session_rows
from session_middleware.storage.types import TombstoneInfo

Rows: TypeAlias = Mapping[str, list[dict[str, Any]]]  # by table

_OF_SESSION = {
    "sessions": "id = :id",
    **dict.fromkeys(runs.TABLES, "session_id = :id"),
    **dict.fromkeys(("checkpoints", "writes"), "home = :home AND session_id = :id"),
    "memories": "namespace >= :first AND namespace < :end",
}


def write(connection: Connection, session: SessionInfo, rules: EngineContext) -> tuple[str, str]:
    """Write everything of a session to its file; returns its path and digest."""
    path = _path_of(session, rules)
    if path is None:
        raise StorageError(rules.path, "there is no folder for archives", advice="set archive_path")
    header = {"id": session.id, "user_id": session.user_id, "incarnation": session.incarnation}
    return str(path.absolute()), jsonl.write(path, header, _rows(connection, session))


def _rows(connection: Connection, session: SessionInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    first, end = items.range_of(namespace_text(("session", session.id)))
    values = {"id": session.id, "home": session.home, "first": first, "end": end}
    for table, condition in _OF_SESSION.items():
        columns = items.ARCHIVED if table == "memories" else "*"
        for row in _select(connection, table, condition, values, columns):
            yield table, row
    lengths, digests = find_reachable(connection, session.home, session.id)
    for table, key in (("lists", "id"), ("list_items", "list_id")):
        for row in _select(connection, table, "home = :home", values):
            if row[key] in lengths and row.get("position", 0) < lengths[row[key]]:
                digests |= {row["digest"]} if "digest" in row and row["data"] is None else set()
                yield table, row
    for row in _select(connection, "blobs", "home = :home", values):
        if row["digest"] in digests:
            yield "blobs", row


def _select(
    connection: Connection, table: str, condition: str, values: Mapping[str, Any], columns: str = "*"
) -> Iterator[dict[str, Any]]:
    cursor = connection.execute(f"SELECT {columns} FROM {table} WHERE {condition}", values)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def _path_of(session: SessionInfo, rules: EngineContext) -> Path | None:
    """The file for one incarnation of an id. The home distinguishes databases that share a folder."""
    name = f"{jsonl.file_name(session.id)}.{session.home:x}.{session.incarnation}.jsonl"
    return None if rules.archives is None else rules.archives / name


def remove(sessions: Sequence[SessionInfo], rules: EngineContext) -> int:
    """Delete the files that killed processes left of sessions that they did not archive; returns their bytes."""
    if rules.archives is None or not rules.archives.is_dir():
        return 0
    return sum(jsonl.remove(path) for session in sessions if (path := _path_of(session, rules)) is not None)


def restore(connection: Connection, tombstone: TombstoneInfo, rows: Rows, rules: EngineContext) -> SessionInfo:
    """Insert an archived session as it was, active from now on, and delete its tombstone."""
    (session,) = rows["sessions"]
    session_id, was, home, now = tombstone.session_id, session["id"], session["home"], rules.clock()
    changes = {"id": session_id, "family_id": session_id if session["family_id"] == was else session["family_id"]}
    changes |= {"status": "active", "reason": "restored", "opened_as": "revived", "ended_at": None, "pruned": 0}
    changes |= {"active_since": to_text(now), "version": random.getrandbits(48)}  # no process has it in its cache
    _insert(connection, "sessions", [session | changes])
    for table in runs.TABLES:
        _insert(connection, table, [row | {"session_id": session_id} for row in rows.get(table, ())])
    memories.restore(connection, rows.get("memories", ()), was, session_id)
    _restore_state(connection, session_id, home, rows)
    connection.execute("DELETE FROM tombstones WHERE id = ?", (session_id,))
    session_rows.touch(connection, session_id, rules, now)
    detail = {"archived_at": to_text(tombstone.deleted_at)}
    events.append(connection, session_id, "restored", "archive", detail, now)
    return session_rows.get(connection, session_id)


def _restore_state(connection: Connection, session_id: str, home: int, rows: Rows) -> None:
    """Insert the state. Lists get new ids, because the family may have changed its own since."""
    ids: dict[int, int] = defaultdict(lists.new_id)
    own, in_family = {"home": home, "session_id": session_id}, {"home": home}
    _insert(connection, "blobs", [row | in_family for row in rows.get("blobs", ())], "ON CONFLICT DO NOTHING")
    for row in rows.get("lists", ()):
        _insert(connection, "lists", [row | in_family | {key: ids[row[key]] for key in ("id", "parent_id")}])
    for row in rows.get("list_items", ()):
        _insert(connection, "list_items", [row | in_family | {"list_id": ids[row["list_id"]]}])
    for row in rows.get("checkpoints", ()):
        channels = {
            name: [ids[ref[0]], *ref[1:]] if isinstance(ref, list) else ref
            for name, ref in json.loads(row["channels"]).items()
        }
        sealed = resealed(Row(**row), **own, channels=json.dumps(channels, separators=(",", ":")))
        _insert(connection, "checkpoints", [sealed._asdict()])
    _insert(connection, "writes", [resealed(WriteRow(**row), **own)._asdict() for row in rows.get("writes", ())])


def _insert(connection: Connection, table: str, rows: Iterable[Mapping[str, Any]], tail: str = "") -> None:
    for row in rows:
        connection.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) {tail}", [*row.values()]
        )
