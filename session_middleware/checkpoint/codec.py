"""Between a graph's values and stored pieces, by whichever serializer the user chose."""

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

_INPUT = f"{START}\x1f"  # begins the stored name of a list in what a graph was called with
_WHOLE = frozenset({START, END, PREVIOUS, "__root__"})  # channels whose value is what a graph is given or gives back
_REST = "checkpoint"  # what a checkpoint has beside its channels


# A message, or a dict that is one; and the id of the message that follows it in its list
NewMessage: TypeAlias = tuple[BaseMessage | dict[str, Any], str | None]


class Codec:
    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dump(self, channel: str, value: Any) -> Blob:
        """Raises `UnserializableValue`, which names the channel and the culprit in its value.

        What a serializer of the user's raises stays as it is, and a note names them, unless `UnserializableValue`
        is of its class.
        """
        try:
            return Blob(*self._serde.dumps_typed(value))
        except Exception as error:  # noqa: BLE001  # raised again
            self._refuse(channel, value, error)

    def dump_list(self, channel: str, elements: Sequence[Any]) -> list[Chunk]:
        try:
            return list_diff.chunks(elements, self._serde)
        except Exception as error:  # noqa: BLE001  # raised again
            self._refuse(channel, elements, error)

    def fingerprints(self, elements: Sequence[Any]) -> array[int]:
        return list_diff.fingerprints(elements, self._serde)

    def dump_body(self, checkpoint: Checkpoint, metadata: CheckpointMetadata) -> Blob:
        """All but the values of its channels."""
        rest = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        return self.dump(_REST, {"checkpoint": rest, "metadata": metadata})

    def known(self, stored: StoredCheckpoint, checkpoint: Checkpoint) -> CachedCheckpoint:
        """What a put on top of a checkpoint that was read needs of it."""
        values = checkpoint["channel_values"]
        lists = {
            name: CachedListRef(value.ref, self.fingerprints(part(values, name)), is_input(name))
            for name, value in stored.values.items()
            if isinstance(value, StoredList)
        }
        return CachedCheckpoint(checkpoint["channel_versions"].copy(), stored.channels, frozenset(stored.values), lists)

    def dump_write(self, place: int, channel: str, value: Any) -> Write:
        idx = WRITES_IDX_MAP.get(channel, place)
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

    def _refuse(self, channel: str, value: Any, error: Exception) -> NoReturn:
        culprit = self._culprit(channel, value, error)
        if isinstance(culprit, type(error)):
            raise culprit from error
        error.add_note(str(culprit))
        raise error

    def _culprit(self, channel: str, value: Any, error: Exception) -> UnserializableValue:
        for key, part in value.items() if channel == START and isinstance(value, dict) else ():
            if (problem := list_diff.problem_of(part, self._serde)) is not None:
                return self._culprit(_INPUT + str(key), part, problem)
        path, part, error = list_diff.find_culprit(value, _place(channel), self._serde, error)
        if isinstance(error, UnserializableValue):
            return UnserializableValue(f"{path}: {error.problem}", advice=error.advice)
        name = type(self._serde).__name__
        return UnserializableValue(
            f"{path} is a {type(part).__qualname__}, which {name} cannot store ({message_of(error)})",
            advice="keep it out of the graph's state, or pass a serializer that can with Sessions(..., serde=…)",
        )


def _place(channel: str) -> str:
    """A channel in its user's words."""
    if is_input(channel):
        return f"input.{channel.removeprefix(_INPUT)}"
    return _PLACES.get(channel, f"state.{channel}")


_PLACES = {START: "input", TASKS: "Send", INTERRUPT: "interrupt", RESUME: "resume", _REST: _REST}


