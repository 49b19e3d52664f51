"""A cache of the lists that this process has read, from which new elements are built quickly.

The next run of a thread reads the list of the last run and a few more elements. So each message that
was read is cached as the packed bytes of its fields. The fields of all messages of a list are unpacked
by one call, which costs a fifth of deserialising the messages one by one, and storage only reads the
elements that were added since. Callers may change the elements they receive, because each reading builds
new ones. Storage compares the cached list's check with the stored one before it leaves elements out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

import ormsgpack
from langchain_core.messages import BaseMessage

from session_middleware.checkpoint.packing import MESSAGES, array_header
from session_middleware.checkpoint.serde import build_message
from session_middleware.storage.checkpoint_types import Chunk, ListRef, StoredList

_MIN_LENGTH = 32  # elements; deserialising a shorter list takes no longer
_MAX_BYTES = 64 * 1024 * 1024  # of all lists
_MAX_LISTS = 4  # of one session

Load = Callable[[Sequence[Chunk]], list[Any]]


class Fields(NamedTuple):
    """A message whose fields are complete and plain."""

    cls: type[BaseMessage]
    data: bytes  # the fields, packed


class CachedList(NamedTuple):
    ref: ListRef
    rows: list[Fields | Chunk]
    size: int  # bytes


class ListReader:
    """Builds the lists of one reading.

    Args:
        lists: The cached lists by id. Storage compares their refs, and leaves out the elements of those that match.
        is_snapshot: The whole reading sees one state of the database, so a list also serves for its beginnings.
    """

    def __init__(self, lists: Mapping[int, CachedList], *, is_snapshot: bool = False) -> None:
        self.lists = dict(lists)
        self._is_snapshot = is_snapshot

    def refs(self) -> dict[int, ListRef]:
        return {list_id: cached.ref for list_id, cached in self.lists.items()}

    def load(self, stored: StoredList, load: Load) -> list[Any]:
        """The elements of a list: those that storage left out come from the cache."""
        ref, cached = stored.ref, self.lists.get(stored.ref.list_id)
        if self._is_snapshot and cached is not None and ref.length <= cached.ref.length:
            return _build(cached.rows[: ref.length], load)
        rows = cached.rows[: stored.skipped] if cached is not None else []
        added = load(stored.chunks)
        if stored.chunks and len(rows) + len(added) >= _MIN_LENGTH and len(added) == len(stored.chunks):
            more = list(map(_row, stored.chunks, added))
            size = sum(len(row.data if isinstance(row, Fields) else row.blob.data) for row in more)
            self.lists[ref.list_id] = CachedList(ref, [*rows, *more], size + (cached.size if cached and rows else 0))
        return _build(rows, load) + added


def _build(rows: Sequence[Fields | Chunk], load: Load) -> list[Any]:
    elements: list[Any] = []
    for kind, some in groupby(rows, type):
        if kind is Chunk:
            for chunk in some:
                elements += load([chunk])  # type: ignore[list-item]
        else:
            classes, parts = zip(*some, strict=True)
            fields = ormsgpack.unpackb(array_header(len(parts)) + b"".join(parts))
            elements += map(build_message, classes, fields)
    return elements


def _row(chunk: Chunk, element: Any) -> Fields | Chunk:
    """The fields of a message if they are complete and plain, or else the stored element."""
    cls = type(element)
    if (
        cls in MESSAGES
        and element.__dict__.keys() == element.__pydantic_fields_set__ == MESSAGES[cls]
        and not element.__pydantic_extra__
        and element.__pydantic_private__ is None
        and _is_plain(element.__dict__)
    ):
        with suppress(ormsgpack.MsgpackEncodeError):  # an integer of more than 64 bits, or half a character
            return Fields(cls, ormsgpack.packb(element.__dict__))
    return chunk


_ATOMS = frozenset({str, int, float, bool, type(None)})


def _is_plain(value: Any) -> bool:
    """Whether packing and unpacking rebuilds exactly this value."""
    cls = type(value)
    if cls is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return cls in _ATOMS or (cls is list and all(map(_is_plain, value)))


class ListCache:
    """The cached lists of the sessions that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, dict[int, CachedList]] = OrderedDict()
        self._size = 0

    def reader(self, session_id: str) -> ListReader:
        with self._lock:
            return ListReader(self._sessions.get(session_id, {}))

    def store(self, session_id: str, reader: ListReader) -> None:
        """Cache the lists of a reading, replacing the session's earlier ones."""
        lists = dict(list(reader.lists.items())[-_MAX_LISTS:])
        with self._lock:
            self._drop(session_id)
            if lists:
                self._sessions[session_id] = lists
                self._size += _size(lists)
            while self._size > _MAX_BYTES:
                self._drop(next(iter(self._sessions)))

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        self._size -= _size(self._sessions.pop(session_id, {}))


def _size(lists: Mapping[int, CachedList]) -> int:
    return sum(cached.size for cached in lists.values())
