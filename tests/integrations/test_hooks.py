"""Hooks are called for what happens to sessions, at least once, and break nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.findings import Ended
from session_middleware.model import Event
from tests import processes
from tests.conftest import Clock
from tests.integrations import agents
from tests.integrations.agents import human


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock) -> Iterator[Sessions]:
    with Sessions(tmp_path / "sessions.db", clock=clock, idle_timeout="30m") as sessions:
        yield sessions


@pytest.fixture
def told(sessions: Sessions) -> list[tuple[str, str, str | None]]:
    """What each hook was called with, in order."""
    told: list[tuple[str, str, str | None]] = []
    for name in ("opened", "resumed", "closed", "error"):

        def hook(event: Event, name: str = name) -> None:
            told.append((name, event.kind, event.reason))

        getattr(sessions, f"on_{name}")(hook)
    return told


def test_each_hook_is_called_in_order_with_what_happened(sessions: Sessions, told: list[Any], clock: Clock) -> None:
    graph, config = sessions.attach(agents.tool_graph(handle_tool_errors=False)), sessions.config("t")
    graph.invoke(human("hi"), config)
    graph.invoke(human("hi"), config)
    with pytest.raises(RuntimeError):
        graph.invoke(human("break tea"), config)
    sessions.get("t").complete(reason="solved")
    graph.invoke(human("hi"), config)
    clock.advance(hours=1)
    sessions.sweep()
    sessions.settle()
    assert told == [
        ("opened", "opened", None),
        ("resumed", "resumed", None),
        ("resumed", "resumed", None),
        ("error", "error", None),
        ("closed", "completed", "solved"),
        ("resumed", "reopened", "solved"),
        ("closed", "expired", "idle_timeout"),
    ]


async def test_an_async_hook_is_awaited(sessions: Sessions) -> None:
    import asyncio

    seen: list[str] = []

    @sessions.on_state_changed
    async def changed(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(f"{event.session_id} {event.kind}")

    (await sessions.aopen("t")).abandon()
    await asyncio.to_thread(sessions.settle)
    assert seen == ["t opened", "t abandoned"]


def test_a_hook_that_raises_is_logged_once_and_counted_and_breaks_no_run(
    sessions: Sessions, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @sessions.on_opened
    def broken(event: Event) -> None:
        raise ValueError("of the hook")

    graph = sessions.attach(agents.chat())
    for name in ("a", "b"):
        assert graph.invoke(human("hi"), sessions.config(name))["messages"][-1].text == "you said hi"
    sessions.settle()
    assert sessions.get("a").stats().hook_faults == 2
    assert [record.message for record in caplog.records if "hook" in record.message][1:] == []
    assert [kind for _, kind, _ in told] == ["opened", "opened"]


def test_on_expiring_may_postpone_once_until_there_is_activity(sessions: Sessions, clock: Clock) -> None:
    asked: list[str] = []

    @sessions.on_expiring
    def expiring(ended: Ended) -> str:
        asked.append(ended.session_id)
        return "10m"

    session = sessions.open("t")
    clock.advance(minutes=30)
    assert sessions.sweep() == []
    assert (sessions.get("t").status, sessions.get("t").events()[-1].kind) == ("idle", "postponed")
    clock.advance(minutes=9)
    session.ping()
    clock.advance(minutes=30)
    assert sessions.sweep() == []
    clock.advance(minutes=10)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]
    assert asked == ["t", "t"]


def test_what_a_hook_does_to_sessions_calls_hooks_again(sessions: Sessions, told: list[Any]) -> None:
    @sessions.on_opened
    def close_it(event: Event) -> None:
        sessions.get(event.session_id).complete(reason="by a hook")

    sessions.open("t")
    sessions.settle()
    assert told == [("opened", "opened", None), ("closed", "completed", "by a hook")]


CRASHING = """
import os, sys
from session_middleware import Sessions
sessions = Sessions(sys.argv[1])

@sessions.on_closed
def closed(event):
    print(event.session_id, event.reason, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)

if sys.argv[2] == "die":
    sessions.open("t").complete(reason="solved")
sessions.settle()
sessions.close()
"""


def test_a_hook_is_called_again_when_its_process_died_of_it(tmp_path: Path) -> None:
    said = [processes.run("-c", CRASHING, tmp_path / "sessions.db", how) for how in ("die", "live", "live")]
    assert [done.stdout for done in said] == ["t solved\n", "t solved\n", ""]
    assert [done.returncode for done in said] == [-9, 0, 0]
