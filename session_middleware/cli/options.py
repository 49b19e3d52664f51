"""What a command consists of: its examples, its database, and the options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

_DEFAULT = "[default: SESSION_STORAGE_URL, or sessions.db]"
_MOST_COMPLETED = 50  # ids
_NARROW = 60  # columns

db_option = click.option("--db", metavar="FILE", help=f"The database: a file, or a postgresql:// URL. {_DEFAULT}")
new_db_option = click.option("--db", metavar="FILE", help=f"The database; a file is created if missing. {_DEFAULT}")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only report what would be done.")


class _Help(click.HelpFormatter):
    """In a narrow terminal the text of a long option is below it."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, 10 if self.width < _NARROW else col_max, col_spacing)


class Context(click.Context):
    formatter_class = _Help


class _Command(click.Command):
    context_class = Context


def command(
    *examples: str, name: str | None = None, db: str | None = "existing", durations: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, whose docstring is its help.

    Args:
        examples: what a person types after ``session-middleware``.
        db: ``"existing"``: the function gets the `Sessions` of a database that exists; ``"new"``: or of one that is
            created; ``None``: it opens what it needs.
        durations: the options that are settings of these `Sessions`, and durations.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def run(**options: Any) -> None:
            if db is None:
                return function(**options)
            from session_middleware.cli.opening import opened
            from session_middleware.settings import duration_of

            own = {name: value for name in durations if (value := options.pop(name)) is not None}
            for setting, value in own.items():
                duration_of(f"--{setting.replace('_', '-')}", value)
            quiet = options.get("output") is not None or options.keys().isdisjoint(("output", "status"))
            with opened(options.pop("db"), create=db == "new", quiet=quiet, **own) as sessions:
                return function(sessions, **options)

        with_db = run if db is None else (new_db_option if db == "new" else db_option)(run)
        lines = [f"  session-middleware {example}" for example in examples]
        chosen = name or function.__name__.removesuffix("_command").replace("_", "-")
        return click.command(chosen, cls=_Command, epilog="\b\n" + "\n".join(["Examples:", *lines]))(with_db)

    return decorate


# Sessions


def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The session ids that begin with what was typed. A shell shows no error, so there is none."""
    from session_middleware.cli.opening import ids_of

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
    "since": ("--since", {"metavar": "TIME", "help": "Only active since a day (2026-01-31) or an age (7d)."}),
    "until": ("--until", {"metavar": "TIME", "help": "Only last active before a day or an age."}),
}


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of sessions. The function gets those that are given as `where`, for `Sessions.list`."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _FILTERS}
        for name in ("since", "until"):
            given[name] = moment_of(f"--{name}", given[name])
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


def moment_of(name: str, text: str | None) -> datetime | None:
    """The time that is a day, a time, or an age. Raises `InvalidArgument`."""
    from session_middleware.errors import InvalidArgument
    from session_middleware.settings import age_of

    if text is None:
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    try:
        return datetime.now(UTC) - (age_of(name, text) or timedelta())
    except (InvalidArgument, OverflowError) as error:
        raise InvalidArgument(name, text, wanted="a day such as 2026-01-31, or an age such as 7d") from error
