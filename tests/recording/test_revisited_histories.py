"""Loops that go back and forth between histories: what a branch holds already is not recorded again."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware import Session, Sessions

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")

TREE = ["qAmBn", "qCoD", "qAmEs", "xYz", "qAm"]  # histories; capitals are what the assistant says


def history(letters: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if letter.isupper() else "user", "content": letter} for letter in letters]


def texts(session: Session, **which: Any) -> str:
    return "".join(message.text for message in session.messages(**which))


def test_histories_given_again_and_again_are_recorded_once_and_each_is_where_the_session_is_then(
    sessions: Sessions,
) -> None:
    session = sessions.open("t")
    for given in (*TREE, *TREE, *reversed(TREE)):
        session.add_history(history(given))
        assert texts(session).startswith(given)
    assert sorted(texts(session, branch="all", all_versions=True)) == sorted("qAmBnCoDEsxYz")
    assert len(session.branches()) == 3


def test_two_histories_that_grow_in_turn_are_recorded_once_each(sessions: Sessions) -> None:
    session, plan, work = sessions.open("t"), "pA", "wB"
    for planned, worked in zip("cdefg", "hijkl", strict=True):
        session.add_history(history(plan := plan + planned))
        session.add_history(history(work := work + worked))
    assert sorted(texts(session, branch="all", all_versions=True)) == sorted(plan + work)
    assert len(session.branches()) == 1


def test_a_history_that_no_branch_holds_leaves_the_branch_that_holds_most_of_it(sessions: Sessions) -> None:
    session = sessions.open("t")
    for given in ("qAmBn", "qCoD", "qAmXz"):
        session.add_history(history(given))
    assert texts(session) == "qAmXz"
    assert sorted(texts(session, branch="all")) == sorted("qAmBnCoDXz")
