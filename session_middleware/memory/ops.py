"""LangGraph's store operations: their validation, and their values as JSON and as text for a search. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import orjson
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchOp,
    get_text_at_path,
    tokenize_path,
)

from session_middleware.errors import InvalidMemoryArgument, UnserializableValue
from session_middleware.memory.scopes import OWNED, RESERVED, Namespace, Owners, check_namespace, is_visible
from session_middleware.settings import is_minutes
from session_middleware.storage import validation
from session_middleware.storage.jsonable import is_text
from session_middleware.storage.memory_types import MemoryPut, joined


def check_ops(ops: Iterable[Op]) -> None:
    """Validate operations before any of them is executed.

    Raises:
        InvalidNamespaceError: as in LangGraph, but see `check_labels`.
        UnserializableValue: a key that is not UTF-8.
        InvalidMemoryArgument: an unknown operation, or another invalid argument.
    """
    checked: set[Namespace] = set()  # most batches have few namespaces
    for op in ops:
        if isinstance(op, (PutOp, GetOp)):
            if not isinstance(op.namespace, tuple) or op.namespace not in checked:
                check_labels(op.namespace)
                checked.add(tuple(op.namespace))
            if not (isinstance(op.key, str) and op.key.isascii()):
                check_key(op.key)
            if isinstance(op, PutOp):
                _check_put(op)
        else:
            _check_read(op)


def _check_put(op: PutOp) -> None:
    if not op.namespace:
        raise InvalidNamespaceError("the namespace of an item is empty; give it a label")
    if op.index is not None and op.index is not False:
        validation.check_texts("index", op.index, "paths, or False")
    if op.ttl is not None and not is_minutes(op.ttl):
        raise InvalidMemoryArgument("ttl", op.ttl, wanted="minutes, more than 0 and at most 100 years")


def _check_read(op: Op) -> None:
    if isinstance(op, (SearchOp, ListNamespacesOp)):
        validation.check_count("limit", op.limit)
        validation.check_count("offset", op.offset)
    if isinstance(op, SearchOp):
        check_labels(op.namespace_prefix)
        validation.check_given("filter", op.filter, Mapping | None, "a dict")
        validation.check_given("query", op.query, str | None, "text")
    elif isinstance(op, ListNamespacesOp):
        validation.check_count("max_depth", op.max_depth or 0)
        for condition in op.match_conditions or ():
            check_labels(condition.path, ids_anywhere=condition.match_type == "suffix")
    else:
        raise InvalidMemoryArgument("an operation", op, wanted="LangGraph's GetOp, PutOp, SearchOp or ListNamespacesOp")


def check_labels(namespace: Namespace, *, ids_anywhere: bool = False) -> None:
    """LangGraph's rules for the labels of a namespace, with one exception.

    LangGraph forbids periods because some stores join labels with them. This store does not, and the id of an owned
    namespace may be an e-mail address. A period is therefore allowed there, and anywhere in a suffix, which does not
    show whether it belongs to an owned namespace.
    """
    if not isinstance(namespace, (tuple, list)):
        raise InvalidNamespaceError(f"{namespace!r} is not a namespace; use a tuple of labels: ({namespace!r},)")
    for position, label in enumerate(namespace):
        is_id = ids_anywhere or (position == 1 and namespace[0] in (*OWNED, RESERVED))
        problem = _problem(label, is_id=is_id)
        if problem:
            raise InvalidNamespaceError(f"label {label!r} of namespace {namespace!r} {problem}")


def _problem(label: object, *, is_id: bool) -> str | None:
    if not isinstance(label, str):
        return f"is a {type(label).__name__}; use text"
    if not label:
        return "is empty; leave it out or give it a name"
    if "." in label and not is_id:
        return "contains a period; use another sign, or a label for each part"
    if "\0" in label:
        return "contains a NUL character; leave it out"
    if not is_text(label):  # two halves would be stored as one character, which may be another's id
        return "contains half of a surrogate pair; use text that can be written as UTF-8"
    return None


def check_root(namespace: Namespace) -> None:
    """LangGraph's further rule for the namespace of a put."""
    if isinstance(namespace, (tuple, list)) and tuple(namespace[:1]) == ("langgraph",):
        raise InvalidNamespaceError(f"namespace {namespace!r} is LangGraph's own; begin with another label")


