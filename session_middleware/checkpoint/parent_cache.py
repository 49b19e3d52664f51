"""What this process knows of stored checkpoints: it only saves work, and is never believed unchecked."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import ChannelVersions

from session_middleware.storage.checkpoint_types import ListRef

Key = tuple[str, str, str]  # session id, namespace, checkpoint id

_REMEMBERED = 256
_LISTS = 8  # of a session, whose beginnings another list may share


@dataclass(frozen=True, slots=True)
class CachedListRef:
    """A stored list, and the fingerprint of each of its elements."""

    ref: ListRef
    fingerprints: array[int]
    is_input: bool = False  # what a graph was called with: the record has its messages from the state they led to


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """A stored checkpoint, as far as a put on top of it needs it."""

    versions: ChannelVersions
    channels: str  # as stored, which is how a put finds out that it has changed
    names: frozenset[str]
    lists: dict[str, CachedListRef] = field(default_factory=dict)

    def holds(self, channel: str, version: Any) -> bool:
        """Whether the channel has this very version here, so that a child may refer to its value."""
        return channel in self.names and version == self.versions.get(channel)


class CheckpointCache:
    """The last checkpoints this process has read or written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Key, CachedCheckpoint] = OrderedDict()
        self._lists: OrderedDict[str, OrderedDict[tuple[int, bool], CachedListRef]] = OrderedDict()  # by session

    def find(self, key: Key) -> CachedCheckpoint | None:
        with self._lock:
            return self._found.get(key)

    def keep(self, key: Key, known: CachedCheckpoint) -> None:
        with self._lock:
            self._found[key] = known
            self._found.move_to_end(key)
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
            lists = self._lists.setdefault(key[0], OrderedDict())
            self._lists.move_to_end(key[0])
            for known_list in known.lists.values():
                which = known_list.ref.list_id, known_list.is_input  # a subgraph is given its graph's list
                lists[which] = known_list
                lists.move_to_end(which)
            while len(lists) > _LISTS:
                lists.popitem(last=False)
            while len(self._lists) > _REMEMBERED:
                self._lists.popitem(last=False)

    def lists(self, session_id: str) -> list[CachedListRef]:
        """The lists of a session that were seen last, whichever graph's or subgraph's they are."""
        with self._lock:
            return list(self._lists.get(session_id, {}).values())

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._lists.pop(session_id, None)
            for key in [key for key in self._found if key[0] == session_id]:
                del self._found[key]
