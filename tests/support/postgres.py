"""A PostgreSQL server for the tests, in a temporary folder, with an empty database for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

_OPTIONS = "-c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200 -c shared_buffers=32MB"
_TEMPLATE = "migrated"
_CLOSE_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_TABLES = """
    SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
        WHERE schemaname = 'session_middleware' AND tablename <> 'migrations'
"""
_SEQUENCES = "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences"


def binaries() -> Path | None:
    """The folder of the server's programs."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


class Server:
    """A running server. As root it runs as the user `postgres`, because it refuses to run as root."""

    def __init__(self, folder: Path, options: str = "", replica_of: str | None = None) -> None:
        found = binaries()
        assert found is not None
        self._bin, self.folder, self._options = found, folder, options
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if replica_of is None:
            self._run("initdb", "--pgdata=data", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
        else:
            copy = ("--pgdata=data", "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
            self._run("pg_basebackup", f"--dbname={replica_of}", *copy)
        self.start()
        self._numbers = itertools.count()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            user=self.user,
            extra_groups=[] if self.user else None,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} {_OPTIONS} {self._options}"
        self._run("pg_ctl", "--pgdata=data", "--log=log", "--wait", f"--options={options}", "start")

    def stop(self, mode: str = "immediate") -> None:
        if reused := vars(self).pop("_reused", None):
            reused[0].close()
        self._run("pg_ctl", "--pgdata=data", f"--mode={mode}", "--wait", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql)  # type: ignore[call-overload]

    def emptied(self, *, close_others: bool = True) -> str:
        """The URL of a migrated database without rows: the same one each time, which is faster than a new one."""
        connection, empty = self._reused
        others = _CLOSE_OTHERS if close_others else ""
        try:
            connection.execute(others)
        except psycopg.OperationalError:  # a test has ended this connection too
            connection = self._connect_to_reused()
            self._reused = connection, empty
            connection.execute(others)
        connection.execute(empty)
        return self.url("reused")

    @cached_property
    def _reused(self) -> tuple[psycopg.Connection[tuple[str]], LiteralString]:
        """A connection to the reused database, and the statements that empty it. A new backend takes 20 ms."""
        self.execute(f"CREATE DATABASE reused TEMPLATE {_TEMPLATE}")
        own = self._connect_to_reused()
        statements = [f"DELETE FROM {table}" for (table,) in own.execute(_TABLES)]
        statements += [f"SELECT setval('{sequence}', 1, false)" for (sequence,) in own.execute(_SEQUENCES)]
        return own, ";".join(statements)

    def _connect_to_reused(self) -> psycopg.Connection[tuple[str]]:
        return psycopg.connect(self.url("reused"), autocommit=True, options="-c session_replication_role=replica")

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a new database, which exists during the block."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template0'}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def start(folder: Path, options: str = "") -> Server:
    if binaries() is None and not os.environ.get("CI"):  # there these tests must run
        pytest.skip("PostgreSQL's server is not installed: install the package postgresql")
    server = Server(folder, options)
    server.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
    from session_middleware import Sessions

    Sessions(server.url(_TEMPLATE), sweep_interval=None).close()
    return server


def end_connections(url: str) -> None:
    """End all other connections to a database, on the server's side."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
