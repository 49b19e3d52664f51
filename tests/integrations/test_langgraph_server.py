"""LangGraph's own server (``langgraph dev``) with our checkpointer, store and recorder, driven by its own client.

The server detects calls that block its event loop, serves users whom its own auth has checked, and reads states
without saying who asks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.errors import NotFoundError

from session_middleware import Session, Sessions

APP = Path(__file__).parents[1] / "support" / "server_app" / "app.py"
ROOT = Path(__file__).parents[2]
START_SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("langgraph_api") is None and os.environ.get("CI") != "true",
        reason="LangGraph's server is not installed: pip install 'langgraph-cli[inmem]'",
    ),
]


@contextmanager
def serving(folder: Path, **more: Any) -> Iterator[str]:
    """The address of a server in `folder`; it has ended, and written all it had to, at the end of the block."""
    shutil.copy(APP, folder)
    parts = {name: {"path": f"./app.py:{name}"} for name in ("checkpointer", "store")}
    graphs = {name: f"./app.py:{name}" for name in ("attached", "plain")}
    (folder / "langgraph.json").write_text(json.dumps({"dependencies": ["."], "graphs": graphs} | parts | more))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))}
    nowhere = "http://127.0.0.1:9"  # whatever would leave this machine fails
    environment |= {"PYTHONPATH": str(ROOT), "SESSION_ACCESS": "host", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    environment |= {
        "LANGSMITH_TRACING": "false",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(process, address, folder / "log")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=START_SECONDS)
    assert "could not record" not in (folder / "log").read_text()
    assert "BlockingError" not in (folder / "log").read_text()


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = monotonic() + START_SECONDS
    while monotonic() < end:
        try:
            if httpx.get(f"{address}/ok", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")


def say(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def texts(state: Any) -> list[str]:
    return [message["content"] for message in (state.get("values") or state)["messages"] if message["content"]]


def said(session: Session) -> list[str]:
    return [message.text for message in session.messages() if message.text]


def test_runs_states_and_the_record_with_nobody_named(tmp_path: Path) -> None:
    with serving(tmp_path) as address, get_sync_client(url=address) as client:
        threads, runs = client.threads, client.runs
        thread, background, plain = (threads.create()["thread_id"] for _ in range(3))

        assert texts(runs.wait(thread, "attached", input=say("look up tea"))) == [
            "look up tea", "tea is nice", "it said tea is nice",
        ]  # fmt: skip
        events = [part.event for part in runs.stream(thread, "attached", input=say("hi"), stream_mode="values")]
        assert events[0] == "metadata"
        assert "error" not in events
        runs.join(background, runs.create(background, "attached", input=say("later"))["run_id"])
        assert texts(threads.get_state(background)) == ["later", "you said later"]

        runs.wait(thread, "attached", input=say("ask tea"))
        asked = threads.get_state(thread, subgraphs=True)
        assert [each["value"] for each in asked["interrupts"]]
        assert texts(runs.wait(thread, "attached", command={"resume": "green"}))[-1] == "it said tea: green"

        history = threads.get_history(thread, limit=100)
        assert texts(history[0]) == texts(threads.get_state(thread))
        first = next(state for state in reversed(history) if state["next"] == ["model"])
        assert texts(threads.get_state(thread, checkpoint_id=first["checkpoint"]["checkpoint_id"])) == ["look up tea"]
        threads.update_state(thread, say("by hand"))
        assert texts(threads.get_state(thread))[-1] == "by hand"

        copy = threads.copy(thread)["thread_id"]
        assert texts(threads.get_state(copy)) == texts(threads.get_state(thread))
        runs.wait(copy, "attached", input=say("in the copy"))
        runs.wait(plain, "plain", input=say("look up tea"))
        assert texts(runs.wait(None, "attached", input=say("no thread"))) == ["no thread", "you said no thread"]
        threads.delete(background)

        client.store.put_item(["notes"], key="k", value={"text": "tea"})
        assert client.store.search_items(["notes"])["items"][0]["value"] == {"text": "tea"}

    with Sessions(tmp_path / "chat.db") as sessions:
        assert {session.id for session in sessions.list()} == {thread, copy, plain}
        assert {session.user_id for session in sessions.list()} == {None}
        found = sessions.get(thread)
        assert [(run.outcome, run.metadata) for run in found.runs()] == [
            (one, {}) for one in ("ok", "ok", "waiting", "ok")
        ]
        assert [event.kind for event in found.events()] == ["opened", "resumed", "resumed", "resumed"]
        assert said(found)[:5] == ["look up tea", "tea is nice", "it said tea is nice", "hi", "you said hi"]
        calls = [(call.name, call.status) for call in found.tool_calls()]
        assert calls == [("look_up", "ok"), ("asking", "interrupted"), ("asking", "ok")]
        assert all(call.duration_ms is not None for call in found.tool_calls())
        assert len(found.model_calls()) == 5
        assert said(sessions.get(copy))[-2:] == ["in the copy", "you said in the copy"]
        alone = sessions.get(plain)  # with the checkpointer alone
        assert said(alone) == ["look up tea", "tea is nice", "it said tea is nice"]
        assert [call.result for call in alone.tool_calls()] == ["tea is nice"]
        assert {problem.kind for problem in sessions.check(deep=True)} <= {"dead_lease"}  # the server was ended


def test_a_user_whom_the_server_has_authenticated_owns_the_session(tmp_path: Path) -> None:
    auth = {"path": "./app.py:auth", "disable_studio_auth": True}
    with (
        serving(tmp_path, auth=auth) as address,
        get_sync_client(url=address, headers={"x-user": "alice"}) as alice,
        get_sync_client(url=address, headers={"x-user": "mallory"}) as mallory,
    ):
        thread, theirs = alice.threads.create()["thread_id"], mallory.threads.create()["thread_id"]
        alice.runs.wait(thread, "attached", input=say("look up tea"))
        alice.runs.wait(thread, "plain", input=say("hi"))
        state = alice.threads.get_state(thread)
        assert texts(state)[-1] == "you said hi"
        assert texts(alice.threads.get_history(thread)[0]) == texts(state)
        alice.threads.update_state(thread, say("by hand"))
        copy = alice.threads.copy(thread)["thread_id"]
        alice.runs.wait(copy, "attached", input=say("in the copy"))
        deleted = alice.threads.create()["thread_id"]
        alice.runs.wait(deleted, "attached", input=say("hi"))
        alice.threads.delete(deleted)
        for read in (mallory.threads.get_state, mallory.threads.get_history, mallory.threads.delete):
            with pytest.raises(NotFoundError):
                read(thread)
        claimed = {"configurable": {"user_id": "alice"}, "metadata": {"user_id": "alice"}}
        mallory.runs.wait(theirs, "attached", input=say("I am alice"), config=claimed)

    with Sessions(tmp_path / "chat.db") as sessions:
        owners = {session.id: session.user_id for session in sessions.list()}
        assert owners == {thread: "alice", copy: "alice", theirs: "mallory"}
        assert [run.user_id for run in sessions.get(theirs).runs()] == ["mallory"]
        assert said(sessions.get(theirs)) == ["I am alice", "you said I am alice"]
        assert [event.kind for event in sessions.get(thread).events()] == ["opened", "resumed"]
        assert [call.name for call in sessions.get(thread).tool_calls()] == ["look_up"]
