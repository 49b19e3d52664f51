"""A cache of the checkpoints that this process has read or written.

The next put builds on one of them; it compares the cached parent with the stored one in its transaction. The next run
of a thread reads the lists that the last run has put: lists are cached as their encoded elements, and storage leaves
those of plain messages out of a reading if they are unchanged. Each reading builds new messages.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import ChannelVersions

from session_middleware.checkpoint.serde import unpack_messages
from session_middleware.storage.checkpoint_types import ListRef

Key = tuple[str, str, str]  # session id, namespace, checkpoint id

_MAX_SESSIONS = 256
_MAX_CHECKPOINTS = 16  # of one session
_MAX_BYTES = 64 * 1024 * 1024  # of all packed lists


class Fingerprints(array):  # type: ignore[type-arg]  # of int; `array` takes no type at run time in Python 3.11
    """The 64-bit hash of each element's stored form, valid in this process only."""

    size: int = 0  # the bytes of all elements, encoded one after the other; 0: not known
    is_plain: bool = False  # all elements are messages of plain fields
    encoded: bytes | None = None  # the encoded elements, if they are known and the cache has not taken them


class PackedList(NamedTuple):
    """The encoded elements of a list."""

    ref: ListRef
    data: bytes
    is_plain: bool  # they are messages of plain fields

    def build(self, length: int) -> list[BaseMessage]:
        """The first messages of a plain list, each a new object."""
        return unpack_messages(self.data, self.ref.length, length)


@dataclass(frozen=True, slots=True)
class CachedListRef:
    """A stored list, and the fingerprint of each of its elements."""

    ref: ListRef
    fingerprints: Fingerprints
    is_input: bool = False  # from a graph's input: its messages are recorded from the state that they lead to


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """The properties of a stored checkpoint that a put on top of it needs."""

    versions: ChannelVersions
    channels: str  # as stored: a put compares it to find out whether the checkpoint has changed
    names: frozenset[str]
    lists: dict[str, CachedListRef] = field(default_factory=dict)

    def holds(self, channel: str, version: Any) -> bool:
        """Whether the checkpoint has this version of a channel, so that a child can inherit the value."""
        return channel in self.names and version == self.versions.get(channel)


class CheckpointCache:
    """The checkpoints used last, of the sessions used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, OrderedDict[tuple[str, str], CachedCheckpoint]] = OrderedDict()
        self._packed: OrderedDict[int, PackedList] = OrderedDict()  # by list id
        self._size = 0

    def find(self, key: Key) -> CachedCheckpoint | None:
        with self._lock:
            return self._sessions.get(key[0], _NONE).get(key[1:])

    def store(self, key: Key, checkpoint: CachedCheckpoint) -> None:
        with self._lock:
            own = self._sessions.setdefault(key[0], OrderedDict())
            own[key[1:]] = checkpoint
            own.move_to_end(key[1:])
            self._sessions.move_to_end(key[0])
            if len(own) > _MAX_CHECKPOINTS:
                own.popitem(last=False)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
            for cached in checkpoint.lists.values():
                if (data := cached.fingerprints.encoded) is not None:
                    cached.fingerprints.encoded = None
                    self._size += len(data) - len(self._packed.pop(cached.ref.list_id, _EMPTY).data)
                    self._packed[cached.ref.list_id] = PackedList(cached.ref, data, cached.fingerprints.is_plain)
            while self._size > _MAX_BYTES:
                self._drop(next(iter(self._packed)))

    def lists(self, session_id: str) -> list[CachedListRef]:
        """The lists of a session that were used last, in any namespace: a new list may begin like one of them."""
        with self._lock:
            cached = [each for one in self._sessions.get(session_id, _NONE).values() for each in one.lists.values()]
        return list({(each.ref.list_id, each.is_input): each for each in cached}.values())

    def encoded_of(self, cached: CachedListRef) -> bytes | None:
        """The encoded elements of a list, if this or a longer part of that list is packed."""
        packed = self._packed.get(cached.ref.list_id)
        if packed is None or packed.ref.length < cached.ref.length or not cached.fingerprints.size:
            return None
        return packed.data[: cached.fingerprints.size]

    def packed(self, session_id: str) -> dict[ListRef, PackedList]:
        """The packed lists of plain messages of a session."""
        found = [self._packed.get(each.ref.list_id) for each in self.lists(session_id)]
        return {packed.ref: packed for packed in found if packed is not None and packed.is_plain}

    def forget(self, session_id: str) -> None:
        lists = self.lists(session_id)
        with self._lock:
            self._sessions.pop(session_id, None)
            for each in lists:
                self._drop(each.ref.list_id)

    def _drop(self, list_id: int) -> None:
        self._size -= len(self._packed.pop(list_id, _EMPTY).data)


_NONE: OrderedDict[tuple[str, str], CachedCheckpoint] = OrderedDict()
_EMPTY = PackedList(ListRef(0, 0, 0), b"", is_plain=True)
