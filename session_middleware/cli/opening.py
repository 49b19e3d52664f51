"""Opening the database of a command, with the settings of the app, and finding the session that a person means."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from session_middleware.cli.output import say
from session_middleware.cli.place import place_of
from session_middleware.display.text import plural, span_text, visible_line
from session_middleware.errors import StorageError
from session_middleware.models import utc_now
from session_middleware.session import Session
from session_middleware.sessions import Sessions
from session_middleware.settings import LASTING, SessionSettings, lasting_settings, load_settings
from session_middleware.storage.factory import is_postgres, open_storage
from session_middleware.storage.sql import app_settings as app_settings_table
from session_middleware.storage.sql.connection import DamagedRow
from session_middleware.storage.sqlite.connection import read_unlocked

_SHOWN_IDS = 5  # that begin alike


class _OperatorSessions(Sessions):
    def _keep_settings(self) -> None:
        """Keep none: the database has those of the app."""


@contextmanager
def opened(
    db: str | None,
    *,
    create: bool = False,
    quiet: bool = False,
    allowed_types: Sequence[tuple[str, str]] = (),
    **given: Any,
) -> Iterator[Sessions]:
    """`Sessions` with the settings of the app that uses the database, and those of the command where they are given.

    Unless `quiet`, the settings of the app are named on stderr at the end. Those that the command replaces are always
    named, at the beginning.
    """
    place = place_of(db, create=create)
    chosen = app_settings(place, **given)
    with _OperatorSessions(place, allowed_types=allowed_types, sweep_interval=None, **chosen, **given) as sessions:
        yield sessions
    if chosen and not quiet:
        say(f"with the settings of the app: {settings_text(chosen)}", "dim", stderr=True)


@contextmanager
def opened_as_app(db: str | None) -> Iterator[Sessions]:
    """`Sessions` of a command that is itself the app, such as a server: it creates the database, and sweeps it.

    Its settings are those of its environment, and else those that the database keeps.
    """
    place = place_of(db, create=True)
    with Sessions(place, **app_settings(place)) as sessions:
        yield sessions


def app_settings(place: str, **given: Any) -> dict[str, Any]:
    """The settings of the app, except those that the command has, from `given` or from its environment.

    Those that differ are named on stderr.
    """
    own, kept = load_settings(**given), _kept_settings(place)
    mine = lasting_settings(own)
    for name in sorted(LASTING & own.model_fields_set):
        if mine.get(name, _MISSING) != kept.get(name, _MISSING):
            here, app = _value_text(getattr(own, name)), _value_text(_read_setting(name, kept))
            click.echo(f"Warning: {name} is {here} here, and {app} in the app", err=True)
    return {name: value for name, value in kept.items() if name not in own.model_fields_set}


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings as they are kept, such as ``idle_timeout 30 minutes, on_expire prune``."""
    return ", ".join(f"{name} {_value_text(_read_setting(name, values))}" for name in values)


_MISSING = object()


def _kept_settings(place: str) -> dict[str, Any]:
    """The settings that the app has kept, without those of another version of this package."""
    found: dict[str, Any] = {}
    if is_postgres(place):
        with closing(open_storage(load_settings(storage_url=place), utc_now)) as storage, suppress(StorageError):
            found = storage.find_settings()
    elif Path(place).exists():  # it may be damaged, and must not be changed
        with suppress(sqlite3.Error, DamagedRow, StorageError, ValueError):
            found = read_unlocked(place, app_settings_table.find)
    return {name: value for name, value in found.items() if name in LASTING}


def _read_setting(name: str, kept: Mapping[str, Any]) -> Any:
    if name not in kept:
        return SessionSettings.model_fields[name].default
    return getattr(load_settings(**{name: kept[name]}), name)


def _value_text(value: Any) -> str:
    return span_text(value) if isinstance(value, timedelta) else "none" if value is None else visible_line(str(value))


def id_of(sessions: Sessions, given: str, *, deleted: bool = False, whole: bool = False) -> str:
    """The id of the session that a person means: by its id, by a unique beginning of it, or by ``last``.

    Args:
        deleted: it may be that of a deleted or archived session.
        whole: the beginning of an id does not suffice.
    """
    storage = sessions._storage
    if sessions.find(given) is not None or storage.find_tombstone(given) is not None:
        return given
    if given == "last":
        for session in sessions.list(limit=1):
            return session.id
    found = storage.list_ids(given, limit=_SHOWN_IDS + 1)
    if deleted and not found:
        found = storage.list_ids(given, limit=_SHOWN_IDS + 1, deleted=True)
    if len(found) > 1:
        more = ", …" if len(found) > _SHOWN_IDS else ""
        raise click.ClickException(
            f"several ids begin with {given!r}: {', '.join(map(repr, found[:_SHOWN_IDS]))}{more}; type more of it"
        )
    if found and whole:
        raise click.ClickException(f"{given!r} is only the beginning of {found[0]!r}; --yes needs the whole id")
    return found[0] if found else given


def session_of(sessions: Sessions, given: str) -> Session:
    """The session that a person means, as `id_of`. Raises `SessionNotFound`."""
    return sessions.get(id_of(sessions, given))


def chosen_sessions(
    sessions: Sessions, given: Sequence[str], where: Mapping[str, Any], *, whole: bool = False
) -> list[Session]:
    """The sessions that a person names, or else those that the filters find."""
    if bool(given) == bool(where):
        raise click.UsageError(
            "name sessions by their ids or by filters such as --tag, not both"
            if given
            else "name sessions by their ids, or by filters such as --tag"
        )
    if where:
        return list(sessions._each(**where))
    return [sessions.get(id_of(sessions, each, whole=whole)) for each in dict.fromkeys(given)]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is lost. Raises `click.UsageError` where no person can answer."""
    if yes:
        return
    if not is_terminal():
        raise click.UsageError(f"{question} There is no terminal to ask on; add --yes.")
    click.confirm(question, abort=True, err=True)


def is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def counted(sessions: Sequence[Session]) -> str:
    """``session 'a'``, or ``3 sessions``."""
    return f"session {sessions[0].id!r}" if len(sessions) == 1 else plural(len(sessions), "session")
