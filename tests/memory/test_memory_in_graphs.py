"""Memory where it is used: in runs, across processes, after a crash, and at the operator's desk."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import MemoryAccessDenied, Sessions
from session_middleware.memory import indexer
from tests.support import processes
from tests.support.embeddings import SubjectEmbeddings


def echo() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("bot", lambda state: {"messages": [("ai", f"You said: {state['messages'][-1].text}")]})
    builder.add_edge(START, "bot")
    return builder.compile()


def test_a_run_is_recalled_by_the_next_session_of_its_user(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        agent = sessions.attach(echo())
        agent.invoke({"messages": "my flight leaves on friday"}, sessions.config("1", user_id="alice"))
        found = sessions.open("2", user_id="alice").memory.recall("when is the flight?", filter={"role": "user"})
        assert [(each.text, each.session_id) for each in found] == [("my flight leaves on friday", "1")]
        assert sessions.open("3", user_id="bob").memory.recall("flight") == []


async def test_a_node_recalls_what_was_said_in_the_run_before(tmp_path: Path) -> None:
    async with Sessions(tmp_path / "s.db") as sessions:
        seen: list[str] = []

        async def look(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
            memory = await sessions.amemory(config)
            seen.extend(found.text for found in await memory.arecall("flight"))
            return {}

        builder = StateGraph(MessagesState)
        builder.add_node("look", look)
        builder.add_edge(START, "look")
        agent = sessions.attach(builder.compile())
        await agent.ainvoke({"messages": "my flight leaves on friday"}, sessions.config("1", user_id="alice"))
        seen.clear()
        await agent.ainvoke({"messages": "is it raining?"}, sessions.config("2", user_id="alice"))
        assert seen == ["my flight leaves on friday"]


def test_many_messages_are_indexed_behind_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "_RUNS", 5)
    path = tmp_path / "s.db"
    with Sessions(path) as sessions:
        agent = sessions.attach(echo())
        for n in range(13):
            agent.invoke({"messages": f"flight number {n}"}, sessions.config(f"{n % 3}", user_id="alice"))
        sessions.recorder.drain()
    indexed = sqlite3.connect(path).execute("SELECT SUM(documents) FROM index_sessions").fetchone()[0]
    assert indexed >= 10
    with Sessions(path) as sessions:
        assert len(sessions.search("flight", user_id="alice", limit=500)) == 26


def test_what_a_killed_process_said_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    script = f"""
        import os, signal
        from session_middleware import Sessions
        from tests.memory.test_memory_in_graphs import echo
        sessions = Sessions({str(path)!r})
        sessions.attach(echo()).invoke({{"messages": "my flight leaves on friday"}}, sessions.config("1"))
        sessions.get("1").memory.recall("flight")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert processes.run("-c", textwrap.dedent(script)).returncode == -signal.SIGKILL
    with Sessions(path) as sessions:
        assert "my flight leaves on friday" in [found.text for found in sessions.get("1").memory.recall("flight")]
        assert sessions.index_memory().messages == 2


def test_a_vacuum_confuses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Sessions(path) as sessions:
        agent = sessions.attach(echo())
        for n in range(5):
            agent.invoke({"messages": f"flight {n}"}, sessions.config(f"{n}", user_id="alice"))
        sessions.index_memory()
        sessions.delete("0")
        agent.invoke({"messages": "flight 5"}, sessions.config("5", user_id="alice"))
    connection = sqlite3.connect(path)
    connection.execute("VACUUM")
    connection.close()
    with Sessions(path) as sessions:
        found = sessions.search("flight", user_id="alice", limit=50)
        assert len(found) == len({(each.session_id, each.seq) for each in found}) == 10
        assert sessions.index_memory().messages == 2
        assert sessions.search("flight", user_id="alice", limit=50) == found


