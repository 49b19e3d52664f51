"""The classes whose instances may be loaded: pydantic models, dataclasses, enums and named tuples.

A class is looked up by its module and qualified name among the modules that are already imported. The
lookup reads the dictionaries of modules and classes directly, so a stored name cannot import a module,
or run a ``__getattr__``, a property or a lazy module's code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from functools import lru_cache
from types import ModuleType, UnionType
from typing import Any, ForwardRef, Literal, Union, cast, get_args, get_origin, get_type_hints
from zlib import crc32

from pydantic import BaseModel

TypeName = tuple[str, ...]  # a module and a qualified name
Kind = Literal["model", "model of pydantic v1", "dataclass", "enum", "named tuple"]

_names_of_module = vars(ModuleType)["__dict__"].__get__
# The descriptors of `type` itself, which a metaclass cannot override.
_names_of_class, _name_of_class, _bases_of = (vars(type)[name].__get__ for name in ("__dict__", "__name__", "__mro__"))
_CLASSES = 4096  # cached


def kind_found(cls: type) -> Kind | None:
    """The kind of data class; ``None`` for any other class. Runs no code of the class or its metaclass."""
    bases = _bases_of(cls)
    is_tuple = False
    v1 = sys.modules.get("pydantic.v1.main")
    for base in bases:
        if base is Enum:
            return "enum"
        if base is BaseModel:
            return "model"
        if v1 is not None and base is v1.BaseModel:
            return "model of pydantic v1"
        is_tuple = is_tuple or base is tuple
    names = [_names_of_class(base) for base in bases]
    if is_tuple and any(type(each.get("_fields")) is tuple for each in names):
        return "named tuple"
    return "dataclass" if any("__dataclass_fields__" in each for each in names) else None


kind_of: Callable[[type], Kind | None] = lru_cache(_CLASSES)(
    kind_found
)  # only for a value's own class: hashing may run its metaclass's code


def name_of(cls: type) -> str:
    """The name by which `find` finds a class: its qualified name, with the parameters of a generic."""
    generic: type | None = getattr(cls, "__pydantic_generic_metadata__", {}).get("origin")
    if generic is None:
        return cls.__qualname__
    return generic.__qualname__ + cls.__name__.removeprefix(generic.__name__)


def find(module: str, name: str, shape: int | None = None) -> type | None:
    """The class with a name in an imported module; an unused parametrisation gives its generic class."""
    holder = sys.modules.get(module)
    if not issubclass(type(holder), ModuleType):
        return None
    names, (outer, bracket, parameters), found = _names_of_module(holder), name.partition("["), None
    for part in outer.split("."):
        found = names.get(part)
        if not issubclass(type(found), type):
            return None
        names = _names_of_class(found)
    if not bracket or found is None:
        return found
    wanted = f"{_name_of_class(found)}[{parameters}"
    made = [cls for cls in type.__subclasses__(found) if _name_of_class(cls) == wanted]
    return next((cls for cls in made if shape is None or shape_of(cls) == shape), found)


def _shape_of(cls: type) -> int:
    """A checksum of the fields' names and types. A value stored with another shape needs validation."""
    kind = kind_of(cls)
    if kind == "model":
        model: type[BaseModel] = cls
        if not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)
        types: list[tuple[str, Any]] = [(name, field.annotation) for name, field in model.model_fields.items()]
    elif kind == "model of pydantic v1":
        types = [(name, field.outer_type_) for name, field in cls.__fields__.items()]  # type: ignore[attr-defined]
    else:
        types = [(field.name, field.type) for field in fields(cls)]
    text = "\n".join(sorted(f"{name}: {_text_of(type_)}" for name, type_ in types))
    return crc32(re.sub(r" at 0x[0-9a-f]+|(?<=pathlib)\._local", "", text).encode())


def _text_of(annotation: Any) -> str:
    """An annotation as each release of Python writes it. Their ``repr`` differ, for example of unions."""
    if isinstance(annotation, list):  # the arguments of a callable
        return f"[{', '.join(map(_text_of, annotation))}]"
    if isinstance(annotation, ForwardRef):
        return repr(annotation.__forward_arg__)
    origin = get_origin(annotation)
    if origin is None:
        return repr(annotation)
    origin = Union if origin is UnionType else origin
    name = getattr(origin, "__qualname__", origin)  # an alias has none
    return f"{origin.__module__}.{name}{_text_of([*get_args(annotation)])}"


shape_of: Callable[[type], int] = lru_cache(_CLASSES)(_shape_of)


@lru_cache(_CLASSES)
def imports(cls: Hashable) -> bool:
    """Whether validating a value imports a module that it names, as pydantic's `ImportString` does."""
    schema = getattr(cls, "__pydantic_core_schema__", None) or getattr(cls, "__fields__", "")
    return any(name in str(schema) for name in ("import_string", "PyObject"))


# The classes in annotations


def named_in(annotations: Iterable[Any]) -> set[type]:
    """The data classes in annotations, including those in their fields' annotations."""
    found: set[type] = set()
    seen: set[int] = set()
    rest = list(annotations)
    while rest:
        annotation = rest.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        if isinstance(annotation, Enum):  # within a Literal
            annotation = type(annotation)
        if isinstance(annotation, type) and kind_of(annotation) is not None:
            found.add(annotation)
        rest += _within(annotation)
    return found


def _within(annotation: Any) -> Iterator[Any]:
    yield from (get_origin(annotation), *get_args(annotation))
    for name in ("__supertype__", "__value__", "__bound__"):  # of a NewType, an alias, a type variable
        yield getattr(annotation, name, None)
    yield from getattr(annotation, "__constraints__", ())
    if isinstance(annotation, type) and annotation.__module__ != "builtins":
        yield from getattr(annotation, "__pydantic_generic_metadata__", {}).get("args", ())
        yield from _hints(annotation)


@lru_cache(_CLASSES)
def _resolved_hints(cls: type) -> Iterable[Any]:
    return tuple(get_type_hints(cls, include_extras=True).values())


def _hints(cls: type) -> Iterable[Any]:
    """The types of a class's fields, without those that cannot be resolved."""
    try:
        return _resolved_hints(cls)
    except Exception:  # noqa: BLE001  # evaluating an annotation may raise anything
        declared: dict[str, Any] = getattr(cls, "model_fields", None) or _declared(cls)
        return [getattr(one, "annotation", one) for one in declared.values()]


def _declared(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):  # annotations are evaluated when they are asked for
        from annotationlib import Format

        with suppress(Exception):
            return get_type_hints(cls, include_extras=True, format=Format.FORWARDREF)
    return cast("dict[str, Any]", vars(cls).get("__annotations__", {}))
