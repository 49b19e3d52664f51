"""Serialisation of values to LangGraph's msgpack format, without losing parts of a data class.

LangGraph's `JsonPlusSerializer` can read these bytes. They differ from the bytes it writes where it
would lose information: a class is named by its qualified name; an enum member is stored with its name;
a model is stored as its fields instead of its ``model_dump()``, which loses aliases, excluded fields
and subclasses. LangChain's messages, and models with a field that only ``model_dump()`` can encode,
are stored as their dump.
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
from functools import partial
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any
from uuid import UUID

import ormsgpack
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
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
SCALAR = "A"  # marks a NumPy scalar in place of an array's order; LangGraph reads it as an array of one element
MESSAGES: dict[type[BaseMessage], set[str]] = {  # the names of all fields
    cls: set(cls.model_fields) for cls in (HumanMessage, AIMessage, ToolMessage, SystemMessage)
}
JSON_METHOD = "model_validate_json"  # LangGraph writes this method name after a model; no reader uses it


class State(threading.local):
    """The state of one call of `pack` or of a reader: ormsgpack passes nothing through its hooks."""

    error: Exception | None = None  # the first one that a hook raised; ormsgpack discards it
    met_class = False  # the value contains an instance of a class, other than a message of plain fields
    is_dumping = False  # within a ``model_dump()``

    def record(self, error: Exception) -> Exception:
        """Save an error of a hook if it is the first one, which is the cause of the others; returns the first one."""
        self.error = error if self.error is None else self.error
        return self.error


state = State()


def pack(value: Any) -> bytes:
    """Serialise. Raises `TypeError` for a value that cannot be stored; `state` has the cause."""
    return ormsgpack.packb(value, default=_default, option=_option)


pack_natively = partial(ormsgpack.packb, option=_option)  # the same bytes; raises for a value with any other object


def is_plain(value: Any) -> bool:
    """Whether a value is a message that is stored as its fields, if these can be packed natively."""
    cls = type(value)
    return cls in MESSAGES and not value.__pydantic_extra__ and value.__dict__.keys() == MESSAGES[cls]


def array_header(length: int) -> bytes:
    """The bytes before the elements of an array."""
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2, "big") if length < 65_536 else b"\xdd" + length.to_bytes(4, "big")


def _default(value: Any) -> Any:
    try:
        cls = type(value)
        if cls in MESSAGES and (packed := plain_message(value)) is not None:
            return packed
        state.met_class = True
        encode = _BY_CLASS.get(cls) or _BY_KIND.get(kind_of(cls) or "")
        return _pack_other(value) if encode is None else encode(value)
    except Exception as error:
        state.record(error)
        raise


def plain_message(message: BaseMessage) -> ormsgpack.Ext | None:
    """The bytes of a message's ``model_dump()``, made from its fields; ``None`` unless all of them are plain."""
    cls = type(message)
    if message.__pydantic_extra__ or message.__dict__.keys() != MESSAGES[cls]:
        return None
    try:
        parts = (cls.__module__, cls.__name__, message.__dict__, JSON_METHOD)
        return ormsgpack.Ext(PYDANTIC, pack_natively(parts))
    except (TypeError, ValueError):
        return None


def _pack_other(value: Any) -> Any:
    """Pack an array, an instance of a subclass of a known class, or a value that LangGraph's encoder handles."""
    for base, convert in _BY_BASE.items():
        if is_a(value, base):
            try:
                plain = convert(base, value)
            except (TypeError, ValueError):  # such as pandas' `NaT`, a datetime whose year is no number
                return _msgpack_default(value)
            return _BY_CLASS[base](plain)
    numpy = sys.modules.get("numpy")
    if numpy is not None and is_a(value, numpy.ndarray):
        return _array(value)
    if numpy is not None and is_a(value, numpy.generic):
        return bytes(value) if is_a(value, bytes) else _packed(value, SCALAR)
    if isinstance(value, type):
        raise TypeError(f"{value.__name__} is a class, and not a value")
    _refuse_dynamic_methods(value)
    return _msgpack_default(value)


_DUMPS = ("model_dump", "get_secret_value", "dict", "_asdict")  # methods that LangGraph calls where a value has them


