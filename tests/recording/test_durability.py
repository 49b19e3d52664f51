"""The record of a run is the same whenever LangGraph puts its checkpoints, and has the times at which it was said."""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.models import Message
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human
from tests.support.pairwise import ENGINES, pairwise

pytestmark = [pytest.mark.sessions(allowed_types=[agents.Place, agents.Plan]), pytest.mark.usefixtures("clock")]

DURABILITIES = ["sync", "async", "exit"]


def saying(*texts: str) -> Any:
    """A graph with a node for each text, which says it without an id."""
    builder = StateGraph(MessagesState)
    for number, text in enumerate(texts):
        builder.add_node(f"n{number}", lambda _, text=text: {"messages": [AIMessage(text)]})
        builder.add_edge(f"n{number - 1}" if number else START, f"n{number}")
    return builder.compile()


def subgraphs() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("x", saying("x1", "x2")).add_node("y", saying("y1", "y2"))
    return builder.add_edge(START, "x").add_edge("x", "y").compile()


def subgraph_with_memory() -> Any:
    builder = StateGraph(MessagesState).add_node("team", agents.tool_graph(checkpointer=True))
    return builder.add_edge(START, "team").compile()


def graph_in_a_node() -> Any:
    inner = agents.tool_graph()

    def call(state: MessagesState) -> dict[str, Any]:
        found = inner.invoke(human(f"look up {state['messages'][-1].text}"))
        return {"messages": [AIMessage(f"found: {found['messages'][-1].text}")]}

    return StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile()


def models_sent_from_the_start(words: str = "a") -> Any:
    model = agents.Scripted(has_tools=False)

    def say(state: dict[str, str]) -> dict[str, Any]:
        return {"messages": [model.invoke(state["word"])]}

    builder = StateGraph(MessagesState).add_node("say", say)
    builder.add_conditional_edges(START, lambda _: [Send("say", {"word": word}) for word in words], ["say"])
    return builder.compile()


def rewriting() -> Any:
    """A message that is edited by its id in the same run, and edited back."""
    builder = StateGraph(MessagesState)
    for before, name, text in (("", "a", "draft"), ("a", "b", "final"), ("b", "c", "draft"), ("c", "d", "final")):
        builder.add_node(
            name, lambda state, text=text: {"messages": [AIMessage(text, id=f"x{len(human_texts(state))}")]}
        )
        builder.add_edge(before or START, name)
    return builder.compile()


def human_texts(state: MessagesState) -> list[str]:
    return [message.text for message in state["messages"] if isinstance(message, HumanMessage)]


def rewriting_inside() -> Any:
    return StateGraph(MessagesState).add_node("inner", rewriting()).add_edge(START, "inner").compile()


UNIDENTIFIED: Any = TypedDict("UNIDENTIFIED", {"messages": Annotated[list[Any], operator.add]})  # type: ignore[misc]

GRAPHS: dict[str, Callable[[], Any]] = {
    **{name: graph for name, graph in agents.GRAPHS.items() if name != "agent"},
    **{graph.__name__: graph for graph in (subgraphs, subgraph_with_memory, graph_in_a_node)},
    **{graph.__name__: graph for graph in (models_sent_from_the_start, rewriting, rewriting_inside)},
}
NOT_PUT = ("graph_in_a_node", "rewriting", "rewriting_inside")  # what is said in these, at the end of a run


def prepared(sessions: Sessions, graph: Any, session_id: str, parts: str) -> tuple[Any, Any]:
    config: Any = sessions.config(session_id)
    if parts == "attached":
        return sessions.attach(graph), config
    if parts == "both by hand":
        config |= {"callbacks": [sessions.recorder]}
    return graph.copy(update={"checkpointer": sessions.checkpointer}), config


def namespace(entry: Any) -> str:
    return re.sub(r":[0-9a-f-]{36}", "", getattr(entry, "checkpoint_ns", ""))


