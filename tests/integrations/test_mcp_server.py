"""The MCP server, driven by the SDK's own client and by the inspector: over stdio, over HTTP, and in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from itertools import chain, product
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("mcp")
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.provider import AccessToken
from mcp.types import CallToolResult, Tool

from session_middleware import Sessions, UserRevoked
from session_middleware.errors import InvalidArgument
from session_middleware.integrations.mcp_server import Caller, SessionServer, server
from tests.conftest import Clock, OpenSessions
from tests.support.node import program
from tests.support.pairwise import engines_in_turns
from tests.support.processes import ROOT, Process

TOOLS = {
    *("create_session", "resume_session", "get_session_info", "list_sessions", "list_user_sessions", "update_session"),
    *("complete_session", "expire_session", "get_session_stats", "add_message", "link_invocation", "get_conversation"),
    *("search_sessions", "export_session", "merge_sessions", "cleanup_sessions", "remember", "recall", "forget"),
}
TEMPLATES = {
    "session://{session_id}",
    "session://{session_id}/timeline",
    "session://{session_id}/stats",
    "user://{user_id}/sessions",
}
READING = {
    *("get_session_info", "list_sessions", "list_user_sessions", "get_session_stats"),
    *("get_conversation", "search_sessions", "export_session", "recall"),
}
SECRET = "the launch code is swordfish"


class Calls:
    """A client whose calls return what the tool answers, and which knows the tools and resources it has used."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.used: set[str] = set()

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        self.used.add(tool)
        result = await self.client.call_tool(tool, arguments)  # the client validates it by the output schema
        assert isinstance(result, CallToolResult)
        assert not result.is_error, result.content
        assert result.structured_content is not None
        assert json.loads(text_of(result)) == result.structured_content
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        """The sentence with which the server refuses the call."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        assert result.is_error, result.structured_content
        return text_of(result)

    async def read(self, template: str, **values: str) -> str:
        self.used.add(template)
        [content] = (await self.client.read_resource(template.format(**values))).contents
        return str(content.text)  # type: ignore[union-attr]  # ours are texts


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    return str(content.text)  # type: ignore[union-attr]  # ours are texts


@asynccontextmanager
async def inside(made: SessionServer) -> AsyncIterator[Calls]:
    async with Client(made) as client:
        yield Calls(client)


# Over stdio


def stdio(url: str, *arguments: str) -> StdioServerParameters:
    command = ["-m", "session_middleware.cli", "mcp", "--db", url, *arguments]
    env = {"PYTHONPATH": str(ROOT), "SESSION_SYNCHRONOUS": "normal"}
    return StdioServerParameters(command=sys.executable, args=command, env=env)


def kill_children() -> None:
    """Kill the servers that the client of this process has started."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    for line in found.stdout.splitlines():
        if "session_middleware.cli" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.slow
async def test_a_killed_server_loses_nothing_and_all_tools_and_resources_work_over_stdio(path: Path) -> None:
    async with Client(stdio(str(path))) as client:
        call = Calls(client)
        made = await call(
            "create_session", session_id="trip", title="Lisbon", tags=["travel"], context={"seat": "aisle"}
        )
        assert made["context"] == {"seat": "aisle"}
        await call("add_message", session_id="trip", role="user", content="find a flight to Lisbon")
        await call("link_invocation", session_id="trip", tool_name="search", result={"flights": 2}, duration_ms=12.5)
        note = await call("remember", session_id="trip", text="Window seats make them sick.")
        kill_children()
    async with Client(stdio(str(path)), mode="legacy") as client:  # an older client
        again = Calls(client)
        again.used |= call.used
        await tour(again, note["key"])
        tools = {tool.name for tool in (await client.list_tools()).tools}
        templates = {each.uri_template for each in (await client.list_resource_templates()).resource_templates}
        resources = {each.uri for each in (await client.list_resources()).resources}
    assert (tools, templates, resources) == (TOOLS, TEMPLATES, {"stats://"})
    assert again.used == tools | templates | resources


