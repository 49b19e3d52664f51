"""A search for words that say nothing, or for signs, finds what holds them as they are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from session_middleware import Sessions
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine")

SAID = ("to be or not to be", "The Who live", "who is the tallest?", "don't panic 😀", "a whole other thing")


SETTLED = ["read from the record", "indexed"]


@pytest.fixture(params=SETTLED)
def settle(request: pytest.FixtureRequest, sessions: Sessions) -> Callable[[], object]:
    return (lambda: None) if request.param == "read from the record" else sessions.index_memory


def say(sessions: Sessions, session_id: str, *texts: str, user_id: str | None = None) -> None:
    session = sessions.open(session_id, user_id=user_id)
    for text in texts:
        session.add({"role": "user", "content": text})


PHRASES: list[tuple[str, list[str]]] = [
    ("to be or not to be", ["to be or not to be"]),
    ("To be, or NOT to be?", ["to be or not to be"]),
    ("The Who", ["The Who live"]),
    ("don't", ["don't panic 😀"]),
    ("don\u2019t", ["don't panic 😀"]),
    ("😀", ["don't panic 😀"]),
    ("the", ["who is the tallest?", "The Who live"]),
    ("?", ["who is the tallest?"]),
    ("other", ["a whole other thing"]),
    ("be be", []),
    ("%", []),
    ("", []),
    (" ", []),
    ("\ud83d", []),
    ("the " * 50_000, []),
    ("x" * 100_000, []),
]


@pairwise(phrase=range(len(PHRASES)), settle=SETTLED, each_engine=ENGINES)
def test_it_finds_what_holds_it_as_it_is_written_the_latest_first(
    sessions: Sessions, settle: Callable[[], object], phrase: int
) -> None:
    query, found = PHRASES[phrase]
    say(sessions, "t", *SAID)
    settle()
    assert [each.text for each in sessions.search(query)] == found


def test_it_looks_where_the_caller_may_and_in_pages(sessions: Sessions) -> None:
    say(sessions, "a", "not so", "not so either", user_id="alice")
    say(sessions, "b", "not mine", user_id="bob")
    say(sessions, "c", "not there", user_id="alice")
    assert [f.text for f in sessions.search("not", user_id="alice")] == ["not there", "not so either", "not so"]
    assert [f.text for f in sessions.search("not", session_id="a")] == ["not so either", "not so"]
    assert sessions.search("not", session_id="a", user_id="bob") == []
    assert [f.text for f in sessions.search("not", user_id="alice", offset=1, limit=1)] == ["not so either"]
    assert [f.text for f in sessions.for_user("bob").search("not")] == ["not mine"]
    assert len(sessions.search("not")) == 4


def test_what_was_deleted_or_edited_is_not_found_and_what_forks_share_once(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add({"role": "user", "content": "not this", "id": "a"})
    session.add({"role": "user", "content": "not that", "id": "b"})
    session.add({"role": "user", "content": "nor that", "id": "b"})
    assert [f.text for f in sessions.search("not")] == ["not this"]
    sessions.get("t").fork(id="fork")
    assert len(sessions.search("not")) == 1
    for each in ("t", "fork"):
        sessions.get(each).delete_message("a")
    assert sessions.search("not") == []


def test_the_snippet_shows_it(sessions: Sessions) -> None:
    say(sessions, "t", "word " * 100 + "and The Who played")
    (found,) = sessions.search("the who", marks=("<", ">"))
    assert "<The Who> played" in found.snippet
    assert found.score > 0


def test_a_long_text_is_found_by_its_last_words(sessions: Sessions, settle: Callable[[], object]) -> None:
    say(sessions, "t", "word " * 12_000 + "xylophone")
    settle()
    (found,) = sessions.search("xylophone", marks=("<", ">"))
    assert "<xylophone>" in found.snippet
