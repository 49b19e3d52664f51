"""What was said is found: by its words and those around it, in its scope only, indexed yet or not."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from session_middleware import Sessions
from session_middleware.models import Identity
from session_middleware.settings import load_settings
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.sqlite.engine import SqliteStorage
from session_middleware.storage.types import SessionDetails
from tests.conftest import Clock
from tests.support.embeddings import SubjectEmbeddings
from tests.support.memories import put_of
from tests.support.pairwise import ENGINES, pairwise

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))  # how much longer to look; read before a fixture hides it
WORDS = ("apple", "pear", "plum", "cherry", "garden", "harvest", "basket", "orchard", "cider", "ladder")


def say(storage: Storage, session_id: str, *texts: str, user_id: str | None = None, **fields: Any) -> None:
    """Messages with ids that go on where the session's end."""
    context = RunContext(session_id, Identity(user_id=user_id), is_run=False)
    first = len(storage.list_messages(session_id))
    role = fields.pop("role", "user")
    seen = [MessageEntry(f"{session_id}-{first + n}", role, text, **fields) for n, text in enumerate(texts)]
    storage.append(context, seen)


def look(
    storage: Storage, query: str, session_id: str | None = None, user_id: str | None = None, **rest: Any
) -> list[StoredMemory]:
    asked = MemoryQuery([], prefix=False, query=query, whose=[MessageScope(session_id, user_id)], **rest)
    return storage.search_memories(asked)


def keys(found: list[StoredMemory]) -> list[str]:
    return [memory.key for memory in found]


def index(storage: Storage) -> None:
    while storage.index_messages(50):
        pass


SETTLED = ["read from the record", "indexed"]


@pytest.fixture(params=SETTLED)
def settle(request: pytest.FixtureRequest, storage: Storage) -> Callable[[], None]:
    """A recorded message is found as well before as after it is indexed."""
    return (lambda: None) if request.param == "read from the record" else (lambda: index(storage))


def test_a_message_is_found_by_its_words(storage: Storage, settle: Callable[[], None], clock: Clock) -> None:
    say(storage, "t", "I picked apples in the orchard", "How lovely!", user_id="alice")
    settle()
    found = look(storage, "who was picking an apple?", "t")[0]
    assert (found.text, found.key, found.session_id) == ("I picked apples in the orchard", "t-0", "t")
    assert (found.namespace, found.seq, found.created_at) == (("session", "t"), 2, clock.now)
    assert found.value == {"text": "I picked apples in the orchard", "role": "user"}
    assert found.score == found.words


def test_an_answer_is_found_by_what_it_answers(storage: Storage, settle: Callable[[], None]) -> None:
    say(
        storage, "t", "Nothing much today.", "Which day do you harvest the cherries?", "Friday morning, as ever.", "Ok."
    )
    settle()
    assert keys(look(storage, "harvest of cherries", "t"))[:2] == ["t-1", "t-2"]


def test_neighbours_are_of_the_same_session(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "a", "the harvest is over", user_id="alice")
    say(storage, "b", "nothing to see here", user_id="alice")
    settle()
    assert keys(look(storage, "harvest", user_id="alice")) == ["a-0"]


def test_who_is_named_by_the_query_is_believed_to_have_said_it(storage: Storage, settle: Callable[[], None]) -> None:
    for n, name in enumerate(["Bob", "Carol", "Bob", "Carol"]):
        say(storage, f"t{n}", "my favourite fruit is the cherry", user_id="alice", name=name)
    settle()
    assert keys(look(storage, "What is Carol's favourite fruit?", user_id="alice"))[:2] == ["t1-0", "t3-0"]
    assert keys(look(storage, "What is Bob's favourite fruit?", user_id="alice"))[:2] == ["t0-0", "t2-0"]
    assert storage.find_speakers(["Carol", "fruit", "dave"], MessageScope(user_id="alice")) == {"Carol"}


def test_a_date_in_the_query_is_the_day_it_was_said(storage: Storage, settle: Callable[[], None], clock: Clock) -> None:
    for n in range(4):
        say(storage, f"t{n}", "we went to the orchard", user_id="alice")
        clock.advance(days=31)
    settle()
    assert keys(look(storage, "the orchard in March 2026", user_id="alice"))[0] == "t2-0"


