"""What an operator is asked first: which versions, which file, how large, and may it be written to.

Nothing is opened for writing and no file is made. `check --deep` reads the content.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from session_middleware.errors import StorageError
from session_middleware.models import Value
from session_middleware.settings import SessionSettings
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.integrity import checks
from session_middleware.storage.sqlite.integrity.reading import inspect
from session_middleware.storage.sqlite.wal import FIXED_IN

_PACKAGES = ("session-middleware", "langgraph", "langgraph-checkpoint", "langchain-core")
_LITTLE_BYTES = 256 * 1024 * 1024  # of free space on the disk


class Diagnosis(Value):
    """The state of an installation and of one database file. `problems` want something done, `notes` do not."""

    versions: dict[str, str]
    path: str
    file_bytes: int | None = None  # None: there is no such file yet
    log_bytes: int = 0
    page_bytes: int | None = None
    pages: int | None = None
    unused_pages: int | None = None
    journal_mode: str | None = None
    synchronous: str
    sessions: int | None = None
    is_writable: bool
    free_bytes: int | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def examine(path: str, settings: SessionSettings) -> Diagnosis:
    """Look at the installation, and at the database at `path`, which need not be there."""
    file = Path(path)
    is_writable = _may_write(file)
    facts, problems = _facts_of(path) if file.is_file() else ({}, [])
    unsound, left = _rows_of(path, settings) if facts.get("sessions") else ([], [])
    problems += unsound
    if not is_writable:
        problems.append(f"{file if file.exists() else file.absolute().parent} may not be written to by this process")
    free = shutil.disk_usage(file.absolute().parent).free if file.absolute().parent.is_dir() else None
    if free is not None and free < _LITTLE_BYTES:
        problems.append(f"only {free // 1_000_000:,} MB of the disk are free: a write fails when none are")
    return Diagnosis(
        versions=_versions(),
        path=path,
        synchronous=settings.synchronous,
        is_writable=is_writable,
        free_bytes=free,
        notes=(*_notes(settings), *left),
        problems=tuple(problems),
        **facts,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # it runs from a checkout
            found[package] = "not installed"
    return found


def _may_write(file: Path) -> bool:
    folder = file.absolute().parent
    return os.access(folder, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.W_OK))


def _notes(settings: SessionSettings) -> list[str]:
    notes = []
    if sqlite3.sqlite_version_info < FIXED_IN:
        fixed = ".".join(map(str, FIXED_IN))
        notes.append(
            f"SQLite before {fixed} can damage a database when two connections write its log back at once; "
            "here that is done under a lock of our own, so let no other program write to the file"
        )
    if settings.synchronous == "normal":
        notes.append("synchronous is normal: after a power cut the last turns may be missing")
    return notes


def _facts_of(path: str) -> tuple[dict[str, int | str], list[str]]:
    log = Path(beside(str(path), "-wal"))
    facts: dict[str, int | str] = {
        "file_bytes": Path(path).stat().st_size,
        "log_bytes": log.stat().st_size if log.exists() else 0,
    }
    try:
        return facts | inspect(path, _pages) | {"journal_mode": _journal_mode(path)}, []
    except StorageError as error:
        return facts, [f"{error}; run session-middleware check --deep"]


def _pages(connection: sqlite3.Connection) -> dict[str, int | str]:
    wanted = {"page_bytes": "page_size", "pages": "page_count", "unused_pages": "freelist_count"}
    facts = {name: connection.execute(f"PRAGMA {pragma}").fetchone()[0] for name, pragma in wanted.items()}
    return facts | {"sessions": connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]}


_LEFT = frozenset({"dead_lease", "dead_run", "orphaned_writes"})  # by processes that were killed


def _rows_of(path: str, settings: SessionSettings) -> tuple[list[str], list[str]]:
    """What does not hold between the rows of sessions, and what the next sweep or run will tidy up."""
    found = checks.check_file(path, settings)
    told: tuple[list[str], list[str]] = ([], [])
    for kind in dict.fromkeys(problem.kind for problem in found):
        those = [problem for problem in found if problem.kind == kind]
        first, count = those[0], len(those)
        where = "" if first.session_id is None else f"session {first.session_id!r}: "
        more = f", and {count - 1:,} more like it" if count > 1 else ""
        advice = "run session-middleware check --" + ("repair" if kind in checks.REPAIRS else "deep")
        told[kind in _LEFT].append(f"{where}{first.text}{more}; {advice}")
    return told


def _journal_mode(path: str) -> str:
    """As the file's header has it: a connection that only reads would name its own."""
    with Path(path).open("rb") as file:
        return "wal" if file.read(20)[18:] == b"\2\2" else "delete"
