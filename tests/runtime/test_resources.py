"""Resources belong to a session while it lives: opened once, and closed when it ends."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware import PathTemplateError, ResourceHeld, Sessions
from session_middleware.storage.processes import this_process
from tests.conftest import Clock, OpenSessions
from tests.support import processes

pytestmark = [pytest.mark.sessions(idle_timeout="30m", max_open_resources=2), pytest.mark.usefixtures("clock")]


@pytest.fixture
def log() -> list[str]:
    return []


def use(session: Any, log: list[str]) -> Any:
    def open_() -> list[str]:
        log.append(f"open {session.id}")
        return [session.id]

    return session.resource("server", open=open_, close=lambda value: log.append(f"close {value[0]}"))


def test_a_resource_is_opened_once_and_closed_when_its_session_ends(
    sessions: Sessions, log: list[str], clock: Clock
) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: use(sessions.open("t"), log), range(20)))
    assert all(value is found[0] for value in found)
    sessions.get("t").complete()
    assert log == ["open t", "close t"]
    use(sessions.open("t"), log)
    clock.advance(hours=1)
    sessions.sweep()
    assert log == ["open t", "close t"] * 2


def test_the_one_used_least_recently_makes_room_and_the_rest_is_closed_at_the_end(
    tmp_path: Path, log: list[str]
) -> None:
    with Sessions(tmp_path / "sessions.db", max_open_resources=2) as sessions:
        for name in ("a", "b", "a", "c"):
            use(sessions.open(name), log)
        assert log == ["open a", "open b", "close b", "open c"]
    assert sorted(log[4:]) == ["close a", "close c"]


def test_one_that_cannot_be_opened_is_tried_again_and_one_that_cannot_be_closed_breaks_nothing(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    session = sessions.open("t")

    def refuse(*_: Any) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        session.resource("x", open=refuse)
    assert session.resource("x", open=lambda: 1, close=refuse) == 1
    assert session.complete().status == "completed"
    assert "OSError('no')" in caplog.text


async def test_an_async_resource_is_opened_and_closed_by_one_task(tmp_path: Path, log: list[str]) -> None:
    tasks: list[Any] = []

    async def open_() -> str:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        log.append("open")
        return "server"

    async def close(value: str) -> None:
        tasks.append(asyncio.current_task())
        log.append(f"close {value}")

    async with Sessions(tmp_path / "sessions.db") as sessions:
        session = await sessions.aopen("t")
        values = await asyncio.gather(*(session.aresource("mcp", open=open_, close=close) for _ in range(5)))
        assert values == ["server"] * 5
        await session.acomplete()
        again = await sessions.aopen("t")
        await again.aresource("mcp", open=open_, close=close)
    assert log == ["open", "close server"] * 2
    assert tasks[0] is tasks[1] is not tasks[2]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_an_async_resource_that_is_being_opened_when_its_session_ends_is_closed_too(
    is_cancelled: bool, tmp_path: Path
) -> None:
    opening, opened, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def open_() -> str:
        opening.set()
        await opened.wait()
        return "server"

    async def close(value: str) -> None:
        closed.set()

    async with Sessions(tmp_path / "sessions.db") as sessions:
        session = await sessions.aopen("t")
        use = asyncio.create_task(session.aresource("mcp", open=open_, close=close))
        await opening.wait()
        if is_cancelled:
            use.cancel()
        await session.acomplete()
        opened.set()
        await closed.wait()
        await asyncio.gather(use, return_exceptions=True)


def test_another_process_ending_the_session_closes_it_here(
    sessions: Sessions, tmp_path: Path, log: list[str], clock: Clock
) -> None:
    use(sessions.open("t"), log)
    with Sessions(tmp_path / "sessions.db", clock=clock) as others:
        others.get("t").complete()
    sessions._sweeper.close_resources()
    assert log == ["open t", "close t"]


AT_EXIT = """
import sys
from session_middleware import Sessions
sessions = Sessions(sys.argv[1])
sessions.open("t").resource("x", open=lambda: "x", close=lambda value: print("closed", value, flush=True))
"""


def test_what_is_left_open_is_closed_when_the_interpreter_ends(tmp_path: Path) -> None:
    done = processes.run("-c", AT_EXIT, tmp_path / "sessions.db", check=True)
    assert done.stdout == "closed x\n"


def test_an_exclusive_resource_is_open_in_one_place_at_a_time(
    each_engine: str, open_sessions: OpenSessions, log: list[str]
) -> None:
    here, elsewhere = open_sessions(), open_sessions()

    def opened(sessions: Sessions, **more: Any) -> Any:
        return sessions.get("t").resource(
            "r", open=lambda: log.append("open"), close=log.append, exclusive=True, **more
        )

    here.open("t")
    opened(here, holder="http://127.0.0.1:1")
    opened(here)
    with pytest.raises(ResourceHeld) as held:
        opened(elsewhere)
    assert (held.value.holder, held.value.process) == ("http://127.0.0.1:1", this_process())
    here.get("t").close_resource("r")
    opened(elsewhere)
    assert log == ["open", None, "open"]
    elsewhere.close()
    opened(here)


async def test_an_exclusive_asynchronous_resource_is_released_when_it_is_closed_or_cannot_be_opened(
    each_engine: str, open_sessions: OpenSessions
) -> None:
    here, elsewhere = open_sessions(), open_sessions()

    async def open_() -> int:
        return 1

    async def refuse() -> int:
        raise OSError("no")

    session, other = await here.aopen("t"), await elsewhere.aopen("t")
    with pytest.raises(OSError, match="no"):
        await session.aresource("r", open=refuse, exclusive=True)
    assert await session.aresource("r", open=open_, exclusive=True) == 1
    with pytest.raises(ResourceHeld):
        await other.aresource("r", open=open_, exclusive=True)
    await session.aclose_resource("r")
    assert await other.aresource("r", open=open_, exclusive=True) == 1
    await elsewhere.aclose()


HOLDS = """
import sys
from session_middleware import Sessions
sessions = Sessions(sys.argv[1])
sessions.open("t").resource("r", open=lambda: 1, exclusive=True)
print("holds", flush=True)
sys.stdin.read()
"""


def test_an_exclusive_resource_of_a_killed_process_can_be_opened(path: Path, sessions: Sessions) -> None:
    session = sessions.open("t")
    with processes.Process("-c", HOLDS, path, stdin=True) as other:
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(ResourceHeld):
            session.resource("r", open=lambda: 2, exclusive=True)
        other.kill()
        other.wait()
        assert session.resource("r", open=lambda: 2, exclusive=True) == 2


def test_a_resource_that_another_process_has_taken_over_is_closed(sessions: Sessions, log: list[str]) -> None:
    session = sessions.open("t")
    session.resource("r", open=lambda: "old", close=log.append, exclusive=True)
    with closing(sqlite3.connect(sessions.settings.storage_url)) as database, database:  # as after a long pause
        database.execute("DELETE FROM leases")
    assert session.resource("r", open=lambda: "new", close=log.append, exclusive=True) == "new"
    assert log == ["old"]


def test_a_path_is_filled_in_safely_or_refused(sessions: Sessions) -> None:
    session = sessions.open("../../etc/passwd", user_id="a.b~c", group_id=None)
    path = session.path("work/{user_id}/{session_id}")
    assert path == Path("work/a%2Eb%7Ec/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd")
    assert sessions.open("Alice").path("{session_id}").name.lower() != sessions.open("alice").path("{session_id}").name
    short = sessions.open("x" * 900).path("{session_id}").name
    assert sessions.open(short).path("{session_id}").name != short
    assert sessions.open("x" * 900).path("{session_id}").name != sessions.open("x" * 901).path("{session_id}").name
    for template in ("{group_id}", "{nobody}", "{}", "{session_id.__class__}"):
        with pytest.raises(PathTemplateError):
            session.path(template)