async def tour(call: Calls, key: str) -> None:
    resumed = await call("resume_session", session_id="trip")
    assert (resumed["opened_as"], resumed["session"]["title"]) == ("resumed", "Lisbon")
    assert [each["text"] for each in resumed["recent_messages"]] == ["find a flight to Lisbon"]
    assert [each["result"] for each in resumed["recent_tool_calls"]] == [{"flights": 2}]
    assert (await call("recall", session_id="trip", query="window seat"))["memories"][0]["key"] == key
    assert (await call("forget", session_id="trip", key=key))["count"] == 1
    assert (await call("recall", session_id="trip", query="window"))["memories"] == []
    changed = await call("update_session", session_id="trip", title="Porto", metadata={"paid": True})
    assert (changed["title"], changed["metadata"], changed["tags"]) == ("Porto", {"paid": True}, ["travel"])
    assert (await call("get_session_info", session_id="trip"))["tool_call_count"] == 1
    assert [each["id"] for each in (await call("list_sessions", tags=["travel"]))["sessions"]] == ["trip"]
    assert (await call("search_sessions", query="flight"))["hits"][0]["excerpt"] == "find a flight to Lisbon"
    assert (await call("get_session_stats", session_id="trip"))["tools"] == {"search": 1}
    [said] = (await call("get_conversation", session_id="trip"))["messages"]
    assert (said["role"], said["text"]) == ("user", "find a flight to Lisbon")
    assert (await call("export_session", session_id="trip"))["content"].startswith("# Porto\n")
    await call("create_session", session_id="other")
    await call("add_message", session_id="other", role="assistant", content="there are two")
    merged = await call("merge_sessions", session_id="trip", secondary_id="other")
    assert (merged["id"], merged["message_count"]) == ("trip", 2)
    assert (await call("get_session_info", session_id="other"))["id"] == "trip"
    assert json.loads(await call.read("session://{session_id}", session_id="trip"))["title"] == "Porto"
    timeline = await call.read("session://{session_id}/timeline", session_id="trip")
    assert re.search(r'tool_call: search\(.*\) → ok, 12.5 ms: \{"flights": 2\}', timeline)
    assert json.loads(await call.read("session://{session_id}/stats", session_id="trip"))["messages_out"] == 1
    assert (await call("complete_session", session_id="trip", reason="booked"))["status"] == "completed"
    assert (await call("resume_session", session_id="trip"))["opened_as"] == "reopened"
    assert (await call("expire_session", session_id="trip"))["status"] == "expired"
    assert json.loads(await call.read("stats://"))["sessions"]["expired"] == 1
    assert (await call("cleanup_sessions", older_than="1d"))["count"] == 0
    assert (await call("list_user_sessions", user_id="alice"))["sessions"] == []
    assert json.loads(await call.read("user://{user_id}/sessions", user_id="alice")) == {"sessions": []}


