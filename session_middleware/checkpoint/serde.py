"""How values become bytes and values again: LangGraph's msgpack, without what makes it dangerous.

What can be serialised is stored. What is read is built from the classes that LangGraph holds safe,
from data classes of modules that are imported already (see `classes`), and from those that the user
has allowed; the value of any other class is what was stored of it: a dict, most often. Nothing is
imported, and no function or other class is called, because of what the bytes say. With
``only_allowed``, data classes have to be allowed as well, and a value of another class is an error
that says how to allow it, found when the value is put.

A value whose class has not changed is rebuilt from its fields, without validating them again: they
were valid when they were stored. One whose class has changed is read as LangGraph reads it: the
class is asked to make it of what is stored; a model that refuses it takes it as it is, and for a
dataclass that does, the value is the dict.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from enum import Flag
from functools import cache
from typing import Any

import ormsgpack
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send
from pydantic import BaseModel, RootModel, SecretBytes, SecretStr, ValidationError

from session_middleware.checkpoint import packing
from session_middleware.checkpoint.classes import TypeName, find, imports, kind_found, kind_of, name_of, shape_of
from session_middleware.checkpoint.packing import pack
from session_middleware.errors import UnserializableValue

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
MESSAGES: dict[TypeName, tuple[type[BaseMessage], set[str]]] = {  # the class, and the names of all of its fields
    (cls.__module__, cls.__name__): (cls, set(cls.model_fields))
    for cls in (HumanMessage, AIMessage, ToolMessage, SystemMessage)
}


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer without pickle, which imports nothing and calls nothing but data classes.

    `allowed`: further classes, or (module, name) pairs, whose modules may be imported; with
    `only_allowed` no others are read, and none that is not read is written.
    """

    def __init__(self, allowed: Iterable[type | TypeName] = (), *, only_allowed: bool = False) -> None:
        super().__init__(pickle_fallback=False, allowed_msgpack_modules=None)
        self.allowed = frozenset(_name(item) for item in allowed)
        self.only_allowed = only_allowed
        self._safe = _safe()

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[TypeName | type]) -> StrictSerializer:
        extra = {_name(item) for item in extra_allowlist} - SAFE_MSGPACK_TYPES
        if not self.only_allowed or extra <= self.allowed:
            return self
        return type(self)(self.allowed | extra, only_allowed=True)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialise.

        Raises:
            UnserializableValue: naming the type, and why it cannot be stored.
        """
        if obj is None or isinstance(obj, (bytes, bytearray)):
            return super().dumps_typed(obj)
        packing.begin()
        try:
            typed = ("msgpack", pack(obj))
        except (TypeError, ValueError, RecursionError) as error:
            reason = packing.reason_of(error)
            raise UnserializableValue(
                f"{_describe(type(obj))} cannot be stored ({said_by(reason)})",
                advice="keep it out of the graph's state, or store a form of it, such as a text or a dict",
            ) from reason
        if self.only_allowed and type(obj) not in _PLAIN:
            self.loads_typed(typed)
        return typed

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Deserialise. Raises `UnserializableValue` for bytes that are not what `dumps_typed` makes."""
        if data[0] == "json":  # LangGraph wrote it until 2024, and this package never: nothing is built from it
            return json.loads(data[1])
        if data[0] != "msgpack":
            return super().loads_typed(data)
        packing.begin()
        try:
            return self._unpack(data[1])
        except ValueError as error:
            reason = packing.reason_of(error)
            raise reason from (None if reason is error else reason.__cause__)

    def _unpack(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=self._revive, option=ormsgpack.OPT_NON_STR_KEYS)

    def _revive(self, code: int, data: bytes) -> Any:
        try:
            return self._value(code, data)
        except UnserializableValue as error:
            packing.note(error)
            raise
        except Exception as error:
            reason = said_by(error) if "ext_hook" not in str(error) else "it is nested too deeply"
            problem = f"a stored value is none that LangGraph's format has ({reason})"
            packing.note(UnserializableValue(problem, advice="the database was written by something else; distrust it"))
            raise

    def _value(self, code: int, data: bytes) -> Any:
        # no function between this and the next hook: Python's stack limits how deeply values may be nested
        parts = ormsgpack.unpackb(data, ext_hook=self._revive, option=ormsgpack.OPT_NON_STR_KEYS)
        if code == packing.DELTA_SNAPSHOT:
            return _DeltaSnapshot(parts)
        if code == packing.NUMPY:
            return _array(*parts)
        module, name, stored, *more = parts
        if code == packing.PYDANTIC:
            known = MESSAGES.get((module, name))
            if known is not None and stored.keys() == known[1]:
                return message(known[0], stored, known[1].copy())
        elif code == packing.METHOD:
            return self._datetime(module, name, stored, more)
        elif code not in _CODES:
            raise ValueError(f"extension {code}")
        build = self._safe.get((module, name))
        try:
            if build is not None:
                return _called(build, code, stored)
        except Exception:  # noqa: BLE001  # what was stored cannot be made again here, such as a Windows path
            return stored
        return self._instance(code, data, (module, name, stored, more))

    def _instance(self, code: int, data: bytes, parts: tuple[Any, ...]) -> Any:
        """A value of a class that LangGraph does not know, or what is stored of it."""
        module, name, stored, more = parts
        is_model = code in (packing.PYDANTIC, packing.PYDANTIC_V1)
        shape = None if code == packing.SINGLE_ARGUMENT else next((one for one in more if type(one) is int), None)
        cls = self._class(module, name, shape)
        kind = None if cls is None else kind_of(cls)
        is_same = cls is not None and kind in _SHAPED and shape == shape_of(cls)
        plain = self._unpack_plain(data)[2] if is_model and not is_same else stored
        if cls is None:
            return plain
        try:
            if kind == "enum":
                return _member(cls, stored, more)
            if kind == "model":
                private = self._unpack(more[-1]) if is_same and more[-1] is not None else None
                return _same_model(cls, stored, more[-2], private) if is_same else _model(cls, stored, plain)
            if kind == "model of pydantic v1":
                return cls.construct(set(more[-1]), **stored) if is_same else _model_v1(cls, stored, plain)  # type: ignore[attr-defined]
            if kind == "dataclass":
                return _dataclass(cls, stored, is_same=is_same)
            return _tuple(cls, stored) if kind == "named tuple" else _called(cls, code, stored)
        except Exception:  # noqa: BLE001  # the class is the user's: its code may raise anything
            return plain

    def _class(self, module: str, name: str, shape: int | None) -> type | None:
        """The class of a stored value, if it may be read and is there."""
        is_allowed = bool(self.allowed) and not self.allowed.isdisjoint(
            ((module, name), (module, name.partition("[")[0]), (module, name.rpartition(".")[2]))
        )
        if self.only_allowed and not is_allowed:
            raise self._not_allowed(module, name)
        if is_allowed:
            try:
                importlib.import_module(module)
            except ImportError:
                return None
        cls = find(module, name, shape)
        return cls if cls is not None and (is_allowed or kind_found(cls) is not None) else None

    def _not_allowed(self, module: str, name: str) -> UnserializableValue:
        return UnserializableValue(
            f"the type {module}.{name} is not one that may be read back from storage",
            advice=f"allow it with Sessions(..., allowed_types=[{name}]), "
            "or keep plain values and messages in the state",
        )

    def _datetime(self, module: str, name: str, text: Any, more: list[Any]) -> Any:
        """Of the one method that LangGraph stores the name of; any other is a forgery, or of another class."""
        if (module, name, *more) != ("datetime", "datetime", "fromisoformat"):
            if self.only_allowed:
                raise self._not_allowed(module, name)
            return text
        return datetime.fromisoformat(text)

    def _unpack_plain(self, data: bytes) -> Any:
        """With dicts for the models and dataclasses within, which a class that has changed makes them of again."""
        return ormsgpack.unpackb(data, ext_hook=self._revive_plain, option=ormsgpack.OPT_NON_STR_KEYS)

    def _revive_plain(self, code: int, data: bytes) -> Any:
        if code in (packing.PYDANTIC, packing.PYDANTIC_V1, packing.KEYWORDS):
            module, name, stored, *_ = self._unpack_plain(data)
            if (module, name) not in self._safe:
                return stored
        return self._revive(code, data)


