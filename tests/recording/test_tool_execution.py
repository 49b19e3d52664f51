"""`Session.tool_execution`: a block around one execution of a tool."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import ToolMessage

from session_middleware import Session, SessionAccessDenied, SessionClosed, SessionExpired, SessionNotFound, Sessions
from tests.conftest import Clock, OpenSessions

pytestmark = pytest.mark.sessions(idle_timeout="1h", sweep_interval=None)


def outcomes(session: Session) -> list[tuple[Any, ...]]:
    return [(call.name, call.status, call.result, call.error) for call in session.tool_calls()]


def test_a_start_is_committed_before_the_block_and_the_end_after_it(each_engine: str, sessions: Sessions) -> None:
    session = sessions.for_user("alice").open("t")
    with session.tool_execution("search", {"q": "tea"}, tool_call_id="c1") as execution:
        (running,) = sessions.get("t").tool_calls()
        assert (running.status, running.arguments, running.tool_call_id) == ("running", {"q": "tea"}, "c1")
        execution.result = ["green", "black"]
    (ended,) = session.tool_calls()
    assert (ended.status, ended.result, ended.duration_ms is not None) == ("ok", ["green", "black"], True)


def test_each_outcome_is_recorded_and_exceptions_are_raised(sessions: Sessions) -> None:
    session = sessions.open("t")
    with pytest.raises(ValueError, match="no tea"), session.tool_execution("raises"):
        raise ValueError("no tea")
    with session.tool_execution("answers") as execution:
        execution.result = ToolMessage("no tea", status="error", tool_call_id="")
    with session.tool_execution("reports") as execution:
        execution.error = "no tea"
    with session.tool_execution("asks") as execution:
        execution.status = "interrupted"
    assert outcomes(session) == [
        ("raises", "error", None, "ValueError: no tea"),
        ("answers", "error", "no tea", "no tea"),
        ("reports", "error", None, "no tea"),
        ("asks", "interrupted", None, None),
    ]


async def test_executions_beside_each_other_and_a_cancelled_one_are_recorded(sessions: Sessions) -> None:
    session, all_in = await sessions.aopen("t"), asyncio.Barrier(4)

    async def execute(n: int) -> None:
        async with session.tool_execution("double", n) as execution:
            await all_in.wait()
            execution.result = 2 * n

    async def wait() -> None:
        async with session.tool_execution("wait"):
            await all_in.wait()
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.gather(*map(execute, range(3)))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    recorded = {(call.name, call.arguments): (call.status, call.result) for call in await session.atool_calls()}
    assert recorded == {("double", n): ("ok", 2 * n) for n in range(3)} | {("wait", None): ("interrupted", None)}


async def test_an_execution_that_is_cancelled_before_its_block_does_not_stay_running(sessions: Sessions) -> None:
    session = await sessions.aopen("t")

    async def execute() -> None:
        async with session.tool_execution("never"):
            pytest.fail("the block began")

    executing = asyncio.create_task(execute())
    await asyncio.sleep(0)  # until the write of the start is under way
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    await sessions.aclose()
    with Sessions(sessions.settings.storage_url, sweep_interval=None) as again:
        assert {call.status for call in again.get("t").tool_calls()} <= {"interrupted"}


@pytest.mark.parametrize(
    ("settings", "ending", "denial"),
    [
        ({"on_resume": "reject"}, "expire", SessionExpired),
        ({"on_closed": "reject"}, "complete", SessionClosed),
        ({}, "delete", SessionNotFound),
        ({}, "revoke", SessionAccessDenied),
    ],
)
async def test_a_session_that_admits_none_refuses_it_before_the_block(
    open_sessions: OpenSessions, clock: Clock, settings: dict[str, Any], ending: str, denial: type[Exception]
) -> None:
    sessions = open_sessions(**settings)
    session = sessions.for_user("alice").open("t")
    if ending == "expire":
        clock.advance(hours=2)
    elif ending == "revoke":
        sessions.revoke("alice")
    else:
        getattr(session, ending)()
    with pytest.raises(denial), session.tool_execution("search"):
        pytest.fail("the block began")
    with pytest.raises(denial):
        async with session.tool_execution("search"):
            pytest.fail("the block began")


@pytest.mark.parametrize("on_resume", ["revive", "fresh"])
def test_an_execution_resumes_an_expired_session_as_its_settings_say(
    open_sessions: OpenSessions, clock: Clock, on_resume: str
) -> None:
    session = open_sessions(on_resume=on_resume).for_user("alice").open("t")
    clock.advance(hours=2)
    with session.tool_execution("search") as execution:
        execution.result = "tea"
    assert outcomes(session) == [("search", "ok", "tea", None)]


@pytest.mark.recorder_faults
def test_a_fault_of_the_recording_does_not_keep_the_block_from_running(sessions: Sessions, path: Path) -> None:
    session = sessions.open("t")
    sessions._storage.close()
    with session.tool_execution("search") as execution:
        execution.result = "tea"
    assert (execution.result, sessions.recorder.faults) == ("tea", 1)
