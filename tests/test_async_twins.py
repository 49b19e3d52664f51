"""Each method that reads or writes the database has an async twin, and the two have one signature."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from session_middleware import Session, Sessions
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.settings import SessionSettings
from session_middleware.user_sessions import UserSessions

CLASSES = (Sessions, UserSessions, Session, SessionMemory)
ALONE = {  # methods that neither read nor write the database
    Sessions: {
        *("acting_as", "attach", "augment", "config", "for_user", "retriever", "scope", "template"),
        *("on_closed", "on_error", "on_expiring", "on_opened", "on_resumed", "on_state_changed"),
    },
    UserSessions: {"config"},
    Session: {"config", "history", "path", "tool", "tool_execution"},
    SessionMemory: {"has", "namespace", "namespaces"},
}


def methods(cls: type) -> dict[str, Any]:
    return {name: one for name, one in inspect.getmembers(cls, inspect.isroutine) if not name.startswith("_")}


def pairs() -> Iterator[Any]:
    for cls in CLASSES:
        of_class = methods(cls)
        for name, method in of_class.items():
            if (twin := of_class.get(f"a{name}")) is not None:
                yield pytest.param(cls, method, twin, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize("cls", CLASSES)
def test_each_method_that_uses_the_database_has_a_twin(cls: type) -> None:
    names = set(methods(cls))
    twins = {name for name in names if name[0] == "a" and name[1:] in names}
    assert names - twins - {twin[1:] for twin in twins} == ALONE[cls]


@pytest.mark.parametrize(("cls", "method", "twin"), [*pairs()])
def test_twins_have_one_signature_and_say_what_they_are(cls: type, method: Any, twin: Any) -> None:
    mine, its = inspect.signature(method), inspect.signature(twin)
    assert list(mine.parameters.values())[1:] == list(its.parameters.values())[1:] or method.__name__ == "resource"
    assert mine.return_annotation == its.return_annotation or method.__name__ == "follow"
    assert not any("options" in name for name in its.parameters)
    assert inspect.iscoroutinefunction(twin) or method.__name__ == "follow"
    assert (twin.__name__, twin.__qualname__) == (
        f"a{method.__name__}",
        f"{method.__qualname__.rpartition('.')[0]}.a{method.__name__}",
    )
    assert len((twin.__doc__ or "").strip().splitlines()) == 1


def test_help_shows_each_setting_with_its_default() -> None:
    shown = inspect.signature(Sessions).parameters
    assert {"clock", *SessionSettings.model_fields} <= set(shown)
    assert (shown["on_resume"].default, shown["idle_after"].default) == ("revive", timedelta(minutes=5))


def test_help_shows_each_option_of_a_session() -> None:
    known = {"session_id", "user_id", "group_id", "title", "tags", "idle_timeout", "on_resume", "if_exists"}
    for method in (Sessions.open, Sessions.aopen):
        assert known <= set(inspect.signature(method).parameters)
    assert "user_id" not in inspect.signature(UserSessions.aopen).parameters


async def test_a_twin_runs_the_method_of_a_subclass() -> None:
    class Named(Sessions):
        def open(self, session_id: object = None, **options: Any) -> Session:
            return super().open(session_id, title="named", **options)

    async with Named(":memory:") as sessions:
        assert (await sessions.aopen("t")).title == "named"


def test_a_twin_given_an_argument_there_is_not_says_which_was_meant() -> None:
    with Sessions(":memory:") as sessions, pytest.raises(TypeError, match=r"open\(\) .*'titel'; write title=…"):
        asyncio.run(sessions.aopen("t", titel="x"))  # type: ignore[call-arg]
