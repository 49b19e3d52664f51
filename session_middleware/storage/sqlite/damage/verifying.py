"""Looking for damage in a whole file: SQLite's own check of its structure, then every row we keep.

The file is only read, and others may use it meanwhile: apart from SQLite's check, which has to see
all of it at one moment, one family is read at a time. What is found is looked at twice, so that a
family that was changing when it was read is not called damaged.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing

from session_middleware.findings import Damage, Verified
from session_middleware.storage.sqlite.damage import soundness, whole
from session_middleware.storage.sqlite.damage.reading import Source, is_text
from session_middleware.storage.sqlite.database import INDEX_TABLES, OWN_TABLES

Progress = Callable[[int, int], None]  # how many of how many are done

_WORTH_SAYING = 100  # of SQLite's findings; a torn page leads to thousands
RECORDS = sorted(OWN_TABLES - {"sessions", "memories", *soundness.STATE, *soundness.UPKEEP, *INDEX_TABLES})
ORDERED = ("events", "messages", "model_calls", "runs", "tool_calls")  # each row has its seq in the session


def verify(path: str, progress: Progress | None = None) -> Verified:
    """Look at everything in a database file; `progress` is told of sessions.

    Raises:
        StorageError: there is no such file, or SQLite cannot read any of it.
    """
    with Source(path) as source:
        return _Verification(source, progress or (lambda *_: None)).run()


class _Verification:
    def __init__(self, source: Source, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._damage: list[Damage] = []
        self._sessions = self._checkpoints = self._writes = self._records = 0

    def run(self) -> Verified:
        found = structure(self._source)
        present = self._source.tables()
        for table in sorted(OWN_TABLES - present):
            self._say(table, "the table is missing")
        families = self._families() if "sessions" in present else {}
        known = {session_id for members in families.values() for session_id in members}
        for members in families.values():
            members[:] = [session_id for session_id in members if self._is_an_id(session_id)]
        groups = [*families.items(), *((None, [orphan]) for orphan in self._orphans(known, present))]
        total, done = sum(len(members) for _, members in groups), 0
        for family_id, members in groups:
            self._look_at_family(family_id, members)
            done += len(members)
            self._progress(done, total)
        self._sessions = len(known)
        self._look_at_memories()
        return Verified(
            path=self._source.path,
            sessions=self._sessions,
            checkpoints=self._checkpoints,
            writes=self._writes,
            records=self._records,
            structure=tuple(found),
            damage=tuple(dict.fromkeys(self._damage)),
        )

    def _say(self, table: str, problem: str, session_id: str | None = None) -> None:
        self._damage.append(soundness.damage(table, problem, session_id))

    def _families(self) -> dict[str, list[str]]:
        with self._source.snapshot() as connection:
            found, problem = whole.families(connection)
        if problem:
            self._say("sessions", f"some of its rows cannot be read ({problem})")
        return found

    def _is_an_id(self, session_id: str) -> bool:
        if not is_text((session_id,)):
            self._say("sessions", "its id is not valid UTF-8", session_id)
            return False
        return True

    def _orphans(self, known: set[str], present: frozenset[str]) -> Sequence[str]:
        found: dict[str, None] = {}
        for table in ("checkpoints", "heads", "writes", *RECORDS):
            if table not in present:
                continue
            try:
                with self._source.snapshot() as connection:
                    ids = whole.orphans(connection, table, known)
            except sqlite3.Error as error:
                self._say(table, f"some of its rows cannot be read ({error})")
                continue
            for session_id in ids:
                self._say(table, "there are rows of it, and no such session", session_id)
                found[session_id] = None
        return [session_id for session_id in found if is_text((session_id,))]

    def _look_at_family(self, family_id: str | None, members: Sequence[str]) -> None:
        before = len(self._damage), self._checkpoints, self._writes, self._records
        self._look_at_members(family_id, members)
        if len(self._damage) > before[0]:  # or somebody was writing
            del self._damage[before[0] :]
            self._checkpoints, self._writes, self._records = before[1:]
            self._source.renew()
            self._look_at_members(family_id, members)

    def _look_at_members(self, family_id: str | None, members: Sequence[str]) -> None:
        with self._source.snapshot() as connection:
            family = whole.Pieces(connection, family_id)
            for session_id in members:
                found = whole.Inspection(connection, session_id, family).run()
                self._checkpoints += found.checkpoints
                self._writes += found.writes
                self._damage += found.damage
                self._look_at_rows(connection, "sessions", "id", session_id)
                for table in RECORDS:
                    self._look_at_rows(connection, table, "session_id", session_id)

    def _look_at_rows(self, connection: sqlite3.Connection, table: str, column: str, session_id: str) -> None:
        try:
            cursor = connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (session_id,))
            rows = cursor.fetchall()
            if table == "sessions" and [row[0] for row in rows] != [session_id]:
                self._say(table, "its row cannot be found by its id", session_id)
            for row in rows:
                self._records += table != "sessions"
                if problem := soundness.problem_of(table, cursor, row):
                    self._say(table, f"{_place(cursor, row)}: {problem}", session_id)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            self._say(table, f"some of its rows cannot be read ({error})", session_id)

    def _look_at_memories(self) -> None:
        try:
            with self._source.snapshot() as connection:
                cursor = connection.execute("SELECT * FROM memories")
                for row in cursor:
                    self._records += 1
                    if problem := soundness.problem_of("memories", cursor, row):
                        self._say("memories", f"{_place(cursor, row)}: {problem}")
        except sqlite3.Error as error:
            self._say("memories", f"some of its rows cannot be read ({error})")


def structure(source: Source) -> list[str]:
    """What SQLite's own check says of a file; nothing when all is well."""
    found = [source.schema_problem] if source.schema_problem else []
    if source.log_left_out:
        found.append("its write-ahead log cannot be read here, and was left out")
    try:
        with source.snapshot() as connection:
            rows = connection.execute(f"PRAGMA integrity_check({_WORTH_SAYING})").fetchall()
            found += [line for (text,) in rows if text != "ok" for line in text.splitlines()]
            return [*_with_names(connection, found), *_altered(connection)]
    except sqlite3.Error as error:
        return [*found, f"the check could not be finished ({error})"]


def _altered(connection: sqlite3.Connection) -> list[str]:
    """What the schema of a file says of our tables that it should not say: SQLite would do as it says."""
    entries = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    there = dict(connection.execute(entries).fetchall())
    if "_sqlite_migrations" not in there or "sessions" not in there:
        return []  # which is said elsewhere
    return [
        f"the schema's entry of {name} is {'not what was made' if name in there else 'missing'}"
        for name, sql in _made().items()
        if there.get(name) != sql and (name in there or name not in OWN_TABLES)
    ]


def _made() -> dict[str, str]:
    """The schema as a new file has it."""
    from sqlite_utils import Database

    from session_middleware.storage.sqlite import schema

    with closing(Database(memory=True)) as database:
        schema.apply(database)
        found = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return dict(found)


def _place(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> str:
    names = [column[0] for column in cursor.description]
    name = "seq" if "seq" in names else "id"
    return f"row with {name} {row[names.index(name)]}"


def _with_names(connection: sqlite3.Connection, lines: Sequence[str]) -> list[str]:
    """SQLite's lines with the names of tables for the numbers of their trees."""
    names = {str(page): name for page, name in connection.execute("SELECT rootpage, name FROM sqlite_master")}
    found = []
    for line in lines:
        if not line.startswith("*** in database"):
            match = re.search(r"\b[Tt]ree (\d+)", line)
            name = names.get(match[1]) if match else None
            found.append(f"{name}: {line}" if name else line)
    return found
