"""What every test may ask for: a clock that is set by hand, storage of each engine, sessions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from session_middleware.settings import load_settings
from session_middleware.storage.protocol import Storage
from session_middleware.storage.sql.engine import SqliteStorage


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_id() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


@pytest.fixture(params=["file", "memory"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place for each engine."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "sessions.db")


@pytest.fixture
def make_storage(clock: Clock, new_id: Callable[[], str], storage_url: str) -> Iterator[Callable[..., Storage]]:
    """Storage of each engine, with settings of the test's choice."""
    opened: list[Storage] = []

    def make(**settings: object) -> Storage:
        storage = SqliteStorage(storage_url, load_settings(**settings), clock=clock, new_id=new_id)
        opened.append(storage)
        return storage

    yield make
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(make_storage: Callable[..., Storage]) -> Storage:
    return make_storage()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a .env file of whoever runs the tests reaches them."""
    import os

    for name in list(os.environ):
        if name.startswith("SESSION_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
