"""What a command consists of: its examples, its database, and the options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

_DEFAULT = "[default: SESSION_STORAGE_URL, or sessions.db]"
_MOST_COMPLETED = 50  # ids

db_option = click.option("--db", metavar="FILE", help=f"The database: a file, or a postgresql:// URL. {_DEFAULT}")
new_db_option = click.option("--db", metavar="FILE", help=f"The database; a file is created if missing. {_DEFAULT}")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only report what would be done.")


def command(
    *examples: str, name: str | None = None, db: str | None = "existing", settings: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, whose docstring is its help.

    Args:
        examples: what a person types after ``session-middleware``.
        db: ``"existing"``: the function gets the `Sessions` of a database that exists; ``"new"``: or of one that is
            created; ``None``: it opens what it needs.
        settings: the options that are settings of these `Sessions`.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def run(**options: Any) -> None:
            if db is None:
                return function(**options)
            from session_middleware.cli.opening import opened

            own = {name: value for name in settings if (value := options.pop(name)) is not None}
            quiet = options.get("output", "") is not None  # a command without pictures is quiet
            with opened(options.pop("db"), create=db == "new", quiet=quiet, **own) as sessions:
                return function(sessions, **options)

        with_db = run if db is None else (new_db_option if db == "new" else db_option)(run)
        lines = [f"  session-middleware {example}" for example in examples]
        chosen = name or function.__name__.removesuffix("_command").replace("_", "-")
        return click.command(chosen, epilog="\b\n" + "\n".join(["Examples:", *lines]))(with_db)

    return decorate


# Times


def duration_option(flag: str, text: str) -> Callable[..., Any]:
    return click.option(flag, metavar="DURATION", callback=_checked_duration, help=text)


def _checked_duration(_: click.Context, option: click.Parameter, text: str | None) -> str | None:
    from session_middleware.settings import duration_of

    duration_of(option.opts[0], text)
    return text


def _moment_of(_: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    """The time that is a day, a time, or an age."""
    from session_middleware.errors import InvalidArgument
    from session_middleware.settings import age_of

    if text is None:
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    try:
        return datetime.now(UTC) - (age_of(option.opts[0], text) or timedelta())
    except (InvalidArgument, OverflowError) as error:
        raise InvalidArgument(option.opts[0], text, wanted="a day such as 2026-01-31, or an age such as 7d") from error


_moment: dict[str, Any] = {"metavar": "TIME", "callback": _moment_of}


# Sessions


def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The session ids that begin with what was typed. A shell shows no error, so there is none."""
    from session_middleware.cli.place import ids_of

    with suppress(Exception):
        found = ids_of(context.params.get("db"), incomplete, limit=_MOST_COMPLETED)
        return [CompletionItem(each) for each in (*found, *(["last"] if "last".startswith(incomplete) else []))]
    return []


def id_argument(name: str = "session_id", **given: Any) -> Callable[..., Any]:
    """The id of a session, the beginning of one, or ``last``."""
    metavar = "[ID]..." if given.get("nargs") == -1 else "ID" if given.get("required", True) else "[ID]"
    return click.argument(name, metavar=metavar, shell_complete=complete, **given)


def session_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument of one session, which the function gets instead of the `Sessions`."""

    @wraps(function)
    def run(sessions: Any, *, session_id: str, **options: Any) -> Any:
        from session_middleware.cli.opening import session_of

        return function(session_of(sessions, session_id), **options)

    return id_argument()(run)  # type: ignore[no-any-return]


# Filters, as `Sessions.list` has them

_FILTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "user_id": ("--user", {"metavar": "ID", "help": "Only sessions of this owner."}),
    "group_id": ("--group", {"metavar": "ID", "help": "Only sessions of this group."}),
    "tags": ("--tag", {"metavar": "TAG", "multiple": True, "help": "Only with this tag; may be repeated."}),
    "status": ("--status", {"metavar": "STATUS", "multiple": True, "help": "Only with this status; may be repeated."}),
    "title": ("--title", {"metavar": "TEXT", "help": "Only with this text in the title."}),
    "metadata": ("--metadata", {"metavar": "KEY=VALUE", "multiple": True, "help": "Only with this; may be repeated."}),
    "waiting": ("--waiting", {"is_flag": True, "help": "Only those whose graph waits for an answer."}),
    "since": ("--since", _moment | {"help": "Only active since a day (2026-01-31) or an age (7d)."}),
    "until": ("--until", _moment | {"help": "Only last active before a day or an age."}),
}


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of sessions. The function gets those that are given as `where`, for `Sessions.list`."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _FILTERS}
        given["metadata"] = dict(map(_pair_of, given["metadata"]))
        where = {name: value for name, value in given.items() if value not in (None, (), {}, False)}
        return function(*args, where=where, **options)

    for name, (flag, given) in reversed(_FILTERS.items()):
        run = click.option(flag, name, **given)(run)
    return run


def _pair_of(text: str) -> tuple[str, Any]:
    """The key and the value, which is JSON (a number, a boolean, a quoted text) or a text."""
    from session_middleware.errors import InvalidArgument

    key, separator, value = text.partition("=")
    if not separator:
        raise InvalidArgument("--metadata", text, wanted="a key and a value, such as plan=pro")
    with suppress(ValueError):
        found = json.loads(value)
        return key, found if isinstance(found, str | int | float) else value
    return key, value
