"""Splitting lists into stored chunks, joining them again, and comparing lists by fingerprints: pure functions.

A list is stored by element, so that the size of a thread grows with its messages and not with messages
times checkpoints. A fingerprint is the hash of an element's encoded fields. All elements are encoded at
each put, because a node may change a message in place; those of a long list by one call, whose result
tells whether the list still begins like the parent's. Comparing the fields with a copy of them is not
faster: ``==`` alone misses ``1`` becoming ``True``, and comparing the types too costs as much as encoding.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send
from pydantic import BaseModel

from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.checkpoint.packing import MESSAGES, array_header, pack
from session_middleware.storage.checkpoint_types import Blob, Chunk
from session_middleware.storage.jsonable import is_a

_SCALARS = frozenset({str, int, float, bool, type(None)})
_MANY = 4  # elements
_SHORT = 256  # characters; a longer text has its own blob
_SEVERAL = "[]"  # prefix of the type of a blob that holds several elements


class Fingerprints(array):  # type: ignore[type-arg]  # of int; `array` takes no type at run time in Python 3.11
    """The 64-bit hash of each element's stored form, valid in this process only."""

    size: int = 0  # the bytes of all elements, encoded one after the other; 0: not known
    digest: int = 0  # the hash of these bytes


def fingerprints(elements: Sequence[Any], serde: SerializerProtocol, parent: array[int] | None = None) -> Fingerprints:
    """The fingerprints of a list, which often begins like the list that `parent` was computed from.

    A serializer other than LangGraph's may store more of an element, for example whether a sequence is a
    tuple. So its own bytes are hashed.
    """
    inner = serde.serde if isinstance(serde, EncryptedSerializer) else serde
    if not isinstance(inner, JsonPlusSerializer):
        return _of_each(elements, partial(_encode_by, serde))
    if len(elements) < _MANY:
        return _of_each(elements, _encode)
    try:
        encoded = pack(list(map(_encodable, elements)))[len(array_header(len(elements))) :]
    except Exception:  # noqa: BLE001  # see `_encode`
        return _of_each(elements, _encode)
    if isinstance(parent, Fingerprints) and parent.size and hash(encoded[: parent.size]) == parent.digest:
        found = Fingerprints("q", parent)
        found.extend(_of_each(elements[len(parent) :], _encode))
    else:
        found = _of_each(elements, _encode)
    found.size, found.digest = len(encoded), hash(encoded)
    return found


def _of_each(elements: Sequence[Any], encode: Callable[[Any], bytes]) -> Fingerprints:
    try:
        return Fingerprints("q", [hash(encode(element)) for element in elements])
    except Exception:  # noqa: BLE001  # one element cannot be encoded, but the others can
        return Fingerprints("q", [_fingerprint(element, encode) for element in elements])


def _fingerprint(element: Any, encode: Callable[[Any], bytes]) -> int:
    try:
        return hash(encode(element))
    except Exception:  # noqa: BLE001  # storing the element raises the error; here it counts as new
        return random.getrandbits(63)


def _encode(element: Any) -> bytes:
    """The stored form of an element, or for a message an equivalent that is faster to compute."""
    try:
        return pack(_encodable(element))
    except Exception:
        if not is_a(element, BaseMessage):
            raise
        return pack(element)  # a field that only ``model_dump()`` can encode


def _encodable(element: Any) -> Any:
    kind = type(element)
    if kind in MESSAGES or is_a(element, BaseMessage):
        return id(kind), element.__dict__, element.__pydantic_extra__
    if kind is bytearray or kind is bytes:  # stored with different type tags, but packed alike
        return kind.__name__, element
    return element


def _encode_by(serde: SerializerProtocol, element: Any) -> bytes:
    kind, data = serde.dumps_typed(element)
    return kind.encode() + b"\0" + data


def common_prefix_length(new: array[int], old: array[int]) -> int:
    """The number of leading elements that the two lists share."""
    length = min(len(new), len(old))
    if new[:length] == old[:length]:
        return length
    return next(index for index in range(length) if new[index] != old[index])


def new_elements(elements: Sequence[Any], new: array[int], old: array[int], start: int) -> list[Any]:
    """The elements from `start` on that are not in the old list, in order.

    An element of the old list that moved is not new. A message without an id is identified by its position
    among the others, so that the same text sent twice is two messages.
    """
    old, new, elements = old[start:], new[start:], elements[start:]
    if not old:
        return list(elements)
    known = set(old)
    without_id = {index for index, element in enumerate(elements) if is_message(element) and not id_of(element)}
    repeated = without_id.difference(_aligned(old, new)) if without_id else without_id
    return [element for index, element in enumerate(elements) if new[index] not in known or index in repeated]


def _aligned(old: array[int], new: array[int]) -> Iterable[int]:
    """The indexes in `new` of the elements of `old`: all of them, its last ones, or a common subsequence."""
    if len(new) > len(old) and new[-len(old) :] == old:
        return range(len(new) - len(old), len(new))
    known = set(old)
    start = next((index for index, fingerprint in enumerate(new) if fingerprint in known), len(new))
    for trimmed, fingerprint in enumerate(old if start < len(new) else ()):
        end = start + len(old) - trimmed
        if fingerprint == new[start] and old[trimmed:] == new[start:end]:
            return range(start, end)
    return list(_common_subsequence(old, new))


def _common_subsequence(old: array[int], new: array[int]) -> Iterator[int]:
    position = 0
    for index, fingerprint in enumerate(new):
        with suppress(ValueError):
            position = old.index(fingerprint, position) + 1
            yield index


def chunks(elements: Sequence[Any], serde: SerializerProtocol) -> list[Chunk]:
    """One chunk for each element, but one for each sequence of adjacent small plain values."""
    found: list[Chunk] = []
    start = 0
    while start < len(elements):
        end = start + 1
        while _is_small(elements[start]) and end < len(elements) and _is_small(elements[end]):
            end += 1
        if end == start + 1:
            found.append(Chunk(Blob(*serde.dumps_typed(elements[start]))))
        else:
            kind, data = serde.dumps_typed(list(elements[start:end]))
            found.append(Chunk(Blob(_SEVERAL + kind, data), end - start))
        start = end
    return found


def _is_small(element: Any) -> bool:
    return type(element) in _SCALARS and (type(element) is not str or len(element) <= _SHORT)


def join(parts: Sequence[Chunk], serde: SerializerProtocol) -> list[Any]:
    """The elements of the chunks. A chunk's `length` may be less than its blob holds, where a list branches."""
    elements: list[Any] = []
    for (kind, data), length in parts:
        if kind.startswith(_SEVERAL):
            elements.extend(serde.loads_typed((kind.removeprefix(_SEVERAL), data))[:length])
        else:
            elements.append(serde.loads_typed((kind, data)))
    return elements


def find_culprit(value: Any, path: str, serde: SerializerProtocol, error: Exception) -> tuple[str, Any, Exception]:
    """The innermost part of `value` that cannot be serialised, the path to it, and its error.

    `path` and `error` are those of `value`. The returned path begins with `path`, as in ``state.frame[2]``.
    """
    visited: set[int] = set()  # a value may contain itself
    while len(visited) < _MAX_DEPTH:
        visited.add(id(value))
        for step, part in _parts(value):
            if id(part) not in visited and (part_error := error_of(part, serde)) is not None:
                path, value, error = path + step, part, part_error
                break
        else:
            break
    return path, value, error


_MAX_DEPTH = 100


def error_of(value: Any, serde: SerializerProtocol) -> Exception | None:
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
