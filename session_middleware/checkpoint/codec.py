"""Between a graph's values and stored pieces, by whichever serializer the user chose."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.checkpoint import pieces
from session_middleware.checkpoint.known import Known
from session_middleware.errors import UnserializableValue
from session_middleware.storage.state import Blob, Chunk, ListPut, StoredList, Write


class Codec:
    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dump(self, channel: str, value: Any) -> Blob:
        """Raises `UnserializableValue`, which names the channel and the culprit in its value."""
        try:
            return Blob(*self._serde.dumps_typed(value))
        except Exception as error:
            raise self._culprit(channel, value, error) from error

    def dump_list(self, channel: str, elements: Sequence[Any]) -> list[Chunk]:
        try:
            return pieces.chunks(elements, self._serde)
        except Exception as error:
            raise self._culprit(channel, elements, error) from error

    def fingerprints(self, elements: Sequence[Any]) -> array[int]:
        return pieces.fingerprints(elements, self._serde)

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
            return pieces.join(value.chunks, self._serde)
        return None if value is None else pieces.join(value, self._serde)

    def _culprit(self, channel: str, value: Any, error: Exception) -> UnserializableValue:
        path, part = pieces.find_culprit(value, f"state.{channel}", self._serde)
        if isinstance(error, UnserializableValue):
            return UnserializableValue(f"{path}: {error.problem}", advice=error.advice)
        return UnserializableValue(
            f"{path} is a {type(part).__qualname__}, which {type(self._serde).__name__} cannot store ({error})",
            advice="keep it out of the graph's state, or pass a serializer that can with Sessions(..., serde=…)",
        )


class Split:
    """The channel values of one put, sorted into what is the parent's and what is new."""

    def __init__(self, codec: Codec, parent: Known | None) -> None:
        self._codec = codec
        self._parent = parent
        self.inherited: list[str] = []
        self.values: dict[str, Blob | ListPut | None] = {}
        self.marks: dict[str, array[int]] = {}  # the fingerprints of each new list
        self.messages: list[BaseMessage] = []  # those the parent did not have

    def inherit(self, name: str, version: Any) -> bool:
        """Take the parent's value of a channel, if it is the same; say whether."""
        found = self._parent is not None and self._parent.holds(name, version)
        if found:
            self.inherited.append(name)
        return found

    def add(self, name: str, value: Any) -> None:
        if value is None:
            self.values[name] = None
        elif type(value) is list:
            self._add_list(name, value)
        else:
            self.values[name] = self._codec.dump(name, value)

    def _add_list(self, name: str, value: list[Any]) -> None:
        known = self._parent.lists.get(name) if self._parent else None
        marks = self._codec.fingerprints(value)
        old = known.fingerprints if known else array("q")
        keep = pieces.kept(marks, old)
        self.marks[name] = marks
        self.values[name] = ListPut(known.ref if known else None, keep, self._codec.dump_list(name, value[keep:]))
        new = pieces.added(value, marks, old, keep)
        self.messages += [element for element in new if isinstance(element, BaseMessage)]
