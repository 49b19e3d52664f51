"""The checkpointer keeps LangGraph's contract, by LangGraph's own suite and by comparison with its own saver."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Interrupt, Send

from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import GRAPHS, human, said
from tests.support.pairwise import engines_in_turns

pytestmark = pytest.mark.usefixtures("storage_url")

ALL = {"put", "put_writes", "get_tuple", "list", "delete_thread", "delete_for_runs", "copy_thread", "prune"}


class Synchronous(BaseCheckpointSaver[Any]):
    """The sync half of a saver, for a suite that only knows the async one."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self.saver.get_tuple(config)

    async def alist(self, config: RunnableConfig | None, **options: Any) -> AsyncIterator[CheckpointTuple]:
        for found in self.saver.list(config, **options):
            yield found

    async def aput(self, *args: Any, **options: Any) -> RunnableConfig:
        return self.saver.put(*args, **options)

    async def aput_writes(self, *args: Any, **options: Any) -> None:
        self.saver.put_writes(*args, **options)

    async def adelete_thread(self, thread_id: str) -> None:
        self.saver.delete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        self.saver.delete_for_runs(run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.saver.copy_thread(source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self.saver.prune(thread_ids, strategy=strategy)

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.saver.get_next_version(current, channel)


@pytest.mark.parametrize(
    ("storage_url", "half"),
    [("sqlite", Synchronous), ("sqlite", None), ("postgres", None), ("memory", Synchronous)],
    indirect=["storage_url"],
    ids=["sqlite-sync", "sqlite-async", "postgres-async", "memory-sync"],
)
async def test_the_checkpointer_passes_langgraphs_conformance_suite(
    storage_url: str, half: Callable[[Any], Any] | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def empty() -> str:
        if storage_url.startswith("postgresql"):
            return str(request.getfixturevalue("postgres_server").emptied())
        return storage_url if storage_url == ":memory:" else str(tmp_path / f"{uuid.uuid4().hex}.db")

    @checkpointer_test(name="session-middleware")
    async def fresh() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        async with Sessions(empty()) as sessions:
            yield half(sessions.checkpointer) if half else sessions.checkpointer

    report = await validate(fresh)
    failures = {name: result.failures for name, result in report.results.items() if result.failures}
    assert failures == {}
    assert {name for name, result in report.results.items() if result.passed} == ALL


# Equal to LangGraph's own saver

CALL = {"name": "f", "args": {"x": [1, {"y": None}]}, "id": "c1"}
MESSAGES: list[Any] = [
    SystemMessage("s", id="1"),
    HumanMessage([{"type": "text", "text": "é\U0001f600"}], id="2", name="alice", additional_kwargs={"k": [1]}),
    AIMessage("", id="3", tool_calls=[CALL], usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
    ToolMessage("r", id="4", tool_call_id="c1", artifact={"a": b"\x00\xff"}, status="error"),
    HumanMessage("no id"),
    RemoveMessage(id="1"),
]
VALUES: dict[str, list[Any]] = {  # the values one channel has in turn
    "appended": [[], MESSAGES[:1], MESSAGES[:3], MESSAGES],
    "edited": [MESSAGES[:3], [MESSAGES[0], HumanMessage("other", id="2"), MESSAGES[2]], MESSAGES[:2], [], MESSAGES],
    "moved": [MESSAGES[:4], MESSAGES[3::-1], [MESSAGES[0]] * 3, MESSAGES[1:2] + MESSAGES[:1]],
    "numbers": [[1], [1, 1.0, True], [0, False, None, ""], [1, 2, 3], [1, 2, "3"], [-(2**63), 2**64 - 1, 0.1, 1e300]],
    "nested": [[[1], [2, [3]]], [[1], [2, [3, 4]]], [[1, 2]], [(1, 2), {3}, [(1,)]], [[], {}, ()]],
    "texts": [["a" * 300, "b"], ["a" * 300, "b", "c" * 10_000], ["", "\x00", "é"]],
    "scalars": [None, 0, False, "", b"", 1.5, "x" * 100_000, None],
    "plain": [{"a": [1, {"b": ()}], 3: None}, {"a": []}, (1, [2]), {1, 2}, frozenset({3})],
    "special": [datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1), timedelta(1), Decimal("1.10"), uuid.UUID(int=7)],
    "langgraph": [Send("n", {"x": 1}), [Send("n", [HumanMessage("h", id="h")])], Command(update={"a": 1})],
    "documents": [[Document("d", metadata={"p": 1})], [Document("d"), Document("e")], (Interrupt("v", id="i"),)],
}


def same(one: Any, other: Any) -> bool:
    """Equal, also in the types that ``==`` takes for equal: 1, 1.0 and True; a list and a tuple in a message."""
    return repr(one) == repr(other) and type(one) is type(other)


def puts(saver: BaseCheckpointSaver[Any], name: str, values: Sequence[Any]) -> list[CheckpointTuple]:
    """Put the values one after the other, each also as a write, and read each back."""
    config: RunnableConfig = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
    version, steady = None, saver.get_next_version(None, None)
    found = []
    for step, value in enumerate(values):
        version = saver.get_next_version(version, None)
        checkpoint: Checkpoint = {
            **empty_checkpoint(),
            "id": str(uuid6(clock_seq=step)),
            "channel_values": {"value": value, "steady": MESSAGES[:3]},
            "channel_versions": {"value": version, "steady": steady},
        }
        new = {"value": version} if step else {"value": version, "steady": steady}
        config = saver.put(config, checkpoint, {"source": "loop", "step": step, "parents": {}}, new)
        saver.put_writes(config, [("value", value), ("other", None)], f"task{step}")
        found.append(saver.get_tuple(config))
    return [each for each in found if each is not None]


@pytest.mark.parametrize("name", VALUES)
def test_what_is_read_is_what_langgraphs_own_saver_reads(name: str, sessions: Sessions) -> None:
    memory = InMemorySaver()
    ours, theirs = (puts(saver, name, VALUES[name]) for saver in (sessions.checkpointer, memory))
    assert len(ours) == len(theirs) == len(VALUES[name])
    for mine, other in zip(ours, theirs, strict=True):
        for channel, value in other.checkpoint["channel_values"].items():
            assert same(mine.checkpoint["channel_values"].pop(channel), value)
        assert mine.checkpoint["channel_values"] == {}
        assert same([write[1:] for write in mine.pending_writes or ()], [w[1:] for w in other.pending_writes or ()])
        assert mine.metadata == other.metadata
        assert (mine.parent_config is None) == (other.parent_config is None)


@engines_in_turns("storage_url", name=VALUES)
def test_a_process_that_knows_nothing_reads_the_same(name: str, open_sessions: Callable[[], Sessions]) -> None:
    with open_sessions() as sessions:
        written = puts(sessions.checkpointer, name, VALUES[name])
    with open_sessions() as sessions:
        for each in written:
            again = sessions.checkpointer.get_tuple(each.config)
            assert again is not None
            assert same(again.checkpoint, each.checkpoint)
            assert same(again.pending_writes, each.pending_writes)


def test_two_processes_that_take_turns_on_one_thread_never_mix_it_up(open_sessions: Callable[[], Sessions]) -> None:
    with open_sessions() as one, open_sessions() as two:
        graphs = [each.attach(agents.chat()) for each in (one, two)]
        theirs = agents.chat()
        theirs.checkpointer = InMemorySaver()
        config = one.config("t")
        for turn in range(6):
            for graph in (graphs[turn % 2], theirs):
                graph.invoke(human(f"turn {turn}", id=f"h{turn}"), config)
            if turn == 3:
                for graph in (graphs[0], theirs):
                    graph.update_state(config, {"messages": [RemoveMessage(id="h1"), HumanMessage("new", id="h2")]})
        texts = [message.text for message in theirs.get_state(config).values["messages"]]
        for graph in graphs:
            assert [message.text for message in graph.get_state(config).values["messages"]] == texts


def test_a_message_changed_in_place_between_steps_is_stored_as_it_is(sessions: Sessions) -> None:
    message = HumanMessage("before", id="1")
    saver, values = sessions.checkpointer, [message]
    first, second = puts(saver, "t", [values])[0], None
    message.content = "after"
    message.additional_kwargs["k"] = 1
    version = saver.get_next_version(first.checkpoint["channel_versions"]["value"], None)
    changed = {**first.checkpoint, "id": str(uuid6()), "channel_values": {"value": values, "steady": MESSAGES[:3]}}
    changed["channel_versions"] = {**first.checkpoint["channel_versions"], "value": version}
    second = saver.get_tuple(saver.put(first.config, changed, {"source": "loop", "step": 1}, {"value": version}))
    assert second is not None
    assert second.checkpoint["channel_values"]["value"] == [message]
    again = saver.get_tuple(first.config)
    assert again is not None
    assert again.checkpoint["channel_values"]["value"][0].content == "before"


def test_history_is_filtered_and_paged_as_langgraphs_own(sessions: Sessions) -> None:
    graphs = []
    for saver in (sessions.checkpointer, InMemorySaver()):
        graph = agents.chat()
        graph.checkpointer = saver
        for turn in range(15):
            graph.invoke(human(f"turn {turn}"), sessions.config("t"))
        graphs.append(graph)
    config = sessions.config("t")
    for options in ({}, {"limit": 0}, {"limit": 1}, {"limit": 40}, {"filter": {"source": "input"}, "limit": 7}):
        ours, theirs = ([s.metadata["step"] for s in g.get_state_history(config, **options)] for g in graphs)
        assert ours == theirs
    befores = [list(graph.get_state_history(config))[10].config for graph in graphs]
    ours, theirs = (
        [s.metadata["step"] for s in graph.get_state_history(config, before=before)]
        for graph, before in zip(graphs, befores, strict=True)
    )
    assert ours == theirs


# The record of what is done to a thread from outside


def test_an_edited_message_is_a_new_version_and_the_old_one_stays(sessions: Sessions) -> None:
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    graph.invoke(human("helo", id="h1"), config)
    graph.update_state(config, human("hello", id="h1"))
    session = sessions.get("t")
    assert sorted(said(session)) == [("assistant", "you said helo"), ("user", "hello")]
    old, new = [m for m in session.messages(all_versions=True) if m.message_id == "h1"]
    assert (old.text, old.version, old.replaced_by) == ("helo", 1, new.seq)
    assert (new.text, new.version, new.replaced_by) == ("hello", 2, None)
    assert (session.message_count, len(session.runs())) == (2, 1)


@pytest.mark.parametrize("kind", ["chat", "tool_graph", "shared_subgraph"])
async def test_a_change_from_outside_is_no_run_and_resumes_nothing(kind: str, sessions: Sessions) -> None:
    graph, config = sessions.attach(GRAPHS[kind]()), sessions.config("t", user_id="alice")
    graph.invoke(human("hi"), config)
    graph.update_state(config, human("one"))
    await graph.aupdate_state(config, human("two"))
    session = sessions.get("t")
    assert [text for _, text in said(session)] == ["hi", "you said hi", "one", "two"]
    assert len(session.runs()) == 1
    assert [event.kind for event in session.events()] == ["opened"]


def test_removing_a_message_from_the_state_leaves_the_record(sessions: Sessions) -> None:
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    graph.invoke(human("hi", id="h1"), config)
    graph.update_state(config, {"messages": [RemoveMessage(id="h1")]})
    assert [m.type for m in graph.get_state(config).values["messages"]] == ["ai"]
    assert said(sessions.get("t")) == [("user", "hi"), ("assistant", "you said hi")]


def test_a_message_put_in_front_of_the_others_is_recorded(sessions: Sessions) -> None:
    def trim(state: MessagesState) -> dict[str, Any]:
        removed = [RemoveMessage(id=str(m.id)) for m in state["messages"]]
        return {"messages": [*removed, SystemMessage("summary", id="s"), *state["messages"][-1:]]}

    graph = sessions.attach(StateGraph(MessagesState).add_node("trim", trim).add_edge(START, "trim").compile())
    graph.invoke(human("one"), sessions.config("t"))
    assert sorted(said(sessions.get("t"))) == [("system", "summary"), ("user", "one")]


async def test_going_back_in_time_records_only_what_is_new(sessions: Sessions) -> None:
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    graph.invoke(human("one"), config)
    graph.invoke(human("two"), config)
    before_two = next(s for s in graph.get_state_history(config) if s.next == ("model",) and s.metadata["step"] > 1)
    again = await graph.ainvoke(None, before_two.config)
    assert [m.text for m in again["messages"]] == ["one", "you said one", "two", "you said two"]
    fork = graph.update_state(before_two.config, human("three"))
    graph.invoke(None, fork)
    session = sessions.get("t")
    texts = ["one", "you said one", "two", "you said two", "you said two", "three", "you said three"]
    assert [text for _, text in said(session, branch="all")] == texts
    assert [text for _, text in said(session)] == ["one", "you said one", "two", "three", "you said three"]
    assert [text for _, text in said(session, branch="main")] == texts[:4]
    assert [branch.parent_id for branch in session.branches()] == ["main", "main"]
    assert [run.outcome for run in session.runs()] == ["ok"] * 4
    assert len({m.message_id for m in session.messages(branch="all")}) == len(texts)
