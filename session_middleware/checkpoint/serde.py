"""A serializer for LangGraph's msgpack format that executes no code named by the stored bytes.

`packing` writes every value it can. A stored instance is rebuilt only if its class is one that
LangGraph considers safe, a data class of a module that is already imported (see `classes`), or a class
the user has allowed. For any other class the loaded value is its stored fields, usually a dict. With
``only_allowed``, data classes have to be allowed too: an instance of another class is an error, raised
when the value is put.

If the class has not changed since the value was stored, the instance is rebuilt from its fields
without validation, because they were valid then. If the class has changed, it validates the stored
fields, as with LangGraph. A model that rejects them is constructed without validation; a dataclass
that rejects them is loaded as a dict.
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
from itertools import islice
from typing import Any

import ormsgpack
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send
from pydantic import BaseModel, RootModel, SecretBytes, SecretStr, ValidationError

from session_middleware.checkpoint import packing
from session_middleware.checkpoint.classes import TypeName, find, imports, kind_found, kind_of, name_of, shape_of
from session_middleware.errors import UnserializableValue

_MESSAGES = {(cls.__module__, cls.__name__): (cls, names) for cls, names in packing.MESSAGES.items()}


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer without pickle: loading imports no modules, and calls only data classes.

    Args:
        allowed: Further classes, or (module, name) pairs, that may be loaded. Their modules may be imported.
        only_allowed: Refuse all classes that are neither allowed nor LangGraph's, on writing and on loading.
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
        packing.state.error, packing.state.met_class = None, False
        try:
            plain = packing.plain_message(obj) if type(obj) in packing.MESSAGES else None
            typed = ("msgpack", packing.pack(obj) if plain is None else packing.pack_natively(plain))
        except (TypeError, ValueError, RecursionError) as error:
            cause = packing.state.record(error)
            raise UnserializableValue(
                f"{_describe(type(obj))} cannot be stored ({message_of(cause)})",
                advice="keep it out of the graph's state, or store a form of it, such as a text or a dict",
            ) from cause
        if self.only_allowed and packing.state.met_class:
            self.loads_typed(typed)  # raises for a class that is not allowed
        return typed

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Deserialise. Raises `UnserializableValue` for bytes that `dumps_typed` cannot have written."""
        if data[0] == "json":  # written by LangGraph until 2024: load the values, but rebuild no objects
            return json.loads(data[1])
        if data[0] != "msgpack":
            return super().loads_typed(data)
        packing.state.error = None
        try:
            return self._unpack(data[1])
        except ValueError as error:
            cause = packing.state.record(error)
            raise cause from (None if cause is error else cause.__cause__)

    def _unpack(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=self._revive, option=ormsgpack.OPT_NON_STR_KEYS)

    def _revive(self, code: int, data: bytes) -> Any:
        try:
            return self._value(code, data)
        except UnserializableValue as error:
            packing.state.record(error)
            raise
        except Exception as error:
            cause = message_of(error) if "ext_hook" not in str(error) else "it is nested too deeply"
            problem = f"a stored value is not valid in LangGraph's format ({cause})"
            advice = "another program wrote to the database; do not trust its contents"
            packing.state.record(UnserializableValue(problem, advice=advice))
            raise

    def _value(self, code: int, data: bytes) -> Any:
        # this calls the next hook directly: each further stack frame would lower the permitted depth of nesting
        parts = ormsgpack.unpackb(data, ext_hook=self._revive, option=ormsgpack.OPT_NON_STR_KEYS)
        if code == packing.DELTA_SNAPSHOT:
            return _DeltaSnapshot(parts)
        if code == packing.NUMPY:
            return _array(*parts)
        module, name, stored, *more = parts
        if code == packing.PYDANTIC:
            known = _MESSAGES.get((module, name))
            if known is not None and stored.keys() == known[1]:
                return build_messages([(known[0], stored)])[0]
        elif code == packing.METHOD:
            return self._datetime(module, name, stored, more)
        elif code not in _CODES:
            raise ValueError(f"extension {code}")
        build = self._safe.get((module, name))
        try:
            if build is not None:
                return _called(build, code, stored)
        except Exception:  # noqa: BLE001  # the value cannot exist on this machine, such as a Windows path
            return stored
        return self._instance(code, data, (module, name, stored, more))

    def _instance(self, code: int, data: bytes, parts: tuple[Any, ...]) -> Any:
        """An instance of a class that LangGraph does not know, or its stored fields."""
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
        except Exception:  # noqa: BLE001  # the user's class may raise anything
            return plain

    def _class(self, module: str, name: str, shape: int | None) -> type | None:
        """The class of a stored instance; ``None`` if it cannot be found or may not be loaded."""
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
            f"the type {module}.{name} may not be loaded from storage",
            advice=f"allow it with Sessions(..., allowed_types=[{name}]), "
            "or keep plain values and messages in the state",
        )

    def _datetime(self, module: str, name: str, text: Any, more: list[Any]) -> Any:
        """Only ``datetime.fromisoformat`` is called: LangGraph stores no other method for its own types."""
        if (module, name, *more) != ("datetime", "datetime", "fromisoformat"):
            if self.only_allowed:
                raise self._not_allowed(module, name)
            return text
        return datetime.fromisoformat(text)

    def _unpack_plain(self, data: bytes) -> Any:
        """Load nested models and dataclasses as dicts, which a class that has changed can validate."""
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
    """The classes that LangGraph considers safe, and pydantic's secrets, imported once before any value is loaded."""
    found: dict[TypeName, Any] = {}
    for module, name in SAFE_MSGPACK_TYPES:
        try:
            home = module.removesuffix("._local")  # of `pathlib`, as Python 3.13 names its classes
            found[module, name] = getattr(importlib.import_module(home), name)
        except (ImportError, AttributeError):  # it belongs to another version of Python or LangGraph
            continue
    found["langgraph.types", "Send"] = _send
    return found | {(cls.__module__, cls.__name__): cls for cls in (SecretStr, SecretBytes, tuple)}


