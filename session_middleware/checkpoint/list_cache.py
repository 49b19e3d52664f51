"""Lists that were read before, kept in a form from which fresh elements are made quickly.

A thread that goes on reads what it read a turn ago and a little more. So its list is kept, packed
into bytes: what makes a message again from them costs a third of deserialising it, and only what was
added since has to come from storage. The bytes are nobody else's, so whoever gets the elements may
change them. Storage says, by the list's check, whether what is kept is still how the list begins.
"""

from __future__ import annotations

import marshal
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from session_middleware.checkpoint.serde import MESSAGES, message
from session_middleware.storage.checkpoint_types import Blob, Chunk, ListRef, StoredList

_BLOCK = 64  # elements packed together
_WORTH_IT = 32  # elements; a shorter list is read again as quickly
_MOST_BYTES = 64 * 1024 * 1024  # of all lists
_LISTS = 4  # of a session

Load = Callable[[Sequence[Chunk]], list[Any]]
_CLASSES = tuple(MESSAGES.values())
_NUMBERS = {kind: number for number, (kind, _) in enumerate(_CLASSES)}


class PackedList:
    """The first elements of a list."""

    def __init__(self, blocks: Sequence[bytes] = (), last: int = 0) -> None:
        self._blocks = blocks
        self._last = last  # how many elements the last block holds; the others are full
        self.size = sum(map(len, blocks))

    def __len__(self) -> int:
        return max(len(self._blocks) - 1, 0) * _BLOCK + self._last

    def elements(self, length: int, load: Load) -> list[Any]:
        """The first `length` of them, made anew."""
        found: list[Any] = []
        for block in self._blocks[: -(-length // _BLOCK)]:
            for number, packed in marshal.loads(block):  # noqa: S302  # they were packed here, by this process
                if number is None:
                    kind, data, count = packed
                    found += load([Chunk(Blob(kind, data), count)])
                else:
                    cls, names = _CLASSES[number]
                    found.append(message(cls, packed, names.copy()))
        del found[length:]
        return found

    def extended(self, chunks: Sequence[Chunk], elements: Sequence[Any]) -> PackedList | None:
        """With the elements of these chunks after them; ``None`` where a chunk is more than one element."""
        if len(chunks) != len(elements):
            return None
        rows = [_pack(chunk, element) for chunk, element in zip(chunks, elements, strict=True)]
        blocks = list(self._blocks)
        if blocks and self._last < _BLOCK:
            rows = marshal.loads(blocks.pop()) + rows  # noqa: S302
        blocks += [marshal.dumps(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK)]
        return PackedList(blocks, len(rows) % _BLOCK or _BLOCK)


def _pack(chunk: Chunk, element: Any) -> tuple[int | None, Any]:
    """A message as its fields, when they are all and plain; else as it is stored."""
    number = _NUMBERS.get(type(element))
    if number is not None and _is_usual(element, _CLASSES[number][1]) and _is_plain(element.__dict__):
        return number, element.__dict__
    return None, (*chunk.blob, chunk.length)


def _is_usual(element: BaseMessage, names: set[str]) -> bool:
    return (
        element.__dict__.keys() == names
        and element.__pydantic_fields_set__ == names
        and not element.__pydantic_extra__
        and element.__pydantic_private__ is None
    )


_TEXT = frozenset({str})
_ATOMS = frozenset({str, int, float, bool, type(None)})


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is dict:
        parts = value.values()
        if not _TEXT.issuperset(map(type, value)):
            return False
    elif kind is list:
        parts = value
    else:
        return False
    return all(_is_plain(part) for part in parts if type(part) not in _ATOMS)


class CachedList(NamedTuple):
    ref: ListRef
    packed: PackedList


class ListReader:
    """The lists at hand for one reading.

    Args:
        lists: What is kept from earlier readings, by the list's id. Storage checks it against what it has.
        is_snapshot: All is read in one snapshot: a list that was read is a shorter one's beginning as well.
    """

    def __init__(self, lists: Mapping[int, CachedList], *, is_snapshot: bool = False) -> None:
        self.lists = dict(lists)
        self._is_snapshot = is_snapshot

    def refs(self) -> dict[int, ListRef]:
        return {list_id: kept.ref for list_id, kept in self.lists.items()}

    def load(self, stored: StoredList, load: Load) -> list[Any]:
        """The elements of a list, of which storage may have left out the first ones because they are here."""
        ref, kept = stored.ref, self.lists.get(stored.ref.list_id)
        if self._is_snapshot and kept is not None and ref.length <= kept.ref.length:
            return kept.packed.elements(ref.length, load)
        packed = kept.packed if kept is not None and stored.skipped else PackedList()
        elements = packed.elements(stored.skipped, load)
        elements += load(stored.chunks)
        if stored.chunks and len(elements) >= _WORTH_IT:
            more = packed.extended(stored.chunks, elements[stored.skipped :])
            if more is not None:
                self.lists[ref.list_id] = CachedList(ref, more)
        return elements


class ListCache:
    """The lists this process has read last, by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, dict[int, CachedList]] = OrderedDict()
        self._size = 0

    def shelf(self, session_id: str) -> ListReader:
        with self._lock:
            return ListReader(self._sessions.get(session_id, {}))

    def keep(self, session_id: str, shelf: ListReader) -> None:
        """Keep the lists of a reading for the next one, those of the sessions read last."""
        lists = dict(list(shelf.lists.items())[-_LISTS:])
        with self._lock:
            self._drop(session_id)
            if lists:
                self._sessions[session_id] = lists
                self._size += _size(lists)
            while self._size > _MOST_BYTES:
                self._drop(next(iter(self._sessions)))

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        self._size -= _size(self._sessions.pop(session_id, {}))


def _size(lists: Mapping[int, CachedList]) -> int:
    return sum(kept.packed.size for kept in lists.values())
