"""The host's clock steps back between two processes: the latest checkpoint of a thread is the one put last."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base import id as ids_of_langgraph
from langgraph.types import Command, interrupt

from session_middleware import Sessions
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human


class Host:
    """A machine whose clock can be set, and the processes on it: each begins without knowing of another's ids."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self.clock, self.off = path, clock, 0

    def time_ns(self) -> int:
        return time.time_ns() + self.off

    def process(self, **back: float) -> Sessions:
        ids_of_langgraph._last_v6_timestamp = None
        self.off -= int(timedelta(**back).total_seconds()) * 10**9
        self.clock.advance(hours=-timedelta(**back).total_seconds() / 3600)
        return Sessions(self.path, clock=self.clock, sweep_interval=None)


@pytest.fixture
def host(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(tmp_path / "sessions.db", clock)
    monkeypatch.setattr(ids_of_langgraph, "time", host)
    monkeypatch.setattr(ids_of_langgraph, "_last_v6_timestamp", None)
    return host


Made = Callable[[Sessions], Any]


def attached(sessions: Sessions) -> Any:
    return sessions.attach(agents.chat())


def with_checkpointer(sessions: Sessions) -> Any:
    graph = agents.chat()
    graph.checkpointer = sessions.checkpointer
    return graph


def texts(state: Any) -> list[str]:
    return [message.text for message in state.values["messages"] if message.type == "human"]


def assert_consistent(sessions: Sessions, graph: Any, config: Any, said: list[str]) -> None:
    """Whoever asks is told of the same latest state, and of the way that led there."""
    state = graph.get_state(config)
    history = list(graph.get_state_history(config))
    assert texts(state) == said
    assert history[0].config == state.config
    assert next(sessions.checkpointer.list(config)).config == state.config
    assert sessions.checkpointer.get_tuple(config).config == state.config
    for newer, older in itertools.pairwise(history):
        assert newer.parent_config == older.config
        (before, *_) = graph.get_state_history(config, before=newer.config)
        assert before.config == older.config
        assert graph.get_state(older.config).values == older.values
    assert sessions.check(deep=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("made", [attached, with_checkpointer])
async def test_a_conversation_goes_on_whatever_the_clock_says(host: Host, made: Made) -> None:
    said: list[str] = []
    for number, hours in enumerate((0, 10_000, -3, 0.001)):
        with host.process(hours=hours) as sessions:
            graph, config = made(sessions), sessions.config("t", user_id="alice")
            graph.invoke(human(f"sync {number}"), config)
            await graph.ainvoke(human(f"async {number}"), config)
            said += [f"sync {number}", f"async {number}"]
            assert_consistent(sessions, graph, config, said)
            assert [m.text for m in sessions.get("t").messages() if m.role == "user"] == said
            runs = [run.seq for run in sessions.get("t").runs()]
            assert runs == sorted(runs)
            assert next(event.kind for event in sessions.get("t").events()) == "opened"


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_every_durability_goes_on(host: Host, durability: Any) -> None:
    for number in range(3):
        with host.process(hours=1) as sessions:
            graph, config = attached(sessions), sessions.config("t")
            graph.invoke(human(f"{number}"), config, durability=durability)
            assert texts(graph.get_state(config)) == [str(n) for n in range(number + 1)]
            assert sessions.check(deep=True) == []


def approval(sessions: Sessions) -> Any:
    from langgraph.graph import START, MessagesState, StateGraph

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", f"you said {interrupt('well?')}")]}

    builder = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask")
    return sessions.attach(builder.compile())


def test_a_question_asked_before_is_answered_after(host: Host) -> None:
    for number in range(3):
        with host.process(hours=1) as sessions:
            approval(sessions).invoke(human(f"ask {number}"), sessions.config("t"))
        with host.process(hours=1) as sessions:
            graph, config = approval(sessions), sessions.config("t")
            assert graph.get_state(config).next == ("ask",)
            found = graph.invoke(Command(resume="yes"), config)
            assert found["messages"][-1].text == "you said yes"
            assert len(found["messages"]) == 2 * (number + 1)
            assert sessions.check(deep=True) == []


def test_changes_forks_and_copies_made_behind_time_are_the_latest(host: Host) -> None:
    with host.process() as sessions:
        graph, config = attached(sessions), sessions.config("t")
        for text in ("one", "two"):
            graph.invoke(human(text), config)
    with host.process(hours=1) as sessions:
        graph = attached(sessions)
        graph.update_state(config, human("by hand"))
        assert_consistent(sessions, graph, config, ["one", "two", "by hand"])
        old = next(found for found in graph.get_state_history(config) if texts(found) == ["one"] and not found.next)
        graph.invoke(human("another way"), old.config)
        assert texts(graph.get_state(config)) == ["one", "another way"]
        assert next(graph.get_state_history(config)).config == graph.get_state(config).config
        sessions.checkpointer.copy_thread("t", "copy")
        copied = graph.get_state(sessions.config("copy"))
        assert texts(copied) == ["one", "another way"]
        graph.invoke(human("on"), sessions.config("copy"))
        assert texts(graph.get_state(sessions.config("copy"))) == ["one", "another way", "on"]
        assert [m.text for m in sessions.get("t").messages() if m.role == "user"] == ["one", "another way"]
        assert sessions.check(deep=True) == []


def test_what_is_kept_or_brought_back_is_the_latest(host: Host) -> None:
    with host.process() as sessions:
        graph, config = attached(sessions), sessions.config("t", user_id="alice")
        graph.invoke(human("one"), config | {"metadata": {"run_id": "first"}})
    with host.process(hours=1) as sessions:
        graph = attached(sessions)
        graph.invoke(human("two"), config | {"metadata": {"run_id": "second"}})
    with host.process(hours=1) as sessions:
        graph = attached(sessions)
        sessions.get("t").update(on_expire="archive")
        host.clock.advance(days=30)
        sessions.sweep()
        assert sessions.find("t") is None
        sessions.restore("t")
        graph.invoke(human("three"), config)
        assert_consistent(sessions, graph, config, ["one", "two", "three"])
        sessions.checkpointer.prune(["t"])
        assert_consistent(sessions, graph, config, ["one", "two", "three"])
        assert len(list(graph.get_state_history(config))) == 1
        graph.invoke(human("four"), config)
        assert_consistent(sessions, graph, config, ["one", "two", "three", "four"])
        sessions.checkpointer.delete_for_runs(["first", "second"])
        assert_consistent(sessions, graph, config, ["one", "two", "three", "four"])


def test_subgraphs_that_keep_their_state_go_on(host: Host) -> None:
    for number in range(3):
        with host.process(hours=1) as sessions:
            graph, config = agents.own_subgraph(checkpointer=sessions.checkpointer), sessions.config("t")
            graph.invoke(human(f"turn {number}"), config)
            assert len([m for m in graph.get_state(config).values["messages"] if m.type == "human"]) == number + 1
            assert sessions.check(deep=True) == []


# Ids of any kind


def ids(saver: Any, thread: str) -> list[str]:
    return [
        found.config["configurable"]["checkpoint_id"] for found in saver.list({"configurable": {"thread_id": thread}})
    ]


def put(saver: Any, thread: str, checkpoint_id: str, parent: str | None = None, ns: str = "") -> None:
    named = {"thread_id": thread, "checkpoint_ns": ns, **({"checkpoint_id": parent} if parent else {})}
    saver.put({"configurable": named}, {**empty_checkpoint(), "id": checkpoint_id}, {"source": "loop"}, {})


async def test_ids_that_do_not_grow_are_in_the_order_in_which_they_follow_from_each_other(storage_url: str) -> None:
    with Sessions(storage_url) as sessions:
        saver, config = sessions.checkpointer, {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        line = ["9", "10", "11", "2", "b", "a", "a/2", "z", "y+00000007", "y", "x"]
        for number, checkpoint_id in enumerate(line):
            put(saver, "t", checkpoint_id, line[number - 1] if number else None)
            assert saver.get_tuple(config).checkpoint["id"] == checkpoint_id
            assert (await saver.aget_tuple(config)).checkpoint["id"] == checkpoint_id
            saver.put_writes(saver.get_tuple(config).config, [("c", number)], "task")
            assert ids(saver, "t") == line[number::-1]
        for checkpoint_id in line:
            found = saver.get_tuple({"configurable": {**config["configurable"], "checkpoint_id": checkpoint_id}})
            assert found.checkpoint["id"] == checkpoint_id
            assert len(found.pending_writes) == 1
        put(saver, "t", "a", "b")  # again: it stays where it is
        assert ids(saver, "t") == line[::-1]
        assert saver.get_tuple(config).checkpoint["id"] == "x"
        assert sessions.check() == []


def test_of_beginnings_the_one_put_last_is_the_latest_and_they_are_listed_by_id(storage_url: str) -> None:
    with Sessions(storage_url) as sessions:
        saver, config = sessions.checkpointer, {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        for checkpoint_id in ("2", "3", "1"):
            put(saver, "t", checkpoint_id)
            assert saver.get_tuple(config).checkpoint["id"] == checkpoint_id
        assert ids(saver, "t") == ["3", "2", "1"]
        put(saver, "t", "0", "1")
        assert ids(saver, "t") == ["0", "3", "2", "1"]
        saver.prune(["t"])
        assert ids(saver, "t") == ["0"]
        assert sessions.check() == []
