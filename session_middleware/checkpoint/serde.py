"""How values become bytes: LangGraph's msgpack, strict in both directions.

What is written is exactly what LangGraph's `JsonPlusSerializer` writes. What is read is built only
from types that LangGraph holds safe and those the user has allowed, whatever the environment says;
any other type is an error that says how to allow it, and is found when the value is put, not when
it is needed. A chat's own messages are rebuilt from their fields without validating them again:
they were valid when they were stored, and that is most of what reading a long thread costs.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

import ormsgpack
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import ValidationError

from session_middleware.errors import UnserializableValue

TypeName = tuple[str, ...]

# The extension codes of LangGraph's msgpack format.
_SINGLE_ARGUMENT, _ARGUMENTS, _KEYWORDS, _METHOD, _PYDANTIC_V1, _PYDANTIC, _NUMPY, _DELTA_SNAPSHOT = range(8)

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
MESSAGES: dict[TypeName, tuple[type[BaseMessage], set[str]]] = {  # the class, and the names of all of its fields
    (cls.__module__, cls.__name__): (cls, set(cls.model_fields))
    for cls in (HumanMessage, AIMessage, ToolMessage, SystemMessage)
}


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer without pickle, and with an allow-list that is enforced both ways.

    `allowed`: classes, or (module, name) pairs, beside those LangGraph holds safe.
    """

    def __init__(self, allowed: Iterable[type | TypeName] = ()) -> None:
        super().__init__(pickle_fallback=False, allowed_msgpack_modules=None)
        self.allowed = frozenset(_name(item) for item in allowed)
        self._classes: dict[TypeName, Callable[..., Any]] = {}
        self._refused = threading.local()  # ormsgpack drops what its hook raises; `.error` keeps it

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[TypeName | type]) -> StrictSerializer:
        extra = {_name(item) for item in extra_allowlist} - SAFE_MSGPACK_TYPES
        return self if extra <= self.allowed else StrictSerializer(self.allowed | extra)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialise, and make sure that it can be read back.

        Raises:
            UnserializableValue: naming the type.
        """
        try:
            typed = super().dumps_typed(obj)
        except (ormsgpack.MsgpackEncodeError, TypeError, ValueError, RecursionError) as error:
            raise UnserializableValue(
                f"{_describe(type(obj))} cannot be stored ({error})",
                advice="keep it out of the graph's state, or store a form of it, such as a text or a dict",
            ) from error
        if type(obj) not in _PLAIN:
            self.loads_typed(typed)
        return typed

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Deserialise. Raises `UnserializableValue` for a type that is not allowed, or cannot be made again."""
        if data[0] != "msgpack":
            return super().loads_typed(data)
        try:
            return self._unpack(data[1])
        except ValueError:
            refused = getattr(self._refused, "error", None)
            if refused is None:
                raise
            self._refused.error = None
            raise refused from refused.__cause__

    def _unpack(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=self._revive, option=ormsgpack.OPT_NON_STR_KEYS)

    def _revive(self, code: int, data: bytes) -> Any:
        try:
            if code != _PYDANTIC:
                return self._build(code, data)
            module, name, fields, _ = self._unpack(data)
            known = MESSAGES.get((module, name))
            if known is not None and fields.keys() == known[1]:
                return message(known[0], fields, known[1].copy())
            return _model(self._class(module, name), fields)
        except UnserializableValue as error:
            self._refused.error = error
            raise

    def _build(self, code: int, data: bytes) -> Any:
        if code == _DELTA_SNAPSHOT:
            return _DeltaSnapshot(self._unpack(data))
        parts = self._unpack(data)
        if code == _NUMPY:
            return _array(*parts)
        build = self._class(parts[0], parts[1])
        if code == _METHOD:
            return self._call(build, parts)
        try:
            if code == _SINGLE_ARGUMENT:
                return build(parts[2])
            return build(*parts[2]) if code == _ARGUMENTS else build(**parts[2])
        except Exception as error:  # the class is the user's: it may raise anything
            raise _unreadable(parts, error) from error

    def _class(self, module: str, name: str) -> Callable[..., Any]:
        """The class of a stored value, looked up and allowed once."""
        key = (module, name)
        found = self._classes.get(key)
        if found is None:
            if key == ("langgraph.types", "Send"):
                found = _send
            elif key in SAFE_MSGPACK_TYPES or key in self.allowed:
                try:
                    found = getattr(importlib.import_module(module), name)
                except (ImportError, AttributeError) as error:
                    raise _unreadable(key, error) from error
            else:
                raise UnserializableValue(
                    f"the type {module}.{name} is not one that may be read back from storage",
                    advice=f"allow it with Sessions(..., allowed_types=[{name}]), "
                    "or keep plain values and messages in the state",
                )
            self._classes[key] = found
        return found

    @staticmethod
    def _call(build: Any, parts: Any) -> Any:
        """The one method LangGraph stores the name of; any other is a forgery."""
        if tuple(parts[i] for i in (0, 1, 3)) != ("datetime", "datetime", "fromisoformat"):
            raise UnserializableValue(
                f"a stored value asks for the method {parts[0]}.{parts[1]}.{parts[3]}",
                advice="the database was written by something else; do not trust it",
            )
        return build.fromisoformat(parts[2])


def _name(item: type | TypeName) -> TypeName:
    return (item.__module__, item.__name__) if isinstance(item, type) else tuple(item)


def _describe(cls: type) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _unreadable(parts: Any, error: Exception) -> UnserializableValue:
    return UnserializableValue(
        f"a stored {parts[0]}.{parts[1]} cannot be made again ({error})",
        advice="keep the class where it was and able to take what it was stored with",
    )


def _model(cls: Any, fields: dict[str, Any]) -> Any:
    try:
        return cls(**fields)
    except ValidationError:  # as LangGraph does: what was stored once is not lost to a stricter model
        return cls.model_construct(**fields)


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
    from langgraph.types import Send

    return Send(node, arg) if timeout is None else Send(node, arg, timeout=timeout)


def _array(dtype: str, shape: Any, order: Any, buffer: bytes) -> Any:
    import numpy

    return numpy.frombuffer(buffer, dtype=numpy.dtype(dtype)).reshape(shape, order=order)
