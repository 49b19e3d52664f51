"""What the commands share: which database is meant, and how something is printed."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from session_middleware.errors import StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from session_middleware.sessions import Sessions

F = TypeVar("F", bound=Callable[..., Any])

STATUSES = ("active", "idle", "expired", "completed", "failed", "abandoned")


def db_option(help: str = "The database file.") -> Callable[[F], F]:
    text = f"{help} [default: SESSION_STORAGE_URL, or sessions.db]"
    return click.option("--db", metavar="FILE", default=None, help=text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


# Databases


@contextmanager
def existing(db: str | None, **settings: Any) -> Iterator[Sessions]:
    """The sessions of a database that is there; the check comes first, since `Sessions` would make it."""
    from session_middleware.settings import load_settings

    url = load_settings(**({"storage_url": db} if db else {})).storage_url
    if _is_file(url):
        _check_there(path_of(url))  # of anything else `Sessions` says what is wrong
    from session_middleware.sessions import Sessions

    with Sessions(url, **settings) as sessions:
        yield sessions


def file_of(db: str | None) -> Path:
    """The path of a database that is there."""
    from session_middleware.settings import load_settings

    url = load_settings(**({"storage_url": db} if db else {})).storage_url
    path = path_of(url)
    _check_there(path)
    return path


def _is_file(url: str) -> bool:
    scheme, separator, _ = url.partition("://")
    return not separator or scheme == "sqlite"


def path_of(url: str) -> Path:
    if not _is_file(url):
        raise StorageError(url, "it is no file", advice="name one with --db FILE")
    _, separator, rest = url.partition("://")
    return Path(rest.removeprefix("/") if separator else url).expanduser()


def _check_there(path: Path) -> None:
    if not os.path.isfile(path):  # noqa: PTH113  # which asks for no more than a path can be
        raise StorageError(str(path), "there is no such database", advice="name one with --db FILE")
    if not _holds_sessions(path):
        from session_middleware.storage.sqlite.database import check_file

        check_file(str(path))  # says whose it is, if it is anybody's
        raise StorageError(str(path), "it holds no sessions", advice="name another database with --db FILE")


def _holds_sessions(path: Path) -> bool:
    """Whether it has a table of ours, or else is something that will be refused with a better reason."""
    from session_middleware.storage.sqlite.readonly_open import read_unlocked

    sql = "SELECT 1 FROM sqlite_master WHERE name IN ('sessions', 'list_items')"
    try:
        return read_unlocked(str(path), lambda connection: connection.execute(sql).fetchone()) is not None
    except (StorageError, sqlite3.Error):
        return True


# Printing


def console_of_stdout() -> Console:
    """A console on the present stdout; a character its encoding lacks becomes a question mark."""
    from io import TextIOWrapper

    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
