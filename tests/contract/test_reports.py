"""What can be asked of the record as a whole, of every engine: usage, tool calls, pages of a timeline."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from session_middleware.errors import UnknownGrouping
from session_middleware.models import Identity, Run, ToolCall
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry, ModelCallEntry, RunEnd, ToolEnd, ToolStart
from session_middleware.storage.run import RunContext
from session_middleware.storage.timeline import Timeline
from session_middleware.storage.types import Part, ToolCallFilter, UsageFilter

EVERYTHING = UsageFilter()


def context(session_id: str, user_id: str | None = None, run_id: str | None = None) -> RunContext:
    return RunContext(session_id, Identity(user_id=user_id), run_id=run_id)


def asked(number: int, clock: Callable[[], datetime], **fields: Any) -> ModelCallEntry:
    given = {"model": "small", "input_tokens": 10, "output_tokens": 2, "cost": lambda: 0.5, "duration_ms": 100.0}
    return ModelCallEntry(id=f"call-{number}", started_at=clock(), **(given | fields))


@pytest.fixture
def used(storage: Storage, clock: Any) -> Storage:
    """Three sessions of two users: four model calls, one of them failed and one without a price."""
    storage.append(context("a1", "ada"), [asked(1, clock), asked(2, clock, model="large", duration_ms=300.0)])
    clock.advance(days=1)
    storage.append(context("a2", "ada"), [asked(3, clock, cost=None, cached_tokens=4)])
    failed = {"error": "Timeout", "cost": None, "input_tokens": None, "output_tokens": None, "duration_ms": None}
    storage.append(context("b1", "bob"), [asked(4, clock, **failed)])
    return storage


def keys(storage: Storage, by: Any, where: UsageFilter = EVERYTHING) -> dict[str | None, int]:
    return {one.key: one.calls for one in storage.sum_usage(by, where)}


def test_calls_are_summed_by_whatever_is_asked_for(used: Storage) -> None:
    assert keys(used, "user") == {"ada": 3, "bob": 1}
    assert keys(used, "session") == {"a1": 2, "a2": 1, "b1": 1}
    assert keys(used, "model") == {"small": 3, "large": 1}
    assert keys(used, "day") == {"2026-01-01": 2, "2026-01-02": 2}
    assert keys(used, "group") == {None: 4}
    assert keys(used, "tool") == {}


def test_tokens_cost_and_errors_are_summed_and_a_missing_price_is_counted_not_guessed(used: Storage) -> None:
    by_user = {one.key: one for one in used.sum_usage("user", EVERYTHING)}
    ada, bob = by_user["ada"], by_user["bob"]
    assert (ada.input_tokens, ada.output_tokens, ada.cached_tokens) == (30, 6, 4)
    assert (ada.cost, ada.unpriced, ada.errors) == (1.0, 1, 0)
    assert (bob.cost, bob.unpriced, bob.errors, bob.error_rate) == (None, 0, 1, 1.0)


def test_percentiles_are_durations_that_occurred(storage: Storage, clock: Any) -> None:
    durations = [float(n) for n in range(1, 201)]
    random.Random(1).shuffle(durations)
    storage.append(context("t", "ada"), [asked(n, clock, duration_ms=ms) for n, ms in enumerate(durations)])
    [one] = storage.sum_usage("user", EVERYTHING)
    assert (one.p50_ms, one.p95_ms, one.p99_ms) == (100.0, 190.0, 198.0)
    storage.append(context("u", "bob"), [asked(999, clock, duration_ms=None)])
    assert {one.key: one.p50_ms for one in storage.sum_usage("user", EVERYTHING)}["bob"] is None


def test_a_sum_can_be_of_a_user_a_session_or_a_time(used: Storage, clock: Any) -> None:
    assert keys(used, "model", UsageFilter(user_id="bob")) == {"small": 1}
    assert keys(used, "model", UsageFilter(session_id="a1")) == {"small": 1, "large": 1}
    assert keys(used, "user", UsageFilter(since=clock())) == {"ada": 1, "bob": 1}
    assert keys(used, "user", UsageFilter(until=clock())) == {"ada": 2}
    assert keys(used, "user", UsageFilter(since=clock() + timedelta(days=1))) == {}


def test_usage_by_anything_else_says_what_there_is(storage: Storage) -> None:
    with pytest.raises(UnknownGrouping, match="user, group, session, model, day, tool"):
        storage.sum_usage("moon", EVERYTHING)  # type: ignore[arg-type]


@pytest.fixture
def worked(storage: Storage, clock: Any) -> Storage:
    """Two sessions that search and send; one call failed, and of one nobody saw the start."""
    for number, (session_id, user_id, name, status) in enumerate(
        [("a", "ada", "search", "ok"), ("b", "bob", "search", "error"), ("a", "ada", "send", "ok")]
    ):
        start = ToolStart(f"x{number}", f"c{number}", name, {})
        storage.append(context(session_id, user_id), [start, ToolEnd(f"x{number}", status, duration_ms=10.0 + number)])
        clock.advance(minutes=1)
    storage.append(context("a", "ada"), [MessageEntry("m", "tool", "4", name="unseen", tool_call_id="c9")])
    return storage


def test_tool_calls_are_summed_by_tool(worked: Storage) -> None:
    found = {one.key: one for one in worked.sum_usage("tool", EVERYTHING)}
    assert {name: one.calls for name, one in found.items()} == {"search": 2, "send": 1, "unseen": 1}
    assert (found["search"].error_rate, found["search"].p95_ms) == (0.5, 11.0)
    assert keys(worked, "tool", UsageFilter(user_id="bob")) == {"search": 1}


def test_tool_calls_of_all_sessions_come_latest_first_and_those_without_a_time_last(worked: Storage) -> None:
    found = worked.list_tool_calls(ToolCallFilter(), limit=None)
    assert [(call.session_id, call.name) for call in found] == [
        *(("a", "send"), ("b", "search"), ("a", "search"), ("a", "unseen"))
    ]


def test_tool_calls_can_be_those_of_a_name_a_status_a_user_or_a_time(worked: Storage, clock: Any) -> None:
    def names(**where: Any) -> list[str]:
        return [call.tool_call_id for call in worked.list_tool_calls(ToolCallFilter(**where), limit=None)]

    assert names(name="search") == ["c1", "c0"]
    assert names(status="error") == ["c1"]
    assert names(name="search", status="ok") == ["c0"]
    assert names(user_id="bob") == ["c1"]
    assert names(since=clock() - timedelta(minutes=2)) == ["c2", "c1"]
    assert names(until=clock() - timedelta(minutes=2)) == ["c0", "c9"]


def test_pages_of_tool_calls_have_each_call_once(worked: Storage) -> None:
    for size in (1, 2, 3):
        found: list[Any] = []
        while page := worked.list_tool_calls(ToolCallFilter(), limit=size, before=found[-1] if found else None):
            found += page
        assert [call.tool_call_id for call in found] == ["c2", "c1", "c0", "c9"]


@pytest.fixture
def long(storage: Storage, clock: Any) -> Storage:
    for number in range(5):
        run = context("t", "ada", f"r{number}")
        storage.append(run, [MessageEntry(f"h{number}", "user", "hi"), asked(number, clock, checkpoint_ns="model:1")])
        storage.append(run, [ToolStart(f"x{number}", f"c{number}", "search", {}, checkpoint_ns="team:2")])
        storage.append(run, [RunEnd("ok", None, 1)])
    storage.append(context("t", "ada"), [MessageEntry("h0", "user", "hello")])
    return storage


def test_pages_of_a_timeline_have_everything_once_and_in_order(long: Storage) -> None:
    whole = long.list_timeline("t").records
    for size in (1, 2, 7, 100):
        found: list[Any] = []
        while page := long.list_timeline("t", Part(after=found[-1].seq if found else 0, limit=size)).records:
            assert len(page) <= size
            found += page
        assert found == whole
    assert [entry.seq for entry in whole] == sorted({entry.seq for entry in whole})
    assert {type(entry).__name__ for entry in whole} == {"Run", "Message", "ToolCall", "ModelCall", "Event"}
    assert [entry.text for entry in whole if type(entry).__name__ == "Message"].count(
        "hello"
    ) == 1  # the latest version


def test_a_page_knows_the_runs_that_began_before_it(long: Storage) -> None:
    last = long.list_records(ToolCall, "t")[-1].seq
    page = long.list_timeline("t", Part(after=last - 1, limit=1))
    assert page.runs == [run for run in long.list_records(Run, "t") if run.id == page.records[0].run_id]
    [root] = Timeline(*page).tree
    assert root.record == page.runs[0]


def test_there_is_nothing_to_page_through_where_there_is_no_session(storage: Storage) -> None:
    assert storage.list_timeline("nowhere").records == []
    assert storage.list_timeline("nowhere", Part(limit=0)).records == []
