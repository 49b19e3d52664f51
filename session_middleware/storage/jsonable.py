"""Conversion of any value to JSON, without errors.

The arguments and results of tools can be any objects. A value that JSON cannot represent becomes its
``repr`` under ``"__repr__"``, with the name of its type.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import TypeIs

T = TypeVar("T")

_REPR_LENGTH = 10_000  # characters; a longer `repr` is cut
_ARRAY_SIZE = 10_000  # elements; a larger array becomes its `repr`
LONGEST_ID = 200  # characters; an entry of PostgreSQL's indexes, which has several ids, has 2,704 bytes
REPLACED = "\ufffd"  # in place of a lone surrogate
_SURROGATE = re.compile("[\ud800-\udfff]")
_ARRAYS = {("numpy", "ndarray"), ("numpy", "generic"), ("pandas", "Series"), ("pandas", "Index")}


def is_a(value: object, kinds: type[T] | tuple[type[T], ...]) -> TypeIs[T]:
    """`isinstance` by the value's type alone: the ``__class__`` of a mock or a proxy may be any class."""
    return issubclass(type(value), kinds)


def text_of(value: object) -> str:
    """A text unchanged, any other value as its `repr`."""
    return value if is_a(value, str) else repr(value)


def to_json(value: Any) -> str | None:
    """JSON text, or ``None`` for ``None``. Never raises."""
    if value is None:
        return None
    with suppress(Exception):  # a cycle, a key that is not a string, a NaN, or an error of the user's code
        return clean(_encode(value))
    with suppress(Exception):  # a cycle, or an error of the user's code
        return clean(_encode(_tame(value, ())))
    return clean(_encode(_unknown(value)))


def is_nothing(value: Any) -> bool:
    """Whether a value is ``None`` or an empty container. Its ``bool`` is not used: an array raises."""
    return value is None or (type(value) in (dict, list, tuple, str) and len(value) == 0)


def plain(value: Any) -> Any:
    """The value after a round trip through JSON."""
    text = to_json(value)
    return None if text is None else json.loads(text)


def is_text(text: str) -> bool:
    """False for half of a surrogate pair, as in a truncated emoji, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(text: str) -> str:
    """Replace lone surrogates, which a database cannot store, by the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(REPLACED, text)
    return text


def stored_id(given: str) -> str:
    """The id of a message or a tool call as the record has it.

    A lone surrogate is a question mark, as in the state that a checkpointer restores. A long id ends with its digest.
    """
    text = given if is_text(given) else given.encode(errors="replace").decode()
    if len(text) <= LONGEST_ID:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: LONGEST_ID - 1 - len(digest)]}~{digest}"


def _describe(value: Any) -> Any:
    """Convert one level of a value to types that JSON has, or that this function converts."""
    convert = _converter(type(value))
    try:
        return _unknown(value) if convert is None else convert(value)
    except Exception:  # noqa: BLE001  # the user's class may raise anything
        return _unknown(value)


def _converter(kind: type) -> Callable[[Any], Any] | None:
    for base in kind.__mro__:
        if (convert := _CONVERTERS.get(base)) is not None:
            return convert
        if (base.__module__.partition(".")[0], base.__name__) in _ARRAYS:
            return _elements
    return _dataclass_fields if dataclasses.is_dataclass(kind) else None


def _elements(array: Any) -> Any:
    return array.tolist() if array.size <= _ARRAY_SIZE else _unknown(array)


def _dataclass_fields(value: Any) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(type(value))}
    return {**fields, "__type__": type(value).__qualname__}


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((set, frozenset), list),
    **dict.fromkeys((UUID, PurePath, Decimal, date, time, timedelta), str),
    datetime: datetime.isoformat,
    Enum: lambda member: member.value,
    BaseModel: BaseModel.model_dump,
}


def _unknown(value: Any) -> dict[str, Any]:
    kind = type(value).__qualname__
    if is_a(value, (bytes, bytearray, memoryview)):
        value = bytes(value[:_REPR_LENGTH])
    try:
        text = clean(repr(value))
    except Exception as error:  # noqa: BLE001  # the user's class may raise anything
        text = f"<{kind}, whose repr failed with {type(error).__name__}>"
    short = text[:_REPR_LENGTH]
    return {"__repr__": short, "__type__": kind} | ({"__cut__": True} if short != text else {})


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_describe).encode


def _tame(value: Any, inside: tuple[int, ...]) -> Any:
    """Convert keys to strings, and NaN and infinities to text. Raises `ValueError` for a cycle."""
    if value is None or is_a(value, (str, bool, int)):
        return value
    if is_a(value, float):
        return value if math.isfinite(value) else repr(value)
    if id(value) in inside:
        raise ValueError("the value contains itself")
    inside = (*inside, id(value))
    if is_a(value, dict):
        return {_key(key): _tame(part, inside) for key, part in value.items()}
    if is_a(value, (list, tuple)):
        return [_tame(part, inside) for part in value]
    return _tame(_describe(value), inside)


def _key(key: Any) -> str:
    if is_a(key, str):
        return key
    return str(key) if is_a(key, (int, float)) or _converter(type(key)) is not None else repr(key)
