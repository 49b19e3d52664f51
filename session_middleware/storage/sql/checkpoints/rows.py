"""Rows of the state as they are stored: each with a checksum, which is bound to its key."""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple, TypeVar

from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, has_checksum

Key = tuple[str, str, str]  # session id, namespace, checkpoint id

REPLAYED = "writes"
LATE = "+"  # then comes a number, in the place of a checkpoint whose clock was behind another's
AT = "session_id = ? AND checkpoint_ns = ? AND place >= ? AND checkpoint_id = ? LIMIT 1"  # see `at`
INVALID_CHECKSUM = -1  # the checksum of a row that was damaged when it was copied


class Note(NamedTuple):
    """What is noted of a checkpoint where it is noted a second time."""

    checkpoint_id: str
    write_count: int


def at(session_id: str, checkpoint_ns: str, checkpoint_id: str) -> tuple[str, str, str, str]:
    """Where to find a checkpoint: a place is never before the id, and mostly it is the id."""
    return session_id, checkpoint_ns, checkpoint_id, checkpoint_id


class Row(NamedTuple):
    """A checkpoint as it is stored, its checksum last."""

    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    enclosing: str
    run_id: str | None
    source: str | None
    step: int | None
    channels: str
    type: str
    body: bytes
    branch: str | None = None  # of the record, which went as far as this `seq`; no part of the checksum
    seq: int | None = None
    previous_id: str | None = None  # see `previous`; no part of it either
    previous_writes: int = 0
    place: str = ""
    checksum: int = 0

    @property
    def key(self) -> Key:
        return self[:3]

    @property
    def previous(self) -> Note | None:
        """The next older one of the namespace. Mostly it is the parent, and then its id is not stored again."""
        previous_id = self.parent_id if self.previous_id is None else self.previous_id
        return Note(previous_id, self.previous_writes) if previous_id else None

    @property
    def refs(self) -> dict[str, Any]:
        """Where each value is that the checkpoint holds itself."""
        return {name: ref for name, ref in json.loads(self.channels).items() if ref != REPLAYED}

    def sum(self) -> int:
        text = (*self[:3], self.parent_id or "", self.enclosing, self.run_id or "", self.channels, self.type)
        return zlib.crc32(self.body, zlib.crc32("\0".join(text).encode()))

    def check(self) -> None:
        texts = isinstance(self.previous_id, str | None) and isinstance(self.place, str)
        if not has_checksum(self.sum, self.checksum) or not texts or not self._is_placed():
            raise CorruptRow("its row")

    def _is_placed(self) -> bool:
        return self.place == self.checkpoint_id or (self.place > self.checkpoint_id and self.place[-9:-8] == LATE)


class WriteRow(NamedTuple):
    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    idx: int
    task_path: str
    channel: str
    value: str
    checksum: int = 0

    def sum(self) -> int:
        return zlib.crc32("\0".join([*self[:4], str(self.idx), *self[5:8]]).encode())

    def check(self) -> None:
        if not has_checksum(self.sum, self.checksum):
            raise CorruptRow(f"write {self.idx} of task {self.task_id}")


Sealed = TypeVar("Sealed", Row, WriteRow)


def resealed(row: Sealed, **changes: str) -> Sealed:
    """The row with some columns changed, and the checksum of that; a row that was damaged stays so."""
    changed = row._replace(**changes)  # type: ignore[arg-type]
    return changed._replace(checksum=changed.sum() if has_checksum(row.sum, row.checksum) else INVALID_CHECKSUM)
