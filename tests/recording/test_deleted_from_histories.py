"""A deleted message that a history without ids brings back is known by its words, where it stood, and stays away."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage

from session_middleware import Session, Sessions
from tests.support import agents

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")

SECRET = "my password is hunter2"


def history(*texts: str) -> list[dict[str, Any]]:
    """The user and the assistant by turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def texts(session: Session, **options: Any) -> list[str]:
    return [message.text for message in session.messages(**options)]


def delete(session: Session, *said: str) -> None:
    for message in session.messages():
        if message.text in said:
            session.delete_message(message.message_id)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_wherever_it_stood_the_same_history_with_more_after_it_adds_only_what_is_new(
    sessions: Sessions, place: int
) -> None:
    session, told = sessions.open("t"), ["one", "Two", "three", "Four"]
    session.add_history(history(*told))
    delete(session, told[place])
    for _ in range(2):
        session.add_history(history(*told, "more", "Still more"))
        assert texts(session) == [*(text for text in told if text != told[place]), "more", "Still more"]
    assert session.branches() == []


def test_it_is_not_taken_for_an_edit_of_what_came_after_it(sessions: Sessions) -> None:
    session, told = sessions.open("t"), [{"role": "user", "content": text} for text in (SECRET, "well?")]
    session.add_history(told)
    delete(session, SECRET)
    session.add_history(told[:1])
    session.add_history(told)
    assert texts(session, branch="all", all_versions=True) == ["well?"]


def test_several_that_stood_beside_each_other_stay_away_and_start_no_branch(sessions: Sessions) -> None:
    session, told = sessions.open("t"), ["one", "Two", "three", "Four", "five"]
    session.add_history(history(*told))
    delete(session, "Two", "three")
    session.add_history(history(*told, "More"))
    assert (texts(session, branch="all"), session.branches()) == (["one", "Four", "five", "More"], [])


@pytest.mark.slow
def test_a_history_it_was_taken_out_of_goes_on_as_any_other(sessions: Sessions) -> None:
    session, told = sessions.open("t"), history("one", "Two", "three", "Four", "yes", "Ok")
    session.add_history(told)
    delete(session, "one", "three")
    rest = [message for message in told if message["content"] not in ("one", "three")]
    session.add_history([*rest, {"role": "user", "content": "more"}])
    assert (texts(session, branch="all"), session.branches()) == (["Two", "Four", "yes", "Ok", "more"], [])


def test_who_says_the_same_again_later_has_said_it_again(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add_history(history(SECRET, "Ok"))
    delete(session, SECRET)
    for _ in range(2):
        session.add_history(history(SECRET, "Ok", SECRET))
        assert texts(session) == ["Ok", SECRET]
    assert session.add({"role": "user", "content": SECRET}).text == SECRET


def test_other_words_where_it_stood_are_recorded(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add_history(history(SECRET))
    delete(session, SECRET)
    session.add_history(history("hello", "Hi"))
    assert texts(session) == ["hello", "Hi"]


def test_all_its_versions_are_known_again(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add_history(history("my pasword is hunter2", "Ok"))
    session.add_history(history(SECRET, "Ok"))
    delete(session, SECRET)
    for text in (SECRET, "my pasword is hunter2"):
        session.add_history(history(text, "Ok", "next"))
    assert texts(session, branch="all", all_versions=True) == ["Ok", "next"]


def test_a_model_that_is_asked_with_it_does_not_bring_it_back(sessions: Sessions) -> None:
    model, config = agents.Scripted(has_tools=False), sessions.config("t") | {"callbacks": [sessions.recorder]}
    asked: list[BaseMessage] = [HumanMessage(SECRET)]
    asked.append(model.invoke(asked, config))  # type: ignore[arg-type]
    session = sessions.get("t")
    delete(session, SECRET, f"you said {SECRET}")
    for text in ("next", "last"):
        asked.append(HumanMessage(text))
        asked.append(model.invoke(asked, config))  # type: ignore[arg-type]
    assert texts(session, branch="all") == ["next", "you said next", "last", "you said last"]


def test_in_a_fork_it_stays_away_as_well(sessions: Sessions) -> None:
    session, told = sessions.open("t"), ["one", "Two", "three"]
    session.add_history(history(*told))
    delete(session, "three")
    sessions.get("t").fork(id="fork")
    fork = sessions.get("fork")
    fork.add_history(history(*told, "Four"))
    assert (texts(fork), fork.branches()) == (["one", "Two", "Four"], [])


def test_what_a_branch_never_held_is_said_there_for_the_first_time(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add_history(history("one", "Two", SECRET))
    session.add_history(history("one", "Else", "three"))
    (deleted,) = [m for m in session.messages(branch="main") if m.text == SECRET]
    session.delete_message(deleted.message_id)
    session.add_history(history("one", "Else", "three", "Four", SECRET))
    assert texts(session) == ["one", "Else", "three", "Four", SECRET]
