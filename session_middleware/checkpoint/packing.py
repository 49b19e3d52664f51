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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from inspect import getattr_static
from types import FunctionType, MethodType
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
from session_middleware.storage.jsonable import is_a

# The extension codes of LangGraph's msgpack format.
SINGLE_ARGUMENT, ARGUMENTS, KEYWORDS, METHOD, PYDANTIC_V1, PYDANTIC, NUMPY, DELTA_SNAPSHOT = range(8)
SCALAR = "A"  # an order of NumPy's that no array is stored in: LangGraph reads a scalar as an array of one element

_failed = threading.local()  # `.error`: what a hook raised first, for ormsgpack drops it


def pack(value: Any) -> bytes:
    """The bytes of a value. Raises `TypeError` for what cannot be stored; see `reason_of` for why."""
    return ormsgpack.packb(value, default=_default, option=_option)


def begin() -> None:
    """Forget what a hook raised before."""
    _failed.error = None


def reason_of(error: Exception) -> Exception:
    """What a hook raised since `begin`, or else ormsgpack's own error."""
    return getattr(_failed, "error", None) or error


def note(error: Exception) -> None:
    """Keep what a hook of ormsgpack's is about to raise, for `reason_of`; the first is the cause of all others."""
    if getattr(_failed, "error", None) is None:
        _failed.error = error


def _default(value: Any) -> Any:
    try:
        cls = type(value)
        encode = _BY_KIND.get(kind_of(cls) or "") or _BY_CLASS.get(cls)
        return _encoded(value) if encode is None else encode(value)
    except Exception as error:
        note(error)
        raise