class CheckpointDiff:
    """The channel values of one put, sorted into what is the parent's and what is new."""

    def __init__(
        self,
        codec: Codec,
        parent: CachedCheckpoint | None,
        others: Sequence[CachedListRef] = (),
        *,
        is_outermost: bool = False,
    ) -> None:
        self._is_outermost = is_outermost
        self._codec = codec
        self._parent = parent
        self._others = others  # lists of the session's other graphs
        self.inherited: list[str] = []
        self.values: dict[str, Blob | ListPut | None] = {}
        self.marks: dict[str, array[int]] = {}  # the fingerprints of each new list
        self._told: list[tuple[NewMessage, int]] = []  # the messages the parent did not have, and their fingerprints
        given = parent.lists.get(START) if parent else None
        self._given = given.fingerprints if given else array("q")
        self._returned: list[tuple[NewMessage, int]] = []  # of those what an entrypoint gives back
        self.preceding: str | None = None  # the id of the message that stands before them

    @property
    def messages(self) -> list[NewMessage]:
        """The messages the parent did not have, each once; what an entrypoint gives back is mostly what it saves."""
        self._tell(self._returned)
        self._returned = []
        return [new for new, _ in self._told]

    def _tell(self, found: Sequence[tuple[NewMessage, int]]) -> None:
        """One without an id that another channel has as well is the same, and so is what the graph was given."""
        others = Counter(mark for _, mark in self._told) + Counter(self._given)
        for new, mark in found:
            if others[mark] and not id_of(new[0]):
                others[mark] -= 1
            else:
                self._told.append((new, mark))

    def inherit(self, name: str, version: Any) -> bool:
        """Take the parent's value of a channel, if it is the same; say whether."""
        if self._parent is None or not self._parent.holds(name, version):
            return False
        self.inherited += [stored for stored in self._parent.names if stored == name or _holder(stored) == name]
        return True

    def add(self, name: str, value: Any) -> None:
        if value is None:
            self.values[name] = None
        elif type(value) is list:
            self._add_list(name, value)
        elif name == START and type(value) is dict:
            self._add_dict(name, value)
        else:
            if name in _WHOLE and is_message(value):
                new = [((value, None), self._codec.fingerprints([value])[0])]
                self._returned.extend(new) if name == END else self._tell(new)
            self.values[name] = self._codec.dump(name, value)

    def _add_dict(self, name: str, value: dict[Any, Any]) -> None:
        """A graph's input, whose lists may be the whole history: they are stored as lists."""
        lists = {key: part for key, part in value.items() if type(part) is list and type(key) is str}
        self.values[name] = self._codec.dump(name, value | dict.fromkeys(lists))
        for key, part in lists.items():
            self._add_list(_INPUT + key, part)

    def _add_list(self, name: str, value: list[Any]) -> None:
        marks = self._codec.fingerprints(value)
        known = self._parent.lists.get(name) if self._parent else None
        own = [known] if known else []
        base, keep = _longest(marks, own)
        if not keep:
            base, keep = _longest(marks, self._others)
        self.marks[name] = marks
        tail = self._codec.dump_list(name, value[keep:])
        self.values[name] = ListPut(base.ref if base else None, keep, tail, is_parents=base is known)
        if not is_input(name):
            # what another list says may be news to this one, and to the outermost graph it always is
            others = () if own or self._is_outermost else [known for known in self._others if not known.is_input]
            recorded, beginning = _longest(marks, own or others)
            if self._is_outermost and name in _WHOLE and self._is_of_this_run(name, value, marks, known):
                recorded, beginning = None, 0
            old = recorded.fingerprints if recorded else array("q")
            new = list_diff.new_elements(value, marks, old, beginning)
            if beginning and not own and self._is_outermost:  # another branch has said these, or another graph
                new, beginning = [*filter(id_of, value[:beginning]), *new], 0
            told = list(_with_following(value, marks, beginning, new))
            self._returned.extend(told) if name == END else self._tell(told)
            self.preceding = id_of(value[beginning - 1]) if beginning and new else self.preceding

    def _is_of_this_run(self, name: str, value: list[Any], marks: array[int], known: CachedListRef | None) -> bool:
        """Whether a list is what was given and the answer to it, or the same answer again, and no conversation.

        A conversation has the earlier questions, too. What was given may be no list, but one question or its text.
        """
        asked = len(self._given) if name != START and marks[: len(self._given)] == self._given else 0
        is_same = known is not None and marks == known.fingerprints
        goes_on = known is not None and not is_same and marks[: len(known.fingerprints)] == known.fingerprints
        if name != START and not (self._given or goes_on) and len(value) > 1 and is_question(value[0]):
            asked = 1
        return (asked > 0 or is_same) and all(map(is_answer, value[asked:]))


def _with_following(
    value: list[Any], marks: array[int], beginning: int, new: list[Any]
) -> Iterator[tuple[NewMessage, int]]:
    """Those of the new elements that are messages, each with the id of what it stands before, and its fingerprint."""
    are_new = set(map(id, new))
    for place in range(beginning, len(value)) if new else ():
        if id(value[place]) in are_new and is_message(value[place]):
            yield (value[place], id_of(value[place + 1]) if place + 1 < len(value) else None), marks[place]


def _longest(marks: array[int], lists: Sequence[CachedListRef]) -> tuple[CachedListRef | None, int]:
    """Which of the lists has most elements in common at the beginning, and how many."""
    found = [(list_diff.common_prefix_length(marks, known.fingerprints), place) for place, known in enumerate(lists)]
    keep, place = max(found, default=(0, -1))
    return (lists[place] if found else None), keep


def is_input(name: str) -> bool:
    """Whether a stored name is of a list in what a graph was called with."""
    return name.startswith(_INPUT)


def _holder(name: str) -> str | None:
    """The channel whose value a stored name is a part of."""
    return START if is_input(name) else None


def part(values: dict[str, Any], name: str) -> Any:
    """The value that is stored under `name`, of channel values that are whole."""
    return values[START][name.removeprefix(_INPUT)] if is_input(name) else values[name]


def merge_input_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Channel values as they were before `CheckpointDiff`: with the lists of an input back in it."""
    for name in [name for name in values if is_input(name)]:
        values[START][name.removeprefix(_INPUT)] = values.pop(name)
    return values


def replayed(checkpoint: Checkpoint, metadata: CheckpointMetadata) -> list[str]:
    """The delta channels that have no value here. Only the metadata's counters tell them from what has none at all."""
    counted = metadata.get("counters_since_delta_snapshot") or {}
    values, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
    return [name for name in counted if name in versions and name not in values]