@pairwise(
    day=["Mar 4", "the 4th of March 2026", "2026-03-04"],
    settle=SETTLED,
    storage_url=ENGINES,
)
def test_a_day_is_found_however_it_is_written(
    storage: Storage, settle: Callable[[], None], clock: Clock, day: str
) -> None:
    for n in range(9):
        say(storage, f"t{n}", "we went to the orchard", user_id="alice")
        clock.advance(days=31)
    say(storage, "written", "The harvest is on March 4, 2026", user_id="alice")
    settle()
    assert keys(look(storage, f"the orchard on {day}", user_id="alice"))[0] == "t2-0"
    assert "written-0" in keys(look(storage, f"harvest on {day}", user_id="alice"))[:1]


SCRIPTS = [  # a query, what it finds, and what it does not find
    ("दूध", "मुझे दूध पसंद है", "दादा का धोबी रवि है"),
    ("고양이", "고양이를 키운다", "강아지가 좋아"),
    ("猫", "我家养了一只猫", "我家养了一只狗"),
    ("แมว", "ฉันมีแมวหนึ่งตัว", "ฉันมีหมาหนึ่งตัว"),
    ("da nang", "Đà Nẵng", "Hà Nội"),
    ("كتاب", "كِتَابٌ جديد", "قلم جديد"),
]


@pairwise(words=SCRIPTS, settle=SETTLED, storage_url=ENGINES)
def test_words_of_any_script_are_found_by_all_that_searches(
    storage: Storage, settle: Callable[[], None], words: tuple[str, str, str]
) -> None:
    query, said, other = words
    say(storage, "t", said, user_id="alice")
    say(storage, "u", other, user_id="alice")
    storage.put_memories([put_of(("n",), "said", {}, said), put_of(("n",), "other", {}, other)])
    settle()
    for options in ({}, {"typed": True}):
        assert keys(look(storage, query, user_id="alice", **options)) == ["t-0"]
    items = storage.search_memories(MemoryQuery([("n",)], prefix=True, query=query))
    assert keys(items) == ["said"]


def test_the_beginning_of_a_word_of_any_script_is_found(storage: Storage, settle: Callable[[], None]) -> None:
    words = {"नमस": "नमस्ते दुनिया", "Łód": "w Łodzi i Łódź", "고양": "고양이를"}
    for typed, said in words.items():
        say(storage, typed, said, "something else", user_id="alice")
    settle()
    for typed in words:
        assert keys(look(storage, typed, user_id="alice", typed=True)) == [f"{typed}-0"]


def test_a_word_is_found_at_each_letter_that_is_typed_of_it(storage: Storage, settle: Callable[[], None]) -> None:
    words = ["painting", "happiness", "children", "running", "cities", "went", "thought"]
    for n, word in enumerate(words):
        say(storage, f"t{n}", f"we saw {word} there", user_id="alice")
    say(storage, "other", "a pain, a child, a run, happily in a city with paint", user_id="alice")
    settle()
    for n, word in enumerate(words):
        for length in range(3, len(word) + 1):
            found = look(storage, word[:length], user_id="alice", typed=True)
            assert f"t{n}-0" in keys(found), word[:length]
    assert keys(look(storage, "painti", user_id="alice", typed=True)) == ["t0-0"]
    assert keys(look(storage, "childr", user_id="alice", typed=True, limit=1)) == ["t2-0"]


def test_tool_results_are_found_and_system_prompts_are_not(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "t", "You sell cider", role="system")
    say(storage, "t", "cider: 3 bottles", role="tool", tool_call_id="c")
    settle()
    assert keys(look(storage, "cider", "t")) == ["t-1"]


def test_an_edited_message_is_found_by_its_new_words_in_its_old_place(
    storage: Storage, settle: Callable[[], None]
) -> None:
    say(storage, "t", "What shall we bake?", "An apple cake, I would say", "Good.")
    index(storage)
    storage.append(RunContext("t", Identity()), [MessageEntry("t-1", "user", "A plum cake, I would say")])
    settle()
    assert keys(look(storage, "apple", "t")) == []
    found = look(storage, "plum bake", "t")
    assert (found[0].key, found[0].text) == ("t-1", "A plum cake, I would say")


