"""Whatever an agent does, and whoever sees it: the record is its conversation, each message once, in order.

Random agents talk, use tools, edit, remove, go back in time and go on from there, in either of two
processes' sessions, with and without a recorder. What the record must say is worked out from
LangGraph's own checkpoints, as a plain list.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage
from langgraph.errors import InvalidUpdateError
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionError, Sessions
from tests.support import agents
from tests.support.queries import counters, rows

Said = list[tuple[str, str]]  # ids and texts


def summarising() -> Any:
    """Keeps the last two messages, and a summary in front of them."""

    def trim(state: MessagesState) -> dict[str, Any]:
        old = state["messages"][:-2]
        if not old:
            return {"messages": [AIMessage("fine")]}
        kept = state["messages"][-2:]
        removed = [RemoveMessage(id=str(m.id)) for m in state["messages"]]
        return {"messages": [*removed, SystemMessage(f"{len(old)} left out"), *kept, AIMessage("shorter")]}

    return StateGraph(MessagesState).add_node("trim", trim).add_edge(START, "trim").compile()


GRAPHS = {
    "chat": agents.chat,
    "tools": agents.tool_graph,
    "agent": agents.agent,
    "team": agents.shared_subgraph,
    "parallel": agents.parallel,
    "summarising": summarising,
}
TEXTS = st.sampled_from(["yes", "no", "look up tea", "both tea", "fail tea"])
DURABILITIES = st.sampled_from(["sync", "async", "exit"])


@contextmanager
def theirs() -> Iterator[None]:
    """What a graph raises of its own: of a tool that never works, of routing from a state that was edited."""
    try:
        yield
    except SessionError:
        raise
    except (RuntimeError, KeyError, ValueError, IndexError, InvalidUpdateError):
        pass


def fold(said: Said, state: list[BaseMessage]) -> Said:
    """What was said by a checkpoint, from what was said by its parent and its own state. Nothing is unsaid."""
    told = dict(said)
    order = [message_id for message_id, _ in said]
    following: str | None = None
    for message in reversed(state):
        key = str(message.id)
        if key not in told:
            order.insert(order.index(following) if following is not None else len(order), key)
        told[key] = message.text
        following = key
    return [(key, told[key]) for key in order]


class Agents(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory()
        self.path = Path(self.place.name) / "sessions.db"
        self.processes = [Sessions(self.path), Sessions(self.path)]
        self.ids = itertools.count()
        self.known: dict[str, Said] = {}

    @initialize(kind=st.sampled_from(sorted(GRAPHS)), recorder=st.booleans())
    def begin(self, kind: str, recorder: bool) -> None:
        self.graphs = [sessions.attach(GRAPHS[kind](), recorder=recorder) for sessions in self.processes]
        self.config = self.processes[0].config("t", user_id="alice")

    def teardown(self) -> None:
        for sessions in self.processes:
            assert sessions.recorder.faults == 0
            sessions.close()
        self.place.cleanup()

    def history(self) -> list[Any]:
        return list(self.graphs[0].get_state_history(self.config))

    @rule(process=st.integers(0, 1), text=TEXTS, durability=DURABILITIES, on_a_loop=st.booleans())
    def talk(self, process: int, text: str, durability: str, on_a_loop: bool) -> None:
        self.run(self.graphs[process], agents.human(text), self.config, durability, on_a_loop)

    @rule(process=st.integers(0, 1), back=st.integers(0, 30), text=st.none() | TEXTS, durability=DURABILITIES)
    def go_back(self, process: int, back: int, text: str | None, durability: str) -> None:
        history = self.history()
        if not history:
            return
        there = history[back % len(history)]
        if text is None and not there.next:
            return
        self.run(self.graphs[process], text and agents.human(text), there.config, durability)

    def run(self, graph: Any, value: Any, config: Any, durability: str = "async", on_a_loop: bool = False) -> None:
        with theirs():
            if on_a_loop:
                asyncio.run(graph.ainvoke(value, config, durability=durability))
            else:
                graph.invoke(value, config, durability=durability)

    @rule(process=st.integers(0, 1), text=TEXTS)
    def pass_the_history_again(self, process: int, text: str) -> None:
        state = self.graphs[process].get_state(self.config).values.get("messages", [])
        self.run(self.graphs[process], {"messages": [*state, HumanMessage(text)]}, self.config)

    @rule(process=st.integers(0, 1), which=st.integers(0, 9), text=TEXTS, back=st.integers(0, 12))
    def edit(self, process: int, which: int, text: str, back: int) -> None:
        history = self.history()
        there = history[min(back, 3) % len(history)] if history else None
        messages = there.values.get("messages") if there else None
        if there is not None and messages:
            edited = messages[-1 - which % len(messages)].model_copy(update={"content": text})
            config = there.config if back > 6 else self.config
            with theirs():
                self.graphs[process].update_state(config, {"messages": [edited]})

    @rule(process=st.integers(0, 1), which=st.integers(0, 9))
    def remove(self, process: int, which: int) -> None:
        messages = self.graphs[process].get_state(self.config).values.get("messages")
        if messages:
            gone = messages[-1 - which % len(messages)]
            with theirs():
                self.graphs[process].update_state(self.config, {"messages": [RemoveMessage(id=gone.id)]})

    @rule(process=st.integers(0, 1))
    def come_back_in_another_process(self, process: int) -> None:
        if not hasattr(self, "config"):
            return
        graph = self.graphs[process]
        self.processes[process].close()
        self.processes[process] = sessions = Sessions(self.path)
        recorder = bool((graph.config or {}).get("callbacks"))
        plain = graph.copy(update={"checkpointer": None, "store": None, "config": None})
        self.graphs[process] = sessions.attach(plain, recorder=recorder)

    def expected(self) -> Said:
        snapshots = self.history()
        for snapshot in reversed(snapshots):
            key = snapshot.config["configurable"]["checkpoint_id"]
            if key not in self.known:
                parent = (snapshot.parent_config or {}).get("configurable", {}).get("checkpoint_id")
                self.known[key] = fold(self.known.get(parent, []), snapshot.values.get("messages", []))
        return self.known[snapshots[0].config["configurable"]["checkpoint_id"]] if snapshots else []

    @invariant()
    def the_record_is_the_conversation_and_its_counters_equal_its_rows(self) -> None:
        if not hasattr(self, "config"):
            return
        for sessions in self.processes:  # each writes what its runs on an event loop have handed over before it reads
            session = sessions.find("t")
            recorded = [] if session is None else session.messages()
        assert [(m.message_id, m.text) for m in recorded] == self.expected()
        assert counters(self.path) == rows(self.path)


Agents.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # making an example smaller takes minutes here
)
TestAgents = pytest.mark.slow(Agents.TestCase)


def test_a_question_from_another_branch_stays_before_its_answer_when_its_checkpoint_comes_late() -> None:
    for _ in range(10):  # which of them is written first differs from run to run
        machine = Agents()
        machine.begin(kind="agent", recorder=True)
        machine.talk(process=0, text="look up tea", durability="sync", on_a_loop=True)
        machine.remove(process=0, which=0)
        machine.go_back(process=0, back=29, text=None, durability="async")
        machine.the_record_is_the_conversation_and_its_counters_equal_its_rows()
        machine.teardown()
