"""The command ``doctor``: versions, the database, its size, and whether it can be written to.

A file is opened for reading only and never created.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from session_middleware import __version__
from session_middleware.cli import styles
from session_middleware.cli.health import facts_grid, line, verdict
from session_middleware.cli.opening import settings_text
from session_middleware.cli.place import check_database
from session_middleware.display.text import plural
from session_middleware.errors import StorageError
from session_middleware.models import Problem, utc_now
from session_middleware.settings import SessionSettings
from session_middleware.storage.factory import open_storage
from session_middleware.storage.sql.checks import REPAIRS
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.integrity import check_file, inspect, original_schema
from session_middleware.storage.sqlite.wal import FIXED_IN

_MIN_FREE_BYTES = 256 * 1024 * 1024
_CLEANED_BY_SWEEP = frozenset({"dead_lease", "dead_run"})  # remains of killed processes
_PRAGMAS = {"page_bytes": "page_size", "pages": "page_count", "unused_pages": "freelist_count"}


def examine(path: str, settings: SessionSettings) -> dict[str, Any]:
    """The facts about an installation and one database; its `problems` need an action, its `notes` do not."""
    file, folder = Path(path), Path(path).absolute().parent
    problems: list[str] = []
    notes: list[str] = []
    facts = _versions("sqlite", sqlite3.sqlite_version) | {"path": path} | _durability(settings, notes)
    try:
        check_database(path)
        log = Path(beside(path, "-wal"))
        facts |= {"file_bytes": file.stat().st_size, "log_bytes": log.stat().st_size if log.exists() else 0}
        facts |= inspect(path, _page_facts)
        _add_row_problems(check_file(path, settings), problems, notes)
        if sqlite3.sqlite_version_info < FIXED_IN:
            _add_other_tables(path, notes)
    except StorageError as error:
        problems.append(str(error))
    is_writable = os.access(folder, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.W_OK))
    if folder.is_dir():
        free = facts["free_bytes"] = shutil.disk_usage(folder).free
        if not is_writable:
            problems.append(
                f"{file if file.exists() else folder} may not be written to by this process; change its mode"
            )
        if free < _MIN_FREE_BYTES:
            problems.append(f"only {free // 1_000_000:,} MB of the disk are free; free some, or writes will fail")
    return facts | {"writable": is_writable, "notes": notes, "problems": problems}


def examine_server(settings: SessionSettings) -> dict[str, Any]:
    """As `examine`, of a database of PostgreSQL. Raises `StorageError` if it cannot be read."""
    problems: list[str] = []
    notes: list[str] = []
    with closing(open_storage(settings, utc_now)) as storage:
        server, size, sessions = storage._database.read(lambda connection: connection.execute(_SERVER).fetchone())
        _add_row_problems(storage.check(repair=False), problems, notes)
    facts = _versions("postgresql", server) | {"path": storage.name} | _durability(settings, notes)
    return facts | {"database_bytes": size, "sessions": sessions, "notes": notes, "problems": problems}


_SERVER = """
    SELECT current_setting('server_version'), pg_database_size(current_database()), (SELECT COUNT(*) FROM sessions)
"""


def _versions(engine: str, version_of_engine: str) -> dict[str, Any]:
    packages = ("langgraph", "langgraph-checkpoint", "langchain-core")
    found = {"python": platform.python_version(), engine: version_of_engine, "session-middleware": __version__}
    return {"versions": found | {package: version(package) for package in packages}}


def _durability(settings: SessionSettings, notes: list[str]) -> dict[str, str]:
    if settings.synchronous == "normal":
        notes.append("synchronous is normal: a power failure can lose the last turns")
    return {"synchronous": settings.synchronous}


def diagnosis_picture(found: dict[str, Any]) -> RenderableType:
    """All facts, the notes and problems, and a verdict."""
    problems, settings = found["problems"], settings_text(found["app_settings"]) or "the defaults"
    return Group(
        facts_grid(found["versions"] | found | {"app_settings": settings}),
        Text(),
        *(line(("note  ", styles.ORANGE), note) for note in found["notes"]),
        *(line(("problem  ", styles.RED), problem) for problem in problems),
        verdict(plural(len(problems), "problem") if problems else "no problems", is_good=not problems),
    )


def _page_facts(connection: sqlite3.Connection) -> dict[str, int]:
    facts = {name: connection.execute(f"PRAGMA {pragma}").fetchone()[0] for name, pragma in _PRAGMAS.items()}
    return facts | {"sessions": connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]}


def _add_other_tables(path: str, notes: list[str]) -> None:
    """Add a note if another program may write to the file, which it does without the lock of this package."""
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    others = {name for (name,) in inspect(path, lambda connection: connection.execute(sql).fetchall())}
    others -= {*original_schema(), "_sqlite_migrations"}
    if others:
        notes.append(
            f"the file has other tables ({', '.join(sorted(others))}), and SQLite before "
            f"{'.'.join(map(str, FIXED_IN))} can damage a file while another program writes to it; "
            "upgrade SQLite, or let only this package write to the file"
        )


def _add_row_problems(found: Sequence[Problem], problems: list[str], notes: list[str]) -> None:
    """Add one sentence for each kind of inconsistency; a note where the next sweep or run cleans it up."""
    for kind in dict.fromkeys(problem.kind for problem in found):
        first, *others = (problem for problem in found if problem.kind == kind)
        session = "" if first.session_id is None else f"session {first.session_id!r}: "
        more = f", and {len(others):,} more like it" if others else ""
        option = "--repair" if kind in REPAIRS else "--deep"
        sentence = f"{session}{first.text}{more}; run session-middleware check {option}"
        (notes if kind in _CLEANED_BY_SWEEP else problems).append(sentence)
