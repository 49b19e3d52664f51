"""Values to bytes: LangGraph's msgpack, with all of a data class in it.

LangGraph's `JsonPlusSerializer` reads these bytes too. They differ from the bytes that it writes where
those lose something: a class is named by its qualified name, a model is stored as its fields and not
as its own dump (which aliases, validators, excluded fields and subclasses do not survive), an enum
member also by its name. LangChain's own messages, and a model some field of which only its own dump
can encode, are stored as that dump.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import ormsgpack
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import _msgpack_default, _option
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Send
from pydantic import BaseModel, RootModel

from session_middleware.checkpoint.classes import kind_of, name_of, shape_of

# The extension codes of LangGraph's msgpack format.
SINGLE_ARGUMENT, ARGUMENTS, KEYWORDS, METHOD, PYDANTIC_V1, PYDANTIC, NUMPY, DELTA_SNAPSHOT = range(8)

_failed = threading.local()  # `.error`: what a hook raised first, for ormsgpack drops it


def pack(value: Any) -> bytes:
    """The bytes of a value. Raises `TypeError` for what cannot be stored; see `reasons` for why."""
    return ormsgpack.packb(value, default=_default, option=_option)


@contextmanager
def reasons() -> Iterator[None]:
    """Within the block, what a hook raised is raised as it was, and not as ormsgpack's own error."""
    _failed.error = None
    try:
        yield
    except (TypeError, ValueError) as error:
        reason, _failed.error = _failed.error, None
        if reason is None or reason is error:
            raise
        raise reason from reason.__cause__


def note(error: Exception) -> None:
    """Keep what a hook of ormsgpack's is about to raise, for `reasons`; the first is the cause of all others."""
    if getattr(_failed, "error", None) is None:
        _failed.error = error


def _default(value: Any) -> Any:
    try:
        return _encoded(value)
    except Exception as error:
        note(error)
        raise


def _pack_exactly(parts: list[Any]) -> bytes:
    """Bytes of which the same types are read. Raises `TypeError` where msgpack's own types are not enough."""
    return ormsgpack.packb(parts, default=_default_exactly, option=_exactly)


_exactly = (
    (_option & ~ormsgpack.OPT_NON_STR_KEYS) | ormsgpack.OPT_PASSTHROUGH_TUPLE | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
)


def _default_exactly(value: Any) -> Any:
    if type(value) is tuple:
        return ormsgpack.Ext(SINGLE_ARGUMENT, _pack_exactly(["builtins", "tuple", list(value)]))
    if isinstance(value, (str, int, list, dict, bytearray, memoryview)) and kind_of(type(value)) is None:
        raise TypeError(f"a {type(value).__name__} is read as another type")  # a defaultdict, for example
    return _default(value)


def _encoded(value: Any) -> Any:
    cls = type(value)
    encode = _BY_KIND.get(kind_of(cls) or "") or _BY_CLASS.get(cls)
    if encode is not None:
        return encode(value)
    for base, of in _BY_BASE.items():
        if isinstance(value, base):
            return _encoded(of(base, value))
    array = _array_type()
    if array is not None and isinstance(value, array):
        return _array(value)
    if isinstance(value, type):
        raise TypeError(f"{value.__name__} is a class, and not a value")
    return _msgpack_default(value)


def _ext(code: int, cls: type, *parts: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, pack((cls.__module__, name_of(cls), *parts)))


def _ext_exactly(code: int, cls: type, *parts: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, _pack_exactly([cls.__module__, name_of(cls), *parts]))


def _is_langgraphs(cls: type) -> bool:
    return (cls.__module__, cls.__name__) in SAFE_MSGPACK_TYPES


# Data classes


def _model(model: BaseModel) -> ormsgpack.Ext:
    cls = type(model)
    method = "model_validate_json"  # as LangGraph writes it, and nobody reads it
    if _is_langgraphs(cls):
        return _ext(PYDANTIC, cls, model.model_dump(), method)
    try:
        names = cls.model_fields
        stored: Any = {name: value for name, value in model.__dict__.items() if name in names}
        if isinstance(model, RootModel):
            stored = stored["root"]
        elif model.__pydantic_extra__:
            stored |= model.__pydantic_extra__
        was_set = None if (given := model.__pydantic_fields_set__) == names.keys() else sorted(given)
        return _ext_exactly(PYDANTIC, cls, stored, method, shape_of(cls), was_set, _private(model))
    except (TypeError, ValueError):
        _failed.error = None
        return _ext(PYDANTIC, cls, model.model_dump(), method)


