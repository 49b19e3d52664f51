"""Runs of another server process of the same database: joined, cancelled, and continued when it was killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError

from session_middleware import Sessions
from session_middleware.integrations.server.runs.notes import DIED
from session_middleware.models import utc_now
from tests.integrations.server.test_runs import GRAPH, counts, say, texts, until
from tests.support import gated_server
from tests.support.processes import Process

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


class Elsewhere:
    """A server process."""

    def __init__(self, url: str, folder: Path) -> None:
        environment = {"SESSION_SYNCHRONOUS": "normal"}
        self.process = Process(gated_server.__file__, url, str(folder), env=environment, stdin=True)
        address = self.process.stdout.readline().strip()
        assert address, self.process.stderr.read()
        self.client: LangGraphClient = get_client(url=address)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)

    async def close(self) -> None:
        await self.client.aclose()
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            assert self.process.wait(timeout=20) == 0
        self.process.close()


@asynccontextmanager
async def two_processes(url: str, folder: Path) -> AsyncIterator[tuple[Elsewhere, Elsewhere]]:
    a, b = Elsewhere(url, folder), Elsewhere(url, folder)
    with Sessions(url) as sessions:
        sessions.open("t", user_id="alice")
    yield a, b
    await a.close()
    await b.close()


async def seen(stream: AsyncIterator[Any], is_last: Callable[[Any], bool]) -> list[Any]:
    async with aclosing(stream):  # type: ignore[type-var]
        return await until(stream, is_last)


MODES: Any = ["custom", "values"]


async def test_a_run_is_joined_and_cancelled_from_another_process(postgres_url: str, tmp_path: Path) -> None:
    async with two_processes(postgres_url, tmp_path) as processes:
        a, b = (each.client.runs for each in processes)
        for name in "ab":
            stream = a.stream("t", GRAPH, input=say(f"hold {name}"), stream_mode=MODES, stream_resumable=name == "a")
            first = await seen(stream, lambda part: part.event == "custom" and part.data["count"] == 3)
            run_id = first[0].data["run_id"]
            more = await seen(b.join_stream("t", run_id, last_event_id=first[-1].id), counts)
            waiting = await b.create("t", GRAPH, input=say("two"))
            assert [run["status"] for run in await a.list("t", limit=2)] == ["pending", "running"]
            (tmp_path / name).touch()
            rest = [part async for part in b.join_stream("t", run_id, last_event_id=more[-1].id)]
            numbers = [part.data["count"] for part in [*first, *more, *rest] if part.event == "custom"]
            assert numbers == list(range(1, len(numbers) + 1))
            assert texts(rest[-1].data)[-3:] == [f"hold {name}", f"you said hold {name}", "yours"]
            before = texts(await a.join("t", waiting["run_id"]))
            assert before[-3:] == ["two", "you said two", "yours"]

        for action, held in (("rollback", []), ("interrupt", ["hold c"])):
            first = await seen(a.stream("t", GRAPH, input=say("hold c"), stream_mode=MODES), counts)
            run_id = first[0].data["run_id"]
            values: Any = await b.cancel("t", run_id, wait=True, action=action)  # type: ignore[arg-type,func-returns-value]
            assert texts(values) == [*before, *held]
            await seen(a.stream("t", GRAPH, input=say("hold c"), stream_mode=MODES), counts)
            after = texts(await b.wait("t", GRAPH, input=say("three"), multitask_strategy=action))  # type: ignore[arg-type]
            assert after == [*before, *held, *held, "three", "you said three", "yours"]
            before = after


async def test_of_two_runs_at_once_that_may_not_wait_one_is_refused(postgres_url: str, tmp_path: Path) -> None:
    async with two_processes(postgres_url, tmp_path) as processes:
        for name in "abc":
            body = {"assistant_id": GRAPH, "input": say(f"hold {name}"), "multitask_strategy": "reject"}
            asked = (each.client.http.post("/threads/t/runs", json=body) for each in processes)
            answers = await asyncio.gather(*asked, return_exceptions=True)
            (run,) = [each for each in answers if isinstance(each, dict)]
            assert sum(isinstance(each, ConflictError) for each in answers) == 1
            runs = processes[0].client.runs
            assert (await runs.list("t", limit=1))[0]["run_id"] == run["run_id"]
            (tmp_path / name).touch()
            assert texts(await runs.join("t", run["run_id"]))[-1] == "yours"
        assert [each["status"] for each in await runs.list("t")] == ["success"] * 3


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_the_runs_of_a_killed_process_end_and_their_thread_goes_on(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = str(request.getfixturevalue("path" if engine == "sqlite" else "postgres_url"))
    async with two_processes(url, tmp_path) as processes:
        a, b = (each.client.runs for each in processes)
        stream = a.stream("t", GRAPH, input=say("hold a"), stream_mode=MODES, stream_resumable=True)
        first = await seen(stream, counts)
        run_id = first[0].data["run_id"]
        waiting = await a.create("t", GRAPH, input=say("two"))
        more = await seen(b.join_stream("t", run_id, last_event_id=first[-1].id), counts)
        alone = await a.create(None, GRAPH, input=say("hold a"))
        processes[0].kill()
        rest = [part async for part in b.join_stream("t", run_id, last_event_id=more[-1].id)]
        ended = {"error": "ServerEnded", "message": DIED}
        assert (rest[-1].event, rest[-1].data) == ("error", ended)
        numbers = [part.data["count"] for part in [*first, *more, *rest] if part.event == "custom"]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await b.join("t", waiting["run_id"]) == {"__error__": ended}
        assert [run["status"] for run in await b.list("t")] == ["error", "error"]
        (tmp_path / "a").touch()
        assert texts(await b.wait("t", GRAPH, input=None)) == ["hold a", "you said hold a", "yours"]
        with Sessions(url) as sessions:
            assert [run.outcome for run in sessions.get("t").runs()] == ["interrupted", "ok"]
            assert sessions.find(alone["thread_id"]) is not None
        with Sessions(url, clock=lambda: utc_now() + timedelta(hours=3)) as later:
            later.sweep()
            assert [session.id for session in later.list()] == ["t"]
