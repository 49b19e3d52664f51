"""Deleting a message from the record: nothing of it is left there, and it does not come back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.errors import SessionAccessDenied
from tests.support.embeddings import SubjectEmbeddings

pytestmark = pytest.mark.sessions(index={"embed": SubjectEmbeddings(), "dims": 4})

IMAGE = base64.b64encode(b"\x89PNG what only we know" * 8).decode()


def graph_of(sessions: Sessions) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [AIMessage("Noted.", id=f"a{len(state['messages'])}")]})
    builder.add_edge(START, "answer")
    return sessions.attach(builder.compile())


def with_image(text: str, id: str) -> HumanMessage:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
    return HumanMessage([{"type": "text", "text": text}, part], id=id)


def ids(session: Any) -> list[str]:
    return [message.message_id for message in session.messages()]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_deleted_message_is_neither_in_the_record_nor_found(sessions: Sessions, *, indexed: bool) -> None:
    session = sessions.open("t", user_id="alice")
    for text in ("My dog is ill", "heliotrope is my password", "Now about the car"):
        session.add({"role": "user", "content": text, "id": text.split()[0]})
    session.memory.remember("the password is heliotrope", "k", scope="user", message_id="heliotrope")
    if indexed:
        sessions.index_memory()
    assert session.delete_message("heliotrope") == 1
    assert session.delete_message("heliotrope") == 0
    assert ids(session) == ["My", "Now"]
    assert sessions.search("heliotrope") == []
    assert "heliotrope" not in str(session.memory.recall("my password heliotrope", 9, window=2))
    assert session.memory.list(["user"]) == []
    assert sessions.get("t").message_count == 2
    assert [found.message_id for found in sessions.search("car")] == ["Now"]
    assert sessions.check() == []


def test_what_the_call_of_its_model_took_stays_in_the_sums(sessions: Sessions) -> None:
    session = sessions.open("t")
    usage = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    for each in ("a", "b"):
        session.add(AIMessage(f"I said {each}", id=each, usage_metadata=usage))
    session.add(AIMessage("I meant b", id="b", usage_metadata=usage))
    assert (sessions.get("t").input_tokens, sessions.get("t").output_tokens) == (10, 6)
    assert session.delete_message("b") == 2
    assert (sessions.get("t").input_tokens, sessions.get("t").output_tokens) == (10, 6)
    assert sessions.check() == []


def test_its_event_says_that_it_was_deleted_and_nothing_of_what_it_said(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add({"role": "user", "content": "one", "id": "m"})
    session.add({"role": "user", "content": "two", "id": "m"})
    assert session.delete_message("m") == 2
    assert session.messages(all_versions=True) == []
    event = session.events()[-1]
    digests = event.detail.pop("digests")
    where = {"position": 2, "branch": "main", "seqs": [2, 3]}
    assert (event.kind, event.detail) == ("message_deleted", {"message_id": "m", "versions": 2, **where})
    assert [len(digest) for digest in digests] == [4, 4]  # too little to tell what it said


def test_nothing_of_it_is_left_in_the_files(sessions: Sessions, tmp_path: Path) -> None:
    session = sessions.open("t")
    session.add(with_image("the word is heliotrope", "m"))
    sessions.index_memory()
    session.delete_message("m")
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"heliotrop" not in stored
    assert b"what only we know" not in stored


def test_a_file_that_another_message_shows_stays(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add(with_image("one", "m"))
    session.add(with_image("two", "n"))
    url = session.messages()[0].content[1]["image_url"]["url"]
    name = url[url.index("sha256:") :]
    session.delete_message("m")
    assert session.file(name)
    session.delete_message("n")
    assert session.file(name) is None


def test_a_state_that_still_holds_it_does_not_bring_it_back(tmp_path: Path) -> None:
    for turn in ("first", "second", "third"):  # each in a process's own Sessions
        with Sessions(str(tmp_path / "sessions.db")) as sessions:
            graph_of(sessions).invoke({"messages": [HumanMessage(turn, id=turn)]}, sessions.config("t"))
            if turn == "first":
                sessions.get("t").delete_message("first")
            assert "first" not in ids(sessions.get("t"))
            assert sessions.check() == []
            state = graph_of(sessions).get_state(sessions.config("t")).values["messages"]
            assert state[0].id == "first"  # the state is not ours to change


def test_what_is_said_after_the_last_message_is_deleted_is_found(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add({"role": "user", "content": "alpha", "id": "m"})
    sessions.index_memory()
    session.delete_message("m")
    session.add({"role": "user", "content": "beta", "id": "n"})
    assert sessions.index_memory().messages == 1
    assert [found.text for found in sessions.search("beta")] == ["beta"]


async def test_its_owner_may_delete_it_and_nobody_else(sessions: Sessions) -> None:
    sessions.open("t", user_id="alice", group_id="team", visibility="group")
    sessions.get("t").add({"role": "user", "content": "alpha", "id": "m"})
    reader = sessions.for_user("bob", group_ids=["team"]).get("t")
    with pytest.raises(SessionAccessDenied):
        reader.delete_message("m")
    assert await sessions.for_user("alice").get("t").adelete_message("m") == 1