def _private(model: BaseModel) -> dict[str, Any] | None:
    """A model's private attributes, if all of them can be stored."""
    private = model.__pydantic_private__
    if not private:
        return None
    try:
        _pack_exactly([private])
    except (TypeError, ValueError):  # a lock, a client: they are made anew with the model, as LangGraph does
        _failed.error = None
        return None
    return private


def _model_v1(model: Any) -> ormsgpack.Ext:
    cls = type(model)
    try:
        return _ext_exactly(PYDANTIC_V1, cls, {**model.__dict__}, shape_of(cls), sorted(model.__fields_set__))
    except (TypeError, ValueError):
        _failed.error = None
        return _ext(PYDANTIC_V1, cls, model.dict())


def _dataclass(value: Any) -> ormsgpack.Ext:
    cls = type(value)
    stored = {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    if _is_langgraphs(cls):
        return _ext(KEYWORDS, cls, stored)
    try:
        return _ext_exactly(KEYWORDS, cls, stored, shape_of(cls))
    except (TypeError, ValueError):
        _failed.error = None
        validates = hasattr(cls, "__pydantic_validator__")
        return _ext(KEYWORDS, cls, stored) if validates else _ext(KEYWORDS, cls, stored, shape_of(cls))


def _named_tuple(value: Any) -> ormsgpack.Ext:
    cls, stored = type(value), dict(zip(value._fields, value, strict=True))
    if _is_langgraphs(cls):
        return _ext(KEYWORDS, cls, stored)
    try:
        return _ext_exactly(KEYWORDS, cls, stored)
    except (TypeError, ValueError):
        _failed.error = None
        return _ext(KEYWORDS, cls, stored)


_BY_KIND: dict[str, Callable[[Any], ormsgpack.Ext]] = {
    "enum": lambda member: _ext(SINGLE_ARGUMENT, type(member), member._value_, member._name_),
    "model": _model,
    "model of pydantic v1": _model_v1,
    "named tuple": _named_tuple,
    "dataclass": _dataclass,
}

# Other values


def _set(value: Any) -> ormsgpack.Ext:
    """Its members are in the order of their bytes, which is else chance; a tuple among them has to be one again."""
    members = sorted(value, key=lambda member: _pack_exactly([member]))
    return _ext_exactly(SINGLE_ARGUMENT, type(value), members)


def _deque(value: deque[Any]) -> ormsgpack.Ext:
    if value.maxlen is None:
        return _ext(SINGLE_ARGUMENT, deque, tuple(value))
    return _ext(ARGUMENTS, deque, (tuple(value), value.maxlen))


def _send(send: Send) -> ormsgpack.Ext:
    timeout = getattr(send, "timeout", None)
    return _ext(ARGUMENTS, Send, (send.node, send.arg) if timeout is None else (send.node, send.arg, timeout))


_BY_CLASS: dict[type, Callable[[Any], Any]] = {
    set: _set,
    frozenset: _set,
    deque: _deque,
    datetime: _msgpack_default,
    date: _msgpack_default,
    timedelta: _msgpack_default,
    UUID: _msgpack_default,
    Decimal: _msgpack_default,
    Send: _send,
    Item: lambda item: _ext(KEYWORDS, Item, {name: getattr(item, name) for name in item.__slots__}),
    _DeltaSnapshot: lambda snapshot: ormsgpack.Ext(DELTA_SNAPSHOT, pack(snapshot.value)),
}
_BY_BASE: dict[type, Callable[[Any, Any], Any]] = {  # a library's subclass reads back as an equal value of Python's own
    datetime: lambda cls, d: cls(
        *(d.year, d.month, d.day, d.hour, d.minute, d.second, d.microsecond, d.tzinfo), fold=d.fold
    ),
    date: lambda cls, d: cls(d.year, d.month, d.day),
    timedelta: lambda cls, d: cls(d.days, d.seconds, d.microseconds),
    UUID: lambda cls, u: cls(int=u.int),
    Decimal: lambda cls, d: cls(d),
    set: lambda cls, s: cls(s),
    frozenset: lambda cls, s: cls(s),
    deque: lambda cls, d: cls(d, d.maxlen),
    Send: lambda cls, s: cls(s.node, s.arg),
}


def _array_type() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.ndarray


def _array(array: Any) -> Any:
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no bytes to store; use a list")
    if array.dtype.kind not in "mMV":
        return _msgpack_default(array)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    kind = array.dtype.str if array.dtype.names is None else array.dtype.descr
    return ormsgpack.Ext(NUMPY, pack((kind, array.shape, order, array.tobytes(order=order))))
