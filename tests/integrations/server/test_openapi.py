"""Requests of any shape, made by schemathesis from the app's own description of itself, get no server error.

Each route gets a few requests by default, always the same ones, and more with ``SESSION_FAULT_ROUNDS=100``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, openapi
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, Gateway, app
from tests.support import agents
from tests.support.served_app import serving

EXAMPLES = 4 * int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))
QUICKLY = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # without looking for a smaller request: the first one is readable enough
    suppress_health_check=list(HealthCheck),
)
ENDLESS = {"/session/{session_id}/follow", "/threads/{thread_id}/stream"}  # streams, if there is such a session
TOOLS = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    about = {"name": "echo", "version": "1"}
    answers = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about},
        "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text", "text": "said"}]},
    }
    found = answers.get(asked.get("method"))
    answer = {"error": {"code": -32601, "message": "no such method"}} if found is None else {"result": found}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"]} | answer), flush=True)
"""  # an MCP server that starts at once, because it needs no package


def caller_of(connection: HTTPConnection) -> Caller:
    return Caller("alice", is_operator="x-operator" in connection.headers)


@pytest.fixture
def described(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with Sessions(path, synchronous="normal") as sessions:
        gateway = Gateway(
            sys.executable, args=("-S", "-c", TOOLS), data_dir=str(path.parent / "{user_id}" / "{session_id}")
        )
        asgi = app(sessions, {"chat": agents.chat()}, authenticate=caller_of, gateway=gateway)
        with serving(asgi) as url:
            yield url, asgi.openapi()


@pytest.mark.slow
def test_no_request_gets_a_server_error(described: tuple[str, dict[str, Any]]) -> None:
    url, description = described
    failures: list[str] = []
    with requests.Session() as client:
        known = _existing(client, url)
        for found in openapi.from_dict(description).get_all_operations():
            _try(found.ok(), known, client, url, failures)
    assert not failures


def _existing(client: requests.Session, url: str) -> dict[str, str]:
    """A thread with a run, and what else the paths name."""
    thread = client.post(f"{url}/threads", json={}).json()["thread_id"]
    asked = {"assistant_id": "chat", "input": {"messages": "hi"}}
    client.post(f"{url}/threads/{thread}/runs/wait", json=asked).raise_for_status()
    [run] = client.get(f"{url}/threads/{thread}/runs").json()
    state = client.get(f"{url}/threads/{thread}/state").json()
    return {
        "thread_id": thread,
        "session_id": thread,
        "run_id": run["run_id"],
        "checkpoint_id": state["checkpoint"]["checkpoint_id"],
        "assistant_id": "chat",
        "tool": "echo",
    }


def _try(operation: Any, known: dict[str, str], client: requests.Session, url: str, failures: list[str]) -> None:
    @QUICKLY
    @given(case=_requests(operation, known), is_operator=st.booleans())
    def check(case: Any, is_operator: bool) -> None:
        answer = case.call(
            base_url=url, session=client, headers={"x-operator": "yes"} if is_operator else {}, timeout=20
        )
        if answer.status_code >= 500:
            failures.append(f"{answer.status_code} {case.as_curl_command()}")

    check()


def _requests(operation: Any, known: dict[str, str]) -> st.SearchStrategy[Any]:
    """Requests of what exists and of what does not, and such that do not conform to the description."""
    named = {name: known[name] for name in known if f"{{{name}}}" in operation.path}
    is_safe = operation.path not in ENDLESS and operation.method != "delete"
    kinds = [operation.as_strategy(path_parameters=named)] if named and is_safe else []
    return st.one_of(*kinds, operation.as_strategy(), operation.as_strategy(GenerationMode.NEGATIVE))
