"""What a server notes about a session is in the store, and is no memory: it is neither recalled nor used by runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.base import PutOp, SearchItem

from session_middleware import MemoryAccessDenied, Sessions
from tests.support.agents import human

pytestmark = pytest.mark.usefixtures("each_engine")

NOTES = ("langgraph", "t.1", "runs")


def note(sessions: Sessions) -> None:
    sessions.store.batch([PutOp(NOTES, "r", {"text": "a pear"}, index=False)])


def notes(sessions: Sessions) -> list[SearchItem]:
    return sessions.store.search(NOTES[:2])


def test_no_search_of_memories_finds_them(sessions: Sessions, tmp_path: Path) -> None:
    session = sessions.open("t.1", user_id="alice")
    session.memory.remember("an apple")
    note(sessions)
    assert [item.value for item in notes(sessions)] == [{"text": "a pear"}]
    assert [item.value for item in sessions.store.search(())] == [{"text": "an apple"}]
    assert sessions.store.search((), query="pear") == []
    assert session.memory.recall("pear") == []
    assert [memory.text for memory in session.memory.list()] == ["an apple"]
    sessions.export(tmp_path / "all.jsonl")
    session.export(tmp_path / "one.jsonl")
    for file in tmp_path.glob("*.jsonl"):
        assert "an apple" in file.read_text()
        assert "a pear" not in file.read_text()


def test_they_are_deleted_with_their_session_and_its_user(sessions: Sessions) -> None:
    for delete in (sessions.delete, lambda _: sessions.forget_user("alice")):
        sessions.open("t.1", user_id="alice")
        note(sessions)
        delete("t.1")
        assert notes(sessions) == []


def test_no_run_reads_or_writes_them(sessions: Sessions) -> None:
    def node(_: MessagesState) -> dict[str, Any]:
        store = get_store()
        assert store.search(()) == store.list_namespaces() == []
        for use in (lambda: store.search(NOTES), lambda: store.get(NOTES, "r"), lambda: store.batch([PUT])):
            with pytest.raises(MemoryAccessDenied):
                use()
        return {"messages": [("ai", "refused")]}

    PUT = PutOp(NOTES, "r", {"text": "mine"})
    graph = sessions.attach(StateGraph(MessagesState).add_node("n", node).add_edge(START, "n").compile())
    note(sessions)
    found = graph.invoke(human("hi"), sessions.config("t.1"))
    assert found["messages"][-1].text == "refused"
