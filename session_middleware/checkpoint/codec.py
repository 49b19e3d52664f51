"""Conversion between a checkpoint's values and their stored form, with the user's serializer.

`CheckpointDiff` finds the values and the messages of a put that the parent checkpoint does not have.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

from langchain_core.messages import BaseMessage
from langgraph._internal._constants import PREVIOUS
from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME, TASKS
from langgraph.constants import END, START

from session_middleware.checkpoint import list_diff
from session_middleware.checkpoint.langchain_messages import id_of, is_answer, is_message, is_question
from session_middleware.checkpoint.parent_cache import CachedCheckpoint, CachedListRef
from session_middleware.checkpoint.serde import message_of
from session_middleware.errors import UnserializableValue
from session_middleware.storage.checkpoint_types import Blob, Chunk, ListPut, StoredCheckpoint, StoredList, Write

_INPUT = f"{START}\x1f"  # prefix of the stored name of a list that is a part of a graph's input
_WHOLE = frozenset({START, END, PREVIOUS, "__root__"})  # channels that hold a graph's whole input or output
_BODY = "checkpoint"  # a checkpoint without its channel values

# A message, or a dict in OpenAI's format, and the id of the message after it in its list
NewMessage: TypeAlias = tuple[BaseMessage | dict[str, Any], str | None]


class Codec:
    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dump(self, channel: str, value: Any) -> Blob:
        """Serialise a channel's value.

        Raises:
            UnserializableValue: naming the channel and the part of its value that cannot be stored. If the user's
                serializer raises a class that this one does not belong to, its error is raised with a note instead.
        """
        try:
            return Blob(*self._serde.dumps_typed(value))
        except Exception as error:  # noqa: BLE001  # raised again
            self._raise(channel, value, error)

    def dump_list(self, channel: str, elements: Sequence[Any]) -> list[Chunk]:
        try:
            return list_diff.chunks(elements, self._serde)
        except Exception as error:  # noqa: BLE001  # raised again
            self._raise(channel, elements, error)

    def fingerprints(self, elements: Sequence[Any], parent: array[int] | None = None) -> array[int]:
        return list_diff.fingerprints(elements, self._serde, parent)

    def dump_body(self, checkpoint: Checkpoint, metadata: CheckpointMetadata) -> Blob:
        """Serialise a checkpoint without its channel values, and its metadata."""
        rest = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        return self.dump(_BODY, {"checkpoint": rest, "metadata": metadata})

    def cached(self, stored: StoredCheckpoint, checkpoint: Checkpoint) -> CachedCheckpoint:
        """The cache entry of a checkpoint that was read."""
        values = checkpoint["channel_values"]
        lists = {
            name: CachedListRef(value.ref, self.fingerprints(_list_of(values, name)), is_input(name))
            for name, value in stored.values.items()
            if isinstance(value, StoredList)
        }
        return CachedCheckpoint(checkpoint["channel_versions"].copy(), stored.channels, frozenset(stored.values), lists)

    def dump_write(self, index: int, channel: str, value: Any) -> Write:
        idx = WRITES_IDX_MAP.get(channel, index)
        if value is None:
            return Write(idx, channel, None)
        if type(value) is list:
            return Write(idx, channel, self.dump_list(channel, value))
        return Write(idx, channel, self.dump(channel, value))

    def load(self, value: Blob | StoredList | Sequence[Chunk] | None) -> Any:
        if isinstance(value, Blob):
            return self._serde.loads_typed(value)
        if isinstance(value, StoredList):
            return list_diff.join(value.chunks, self._serde)
        return None if value is None else list_diff.join(value, self._serde)

    def _raise(self, channel: str, value: Any, error: Exception) -> NoReturn:
        explained = self._explain(channel, value, error)
        if isinstance(explained, type(error)):
            raise explained from error
        error.add_note(str(explained))
        raise error

    def _explain(self, channel: str, value: Any, error: Exception) -> UnserializableValue:
        for key, part in value.items() if channel == START and isinstance(value, dict) else ():
            if (part_error := list_diff.error_of(part, self._serde)) is not None:
                return self._explain(_INPUT + str(key), part, part_error)
        path = f"input.{channel.removeprefix(_INPUT)}" if is_input(channel) else f"state.{channel}"
        path, part, error = list_diff.find_culprit(value, _PATHS.get(channel, path), self._serde, error)
        if isinstance(error, UnserializableValue):
            return UnserializableValue(f"{path}: {error.problem}", advice=error.advice)
        name = type(self._serde).__name__
        return UnserializableValue(
            f"{path} is a {type(part).__qualname__}, which {name} cannot store ({message_of(error)})",
            advice="keep it out of the graph's state, or pass a serializer that can with Sessions(..., serde=…)",
        )


_PATHS = {START: "input", TASKS: "Send", INTERRUPT: "interrupt", RESUME: "resume", _BODY: _BODY}


class CheckpointDiff:
    """Sorts the channel values of one put into those inherited from the parent checkpoint and new ones.

    Args:
        codec: Serialises the new values.
        parent: The parent checkpoint, if there is one.
        others: Lists of the session's other graphs and branches, with which a new list may share its beginning.
        is_outermost: The checkpoint is the thread's own, and not a subgraph's.
    """

    def __init__(
        self,
        codec: Codec,
        parent: CachedCheckpoint | None,
        others: Sequence[CachedListRef] = (),
        *,
        is_outermost: bool = False,
    ) -> None:
        self._codec = codec
        self._parent = parent
        self._others = others
        self._is_outermost = is_outermost
        self.inherited: list[str] = []
        self.values: dict[str, Blob | ListPut | None] = {}
        self.fingerprints: dict[str, array[int]] = {}  # of each new list
        self.preceding: str | None = None  # the id of the message before the new ones
        self._new: list[tuple[NewMessage, int]] = []  # with their fingerprints
        self._returned: list[tuple[NewMessage, int]] = []  # those in the return value of an entrypoint
        given = parent.lists.get(START) if parent else None
        self._input = given.fingerprints if given else array("q")

    @property
    def messages(self) -> list[NewMessage]:
        """The messages that the parent did not have, each once: an entrypoint often returns those it also saves."""
        self._add_messages(self._returned)
        self._returned = []
        return [new for new, _ in self._new]

    def _add_messages(self, found: Sequence[tuple[NewMessage, int]]) -> None:
        """Add new messages. One without an id that equals a message of the input or of another channel is the same."""
        others = Counter(fingerprint for _, fingerprint in self._new) + Counter(self._input)
        for new, fingerprint in found:
            if others[fingerprint] and not id_of(new[0]):
                others[fingerprint] -= 1
            else:
                self._new.append((new, fingerprint))

    def inherit(self, name: str, version: Any) -> bool:
        """Inherit the parent's value of a channel if it has this version. Returns whether it has."""
        if self._parent is None or not self._parent.holds(name, version):
            return False
        self.inherited += [
            stored for stored in self._parent.names if stored == name or (name == START and is_input(stored))
        ]
        return True

    def add(self, name: str, value: Any) -> None:
        """Add a new value of a channel."""
        if value is None:
            self.values[name] = None
        elif type(value) is list:
            self._add_list(name, value)
        elif name == START and type(value) is dict:  # its lists may be the whole history
            lists = {key: part for key, part in value.items() if type(part) is list and type(key) is str}
            self.values[name] = self._codec.dump(name, value | dict.fromkeys(lists))
            for key, part in lists.items():
                self._add_list(_INPUT + key, part)
        else:
            if name in _WHOLE and is_message(value):
                new = [((value, None), self._codec.fingerprints([value])[0])]
                self._returned.extend(new) if name == END else self._add_messages(new)
            self.values[name] = self._codec.dump(name, value)

    def _add_list(self, name: str, value: list[Any]) -> None:
        parent = self._parent.lists.get(name) if self._parent else None
        fingerprints = self._codec.fingerprints(value, parent.fingerprints if parent else None)
        self.fingerprints[name] = fingerprints
        own = [parent] if parent else []
        base, shared = _longest_prefix(fingerprints, own)
        if not shared:
            base, shared = _longest_prefix(fingerprints, self._others)
        tail = self._codec.dump_list(name, value[shared:])
        self.values[name] = ListPut(base.ref if base else None, shared, tail, is_parents=base is parent)
        if not is_input(name):
            self._find_messages(name, value, fingerprints, parent)

    def _find_messages(
        self, name: str, value: list[Any], fingerprints: array[int], parent: CachedListRef | None
    ) -> None:
        """Find the messages of a list that the record does not have."""
        own = [parent] if parent else []
        # a subgraph's first list may repeat another list; for the outermost graph those messages are new in any case
        others = () if own or self._is_outermost else [cached for cached in self._others if not cached.is_input]
        recorded, start = _longest_prefix(fingerprints, own or others)
        if self._is_outermost and name in _WHOLE and self._is_of_this_run(name, value, fingerprints, parent):
            recorded, start = None, 0
        old = recorded.fingerprints if recorded else array("q")
        new = list_diff.new_elements(value, fingerprints, old, start)
        if start and not own and self._is_outermost:  # the shared messages belong to another branch or graph
            new, start = [*filter(id_of, value[:start]), *new], 0
        messages = list(_with_following(value, fingerprints, start, new))
        self._returned.extend(messages) if name == END else self._add_messages(messages)
        self.preceding = id_of(value[start - 1]) if start and new else self.preceding

    def _is_of_this_run(
        self, name: str, value: list[Any], fingerprints: array[int], parent: CachedListRef | None
    ) -> bool:
        """Whether a list is only this run's input with its answer, or the last answer again, and not a conversation.

        A conversation also contains the earlier questions. The input may be one question or its text, not in a list.
        """
        questions = len(self._input) if name != START and fingerprints[: len(self._input)] == self._input else 0
        is_same = parent is not None and fingerprints == parent.fingerprints
        is_extended = (
            parent is not None and not is_same and fingerprints[: len(parent.fingerprints)] == parent.fingerprints
        )
        if name != START and not (self._input or is_extended) and len(value) > 1 and is_question(value[0]):
            questions = 1
        return (questions > 0 or is_same) and all(map(is_answer, value[questions:]))


