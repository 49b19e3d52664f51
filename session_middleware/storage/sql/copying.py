"""Copying a whole database into another one, of either engine.

The rows of each table are compared in the order of their keys, and those that differ are replaced. So a copy that was
interrupted goes on where it was, and a copy repeated later transfers what has changed. The source is read in one
snapshot, beside runs in progress. Leases are not copied: the runs that hold them are those of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine import SqlStorage
from session_middleware.storage.sql.tables import Row, Table, fetched, tables
from session_middleware.storage.types import Progress

_PAGE = 500  # rows of a statement


def _tables() -> list[Table]:
    """Messages come before memories, which a trigger changes when a message is replaced; sessions come last."""
    found = [table for name, table in tables().items() if name != "leases"]
    return sorted(found, key=lambda table: (table.name == "sessions", table.name == "memories"))


def copy_database(source: SqlStorage, target: SqlStorage, *, progress: Progress | None = None) -> dict[str, int]:
    """Make the target equal to the source, and compare all of their rows. Returns the rows of each table.

    Args:
        progress: called with the rows that are done, and their number.

    Raises:
        StorageError: the target has sessions that the source has not, or is not equal to the source afterwards.
    """
    if source.name == target.name:
        raise StorageError(target.name, "it is the source too", advice="name another database to copy to")
    return source._database.read(
        lambda connection: _Copy(connection, source, target, progress or (lambda *_: None)).run()
    )


class _Copy:
    def __init__(self, connection: Connection, source: SqlStorage, target: SqlStorage, progress: Progress) -> None:
        self._connection, self._source, self._target = connection, source, target
        self._database, self._progress = target._database, progress

    def run(self) -> dict[str, int]:
        tables = _tables()
        self._check_target()
        counts = {table.name: self._count(table) for table in tables}
        done, total = 0, 2 * sum(counts.values())
        for table in tables:
            self._transfer(table)
            self._progress(done := done + counts[table.name], total)
        self._database.renumber()
        for table in tables:
            for key, _ in self._differences(table):
                raise self._unequal(f"the row {key} of {table.name}")
            self._progress(done := done + counts[table.name], total)
        self._compare_states()
        return counts

    def _count(self, table: Table) -> int:
        (count,) = self._connection.execute(f"SELECT COUNT(*) FROM {table.name}").fetchone()
        return int(count)

    def _check_target(self) -> None:
        for key, row in self._differences(tables()["sessions"]):
            if row is None:
                problem = f"it has the session {key[0]!r}, which the source has not"
                raise StorageError(self._target.name, problem, advice="copy to an empty database")

    def _transfer(self, table: Table) -> None:
        differences = self._differences(table)
        while some := list(islice(differences, _PAGE)):
            self._database.write(lambda connection, some=some: _replace(connection, table, some))  # type: ignore[misc]

    def _differences(self, table: Table) -> Iterator[tuple[Row, Row | None]]:
        """The keys at which the target differs, each with the row of the source, or with ``None``."""
        ours = table.rows(partial(fetched, self._connection), limit=_PAGE)
        theirs = table.rows(
            lambda sql, values: self._database.read(lambda connection: fetched(connection, sql, values)), limit=_PAGE
        )
        end: Any = (None, None)
        (key, row), (their_key, their_row) = next(ours, end), next(theirs, end)
        while key is not None or their_key is not None:
            if their_key is None or (key is not None and key < their_key):
                yield key, row
                key, row = next(ours, end)
            elif key is None or their_key < key:
                yield their_key, None
                their_key, their_row = next(theirs, end)
            else:
                if row != their_row:
                    yield key, row
                (key, row), (their_key, their_row) = next(ours, end), next(theirs, end)

    def _compare_states(self) -> None:
        """Restore the latest state of each thread from both."""
        for checkpoint in self._connection.execute(_LATEST).fetchall():
            of_source, of_target = (storage.get_checkpoint(*checkpoint) for storage in (self._source, self._target))
            if of_source != of_target:
                raise self._unequal(f"the state of {checkpoint[0]!r}")

    def _unequal(self, what: str) -> StorageError:
        return StorageError(
            self._target.name, f"{what} is not as in the source", advice="stop the writers, and copy again"
        )


_LATEST = """
    SELECT session_id, checkpoint_ns, checkpoint_id FROM checkpoints AS one WHERE position = (
        SELECT MAX(position) FROM checkpoints AS each WHERE each.home = one.home
        AND each.session_id = one.session_id AND each.checkpoint_ns = one.checkpoint_ns
    )
"""


def _replace(connection: Connection, table: Table, changes: Sequence[tuple[Row, Row | None]]) -> None:
    matches = " AND ".join(f"{column} = ?" for column in table.key)
    connection.executemany(f"DELETE FROM {table.name} WHERE {matches}", [key for key, _ in changes])
    connection.executemany(table.insert(table.columns), [row for _, row in changes if row is not None])
