"""The engine and the port have the same methods, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from session_middleware.storage.protocol import Storage
from session_middleware.storage.sqlite.engine import SqliteStorage

METHODS = {name for name, member in vars(Storage).items() if inspect.isfunction(member) and name[0] != "_"}


def test_the_engine_has_no_public_method_that_is_not_in_the_port() -> None:
    assert {name for name in dir(SqliteStorage) if name[0] != "_"} == METHODS


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_of_the_engine_has_the_parameters_of_the_port(name: str) -> None:
    ours, theirs = inspect.signature(getattr(SqliteStorage, name)), inspect.signature(getattr(Storage, name))
    assert [(each.name, each.kind, each.default) for each in list(ours.parameters.values())[1:]] == [
        (each.name, each.kind, each.default) for each in list(theirs.parameters.values())[1:]
    ]