def record(sessions: Sessions, session_id: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for entry in sessions.get(session_id).timeline():
        told = [getattr(entry, name, None) for name in ("role", "text", "name", "status", "outcome", "branch", "kind")]
        found.append((type(entry).__name__, *told, namespace(entry), getattr(entry, "flags", ())))
    return found


@pairwise(parts=["attached", "both by hand"], name=GRAPHS, runner=[agents.invoke, agents.ainvoke], each_engine=ENGINES)
async def test_the_record_is_the_same_for_each_durability(
    sessions: Sessions, parts: str, name: str, runner: agents.Runner
) -> None:
    for durability in DURABILITIES:
        graph, config = prepared(sessions, GRAPHS[name](), durability, parts)
        for text in ("look up tea", "hi", "look up tea"):
            await runner(graph, human(text), config, durability=durability)
    sync, of_async, at_exit = (record(sessions, durability) for durability in DURABILITIES)
    assert of_async == sync
    assert at_exit == sync


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in NOT_PUT])
def test_the_checkpointer_alone_records_the_same_conversation_for_each_durability(
    sessions: Sessions, name: str
) -> None:
    """LangGraph puts nothing of graphs inside of nodes at the end of a run, and nothing that was edited before it."""
    for durability in DURABILITIES:
        graph, config = prepared(sessions, GRAPHS[name](), durability, "checkpointer")
        for text in ("look up tea", "hi", "look up tea"):
            graph.invoke(human(text), config, durability=durability)
    sync, of_async, at_exit = ([entry[:-2] for entry in record(sessions, durability)] for durability in DURABILITIES)
    assert of_async == sync
    assert at_exit == sync


@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_each_version_of_an_edited_message_is_recorded(sessions: Sessions, parts: str, durability: str) -> None:
    """But by the checkpointer alone at the end of a run, where the last one is all that it is given."""
    graph, config = prepared(sessions, rewriting(), "t", parts)
    graph.invoke(human("hi"), config, durability=durability)
    versions = [message.text for message in sessions.get("t").messages(all_versions=True)]
    is_given_all = parts == "attached" or durability != "exit"
    assert versions == ["hi", *(["draft", "final"] * 2 if is_given_all else ["final"])]


def asking_inside(depth: int, clock: Clock) -> Any:
    """A graph that asks a person, in as many others."""

    def ask(state: MessagesState) -> dict[str, Any]:
        answer = interrupt("may I?")
        clock.advance(minutes=1)
        return {"messages": [AIMessage(f"approved: {answer}")]}

    graph = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
    for _ in range(depth):
        graph = StateGraph(MessagesState).add_node("inner", graph).add_edge(START, "inner").compile()
    return graph


UPDATE = {"messages": [HumanMessage("by the way"), AIMessage("noted")]}


@pairwise(
    parts=["attached", "both by hand", "checkpointer"],
    durability=DURABILITIES,
    runner=[agents.invoke, agents.ainvoke],
    depth=[0, 1, 2],
    has_update=[False, True],
    each_engine=ENGINES,
)
async def test_an_answer_is_recorded_at_its_time_and_is_no_message(
    sessions: Sessions, clock: Clock, parts: str, durability: str, runner: agents.Runner, depth: int, has_update: bool
) -> None:
    graph, config = prepared(sessions, asking_inside(depth, clock), "t", parts)
    await runner(graph, human("hi"), config, durability=durability)
    clock.advance(minutes=1)
    await runner(graph, Command(resume="yes", update=UPDATE if has_update else None), config, durability=durability)
    recorded = sessions.get("t").messages()
    updated = ["by the way", "noted"] if has_update else []
    assert [message.text for message in recorded] == ["hi", *updated, "approved: yes"]
    assert {message.checkpoint_ns for message in recorded if message.role == "user"} == {""}
    asked = [message for message in recorded if message.role == "user"]
    assert minutes(asked, clock) == [("hi", 0), *((text, 1) for text in updated[:1])]
    [question] = sessions.get("t").questions()
    assert (question.node, question.status, question.answer) == ("ask", "answered", "yes")
    assert question.checkpoint_ns.count(":") == depth
    assert (question.answered_at or question.asked_at) - question.asked_at == timedelta(minutes=1)


