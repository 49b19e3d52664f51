"""Forks: a session that begins with what was said in another, and goes on apart from it."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.types import Command

from session_middleware import InvalidArgument, SessionExists, SessionNotFound, Sessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = pytest.mark.usefixtures("consistent")


def texts(session: Any, **options: Any) -> list[str]:
    return [message.text for message in session.messages(**options)]


def with_a_branch(sessions: Sessions) -> Any:
    """Attached; its second turn was taken back and asked again."""
    graph = sessions.attach(agents.chat())
    for text in ("one", "two"):
        graph.invoke(human(text), sessions.config("a", user_id="alice"))
    graph.invoke(human("two, edited"), before(graph, sessions.get("a"), 2))
    return graph


def before(graph: Any, session: Any, count: int) -> Any:
    """The config of the last checkpoint with so many messages."""
    return next(s.config for s in graph.get_state_history(session.config()) if len(s.values["messages"]) == count)


ONE, TWO, EDITED = (["one", "you said one"], ["two", "you said two"], ["two, edited", "you said two, edited"])


@pytest.mark.usefixtures("each_engine")
def test_a_fork_shows_the_conversation_before_anything_ran_in_it(sessions: Sessions) -> None:
    with_a_branch(sessions)
    source, fork = sessions.get("a"), sessions.for_user("alice").get("a").fork(id="b")
    assert said(fork) == said(source)
    assert texts(fork) == ONE + EDITED
    assert texts(fork, branch="main") == ONE + TWO
    assert [message.created_at for message in fork.messages()] == [message.created_at for message in source.messages()]
    assert (fork.message_count, fork.runs(), [event.kind for event in fork.events()]) == (6, [], ["forked"])


@pytest.mark.parametrize("opened", [False, True])
def test_a_fork_goes_on_and_back_as_its_source_would(sessions: Sessions, *, opened: bool) -> None:
    graph = with_a_branch(sessions)
    was = said(sessions.get("a"))
    if opened:
        sessions.open("b", user_id="alice").complete()
        sessions.open("b", user_id="alice")
    fork = sessions.get("a").fork(id="b")
    graph.invoke(human("three"), fork.config())
    assert texts(fork) == [*ONE, *EDITED, "three", "you said three"]
    graph.invoke(human("other"), before(graph, fork, 2))
    assert texts(fork) == [*ONE, "other", "you said other"]
    assert texts(fork) == [message.text for message in graph.get_state(fork.config()).values["messages"]]
    assert len(fork.branches()) == 2
    assert said(sessions.get("a")) == was


def test_what_ran_before_the_fork_is_not_counted_again_in_it(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human("look up tea"), sessions.config("a"))
    fork = sessions.get("a").fork(id="b")
    graph.invoke(human("look up milk"), fork.config())
    assert [call.arguments for call in fork.tool_calls()] == [{"thing": "milk"}]
    assert [call.session_id for call in sessions.tool_calls()] == ["b", "a"]
    assert [one.calls for one in sessions.usage(by="tool")] == [2]


def test_what_forks_have_in_common_is_found_once(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("tea for two"), sessions.config("a", user_id="alice"))
    fork = sessions.get("a").fork(id="b")
    graph.invoke(human("tea for three"), fork.config())
    sessions.open("other", user_id="alice").add({"role": "user", "content": "tea for two"})
    found = [(one.session_id, one.text) for one in sessions.search("tea", user_id="alice") if one.role == "user"]
    assert sorted(found) == [("a", "tea for two"), ("b", "tea for three"), ("other", "tea for two")]
    remembered = [memory.text for memory in fork.memory.recall("two", 9, kinds=["message"], scopes=["session"])]
    assert remembered.count("tea for two") == 1


@pytest.mark.usefixtures("each_engine")
def test_images_come_along_and_what_was_deleted_does_not_come_back(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    picture = b"picture" * 1_000
    image = {"type": "image", "base64": base64.b64encode(picture).decode(), "mime_type": "image/png"}
    graph.invoke({"messages": [HumanMessage([image], id="picture")]}, sessions.config("a"))
    graph.invoke({"messages": [HumanMessage("my secret", id="secret")]}, sessions.config("a"))
    sessions.get("a").delete_message("secret")
    fork = sessions.get("a").fork(id="b")
    sessions.delete("a")
    [name] = re.findall("sha256:[0-9a-f]{64}", str(fork.messages()[0].content))
    assert fork.file(name) == picture
    graph.invoke(human("go on"), fork.config())
    assert "my secret" not in texts(fork)


# At a point


def values(graph: Any, session: Any) -> list[str]:
    return [message.text for message in graph.get_state(session.config()).values.get("messages", [])]


@pytest.mark.usefixtures("each_engine")
def test_a_fork_before_a_message_or_a_run_has_what_was_said_before_it(sessions: Sessions) -> None:
    graph = with_a_branch(sessions)
    source = sessions.get("a")
    asked, answer = source.messages()[2:]
    first, second, third = source.runs()
    points = {asked: ONE, asked.message_id: ONE, first.id: [], second: ONE, third: ONE, source.messages()[0]: []}
    for at, kept in points.items():
        fork = source.fork(at, title="tried")
        assert (texts(fork), values(graph, fork), fork.message_count) == (kept, kept, len(kept))
        assert (fork.parent_id, fork.title, fork.user_id, fork.opened_as) == ("a", "tried", "alice", "forked")
        assert (fork.branches(), fork.branch, fork.events()[0].detail["from"]) == ([], "main", "a")
        graph.invoke(human("three"), fork.config())
        assert texts(fork) == values(graph, fork) == [*kept, "three", "you said three"]
    before_answer = source.fork(answer)
    assert texts(before_answer) == values(graph, before_answer) == [*ONE, "two, edited"]
    graph.invoke(None, before_answer.config())
    assert texts(before_answer) == values(graph, before_answer) == ONE + EDITED


def test_a_fork_at_a_checkpoint_of_an_older_branch_has_that_branch(sessions: Sessions) -> None:
    graph = with_a_branch(sessions)
    source = sessions.get("a")
    snapshots = list(graph.get_state_history(source.config()))
    for snapshot in snapshots:
        if "input" not in snapshot.metadata["source"]:
            fork = source.fork(snapshot.config["configurable"]["checkpoint_id"])
            said_there = [message.text for message in snapshot.values["messages"]]
            assert texts(fork) == values(graph, fork) == said_there
            assert len(list(graph.get_state_history(fork.config()))) <= len(snapshots)
    forks = sessions.get("a").fork(id="b").fork(id="c").fork(next(iter(sessions.get("c").messages())), id="d")
    sessions.delete("a")
    assert (texts(forks), texts(sessions.get("c"))) == ([], ONE + EDITED)
    graph.invoke(human("four"), sessions.get("c").config())
    assert texts(sessions.get("c"))[-2:] == ["four", "you said four"]


def test_a_fork_stores_no_value_again(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    for text in ("one " * 5_000, "two " * 5_000):
        graph.invoke(human(text), sessions.config("a"))
    fork = sessions.get("a").fork(sessions.get("a").messages()[2])
    assert fork.stats().checkpoint_count == 3
    blobs = sessions._storage._database.read(  # type: ignore[attr-defined]
        lambda connection: connection.execute("SELECT COUNT(DISTINCT digest), COUNT(*) FROM blobs").fetchone()
    )
    assert blobs[0] == blobs[1]


def test_a_point_that_is_not_there_is_named_and_nothing_is_made(sessions: Sessions) -> None:
    graph = with_a_branch(sessions)
    sessions.open("other", user_id="alice").add({"role": "user", "content": "x"})
    session, count = sessions.get("a"), sessions.count()
    for at in ("", "unknown", "\x00", "'; DROP", "x" * 100_000, 5, sessions.get("other").messages()[0]):
        with pytest.raises(InvalidArgument, match="at cannot be"):
            session.fork(at)
    with pytest.raises(SessionNotFound):
        sessions.for_user("mallory").get("a")
    with pytest.raises(SessionExists):
        session.fork(id="other")
    asked = session.messages()[2]
    sessions.checkpointer.prune(["a"])
    with pytest.raises(InvalidArgument, match="not deleted"):
        session.fork(asked)
    assert sessions.count() == count
    assert values(graph, session) == ONE + EDITED


@pytest.mark.usefixtures("each_engine")
def test_questions_stay_open_in_a_fork_and_answers_are_given_apart(sessions: Sessions) -> None:
    graph = sessions.attach(agents.approval())
    graph.invoke(human("do it"), sessions.config("a"))
    waiting = sessions.get("a").fork()
    tip = graph.get_state(sessions.get("a").config()).config["configurable"]["checkpoint_id"]
    at_tip = sessions.get("a").fork(tip)
    graph.invoke(Command(resume="yes"), sessions.config("a"))
    later = sessions.get("a").fork(tip)
    for fork in (waiting, at_tip, later, sessions.get("a").fork(sessions.get("a").runs()[1])):
        assert [len(task.interrupts) for task in graph.get_state(fork.config()).tasks] == [1]
        graph.invoke(Command(resume="no"), fork.config())
        assert graph.get_state(fork.config()).next == ()
        assert texts(fork) != texts(sessions.get("a"))
        assert "no" in str(graph.get_state(fork.config()).values)


@pytest.mark.usefixtures("each_engine")
def test_subgraphs_with_state_of_their_own_are_forked_to_the_same_point(sessions: Sessions) -> None:
    graph = sessions.attach(agents.nested().compile())
    for text in ("one", "two", "three"):
        graph.invoke(human(text), sessions.config("a"))
    source = sessions.get("a")
    runs = source.runs()
    for number, run in enumerate(runs):
        fork = source.fork(run)
        twin = sessions.config(f"twin-{number}")
        for text in ("one", "two", "three")[:number]:
            graph.invoke(human(text), twin)
        for config in (fork.config(), twin):
            graph.invoke(human("other"), config)
        assert texts(fork) == texts(sessions.get(f"twin-{number}"))
        assert fork.stats().checkpoint_count == sessions.get(f"twin-{number}").stats().checkpoint_count


def test_a_loop_by_hand_is_forked_by_its_record(sessions: Sessions) -> None:
    session = sessions.open("a")
    for text in ("one", "two", "three"):
        session.add({"role": "user", "content": text})
    fork = session.fork(session.messages()[1])
    fork.add({"role": "user", "content": "other"})
    assert (texts(fork), texts(session)) == (["one", "other"], ["one", "two", "three"])
