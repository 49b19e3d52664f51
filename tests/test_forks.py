"""Forks: a session that begins with what was said in another, and goes on apart from it."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")


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


def test_a_fork_shows_the_conversation_before_anything_ran_in_it(sessions: Sessions) -> None:
    with_a_branch(sessions)
    source, fork = sessions.get("a"), sessions.for_user("alice").copy("a", "b")
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
    fork = sessions.copy("a", "b")
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
    fork = sessions.copy("a", "b")
    graph.invoke(human("look up milk"), fork.config())
    assert [call.arguments for call in fork.tool_calls()] == [{"thing": "milk"}]
    assert [call.session_id for call in sessions.tool_calls()] == ["b", "a"]
    assert [one.calls for one in sessions.usage(by="tool")] == [2]


def test_what_forks_have_in_common_is_found_once(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("tea for two"), sessions.config("a", user_id="alice"))
    fork = sessions.copy("a", "b")
    graph.invoke(human("tea for three"), fork.config())
    sessions.open("other", user_id="alice").add({"role": "user", "content": "tea for two"})
    found = [(one.session_id, one.text) for one in sessions.search("tea", user_id="alice") if one.role == "user"]
    assert sorted(found) == [("a", "tea for two"), ("b", "tea for three"), ("other", "tea for two")]
    remembered = [memory.text for memory in fork.memory.recall("two", 9, kinds=["message"], scopes=["session"])]
    assert remembered.count("tea for two") == 1


def test_images_come_along_and_what_was_deleted_does_not_come_back(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    picture = b"picture" * 1_000
    image = {"type": "image", "base64": base64.b64encode(picture).decode(), "mime_type": "image/png"}
    graph.invoke({"messages": [HumanMessage([image], id="picture")]}, sessions.config("a"))
    graph.invoke({"messages": [HumanMessage("my secret", id="secret")]}, sessions.config("a"))
    sessions.get("a").delete_message("secret")
    fork = sessions.copy("a", "b")
    sessions.delete("a")
    [name] = re.findall("sha256:[0-9a-f]{64}", str(fork.messages()[0].content))
    assert fork.file(name) == picture
    graph.invoke(human("go on"), fork.config())
    assert "my secret" not in texts(fork)
