"""LangGraph's own server (``langgraph dev``) with the two files of the page on it, driven by its own client.

The server detects calls that block its event loop, serves users whom its own auth has checked, and reads states
without saying who asks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
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
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError, UnprocessableEntityError

from session_middleware import Session, Sessions
from session_middleware.models import Record, Run, ToolCall
from tests.support import server_graphs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "langgraph_dev.md"
START_SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("langgraph_api") is None and os.environ.get("CI") != "true",
        reason="LangGraph's server is not installed: pip install 'langgraph-cli[inmem]'",
    ),
]


def write_files(folder: Path, storage_url: str, *, auth: bool) -> None:
    """The two files of the page, with further graphs."""
    (settings,) = _blocks("json")
    (folder / "app.py").write_text(python_of_the_page()[0])
    shutil.copy(server_graphs.__file__, folder / "graphs.py")
    config = json.loads(settings)
    config["env"] = {"SESSION_STORAGE_URL": storage_url}
    config["graphs"] |= {name: f"./graphs.py:{name}" for name in ("attached", "plain", "slow")}
    if not auth:
        del config["auth"]
    (folder / "langgraph.json").write_text(json.dumps(config))


def python_of_the_page() -> tuple[str, str]:
    """The app, and how a client goes on after a crash."""
    app, after_a_crash = _blocks("python")
    return app, after_a_crash


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@contextmanager
def serving(folder: Path, *, killed: bool = False, **environment: str) -> Iterator[str]:
    """The address of a server in `folder`. At the end it has stopped and written everything, unless it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))}
    nowhere = "http://127.0.0.1:9"  # whatever would leave this machine fails
    environment |= {"PYTHONPATH": str(ROOT), "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false"}
    environment |= {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
    command += ["--n-jobs-per-worker", "4"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=inherited | environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(process, address, folder / "log")
        yield address
    finally:
        process.send_signal(signal.SIGKILL if killed else signal.SIGINT)
        process.wait(timeout=START_SECONDS)
    assert "could not record" not in (folder / "log").read_text()
    assert "BlockingError" not in (folder / "log").read_text()


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = monotonic() + START_SECONDS
    while monotonic() < end:
        try:
            if httpx.get(f"{address}/ok", trust_env=False, timeout=60).is_success:
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


def wait_for(sessions: Sessions, thread: str, kind: type[ToolCall | Run], status: str) -> None:
    """Wait until a tool call or a run of the thread has this status in the record, in this other process."""

    def is_it(record: Record) -> bool:
        found = record.outcome if isinstance(record, Run) else getattr(record, "status", None)
        return isinstance(record, kind) and found == status

    if not any(is_it(record) for record in sessions.open(thread).follow(timeout="15s", until=is_it)):
        pytest.fail(f"no {kind.__name__} became {status}")


def test_everything_that_a_client_asks_for_with_nobody_named_until_the_server_is_killed(tmp_path: Path) -> None:
    write_files(tmp_path, "chat.db", auth=False)
    with (
        serving(tmp_path, killed=True) as address,
        get_sync_client(url=address) as client,
        Sessions(tmp_path / "chat.db") as sessions,
    ):
        thread = _check_runs(client, sessions)
        _check_threads(client, sessions, thread)
        _check_store(client)
        cut_off = _check_cancelled_runs(client, sessions)

    shutil.rmtree(tmp_path / ".langgraph_api")  # its own list of threads and runs, from which it might run them again
    with serving(tmp_path, IMPATIENT="1") as address, get_sync_client(url=address) as client:
        threads, runs = client.threads, client.runs
        for name in cut_off:
            threads.create(thread_id=cut_off[name], graph_id="slow", if_exists="do_nothing")
            assert texts(threads.get_state(cut_off[name])) == [f"await {name}"]
        after_a_crash = python_of_the_page()[1].replace('"agent"', '"slow"')
        exec(compile(after_a_crash, PAGE.name, "exec"), {"client": client, "thread_id": cut_off["tea"]})
        assert texts(threads.get_state(cut_off["tea"])) == ["await tea", "tea at last", "it said tea at last"]
        assert texts(runs.wait(cut_off["coffee"], "slow", input=say("hi")))[-2:] == ["hi", "you said hi"]

    with Sessions(tmp_path / "chat.db") as sessions:
        assert [run.outcome for run in sessions.get(cut_off["tea"]).runs()] == ["interrupted", "ok"]
        assert [call.status for call in sessions.get(cut_off["tea"]).tool_calls()] == ["interrupted", "ok"]
        coffee = sessions.get(cut_off["coffee"])
        assert "repaired" in [event.kind for event in coffee.events()]
        assert said(coffee)[-2:] == ["hi", "you said hi"]
        assert {problem.kind for problem in sessions.check(deep=True)} <= {"dead_lease"}  # the server was ended


def _check_runs(client: SyncLangGraphClient, sessions: Sessions) -> str:
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

    runs.wait(thread, "agent", input=say("book Basel"))
    asked = threads.get_state(thread, subgraphs=True)
    assert [each["value"] for each in asked["interrupts"]] == ["Book a hotel in Basel?"]
    assert threads.search(status="interrupted")[0]["thread_id"] == thread
    assert texts(runs.wait(thread, "agent", command={"resume": "yes"}))[-1] == "You said: booked in Basel"
    runs.wait(plain, "plain", input=say("look up tea"))
    assert texts(runs.wait(None, "attached", input=say("no thread"))) == ["no thread", "you said no thread"]

    assert {session.id for session in sessions.list()} == {thread, background, plain}
    assert {session.user_id for session in sessions.list()} == {None}
    found = sessions.get(thread)
    assert [(run.outcome, run.metadata) for run in found.runs()] == [(one, {}) for one in ("ok", "ok", "waiting", "ok")]
    assert [event.kind for event in found.events()] == ["opened", "resumed", "resumed", "resumed"]
    assert said(found)[:5] == ["look up tea", "tea is nice", "it said tea is nice", "hi", "you said hi"]
    assert [question.answer for question in found.questions()] == ["yes"]
    calls = [(call.name, call.status) for call in found.tool_calls()]
    assert calls == [("look_up", "ok"), ("book", "interrupted"), ("book", "ok")]
    assert all(call.duration_ms is not None for call in found.tool_calls())
    assert len(found.model_calls()) == 3
    alone = sessions.get(plain)  # with the checkpointer alone
    assert said(alone) == ["look up tea", "tea is nice", "it said tea is nice"]
    assert [call.result for call in alone.tool_calls()] == ["tea is nice"]
    return str(thread)


def _check_threads(client: SyncLangGraphClient, sessions: Sessions, thread: str) -> None:
    threads, runs = client.threads, client.runs
    history = threads.get_history(thread, limit=100)
    assert texts(history[0]) == texts(threads.get_state(thread))
    first = next(state for state in reversed(history) if state["next"] == ["model"])
    assert texts(threads.get_state(thread, checkpoint_id=first["checkpoint"]["checkpoint_id"])) == ["look up tea"]
    threads.update_state(thread, say("by hand"))
    assert texts(threads.get_state(thread))[-1] == "by hand"

    copy, pruned, deleted = (threads.copy(thread)["thread_id"] for _ in range(3))
    assert texts(threads.get_state(copy)) == texts(threads.get_state(thread))
    assert len(threads.get_history(copy, limit=100)) == len(history) + 1
    runs.wait(copy, "attached", input=say("in the copy"))
    assert said(sessions.get(copy))[-2:] == ["in the copy", "you said in the copy"]
    assert threads.prune([pruned])["pruned_count"] == 1
    threads.delete(deleted)
    for gone in (pruned, deleted):
        with pytest.raises(NotFoundError):
            threads.get_state(gone)
        assert sessions.find(gone) is None
    with pytest.raises(UnprocessableEntityError):  # the in-memory runtime does not pass this to a checkpointer
        threads.prune([copy], strategy="keep_latest")
    assert texts(threads.get(copy)) == texts(threads.get_state(copy))


def _check_store(client: SyncLangGraphClient) -> None:
    store = client.store
    for key, text in {"a": "green tea", "b": "black coffee"}.items():
        store.put_item(["notes", "drinks"], key=key, value={"text": text, "rank": key})
    assert store.get_item(["notes", "drinks"], key="a")["value"]["text"] == "green tea"
    found = store.search_items(["notes"], query="coffee", limit=1)["items"]
    assert [(item["namespace"], item["value"]["rank"]) for item in found] == [(["notes", "drinks"], "b")]
    filtered = store.search_items(["notes"], filter={"rank": "a"})["items"]
    assert [item["key"] for item in filtered] == ["a"]
    assert store.list_namespaces(prefix=["notes"])["namespaces"] == [["notes", "drinks"]]
    store.delete_item(["notes", "drinks"], key="b")
    assert [item["key"] for item in store.search_items(["notes"])["items"]] == ["a"]


def _check_cancelled_runs(client: SyncLangGraphClient, sessions: Sessions) -> dict[str, str]:
    """Cancel runs, and leave two in progress."""
    threads, runs = client.threads, client.runs
    stopped, undone, tea, coffee = (threads.create()["thread_id"] for _ in range(4))
    run = runs.create(stopped, "slow", input=say("await tea"))
    wait_for(sessions, stopped, ToolCall, "running")
    runs.cancel(stopped, run["run_id"], wait=True)
    wait_for(sessions, stopped, Run, "interrupted")
    assert [call.status for call in sessions.get(stopped).tool_calls()] == ["interrupted"]
    assert texts(runs.wait(stopped, "slow", input=say("hi")))[-2:] == ["hi", "you said hi"]

    runs.wait(undone, "slow", input=say("hi"))
    runs.create(undone, "slow", input=say("await tea"))
    wait_for(sessions, undone, ToolCall, "running")
    runs.wait(undone, "slow", input=say("instead"), multitask_strategy="rollback")
    assert texts(threads.get_state(undone)) == ["hi", "you said hi", "instead", "you said instead"]

    cut_off = {"tea": tea, "coffee": coffee}
    for name, thread in cut_off.items():
        runs.create(thread, "slow", input=say(f"await {name}"))
        wait_for(sessions, thread, ToolCall, "running")
    return cut_off


def test_a_user_whom_the_server_has_authenticated_owns_the_session(tmp_path: Path, postgres_url: str) -> None:
    write_files(tmp_path, postgres_url, auth=True)
    with (
        serving(tmp_path) as address,
        get_sync_client(url=address, headers={"x-user": "alice"}) as alice,
        get_sync_client(url=address, headers={"x-user": "mallory"}) as mallory,
    ):
        assert httpx.post(f"{address}/threads/search", json={}, trust_env=False, timeout=60).status_code == 401
        thread, theirs = alice.threads.create()["thread_id"], mallory.threads.create()["thread_id"]
        alice.runs.wait(thread, "attached", input=say("look up tea"))
        alice.runs.wait(thread, "plain", input=say("hi"))
        state = alice.threads.get_state(thread)
        assert texts(state)[-1] == "you said hi"
        assert texts(alice.threads.get_history(thread)[0]) == texts(state)
        alice.threads.update_state(thread, say("by hand"))
        copy = alice.threads.copy(thread)["thread_id"]
        alice.runs.wait(copy, "agent", input=say("book Basel"))
        alice.runs.wait(copy, "agent", command={"resume": "yes"})
        deleted = alice.threads.create()["thread_id"]
        alice.runs.wait(deleted, "attached", input=say("hi"))
        alice.threads.delete(deleted)
        for call in (mallory.threads.get_state, mallory.threads.get_history, mallory.threads.delete):
            with pytest.raises(NotFoundError):
                call(thread)
        with pytest.raises(NotFoundError):
            mallory.threads.prune([thread])
        claimed = {"configurable": {"user_id": "alice"}, "metadata": {"user_id": "alice"}}
        mallory.runs.wait(theirs, "attached", input=say("I am alice"), config=claimed)

        alice.store.put_item(["notes"], key="k", value={"text": "tea"})
        assert [item["value"] for item in alice.store.search_items([])["items"]] == [{"text": "tea"}]
        for namespace in ([], ["notes"], ["user", "alice"]):
            assert mallory.store.search_items(namespace)["items"] == []
        assert mallory.store.list_namespaces()["namespaces"] == []

    with Sessions(postgres_url) as sessions:
        owners = {session.id: session.user_id for session in sessions.list()}
        assert owners == {thread: "alice", copy: "alice", theirs: "mallory"}
        assert [run.user_id for run in sessions.get(theirs).runs()] == ["mallory"]
        assert said(sessions.get(theirs)) == ["I am alice", "you said I am alice"]
        assert [event.kind for event in sessions.get(thread).events()] == ["opened", "resumed"]
        assert [call.name for call in sessions.get(thread).tool_calls()] == ["look_up"]
        assert [question.answered_by for question in sessions.get(copy).questions()] == ["alice"]
        assert sessions.get(thread).memory.recall("tea", scopes=["user"])[0].text
        assert {problem.kind for problem in sessions.check(deep=True)} <= {"dead_lease"}  # the server was ended
