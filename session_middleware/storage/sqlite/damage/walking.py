"""Reading the rows of a table around its pages that cannot be read.

First in the order of the table's tree, then, where a page stops that, from the other end, and then
what is between the two, in ranges that are halved until they can be read or hold one key only.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

Row = tuple[Any, ...]

_BY_SESSION = ("checkpoints", "writes", "model_calls", "branches", "files", "conversation_items")
_BY_KEY = {  # tables kept in the order of a text
    "sessions": "id",
    "tombstones": "id",
    "revoked": "user_hash",
    **dict.fromkeys(_BY_SESSION, "session_id"),
}
_BY_NUMBER = {"list_items": "list_id"}  # all others are in the order of their rowid
_PATIENCE = 1000  # ranges of a table tried in vain, before a part of it is given up


class Walk:
    """All rows of a table that can be read, some twice; `problems` says what stood in the way."""

    def __init__(self, connection: sqlite3.Connection, table: str, columns: Sequence[str], ids: Sequence[str]) -> None:
        self._connection = connection
        self._ids = ids if table in _BY_KEY else None
        self._key = _BY_KEY.get(table) or _BY_NUMBER.get(table) or "rowid"
        names, hint = ", ".join(columns), " NOT INDEXED" if self._key == "rowid" else ""
        self._select = f"SELECT {self._key}, {names} FROM {table}{hint}"
        self._last: Any = None  # the key of the row last read
        self._read_so_far = 0
        self.description = connection.execute(f"SELECT {names} FROM {table} LIMIT 0")
        self.problems: list[str] = []
        self.unread: set[str] = set()  # sessions that rows may be missing of

    def rows(self) -> Iterator[Row]:
        if (yield from self._read()):
            return
        low = self._place(self._last, -1)
        self._last = None
        yield from self._read(direction=" DESC")
        far = low + self._pages() * 2048  # a row is longer than two bytes
        yield from self._around(low, self._place(self._last, far if self._ids is None else len(self._ids) - 1))

    def _around(self, low: int, high: int) -> Iterator[Row]:
        """What is between the two places at which reading from both ends stopped."""
        width = 1024
        while low <= high:
            yield from self._halving(low, min(low + width - 1, high))
            low, width = low + width, width * 2

    def _halving(self, low: int, high: int) -> Iterator[Row]:
        """The rows of ever smaller ranges: one that cannot be read to its end is halved."""
        unread, in_vain = deque([(low, high)]), 0
        while unread and in_vain < _PATIENCE:
            low, high = unread.popleft()
            before = self._read_so_far
            if (yield from self._read(*self._between(low, high))):
                continue
            in_vain = 0 if self._read_so_far > before else in_vain + 1
            if low < high:
                middle = (low + high) // 2
                unread += [(low, middle), (middle + 1, high)]
            elif self._key != "rowid":
                if self._ids is not None:
                    self.unread.add(self._ids[low])
                yield from self._read(*self._between(low, high), direction=" DESC")

    def _read(self, where: str = "", values: Sequence[Any] = (), *, direction: str = "") -> Generator[Row, None, bool]:
        """Yields rows for as long as they can be read, and returns whether that was to the end."""
        try:
            for row in self._connection.execute(f"{self._select}{where} ORDER BY {self._key}{direction}", values):
                self._last = row[0]
                self._read_so_far += 1
                yield row[1:]
        except sqlite3.Error as error:
            self.problems[:] = [f"some of its pages cannot be read ({error})"]
            return False
        return True

    # Places: numbers that stand for keys, so that a range of them can be halved

    def _place(self, key: Any, otherwise: int) -> int:
        if self._ids is not None:
            return bisect_right(self._ids, key) - 1 if isinstance(key, str) else otherwise
        return key if isinstance(key, int) else otherwise

    def _pages(self) -> int:
        return int(self._connection.execute("PRAGMA page_count").fetchone()[0])

    def _between(self, low: int, high: int) -> tuple[str, Sequence[Any]]:
        """The condition for the keys from place `low` to place `high`."""
        if self._ids is None:
            return f" WHERE {self._key} BETWEEN ? AND ?", (low, high)
        conditions, values = ["1"], []
        if low >= 0:
            conditions.append(f"{self._key} >= ?")
            values.append(self._ids[low])
        if high + 1 < len(self._ids):
            conditions.append(f"{self._key} < ?")
            values.append(self._ids[high + 1])
        return f" WHERE {' AND '.join(conditions)}", values