@pytest.mark.parametrize("parts", ["attached", "both by hand"])
def test_a_run_that_stops_to_ask_is_recorded_the_same_for_each_durability(sessions: Sessions, parts: str) -> None:
    for durability in DURABILITIES:
        graph, config = prepared(sessions, agents.tool_graph(), durability, parts)
        graph.invoke(human("ask tea"), config, durability=durability)
        graph.invoke(Command(resume="yes"), config, durability=durability)
        graph.invoke(human("hi"), config, durability=durability)
    conversations = [agents.said(sessions.get(durability)) for durability in DURABILITIES]
    assert conversations[1:] == conversations[:1] * 2
    assert ("user", "yes") not in conversations[0]
    asked = [(one.value, one.answer) for name in DURABILITIES for one in sessions.get(name).questions()]
    assert asked == [("may I have tea?", "yes")] * len(DURABILITIES)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
def test_a_run_that_goes_back_to_the_beginning_has_what_was_said_there(
    tmp_path: Path, parts: str, durability: str
) -> None:
    for turn in range(2):  # by another process each time
        with Sessions(tmp_path / "sessions.db") as sessions:
            graph, config = prepared(sessions, agents.parallel(), "t", parts)
            if not turn:
                graph.invoke(human("yes"), config)
                continue
            beginning = list(graph.get_state_history(config))[-1]
            graph.invoke(None, beginning.config, durability=durability)
            recorded = [message.message_id for message in sessions.get("t").messages()]
            assert recorded == [message.id for message in graph.get_state(config).values["messages"]]


def slow(clock: Clock, text: str, *, by_model: bool) -> Callable[[Any], Any]:
    """A node that says something after a minute."""

    def node(state: MessagesState) -> dict[str, Any]:
        clock.advance(minutes=1)
        model = GenericFakeChatModel(messages=iter([AIMessage(text)]))
        said = model.invoke(state["messages"]) if by_model else AIMessage(text)
        return {"messages": [said]}

    return node


def slow_graph(clock: Clock, *, by_model: bool) -> Any:
    builder = StateGraph(MessagesState)
    for before, name in (("", "a"), ("a", "b"), ("b", "c")):
        builder.add_node(name, slow(clock, name, by_model=by_model)).add_edge(before or START, name)
    return builder.compile()


@pairwise(
    parts=["attached", "both by hand"],
    graph=[
        *((durability, MessagesState, inner) for durability in DURABILITIES for inner in (False, True)),
        *((durability, UNIDENTIFIED, False) for durability in ("sync", "exit")),
    ],
    runner=[agents.invoke, agents.ainvoke],
    by_model=[True, False],
    each_engine=ENGINES,
)
async def test_what_was_said_is_recorded_while_the_run_is_in_progress(
    sessions: Sessions,
    open_sessions: OpenSessions,
    clock: Clock,
    parts: str,
    graph: tuple[str, Any, bool],
    runner: agents.Runner,
    by_model: bool,
) -> None:
    """As another process reads it, once it is written."""
    seen: list[list[tuple[str, str]]] = []
    other = open_sessions()
    durability, state, inner = graph

    def look(state: Any) -> Any:
        for _ in range(1000):
            found = agents.said(other.get("t")) if other.find("t") else []
            if len(found) >= len(state["messages"]):
                break
        seen.append(found)
        return {"messages": [AIMessage("done")]}

    builder: Any = StateGraph(state)
    builder.add_node("a", lambda given: slow(clock, "a", by_model=by_model)(given)).add_node("look", look)
    built = builder.add_edge(START, "a").add_edge("a", "look").compile()
    if inner:
        built = StateGraph(MessagesState).add_node("inner", built).add_edge(START, "inner").compile()
    app, config = prepared(sessions, built, "t", parts)
    for _ in range(2):
        await runner(app, human("hi"), config, durability=durability)
    turn = [("user", "hi"), ("assistant", "a"), ("assistant", "done")]
    assert seen == [turn[:2], turn + turn[:2]]
    assert agents.said(sessions.get("t")) == turn * 2


