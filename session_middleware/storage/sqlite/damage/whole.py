"""What is whole of a session's state, with all that it refers to.

A read of one checkpoint finds damage in what it needs. Here everything is looked at: each piece that
any checkpoint refers to, and the ancestors that a replayed channel is made from. The cost is linear
in what is stored.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from session_middleware.findings import Damage
from session_middleware.storage.sqlite.damage.soundness import WRONG_TYPE, damage, first_line, problem_of_row
from session_middleware.storage.sqlite.state import heads, pieces
from session_middleware.storage.sqlite.state.blobs import Damaged
from session_middleware.storage.sqlite.state.sealed import REPLAYED, Key, Row, WriteRow

# Pieces


class _List(NamedTuple):
    """A stored list: where each of its own chunks ends, and the check over all digests up to there."""

    parent: _List | None
    parent_length: int
    ends: list[int]
    checks: list[int]
    problem: str  # what is said of a reference that goes further than this

    def check_at(self, length: int) -> int:
        """The check over the digests of the first `length` elements. Raises `Damaged`."""
        if length <= self.parent_length:
            return self.parent.check_at(length) if self.parent else 0
        place = bisect_left(self.ends, length)
        if place == len(self.ends):
            raise Damaged(self.problem)
        return self.checks[place]


class Pieces:
    """The lists and blobs of one family, each looked at once.

    What is kept for another family than `family_id`, if that is given, may be freed with it: it is
    damage. `owners` says for which families there are pieces.
    """

    def __init__(self, connection: sqlite3.Connection, family_id: str | None = None) -> None:
        self._family_id = family_id
        self._connection = connection
        self._digests: dict[int, bytes | str] = {}  # or what is wrong with the blob
        self._lists: dict[int, _List | str] = {}
        self.owners: dict[str, set[tuple[str, int]]] = defaultdict(set)  # family to table and id

    def check(self, ref: Any) -> None:
        """Raises `Damaged` unless a checkpoint's reference leads to what it was made for."""
        if isinstance(ref, int):
            self._digest(ref)
        elif isinstance(ref, list):
            list_id, length, check = ref
            if self._list(list_id).check_at(length) != check:
                raise Damaged(f"list {list_id} holds other elements")
        elif ref is not None and ref != REPLAYED:
            raise Damaged("a reference to nothing")

    def check_written(self, ref: Any) -> None:
        for blob_id in [blob_id for blob_id, _ in ref] if isinstance(ref, list) else [] if ref is None else [ref]:
            self._digest(blob_id)

    def _digest(self, blob_id: int) -> bytes:
        if blob_id not in self._digests:
            self._digests[blob_id] = self._look_at_blob(blob_id)
        found = self._digests[blob_id]
        if isinstance(found, str):
            raise Damaged(found)
        return found

    def _look_at_blob(self, blob_id: int) -> bytes | str:
        try:
            pieces.get_blob(self._connection, blob_id)
            sql = "SELECT digest, family_id FROM blobs WHERE id = ?"
            digest, owner = self._connection.execute(sql, (blob_id,)).fetchone()
            self._check_owner(owner, "blob", blob_id)
            return bytes(digest)
        except Damaged as damage:
            return str(damage) if " is " in str(damage) else f"{damage} is not what was written"
        except (sqlite3.Error, *WRONG_TYPE) as error:
            return f"blob {blob_id} cannot be read ({first_line(error)})"

    def _check_owner(self, owner: str, kind: str, number: int) -> None:
        self.owners[owner].add((f"{kind}s", number))
        if self._family_id not in (None, owner):
            raise Damaged(f"{kind} {number} is kept for another family")

    def _list(self, list_id: int) -> _List:
        if list_id not in self._lists:
            self._lists[list_id] = self._look_at_list(list_id)
        found = self._lists[list_id]
        if isinstance(found, str):
            raise Damaged(found)
        return found

    def _look_at_list(self, list_id: int) -> _List | str:
        try:
            sql = "SELECT parent_id, parent_length, family_id FROM lists WHERE id = ?"
            row = self._connection.execute(sql, (list_id,)).fetchone()
            if row is None:
                return f"list {list_id} is missing"
            parent_id, start, owner = row
            self._check_owner(owner, "list", list_id)
            parent_id = parent_id if start else None  # it gives nothing
            if parent_id is not None and parent_id >= list_id:
                return f"list {list_id} is said to come from a later one"
            parent = None if parent_id is None else self._list(parent_id)
            return self._look_at_items(list_id, parent, start if parent else 0)
        except Damaged as damage:
            return str(damage)
        except (sqlite3.Error, *WRONG_TYPE) as error:
            return f"list {list_id} cannot be read ({first_line(error)})"

    def _look_at_items(self, list_id: int, parent: _List | None, start: int) -> _List:
        ends: list[int] = []
        checks: list[int] = []
        end, check = start, parent.check_at(start) if parent else 0
        problem = f"elements of list {list_id} are missing"
        try:
            for position, count, blob_id in self._connection.execute(
                "SELECT position, count, blob_id FROM list_items WHERE list_id = ? ORDER BY position", (list_id,)
            ):
                if position != end or count < 1:
                    break
                check = zlib.crc32(self._digest(blob_id), check)
                end += count
                ends.append(end)
                checks.append(check)
        except Damaged as damage:
            problem = str(damage)
        except (sqlite3.Error, *WRONG_TYPE) as error:
            problem = f"list {list_id} cannot be read ({first_line(error)})"
        return _List(parent, start, ends, checks, problem)