def test_what_was_indexed_before_and_what_was_not_is_ranked_as_one(storage: Storage) -> None:
    chance = random.Random(1)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(120)]
    for n in range(0, 120, 10):
        say(storage, f"t{n % 4}", *texts[n : n + 10], user_id="alice")
        if n == 50:
            index(storage)
    before = look(storage, "harvest the apple orchard", user_id="alice", limit=50)
    index(storage)
    after = look(storage, "harvest the apple orchard", user_id="alice", limit=50)
    assert [(m.key, m.score) for m in before] == [(m.key, m.score) for m in after]


def test_a_long_backlog_is_indexed_by_who_asks(storage: Storage) -> None:
    for n in range(30):
        say(storage, f"t{n}", *(f"{WORDS[k % 10]} number {k}" for k in range(100)), user_id=f"u{n % 2}")
    assert len(look(storage, "cider", user_id="u0", limit=200)) == 200
    assert storage.index_messages(10_000) == 1500  # the other's are left for later
    assert len(look(storage, "cider", user_id="u1", limit=200)) == 200


# Scopes


@settings(max_examples=10 * ROUNDS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nobody_finds_what_is_not_in_their_scope(make_storage: Callable[..., Storage], data: st.DataObject) -> None:
    storage = make_storage()
    salt = uuid4().hex  # the file is the same for all examples
    users = [None, f"a{salt}", f"b{salt}", f"a{salt}~"]
    said = data.draw(
        st.lists(st.tuples(st.sampled_from(users), st.integers(0, 2), st.sampled_from(WORDS)), max_size=25)
    )
    expected: dict[tuple[str | None, str], set[str]] = {}
    for n, (user, number, word) in enumerate(said):
        session_id = f"{salt}-{user}-{number}"
        say(storage, session_id, f"{word} {salt} secret{n}", user_id=user)
        expected.setdefault((user, session_id), set()).add(f"{word} {salt} secret{n}")
        if data.draw(st.booleans()):
            storage.index_messages(3)
    for (user, session_id), texts in expected.items():
        assert {m.text for m in look(storage, salt, session_id, limit=100)} == texts
        assert look(storage, salt, session_id, "somebody else") == []
        if user is not None:
            own = set().union(*(those for (owner, _), those in expected.items() if owner == user))
            assert {m.text for m in look(storage, salt, user_id=user, limit=100)} == own


def test_what_others_say_changes_neither_rank_nor_score(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "t", "apple pie", "apple and pear in a basket", "the garden is green", user_id="alice")
    settle()
    before = [(m.key, m.score) for m in look(storage, "apple pear", user_id="alice")]
    for n in range(50):
        say(storage, f"o{n}", "apple apple apple", "pear", user_id="bob")
    settle()
    assert [(m.key, m.score) for m in look(storage, "apple pear", user_id="alice")] == before


# Ends


def test_a_deleted_session_leaves_the_index(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "kept", "cider from the orchard", user_id="alice")
    say(storage, "gone", "cider from the garden", user_id="alice")
    settle()
    storage.delete_session("gone")
    assert keys(look(storage, "cider", user_id="alice")) == ["kept-0"]
    say(storage, "gone", "plum cider", user_id="alice")
    settle()
    assert keys(look(storage, "cider plum", user_id="alice")) == ["gone-0", "kept-0"]


def test_new_messages_are_found_after_the_newest_were_deleted(storage: Storage) -> None:
    for name in "abc":
        say(storage, name, "apple one", "apple two", user_id="alice")
    index(storage)
    storage.delete_session("c")
    say(storage, "d", "apple three", user_id="alice")  # in the rows that were c's
    assert set(keys(look(storage, "apple", user_id="alice"))) == {"a-0", "a-1", "b-0", "b-1", "d-0"}
    assert storage.index_messages(100) == 1
    assert "d-0" in keys(look(storage, "apple", user_id="alice"))


def test_a_renamed_session_takes_its_messages_along(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(on_resume="fresh", idle_timeout="1h")
    say(storage, "t", "apple pie", user_id="alice")
    index(storage)
    storage.put_memories([put_of(("session", "t"), "k", {"text": "apple"}, "apple", "t")])
    clock.advance(hours=2)
    say(storage, "t", "apple cake", user_id="alice")
    found = {(m.session_id, m.text) for m in look(storage, "apple", user_id="alice")}
    assert found == {("t~1", "apple pie"), ("t", "apple cake")}
    assert [m.session_id for m in look(storage, "apple", "t~1")] == ["t~1"]
    [item] = storage.search_memories(MemoryQuery([("session", "t~1")], prefix=True, query="apple"))
    assert item.key == "k"
    assert storage.search_memories(MemoryQuery([("session", "t")], prefix=True, query="apple")) == []


@pytest.mark.parametrize("begun", ["The harvest", ""])
def test_a_message_that_is_completed_after_it_was_indexed_is_found_by_its_whole_text(
    storage: Storage, begun: str
) -> None:
    context = RunContext("t", Identity(), is_run=False)
    storage.append(context, [MessageEntry("m", "assistant", begun, complete=False)])
    say(storage, "t", "one more")
    index(storage)
    storage.append(context, [MessageEntry("m", "assistant", "The harvest of the plums")])
    for _ in range(2):
        assert keys(look(storage, "plums", "t"))[0] == "m"
        assert keys(look(storage, "harvest", "t"))[0] == "m"
        index(storage)


# Narrowing


def test_since_and_filter_and_pages(storage: Storage, settle: Callable[[], None], clock: Clock) -> None:
    for n in range(10):
        say(storage, "t", f"apple number {n}", role="user" if n % 2 else "assistant")
        clock.advance(minutes=1)
    settle()
    recent = look(storage, "apple", "t", since=clock.now - timedelta(minutes=3))
    assert {m.key for m in recent} == {"t-7", "t-8", "t-9"}
    assert {m.key for m in look(storage, "apple", "t", filter={"role": "user"})} == {f"t-{n}" for n in range(1, 10, 2)}
    pages = [keys(look(storage, "apple", "t", limit=4, offset=offset)) for offset in (0, 4, 8, 12)]
    assert [len(page) for page in pages] == [4, 4, 2, 0]
    assert len({key for page in pages for key in page}) == 10


def test_items_and_messages_are_ranked_together(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "t", "there is an apple somewhere in this long and winding message", user_id="alice")
    storage.put_memories([put_of(("user", "alice"), "fact", {"text": "apple allergy"}, "apple allergy")])
    settle()
    asked = MemoryQuery([("user", "alice")], prefix=True, query="apple allergy", whose=[MessageScope("t")])
    assert keys(storage.search_memories(asked)) == ["fact", "t-0"]


def test_neighbours_come_in_order(storage: Storage) -> None:
    say(storage, "t", "one", "two", "three", "four", "five")
    found = look(storage, "three", "t")[0]
    [around] = storage.list_messages_around([("t", found.seq)], before=1, after=1)
    assert [message.text for message in around] == ["two", "three", "four"]
    assert [m.text for m in storage.list_messages_around([("t", 2)], before=2, after=2)[0]] == ["one", "two", "three"]


# Bad input


TEXTS = ["", " ", "\0", "\U0001f600", "a" * 1_000_000, "x " * 500_000, "the of and", "日本語の文章です"]


@pairwise(number=range(len(TEXTS)), settle=SETTLED, storage_url=ENGINES)
def test_any_message_can_be_indexed_and_any_query_asked(
    storage: Storage, settle: Callable[[], None], number: int
) -> None:
    text = TEXTS[number]
    say(storage, "t", text, "apple")
    settle()
    assert "t-1" in keys(look(storage, "apple", "t"))
    look(storage, text, "t")


def test_words_of_scripts_without_spaces_are_found(storage: Storage, settle: Callable[[], None]) -> None:
    say(storage, "t", "昨日は京都の寺を訪れました", "今日は雨です")
    settle()
    assert keys(look(storage, "京都", "t"))[0] == "t-0"


def test_what_came_from_a_message_knows_it_under_its_new_id(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "s.db"
    storage = SqliteStorage(str(path), load_settings(), clock=clock)
    say(storage, "t", "apple")
    storage.put_memories([put_of(("session", "t"), "k", {"t": "apple"}, "apple", "t", "t-0")])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE messages SET message_id = 'final' WHERE message_id = 't-0'")
        connection.commit()
    [memory] = storage.get_memories([(("session", "t"), "k")])
    assert memory is not None
    assert memory.message_id == "final"
    storage.close()


def test_a_deleted_message_leaves_the_index_and_takes_what_came_from_it_along(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "s.db"
    storage = SqliteStorage(str(path), load_settings(), clock=clock)
    storage.open_session(RunContext("t", Identity(user_id="u")), SessionDetails(title="given"))
    say(storage, "t", "xyzzyplugh is the word", "another apple", user_id="u")
    for namespace in (("session", "t"), ("user", "u")):
        storage.put_memories([put_of(namespace, "k", {"t": "plugh"}, "plugh", "t", "t-0")])
    index(storage)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM messages WHERE message_id = 't-0'")
    connection.commit()
    connection.close()
    assert look(storage, "xyzzyplugh", "t") == []
    assert storage.get_memories([(("session", "t"), "k"), (("user", "u"), "k")]) == [None, None]
    assert keys(look(storage, "apple", "t")) == ["t-1"]
    storage.delete_session("nobody")
    storage.close()
    files = [file.name for file in tmp_path.glob("s.db*") if b"xyzzyplugh" in file.read_bytes()]
    assert files == []


def test_the_last_word_of_a_search_field_is_found_by_its_beginning(
    storage: Storage, settle: Callable[[], None]
) -> None:
    say(storage, "t", "Peanuts make me ill", "a garden full of pears", "peace at last", user_id="u")
    say(storage, "other", "peanut butter", user_id="v")
    settle()
    assert keys(look(storage, "pean", user_id="u", typed=True)) == ["t-0"]
    assert set(keys(look(storage, "pea", typed=True))) == {"t-0", "t-1", "t-2", "other-0"}
    assert keys(look(storage, "garden pea", "t", typed=True))[0] == "t-1"
    for whole in ("pean ", "pean?", "pe", "pean make"):  # finished, too short, not the last
        assert "other-0" not in keys(look(storage, whole, typed=True))
    assert look(storage, "pean") == []  # recall looks for what is asked


def test_what_is_the_word_itself_is_found_before_what_begins_with_it(
    storage: Storage, settle: Callable[[], None]
) -> None:
    say(storage, "t", "a catalogue of lamps", "a cat of lamps", "a category of lamps")
    settle()
    assert keys(look(storage, "cat", typed=True))[0] == "t-1"
    assert len(look(storage, "cat", typed=True)) == 3


def test_an_index_of_another_versions_words_is_made_anew_and_keeps_its_vectors(tmp_path: Path, clock: Clock) -> None:
    path, model = tmp_path / "s.db", SubjectEmbeddings()

    def found(sessions: Sessions, query: str) -> list[tuple[Any, Any]]:
        return [(m.key, m.parts) for m in sessions.get("t").memory.recall(query, 9, explain=True)]

    with Sessions(path, clock=clock, index={"embed": model, "dims": 4}) as sessions:
        session = sessions.open("t", user_id="alice")
        for n, text in enumerate(["my puppy eats दूध", "Łódź in March", "gone", "the last one"]):
            session.add(HumanMessage(text, id=f"m{n}"))
        session.memory.remember("a truck in Łódź", "kept")
        session.memory.remember("a truck in Praha", "changed")
        sessions.index_memory()
        queries = ["दूध", "lodz", "2026-01-01", "vehicle", "one"]
        expected = [found(sessions, query) for query in queries]
        asked = len(model.calls)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE index_sessions SET version = 'before'")
        connection.execute("UPDATE index_postings SET term = 'x' || term")
        connection.execute("UPDATE index_blocks SET terms = 'x' || replace(terms, ' ', ' x')")
        connection.commit()
    with Sessions(path, clock=clock, index={"embed": model, "dims": 4}) as sessions:
        assert [found(sessions, query) for query in queries] == expected
        sessions.index_memory()
        assert [found(sessions, query) for query in queries] == expected
        assert len(model.calls) == asked
        sessions.get("t").memory.forget(all=True)
        sessions.get("t").delete_message("m1")
        assert sessions.search("lodz") == []
        sessions.delete("t")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM index_postings").fetchone() == (0,)
