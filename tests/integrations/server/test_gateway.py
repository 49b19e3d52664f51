"""The session gateway, over real sockets, with a small MCP server: a counter in a file of its session's folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

from session_middleware import InvalidArgument, Sessions
from session_middleware.integrations.server import Gateway, app
from tests.conftest import Clock
from tests.support import processes
from tests.support.gateway_server import gateway
from tests.support.http_server import caller_of

pytestmark = [pytest.mark.slow, pytest.mark.sessions(idle_timeout="1h", sweep_interval=None)]
SERVER = Path(__file__).parents[2] / "support" / "gateway_server.py"


@contextmanager
def served(sessions: Sessions, folder: Path, **settings: Any) -> Iterator[SimpleNamespace]:
    """A server in a thread, and clients of alice, bob and an operator."""
    asgi = app(sessions, authenticate=caller_of, gateway=gateway(folder, **settings))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=3))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    clients = {
        name: httpx.Client(base_url=url, headers={"x-user": name, **more}, timeout=30, trust_env=False)
        for name, more in (("alice", {}), ("bob", {}), ("root", {"x-operator": "1"}))
    }

    def on_loop(call: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call(), loops[0]).result(30)

    try:
        yield SimpleNamespace(**clients, asgi=asgi, on_loop=on_loop, url=url)
    finally:
        for client in clients.values():
            client.close()
        server.should_exit = True
        thread.join(30)
        listening.close()


def call(client: httpx.Client, session_id: str, tool: str, **arguments: Any) -> httpx.Response:
    return client.post(f"/session/{session_id}/tools/{tool}", json=arguments)


def result(client: httpx.Client, session_id: str, tool: str, **arguments: Any) -> Any:
    answer = call(client, session_id, tool, **arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so: Callable[[], bool]) -> None:
    """At most twenty seconds, for another process that ends by itself."""
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def test_a_session_has_a_process_with_state_and_each_call_is_on_record(
    sessions: Sessions, tmp_path: Path, clock: Clock
) -> None:
    with served(sessions, tmp_path / "data") as on:
        begun = on.alice.post("/session/start", json={"session_id": "../../A", "title": "tea"})
        assert begun.status_code == 201
        assert begun.json()["ping_seconds"] == 100
        assert call(on.alice, "../../A".replace(".", "%2E").replace("/", "%2F"), "add", n=2).json()["result"] == 2
        other = on.alice.post("/session/start").json()["session_id"]
        assert [result(on.alice, other, "add", n=n) for n in (5, 6)] == [5, 11]
        assert result(on.alice, other, "process") == result(on.alice, other, "process")

        names = [tool["name"] for tool in on.alice.get(f"/session/{other}/tools").json()["tools"]]
        assert "add" in names
        assert call(on.alice, other, "double", x=1e308).status_code == 502  # infinity, which JSON does not have
        failed = call(on.alice, other, "fail").json()
        assert (failed["is_error"], failed["result"]) == (True, "Error executing tool fail")
        for tool, arguments, status in (("nope", {}, 404), ("add", {"n": "x"}, 422), ("add", {"n": []}, 422)):
            refused = call(on.alice, other, tool, **arguments)
            assert (refused.status_code, refused.json()["session_id"]) == (status, other)
        recorded = sessions.get(other).tool_calls()
        assert [(each.name, each.arguments, each.status, each.result) for each in recorded[:2]] == [
            ("add", {"n": 5}, "ok", 5),
            ("add", {"n": 6}, "ok", 11),
        ]
        assert (recorded[-1].name, recorded[-1].status) == ("fail", "error")
        assert on.alice.get(f"/session/{other}/status").json()["tool_call_count"] == 6
        assert on.alice.post("/tools/add", json={"n": 3}).json()["result"] == 3
        assert on.alice.post("/tools/add", json={"n": 3}).json()["result"] == 3
        folders = {path.name for path in (tmp_path / "data" / "alice").iterdir()}
        assert folders == {"%2E%2E%2F%2E%2E%2F%41", other}
        pid = result(on.alice, other, "process")
    assert not is_alive(pid)


def test_errors_name_the_session_and_say_nothing_of_others(sessions: Sessions, tmp_path: Path, clock: Clock) -> None:
    with served(sessions, tmp_path) as on:
        assert on.alice.post("/session/start", json={"session_id": "a"}).status_code == 201
        again = on.alice.post("/session/start", json={"session_id": "a"})
        assert (again.status_code, again.json()) == (
            409,
            {"error": "SessionExists", "detail": "Session already exists", "session_id": "a"},
        )
        assert on.alice.post("/session/start", json={"session_id": "a", "if_exists": "resume"}).status_code == 200
        for answer, unknown in (
            (call(on.bob, "a", "add"), call(on.bob, "b", "add")),
            *((on.bob.post(f"/session/{one}/{verb}") for one in "ab") for verb in ("ping", "close")),
            (on.bob.get("/session/a/status"), on.bob.get("/session/b/status")),
        ):
            assert (answer.status_code, answer.json()["detail"]) == (404, "Session not found")
            assert answer.text == unknown.text.replace('"b"', '"a"')
        assert on.bob.post("/session/start", json={"session_id": "a"}).status_code == 404
        denied = on.bob.get("/sessions", params={"user_id": "alice"})
        assert (denied.status_code, denied.json()["detail"]) == (403, "Permission denied")
        assert on.bob.get("/sessions").json() == {"sessions": []}
        assert [one["session_id"] for one in on.root.get("/sessions").json()["sessions"]] == ["a"]
        assert on.bob.post("/session/start", json={"group_id": "team"}).status_code == 403
        deep = json.loads('{"a":' * 400 + "1" + "}" * 400)
        assert on.alice.post("/session/start", json={"metadata": deep}).status_code == 422
        assert call(on.alice, "a", "add", **deep).status_code == 422
        for bad in ("\0", "x" * 5000, ""):
            assert on.alice.post("/session/start", json={"session_id": bad}).status_code == 422
        clock.advance(hours=2)
        expired = call(on.alice, "a", "add")
        assert (expired.status_code, expired.json()["detail"]) == (410, "Session expired")
        assert on.alice.post("/session/a/ping").status_code == 410
        assert on.alice.get("/session/a/status").json()["status"] == "expired"
        sessions.revoke("alice")
        assert on.alice.get("/session/a/status").status_code == 403


def test_a_process_ends_with_its_session_and_when_that_is_idle(
    sessions: Sessions, tmp_path: Path, clock: Clock
) -> None:
    with served(sessions, tmp_path) as on:
        pids = {}
        for name in "abcd":
            on.alice.post("/session/start", json={"session_id": name})
            pids[name] = result(on.alice, name, "process")
        assert on.alice.post("/session/a/close").json()["status"] == "completed"
        assert on.alice.post("/session/a/close").status_code == 200
        assert call(on.alice, "a", "add").status_code == 409
        sessions.delete("b")
        clock.advance(minutes=6)
        on.alice.post("/session/c/ping")
        on.on_loop(on.asgi.state.gateway.processes.end_idle)
        assert {name: is_alive(pid) for name, pid in pids.items()} == {"a": False, "b": False, "c": True, "d": False}
        assert result(on.alice, "d", "add", n=1) == 1
        clock.advance(hours=2)
        sessions.settle()
        assert not is_alive(pids["c"])


def test_a_killed_process_is_replaced_and_one_that_ends_in_a_call_is_reported(
    sessions: Sessions, tmp_path: Path
) -> None:
    with served(sessions, tmp_path, call_timeout="0.5s", max_message_bytes=100_000, max_processes_per_user=2) as on:
        on.alice.post("/session/start", json={"session_id": "a"})
        assert result(on.alice, "a", "add", n=4) == 4
        os.kill(pid := result(on.alice, "a", "process"), signal.SIGKILL)
        wait_until(lambda: not is_alive(pid) and on.asgi.state.gateway.processes.live[0].has_ended)
        assert result(on.alice, "a", "add", n=4) == 8
        for tool, arguments, status in (("die", {}, 502), ("write", {"characters": 200_000}, 502), ("hang", {}, 504)):
            assert call(on.alice, "a", tool, **arguments).status_code == status
            assert sessions.get("a").tool_calls()[-1].status == "error"
        assert result(on.alice, "a", "add", n=1) == 9
        for name in "bc":
            on.alice.post("/session/start", json={"session_id": name})
        assert [call(on.alice, name, "add").status_code for name in "bc"] == [200, 429]


def test_a_server_that_does_not_start_is_a_bad_gateway(sessions: Sessions, tmp_path: Path) -> None:
    for settings in (Gateway("no-such-program"), Gateway("true"), Gateway("cat", start_timeout="0.2s")):
        asgi = app(sessions, authenticate=caller_of, gateway=settings)

        async def ask(asgi: Any = asgi) -> tuple[int, str]:
            transport = httpx.ASGITransport(asgi)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://x", headers={"x-user": "alice"}, timeout=60
            ) as client:
                started = (await client.post("/session/start")).json()
                answer = await client.post(f"/session/{started['session_id']}/tools/add")
                await asgi.state.gateway.close()
                return answer.status_code, answer.json()["error"]

        assert asyncio.run(ask()) == (502, "ToolServerFailed")


def test_settings_are_checked(sessions: Sessions) -> None:
    for settings in ({"data_dir": "{session_id}"}, {"max_processes": 0}, {"call_timeout": "never"}, {"command": ""}):
        with pytest.raises(InvalidArgument):
            Gateway(**{"command": "x", **settings})
    with pytest.raises(InvalidArgument, match="max_open_resources"):
        app(sessions, gateway=Gateway("x", max_processes=100))


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_two_servers_share_a_session_and_the_other_takes_over_when_one_ends(
    ending: signal.Signals, postgres_url: str, tmp_path: Path
) -> None:
    with (
        processes.Process(SERVER, postgres_url, tmp_path) as first,
        processes.Process(SERVER, postgres_url, tmp_path) as second,
        httpx.Client(headers={"x-user": "alice"}, timeout=30, trust_env=False) as client,
    ):
        urls = [process.stdout.readline().strip() for process in (first, second)]

        def ask(url: str, tool: str, **arguments: Any) -> Any:
            return client.post(f"{url}/session/a/tools/{tool}", json=arguments).json()["result"]

        client.post(f"{urls[0]}/session/start", json={"session_id": "a"})
        assert [ask(url, "add", n=1) for url in (*urls, *urls)] == [1, 2, 3, 4]
        assert ask(urls[0], "process") == ask(urls[1], "process")
        assert client.post(f"{urls[1]}/session/a/tools/nope").status_code == 404
        pid = ask(urls[1], "process")
        if ending == signal.SIGKILL:  # in a call, which keeps the process from noticing that its input has ended
            hanging = threading.Thread(target=_ask_in_vain, args=(f"{urls[0]}/session/a/tools/hang",))
            hanging.start()
            wait_until((tmp_path / "alice" / "a" / "hangs").exists)
        first.send_signal(ending)
        first.wait(20)
        if ending == signal.SIGKILL:
            hanging.join()
        wait_until(lambda: not is_alive(pid))
        assert ask(urls[1], "add", n=1) == 5
        assert ask(urls[1], "process") != pid


def _ask_in_vain(url: str) -> None:
    with suppress(httpx.TransportError):
        httpx.post(url, headers={"x-user": "alice"}, timeout=30, trust_env=False)
