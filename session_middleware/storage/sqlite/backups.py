"""Backups of a file: a copy of one snapshot, made beside running writers, and checked; and the way back.

A backup is one file without a log, so it can be copied and read anywhere.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from session_middleware.errors import StorageError
from session_middleware.settings import SessionSettings
from session_middleware.storage.atomic_files import check_own, created, is_database, replacing
from session_middleware.storage.sqlite.connection import SqliteConnection, read_unlocked, storage_error
from session_middleware.storage.sqlite.database import check_file
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.integrity import check_file as problems_of
from session_middleware.storage.types import Progress

logger = logging.getLogger("session_middleware")

_PAGES = 2_000  # copied in one step


def write(connection: SqliteConnection, path: Path, settings: SessionSettings, progress: Progress | None) -> None:
    """Copy the snapshot that a connection reads to a file, which appears when the copy is complete and was checked.

    Raises:
        StorageError: the copy cannot be written or is damaged, or `path` is a file of another kind. An older file at
            `path` is unchanged.
    """
    with _mapped(path):
        check_target(path)
    with replacing(path) as temporary:
        _copy(connection, temporary, progress)
        check(temporary, settings, name=path)


def check_target(path: Path) -> None:
    """Raise `StorageError` unless the path is free or that of an older backup."""
    if is_database(path, or_backup=False):
        raise StorageError(str(path), "it is a database and not a backup", advice="name another file for the backup")
    if path.exists():
        check_file(str(path))


def check(path: Path, settings: SessionSettings, *, name: Path) -> None:
    """Raise `StorageError` if pages or the schema of a backup are damaged, and log the first damaged row."""
    problems = problems_of(str(path), settings)
    if damage := [problem for problem in problems if problem.kind == "file"]:
        problem = f"the backup is damaged, as is what it was made of ({damage[0].text})"
        raise StorageError(str(name), problem, advice="use an older backup; session-middleware check lists the damage")
    if damage := [problem for problem in problems if problem.kind in ("damage", "index")]:
        logger.warning("%s: %s has a damaged row, as has the database: %s", name, damage[0].table, damage[0].text)


def _copy(connection: SqliteConnection, path: Path, progress: Progress | None) -> None:
    report = None if progress is None else lambda _, left, whole: progress(whole - left, whole)
    connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # begins the snapshot
    with created(path) as file:
        with _mapped(path), closing(sqlite3.connect(path)) as target:
            target.execute("PRAGMA synchronous=OFF")  # the file is synced below
            connection.backup(target, pages=_PAGES, progress=report)
            target.execute("PRAGMA journal_mode=DELETE")
        check_own(file, path)
        os.fsync(file.fileno())


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Map SQLite's errors in the block to `StorageError`, which names this file."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(str(path), error) from error


def restore(backup: Path, path: Path, settings: SessionSettings, *, suffix: str) -> Path | None:
    """Replace a database file by a backup. Returns the path that the old file has now; its log is beside it.

    The database must not be in use. A call that was interrupted is repeated.

    Raises:
        StorageError: the backup is missing, damaged or something else, a process uses the database, or it is another
            program's.
    """
    if not backup.is_file():
        raise StorageError(str(backup), "there is no such backup", advice="name a file that `backup` wrote")
    with _mapped(backup):
        is_empty = check_file(str(backup))
    if is_empty:
        raise StorageError(str(backup), "it is empty", advice="name another backup")
    check(backup, settings, name=backup)
    _check_replaceable(path)
    kept = path.with_name(f"{path.name}.{suffix}")
    with replacing(path) as temporary:
        read_unlocked(str(backup), lambda connection: _copied(connection, temporary))
        if path.exists():
            old = path.stat()
            temporary.chmod(old.st_mode & 0o777)
            with suppress(OSError, AttributeError):
                os.chown(temporary, old.st_uid, old.st_gid)
        for end in ("", "-wal", "-shm"):
            if (file := Path(beside(str(path), end))).exists():
                file.replace(f"{kept}{end}")
    return kept if kept.exists() else None


def _copied(connection: SqliteConnection, path: Path) -> None:
    path.unlink(missing_ok=True)  # of a read that was repeated
    _copy(connection, path, None)


def _check_replaceable(path: Path) -> None:
    """Raise `StorageError` if a process has the database open or it is another program's, as far as its file shows."""
    if not path.exists():
        return
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, timeout=0.2)) as connection:
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                problem = "a process has the database open"
                raise StorageError(str(path), problem, advice="stop it, and restore again") from error
            raise
        if tables and "sessions" not in tables:
            problem = f"it holds another program's tables ({', '.join(tables[:3])})"
            raise StorageError(str(path), problem, advice="name the file of the sessions; this one was not changed")
