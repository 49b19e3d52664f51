"""A first look at an installation: versions, the database file, its size, and whether it can be written to.

The file is opened for reading only and never created.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from session_middleware.cli.common import check_database
from session_middleware.errors import StorageError
from session_middleware.models import Value
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.checks import REPAIRS
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.integrity import checks
from session_middleware.storage.sqlite.integrity.reading import inspect, original_schema
from session_middleware.storage.sqlite.wal import FIXED_IN

_PACKAGES = ("session-middleware", "langgraph", "langgraph-checkpoint", "langchain-core")
_MIN_FREE_BYTES = 256 * 1024 * 1024
_CLEANED_BY_SWEEP = frozenset({"dead_lease", "dead_run", "orphaned_writes"})  # remains of killed processes


class Diagnosis(Value):
    """The state of an installation and of one database file. `problems` need an action, `notes` do not."""

    versions: dict[str, str]
    path: str
    file_bytes: int | None = None  # None: the file does not exist yet
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
    """Examine the installation and the database at `path`."""
    file, folder = Path(path), Path(path).absolute().parent
    facts: dict[str, Any] = {}
    problems: list[str] = []
    notes: list[str] = []
    if settings.synchronous == "normal":
        notes.append("synchronous is normal: a power failure can lose the last turns")
    try:
        check_database(path)
        facts = _file_facts(path)
        facts |= inspect(path, _page_facts)
        _add_row_problems(path, settings, problems, notes)
        _add_note_on_sqlite(path, notes)
    except StorageError as error:
        problems.append(str(error))
    is_writable = os.access(folder, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.W_OK))
    if folder.is_dir() and not is_writable:
        problems.append(f"{file if file.exists() else folder} may not be written to by this process; change its mode")
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    if free is not None and free < _MIN_FREE_BYTES:
        problems.append(f"only {free // 1_000_000:,} MB of the disk are free; free some, or writes will fail")
    return Diagnosis(
        versions=_versions(),
        path=path,
        synchronous=settings.synchronous,
        is_writable=is_writable,
        free_bytes=free,
        notes=tuple(notes),
        problems=tuple(problems),
        **facts,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the package runs from a checkout
            found[package] = "not installed"
    return found


def _file_facts(path: str) -> dict[str, int | str]:
    log = Path(beside(path, "-wal"))
    with Path(path).open("rb") as file:  # `PRAGMA journal_mode` of an immutable connection is not the file's
        is_wal = file.read(20)[18:] == b"\2\2"
    return {
        "file_bytes": Path(path).stat().st_size,
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "journal_mode": "wal" if is_wal else "delete",
    }


def _page_facts(connection: sqlite3.Connection) -> dict[str, int]:
    pragmas = {"page_bytes": "page_size", "pages": "page_count", "unused_pages": "freelist_count"}
    facts = {name: connection.execute(f"PRAGMA {pragma}").fetchone()[0] for name, pragma in pragmas.items()}
    return facts | {"sessions": connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]}


def _add_note_on_sqlite(path: str, notes: list[str]) -> None:
    """Added for a file with other tables: their program writes without the lock of this package."""
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    others = {name for (name,) in inspect(path, lambda connection: connection.execute(sql).fetchall())}
    others -= {*original_schema(), "_sqlite_migrations"}
    if others and sqlite3.sqlite_version_info < FIXED_IN:
        notes.append(
            f"the file has other tables ({', '.join(sorted(others))}), and SQLite before "
            f"{'.'.join(map(str, FIXED_IN))} can damage a file while another program writes to it; "
            "upgrade SQLite, or let only this package write to the file"
        )


def _add_row_problems(path: str, settings: SessionSettings, problems: list[str], notes: list[str]) -> None:
    """One sentence for each kind of inconsistency; a note where the next sweep or run cleans it up."""
    found = checks.check_file(path, settings)
    for kind in dict.fromkeys(problem.kind for problem in found):
        first, *others = (problem for problem in found if problem.kind == kind)
        session = "" if first.session_id is None else f"session {first.session_id!r}: "
        more = f", and {len(others):,} more like it" if others else ""
        option = "--repair" if kind in REPAIRS else "--deep"
        sentence = f"{session}{first.text}{more}; run session-middleware check {option}"
        (notes if kind in _CLEANED_BY_SWEEP else problems).append(sentence)
