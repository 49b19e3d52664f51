"""Options, database lookup and output that all commands share."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware.errors import StorageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from session_middleware.sessions import Sessions
    from session_middleware.settings import SessionSettings

_DEFAULT = "[default: SESSION_STORAGE_URL, or sessions.db]"
_OWN_TABLES = "SELECT 1 FROM sqlite_master WHERE name IN ('sessions', 'list_items')"

db_option = click.option("--db", metavar="FILE", help=f"The database file. {_DEFAULT}")
new_db_option = click.option("--db", metavar="FILE", help=f"The database file; created if it is missing. {_DEFAULT}")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
session_argument = click.argument("session_id", metavar="ID")
user_option = click.option("--user", "user_id", metavar="ID", help="Only sessions of this owner.")
status_option = click.option("--status", metavar="STATUS", help="Only sessions with this status, such as expired.")


def settings_of(db: str | None) -> SessionSettings:
    from session_middleware.settings import load_settings

    return load_settings(**({} if db is None else {"storage_url": db}))


@contextmanager
def existing(db: str | None, **settings: Any) -> Iterator[Sessions]:
    """`Sessions` on a database that exists."""
    from session_middleware.sessions import Sessions
    from session_middleware.storage.factory import is_postgres

    url = settings_of(db).storage_url
    path = url if is_postgres(url) else existing_file(db)

    with Sessions(path, **settings) as sessions:
        yield sessions


def existing_file(db: str | None) -> str:
    """The path of a database that exists and holds sessions; it may be damaged. Raises as `check_database`."""
    from session_middleware.storage.factory import file_path

    path = file_path(settings_of(db).storage_url)
    check_database(path)
    return path


def check_database(path: str) -> None:
    """Check that the path leads to a database of this package, which may be damaged.

    Raises:
        StorageError: it is missing, unreadable, empty, or something else.
    """
    from session_middleware.storage.sqlite.database import check_file, check_path, storage_error
    from session_middleware.storage.sqlite.readonly_open import read_unlocked

    if not Path(path).exists():
        raise StorageError(path, "there is no such database", advice="name one with --db FILE, or run the app first")
    check_path(path)
    try:
        has_sessions = read_unlocked(path, lambda connection: connection.execute(_OWN_TABLES).fetchone() is not None)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise storage_error(path, error) from error
        return
    if not has_sessions:
        check_file(path)
        raise StorageError(
            path, "the database is empty", advice="name another one with --db FILE, or run the app first"
        )


def confirm(question: str) -> None:
    click.confirm(question, abort=True, err=True)


def console_of_stdout() -> Console:
    """A console on the current stdout. A character that the encoding lacks becomes a question mark."""
    from io import TextIOWrapper

    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print values of this package, or lists and dicts of them."""
    from pydantic_core import to_jsonable_python

    click.echo(json.dumps(to_jsonable_python(value), indent=2))


def print_result(value: Any, picture: RenderableType, *, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        console_of_stdout().print(picture, crop=False)


def bytes_text(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"
