"""Reading a database file that may be damaged, or that another process is using.

Nothing is written, not even beside the file where that can be avoided. What would stop an ordinary
opening does not stop this one: a damaged entry in the schema, a file that was cut, text that is not
UTF-8.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from session_middleware.errors import StorageError
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.log import BUSY_SECONDS


class Source:
    """A file, opened for reading only. One thread uses it at a time."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise StorageError(path, "there is no such file", advice="name the file of a database")
        self.path = path
        self.log_left_out = False  # its write-ahead log could not be read with it
        self.schema_problem = ""
        self._open()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """The database as it is at one moment."""
        if self._is_alone and self._has_log():
            self.renew()
        self._connection.execute("BEGIN")
        try:
            yield self._connection
        finally:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def renew(self) -> None:
        """Open the file anew: somebody may have begun to write to it."""
        self._connection.close()
        self._open()

    def tables(self) -> frozenset[str]:
        """Those that the schema names, as far as it can be read: SQLite itself comes no further."""
        found: set[str] = set()
        with self.snapshot() as connection, suppress(sqlite3.DatabaseError):
            found.update(name for (name,) in connection.execute("SELECT name FROM sqlite_master"))
        return frozenset(found)

    def columns(self, table: str) -> Sequence[str]:
        with self.snapshot() as connection:
            return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

    def _has_log(self) -> bool:
        return Path(beside(self.path, "-wal")).exists()

    def _open(self) -> None:
        """Without a log nobody has it open, and it can be read without making a log."""
        self._is_alone = not self._has_log()
        try:
            self._connection = self._connect("immutable=1" if self._is_alone else "mode=ro")
        except sqlite3.OperationalError:  # the folder may not be written to, and the log needs an index there
            self.log_left_out = Path(beside(self.path, "-wal")).stat().st_size > 0
            self._connection = self._connect("immutable=1")

    def _connect(self, how: str) -> sqlite3.Connection:
        uri = f"{Path(self.path).absolute().as_uri()}?{how}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        connection.text_factory = _decoded
        try:
            self.schema_problem = _problem_of_schema(connection)
            connection.execute("PRAGMA writable_schema=ON")  # goes past what cannot be read of the schema
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            raise
        except sqlite3.Error as error:
            connection.close()
            raise StorageError(
                self.path, f"SQLite cannot read any of it ({error})", advice="restore a backup"
            ) from error
        return connection


class _Connection(sqlite3.Connection):
    def execute(self, *args: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*args)
        except UnicodeDecodeError as error:  # what SQLite says of a damaged schema quotes it
            raise sqlite3.DatabaseError("malformed database schema: a name in it is not valid UTF-8") from error


def _problem_of_schema(connection: sqlite3.Connection) -> str:
    """Why the file cannot be opened as usual, if that is so."""
    try:
        connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.Error as error:
        return f"it cannot be opened as usual ({error})"
    return ""


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def is_text(row: Sequence[Any]) -> bool:
    """Whether all the text of a row is valid UTF-8."""
    return not any(isinstance(value, str) and not value.isascii() and _is_broken(value) for value in row)


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
