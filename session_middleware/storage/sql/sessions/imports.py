"""The rows of exported files, checked and inserted.

`check` examines each row by itself, without a database. `Import` inserts the rows in one transaction. Each family gets
a home of this database's own, unless members of it are here, and lists get new ids; so no file can name rows that
belong to other sessions.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from session_middleware import lifecycle
from session_middleware.errors import SessionError, SessionExists
from session_middleware.models import Identity, SessionInfo, to_text
from session_middleware.storage import jsonl
from session_middleware.storage.jsonl import Line, Refusal
from session_middleware.storage.sql.checkpoints import latest_checkpoint, lists
from session_middleware.storage.sql.checkpoints.blobs import checked_blob
from session_middleware.storage.sql.checkpoints.pruning import free_unused
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, resealed
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.contents import UNREADABLE, Described, check_row, problem_of
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import namespace_text
from session_middleware.storage.sql.sessions import endings, events, session_rows, tombstones
from session_middleware.storage.sql.sessions.admission import new_home
from session_middleware.storage.sql.tables import tables
from session_middleware.storage.titles import title_key
from session_middleware.storage.types import TombstoneInfo

_BATCH = 100  # rows of one table that are inserted together
_STATE = ("checkpoints", "writes", "lists", "list_items", "blobs")
_COLUMNS = {
    **{name: tuple(tables()[name].columns) for name in ("sessions", *runs.TABLES, *_STATE)},
    "memories": items.EXPORTED,
}


def check(line: Line) -> None:
    """Raise `Refusal` unless the line is a valid row of a known table."""
    number, table, row = line
    if table not in _COLUMNS:
        raise Refusal(number, f"there is no table {table[:50]!r}")
    for name in row.keys() ^ set(_COLUMNS[table]):
        what = "has no column" if name in row else "needs a value for"
        raise Refusal(number, f"the table {table} {what} {name[:50]!r}")
    columns = tables()[table].columns
    try:
        for name, value in row.items():
            if value is None and columns[name].is_required:
                raise ValueError(f"{name} is null")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} is too large")
        check_row(table, Described([(name,) for name in columns]), tuple(row.get(name) for name in columns))
        if table in ("blobs", "list_items") and row["data"] is not None:
            checked_blob(row["type"], row["data"], row["digest"])
        if table == "sessions":
            lifecycle.session_id_of(row["id"])
            for name in ("user_id", "group_id"):
                lifecycle.owner_id_or_none(name, row[name])
    except (*UNREADABLE, SessionError) as error:
        raise Refusal(number, problem_of(error)) from error


class Import:
    """Inserts the rows of a file. `ids` are those of the sessions that were inserted.

    Args:
        by: the user who imports the sessions, which must be this user's; ``None``: the operator.
        skips: leave a session as it is whose id and owner are in the database. Otherwise it is refused.
        archived: the file is the archive of this session, which becomes active again.
    """

    def __init__(
        self,
        connection: Connection,
        rules: EngineContext,
        *,
        by: Identity | None = None,
        skips: bool = False,
        archived: TombstoneInfo | None = None,
    ) -> None:
        self._connection, self._rules, self._by, self._skips, self._archived = connection, rules, by, skips, archived
        self._now = rules.clock()
        self.ids: list[str] = []
        self._table, self._batch = "", list[Line]()
        self._begin_family(None, 0)
        self._mapped: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            **dict.fromkeys(runs.TABLES, self._of_record),
            "checkpoints": self._checkpoint,
            "writes": self._write,
            "lists": partial(self._of_list, names=("id", "parent_id")),
            "list_items": partial(self._of_list, names=("list_id",)),
            "blobs": lambda row: row | {"home": self._home},
            "memories": self._memory,
        }

    def run(self, lines: Iterable[Line]) -> None:
        """Raises `Refusal`, `SessionExists`, `SessionLimitReached` or `UserRevoked`."""
        if self._by is not None:
            tombstones.check_not_revoked(self._connection, "", self._by.user_id)
        for line in lines:
            if line.table not in _COLUMNS:
                raise Refusal(line.number, f"there is no table {line.table[:50]!r}")
            if line.table == "sessions":
                self._flush()
                self._add_session(line)
                continue
            if line.table != self._table or len(self._batch) >= _BATCH:
                self._flush()
                self._table = line.table
            try:
                row = self._mapped[line.table](line.row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Refusal(line.number, f"it belongs to no session before it ({error})") from error
            if row is not None:
                self._batch.append(line._replace(row=row))
        self._end_family()

    # Sessions

    def _begin_family(self, file_home: int | None, home: int) -> None:
        self._file_home, self._home = file_home, home
        self._renamed: dict[str, str | None] = {}  # the ids of its sessions in the file, and here; None: skipped
        self._lists: dict[int, int] = defaultdict(lists.new_id)
        self._running: list[runs.DeadRun] = []
        self._calls: list[tuple[str, int]] = []

    def _end_family(self) -> None:
        self._flush()
        runs.interrupt(self._connection, self._running, self._calls)  # the processes are those of the exported file
        if None in self._renamed.values():
            free_unused(self._connection, [self._home])

    def _add_session(self, line: Line) -> None:
        row, number = line.row, line.number
        if row["home"] != self._file_home:
            self._end_family()
            self._begin_family(row["home"], row["home"] if self._archived else self._home_of(row))
        was = row["id"]
        if self._archived is not None:
            self._renamed[was] = session_id = self._archived.session_id
            family = session_id if row["family_id"] == was else row["family_id"]
            self._connection.lock([family])  # forks may be here
            changes: dict[str, Any] = {"id": session_id, "family_id": family, "status": "active", "reason": "restored"}
            changes |= {"opened_as": "revived", "ended_at": None, "pruned": 0, "active_since": to_text(self._now)}
        else:
            self._check_theirs(row, number)
            if self._is_taken(row, number):
                self._renamed[was] = None
                return
            self._renamed[was] = was
            last = tombstones.next_incarnation(self._connection, was)
            changes = {"home": self._home, "incarnation": max(row["incarnation"], last)}
            if self._by is not None and row["status"] == "active":
                endings.make_room(self._connection, self._by.user_id, self._rules, self._now)
        changes["title_key"] = title_key(row["title"])
        changes["version"] = random.getrandbits(48)  # no process has it in its cache
        self._insert("sessions", [row | changes])
        self.ids.append(str(self._renamed[was]))

    def _home_of(self, row: dict[str, Any]) -> int:
        """The home of a family: that in the file, if members of it are here, and only those."""
        sql = "SELECT DISTINCT family_id, user_id FROM sessions WHERE home = ?"
        members = self._connection.execute(sql, (row["home"],)).fetchall()
        return int(row["home"]) if members == [(row["family_id"], row["user_id"])] else new_home()

    def _check_theirs(self, row: dict[str, Any], number: int) -> None:
        if (by := self._by) is None:
            return
        if row["user_id"] != by.user_id:
            raise Refusal(number, f"session {row['id']!r} is owned by another user")
        if row["group_id"] not in (None, *by.groups):
            raise Refusal(number, f"session {row['id']!r} is of a group that the user is not in")

    def _is_taken(self, row: dict[str, Any], number: int) -> bool:
        """Whether the session is skipped. Raises `SessionExists` if its id is not free."""
        session_id, owner = row["id"], row["user_id"]
        found = session_rows.find(self._connection, session_id)
        if found is not None:
            if self._skips and found.user_id == owner and session_id not in self.ids:
                return True
            raise SessionExists(session_id, line=number, is_theirs=found.user_id == owner)
        latest_checkpoint.check_new(self._connection, session_id, self._rules.path)
        deleted = tombstones.find(self._connection, session_id)
        if deleted is None:
            return False
        is_theirs = deleted.user_id in (None, owner)
        if self._skips and is_theirs and deleted.merged_into is not None:
            return True
        if deleted.archive is not None or deleted.merged_into is not None or not is_theirs:
            is_archived = is_theirs and deleted.archive is not None
            raise SessionExists(session_id, archived=is_archived, line=number, is_theirs=is_theirs)
        return False

    # Other rows

    def _of_record(self, row: dict[str, Any]) -> dict[str, Any] | None:
        session_id = self._renamed[row["session_id"]]
        if session_id is None:
            return None
        if row.get("outcome") == "running":
            self._running.append(runs.DeadRun(session_id, row["seq"], row["id"]))
        elif "execution_id" in row and row["process"] is not None:
            self._calls.append((session_id, row["seq"]))
        return row | {"session_id": session_id}

    def _checkpoint(self, row: dict[str, Any]) -> dict[str, Any] | None:
        session_id = self._renamed[row["session_id"]]
        channels = {
            name: [self._lists[ref[0]], *ref[1:]] if isinstance(ref, list) else ref
            for name, ref in json.loads(row["channels"]).items()
        }
        text = json.dumps(channels, separators=(",", ":"))
        own = {"home": self._home, "session_id": session_id, "channels": text}
        return None if session_id is None else resealed(Row(**row), **own)._asdict()

    def _write(self, row: dict[str, Any]) -> dict[str, Any] | None:
        session_id = self._renamed[row["session_id"]]
        own = {"home": self._home, "session_id": session_id}
        return None if session_id is None else resealed(WriteRow(**row), **own)._asdict()

    def _of_list(self, row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return row | {"home": self._home} | {name: self._lists[row[name]] for name in names}

    def _memory(self, row: dict[str, Any]) -> dict[str, Any] | None:
        scope, *path = json.loads(row["namespace"])
        if scope == "session":
            session_id = self._renamed[path[0]]
            if session_id is None:
                return None
            row = row | {"namespace": namespace_text((scope, session_id, *path[1:]))}
            return row | {"session_id": session_id if row["session_id"] == path[0] else row["session_id"]}
        if self._by is not None and (scope, path[:1]) != ("user", [self._by.user_id]):
            raise ValueError("a memory of another scope")
        return row

    def _flush(self) -> None:
        if batch := self._batch:
            self._batch = []
            try:
                self._insert(self._table, [line.row for line in batch])
            except self._connection.conflict as error:
                lines = f"a row of the lines {batch[0].number} to {batch[-1].number} repeats another one"
                raise Refusal(batch[0].number, lines) from error

    def _insert(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        if table == "memories":
            items.restore(self._connection, rows)
            return
        columns = _COLUMNS[table]
        statement = tables()[table].insert(columns, "ON CONFLICT DO NOTHING" if table == "blobs" else "")
        self._connection.executemany(statement, [[row[name] for name in columns] for row in rows])


def restore_archive(connection: Connection, tombstone: TombstoneInfo, path: Path, rules: EngineContext) -> SessionInfo:
    """Insert an archived session as it was, active from now on, and delete its tombstone."""
    session_id, now = tombstone.session_id, rules.clock()
    with jsonl.reading(path, noun="archive", advice="put back the file from a backup, or delete the session"):
        Import(connection, rules, archived=tombstone).run(jsonl.Reading(path, tombstone.digest))
    connection.execute("DELETE FROM tombstones WHERE id = ?", (session_id,))
    session_rows.touch(connection, session_id, rules, now)
    events.append(connection, session_id, "restored", "archive", {"archived_at": to_text(tombstone.deleted_at)}, now)
    return session_rows.get(connection, session_id)
