"""Conversion between a checkpoint's values and their stored form, with the user's serializer: pure functions.

A list is stored by element, so that the size of a thread grows with its messages and not with messages times
checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME, TASKS
from langgraph.constants import START
from langgraph.types import Send
from pydantic import BaseModel

from session_middleware.checkpoint.serde import message_of
from session_middleware.errors import UnserializableValue
from session_middleware.storage.checkpoint_types import Blob, Chunk, StoredList, Write
from session_middleware.storage.jsonable import is_a

BODY = "checkpoint"  # a checkpoint without its channel values
_INPUT = f"{START}\x1f"  # prefix of the stored name of a list that is a part of a graph's input
_SEVERAL = "[]"  # prefix of the type of a blob that holds several elements
_SCALARS = frozenset({str, int, float, bool, type(None)})
_SHORT = 256  # characters; a longer text has its own blob


def input_name(key: str) -> str:
    """The stored name of a list that is a part of a graph's input."""
    return _INPUT + key


def is_input(name: str) -> bool:
    return name.startswith(_INPUT)


def list_of(values: Mapping[str, Any], name: str) -> Any:
    """The list with a stored name, from the values of the channels."""
    return values[START][name.removeprefix(_INPUT)] if is_input(name) else values[name]


def merge_input_lists(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the channels, from the stored values: puts the lists of an input back into it."""
    for name in list(filter(is_input, values)):
        values[START][name.removeprefix(_INPUT)] = values.pop(name)
    return values


def dump(channel: str, value: Any, serde: SerializerProtocol) -> Blob:
    """Serialise a channel's value.

    Raises:
        UnserializableValue: Names the channel and the part of its value that cannot be stored. If the user's
            serializer raises a class that this one does not belong to, its error is raised with a note instead.
    """
    try:
        return Blob(*serde.dumps_typed(value))
    except Exception as error:  # noqa: BLE001  # raised again
        raise _explained(channel, value, serde, error)  # noqa: B904


def dump_list(channel: str, elements: Sequence[Any], serde: SerializerProtocol) -> list[Chunk]:
    """One chunk for each element, but one for each sequence of adjacent small plain values. Raises as `dump`."""
    found: list[Chunk] = []
    small: list[Any] = []
    try:
        for element in elements:
            if type(element) in _SCALARS and (type(element) is not str or len(element) <= _SHORT):
                small.append(element)
                continue
            if small:
                found.append(_dump_small(small, serde))
                small = []
            found.append(Chunk(Blob(*serde.dumps_typed(element))))
        if small:
            found.append(_dump_small(small, serde))
    except Exception as error:  # noqa: BLE001  # raised again
        raise _explained(channel, elements, serde, error)  # noqa: B904
    return found


def _dump_small(elements: list[Any], serde: SerializerProtocol) -> Chunk:
    if len(elements) == 1:
        return Chunk(Blob(*serde.dumps_typed(elements[0])))
    kind, data = serde.dumps_typed(elements)
    return Chunk(Blob(_SEVERAL + kind, data), len(elements))


def dump_write(index: int, channel: str, value: Any, serde: SerializerProtocol) -> Write:
    stored: Blob | list[Chunk] | None = None
    if type(value) is list:
        stored = dump_list(channel, value, serde)
    elif value is not None:
        stored = dump(channel, value, serde)
    return Write(WRITES_IDX_MAP.get(channel, index), channel, stored)


def load(value: Blob | StoredList | Sequence[Chunk] | None, serde: SerializerProtocol) -> Any:
    """The value of a blob, or the elements of chunks. A chunk may have fewer elements than its blob."""
    if value is None:
        return None
    if isinstance(value, Blob):
        return serde.loads_typed(value)
    if isinstance(value, StoredList):
        value = value.chunks or ()
    elements: list[Any] = []
    for (kind, data), length in value:
        if kind.startswith(_SEVERAL):
            elements += serde.loads_typed((kind.removeprefix(_SEVERAL), data))[:length]
        else:
            elements.append(serde.loads_typed((kind, data)))
    return elements


# Values that cannot be stored

_PATHS = {START: "input", TASKS: "Send", INTERRUPT: "interrupt", RESUME: "resume", BODY: BODY}
_MAX_DEPTH = 100


def _explained(channel: str, value: Any, serde: SerializerProtocol, error: Exception) -> Exception:
    """The error to raise for a value that the serializer raised `error` for."""
    explained = _explain(channel, value, serde, error)
    if isinstance(explained, type(error)):
        explained.__cause__ = error
        return explained
    error.add_note(str(explained))
    return error


def _explain(channel: str, value: Any, serde: SerializerProtocol, error: Exception) -> UnserializableValue:
    for key, part in value.items() if channel == START and isinstance(value, dict) else ():
        if (part_error := _error_of(part, serde)) is not None:
            return _explain(_INPUT + str(key), part, serde, part_error)
    path = f"input.{channel.removeprefix(_INPUT)}" if is_input(channel) else f"state.{channel}"
    path, part, error = find_culprit(value, _PATHS.get(channel, path), serde, error)
    if isinstance(error, UnserializableValue):
        return UnserializableValue(f"{path}: {error.problem}", advice=error.advice)
    name = type(serde).__name__
    return UnserializableValue(
        f"{path} is a {type(part).__qualname__}, which {name} cannot store ({message_of(error)})",
        advice="keep it out of the graph's state, or pass a serializer that can with Sessions(..., serde=…)",
    )


def find_culprit(value: Any, path: str, serde: SerializerProtocol, error: Exception) -> tuple[str, Any, Exception]:
    """The innermost part of `value` that cannot be serialised, the path to it, and its error.

    `path` and `error` are those of `value`. The returned path begins with `path`, as in ``state.frame[2]``.
    """
    visited: set[int] = set()  # a value may contain itself
    while len(visited) < _MAX_DEPTH:
        visited.add(id(value))
        for step, part in _parts(value):
            if id(part) not in visited and (part_error := _error_of(part, serde)) is not None:
                path, value, error = path + step, part, part_error
                break
        else:
            break
    return path, value, error


def _error_of(value: Any, serde: SerializerProtocol) -> Exception | None:
    """The error that serialising a value raises, if any."""
    try:
        serde.dumps_typed(value)
    except Exception as error:  # noqa: BLE001  # the user's serializer may raise anything
        return error
    return None


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """The parts that are serialised one by one, with their steps in a path; none for any other object."""
    if is_a(value, Mapping):
        return [*((f"[{key!r}]", part) for key, part in value.items()), *((".keys()", key) for key in value)]
    if is_a(value, (list, tuple, deque)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if is_a(value, (set, frozenset)):
        return [("[…]", part) for part in value]
    if is_a(value, Send):
        return [(".arg", value.arg)]
    if is_a(value, Enum):
        return [(".value", value.value)]
    if is_a(value, BaseModel):
        return [(f".{name}", part) for name, part in {**value.__dict__, **(value.__pydantic_extra__ or {})}.items()]
    if is_dataclass(type(value)):
        return [(f".{field.name}", getattr(value, field.name, None)) for field in fields(type(value))]
    return ()


# Metadata

_OF_A_CALLER = (
    *("user_id", "group_id", "group_ids", "langgraph_auth_user_id"),  # the last is set by LangGraph's server
    *("on_busy", "busy_timeout"),
)


def own_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """The metadata to store: as other savers store it, but without the rules of the run, and without the user.

    The record has the user, whom it can forget.
    """
    completed: Any = get_checkpoint_metadata(config, metadata)
    for name in _OF_A_CALLER:
        completed.pop(name, None)
    return cast("CheckpointMetadata", completed)


def matches(body: Blob, filter: Mapping[str, Any], serde: SerializerProtocol) -> bool:
    """Whether a checkpoint's metadata has all values of a filter, compared as in LangGraph's savers."""
    metadata = serde.loads_typed(body)["metadata"]
    return all(_is_equal(_value_at(metadata, name), wanted) for name, wanted in filter.items())


def _value_at(metadata: Mapping[str, Any], name: str) -> Any:
    """The value with a name, or at a path of names joined by dots; ``None`` if there is none."""
    if name in metadata:
        return metadata[name]
    found: Any = metadata
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_equal(found: Any, wanted: Any) -> bool:
    """A value that JSON has no type for, such as a UUID, is also compared as text."""
    if bool(found == wanted):
        return True
    return not isinstance(wanted, str | int | float | dict | list | None) and str(wanted) == found
