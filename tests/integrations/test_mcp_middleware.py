"""Sessions across the tools of MCP servers, with the clients and servers of the official SDK and of FastMCP.

The servers are in this process, except in the tests at the end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fastmcp
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)

from session_middleware import Session, Sessions
from session_middleware.integrations.mcp_middleware import MCPSessionMiddleware
from session_middleware.models import Identity
from tests.conftest import Clock, OpenSessions
from tests.support import mcp_app
from tests.support.postgres import binaries
from tests.support.processes import ROOT, Process

pytestmark = [pytest.mark.sessions(idle_timeout="1h", sweep_interval=None)]

KINDS = pytest.mark.parametrize("kind", ["sdk", "fastmcp"])


def client_of(server: Any, **options: Any) -> Client:
    """FastMCP's server contains one of the official SDK, which the SDK's client connects to."""
    return Client(getattr(server, "_mcp_server", server), **options)


def connect(kind: str, sessions: Sessions, *, mode: Any = "auto", **options: Any) -> Client:
    return client_of(mcp_app.MAKE[kind](sessions, **{"identity": "alice", **options}), mode=mode)


async def call(client: Client, name: str, session_id: object = None, **arguments: Any) -> str:
    """Call a tool in a session, and return the text of its result, or the error."""
    named = {} if session_id is None else {"session_id": session_id}
    result = await client.call_tool(name, {**arguments, **named})
    (content,) = result.content
    text: str = content.text  # type: ignore[union-attr]
    return f"error: {text}" if result.is_error else text


def recorded(session: Session) -> list[tuple[Any, ...]]:
    return [(each.name, each.arguments, each.status, each.result) for each in session.tool_calls()]


async def cancel_a_call(client: Client, session: Session) -> None:
    """Cancel a call once its start is recorded, and wait until its end is."""
    seq = session.tool_calls()[-1].seq
    calling = asyncio.create_task(call(client, "hang", session.id))
    for status in ("running", "interrupted"):
        until = partial(lambda wanted, record: record.status == wanted, status)
        assert [record async for record in session.afollow(after=seq, timeout="30s", until=until)]
        calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


@KINDS
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_call_names_its_session_by_an_argument_or_by_meta(sessions: Sessions, kind: str, mode: str) -> None:
    session = sessions.open("t", user_id="alice")
    async with connect(kind, sessions, mode=mode) as client:
        await call(client, "search", "t", q="by argument")
        result = await client.call_tool("search", {"q": "by meta"}, meta={"session_id": "t"})
        assert result.structured_content == {"found": "by meta"}
        await client.call_tool("search", {"q": "by both", "session_id": "guessed"}, meta={"session_id": "t"})
        await call(client, "search", q="no session")
        await call(client, "search", "", q="left empty")
    calls = session.tool_calls()
    assert [each.arguments for each in calls] == [{"q": "by argument"}, {"q": "by meta"}, {"q": "by both"}]
    assert (calls[0].status, calls[0].artifact) == ("ok", {"found": "by argument"})
    assert all(each.duration_ms is not None and each.started_at for each in calls)


@KINDS
async def test_the_argument_is_in_the_schemas_of_tools_that_have_none_of_this_name(
    sessions: Sessions, kind: str
) -> None:
    session = sessions.open("t", user_id="alice")
    async with connect(kind, sessions) as client:
        assert await call(client, "own", "mine") == "my own mine"  # before the tools were listed
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        result = await client.call_tool("own", {"session_id": "mine"}, meta={"session_id": "t"})
        assert result.structured_content == {"result": "my own mine"}
    assert tools["search"]["properties"]["session_id"]["type"] == "string"
    assert (tools["search"]["required"], "required" in tools["long"]) == (["q"], False)
    assert "description" not in tools["own"]["properties"]["session_id"]
    assert [call.arguments for call in session.tool_calls()] == [{"session_id": "mine"}]
    async with connect(kind, sessions, on_missing="refuse") as client:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert tools["search"]["required"] == ["q", "session_id"]
    async with connect(kind, sessions, argument=None) as client:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert "session_id" not in tools["search"]["properties"]


@KINDS
async def test_each_kind_of_result_reaches_the_client_and_the_record(sessions: Sessions, kind: str) -> None:
    session = sessions.open("t", user_id="alice")
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with connect(kind, sessions, mode="legacy") as client:  # FastMCP sends no progress to others in its process
        assert await call(client, "long", "t") == mcp_app.LONG
        picture = await client.call_tool("picture", {"session_id": "t"})
        assert picture.content[0].mime_type == "image/png"  # type: ignore[union-attr]
        assert await call(client, "fail", "t") == "error: no tea today"
        assert (await call(client, "crash", "t")).startswith("error: Error ")
        assert (await call(client, "missing", "t")).startswith("error: Unknown tool")
        await client.call_tool("slow", {"session_id": "t"}, progress_callback=on_progress)
        await cancel_a_call(client, session)
    assert seen == [1, 2]
    calls = {each.name: each for each in session.tool_calls()}
    assert {name: each.status for name, each in calls.items()} == {
        "long": "ok",
        "picture": "ok",
        "slow": "ok",
        "fail": "error",
        "crash": "error",
        "missing": "error",
        "hang": "interrupted",
    }
    (block,) = calls["picture"].result
    assert (block["type"], block["mime_type"], session.file(block["base64"])) == ("image", "image/png", mcp_app.PICTURE)
    assert (calls["long"].result, calls["fail"].error) == (mcp_app.LONG, "no tea today")
    assert session.stats().error_count == 3


@KINDS
async def test_a_session_of_another_user_does_not_exist_and_no_refused_call_is_executed(
    open_sessions: OpenSessions, kind: str
) -> None:
    sessions = open_sessions()
    for session_id, options in {
        "hers": {"user_id": "alice"},
        "shared": {"user_id": "alice", "group_id": "tea", "visibility": "group"},
        "nobody's": {},
    }.items():
        sessions.open(session_id, **options)
    bad = ["hers", "unknown", "nobody's", "x" * 100_000, "a\0b", "\ud7ff", 5, ["t"], {"t": 1}, True]
    async with connect(kind, sessions, identity=lambda request: Identity(user_id="bob", group_ids=("tea",))) as bob:
        for session_id in bad:
            answer = await call(bob, "die", session_id)
            assert "does not exist. Pass the id of your open session as 'session_id', or call the tool" in answer
            assert len(answer) < 300
        assert "may only be read by you" in await call(bob, "die", "shared")
    async with connect(kind, sessions, identity=None) as nobody:
        assert "does not exist" in await call(nobody, "die", "hers")
        await call(nobody, "search", "nobody's", q="tea")
    sessions.revoke("carol")
    async with connect(kind, sessions, identity="carol", on_missing="refuse") as carol:
        assert "access was withdrawn" in await call(carol, "die", "hers")
        assert await call(carol, "die") == (
            "error: This call names no session. Pass the id of your session as 'session_id'."
        )
    assert {each.id: len(each.tool_calls()) for each in sessions.list()} == {"hers": 0, "shared": 0, "nobody's": 1}


@pytest.mark.parametrize("kind", ["sdk"])
async def test_sessions_that_ended_and_unknown_ones_are_treated_as_the_settings_say(
    open_sessions: OpenSessions, clock: Clock, kind: str
) -> None:
    sessions, strict = open_sessions(), open_sessions(on_resume="reject", on_closed="reject")
    sessions.open("expired", user_id="alice")
    clock.advance(hours=2)
    sessions.open("closed", user_id="alice").complete()
    sessions.open("theirs", user_id="bob")
    sessions.open("archived", user_id="bob", on_expire="archive", idle_timeout="1s")
    clock.advance(minutes=1)
    assert [each.session_id for each in sessions.sweep()] == ["expired", "archived"]
    async with connect(kind, strict) as client:
        assert "has expired. Pass the id of your open session" in await call(client, "die", "expired")
        assert "has ended. Pass" in await call(client, "die", "closed")
    async with connect(kind, sessions, on_unknown="open") as client:
        for session_id in ("expired", "closed", "new"):
            await call(client, "search", session_id, q=session_id)
        for session_id in ("theirs", "archived"):
            assert "does not exist" in await call(client, "die", session_id)
    async with connect(kind, sessions, on_unknown="open", identity=None) as nobody:
        for session_id in ("theirs", "archived"):
            assert "does not exist" in await call(nobody, "die", session_id)
        await call(nobody, "search", "new and nobody's", q="tea")
    assert sessions.get("new and nobody's").user_id is None
    events = {each.id: [event.kind for event in each.events()] for each in sessions.for_user("alice").list()}
    assert events == {
        "expired": ["opened", "expired", "denied", "revived"],
        "closed": ["opened", "completed", "denied", "reopened"],
        "new": ["opened"],
    }


@pytest.mark.recorder_faults
@KINDS
async def test_a_fault_of_the_record_does_not_break_a_call(sessions: Sessions, kind: str) -> None:
    sessions.open("t", user_id="alice")
    async with connect(kind, sessions) as client:
        sessions._storage.close()
        assert "tea" in await call(client, "search", "t", q="tea")
    assert sessions.recorder.faults == 1


@pytest.mark.parametrize("lists_tools", [True, False])
async def test_a_low_level_server_may_list_its_tools_in_pages_or_not_at_all(
    sessions: Sessions, lists_tools: bool
) -> None:
    session = sessions.open("t", user_id="alice")

    async def execute(ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=[TextContent(text=f"{params.arguments}"), TextContent(text="and more")])

    async def pages(ctx: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        number = int((params and params.cursor) or 0)
        schema = {"type": "object", "properties": {"session_id": {"type": "string"}} if number else {}}
        tool = Tool(name=("search", "own")[number], input_schema=schema)
        return ListToolsResult(tools=[tool], next_cursor=None if number else "1")

    server = Server("low", on_call_tool=execute, on_list_tools=pages if lists_tools else None)
    server.middleware.append(MCPSessionMiddleware(sessions, identity="alice"))

    async def send(client: Client, **params: Any) -> CallToolResult:  # `call_tool` would list the tools
        request = CallToolRequest(params=CallToolRequestParams.model_construct(**params))
        return await client.session.send_request(request, CallToolResult)

    async with client_of(server) as client:
        for name in ("search", "own"):
            (text, _) = (await send(client, name=name, arguments={"session_id": "t"})).content
            assert text == TextContent(text="{'session_id': 't'}" if lists_tools and name == "own" else "{}")
        with pytest.raises(MCPError):
            await send(client, arguments={"session_id": "t"})
    parts = [{"type": "text", "text": "{}"}, {"type": "text", "text": "and more"}]
    assert recorded(session) == [(name, {}, "ok", parts) for name in ("search", "own")[: 1 if lists_tools else 2]]


@pytest.mark.parametrize(
    "options", [{"identity": ""}, {"argument": ""}, {"on_unknown": "create"}, {"on_missing": 1}, {"identity": 1.5}]
)
def test_an_invalid_option_is_refused_where_it_is_given(sessions: Sessions, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|pass"):
        MCPSessionMiddleware(sessions, **options)
    with pytest.raises(TypeError, match=r"Sessions\("):
        MCPSessionMiddleware("sessions.db")  # type: ignore[arg-type]


# Other processes


@pytest.fixture(scope="module")
def databases(request: pytest.FixtureRequest, migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A database of each engine that is installed."""
    found = {"sqlite": shutil.copy(migrated_file, tmp_path_factory.mktemp("mcp") / "sessions.db")}
    with ExitStack() as stack:
        if binaries() is not None:
            found["postgres"] = stack.enter_context(request.getfixturevalue("postgres_server").database())
        yield found