_CODES = (packing.SINGLE_ARGUMENT, packing.ARGUMENTS, packing.KEYWORDS, packing.PYDANTIC_V1, packing.PYDANTIC)
_SHAPED = ("model", "model of pydantic v1", "dataclass")


@cache
def _safe() -> dict[TypeName, Callable[..., Any]]:
    """What LangGraph holds safe, and secrets, imported all at once and not when a value is read."""
    found: dict[TypeName, Any] = {}
    for module, name in SAFE_MSGPACK_TYPES:
        try:
            found[module, name] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):  # of another version of Python or LangGraph
            continue
    found["langgraph.types", "Send"] = _send
    return found | {(cls.__module__, cls.__name__): cls for cls in (SecretStr, SecretBytes, tuple)}


def own_within(serde: Any, own: StrictSerializer) -> Any:
    """An encrypting serializer around LangGraph's default one, around ours instead.

    It reads what is not encrypted as well, and LangGraph's imports and calls what that names.
    """
    if (
        type(serde) is EncryptedSerializer
        and type(serde.serde) is JsonPlusSerializer
        and not serde.serde.pickle_fallback
    ):
        return EncryptedSerializer(serde.cipher, own)
    return serde


def _name(item: type | TypeName) -> TypeName:
    return (item.__module__, name_of(item)) if isinstance(item, type) else tuple(item)


def _describe(cls: type) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def said_by(error: Exception) -> str:
    return str(error) or type(error).__name__


# Building