@pytest.mark.slow
def test_ctrl_c_ends_a_server_on_stdio_whose_client_is_still_there(path: Path) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    with run("mcp", "--db", str(path), stdin=True) as process:
        process.say(json.dumps(ping))
        assert json.loads(process.stdout.readline())["id"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT


# Over HTTP

VERIFIER = """
from mcp.server.auth.provider import AccessToken

class Tokens:
    async def verify_token(self, token):
        user = token.removeprefix("token-of-")
        return None if user == token else AccessToken(token=token, client_id="app", scopes=[], subject=user)

verifier = Tokens()
"""


def run(*arguments: str, stdin: bool = False) -> Process:
    return Process("-c", "from session_middleware.cli.main import main; main()", *arguments, stdin=stdin)


@contextmanager
def serving(url: str, *arguments: str) -> Iterator[str]:
    """The address of a server process over HTTP."""
    with run("mcp", "--db", url, "--http", "--port", "0", *arguments) as process:
        line = process.stdout.readline()
        found = re.search(r"http://\S+/mcp", line)
        assert found is not None, line + process.stderr.read()
        yield found[0]


@asynccontextmanager
async def over_http(url: str, user_id: str | None = None, mode: str = "auto") -> AsyncIterator[Calls]:
    headers = {} if user_id is None else {"Authorization": f"Bearer token-of-{user_id}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield Calls(client)


@pytest.mark.slow
@engines_in_turns(mode=["auto", "legacy"])
async def test_two_processes_serve_two_users_of_one_database(mode: str, each_engine: str) -> None:
    Path("their_tokens.py").write_text(VERIFIER)
    tokens = ("--auth", "their_tokens:verifier")
    with serving(each_engine, *tokens) as one, serving(each_engine, *tokens) as two:
        async with over_http(one, "alice", mode) as alice, over_http(two, "alice", mode) as elsewhere:
            made = await alice("create_session", title="Trip")
            assert made["user_id"] == "alice"
            adding = (alice("add_message", session_id=made["id"], role="user", content=str(n)) for n in range(5))
            there = (elsewhere("link_invocation", session_id=made["id"], tool_name=str(n)) for n in range(5))
            await asyncio.gather(*adding, *there)
            resumed = await elsewhere("resume_session", session_id=made["id"])
            assert (resumed["session"]["message_count"], resumed["session"]["tool_call_count"]) == (5, 5)
            async with over_http(two, "bob", mode) as bob:
                assert (await bob("list_sessions"))["sessions"] == []
                assert (await bob.refused("resume_session", session_id=made["id"])).startswith("there is no session")
        for token in ("nonsense", None):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            refused = httpx2.post(one, json={}, headers=headers, trust_env=False, timeout=60)
            assert (refused.status_code, "www-authenticate" in refused.headers) == (401, True)


HERE = "http://127.0.0.1:8000"


@asynccontextmanager
async def asgi(made: SessionServer, client: str = "127.0.0.1", **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    app = made.streamable_http_app(host="0.0.0.0")
    transport = httpx2.ASGITransport(app, client=(client, 1234))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, headers=headers, base_url=HERE, timeout=60) as http,
    ):
        yield http


@asynccontextmanager
async def as_user(made: SessionServer, token: str) -> AsyncIterator[Calls]:
    async with (
        asgi(made, Authorization=f"Bearer {token}") as http,
        Client(streamable_http_client(f"{HERE}/mcp", http_client=http)) as client,
    ):
        yield Calls(client)


TOOLS_LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
LIST_SESSIONS = TOOLS_LIST | {"method": "tools/call", "params": {"name": "list_sessions", "arguments": {}}}
JSON = {"Accept": "application/json, text/event-stream"}


async def test_without_tokens_only_programs_of_this_machine_are_served_as_one_user(sessions: Sessions) -> None:
    async with asgi(server(sessions)) as http:
        async with Client(streamable_http_client(f"{HERE}/mcp", http_client=http)) as client:
            assert (await Calls(client)("create_session"))["user_id"] == "local"
            assert "only the operator" in await Calls(client).refused("cleanup_sessions")
        assert "tools" in (await http.post("/mcp", json=TOOLS_LIST, headers=JSON)).json()["result"]
        forwarded = await http.post("/mcp", json=TOOLS_LIST, headers=JSON | {"X-Forwarded-For": "127.0.0.1"})
        assert "only programs of this machine" in forwarded.json()["error"]["message"]
        for header, status in (("Host", 421), ("Origin", 403)):  # a page whose name an attacker rebinds to this machine
            headers = JSON | {header: "evil.example:8000" if header == "Host" else "http://evil.example"}
            assert (await http.post("/mcp", json=TOOLS_LIST, headers=headers)).status_code == status
    async with asgi(server(sessions), client="10.0.0.7") as http:
        refused = (await http.post("/mcp", json=TOOLS_LIST, headers=JSON)).json()
        assert "only programs of this machine" in refused["error"]["message"]


class Tokens:
    async def verify_token(self, token: str) -> AccessToken:
        return AccessToken(token=token, client_id="app", scopes=[], subject=token, claims={"groups": ["team", 7]})


async def test_the_identity_comes_from_the_verified_token(sessions: Sessions) -> None:
    def caller_of(token: AccessToken) -> Caller | None:
        return None if token.subject == "eve" else Caller(str(token.subject), is_operator=token.subject == "root")

    shared = sessions.open("shared", user_id="bob", group_id="team", visibility="group")
    for identity, user, seen in (
        (None, "alice", ["shared"]),
        (caller_of, "alice", []),
        (caller_of, "root", ["shared"]),
    ):
        async with as_user(server(sessions, identity, token_verifier=Tokens()), user) as call:
            assert [each["id"] for each in (await call("list_sessions"))["sessions"]] == seen
            if identity is None:  # a group may read it
                refused = await call.refused("add_message", session_id=shared.id, role="user", content="hi")
                assert refused == "you may only read this session; call create_session to begin one of your own"
    async with asgi(server(sessions, caller_of, token_verifier=Tokens()), Authorization="Bearer eve") as http:
        refused = (await http.post("/mcp", json=TOOLS_LIST, headers=JSON)).json()
        assert "names no user of this server" in refused["error"]["message"]
    with pytest.RaisesGroup(pytest.RaisesExc(MCPError, match="needs a token"), flatten_subgroups=True):
        async with inside(server(sessions, token_verifier=Tokens())):
            pass


async def test_the_jwt_verifier_of_the_http_server_finds_user_groups_and_operators(sessions: Sessions) -> None:
    jwt = pytest.importorskip("jwt")
    pytest.importorskip("fastapi")
    from session_middleware.integrations.server import JwtVerifier

    secret = "a secret of thirty-two bytes or more"
    verifier = JwtVerifier(
        issuer="us",
        audience="mcp",
        keys=secret,
        algorithms=("HS256",),
        groups_claim="groups",
        is_operator=lambda claims: claims["sub"] == "root",
    )
    claims = {"iss": "us", "aud": "mcp", "exp": 2**32, "groups": ["team"]}
    sessions.open("shared", user_id="bob", group_id="team", visibility="group")
    for user in ("alice", "root"):
        made = server(sessions, token_verifier=verifier)
        async with as_user(made, jwt.encode(claims | {"sub": user}, secret, "HS256")) as call:
            assert [each["id"] for each in (await call("list_sessions"))["sessions"]] == ["shared"]
            result = await call.client.call_tool("cleanup_sessions", {})
            assert isinstance(result, CallToolResult)
            assert result.is_error == (user == "alice")
    async with asgi(server(sessions, token_verifier=verifier), Authorization="Bearer nonsense") as http:
        assert (await http.post("/mcp", json=TOOLS_LIST, headers=JSON)).status_code == 401


async def test_a_revoked_user_is_refused_at_the_next_call(sessions: Sessions) -> None:
    async with inside(server(sessions, "alice")) as call:
        made = await call("create_session")
        sessions.revoke("alice")
        for tool, arguments in (("list_sessions", {}), ("get_session_info", {"session_id": made["id"]})):
            assert "revoked" in await call.refused(tool, **arguments)
    with pytest.raises(UserRevoked):
        sessions.for_user("alice").list()


async def test_a_revoked_operator_is_refused(sessions: Sessions) -> None:
    def caller_of(token: AccessToken) -> Caller:
        return Caller(str(token.subject), is_operator=True)

    sessions.open("of-alice", user_id="alice")
    sessions.revoke("root")
    async with asgi(server(sessions, caller_of, token_verifier=Tokens()), Authorization="Bearer root") as http:
        answer = (await http.post("/mcp", json=LIST_SESSIONS, headers=JSON)).json()
    assert "your access was revoked" in answer["error"]["message"]


def test_a_function_of_tokens_needs_a_verifier(sessions: Sessions) -> None:
    with pytest.raises(InvalidArgument, match="token_verifier"):
        server(sessions, lambda token: None)


# Other users


def valid(tool: Tool) -> dict[str, Any]:
    """Arguments with which the tool could be called, by its own schema."""
    schema = tool.input_schema
    values = {"string": "x", "integer": 1, "object": {}}
    given = {name: schema["properties"][name] for name in schema.get("required", ())}
    return {name: each["enum"][0] if "enum" in each else values[each["type"]] for name, each in given.items()}


async def test_every_tool_and_resource_treats_the_session_of_another_user_as_one_that_is_not_there(
    sessions: Sessions,
) -> None:
    theirs = sessions.open("theirs", user_id="bob", title=SECRET, metadata={"note": SECRET})
    theirs.add({"role": "user", "content": SECRET})
    theirs.memory.remember(SECRET)
    own = sessions.open("own", user_id="alice")
    before, tried = (dict(sessions.get("theirs")), theirs.timeline()), set()
    async with inside(server(sessions, "alice")) as call:
        for tool in (await call.client.list_tools()).tools:
            ids = {name for name in tool.input_schema["properties"] if name.endswith("_id")}
            assert ids <= {"session_id", "secondary_id", "user_id", "message_id", "tool_call_id"}, tool.name
            for name in ids & {"session_id", "secondary_id"}:
                given = valid(tool) | ({"session_id": own.id} if name == "secondary_id" else {})
                refused = await call.refused(tool.name, **given | {name: theirs.id})
                assert SECRET not in refused
                if tool.name != "create_session":
                    unknown = await call.refused(tool.name, **given | {name: "unknown"})
                    assert refused == unknown.replace("unknown", "theirs")
                tried.add(tool.name)
            if "user_id" in ids:
                refused = await call.refused(tool.name, **valid(tool), user_id="bob")
                assert refused == (await call.refused(tool.name, user_id="nobody")).replace("nobody", "bob")
                tried.add(tool.name)
            if not ids:
                result = await call.client.call_tool(tool.name, valid(tool))
                assert SECRET not in str(result)
                assert "theirs" not in str(result)
        assert tried >= TOOLS - {"list_sessions", "cleanup_sessions"}
        for template in sorted(TEMPLATES):
            with pytest.raises(MCPError, match=r"there is no (session|user)"):
                await call.read(template, session_id="theirs", user_id="bob")
        everything = [await call("search_sessions", query="launch code swordfish"), await call("list_sessions")]
        everything += [await call("recall", session_id="own", query="swordfish"), await call.read("stats://")]
        assert SECRET not in str(everything)
    assert (dict(sessions.get("theirs")), theirs.timeline()) == before


# What a model needs


async def test_the_annotations_say_what_a_tool_does(sessions: Sessions) -> None:
    async with inside(server(sessions)) as call:
        tools = {tool.name: tool for tool in (await call.client.list_tools()).tools}
    assert tools.keys() == TOOLS
    annotations = {name: tool.annotations for name, tool in tools.items()}
    assert {name for name, each in annotations.items() if each and each.read_only_hint} == READING
    assert {name for name, each in annotations.items() if each and each.destructive_hint} == {
        *("update_session", "expire_session", "merge_sessions", "cleanup_sessions", "forget")
    }
    for tool in tools.values():
        assert tool.annotations is not None
        assert (tool.annotations.open_world_hint, tool.output_schema is not None) == (False, True)
        assert tool.input_schema["additionalProperties"] is False
        assert all("description" in each for each in tool.input_schema["properties"].values()), tool.name
    shown = [(tool.name, tool.description, tool.input_schema) for tool in tools.values()]
    assert len(json.dumps(shown)) < 20_000  # about 5,000 tokens, which clients put into each prompt


async def test_a_long_conversation_is_read_in_pages_that_do_not_flood_a_context(sessions: Sessions) -> None:
    session = sessions.open("long")
    session.add_history([{"role": "user", "content": f"{n} " + "word " * 100} for n in range(300)])
    session.add({"role": "assistant", "content": "x" * 1_000_000})
    for n in range(60):
        session.record_tool("fetch", {"n": n}, "y" * 5_000)
    async with inside(server(sessions)) as call:
        assert len(str(await call("resume_session", session_id="long"))) < 40_000
        for order, what in (("latest", "messages"), ("oldest", "messages"), ("latest", "tool_calls")):
            pages, cursor = list[list[Any]](), None
            while cursor or not pages:
                page = await call(
                    "get_conversation", session_id="long", what=what, order=order, cursor=cursor, limit=100
                )
                assert len(json.dumps(page)) < 25_000
                pages.append([each["seq"] for each in page[what]])
                assert pages[-1] == sorted(pages[-1])
                cursor = page.get("next_cursor")
            read = pages[::-1] if order == "latest" else pages
            recorded = session.messages() if what == "messages" else session.tool_calls()
            assert [*chain.from_iterable(read)] == [each.seq for each in recorded]
        exported, cursor = "", None
        while cursor or not exported:
            page = await call(
                "export_session", session_id="long", format="jsonl", max_characters=200_000, cursor=cursor
            )
            exported, cursor = exported + page["content"], page.get("next_cursor")
        assert len(exported) == page["total_characters"]
    session.delete()
    Path("long.jsonl").write_text(exported)
    assert sessions.import_from("long.jsonl") == ["long"]
    assert sessions.get("long").message_count == 301


async def test_a_list_goes_on_where_it_stopped_when_its_last_session_was_active_or_deleted_meanwhile(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions()
    for n in range(6):
        sessions.open(f"s{n}")
        clock.advance(minutes=1)
    async with inside(server(sessions)) as call:
        first = await call("list_sessions", limit=2)
        assert [each["id"] for each in first["sessions"]] == ["s5", "s4"]
        sessions.get("s4").ping()
        second = await call("list_sessions", limit=2, cursor=first["next_cursor"])
        assert [each["id"] for each in second["sessions"]] == ["s3", "s2"]
        sessions.delete("s2")
        third = await call("list_sessions", limit=2, cursor=second["next_cursor"])
        assert ([each["id"] for each in third["sessions"]], third.get("next_cursor")) == (["s1", "s0"], None)


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("get_session_info", {}, "get_session_info cannot be called like this (session_id: it is missing)"),
        ("create_session", {"user_id": "bob"}, "create_session cannot be called like this (user_id: there is no such"),
        ("list_sessions", {"limit": 0}, "(limit: Input should be greater than or equal to 1)"),
        ("list_sessions", {"cursor": "x"}, "this is no cursor of this tool; leave cursor out"),
        ("get_conversation", {"session_id": "s", "cursor": "before:x"}, "this is no cursor of this tool"),
        ("add_message", {"session_id": "s", "role": "king", "content": "hi"}, "(role: Input should be 'user',"),
        ("get_session_info", {"session_id": "a\0b"}, "may not have a NUL character"),
        ("get_session_info", {"session_id": "x" * 1_000_000}, "of 1,000,000 characters is too long; give an id of"),
        ("get_session_info", {"session_id": ""}, "may not be empty; give an id of"),
        ("create_session", {"session_id": "s"}, "session 's' exists already; call resume_session to continue it"),
        ("create_session", {"title": "x" * 2_000}, "title cannot be 'xxx"),
        ("update_session", {"session_id": "s", "tags": [""]}, "tags cannot be ['']; give at most 100 texts"),
        ("merge_sessions", {"session_id": "s", "secondary_id": "s"}, "secondary cannot be 's'; give"),
        ("complete_session", {"session_id": "ended"}, "session 'ended' is completed and cannot become completed; call"),
        ("remember", {"session_id": "s", "text": " "}, "a memory cannot be ' '; give a text"),
        ("remember", {"session_id": "s", "text": "x", "scope": "user"}, "the session has no user; use the scope 'sess"),
        ("remember", {"session_id": "s", "text": "x", "ttl": "soon"}, "soon"),
        ("link_invocation", {"session_id": "s", "tool_name": ""}, "name cannot be ''; give a text of 1 to 1,024"),
        ("link_invocation", {"session_id": "s", "tool_name": "t", "duration_ms": -1}, "(duration_ms: Input should be"),
        ("cleanup_sessions", {"status": "expired"}, "status needs older_than; give both, or neither"),
        ("cleanup_sessions", {"older_than": "long"}, "long"),
        ("list_user_sessions", {}, "you are the operator and own no sessions; give a user_id, or call list_sessions"),
        ("no_such_tool", {}, "Unknown tool: no_such_tool"),
    ],
)
async def test_a_mistake_is_one_sentence_that_says_what_to_do(
    tool: str, arguments: dict[str, Any], sentence: str, sessions: Sessions
) -> None:
    sessions.open("s")
    sessions.open("ended").complete()
    async with inside(server(sessions)) as call:
        refused = await call.refused(tool, **arguments)
    assert sentence in refused
    assert "\n" not in refused
    assert len(refused) < 400


