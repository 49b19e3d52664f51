"""Rows of the state as they are stored.

Each carries a CRC-32 over its content and its key without the session, so a fork copies it.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple, TypeVar

from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, has_checksum

Key = tuple[str, str, str]  # session id, namespace, checkpoint id

REPLAYED = "writes"  # the reference of a channel whose value the writes of the checkpoint's ancestors make

HOME = "home = (SELECT home FROM sessions WHERE id = ?)"
# The condition for one checkpoint, with the values of `at`: a position is never less than the id, and mostly equal.
AT = f"{HOME} AND session_id = ? AND checkpoint_ns = ? AND position >= ? AND checkpoint_id = ? LIMIT 1"


def at(session_id: str, checkpoint_ns: str, checkpoint_id: str) -> tuple[str, str, str, str, str]:
    return session_id, session_id, checkpoint_ns, checkpoint_id, checkpoint_id


class Row(NamedTuple):
    """A checkpoint as it is stored, in the order of the columns."""

    home: int
    session_id: str
    checkpoint_ns: str
    position: str
    checkpoint_id: str
    parent_id: str | None
    enclosing: str
    run_id: str | None
    source: str | None
    step: int | None
    channels: str
    type: str
    body: bytes
    branch: str | None = None  # of the record, as far as this `seq`; not covered by the checksum
    seq: int | None = None
    checksum: int = 0

    @property
    def key(self) -> Key:
        return self.session_id, self.checkpoint_ns, self.checkpoint_id

    @property
    def refs(self) -> dict[str, Any]:
        """The references to the values that the checkpoint holds itself."""
        return {name: ref for name, ref in json.loads(self.channels).items() if ref != REPLAYED}

    def sum(self) -> int:
        return zlib.crc32(self.body, zlib.crc32(repr((self.home, *self[2:8], *self[10:12])).encode()))

    def check(self) -> None:
        """Raises `CorruptRow`."""
        if not has_checksum(self.sum, self.checksum):
            raise CorruptRow("its row")


class WriteRow(NamedTuple):
    """A write of a task. `idx` is below 0 for LangGraph's special writes.

    `value` is the JSON of a reference, or of a list of ``[reference, length]``.
    """

    home: int
    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    value: str
    checksum: int = 0

    @property
    def key(self) -> Key:
        return self.session_id, self.checkpoint_ns, self.checkpoint_id

    def sum(self) -> int:
        return zlib.crc32(repr((self.home, *self[2:9])).encode())

    def check(self) -> None:
        """Raises `CorruptRow`."""
        if not has_checksum(self.sum, self.checksum):
            raise CorruptRow(f"a write of task {self.task_id}")


def references_in(row: Row | WriteRow) -> list[Any]:
    """All references to blobs and lists in a row."""
    if isinstance(row, Row):
        return list(row.refs.values())
    value = json.loads(row.value)
    return [each for each, _ in value] if isinstance(value, list) else [value]


Sealed = TypeVar("Sealed", Row, WriteRow)


def resealed(row: Sealed, **changes: Any) -> Sealed:
    """The row with some columns changed and the checksum of the result. A row that was damaged stays damaged."""
    changed = row._replace(**changes)
    return changed._replace(checksum=changed.sum() if has_checksum(row.sum, row.checksum) else -1)
