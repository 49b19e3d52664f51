"""Following a session over HTTP, with a client of server-sent events that we did not write."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from langchain_core.tools import tool
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, app, follow
from tests.support import agents
from tests.support.agents import human
from tests.support.processes import Process
from tests.support.served_app import serving

pytest.importorskip("uvicorn")

Events = AsyncIterator[ServerSentEvent]


def by_header(connection: HTTPConnection) -> Caller | None:
    """Who the header says: as a test's proxy would."""
    user = connection.headers.get("user")
    return Caller(user, tuple(filter(None, connection.headers.get("groups", "").split()))) if user else None


@pytest.fixture
def url(sessions: Sessions) -> Iterator[str]:
    with serving(app(sessions, authenticate=by_header)) as found:
        yield found


@asynccontextmanager
async def following(url: str, session_id: str, **options: Any) -> AsyncIterator[tuple[httpx.Response, Events]]:
    headers = {"user": "ada", **options.pop("headers", {})}
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client,
        aconnect_sse(client, "GET", f"/session/{session_id}/follow", headers=headers, **options) as source,
    ):
        yield source.response, source.aiter_sse()


async def until(events: Events, **wanted: Any) -> list[ServerSentEvent]:
    """The events up to the first whose record has these values."""
    found = []
    async for event in events:
        found.append(event)
        if wanted.items() <= json.loads(event.data).items():
            break
    return found


@pytest.mark.usefixtures("each_engine")
async def test_the_record_comes_first_and_then_each_new_record(sessions: Sessions, url: str) -> None:
    graph = sessions.attach(agents.tool_graph())
    await graph.ainvoke(human("look up tea"), sessions.config("a/b", user_id="ada"))
    session = sessions.get("a/b")
    async with following(url, "a%2Fb") as (response, events):
        assert response.headers["content-type"].startswith("text/event-stream")
        found = await until(events, seq=session.timeline()[-1].seq)
        records = [json.loads(event.data) for event in found]
        assert [(event.event, event.id) for event in found] == [(each["record"], str(each["seq"])) for each in records]
        assert [each["seq"] for each in records] == [record.seq for record in session.timeline()]
        await session.aadd(human("more")["messages"][0])
        (new,) = await until(events, record="message")
        assert json.loads(new.data)["text"] == "more"
    async with following(url, "a%2Fb", params={"after": 3}, headers={"Last-Event-ID": new.id}) as (response, events):
        await session.acomplete()
        await sessions.aopen("a/b", user_id="ada")  # it goes on after the end of the session
        assert [json.loads(event.data)["kind"] for event in await until(events, kind="reopened")] == [
            "completed",
            "reopened",
        ]


WRITER = """
import sys
from session_middleware import Sessions
with Sessions(sys.argv[1]) as sessions:
    session = sessions.get("t")
    session.add({"role": "user", "content": "from elsewhere"})
    input()
    sessions.delete("t")
"""


async def test_what_another_process_does_is_seen_until_the_session_is_deleted(
    sessions: Sessions, url: str, each_engine: str
) -> None:
    sessions.open("t", user_id="ada")
    async with following(url, "t") as (_, events):
        writer = Process("-c", WRITER, each_engine, stdin=True)
        assert [event.event for event in await until(events, text="from elsewhere")] == ["event", "message"]
        writer.say("")
        assert [event.event async for event in events] == []
    assert writer.communicate() == ("", "")


async def test_a_client_that_comes_back_gets_the_changes_of_what_was_unfinished(sessions: Sessions, url: str) -> None:
    goes_on = threading.Event()

    @tool
    def price(thing: str) -> str:
        """What a thing costs."""
        assert goes_on.wait(20)
        return "3"

    graph = sessions.attach(agents.tool_graph(price))
    await sessions.aopen("t", user_id="ada")
    turn = asyncio.create_task(graph.ainvoke(human("both tea"), sessions.config("t", user_id="ada")))
    async with following(url, "t") as (_, events):
        last = (await until(events, name="price", status="running"))[-1]
    goes_on.set()
    await turn
    async with following(url, "t", headers={"Last-Event-ID": last.id}) as (_, events):
        again = [json.loads(event.data) for event in await until(events, seq=json.loads(last.data)["seq"])]
    assert again[0]["record"] == "run"  # which was unfinished too
    assert (again[-1]["name"], again[-1]["status"]) == ("price", "ok")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"user": "bob"}, 404),
        ({"user": "bob", "groups": "staff"}, 200),
        ({}, 401),
        ({"user": "ada", "Last-Event-ID": "x"}, 422),
        ({"user": "ada", "Last-Event-ID": str(2**63)}, 422),
    ],
)
async def test_a_session_is_followed_by_those_who_may_read_it(
    sessions: Sessions, url: str, headers: dict[str, str], status: int
) -> None:
    sessions.open("t", user_id="ada", group_id="staff", visibility="group")
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        async with client.stream("GET", "/session/t/follow", headers=headers) as response:
            assert response.status_code == status
        for session_id in ("nothing", "%00", "x" * 2000, "a/b/c"):
            async with client.stream("GET", f"/session/{session_id}/follow", headers={"user": "ada"}) as response:
                assert response.status_code in (404, 422)


async def test_a_silent_stream_has_heartbeats(sessions: Sessions, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_HEARTBEAT_SECONDS", 0.01)
    sessions.open("t", user_id="ada")
    async with following(url, "t", params={"after": 1}) as (response, _):
        async for line in response.aiter_lines():
            if line.startswith(":"):
                break


@pytest.mark.usefixtures("each_engine")
async def test_a_revoked_user_is_told_and_cut_off(sessions: Sessions, url: str, open_sessions: Any) -> None:
    sessions.open("t", user_id="bob", group_id="staff", visibility="group")
    async with following(url, "t", headers={"groups": "staff"}) as (response, events):
        await until(events, record="event")
        open_sessions().revoke("ada")  # nothing happens in the session, which is another user's
        (last,) = [event async for event in events]
    assert (last.event, json.loads(last.data)["error"]) == ("error", "UserRevoked")
    async with following(url, "t", headers={"groups": "staff"}) as (response, events):
        assert response.status_code == 403


async def test_a_deeply_nested_result_does_not_end_the_stream(sessions: Sessions, url: str) -> None:
    session = sessions.open("t", user_id="ada")
    async with session.tool_execution("parse", {}) as execution:
        execution.result = json.loads('{"a":' * 400 + "1" + "}" * 400)
    async with following(url, "t") as (_, events):
        assert json.loads((await until(events, record="tool_call"))[-1].data)["result"] == execution.result