def minutes(messages: list[Message], clock: Clock) -> list[tuple[str, float]]:
    start = Clock().now
    return [(message.text, (message.created_at - start).total_seconds() / 60) for message in messages]


@pairwise(
    parts=["attached", "both by hand"],
    durability=DURABILITIES,
    runner=[agents.invoke, agents.ainvoke],
    inner=[True, False],
    by_model=[True, False],
    each_engine=ENGINES,
)
async def test_a_message_has_the_time_at_which_it_was_said(
    sessions: Sessions,
    clock: Clock,
    parts: str,
    durability: str,
    runner: agents.Runner,
    inner: bool,
    by_model: bool,
) -> None:
    built = slow_graph(clock, by_model=by_model)
    if inner:
        built = StateGraph(MessagesState).add_node("inner", built).add_edge(START, "inner").compile()
    graph, config = prepared(sessions, built, "t", parts)
    await runner(graph, human("hi"), config, durability=durability)
    expected: list[Any] = [("hi", 0), ("a", 1), ("b", 2), ("c", 3)]
    assert minutes(sessions.get("t").messages(), clock) == expected


@pairwise(
    parts=["attached", "both by hand"],
    durability=DURABILITIES,
    runner=[agents.invoke, agents.ainvoke],
    each_engine=ENGINES,
)
async def test_a_message_without_an_id_has_the_time_at_which_it_was_said(
    sessions: Sessions, clock: Clock, parts: str, durability: str, runner: agents.Runner
) -> None:
    state: Any = TypedDict("state", {"messages": Annotated[list[Any], operator.add]})  # type: ignore[misc]
    builder = StateGraph(state)
    for before, name in (("", "a"), ("a", "b"), ("b", "c")):
        node = slow(clock, name, by_model=False)
        builder.add_node(name, lambda state, node=node: node(state)).add_edge(before or START, name)
    graph, config = prepared(sessions, builder.compile(), "t", parts)
    for text in ("hi", "again"):
        given = {"messages": [AIMessage("before"), {"role": "user", "content": text}]}
        await runner(graph, given, config, durability=durability)
    expected: list[Any] = [("before", 0), ("hi", 0), ("a", 1), ("b", 2), ("c", 3)]
    expected += [("before", 3), ("again", 3), ("a", 4), ("b", 5), ("c", 6)]
    assert minutes(sessions.get("t").messages(), clock) == expected


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
@pytest.mark.parametrize("no_id", [None, ""])
def test_what_is_said_again_without_an_id_is_a_message_of_its_own(
    sessions: Sessions, parts: str, durability: str, no_id: str | None
) -> None:
    builder = StateGraph(UNIDENTIFIED)
    for before, name in (("", "a"), ("a", "b"), ("b", "c")):
        builder.add_node(name, lambda _: {"messages": [AIMessage("ok", id=no_id)]}).add_edge(before or START, name)
    graph, config = prepared(sessions, builder.compile(), "t", parts)
    for _ in range(2):
        graph.invoke({"messages": [HumanMessage("ok", id=no_id)]}, config, durability=durability)
    assert agents.said(sessions.get("t")) == [("user", "ok"), *[("assistant", "ok")] * 3] * 2


