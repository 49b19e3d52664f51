"""What a disk holds after a power cut, by the log of what was done to it (see `write_log.c`).

What was synced is there. Of what was written since to the same file, each 512-byte sector has reached
the disk or has not, whatever came before or after it: so writes are dropped, kept, torn, and kept
while earlier ones are lost. A file may have grown by what was never written into it. A name is in
the folder for certain only when the folder was synced; its latest changes got there up to some point.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

SECTOR = 512
_HEAD = struct.Struct("<ccQI")
_NAMES = {"d": "", "w": "-wal", "j": "-journal"}
MARK = "M"  # not done to the disk: what the writer said of itself at that moment


class Record(NamedTuple):
    what: str  # O created, W written, T cut to a size, S synced, U deleted, M a mark
    name: str  # d the database, w its -wal, j its -journal, / the folder
    offset: int
    data: bytes


def mark(data: bytes) -> bytes:
    """A mark as it stands in the log."""
    return _HEAD.pack(b"M", b" ", 0, len(data)) + data


def read_log(path: Path) -> list[Record]:
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        what, name, offset, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size + length
        found.append(Record(what.decode(), name.decode(), offset, data[place - length : place]))
    return found


@dataclass
class File:
    synced: bytearray = field(default_factory=bytearray)
    since: list[Record] = field(default_factory=list)

    def sync(self) -> None:
        for record in self.since:
            _apply(self.synced, record)
        self.since.clear()

    def after_a_cut(self, chance: Random, share: float) -> bytes:
        """`share`: how likely it is that a write has got there."""
        content = bytearray(self.synced)
        for record in self.since:
            if record.what == "W":
                is_torn = chance.random() < 0.5
                for piece in _sectors(record) if is_torn else (record,):
                    if chance.random() < share:
                        _apply(content, piece)
                    elif chance.random() < 0.25:  # only the file's new length did
                        content.extend(bytes(max(0, piece.offset + len(piece.data) - len(content))))
            elif chance.random() < share:
                _apply(content, record)
        return bytes(content)


def _apply(content: bytearray, record: Record) -> None:
    end = record.offset + len(record.data)
    content.extend(bytes(max(0, end - len(content))))
    if record.what == "T":
        del content[end:]
    else:
        content[record.offset : end] = record.data


def _sectors(record: Record) -> Iterable[Record]:
    start, end = record.offset, record.offset + len(record.data)
    for place in range(start - start % SECTOR, end, SECTOR):
        low, high = max(place, start), min(place + SECTOR, end)
        yield record._replace(offset=low, data=record.data[low - start : high - start])


class Disk:
    """A folder with one database in it, while a log is replayed.

    Args:
        ignored: The files (``d``, ``w``, ``j``, ``/``) whose syncs do nothing, as on a disk that lies.
    """

    def __init__(self, *, ignored: str = "") -> None:
        self._ignored = ignored
        self._seen: dict[str, File] = {}  # as the process sees it
        self._folder: dict[str, File] = {}  # as the folder was synced
        self._changes: list[tuple[str, File | None]] = []  # of names, since then

    def play(self, records: Sequence[Record]) -> None:
        for record in records:
            what, name = record.what, record.name
            if what == "O":
                self._seen[name] = File()
                self._changes.append((name, self._seen[name]))
            elif what == "U":
                del self._seen[name]
                self._changes.append((name, None))
            elif what == "S" and name not in self._ignored:
                self._sync(name)
            elif what in "WT":
                self._seen[name].since.append(record)

    def _sync(self, name: str) -> None:
        if name == "/":
            self._folder = dict(self._seen)
            self._changes.clear()
        else:
            self._seen[name].sync()

    def cut(self, path: Path, chance: Random) -> None:
        """Make the files that a power cut at this moment may leave; `path` is the database's."""
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        folder = dict(self._folder)
        for name, file in self._changes[: round(chance.choice([0, chance.random(), 1]) * len(self._changes))]:
            folder.pop(name, None)
            if file is not None:
                folder[name] = file
        for name, file in folder.items():
            Path(f"{path}{_NAMES[name]}").write_bytes(file.after_a_cut(chance, share))
