"""Servers on real sockets, which clients that we did not write talk to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import Process

SERVER = Path(__file__).parents[2] / "support" / "http_server.py"


@contextmanager
def serving(url: object) -> Iterator[str]:
    """The address of a process that serves the graphs of `tests/support/http_server.py` over a database."""
    with Process(SERVER, url, env={"SESSION_SYNCHRONOUS": "normal"}, stdin=True) as process:
        assert process.stdin is not None
        address = process.stdout.readline().strip()  # when it listens; empty if it has ended
        assert address, process.stderr.read()
        yield address
        process.stdin.close()  # which ends it
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[str]:
    """The address of one server over SQLite for all tests, which name users or threads of their own.

    The caller is the user whom the header ``x-user`` names, an operator with ``x-operator``, in the groups of
    ``x-groups``.
    """
    path = tmp_path_factory.mktemp("served") / "sessions.db"
    path.write_bytes(migrated_file.read_bytes())
    with serving(path) as address:
        yield address


@pytest.fixture
def served_twice(postgres_url: str) -> Iterator[tuple[str, str]]:
    """The addresses of two processes that serve one database of PostgreSQL."""
    with serving(postgres_url) as one, serving(postgres_url) as other:
        yield one, other