def _with_following(
    value: list[Any], fingerprints: array[int], start: int, new: list[Any]
) -> Iterator[tuple[NewMessage, int]]:
    """Each new element that is a message, with the id of the message after it and its fingerprint."""
    are_new = set(map(id, new))
    for index in range(start, len(value)) if new else ():
        if id(value[index]) in are_new and is_message(value[index]):
            following = id_of(value[index + 1]) if index + 1 < len(value) else None
            yield (value[index], following), fingerprints[index]


def _longest_prefix(fingerprints: array[int], lists: Sequence[CachedListRef]) -> tuple[CachedListRef | None, int]:
    """The list that shares most leading elements, and their number."""
    found = [
        (list_diff.common_prefix_length(fingerprints, cached.fingerprints), index) for index, cached in enumerate(lists)
    ]
    length, index = max(found, default=(0, -1))
    return (lists[index] if found else None), length


def is_input(name: str) -> bool:
    """Whether a stored name is of a list that is a part of a graph's input."""
    return name.startswith(_INPUT)


def _list_of(values: dict[str, Any], name: str) -> Any:
    """The list with a stored name, from the values of the channels."""
    return values[START][name.removeprefix(_INPUT)] if is_input(name) else values[name]


def merge_input_lists(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the channels, from the stored values: puts the lists of an input back into it."""
    for name in [name for name in values if is_input(name)]:
        values[START][name.removeprefix(_INPUT)] = values.pop(name)
    return values


def replayed(checkpoint: Checkpoint, metadata: CheckpointMetadata) -> list[str]:
    """The delta channels whose value is replayed from writes. The metadata's counters tell them from empty channels."""
    counted = metadata.get("counters_since_delta_snapshot") or {}
    values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
    return [name for name in counted if name in versions and name not in values]
