"""What a session says of itself holds after a sweep has archived or deleted it, and a refusal brings none back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionExists, SessionExpired, SessionNotFound, Sessions
from tests.conftest import Clock
from tests.integrations import agents
from tests.integrations.agents import human

Open = Callable[..., Sessions]


@pytest.fixture
def gone(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Sessions]]:
    """Sessions with one, alice's "t", of the given terms, that a sweep has archived or deleted."""
    opened: list[Sessions] = []

    def gone(settings: dict[str, Any], **terms: Any) -> Sessions:
        given = {"idle_timeout": "30m", "clock": clock, "sweep_interval": None, "on_expire": "archive"} | settings
        sessions = Sessions(tmp_path / "sessions.db", **given)
        opened.append(sessions)
        sessions.open("t", user_id="alice", **terms)
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t", user_id="alice"))
        clock.advance(hours=1)
        assert len(sessions.sweep()) == 1
        return sessions

    yield gone
    for sessions in opened:
        sessions.close()


def is_archived(sessions: Sessions) -> bool:
    return sessions.find("t") is None and [one.session_id for one in sessions.list_archived()] == ["t"]


def test_its_own_revive_brings_it_back_where_others_are_refused(gone: Callable[..., Sessions]) -> None:
    sessions = gone({"on_resume": "reject"}, on_resume="revive")
    assert "restores it" in sessions.explain("t").text
    assert sessions.open("t", user_id="alice").opened_as == "revived"
    assert sessions.get("t").message_count == 2


def test_its_own_reject_leaves_it_in_its_archive(gone: Callable[..., Sessions]) -> None:
    sessions = gone({}, on_resume="reject")
    assert "is refused" in sessions.explain("t").text
    with pytest.raises(SessionExpired):
        sessions.open("t", user_id="alice")
    with pytest.raises(SessionExpired):
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t", user_id="alice"))
    assert is_archived(sessions)


def test_its_own_reject_holds_when_it_was_deleted(gone: Callable[..., Sessions]) -> None:
    sessions = gone({"on_expire": "delete"}, on_resume="reject")
    with pytest.raises(SessionExpired):
        sessions.open("t", user_id="alice")


def test_an_id_that_must_be_new_is_refused_and_stays_in_its_archive(gone: Callable[..., Sessions]) -> None:
    sessions = gone({})
    with pytest.raises(SessionExists):
        sessions.open("t", user_id="alice", if_exists="raise")
    assert is_archived(sessions)


def test_a_group_that_writes_in_it_brings_it_back(gone: Callable[..., Sessions]) -> None:
    sessions = gone({}, group_id="team", visibility="group-write")
    for user, groups in (("bob", []), ("bob", ["others"])):
        with pytest.raises(SessionNotFound):
            sessions.for_user(user, groups).open("t")
    assert is_archived(sessions)
    session = sessions.for_user("bob", ["team"]).open("t")
    assert (session.opened_as, session.user_id) == ("revived", "alice")


def test_a_group_that_only_reads_it_does_not(gone: Callable[..., Sessions]) -> None:
    sessions = gone({}, group_id="team", visibility="group")
    with pytest.raises(SessionNotFound):
        sessions.for_user("bob", ["team"]).open("t")
    assert is_archived(sessions)