def _refuse_dynamic_methods(value: Any) -> None:
    """Raise `TypeError` for a value that creates dump methods on access, such as a mock or a remote proxy.

    A wrapper that returns a real method of the object it wraps is accepted.
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
        raise TypeError(f"a {type(value).__name__} is read as another type")  # for example, a defaultdict
    return _default(value)


Mode = tuple[Callable[[Any], Any], int]  # ormsgpack's hook, and its options
_PLAINLY: Mode = (_default, _option)  # as LangGraph does: tuples are read back as lists
_TUPLES: Mode = (_default, _option | ormsgpack.OPT_PASSTHROUGH_TUPLE)  # tuples are read back as tuples
_EXACTLY: Mode = (  # raises `TypeError` for a value that would be read back as another type
    _default_exactly,
    (_option & ~ormsgpack.OPT_NON_STR_KEYS) | ormsgpack.OPT_PASSTHROUGH_TUPLE | ormsgpack.OPT_PASSTHROUGH_SUBCLASS,
)


def _ext(code: int, cls: type, *parts: Any, mode: Mode = _PLAINLY) -> ormsgpack.Ext:
    # this calls the next hook directly: each further stack frame would lower the permitted depth of nesting
    return ormsgpack.Ext(code, ormsgpack.packb([cls.__module__, name_of(cls), *parts], default=mode[0], option=mode[1]))


# Data classes. A model is first packed exactly, and as its dump if that fails. Values within a dump are not packed
# exactly again: two attempts on each level would take exponential time.


def _pack_dump(code: int, cls: type, dump: Callable[[], Any], *parts: Any) -> ormsgpack.Ext:
    state.error = None
    was, state.is_dumping = state.is_dumping, True
    try:
        return _ext(code, cls, dump(), *parts)
    finally:
        state.is_dumping = was


def _is_langgraphs(cls: type) -> bool:
    return (cls.__module__, cls.__name__) in SAFE_MSGPACK_TYPES


def _model(model: BaseModel) -> ormsgpack.Ext:
    cls = type(model)
    if _is_langgraphs(cls):
        return _ext(PYDANTIC, cls, model.model_dump(), JSON_METHOD)
    if model.__pydantic_extra__ and not cls.__pydantic_fields__.keys().isdisjoint(model.__pydantic_extra__):
        raise TypeError(f"{cls.__qualname__} has a field and an extra value of the same name")
    if not state.is_dumping:
        with suppress(TypeError, ValueError):
            names = cls.__pydantic_fields__
            stored: Any = {name: value for name, value in model.__dict__.items() if name in names}
            if isinstance(model, RootModel):
                stored = stored["root"]
            elif model.__pydantic_extra__:
                stored |= model.__pydantic_extra__
            was_set = None if (given := model.__pydantic_fields_set__) == names.keys() else sorted(given)
            parts = (stored, JSON_METHOD, shape_of(cls), was_set, _private(model))
            return _ext(PYDANTIC, cls, *parts, mode=_EXACTLY)
    return _pack_dump(PYDANTIC, cls, model.model_dump, JSON_METHOD)


def _private(model: BaseModel) -> bytes | None:
    """A model's private attributes; ``None`` if it has none, or one of them cannot be stored."""
    private = model.__pydantic_private__
    if not private:
        return None
    try:
        return ormsgpack.packb(private, default=_default_exactly, option=_EXACTLY[1])
    except (TypeError, ValueError):  # such as a lock or a client: the model creates it again, as with LangGraph
        state.error = None
        return None


def _model_v1(model: Any) -> ormsgpack.Ext:
    cls = type(model)
    if not state.is_dumping:
        with suppress(TypeError, ValueError):
            parts = ({**model.__dict__}, shape_of(cls), sorted(model.__fields_set__))
            return _ext(PYDANTIC_V1, cls, *parts, mode=_EXACTLY)
    return _pack_dump(PYDANTIC_V1, cls, model.dict)


def _dataclass(value: Any) -> ormsgpack.Ext:
    cls = type(value)
    stored = {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    if _is_langgraphs(cls):
        return _ext(KEYWORDS, cls, stored)
    if not hasattr(cls, "__pydantic_serializer__"):
        return _ext(KEYWORDS, cls, stored, shape_of(cls), mode=_TUPLES)
    if not state.is_dumping:
        with suppress(TypeError, ValueError):
            return _ext(KEYWORDS, cls, stored, shape_of(cls), mode=_EXACTLY)
    return _pack_dump(KEYWORDS, cls, partial(cls.__pydantic_serializer__.to_python, value))


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
    """Pack the members in the order of their bytes, so that equal sets have equal bytes. Tuples stay tuples."""
    members = sorted(value, key=partial(ormsgpack.packb, default=_default, option=_TUPLES[1]))
    return _ext(SINGLE_ARGUMENT, type(value), members, mode=_TUPLES)


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
_BY_BASE: dict[type, Callable[[Any, Any], Any]] = {  # an instance of a subclass is read back as an equal base instance
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
    """Pack an array, or a scalar as an array without dimensions."""
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects has no bytes to store; use a list")
    kind = array.dtype.str if array.dtype.names is None else array.dtype.descr
    return ormsgpack.Ext(NUMPY, pack((kind, array.shape, order, array.tobytes(order=order))))