def _encoded(value: Any) -> Any:
    """Of a subclass of what msgpack or LangGraph know, an array, or anything else."""
    for base, of in _BY_BASE.items():
        if is_a(value, base):
            return _BY_CLASS[base](of(base, value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and is_a(value, numpy.ndarray):
        return _array(value)
    if numpy is not None and is_a(value, numpy.generic):
        return bytes(value) if is_a(value, bytes) else _packed(value, SCALAR)
    if isinstance(value, type):
        raise TypeError(f"{value.__name__} is a class, and not a value")
    _refuse_made_up(value)
    return _msgpack_default(value)


_DUMPS = ("model_dump", "get_secret_value", "dict", "_asdict")  # what LangGraph calls, on a value that has it


def _refuse_made_up(value: Any) -> None:
    """Raise `TypeError` where LangGraph would call what a value only makes up, as a mock and a remote proxy do.

    The method of another object that a wrapper hands out is that object's own, and is called.
    """
    cls: Any = type(value)
    if not hasattr(cls, "__getattr__") and not isinstance(cls.__getattribute__, FunctionType):
        return
    for name in _DUMPS:
        if callable(found := getattr(value, name, None)):
            owner = found.__self__ if type(found) is MethodType else value
            if getattr_static(owner, name, None) is not None:
                return
            break
    else:
        if value.__class__ is cls:
            return
    raise TypeError(f"Object of type {cls.__name__} is not serializable")


def _default_exactly(value: Any) -> Any:
    if type(value) is tuple:
        return _ext(SINGLE_ARGUMENT, tuple, list(value), mode=_EXACTLY)
    if isinstance(value, (str, int, list, dict)) and kind_of(type(value)) is None:
        raise TypeError(f"a {type(value).__name__} is read as another type")  # a defaultdict, for example
    return _default(value)


Mode = tuple[Callable[[Any], Any], int]  # ormsgpack's hook, and options
_PLAINLY: Mode = (_default, _option)  # as LangGraph: tuples are read as lists
_TUPLES: Mode = (_default, _option | ormsgpack.OPT_PASSTHROUGH_TUPLE)
_EXACTLY: Mode = (  # raises `TypeError` for what would not be read as the same type
    _default_exactly,
    (_option & ~ormsgpack.OPT_NON_STR_KEYS) | ormsgpack.OPT_PASSTHROUGH_TUPLE | ormsgpack.OPT_PASSTHROUGH_SUBCLASS,
)


def _ext(code: int, cls: type, *parts: Any, mode: Mode = _PLAINLY) -> ormsgpack.Ext:
    # no function between this and the next hook: Python's stack limits how deeply values may be nested
    return ormsgpack.Ext(code, ormsgpack.packb([cls.__module__, name_of(cls), *parts], default=mode[0], option=mode[1]))


# Data classes. An attempt that fails within another one's second attempt would double the time with each level: so
# what a model's own dump holds is not attempted exactly.


def _dumped(code: int, cls: type, *parts: Any) -> ormsgpack.Ext:
    was, _failed.is_dumping = _is_dumping(), True
    try:
        return _ext(code, cls, *parts)
    finally:
        _failed.is_dumping = was


def _is_dumping() -> bool:
    return getattr(_failed, "is_dumping", False)


def _is_langgraphs(cls: type) -> bool:
    return (cls.__module__, cls.__name__) in SAFE_MSGPACK_TYPES


def _model(model: BaseModel) -> ormsgpack.Ext:
    cls = type(model)
    method = "model_validate_json"  # as LangGraph writes it, and nobody reads it
    if _is_langgraphs(cls):
        return _ext(PYDANTIC, cls, model.model_dump(), method)
    if not _is_dumping():
        with suppress(TypeError, ValueError):
            names = cls.__pydantic_fields__
            stored: Any = {name: value for name, value in model.__dict__.items() if name in names}
            if isinstance(model, RootModel):
                stored = stored["root"]
            elif model.__pydantic_extra__:
                stored |= model.__pydantic_extra__
            was_set = None if (given := model.__pydantic_fields_set__) == names.keys() else sorted(given)
            parts = (stored, method, shape_of(cls), was_set, _private(model))
            return _ext(PYDANTIC, cls, *parts, mode=_EXACTLY)
    begin()
    return _dumped(PYDANTIC, cls, model.model_dump(), method)


def _private(model: BaseModel) -> bytes | None:
    """A model's private attributes, if all of them can be stored."""
    private = model.__pydantic_private__
    if not private:
        return None
    try:
        return ormsgpack.packb(private, default=_default_exactly, option=_EXACTLY[1])
    except (TypeError, ValueError):  # a lock, a client: they are made anew with the model, as LangGraph does
        _failed.error = None
        return None


def _model_v1(model: Any) -> ormsgpack.Ext:
    cls = type(model)
    if not _is_dumping():
        with suppress(TypeError, ValueError):
            parts = ({**model.__dict__}, shape_of(cls), sorted(model.__fields_set__))
            return _ext(PYDANTIC_V1, cls, *parts, mode=_EXACTLY)
    begin()
    return _dumped(PYDANTIC_V1, cls, model.dict())


def _dataclass(value: Any) -> ormsgpack.Ext:
    cls = type(value)
    stored = {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    if _is_langgraphs(cls):
        return _ext(KEYWORDS, cls, stored)
    if not hasattr(cls, "__pydantic_serializer__"):
        return _ext(KEYWORDS, cls, stored, shape_of(cls), mode=_TUPLES)
    if not _is_dumping():
        with suppress(TypeError, ValueError):
            return _ext(KEYWORDS, cls, stored, shape_of(cls), mode=_EXACTLY)
    begin()
    return _dumped(KEYWORDS, cls, cls.__pydantic_serializer__.to_python(value))


def _named_tuple(value: Any) -> ormsgpack.Ext:
    stored = dict(zip(value._fields, value, strict=True))
    return _ext(KEYWORDS, type(value), stored, mode=_PLAINLY if _is_langgraphs(type(value)) else _TUPLES)


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
    members = sorted(ormsgpack.packb(member, default=_default, option=_TUPLES[1]) for member in value)
    head = pack(["builtins", type(value).__name__, []])[:-1]  # without the empty list, which is one byte
    length = len(members).to_bytes(4, "big")
    return ormsgpack.Ext(SINGLE_ARGUMENT, b"".join((head, b"\xdd", length, *members)))


def _deque(value: deque[Any]) -> ormsgpack.Ext:
    if value.maxlen is None:
        return _ext(SINGLE_ARGUMENT, deque, tuple(value))
    return _ext(ARGUMENTS, deque, (tuple(value), value.maxlen))


def _send(send: Send) -> ormsgpack.Ext:
    timeout = getattr(send, "timeout", None)
    return _ext(ARGUMENTS, Send, (send.node, send.arg) if timeout is None else (send.node, send.arg, timeout))


_BY_CLASS: dict[type, Callable[[Any], Any]] = {
    tuple: lambda value: _ext(SINGLE_ARGUMENT, tuple, list(value), mode=_TUPLES),
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


def _array(array: Any) -> Any:
    if array.dtype.kind not in "mMVO":
        return _msgpack_default(array)
    return _packed(array, "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")


def _packed(array: Any, order: str) -> ormsgpack.Ext:
    """An array, or a scalar as an array without dimensions."""
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no bytes to store; use a list")
    kind = array.dtype.str if array.dtype.names is None else array.dtype.descr
    return ormsgpack.Ext(NUMPY, pack((kind, array.shape, order, array.tobytes(order=order))))