@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
@pytest.mark.parametrize(("durability", "frequency"), [("sync", 1), ("sync", 3), ("sync", 1000), ("exit", 1000)])
@pytest.mark.parametrize("no_id", [None, ""])
def test_messages_without_ids_in_a_delta_channel_are_each_recorded_once(
    sessions: Sessions, parts: str, durability: str, frequency: int, no_id: str | None
) -> None:
    append = DeltaChannel(lambda said, new: [*said, *chain.from_iterable(new)], snapshot_frequency=frequency)
    builder = StateGraph(TypedDict("Appended", {"messages": Annotated[list[Any], append]}))
    for before, name in ((START, "a"), ("a", "b")):
        builder.add_node(name, lambda _: {"messages": [AIMessage("ok", id=no_id)]}).add_edge(before, name)
    graph, config = prepared(sessions, builder.compile(), "t", parts)
    for _ in range(3):
        graph.invoke({"messages": [HumanMessage("ok", id=no_id)]}, config, durability=durability)
        graph.update_state(config, {"messages": [HumanMessage("changed", id=no_id)]}, as_node="b")
    turn = [("user", "ok"), ("assistant", "ok"), ("assistant", "ok"), ("user", "changed")]
    assert agents.said(sessions.get("t")) == turn * 3


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
def test_a_message_without_an_id_is_one_in_a_subgraph_too(sessions: Sessions, parts: str, durability: str) -> None:
    inner: Any = TypedDict("inner", {"messages": Annotated[list[Any], operator.add]})  # type: ignore[misc]
    outer: Any = TypedDict("outer", {"messages": list[Any]})  # type: ignore[misc]
    team = StateGraph(inner).add_node("say", lambda _: {"messages": [AIMessage("hello")]}).add_edge(START, "say")
    builder = StateGraph(outer).add_node("team", team.compile()).add_edge(START, "team")
    graph, config = prepared(sessions, builder.compile(), "t", parts)
    graph.invoke({"messages": [HumanMessage("hi")]}, config, durability=durability)
    assert agents.said(sessions.get("t")) == [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_with_the_checkpointer_alone_what_a_user_said_has_the_time_at_which_the_run_began(
    sessions: Sessions, clock: Clock, durability: str
) -> None:
    graph, config = prepared(sessions, slow_graph(clock, by_model=False), "t", "checkpointer")
    for turn in range(2):
        graph.invoke(human(f"turn {turn}"), config, durability=durability)
    asked = [message for message in sessions.get("t").messages() if message.role == "user"]
    assert minutes(asked, clock) == [("turn 0", 0), ("turn 1", 3)]


def test_the_recorder_alone_has_the_times_at_which_it_was_said(sessions: Sessions, clock: Clock) -> None:
    config: Any = sessions.config("t") | {"callbacks": [sessions.recorder]}
    slow_graph(clock, by_model=True).invoke(human("hi"), config)
    assert minutes(sessions.get("t").messages(), clock) == [("hi", 0), ("a", 1), ("b", 2), ("c", 3)]


def test_the_order_of_what_was_said_is_that_of_its_times(sessions: Sessions, clock: Clock) -> None:
    graph, config = prepared(sessions, models_sent_from_the_start("ab"), "t", "attached")
    config["max_concurrency"] = 1  # otherwise "b" may be said first
    messages: list[AnyMessage] = [HumanMessage("first"), HumanMessage("second")]
    for _ in range(2):
        graph.invoke({"messages": messages}, config, durability="exit")
        clock.advance(minutes=1)
        messages = [HumanMessage("third")]
    recorded, answers = sessions.get("t").messages(), ["you said a", "you said b"]
    assert [m.text for m in recorded] == ["first", "second", *answers, "third", *answers]
    assert [m.created_at for m in recorded] == sorted(m.created_at for m in recorded)
    numbers = [message.seq for message in recorded]  # those of a step's answers are in the order of their arrival
    assert [*numbers[:2], *sorted(numbers[2:4]), numbers[4], *sorted(numbers[5:])] == sorted(numbers)


def test_a_first_node_sees_its_runs_record_before_the_checkpoint_of_the_input_is_stored(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_looked, seen = threading.Event(), list[tuple[str, str]]()

    def look(_: MessagesState) -> dict[str, Any]:
        session = sessions.get("t")
        seen.append((session.messages()[-1].text, session.runs()[-1].outcome))
        has_looked.set()
        return {"messages": [AIMessage("seen")]}

    def late(store: Callable[..., Any], *args: Any) -> Any:
        assert has_looked.wait(60)
        return store(*args)

    graph = sessions.attach(StateGraph(MessagesState).add_node(look).add_edge(START, "look").compile())
    graph.invoke(human("first"), sessions.config("t"))
    has_looked.clear()
    for name in ("put", "put_writes"):
        monkeypatch.setattr(sessions.checkpointer, name, partial(late, getattr(sessions.checkpointer, name)))
    graph.invoke(human("second"), sessions.config("t"))
    assert seen == [("first", "running"), ("second", "running")]
