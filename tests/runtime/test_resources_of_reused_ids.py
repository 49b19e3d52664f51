"""An id may be used again; what belonged to the session that had it before is closed, and handed to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from tests.conftest import Clock

pytestmark = [
    pytest.mark.sessions(idle_timeout="1h", on_resume="fresh", sweep_interval=None),
    pytest.mark.usefixtures("clock"),
]


@pytest.fixture
def elsewhere(path: Path, clock: Clock) -> Iterator[Sessions]:
    """Another opening of the same file, as of another process."""
    with Sessions(path, clock=clock, sweep_interval=None) as elsewhere:
        yield elsewhere


@pytest.fixture
def log() -> list[str]:
    return []


def use(session: Any, name: str, log: list[str]) -> str:
    def open_() -> str:
        log.append(f"open {name}")
        return name

    return str(session.resource("tmp", open=open_, close=lambda value: log.append(f"close {value}")))


ENDS: dict[str, Callable[[Sessions, Sessions, Clock], Any]] = {
    "deleted elsewhere": lambda here, elsewhere, clock: elsewhere.get("t").delete(),
    "deleted as a thread": lambda here, elsewhere, clock: here.checkpointer.delete_thread("t"),
    "started over": lambda here, elsewhere, clock: clock.advance(hours=2),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_who_has_the_id_next_is_handed_nothing_of_the_session_before(
    end: Callable[..., Any], sessions: Sessions, elsewhere: Sessions, clock: Clock, log: list[str]
) -> None:
    use(sessions.open("t"), "old", log)
    end(sessions, elsewhere, clock)
    assert use(sessions.open("t", user_id="mallory"), "new", log) == "new"
    assert log == ["open old", "close old", "open new"]  # the old one may be in the way of the new


def test_another_user_gets_nothing_that_was_opened_for_one_forgotten_elsewhere(
    sessions: Sessions, elsewhere: Sessions, log: list[str]
) -> None:
    use(sessions.open("t", user_id="alice"), "alice's", log)
    elsewhere.forget_user("alice")
    assert use(sessions.open("t", user_id="mallory"), "mallory's", log) == "mallory's"
    assert log == ["open alice's", "close alice's", "open mallory's"]


async def test_an_async_resource_of_the_session_before_is_closed_before_the_next_is_opened(
    sessions: Sessions, elsewhere: Sessions, log: list[str]
) -> None:
    async def use_async(name: str) -> Any:
        async def open_() -> str:
            log.append(f"open {name}")
            return name

        async def close(value: str) -> None:
            log.append(f"close {value}")

        return await (await sessions.aopen("t")).aresource("tmp", open=open_, close=close)

    assert await use_async("old") == "old"
    elsewhere.delete("t")
    assert await use_async("new") == "new"
    assert log == ["open old", "close old", "open new"]


def test_what_a_session_has_open_is_closed_soon_after_its_end_however_that_came(
    tmp_path: Path, clock: Clock, log: list[str]
) -> None:
    limits: dict[str, Any] = {"max_sessions_per_user": 1, "on_limit": "expire_oldest"}
    with Sessions(tmp_path / "limited.db", clock=clock, sweep_interval=None, **limits) as sessions:
        use(sessions.open("1", user_id="alice"), "first", log)
        use(sessions.open("2", user_id="alice"), "second", log)
        sessions.settle()
        assert log == ["open first", "open second", "close first"]
        sessions.checkpointer.delete_thread("2")
        sessions.settle()
        assert log[3:] == ["close second"]


def test_a_fork_closes_nothing_of_its_parents(sessions: Sessions, elsewhere: Sessions, log: list[str]) -> None:
    use(sessions.open("t"), "parent's", log)
    for resource in sessions._resources._open.values():
        resource.process = -1  # as it is in a fork
    elsewhere.get("t").complete()
    sessions.settle()
    elsewhere.delete("t")
    assert use(sessions.open("t"), "own", log) == "own"
    assert log == ["open parent's", "open own"]


def test_a_session_that_was_only_got_has_what_it_opened_closed_too(
    sessions: Sessions, elsewhere: Sessions, log: list[str]
) -> None:
    elsewhere.open("t")
    use(sessions.get("t"), "one", log)
    assert sessions._background._thread is not None  # which closes it when the session ends elsewhere