# A session's state

_MISPLACED = "another session's rows stand in their place"


@dataclass(slots=True)
class Inspected:
    """What was looked at of a session's state, and what of it is not whole."""

    checkpoints: int = 0
    writes: int = 0
    damage: list[Damage] = field(default_factory=list)
    lost: set[Key] = field(default_factory=set)  # checkpoints
    lost_tasks: set[tuple[Key, str]] = field(default_factory=set)  # a task's writes are of use all or none


class Inspection:
    """Looks at the state of one session.

    Args:
        torn: checkpoints of which writes are known to be lost.
        is_torn: any checkpoint of the session may have lost writes.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        session_id: str,
        family: Pieces,
        *,
        torn: Collection[Key] = (),
        is_torn: bool = False,
    ) -> None:
        self._connection = connection
        self._session_id = session_id
        self._pieces = family
        self._found = Inspected()
        self._rows: dict[Key, Row] = {}  # those that are whole, without their bodies
        self._present: set[Key] = set()  # whether whole or not
        self._noted: dict[Key, int] = {}  # and how many writes
        self._written: Counter[Key] = Counter()
        self._torn = set(torn)
        self._is_torn = is_torn
        self._leading: dict[tuple[Key, str], bool] = {}  # whether a channel can be replayed from a checkpoint on

    def run(self) -> Inspected:
        for row in self._read("checkpoints"):
            self._found.checkpoints += 1
            self._look_at_checkpoint(Row(*row))
        for row in self._read("writes"):
            self._found.writes += 1
            self._look_at_write(WriteRow(*row))
        self._look_at_heads()
        self._look_at_notes()
        while gone := self._unreplayable():  # which others may be replayed from
            for key in gone:
                self._lose(key, "what one of its channels is replayed from is damaged or missing")
        return self._found

    def _unreplayable(self) -> list[Key]:
        self._leading.clear()
        return [
            key for key, row in self._rows.items() if not all(self._is_replayable(row, name) for name in _replayed(row))
        ]

    def _read(self, table: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(f"SELECT * FROM {table} WHERE session_id = ?", (self._session_id,))
        except sqlite3.Error as error:
            self._say(table, f"some of its rows cannot be read ({error})", self._session_id)

    def _say(self, table: str, problem: str, *key: Any) -> None:
        self._found.damage.append(damage(table, problem, *key))

    def _lose(self, key: Key, problem: str) -> None:
        self._found.lost.add(key)
        self._rows.pop(key, None)
        self._say("checkpoints", problem, *key)

    def _look_at_checkpoint(self, row: Row) -> None:
        if row.session_id != self._session_id:  # a lookup in a tree that is out of order ends anywhere
            return self._say("checkpoints", _MISPLACED, self._session_id)
        self._present.add(row.key)
        if row.previous is not None:
            self._noted[row.session_id, row.checkpoint_ns, row.previous.checkpoint_id] = row.previous.write_count
        problem = problem_of_row(row)
        if problem is None:
            try:
                for ref in row.refs.values():
                    self._pieces.check(ref)
            except Damaged as damage:
                problem = str(damage)
        if problem is not None:
            return self._lose(row.key, problem)
        self._rows[row.key] = row._replace(body=b"")
        return None

    def _look_at_write(self, write: WriteRow) -> None:
        if write.session_id != self._session_id:
            return self._say("writes", _MISPLACED, self._session_id)
        self._written[write[:3]] += 1
        problem = problem_of_row(write)
        if problem is None:
            try:
                self._pieces.check_written(json.loads(write.value))
            except Damaged as damage:
                problem = str(damage)
        if problem is not None:
            self._found.lost_tasks.add((write[:3], write.task_id))
            self._torn.add(write[:3])
            self._say("writes", f"what task {write.task_id} wrote: {problem}", *write[:3])
        return None

    def _look_at_heads(self) -> None:
        sql = "SELECT checkpoint_ns FROM heads WHERE session_id = ?"
        try:
            noted = {namespace for (namespace,) in self._connection.execute(sql, (self._session_id,))}
            for namespace in sorted(noted.union(key[1] for key in self._present), key=str):
                self._look_at_head(namespace)
        except (sqlite3.Error, *WRONG_TYPE) as error:
            self._say("heads", f"some of its rows cannot be read ({first_line(error)})", self._session_id)

    def _look_at_head(self, namespace: str) -> None:
        try:
            head = heads.find(self._connection, self._session_id, namespace)
        except Damaged as damage:
            return self._say("heads", str(damage), self._session_id, namespace)
        if head is None:
            return self._say("heads", "there is no note of its head", self._session_id, namespace)
        self._noted[self._session_id, namespace, head.checkpoint_id] = head.write_count
        return None

    def _look_at_notes(self) -> None:
        """Whether the checkpoints, and their writes, are those that are noted to be."""
        for key, write_count in self._noted.items():
            if key not in self._present:
                self._say("checkpoints", "its row cannot be found", *key)
            elif self._written[key] != write_count:
                self._torn.add(key)
                self._say("writes", f"there are {self._written[key]}, and {write_count} were noted", *key)
        for key in self._present.difference(self._noted):
            self._say("checkpoints", "the next newer one does not note it", *key)

    def _is_replayable(self, row: Row, channel: str) -> bool:
        """Whether every ancestor from which a channel is made again is there, with all its writes."""
        line: list[tuple[Key, str]] = []
        leading = True
        while row.parent_id is not None:
            key = (*row.key[:2], row.parent_id)
            known = self._leading.get((key, channel))
            if known is not None:
                leading = known
                break
            line.append((key, channel))
            if key not in self._rows or key in self._torn or self._is_torn:
                leading = False
                break
            row = self._rows[key]
            if channel in row.refs:
                break
        self._leading.update(dict.fromkeys(line, leading))
        return leading


def _replayed(row: Row) -> list[str]:
    return [name for name, ref in json.loads(row.channels).items() if ref == REPLAYED]


def families(connection: sqlite3.Connection) -> tuple[dict[str, list[str]], str]:
    """The sessions of each family, and what kept them from being read to the end.

    They are read from both ends of the table, and from an index, which repeats what they are.
    """
    found: dict[str, str] = {}
    problem = ""
    for sql in (
        "SELECT id, family_id FROM sessions NOT INDEXED ORDER BY id",
        "SELECT id, family_id FROM sessions NOT INDEXED ORDER BY id DESC",
        "SELECT id, family_id FROM sessions INDEXED BY sessions_by_family",
    ):
        try:
            for session_id, family_id in connection.execute(sql):
                found.setdefault(session_id, family_id)
        except sqlite3.Error as error:
            problem = problem or str(error)
        if not problem:
            break
    members: dict[str, list[str]] = defaultdict(list)
    for session_id, family_id in found.items():
        members[family_id].append(session_id)
    return members, problem


def orphans(connection: sqlite3.Connection, table: str, known: Collection[str]) -> Sequence[str]:
    """Session ids in a table that no session has. One look-up each, not a scan."""
    found: list[str] = []
    last = ""
    while True:
        sql = f"SELECT MIN(session_id) FROM {table} WHERE session_id > CAST(? AS TEXT)"
        row = connection.execute(sql, (last.encode("utf-8", "surrogateescape"),)).fetchone()
        if row[0] is None or not isinstance(row[0], str) or row[0] <= last:
            return found
        last = row[0]
        if last not in known:
            found.append(last)
