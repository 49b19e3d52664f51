"""`SessionClient` against a real server, which is killed and started again."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from session_middleware import (
    InvalidToolArguments,
    ServerUnavailable,
    SessionExpired,
    SessionNotFound,
    Sessions,
    ToolFailed,
    ToolNotFound,
    ToolServerFailed,
)
from session_middleware.integrations.session_client import SessionClient
from tests.support import processes

pytestmark = pytest.mark.slow
SERVER = Path(__file__).parents[1] / "support" / "gateway_server.py"
ALICE, BOB = {"x-user": "alice"}, {"x-user": "bob"}


def test_a_session_is_used_kept_alive_resumed_after_a_kill_and_closed(path: Path, tmp_path: Path) -> None:
    with Sessions(path) as sessions:
        with processes.Process(SERVER, path, tmp_path, env={"SESSION_IDLE_AFTER": "300ms"}) as server:
            url = server.stdout.readline().strip()
            with SessionClient(url, session_id="a/..", headers=ALICE, keep=True) as session:
                assert session.call("add", {"n": 2}) == 2
                assert "add" in {tool["name"] for tool in session.tools()}
                began = sessions.get("a/..").last_active_at
                until = threading.Event()
                while sessions.get("a/..").last_active_at == began:  # a ping in the background
                    until.wait(0.05)
                for error, tool, arguments in (
                    (ToolNotFound, "nope", {}),
                    (InvalidToolArguments, "add", {"n": "x"}),
                    (ToolFailed, "fail", {}),
                    (ToolServerFailed, "die", {}),
                ):
                    with pytest.raises(error):
                        session.call(tool, arguments)
                with pytest.raises(SessionNotFound), SessionClient(url, session_id="a/..", headers=BOB):
                    pass
                server.kill()
                server.wait()
                port = url.rpartition(":")[2]
                with processes.Process(SERVER, path, tmp_path, port) as again:
                    assert session.call("add", {"n": 2}) == 4
                    with SessionClient(url, session_id="a/..", headers=ALICE) as closing:
                        assert closing.status()["status"] == "active"
                    again.send_signal(signal.SIGTERM)
                    again.wait(20)
        assert sessions.get("a/..").status == "completed"


def test_the_same_for_asyncio(path: Path, tmp_path: Path) -> None:
    async def use(url: str) -> None:
        async with SessionClient(url, headers=ALICE, title="tea") as session:
            assert (
                await asyncio.gather(*(session.acall("process") for _ in range(3)))
                == [await session.acall("process")] * 3
            )
            assert (await session.astatus())["title"] == "tea"
            with Sessions(path) as sessions:
                sessions.get(session.id).update(idle_timeout=0.001)
            with pytest.raises(SessionExpired):
                await session.acall("add")

    with processes.Process(SERVER, path, tmp_path) as server:
        asyncio.run(use(server.stdout.readline().strip()))


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(ServerUnavailable, match="check that the server runs"):
        SessionClient("http://127.0.0.1:9", retry_seconds=0).__enter__()
