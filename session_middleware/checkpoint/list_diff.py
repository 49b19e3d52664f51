"""Splitting what a checkpoint holds into stored pieces, and joining them again: pure functions.

A list is stored as its elements, so that a thread costs what was said and not that times the number
of checkpoints. To find what is new in a list, each element is compared with what was last stored by
a fingerprint: a hash of its fields, encoded by the same encoder that stores them but without a
message's own dump, which is what makes it several times cheaper than serialising the message. Changes
made in place show, because the fields themselves are read every time.
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
from session_middleware.checkpoint.packing import pack
from session_middleware.storage.checkpoint_types import Blob, Chunk
from session_middleware.storage.jsonable import is_a

_SCALARS = frozenset({str, int, float, bool, type(None)})
_SHORT = 256  # characters; a longer text is worth a blob of its own
RUN = "[]"  # begins the type of a blob that holds a list of elements, not one


def fingerprints(elements: Sequence[Any], serde: SerializerProtocol) -> array[int]:
    """64 bits for each element, which change whenever what would be stored of it changes.

    They are made for this process only. Where the user's serializer may store what LangGraph's does
    not, such as whether something is a tuple, its own bytes are what counts.
    """
    inner = serde.serde if isinstance(serde, EncryptedSerializer) else serde
    encode = _encode if isinstance(inner, JsonPlusSerializer) else partial(_encode_by, serde)
    try:
        return array("q", [hash(encode(element)) for element in elements])
    except Exception:  # noqa: BLE001  # one of them cannot be encoded: the others still have fingerprints
        return array("q", [_fingerprint(element, encode) for element in elements])


def _fingerprint(element: Any, encode: Callable[[Any], bytes]) -> int:
    try:
        return hash(encode(element))
    except Exception:  # noqa: BLE001  # storing it will say what is wrong with it; here it is merely new
        return random.getrandbits(63)


def _encode(element: Any) -> bytes:
    """What would be stored of an element, without the cost of a message's dump."""
    if is_a(element, BaseMessage):
        try:
            return pack((id(type(element)), element.__dict__, element.__pydantic_extra__))
        except Exception:  # noqa: BLE001  # only the model's own dump makes its fields into what can be encoded
            return pack(element)
    kind = type(element)
    if kind is bytearray or kind is bytes:  # told apart by their type tag when they stand alone
        return pack((kind.__name__, element))
    return pack(element)


def _encode_by(serde: SerializerProtocol, element: Any) -> bytes:
    kind, data = serde.dumps_typed(element)
    return kind.encode() + b"\0" + data


def common_prefix_length(new: array[int], old: array[int]) -> int:
    """How many elements the two lists have in common at their beginning."""
    length = min(len(new), len(old))
    if new[:length] == old[:length]:
        return length
    return next(place for place in range(length) if new[place] != old[place])


def new_elements(elements: Sequence[Any], new: array[int], old: array[int], keep: int) -> list[Any]:
    """The elements after the first `keep` that the old list did not have, in order.

    A message without an id is known by its place among the others, so an equal one said again is new.
    Anything else is old wherever it stood.
    """
    rest, more, after = old[keep:], new[keep:], elements[keep:]
    if not rest:
        return list(after)
    had = set(rest)
    unnamed = {place for place, element in enumerate(after) if is_message(element) and not id_of(element)}
    again = unnamed.difference(_aligned(rest, more)) if unnamed else unnamed
    return [element for place, element in enumerate(after) if more[place] not in had or place in again]


def _aligned(old: array[int], new: array[int]) -> Iterable[int]:
    """The places in `new` of what is left of `old`: all of it, its end, or else what is in the same order."""
    if len(new) > len(old) and new[-len(old) :] == old:
        return range(len(new) - len(old), len(new))
    had = set(old)
    start = next((place for place, mark in enumerate(new) if mark in had), len(new))
    for trimmed, mark in enumerate(old if start < len(new) else ()):
        end = start + len(old) - trimmed
        if mark == new[start] and old[trimmed:] == new[start:end]:
            return range(start, end)
    return list(_in_the_same_order(old, new))


def _in_the_same_order(old: array[int], new: array[int]) -> Iterator[int]:
    upto = 0
    for place, mark in enumerate(new):
        with suppress(ValueError):
            upto = old.index(mark, upto) + 1
            yield place


def chunks(elements: Sequence[Any], serde: SerializerProtocol) -> list[Chunk]:
    """The elements as blobs: each its own, but small plain values that stand together share one."""
    found: list[Chunk] = []
    start = 0
    while start < len(elements):
        end = start + 1
        if _is_small(elements[start]):
            while end < len(elements) and _is_small(elements[end]):
                end += 1
        if end == start + 1:
            found.append(Chunk(Blob(*serde.dumps_typed(elements[start]))))
        else:
            kind, data = serde.dumps_typed(list(elements[start:end]))
            found.append(Chunk(Blob(RUN + kind, data), end - start))
        start = end
    return found


def _is_small(element: Any) -> bool:
    return type(element) in _SCALARS and (type(element) is not str or len(element) <= _SHORT)


def join(parts: Sequence[Chunk], serde: SerializerProtocol) -> list[Any]:
    """The elements of the chunks. A branch may use only the first `length` elements of a run."""
    elements: list[Any] = []
    for (kind, data), length in parts:
        if kind.startswith(RUN):
            elements.extend(serde.loads_typed((kind[len(RUN) :], data))[:length])
        else:
            elements.append(serde.loads_typed((kind, data)))
    return elements


def find_culprit(value: Any, path: str, serde: SerializerProtocol, error: Exception) -> tuple[str, Any, Exception]:
    """The innermost part of `value` that cannot be serialised, the path to it, and what is wrong with it.

    `path` and `error` are those of `value` itself; the path goes on from there, as in ``state.frame[2]``.
    """
    above: set[int] = set()  # a value may hold itself
    while len(above) < _DEEPEST:
        above.add(id(value))
        for step, part in _parts(value):
            if id(part) not in above and (problem := problem_of(part, serde)) is not None:
                path, value, error = path + step, part, problem
                break
        else:
            break
    return path, value, error


_DEEPEST = 100  # parts within parts that are looked into


def problem_of(value: Any, serde: SerializerProtocol) -> Exception | None:
    try:
        serde.dumps_typed(value)
    except Exception as error:  # noqa: BLE001  # a serializer of the user's may raise anything
        return error
    return None


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a serializer takes apart; any other object it can store as a whole, or not at all."""
    if is_a(value, Mapping):
        return [*((f"[{key!r}]", part) for key, part in value.items()), *((".keys()", key) for key in value)]
    if is_a(value, (list, tuple, deque)):
        return [(f"[{place}]", part) for place, part in enumerate(value)]
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