@pytest.fixture(scope="module")
def addresses(databases: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
    """By engine, the addresses of two servers in processes of their own: one of each SDK."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(Process(mcp_app.__file__, kind, "http", *databases.values(), env=ENVIRONMENT))
            for kind in mcp_app.MAKE
        ]
        ports = [process.stdout.readline().strip() for process in started]
        yield {engine: [f"http://127.0.0.1:{port}/{n}/mcp" for port in ports] for n, engine in enumerate(databases)}


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "SESSION_SYNCHRONOUS": "normal"}


@asynccontextmanager
async def over_http(address: str, user: str, *, mode: Any = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {user}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
        Client(streamable_http_client(address, http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_one_session_spans_the_servers_of_several_processes_and_belongs_to_the_user_of_the_token(
    request: pytest.FixtureRequest, databases: dict[str, Any], engine: str
) -> None:
    if engine not in databases:
        pytest.skip("PostgreSQL is not installed")
    first, second = request.getfixturevalue("addresses")[engine]
    with Sessions(databases[engine], sweep_interval=None) as sessions:
        session = sessions.open("t", user_id="alice")
        async with (
            over_http(first, "alice", mode="legacy") as legacy,
            over_http(second, "alice") as modern,
            fastmcp.Client(second, auth="alice") as fast,
            over_http(first, "bob") as bob,
        ):
            calls = [
                client.call_tool("search", {"q": f"{name} {n}", "session_id": "t"})
                for name, client in {"legacy": legacy, "modern": modern, "fast": fast}.items()
                for n in range(8)
            ]
            answers = await asyncio.gather(*calls)
            for client in (legacy, modern):
                await cancel_a_call(client, session)
            assert "does not exist" in await call(bob, "die", "t")
        refused = httpx2.post(first, json={}, headers={"Authorization": "Bearer mallory"}, trust_env=False, timeout=60)
        assert refused.status_code == 401
        found = [each.arguments["q"] for each in session.tool_calls() if each.name == "search"]
        assert sorted(found) == sorted(f"{name} {n}" for name in ("legacy", "modern", "fast") for n in range(8))
        assert [answer.structured_content["found"] for answer in answers] == [  # type: ignore[union-attr,index]
            f"{name} {n}" for name in ("legacy", "modern", "fast") for n in range(8)
        ]
        assert {each.name: each.status for each in session.tool_calls()} == {"search": "ok", "hang": "interrupted"}
        assert sessions.check(deep=True) == []


@pytest.mark.slow
async def test_a_call_over_stdio_of_a_server_that_is_killed_stays_on_record(path: Path) -> None:
    command = [mcp_app.__file__, "sdk", "stdio", str(path)]
    with Sessions(path, sweep_interval=None) as sessions:
        session = sessions.open("t", user_id="alice")
        parameters = StdioServerParameters(command=sys.executable, args=command, env={**os.environ, **ENVIRONMENT})
        async with Client(parameters) as client:
            await call(client, "search", "t", q="tea")
            with pytest.raises(MCPError):
                await call(client, "die", "t")
        sessions.sweep()
        assert [(each.name, each.status) for each in session.tool_calls()] == [("search", "ok"), ("die", "interrupted")]