def place(moment: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(["activity", "s", moment]).encode()).decode().rstrip("=")


NASTY: list[Any] = [
    *(None, "", "a\0b", "x" * 100_000, -1, 10**30, [None], {"a\0": {"b": [None, {"c": "\0"}]}}, "null", float("nan")),
    *(
        "before:999999999999999999",
        "0001-01-01T00:00:00+14:00",
        *map(place, ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z")),
    ),
]


@pytest.mark.slow
@engines_in_turns(user_id=[None, "alice"])
async def test_no_argument_makes_a_tool_fail_without_a_sentence_that_says_why(
    user_id: str | None, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions()
    sessions.open("x", user_id="alice").add({"role": "user", "content": "hi"})
    async with inside(server(sessions, user_id)) as call:
        for tool in (await call.client.list_tools()).tools:
            for name, value in product(tool.input_schema["properties"], NASTY):
                result = await call.client.call_tool(tool.name, valid(tool) | {name: value})
                assert isinstance(result, CallToolResult)
                if result.is_error:
                    sentence = text_of(result)
                    assert len(sentence) < 1_500, (tool.name, name)
                    assert not re.search(r"\n|Error executing|operator to look", sentence), (tool.name, name, sentence)


async def test_a_busy_an_expired_and_a_closed_session_and_a_limit_are_explained(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="reject", on_closed="reject", max_sessions_per_user=1, idle_timeout="1h")
    sessions.open("old", user_id="alice")
    clock.advance(hours=2)
    sessions.open("done", user_id="alice").complete()
    async with inside(server(sessions, "alice")) as call:
        assert "has expired and cannot be resumed" in await call.refused("resume_session", session_id="old")
        assert "has ended and admits nothing more" in await call.refused("resume_session", session_id="done")
        assert (await call("create_session", session_id="one"))["status"] == "active"
        assert "the limit of 1 open sessions is reached" in await call.refused("create_session")
        with sessions.get("one"):
            sentence = await call.refused("merge_sessions", session_id="one", secondary_id="done")
        assert sentence == "a run is in progress in session 'one'; call the tool again after that run"


async def test_an_operator_resumes_a_session_in_the_name_of_its_owner(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions()
    sessions.open("t", user_id="alice").complete()
    async with inside(server(sessions)) as call:
        assert (await call("resume_session", session_id="t"))["session"]["user_id"] == "alice"
        assert [each["id"] for each in (await call("list_user_sessions", user_id="alice"))["sessions"]] == ["t"]
        clock.advance(days=2)
        ended = await call("cleanup_sessions", older_than="1d", dry_run=False)
    assert (ended["count"], sessions.find("t")) == (1, None)


async def test_an_invocation_is_an_execution_of_the_record(sessions: Sessions) -> None:
    session = sessions.open("t", user_id="alice")
    async with inside(server(sessions, "alice")) as call:
        first = await call(
            "link_invocation", session_id="t", tool_name="fetch", arguments='{"url": "x"}', error='{"code": 500}'
        )
        again = {"tool_call_id": first["tool_call_id"], "status": "refused", "duration_ms": 1_500}
        await call("link_invocation", session_id="t", tool_name="fetch", **again)
    one, two = session.tool_calls()
    assert (one.arguments, one.error, one.status, first["status"]) == ({"url": "x"}, '{"code": 500}', "error", "error")
    assert (two.attempt, two.status, two.duration_ms) == (
        2,
        "refused",
        timedelta(seconds=1.5) / timedelta(milliseconds=1),
    )


@pytest.mark.parametrize("value", [10**100, json.loads('{"a":' * 400 + "1" + "}" * 400), "\ud800"])
async def test_a_value_that_is_no_usual_json_is_shown_as_text(value: Any, sessions: Sessions) -> None:
    session = sessions.open("t", user_id="alice", metadata={"odd": value})
    async with session.tool_execution("fetch", {"odd": value}) as execution:
        execution.result = value
    async with inside(server(sessions, "alice")) as call:
        assert "odd" in str((await call("get_session_info", session_id="t"))["metadata"])
        assert (await call("resume_session", session_id="t"))["recent_tool_calls"][0]["name"] == "fetch"


async def test_a_message_with_an_id_is_recorded_once(sessions: Sessions) -> None:
    sessions.open("t")
    async with inside(server(sessions)) as call:
        given = {"session_id": "t", "role": "user", "message_id": "m1"}
        said = [await call("add_message", **given, content=text) for text in ("hi 🙂\0", "hi 🙂\0", "hello")]
    assert [each["version"] for each in said] == [1, 1, 2]
    assert [message.text for message in sessions.get("t").messages()] == ["hello"]


async def test_an_id_that_looks_like_a_path_can_be_read_as_a_resource(sessions: Sessions) -> None:
    sessions.open("/etc/../x y")
    async with inside(server(sessions)) as call:
        assert (
            json.loads(await call.read("session://{session_id}", session_id="%2Fetc%2F..%2Fx%20y"))["id"]
            == "/etc/../x y"
        )
        with pytest.raises(MCPError, match="may not have a NUL"):
            await call.read("session://{session_id}", session_id="a%00b")


# The command


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--host", "127.0.0.1"], "--host needs --http"),
        (["--auth", "m:v"], "--auth needs --http"),
        (["--groups", "team"], "--groups needs --user"),
        (["--user", ""], "may not be empty"),
        (["--http", "--host", "0.0.0.0"], "give --auth MODULE:NAME"),
        (["--http", "--auth", "m:v", "--user", "alice"], "give one of them"),
        (["--http", "--auth", "json:loads"], "name a TokenVerifier"),
    ],
)
def test_a_wrong_option_is_explained(arguments: list[str], error: str) -> None:
    from click.testing import CliRunner

    from session_middleware.cli.main import cli

    result = CliRunner().invoke(cli, ["mcp", "--db", "s.db", *arguments], catch_exceptions=False)
    assert result.exit_code in (1, 2)
    assert error in " ".join(result.output.split())
    assert not Path("s.db").exists()


# The inspector


def inspect(*arguments: str) -> dict[str, Any]:
    command = [program("mcp-inspector"), "--cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(Path.cwd())}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_the_inspector_finds_no_error_in_the_schemas_and_drives_a_conversation(path: Path) -> None:
    with serving(str(path), "--user", "alice") as url:
        at = (url, "--transport", "http")
        tools = inspect(*at, "--method", "tools/list", "--strict")["tools"]
        assert {tool["name"] for tool in tools} == TOOLS
        calling = ("--method", "tools/call", "--tool-name")
        made = inspect(*at, *calling, "create_session", "--tool-arg", "title=Trip", 'tags=["travel"]')
        found = made["structuredContent"]
        assert (found["title"], found["user_id"], found["tags"]) == ("Trip", "alice", ["travel"])
        read = inspect(*at, "--method", "resources/read", "--uri", f"session://{found['id']}/timeline")
        assert "event: opened" in read["contents"][0]["text"]
