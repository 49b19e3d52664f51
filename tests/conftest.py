"""Fixtures of every test: a clock that is set by hand, storage of each engine, and sessions in a migrated file."""

from __future__ import annotations

import gc
import inspect
import itertools
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from session_middleware import Sessions
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.settings import load_settings
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.factory import open_storage
from session_middleware.storage.protocol import Storage
from tests.support.pairwise import ENGINES
from tests.support.pgbouncer import pooled
from tests.support.postgres import Server, start
from tests.support.processes import share_nursery
from tests.support.queries import counters, rows

hypothesis_settings.register_profile("any machine", deadline=None)  # no test asserts a time
hypothesis_settings.load_profile("any machine")

OpenSessions = Callable[..., Sessions]


# Bytecode is always cached, also by the workers and other processes, or each of them would compile all modules again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for name in list(os.environ):
    if name.startswith(("LANGSMITH", "LANGCHAIN")):  # no test is traced
        del os.environ[name]
gc.disable()  # until the tests are collected, which takes a third longer if the collector looks at all that they import


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Let all workers fork their processes from one."""
    if config.getoption("numprocesses", None):
        share_nursery()


class Clock:
    """Stands still until a test advances it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the files with slow tests first, then the long files, so that no worker has a long file alone at the end.

    With ``--postgres``: only the tests of one engine that name no file.
    """
    if config.getoption("postgres"):
        items[:] = [item for item in items if isinstance(item, pytest.Function) and _is_of_any_engine(item)]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_id() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", action="store_true", help="run tests that name no engine over PostgreSQL")
    parser.addoption("--pooled", action="store_true", help="reach PostgreSQL through PgBouncer")


def _is_of_any_engine(test: pytest.Function) -> bool:
    marker = test.get_closest_marker("sessions")
    names_one = {"path", "storage_url", "each_engine"} & set(test.fixturenames) or (marker and marker.args)
    names_file = "tmp_path" in inspect.signature(test.function).parameters
    return "open_sessions" in test.fixturenames and not names_one and not names_file


# Files


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database. A copy of it opens in a third of the time that creating one takes."""
    path = tmp_path_factory.mktemp("migrated") / "sessions.db"
    Sessions(path, sweep_interval=None).close()
    return path


@pytest.fixture
def path(tmp_path: Path, migrated_file: Path) -> Path:
    """An empty database of this test's own."""
    return Path(shutil.copy(migrated_file, tmp_path / "sessions.db"))


# Sessions


@pytest.fixture
def open_sessions(request: pytest.FixtureRequest) -> Iterator[OpenSessions]:
    """Open `Sessions` of the test's file with further settings; they are closed at the end, and had no recorder fault.

    The settings of every opening are those of the test's marker ``sessions``, which may name another database first.
    A commit does not wait for the disk: `tests/faults` holds what that promises. The clock is the fixture `clock`
    in tests that use it, and the database is `storage_url` or `each_engine` in tests that use one of these.
    """
    marker = request.node.get_closest_marker("sessions")
    settings: dict[str, Any] = {"synchronous": "normal", **(marker.kwargs if marker else {})}
    if "clock" in request.fixturenames:
        settings["clock"] = request.getfixturevalue("clock")
    if marker and marker.args:
        (where,) = marker.args
    else:
        default = "postgres_url" if request.config.getoption("postgres") else "path"
        named = [name for name in ("storage_url", "each_engine") if name in request.fixturenames] or [default]
        where = request.getfixturevalue(named[0])
        if str(where).startswith("postgresql"):
            settings.setdefault("archive_path", request.getfixturevalue("tmp_path") / "archives")
    opened: list[Sessions] = []

    def open_(place: Any = where, **more: Any) -> Sessions:
        opened.append(Sessions(place, **settings | more))
        return opened[-1]

    yield open_
    for sessions in opened:
        sessions.close()
    if request.node.get_closest_marker("recorder_faults") is None:
        assert [sessions.recorder.faults for sessions in opened] == [0] * len(opened)


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Sessions:
    return open_sessions()


@pytest.fixture
def consistent(sessions: Sessions, path: Path) -> Iterator[None]:
    """At the end of the test a deep check finds nothing, and every counter is the number of its rows."""
    yield
    assert sessions.check(deep=True) == []
    assert counters(path) == rows(path)


# Storage


@pytest.fixture(params=ENGINES)
def each_engine(request: pytest.FixtureRequest) -> str:
    """A fresh database of each engine, for tests of behaviour that has nothing to do with a file."""
    return str(request.getfixturevalue("postgres_url" if request.param == "postgres" else "path"))


@pytest.fixture(params=ENGINES)
def storage_url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each engine; with the parameters `KINDS`, in memory too.

    A database in memory differs from a file only in its connections and transactions, so a few modules that use all
    nouns of the storage run over it.
    """
    if request.param == "memory":
        return ":memory:"
    return str(request.getfixturevalue("postgres_url" if request.param == "postgres" else "path"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:  # a short path, which a socket needs, that another user may enter
        server = start(Path(folder))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def pooler_port(postgres_server: Server) -> Iterator[int]:
    """The port of PgBouncer, in transaction mode, before the server."""
    with tempfile.TemporaryDirectory() as folder, pooled(postgres_server, Path(folder)) as port:
        yield port


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: Server) -> str:
    """An empty database."""
    if not request.config.getoption("pooled"):
        return postgres_server.emptied()
    port = request.getfixturevalue("pooler_port")
    return postgres_server.emptied(close_others=False).replace(str(postgres_server.port), str(port))


@pytest.fixture
def pooled_url(postgres_server: Server, pooler_port: int) -> Iterator[str]:
    """An empty database behind PgBouncer."""
    with postgres_server.database() as url:
        yield url.replace(str(postgres_server.port), str(pooler_port))


@pytest.fixture
def make_storage(clock: Clock, storage_url: str) -> Iterator[Callable[..., Storage]]:
    """Storage of each engine, with settings of the test's choice."""
    opened: list[Storage] = []

    def make(**settings: object) -> Storage:
        storage = open_storage(load_settings(**settings, storage_url=storage_url), clock)
        opened.append(storage)
        return storage

    yield make
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(make_storage: Callable[..., Storage]) -> Storage:
    return make_storage()


@pytest.fixture
def offload(storage: Storage) -> Iterator[StorageExecutor]:
    offload = StorageExecutor(storage.name, storage.run_batch, threads=2)
    yield offload
    offload.close()


@pytest.fixture
def parts(
    storage: Storage, offload: StorageExecutor, clock: Clock, new_id: Callable[[], str]
) -> Iterator[MemoryIndexer]:
    """The collaborators of memory, without an embedding model."""
    parts = MemoryIndexer(storage, offload, clock=clock, new_id=new_id)
    yield parts
    parts.close()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings come neither from the environment of the caller nor from a .env file.

    Commits do not wait for the disk, in other processes neither; those of `tests/faults` do, as the default says.
    """
    for name in list(os.environ):
        if name.startswith("SESSION_"):
            monkeypatch.delenv(name)
    if request.path.parent.name != "faults":
        monkeypatch.setenv("SESSION_SYNCHRONOUS", "normal")
    monkeypatch.chdir(tmp_path)