def _called(build: Callable[..., Any], code: int, stored: Any) -> Any:
    if code == packing.SINGLE_ARGUMENT:
        return build(stored)
    if code == packing.ARGUMENTS:
        return build(*stored)
    try:
        return build(**stored)
    except ValidationError:  # as LangGraph does: what was stored once is not lost to a stricter model
        return build.model_construct(**stored)  # type: ignore[attr-defined]


def _member(cls: Any, value: Any, more: list[Any]) -> Any:
    """A member by its name, or else by its value, as after it was renamed."""
    found = cls._member_map_.get(more[0]) if more else None
    if found is not None:
        return found
    found = next((member for member in cls._member_map_.values() if member._value_ == value), None)
    if found is None and issubclass(cls, Flag) and isinstance(value, int):
        found = Flag._missing_.__func__(cls, value)  # type: ignore[attr-defined]
    return value if found is None else found


def _same_model(cls: type[BaseModel], stored: Any, was_set: list[str] | None, private: dict[str, Any] | None) -> Any:
    """A model as it was, from its fields."""
    if issubclass(cls, RootModel):
        stored = {"root": stored}
    names = cls.__pydantic_fields__
    values, extra = stored, None
    if cls.model_config.get("extra") == "allow":
        values = {name: value for name, value in stored.items() if name in names}
        extra = {name: value for name, value in stored.items() if name not in names}
    elif not stored.keys() <= names.keys():
        raise ValueError("it has more than its class has fields")
    model = _new(cls, stored)
    model.__dict__.update(values)
    set_attribute = object.__setattr__
    set_attribute(model, "__pydantic_fields_set__", set(names if was_set is None else was_set))
    set_attribute(model, "__pydantic_extra__", extra)
    if private is not None:
        set_attribute(model, "__pydantic_private__", private)
    elif cls.__pydantic_post_init__:
        model.model_post_init(None)
        model.__dict__.update(values)
    return model


def _new(cls: type[BaseModel], stored: dict[str, Any]) -> BaseModel:
    if cls.__pydantic_custom_init__:  # such as SQLModel's, which makes more than the fields
        with suppress(Exception):  # the class is the user's
            return cls(**stored)
    model = object.__new__(cls)
    object.__setattr__(model, "__pydantic_private__", None)
    return model


def _model(cls: type[BaseModel], stored: Any, plain: Any) -> Any:
    """A model that has changed since, or that LangGraph stored."""
    if not imports(cls):
        with suppress(Exception):  # the class is the user's; what was stored once is not lost to a stricter one
            return (
                cls(**plain)
                if cls.__pydantic_custom_init__
                else cls.model_validate(plain, by_alias=False, by_name=True)
            )
    return cls.model_construct(stored) if issubclass(cls, RootModel) else cls.model_construct(**stored)


def _model_v1(cls: Any, stored: dict[str, Any], plain: dict[str, Any]) -> Any:
    if not imports(cls):
        with suppress(Exception):
            return cls(**plain)
    return cls.construct(**stored)


def _dataclass(cls: Any, stored: dict[str, Any], *, is_same: bool) -> Any:
    """Of the same shape, each field is as it was, whatever the class makes of it."""
    takes = {field.name: field.init for field in fields(cls)}
    is_same = is_same and stored.keys() <= takes.keys()
    try:
        if imports(cls):
            raise TypeError("it is not validated")
        made = cls(**{name: value for name, value in stored.items() if takes.get(name, True)})
    except Exception:
        if not is_same:
            raise
        made = object.__new__(cls)
    for name, value in stored.items():
        if is_same or not takes[name]:
            object.__setattr__(made, name, value)
    return made


def _tuple(cls: Any, stored: dict[str, Any]) -> Any:
    values = {**cls._field_defaults, **stored}
    if values.keys() != set(cls._fields):
        return stored
    return tuple.__new__(cls, [values[name] for name in cls._fields])


def message(cls: type[BaseMessage], fields: dict[str, Any], names: set[str]) -> BaseMessage:
    """A message from all of its fields and their names, as pydantic would leave it after validating them."""
    message = cls.__new__(cls)
    set_attribute = object.__setattr__
    set_attribute(message, "__dict__", fields)
    set_attribute(message, "__pydantic_fields_set__", names)
    set_attribute(message, "__pydantic_extra__", {})
    set_attribute(message, "__pydantic_private__", None)
    return message


def _send(node: str, arg: Any, timeout: Any = None) -> Any:
    return Send(node, arg) if timeout is None else Send(node, arg, timeout=timeout)


def _array(dtype: Any, shape: Any, order: Any, buffer: bytes) -> Any:
    import numpy

    array = numpy.frombuffer(buffer, dtype=numpy.dtype(_dtype(dtype))).reshape(shape, order=order)
    return array[()] if order == packing.SCALAR else array


def _dtype(stored: Any) -> Any:
    """A structured type is a list of its fields: name, type and, of some, shape."""
    if not isinstance(stored, list):
        return stored
    return [(name, _dtype(kind), *map(tuple, shape)) for name, kind, *shape in stored]
