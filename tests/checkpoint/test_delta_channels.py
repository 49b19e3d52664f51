"""Graphs with LangGraph's `DeltaChannel` keep their state whatever is done to their thread, as with its own saver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.errors import SessionAccessDenied, UnknownStrategy
from tests.support.pairwise import engines_in_turns

pytestmark = pytest.mark.usefixtures("each_engine")


def fold(messages: list[AnyMessage], new: Sequence[Any]) -> list[AnyMessage]:
    for each in new:
        messages = add_messages(messages, each)  # type: ignore[assignment,arg-type]
    return messages


def merge(files: dict[str, str], new: Sequence[dict[str, str]]) -> dict[str, str]:
    for each in new:
        files = {**files, **each}
    return files


class State(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(fold, list, snapshot_frequency=7)]
    files: Annotated[dict[str, str], DeltaChannel(merge, dict, snapshot_frequency=4)]
    turns: int


def answer(state: State) -> dict[str, Any]:
    number = state.get("turns", 0)
    last = state["messages"][-1]
    return {"messages": [AIMessage(f"you said {last.text}", id=f"a{number}")], "turns": number + 1}


def note(state: State) -> dict[str, Any]:
    return {"files": {f"note{state['turns'] % 3}": state["messages"][-1].text}}


def graph_on(saver: BaseCheckpointSaver[Any]) -> Any:
    builder = StateGraph(State).add_node(answer).add_node(note).add_node("again", note)
    builder.add_edge(START, "answer").add_edge("answer", "note").add_edge("answer", "again")
    return builder.compile(checkpointer=saver)


def configured(session_id: str, run: int | None = None) -> Any:
    metadata = {} if run is None else {"run_id": f"r{run}"}  # a run with the id of the last one would resume it
    return {"configurable": {"thread_id": session_id}, "metadata": metadata}


def talk(graph: Any, session_id: str, first: int, last: int, **options: Any) -> None:
    for number in range(first, last):
        message = HumanMessage(f"turn {number}", id=f"h{number}")
        graph.invoke({"messages": [message]}, configured(session_id, number), **options)


@pytest.fixture
def graphs(sessions: Sessions) -> list[Any]:
    """The same conversation with our checkpointer and with LangGraph's."""
    graphs = [graph_on(sessions.checkpointer), graph_on(InMemorySaver())]
    for graph in graphs:
        talk(graph, "t", 0, 9)
        graph.update_state(configured("t"), {"messages": [HumanMessage("edited", id="h3")]}, as_node="answer")
        talk(graph, "t", 9, 14)
    return graphs


def states(graph: Any, session_id: str = "t") -> list[Any]:
    return [(state.values, state.next) for state in graph.get_state_history(configured(session_id))]


def test_every_state_of_the_history_is_that_of_langgraphs_own_saver(graphs: list[Any]) -> None:
    ours, theirs = (states(graph) for graph in graphs)
    assert len(ours) == len(theirs) > 30
    assert ours == theirs


async def test_each_history_of_writes_is_that_of_langgraphs_own_saver(graphs: list[Any]) -> None:
    found = []
    for graph in graphs:
        saver, channels = graph.checkpointer, ["messages", "files", "turns", "unknown"]
        configs = [state.config for state in graph.get_state_history(configured("t"))]
        found.append([saver.get_delta_channel_history(config=config, channels=channels) for config in configs])
        later = [await saver.aget_delta_channel_history(config=config, channels=channels) for config in configs]
        assert later == found[-1]
    ours, theirs = ([[described(each) for each in history.values()] for history in one] for one in found)
    assert ours == theirs


def described(entry: Any) -> Any:
    return [write[1:] for write in entry["writes"]], entry.get("seed", "none")


@engines_in_turns(turns=range(9))
def test_pruning_leaves_the_state_wherever_it_is_between_snapshots(turns: int, sessions: Sessions) -> None:
    graph, theirs = graph_on(sessions.checkpointer), graph_on(InMemorySaver())
    for each in (graph, theirs):
        talk(each, "t", 0, 1 + turns)
    sessions.checkpointer.prune(["t"])
    assert states(graph)[0] == states(theirs)[0]
    assert len(states(graph)) <= 2 + 3 * 7
    for each in (graph, theirs):
        talk(each, "t", 20, 23)
    assert states(graph)[0] == states(theirs)[0]


async def test_a_copied_thread_has_every_state_and_goes_on_apart(graphs: list[Any], sessions: Sessions) -> None:
    ours, theirs = graphs
    await sessions.checkpointer.acopy_thread("t", "copy")
    assert states(ours, "copy") == states(theirs)
    talk(ours, "copy", 20, 24)
    assert states(ours) == states(theirs)
    sessions.checkpointer.delete_thread("t")
    talk(theirs, "t", 20, 24)
    assert states(ours, "copy") == states(theirs)


async def test_deleting_an_early_run_leaves_the_later_state(graphs: list[Any], sessions: Sessions) -> None:
    ours, theirs = graphs
    await sessions.checkpointer.adelete_for_runs([f"r{number}" for number in range(9)])
    assert states(ours)[0] == states(theirs)[0]
    assert len(states(ours)) < len(states(theirs))


def test_deleting_the_last_run_goes_back_to_the_state_before_it(graphs: list[Any], sessions: Sessions) -> None:
    ours, theirs = graphs
    last = [f"r{number}" for number in range(9, 14)]
    sessions.checkpointer.delete_for_runs(last)
    kept = [s for s in theirs.get_state_history(configured("t")) if s.metadata.get("run_id") not in last]
    assert states(ours) == [(state.values, state.next) for state in kept]


def test_pruning_after_an_overwrite_and_a_branch_leaves_the_state(graphs: list[Any], sessions: Sessions) -> None:
    for graph in graphs:
        early = list(graph.get_state_history(configured("t")))[20].config
        branch = graph.update_state(early, {"files": Overwrite({"only": "this"})}, as_node="note")
        graph.invoke({"messages": [HumanMessage("on a branch", id="b")]}, branch)
    ours, theirs = graphs
    sessions.checkpointer.prune(["t"])
    assert states(ours)[0] == states(theirs)[0]


def test_a_thread_whose_run_saves_only_at_its_exit_keeps_its_state(sessions: Sessions) -> None:
    graph, theirs = graph_on(sessions.checkpointer), graph_on(InMemorySaver())
    for each in (graph, theirs):
        talk(each, "t", 0, 3, durability="exit")
    assert states(graph) == states(theirs)
    sessions.checkpointer.prune(["t"])
    assert states(graph)[0] == states(theirs)[0]


def test_a_history_is_only_read_by_the_owner(sessions: Sessions) -> None:
    graph = graph_on(sessions.checkpointer)
    graph.invoke({"messages": [HumanMessage("hi")]}, sessions.config("t", user_id="alice"))
    with pytest.raises(SessionAccessDenied):
        sessions.checkpointer.get_delta_channel_history(config=sessions.config("t"), channels=["messages"])
    assert sessions.checkpointer.get_delta_channel_history(config=sessions.config("t"), channels=[]) == {}


def test_an_unknown_strategy_is_refused_by_its_name(sessions: Sessions) -> None:
    graph = graph_on(sessions.checkpointer)
    talk(graph, "t", 0, 2)
    before = states(graph)
    with pytest.raises(UnknownStrategy, match="keep_some"):
        sessions.checkpointer.prune(["t"], strategy="keep_some")
    assert states(graph) == before
