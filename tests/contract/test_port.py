"""The engine and the port have the same methods, with the same parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from session_middleware.storage.protocol import Storage
from session_middleware.storage.sqlite.engine import SqliteStorage

METHODS = {name for name, member in vars(Storage).items() if inspect.isfunction(member) and name[0] != "_"}


def test_the_engine_has_no_public_method_that_is_not_in_the_port() -> None:
    assert {name for name in dir(SqliteStorage) if name[0] != "_"} == METHODS


def parameters(method: Callable[..., object]) -> list[tuple[object, ...]]:
    """Those of a method; an engine makes some from functions of a connection and of what the engine has."""
    found = [*inspect.signature(method).parameters.values()][1:]
    return [(each.name, each.kind, each.default) for each in found if each.name != "rules"]


def test_a_method_of_the_engine_has_the_parameters_of_the_port() -> None:
    for name in METHODS:
        assert parameters(getattr(SqliteStorage, name)) == parameters(getattr(Storage, name)), name
