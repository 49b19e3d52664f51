"""Hooks are called for what other processes have done, by a process that has them, and cost nothing where none has."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from session_middleware import Sessions
from session_middleware.model import Event
from tests.conftest import Clock

Told = list[tuple[str, str]]


@pytest.fixture
def connect(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Sessions]]:
    """Another process's `Sessions`, as far as hooks go: each has its own."""
    made: list[Sessions] = []

    def connect() -> Sessions:
        made.append(Sessions(tmp_path / "sessions.db", clock=clock, idle_timeout="1h", sweep_interval=None))
        return made[-1]

    yield connect
    for sessions in made:
        sessions.close()


def listen(sessions: Sessions, name: str = "on_closed") -> Told:
    told: Told = []

    def hook(event: Event) -> None:
        told.append((event.session_id, event.kind))

    getattr(sessions, name)(hook)
    return told


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path / "sessions.db")) as connection:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def test_the_hooks_of_an_app_are_called_for_each_session_that_a_process_without_hooks_has_ended(
    connect: Callable[[], Sessions], clock: Clock
) -> None:
    app, cron = connect(), connect()
    told = listen(app)
    for name in ("swept", "deleted", "completed", "cleaned"):
        app.open(name)
    app.open("revoked", user_id="eve")
    cron.delete("deleted")
    cron.get("completed").complete()
    cron.revoke("eve")
    clock.advance(hours=2)
    cron.sweep()
    cron.sweep(older_than="1h", status="expired")
    cron.close()
    app.settle()
    ended = [("deleted", "deleted"), ("completed", "completed"), ("revoked", "abandoned")]
    swept = [("cleaned", "expired"), ("swept", "expired"), ("cleaned", "deleted"), ("swept", "deleted")]
    assert told == ended + swept


def test_what_ended_while_the_app_was_down_is_told_when_it_is_back(connect: Callable[[], Sessions]) -> None:
    app = connect()
    listen(app)
    app.open("t")
    app.close()
    connect().delete("t")
    back = connect()
    told = listen(back)
    back.settle()
    assert told == [("t", "deleted")]


def test_a_process_with_other_hooks_for_the_same_event_leaves_it_to_those_it_has_not(
    connect: Callable[[], Sessions],
) -> None:
    app, other = connect(), connect()
    closed, changed = listen(app), listen(other, "on_state_changed")
    other.open("t").complete()
    other.settle()
    app.settle()
    assert closed == [("t", "completed")]
    assert changed == [("t", "opened"), ("t", "completed")]


def test_nothing_is_kept_where_nobody_has_hooks(connect: Callable[[], Sessions], tmp_path: Path) -> None:
    sessions = connect()
    sessions.open("t").complete()
    sessions.delete("t")
    assert (rows(tmp_path, "hooks"), rows(tmp_path, "outbox")) == (0, 0)


def test_what_no_process_has_hooks_for_any_more_is_given_up_after_a_month_until_one_has(
    connect: Callable[[], Sessions], clock: Clock, tmp_path: Path
) -> None:
    app, cron = connect(), connect()
    told = listen(app)
    cron.open("t").complete()
    clock.advance(days=29)
    cron.sweep()
    assert rows(tmp_path, "outbox") == 1
    clock.advance(days=2)
    cron.sweep()
    cron.delete("t")
    assert (rows(tmp_path, "hooks"), rows(tmp_path, "outbox")) == (0, 0)
    app.settle()
    cron.open("u").complete()
    app.settle()
    assert told == [("u", "completed")]
