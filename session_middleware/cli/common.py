"""What all commands share: options, finding the database, output, and sentences of errors."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware import errors
from session_middleware.errors import SessionError, StorageError

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
    with Sessions(url if is_postgres(url) else existing_file(db), **settings) as sessions:
        yield sessions


def database_command(function: Callable[..., None]) -> click.Command:
    """A command on a database that exists; `function` gets its `Sessions` first."""

    @click.command(function.__name__.removesuffix("_command"))
    @db_option
    @wraps(function)
    def run(db: str | None, **options: Any) -> None:
        with existing(db) as sessions:
            function(sessions, **options)

    return run


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
    from session_middleware.storage.sqlite.connection import read_unlocked, storage_error
    from session_middleware.storage.sqlite.database import check_file
    from session_middleware.storage.sqlite.files import check_path

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
        advice = "name another one with --db FILE, or run the app first"
        raise StorageError(path, "the database is empty", advice=advice)


def console_of_stdout() -> Console:
    """A console on the current stdout. A character that the encoding lacks becomes a question mark."""
    from io import TextIOWrapper

    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def print_result(value: Any, picture: RenderableType, *, as_json: bool) -> None:
    """Print values of this package, or lists and dicts of them, as JSON or as their picture."""
    from pydantic_core import to_jsonable_python

    if as_json:
        click.echo(json.dumps(to_jsonable_python(value, fallback=dict), indent=2))
    else:
        console_of_stdout().print(picture, crop=False)


# Errors

USAGE_ERRORS = (errors.InvalidArgument, errors.InvalidIdentity, errors.InvalidSessionId, errors.UnknownStatus)
_SENTENCES: dict[type[SessionError], str] = {  # whose advice names a command; the library's names a method
    errors.SessionNotFound: "there is no session {0.session_id!r}; list the sessions with session-middleware list",
    errors.SessionExists: "session {0.session_id!r} exists already; see it with session-middleware show",
    errors.SessionExpired: "session {0.session_id!r} has expired; set SESSION_ON_RESUME=revive, or choose another"
    " --thread",
    errors.SessionClosed: "session {0.session_id!r} is {0.status}; set SESSION_ON_CLOSED=reopen, or choose another"
    " --thread",
    errors.SessionBusy: "session {0.session_id!r} has a run in progress; try again after that run",
    errors.InvalidTransition: "session {0.session_id!r} is {0.status} and cannot become {0.to}; see the reason with"
    " session-middleware explain",
    errors.UserRevoked: "user {0.user_id!r} was revoked; admit the user again with session-middleware revoke --lift",
    errors.SessionAccessDenied: "session {0.session_id!r} has another owner; name its owner with --user, or choose"
    " another --thread",
    errors.InvalidSessionId: "{0.problem}; give an id of 1 to 1,024 characters",
    errors.InvalidIdentity: "{0.problem}; give an id of 1 to 1,024 characters",
    errors.InvalidSettings: "{1}; correct --db, the SESSION_… variable or the .env file",
}


def error_text(error: SessionError) -> str:
    """The sentence of an error on the command line."""
    if isinstance(error, (errors.SessionNotFound, errors.SessionExpired)) and error.archived:
        return f"session {error.session_id!r} is archived; restore it with session-middleware restore"
    if isinstance(error, errors.UnknownStatus) and error.status == "archived":
        return "an archived session has no status; list archived sessions with session-middleware list --archived"
    if sentence := _SENTENCES.get(type(error)):
        return sentence.format(error, "; ".join(getattr(error, "problems", ())))
    return " ".join(str(error).split())