def test_two_processes_index_one_file_together(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Sessions(path) as one, Sessions(path) as two:
        agents = [one.attach(echo()), two.attach(echo())]
        for n in range(12):
            agents[n % 2].invoke({"messages": f"flight {n}"}, one.config(f"{n % 4}", user_id="alice"))
            (one, two)[n % 2].index_memory()
        assert len(one.search("flight", user_id="alice", limit=500)) == 24
        assert one.search("flight 7", user_id="alice") == two.search("flight 7", user_id="alice")


def test_a_search_shows_where_the_words_are(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        agent = sessions.attach(echo())
        long = "word " * 100 + "and then my flight was cancelled in Lisbon, which was bad. " + "word " * 100
        agent.update_state(sessions.config("1", user_id="alice"), {"messages": [HumanMessage(long)]})
        [found] = sessions.search("flight to Lisbon", user_id="alice", marks=("<b>", "</b>"))
        assert "my <b>flight</b> was cancelled in <b>Lisbon</b>" in found.snippet
        assert len(found.snippet) < 220
        assert (found.session_id, found.role, found.text) == ("1", "user", long)
        assert sessions.search("of the") == sessions.search("") == []


def test_a_search_is_of_a_user_or_a_session_or_everybody(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        agent = sessions.attach(echo())
        for session_id, user_id in (("1", "alice"), ("2", "alice"), ("3", "bob"), ("4", None)):
            agent.update_state(
                sessions.config(session_id, user_id=user_id), {"messages": [HumanMessage(f"flight {session_id}")]}
            )

        def found(**where: Any) -> set[str]:
            return {each.session_id for each in sessions.search("flight", **where)}

        for _ in range(2):
            assert found() == {"1", "2", "3", "4"}
            assert found(user_id="alice") == {"1", "2"}
            assert found(session_id="4") == {"4"}
            assert found(session_id="1", user_id="alice") == {"1"}
            assert found(session_id="1", user_id="bob") == found(user_id="nobody") == set()
            sessions.index_memory()


async def test_messages_get_vectors_by_the_setting(tmp_path: Path) -> None:
    index = {"dims": 4, "embed": SubjectEmbeddings()}
    async with Sessions(tmp_path / "s.db", index=index) as sessions:
        agent = sessions.attach(echo())
        await agent.ainvoke({"messages": "my puppy is ill"}, sessions.config("1", user_id="alice"))
        assert (await sessions.aindex_memory()).vectors >= 0
        session = await sessions.aopen("2", user_id="alice")
        found = await session.memory.arecall("how is the dog?", explain=True)
        assert found[0].text == "my puppy is ill"
        await asyncio.to_thread(sessions.store.put, ("n",), "k", {"text": "a truck"})
        assert [item.key for item in await sessions.store.asearch(("n",), query="vehicle")] == ["k"]


def test_assistant_messages_are_recalled_too(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        messages = [HumanMessage("book something"), AIMessage("I booked the Lisbon flight")]
        sessions.attach(echo()).update_state(sessions.config("1"), {"messages": messages})
        assert sessions.get("1").memory.recall("Lisbon", 1)[0].value["role"] == "assistant"


def test_a_session_shared_with_a_group_is_recalled_by_who_may_read_it(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        agent = sessions.attach(echo())
        agent.invoke({"messages": "the flight is on friday"}, sessions.config("1", user_id="alice", group_id="red"))
        agent.invoke({"messages": "my own flight"}, sessions.config("2", user_id="bob"))
        sessions.get("1").update(visibility="group").memory.remember("flights are booked by Ann", scope="group")
        bob, eve = sessions.for_user("bob", ["red"]), sessions.for_user("eve", ["blue"])
        assert {each.session_id for each in bob.get("1").memory.recall("flight", kinds=["message"])} == {"1", "2"}
        assert [each.text for each in bob.get("2").memory.recall("flights booked", kinds=["item"])] == [
            "flights are booked by Ann"
        ]
        assert {each.session_id for each in bob.search("flight")} == {"2"}
        assert eve.find("1") is None
        assert eve.search("flight") == []
        assert eve.open("3").memory.recall("flight") == []


def test_what_was_archived_is_recalled_again_when_it_is_restored(tmp_path: Path) -> None:
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    index = {"dims": 4, "embed": SubjectEmbeddings()}
    with Sessions(
        tmp_path / "s.db", clock=lambda: now[0], idle_timeout="1h", on_expire="archive", index=index
    ) as sessions:
        agent, config = sessions.attach(echo()), sessions.config("1", user_id="alice")
        agent.invoke({"messages": "my flight leaves on friday"}, config)
        sessions.get("1").memory.remember("prefers a seat at the window")
        sessions.get("1").memory.remember("Alice flies often", scope="user")
        sessions.index_memory()
        now[0] += timedelta(hours=2)
        assert [ended.action for ended in sessions.sweep()] == ["archive"]
        other = sessions.open("2", user_id="alice").memory
        assert [each.text for each in other.recall("flight friday window flies")] == ["Alice flies often"]
        sessions.restore("1")
        agent.invoke({"messages": "hello"}, config)
        sessions.index_memory()
        memory = sessions.get("1").memory
        assert [each.text for each in memory.recall("seat window", kinds=["item"], k=1)] == [
            "prefers a seat at the window"
        ]
        assert "my flight leaves on friday" in [each.text for each in other.recall("flight")]


def test_a_forgotten_user_is_in_no_index(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Sessions(path, index={"dims": 4, "embed": SubjectEmbeddings()}) as sessions:
        agent = sessions.attach(echo())
        agent.invoke({"messages": "xyzzyplugh flight"}, sessions.config("1", user_id="alice"))
        sessions.get("1").memory.remember("grue xyzzyplugh", scope="user")
        sessions.get("1").memory.remember("grue xyzzyplugh", scope="global")
        sessions.index_memory()
        sessions.forget_user("alice")
        assert sessions.search("xyzzyplugh") == []
        assert sessions.open("2", user_id="alice").memory.recall("xyzzyplugh") == []
        left = sqlite3.connect(path)
        for table in ("index_sessions", "index_blocks", "index_postings", "vectors"):
            assert left.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
        left.close()
    assert not any(b"xyzzyplugh" in file.read_bytes() for file in tmp_path.iterdir())


def test_in_a_graph_that_names_nobody_the_store_gives_nobodys_memories(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        sessions.store.put(("user", "alice"), "k", {"text": "secret"})

        def look(state: MessagesState) -> dict[str, Any]:
            store = get_store()
            store.put(("app",), "k", {"text": "open to all"})
            return {"messages": [AIMessage(str(store.search(("user", "alice"))))]}

        graph = StateGraph(MessagesState).add_node("look", look).add_edge(START, "look").compile(store=sessions.store)
        with pytest.raises(MemoryAccessDenied):
            graph.invoke({"messages": "hi"})
        assert sessions.store.get(("app",), "k") is not None


def test_what_a_session_keeps_of_itself_belongs_into_its_prompts(tmp_path: Path) -> None:
    with Sessions(tmp_path / "s.db") as sessions:
        session = sessions.open("t", user_id="alice", context={"diet": "vegan", "languages": ["de"]})
        told = session.memory.context_for("what shall I cook?") or ""
        assert told.splitlines()[2:-1] == ["- diet: vegan", '- languages: ["de"]']
        assert session.memory.context_for("what shall I cook?", scopes=["user"]) is None
        assert session.memory.context_for("what shall I cook?", budget_tokens=2) is None
        assert sessions.open("other", user_id="alice").memory.context_for("what shall I cook?") is None
