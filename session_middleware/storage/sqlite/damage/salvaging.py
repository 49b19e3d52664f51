"""Saving what is whole of a damaged file into a new one; the source is only read.

First every row that can be read and is whole by itself is copied: in the order of the tables' trees,
and where a page stops that, around it, from both ends and in ever smaller parts. Then, in the new
file, whose trees are sound, what refers to something that was lost is taken away again. So a
checkpoint that is there is whole, and one that is not is said to be lost. The new file gets its
name when it has been found clean.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.findings import Damage, Salvaged
from session_middleware.model import from_text, to_text, utc_now
from session_middleware.storage.sqlite.damage import soundness, whole
from session_middleware.storage.sqlite.damage.reading import Source, is_text
from session_middleware.storage.sqlite.damage.verifying import ORDERED, Progress, structure, verify
from session_middleware.storage.sqlite.damage.verifying import RECORDS as _RECORDS
from session_middleware.storage.sqlite.damage.walking import Row, Walk
from session_middleware.storage.sqlite.database import INDEX_TABLES, OWN_TABLES, SqliteDatabase, absolute
from session_middleware.storage.sqlite.state import heads, pieces
from session_middleware.storage.sqlite.state.sealed import AT, Key, at

_TABLES = ("sessions", *sorted(OWN_TABLES - {"sessions", "heads", "leases", *INDEX_TABLES}))
# heads and the index are made anew, runs are over


def salvage(source: str, target: str, progress: Progress | None = None) -> Salvaged:
    """Copy what is whole of `source` into `target`, which must not exist; `progress` is told of rows.

    A session whose row is lost gets a new one with its owner, if the indexes still name him; else
    all of it is lost, because nobody can say whose it was.

    Raises:
        StorageError: the target exists or cannot be written, or nothing of the source can be read.
    """
    if Path(target).exists():
        raise StorageError(target, "it exists already", advice="name a new file, for what can be saved")
    part = f"{target}.part"
    _remove(part)
    try:
        with Source(source) as opened, _new_file(part) as connection:
            salvaged = _Salvage(opened, connection, progress).run()
        found = verify(part)
        if not found.is_clean:
            raise StorageError(part, "what was saved is not whole", advice="keep both files, and report this")
        Path(part).rename(target)
    except BaseException:
        _remove(part)
        raise
    counts = {"sessions": found.sessions, "checkpoints": found.checkpoints}
    return salvaged.model_copy(update={"path": target, "writes": found.writes, "records": found.records, **counts})


@contextmanager
def _new_file(path: str) -> Iterator[sqlite3.Connection]:
    """A new database, filled without a log: as long as it has another name, nobody needs to go back."""
    SqliteDatabase(path).close()
    with closing(sqlite3.connect(absolute(path), isolation_level=None)) as connection:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchone()
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
        connection.executescript("PRAGMA incremental_vacuum; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    with Path(path).open("rb+") as file:
        os.fsync(file.fileno())


def _remove(part: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(part + suffix).unlink(missing_ok=True)


class _Salvage:
    def __init__(self, source: Source, target: sqlite3.Connection, progress: Progress | None) -> None:
        self._source = source
        self._target = target
        self._progress = progress or (lambda *_: None)
        self._present = source.tables()
        self._lost: list[Damage] = []
        self._torn: set[tuple[Key, str]] = set()  # tasks of which writes are lost
        self._lost_writes: Counter[Key] = Counter()  # of which is known whose they were
        self._torn_sessions: set[str] = set()  # sessions of which writes may be
        self._structure = tuple(structure(source))
        self._is_torn = any(re.search(r"\bwrites\b", line) for line in self._structure)  # those of any session may be
        self._done = self._total = 0

    def run(self) -> Salvaged:
        with self._source.snapshot() as connection:
            self._entries = self._ids_in(connection)
            self._total = sum(self._count(connection, table) for table in _TABLES)
            for table in _TABLES:
                if table in self._present:
                    self._copy_table(connection, table)
                else:
                    self._say(table, "the table is missing")
            rebuilt = self._rebuild_sessions(connection)
            self._compare_notes(connection)
        self._drop_orphans()
        self._drop_what_is_not_whole()
        self._target.execute("UPDATE memories SET indexed = text IS NULL, embedded = embedded AND 0")
        return Salvaged(
            path="",
            sessions=0,
            checkpoints=0,
            writes=0,
            records=0,
            rebuilt=rebuilt,
            structure=self._structure,
            lost=tuple(dict.fromkeys(self._lost)),
        )

    def _say(self, table: str, problem: str, *key: Any) -> None:
        self._lost.append(soundness.damage(table, problem, *key))

    def _count(self, connection: sqlite3.Connection, table: str) -> int:
        try:
            return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        except sqlite3.Error:
            return 0  # the bar will be a little short

    # Rows

    def _copy_table(self, connection: sqlite3.Connection, table: str) -> None:
        ours = [row[1] for row in self._target.execute(f"PRAGMA table_info({table})")]
        theirs = set(self._columns(connection, table))
        columns = [name for name in ours if name in theirs]
        if not columns:
            return self._say(table, "the table cannot be read")
        copy = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        walk = Walk(connection, table, columns, self._entries)
        for row in walk.rows():
            self._done += 1
            if self._done % 500 == 0:
                self._progress(min(self._done, self._total), self._total)
            problem = soundness.problem_of(table, walk.description, row)
            if problem is None and self._target.execute(copy, row).rowcount == 0 and not self._has(table, columns, row):
                problem = "it contradicts another row"
            if problem is not None:
                self._say(table, f"a row: {problem}", *_key(table, columns, row))
                if table == "writes" and is_text(row):
                    self._torn.add((row[:3], row[3]))
                    self._lost_writes[row[:3]] += 1
                self._is_torn |= table == "writes" and not is_text(row)
        for problem in walk.problems:
            self._say(table, problem)
        if table == "writes":
            self._torn_sessions.update(walk.unread)
        return None

    @staticmethod
    def _columns(connection: sqlite3.Connection, table: str) -> Sequence[str]:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

    def _has(self, table: str, columns: Sequence[str], row: Row) -> bool:
        """Whether a row was copied already: parts of a damaged table are read more than once."""
        same = " AND ".join(f"{name} IS ?" for name in columns)
        return self._target.execute(f"SELECT 1 FROM {table} WHERE {same} LIMIT 1", row).fetchone() is not None

    def _ids_in(self, connection: sqlite3.Connection) -> list[str]:
        """All session ids that can be found anywhere: where the tables in their order can be entered."""
        found: set[str] = set()
        if "sessions" in self._present:
            found.update(*whole.families(connection)[0].values())
        for table in _RECORDS:
            with suppress(sqlite3.Error):
                found.update(whole.orphans(connection, table, found))
        return sorted((session_id for session_id in found if is_text((session_id,))), key=str.encode)

    # Sessions

    def _ids(self) -> set[str]:
        return {session_id for (session_id,) in self._target.execute("SELECT id FROM sessions")}

    def _rebuild_sessions(self, connection: sqlite3.Connection) -> tuple[str, ...]:
        """Make the rows of sessions that are lost anew, from what the indexes repeat of them."""
        known = self._ids()
        wanted = {
            found
            for table in ("checkpoints", "writes", *_RECORDS)
            for found in whole.orphans(self._target, table, known)
        }
        facts: dict[str, dict[str, Any]] = {session_id: {} for session_id in wanted}
        for index, column in (("family", "family_id"), ("user", "user_id"), ("group", "group_id")):
            sql = f"SELECT id, {column}, last_active_at FROM sessions INDEXED BY sessions_by_{index}"
            if column == "family_id":
                sql = f"SELECT id, {column} FROM sessions INDEXED BY sessions_by_{index}"
            for direction in ("", f" ORDER BY {column} DESC"):
                _gather(connection, sql + direction, column, facts)
        rebuilt = sorted(session_id for session_id, found in facts.items() if len(found) == 4)
        for session_id in rebuilt:
            self._insert_session(session_id, **facts[session_id])
        for session_id in sorted(wanted.difference(rebuilt)):
            self._say("sessions", "its row is lost, and with it whose it was", session_id)
        return tuple(rebuilt)

    def _insert_session(
        self, session_id: str, *, family_id: str, user_id: str | None, group_id: str | None, last_active_at: str
    ) -> None:
        try:
            from_text(last_active_at)
        except (TypeError, ValueError):
            last_active_at = to_text(utc_now())
        seqs, counts = [0], []
        for table in ORDERED:
            sql = f"SELECT COUNT(*), MAX(seq) FROM {table} WHERE session_id = ?"
            count, last = self._target.execute(sql, (session_id,)).fetchone()
            seqs.append(last or 0)
            if table in ("runs", "messages", "tool_calls"):
                counts.append(count)
        self._target.execute(
            "INSERT INTO sessions (id, family_id, user_id, group_id, opened_as, created_at, began_at, last_active_at,"
            " last_seq, message_count, run_count, tool_call_count) VALUES (?, ?, ?, ?, 'resumed', ?, ?, ?, ?, ?, ?, ?)",
            (session_id, family_id, user_id, group_id, *[last_active_at] * 3, max(seqs), *counts),
        )

    def _drop_orphans(self) -> None:
        known = self._ids()
        for table in ("checkpoints", "writes", *_RECORDS):
            for session_id in whole.orphans(self._target, table, known):
                self._target.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))

    # State

    def _compare_notes(self, connection: sqlite3.Connection) -> None:
        """Say of the checkpoints and their writes what could not even be seen."""
        where = "session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        noted = self._target.execute(
            "SELECT session_id, checkpoint_ns, COALESCE(previous_id, parent_id) AS id, previous_writes FROM checkpoints"
            " WHERE id != ''"
        ).fetchall()
        with suppress(sqlite3.Error):
            noted += connection.execute("SELECT session_id, checkpoint_ns, checkpoint_id, write_count FROM heads")
        for *key, write_count in filter(is_text, noted):
            tasks = self._target.execute(f"SELECT task_id FROM writes WHERE {where}", key).fetchall()
            if not self._target.execute(f"SELECT 1 FROM checkpoints WHERE {AT}", at(*key)).fetchone():
                self._say("checkpoints", "its row is lost", *key)
            elif len(tasks) + self._lost_writes[tuple(key)] != write_count:
                self._say("writes", "some of them are lost", *key)
                self._torn.update((tuple(key), task_id) for task_id in ("", *(task_id for (task_id,) in tasks)))

    def _drop_what_is_not_whole(self) -> None:
        """Until nothing is found that refers to what is missing; that is mostly at the second look."""
        self._mind_lost_writes()
        self._reunite_families()
        looking = True
        while looking:
            families, _ = whole.families(self._target)
            looking = sum(self._drop_of_family(family_id, members) for family_id, members in families.items()) > 0
            families, _ = whole.families(self._target)
            for family_id in self._kept_under().union(families):
                pieces.free_unused(self._target, family_id, families.get(family_id, ()))

    def _kept_under(self) -> set[str]:
        sql = "SELECT family_id FROM blobs UNION SELECT family_id FROM lists"
        return {family_id for (family_id,) in self._target.execute(sql)}

    def _mind_lost_writes(self) -> None:
        """A task's writes are of use all or none; and where one is lost, what is replayed from there is not whole."""
        where = "session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        for key, task_id in self._torn:
            self._target.execute(f"DELETE FROM writes WHERE {where} AND task_id = ?", (*key, task_id))
            self._is_torn |= not self._target.execute(f"SELECT 1 FROM checkpoints WHERE {AT}", at(*key)).fetchone()

    def _drop_of_family(self, family_id: str, members: Sequence[str]) -> bool:
        family, dropped = whole.Pieces(self._target, family_id), False
        torn = {key for key, _ in self._torn}
        for session_id in members:
            heads.renew(self._target, session_id)
            is_torn = self._is_torn or session_id in self._torn_sessions
            found = whole.Inspection(self._target, session_id, family, torn=torn, is_torn=is_torn).run()
            self._lost += found.damage
            self._delete(found)
            heads.renew(self._target, session_id)
            dropped = dropped or bool(found.damage)
        return dropped

    def _reunite_families(self) -> None:
        """Put each session into the family that most of its state is kept for; what then has no owner is freed."""
        families, _ = whole.families(self._target)
        for family_id, members in families.items():
            for session_id in members:
                owners = self._owners(session_id)
                most = max(owners, key=lambda owner: len(owners[owner]), default=family_id)
                if most != family_id:
                    self._target.execute("UPDATE sessions SET family_id = ? WHERE id = ?", (most, session_id))
                for owner in owners.keys() - families.keys() - {most}:
                    self._adopt(owners[owner], most)

    def _owners(self, session_id: str) -> dict[str, set[tuple[str, int]]]:
        pieces_of_one = whole.Pieces(self._target)
        whole.Inspection(self._target, session_id, pieces_of_one).run()
        return pieces_of_one.owners

    def _adopt(self, kept: Collection[tuple[str, int]], family_id: str) -> None:
        for table, number in kept:
            self._target.execute(f"UPDATE OR IGNORE {table} SET family_id = ? WHERE id = ?", (family_id, number))

    def _delete(self, found: whole.Inspected) -> None:
        where = "session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        for key in found.lost:
            self._target.execute(f"DELETE FROM checkpoints WHERE {where} AND place >= ?", (*key, key[2]))
            self._target.execute(f"DELETE FROM writes WHERE {where}", key)
        for key, task_id in found.lost_tasks:
            self._target.execute(f"DELETE FROM writes WHERE {where} AND task_id = ?", (*key, task_id))


def _gather(connection: sqlite3.Connection, sql: str, column: str, facts: dict[str, dict[str, Any]]) -> None:
    try:
        for row in connection.execute(sql):
            if row[0] in facts and is_text(row):
                facts[row[0]].update(zip((column, "last_active_at"), row[1:], strict=False))
    except sqlite3.Error:
        return  # what the other direction does not find either is lost


def _key(table: str, columns: Sequence[str], row: Row) -> Row:
    names = ("id",) if table == "sessions" else ("session_id", "checkpoint_ns", "checkpoint_id")
    known = dict(zip(columns, row, strict=True))
    return tuple(known.get(name) for name in names[: None if table in ("checkpoints", "writes") else 1])