def own_within(serde: Any, own: StrictSerializer) -> Any:
    """Replace the default serializer within an `EncryptedSerializer` by `own`; return any other serializer unchanged.

    `EncryptedSerializer` also loads values that are not encrypted, so a forged one would reach the inner serializer.
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


def message_of(error: Exception) -> str:
    return str(error) or type(error).__name__


# Rebuilding instances


def _called(build: Callable[..., Any], code: int, stored: Any) -> Any:
    if code == packing.SINGLE_ARGUMENT:
        return build(stored)
    if code == packing.ARGUMENTS:
        return build(*stored)
    try:
        return build(**stored)
    except ValidationError:  # as LangGraph does, so that a stricter release of the class still loads old values
        return build.model_construct(**stored)  # type: ignore[attr-defined]


def _member(cls: Any, value: Any, more: list[Any]) -> Any:
    """The enum member with the stored name, or else the one with the stored value, if it was renamed."""
    found = cls._member_map_.get(more[0]) if more else None
    if found is not None:
        return found
    found = next((member for member in cls._member_map_.values() if member._value_ == value), None)
    if found is None and issubclass(cls, Flag) and isinstance(value, int):
        found = Flag._missing_.__func__(cls, value)  # type: ignore[attr-defined]
    return value if found is None else found


def _same_model(cls: type[BaseModel], stored: Any, was_set: list[str] | None, private: dict[str, Any] | None) -> Any:
    """Rebuild a model whose class has not changed, from its fields."""
    if issubclass(cls, RootModel):
        stored = {"root": stored}
    names = cls.__pydantic_fields__
    values, extra = stored, None
    if cls.model_config.get("extra") == "allow":
        values = {name: value for name, value in stored.items() if name in names}
        extra = {name: value for name, value in stored.items() if name not in names}
    elif not stored.keys() <= names.keys():
        raise ValueError("the stored value has more fields than its class")
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
    if cls.__pydantic_custom_init__:  # such as SQLModel's, which sets more than the fields
        with suppress(Exception):  # the user's class may raise anything
            return cls(**stored)
    model = object.__new__(cls)
    object.__setattr__(model, "__pydantic_private__", None)
    return model


def _model(cls: type[BaseModel], stored: Any, plain: Any) -> Any:
    """Rebuild a model whose class has changed, or that LangGraph stored."""
    if not imports(cls):
        with suppress(Exception):  # a stricter class rejects the stored fields
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
    """Rebuild a dataclass. If its class has not changed, the stored fields replace those that ``__init__`` set."""
    takes = {field.name: field.init for field in fields(cls)}
    is_same = is_same and stored.keys() <= takes.keys()
    try:
        if imports(cls):
            raise TypeError("validating it would import modules")
        instance = cls(**{name: value for name, value in stored.items() if takes.get(name, True)})
    except Exception:
        if not is_same:
            raise
        instance = object.__new__(cls)
    for name, value in stored.items():
        if is_same or not takes[name]:
            object.__setattr__(instance, name, value)
    return instance


def _tuple(cls: Any, stored: dict[str, Any]) -> Any:
    values = {**cls._field_defaults, **stored}
    if values.keys() != set(cls._fields):
        return stored
    return tuple.__new__(cls, [values[name] for name in cls._fields])


def build_messages(parts: Iterable[tuple[type[BaseMessage], dict[str, Any]]]) -> list[BaseMessage]:
    """Messages of `packing.MESSAGES`, from their classes and fields, as after their validation."""
    found = []
    for cls, values in parts:
        message = cls.__new__(cls)
        _set_fields(message, values)
        _set_names(message, packing.MESSAGES[cls].copy())
        _set_extra(message, {})
        _set_private(message, None)
        found.append(message)
    return found


# The slots of a model. Their descriptors take half the time of `object.__setattr__`.
_set_fields, _set_names, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def unpack_messages(packed: bytes, length: int, upto: int) -> list[BaseMessage]:
    """The first messages of an encoded list of plain ones, each a new object; see `checkpoint_diff.fingerprints`."""
    parts = ormsgpack.unpackb(packing.array_header(2 * length) + packed, option=ormsgpack.OPT_NON_STR_KEYS)
    first = islice(parts, 2 * upto)
    return build_messages(zip(map(_CLASSES.__getitem__, first), first, strict=True))


_CLASSES = {id(cls): cls for cls in packing.MESSAGES}


def _send(node: str, arg: Any, timeout: Any = None) -> Any:
    return Send(node, arg) if timeout is None else Send(node, arg, timeout=timeout)


def _array(dtype: Any, shape: Any, order: Any, buffer: bytes) -> Any:
    import numpy

    array = numpy.frombuffer(buffer, dtype=numpy.dtype(_dtype(dtype))).reshape(shape, order=order)
    return array[()] if order == packing.SCALAR else array


def _dtype(stored: Any) -> Any:
    """A structured type is stored as a list of its fields: name, type and, for some, shape."""
    if not isinstance(stored, list):
        return stored
    return [(name, _dtype(kind), *map(tuple, shape)) for name, kind, *shape in stored]
