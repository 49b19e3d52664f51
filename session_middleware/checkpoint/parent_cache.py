"""A cache of the checkpoints that this process has read or written, on which the next put builds.

The cache only saves reads: each put compares the cached parent with the stored one in its transaction.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import ChannelVersions

from session_middleware.storage.checkpoint_types import ListRef

Key = tuple[str, str, str]  # session id, namespace, checkpoint id

_MAX_ENTRIES = 256  # checkpoints; also sessions
_MAX_LISTS = 8  # of one session


@dataclass(frozen=True, slots=True)
class CachedListRef:
    """A stored list, and the fingerprint of each of its elements."""

    ref: ListRef
    fingerprints: array[int]
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
    """The checkpoints used last, and for each session the lists used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checkpoints: OrderedDict[Key, CachedCheckpoint] = OrderedDict()
        self._lists: OrderedDict[str, OrderedDict[tuple[int, bool], CachedListRef]] = OrderedDict()  # by session

    def find(self, key: Key) -> CachedCheckpoint | None:
        with self._lock:
            return self._checkpoints.get(key)

    def store(self, key: Key, checkpoint: CachedCheckpoint) -> None:
        with self._lock:
            _store(self._checkpoints, key, checkpoint, _MAX_ENTRIES)
            lists = self._lists.get(key[0], OrderedDict())
            for cached in checkpoint.lists.values():
                _store(lists, (cached.ref.list_id, cached.is_input), cached, _MAX_LISTS)
            _store(self._lists, key[0], lists, _MAX_ENTRIES)

    def lists(self, session_id: str) -> list[CachedListRef]:
        """The lists of a session that were used last, in any namespace: a new list may begin like one of them."""
        with self._lock:
            return list(self._lists.get(session_id, {}).values())

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._lists.pop(session_id, None)
            for key in [key for key in self._checkpoints if key[0] == session_id]:
                del self._checkpoints[key]


def _store(entries: OrderedDict[Any, Any], key: Any, value: Any, limit: int) -> None:
    """Store an entry as the latest one, and evict the oldest ones beyond the limit."""
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > limit:
        entries.popitem(last=False)