def check_access(op: Op, owners: Owners) -> None:
    """Raises `MemoryAccessDenied` for a namespace of others. A listing leaves these namespaces out instead."""
    if isinstance(op, GetOp | PutOp):
        check_namespace(tuple(op.namespace), owners)
    elif isinstance(op, SearchOp):
        check_namespace(tuple(op.namespace_prefix), owners)


def puts_of(ops: Iterable[Op], owners: Owners | None, *, embed: bool) -> list[MemoryPut]:
    """The puts of a batch; of the same key, the last. Raises `UnserializableValue`."""
    latest = {(tuple(op.namespace), op.key): op for op in ops if isinstance(op, PutOp)}
    deletions = [MemoryPut(space, [(key, None, None)]) for (space, key), op in latest.items() if op.value is None]
    stored = [op for op in latest.values() if op.value is not None]
    return [*deletions, *(_put(list(group), owners, embed) for _, group in groupby(stored, _OPTIONS))]


_OPTIONS = itemgetter(*map(PutOp._fields.index, ("namespace", "index", "ttl")))


def _put(ops: Sequence[PutOp], owners: Owners | None, embed: bool) -> MemoryPut:
    namespace, index, ttl = tuple(ops[0].namespace), ops[0].index, ops[0].ttl
    return MemoryPut(
        namespace,
        [(op.key, encoded(namespace, op.key, op.value), words_of(op.value or {}, index)) for op in ops],
        _session_of(namespace, owners),
        paths=index or None,
        embed=embed and index is not False and (index is None or len(index) > 0),
        ttl=None if ttl is None else timedelta(minutes=ttl),
    )


def _session_of(namespace: Namespace, owners: Owners | None) -> str | None:
    if owners is not None and owners.session is not None:
        return owners.session
    return namespace[1] if namespace[0] in ("session", RESERVED) and len(namespace) > 1 else None


def select_namespaces(namespaces: Iterable[Namespace], op: ListNamespacesOp, owners: Owners | None) -> list[Namespace]:
    """The page of a listing, sorted, each namespace once."""
    matching = [
        namespace
        for namespace in visible(namespaces, owners)
        if all(_matches(condition, namespace) for condition in op.match_conditions or ())
    ]
    found = sorted({namespace[: op.max_depth] for namespace in matching})
    return found[op.offset : op.offset + op.limit]


def visible(namespaces: Iterable[Namespace], owners: Owners | None) -> Sequence[Namespace]:
    """The namespaces that these owners may use; an operator, ``None``, may use all."""
    return [namespace for namespace in namespaces if owners is None or is_visible(namespace, owners)]


def _matches(condition: MatchCondition, namespace: Namespace) -> bool:
    path = condition.path
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


# Values

Index: TypeAlias = Literal[False] | Sequence[str] | None  # LangGraph's: nothing, these paths, everything


def check_key(key: object) -> None:
    validation.check_given("key", key, str, "text")
    if not is_text(str(key)):
        raise UnserializableValue(
            f"the memory key {key!r} contains half of a surrogate pair", advice="use text that can be written as UTF-8"
        )


def encoded(namespace: tuple[str, ...], key: str, value: Any) -> str:
    """The value as JSON, in which tuples are lists and all keys are text; a UUID is its text, as in LangGraph's stores.

    Raises:
        UnserializableValue: it is not a mapping, or not JSON.
    """
    if type(value) is dict:
        try:
            quick = orjson.dumps(value, option=_STRICT)
        except TypeError:  # not JSON, or JSON that only `json` writes
            quick = b"null"
        if b"null" not in quick:  # orjson writes NaN as null
            return quick.decode()
    if not isinstance(value, Mapping):
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} is a {type(value).__name__}, not a dict",
            advice='put it in one, such as {"text": …}',
        )
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:  # a foreign type, a cycle, too deep
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} cannot be stored as JSON ({error})",
            advice="convert it to text, numbers, lists and dicts first, for example with model_dump(mode='json')",
        ) from error


_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def words_of(value: Mapping[str, Any], index: Index) -> str | None:
    """The texts at the paths of `index`, for word search; ``None``: all texts in the value."""
    if index is False:
        return ""
    if index is None or "$" in index:  # "$" too: its JSON would add field names
        return None
    return joined(texts_at(value, index))


def texts_at(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """The texts at LangGraph's paths; ``"$"`` is the whole value as JSON."""
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]
