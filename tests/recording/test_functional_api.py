"""Graphs whose state is one value: LangGraph's functional API, lists of messages, and values that are not messages."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, Any

import numpy
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph, add_messages
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.storage.jsonable import is_nothing
from tests.support import agents
from tests.support.pairwise import ENGINES, pairwise

PARTS = ["attached", "checkpointer", "recorder and another's checkpointer"]
TURNS = ["one", "two", "one", "one"]
SAID = [text for turn in TURNS for text in (turn, f"you said {turn}")]


class Touchy(BaseModel):
    """A value that does not like to be asked whether it is true, or the same as another."""

    x: int = 1

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("like nothing else")

    __hash__ = None  # type: ignore[assignment]


pytestmark = [pytest.mark.sessions(allowed_types=[Touchy]), pytest.mark.usefixtures("each_engine")]


Build = Callable[[Any], Any]


def reply(messages: list[Any]) -> AIMessage:
    last = messages[-1]
    return AIMessage(f"you said {last['content'] if isinstance(last, dict) else last.text}")


def with_a_task(saver: Any) -> Any:
    @task
    def answer(messages: list[Any]) -> AIMessage:
        return reply(messages)

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: list[Any] | None = None) -> list[Any]:
        messages = [*(previous or []), *given]
        return [*messages, answer(messages).result()]

    return flow


def without_tasks(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: list[Any] | None = None) -> list[Any]:
        messages = [*(previous or []), *given]
        return [*messages, reply(messages)]

    return flow


def with_final(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: list[Any] | None = None) -> Any:
        messages = [*(previous or []), *given]
        answer = reply(messages)
        return entrypoint.final(value=answer, save=[*messages, answer])

    return flow


def answering_with_a_text(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: dict[str, Any] | None = None) -> Any:
        messages = [*(previous or {"messages": []})["messages"], *given]
        answer = reply(messages)
        return entrypoint.final(value=answer.text, save={"messages": [*messages, answer], "seen": numpy.arange(2)})

    return flow


def adding_messages(saver: Any) -> Any:
    """As LangGraph's documentation has it: the messages get their ids on the way."""

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: Any = None) -> Any:
        messages: Any = add_messages(previous or [], given)
        answer = reply(messages)
        return entrypoint.final(value=answer, save=add_messages(messages, [answer]))

    return flow


def asking_a_model(saver: Any) -> Any:
    """As `adding_messages`, with a model in a task."""
    model = agents.Scripted(has_tools=False)

    @task
    def ask(messages: Any) -> Any:
        return model.invoke(messages)

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: Any = None) -> Any:
        messages: Any = add_messages(previous or [], given)
        answer = ask(messages).result()
        return entrypoint.final(value=answer, save=add_messages(messages, [answer]))

    return flow


def answering_only(saver: Any) -> Any:
    """Nothing of what it is given is kept."""

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any]) -> list[Any]:
        return [reply(given)]

    return flow


def answering_behind_the_question(saver: Any) -> Any:
    """Nor is anything here, though each run gives back what it is given as well."""

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: int | None = None) -> Any:
        return entrypoint.final(value=[*given, reply(given)], save=(previous or 0) + 1)

    return flow


def calling_another_flow(saver: Any) -> Any:
    @entrypoint()
    def inner(messages: list[Any]) -> list[Any]:
        return [*messages, reply(messages)]

    @entrypoint(checkpointer=saver)
    def flow(given: list[Any], *, previous: list[Any] | None = None) -> Any:
        return inner.invoke([*(previous or []), *given])

    return flow


def saving_a_dict(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any], *, previous: dict[str, Any] | None = None) -> dict[str, Any]:
        messages = [*(previous["messages"] if previous else []), *given["messages"]]
        return {"messages": [*messages, reply(messages)], "turns": len(messages)}

    return flow


def answering_a_dict(saver: Any) -> Any:
    """The question is neither saved nor returned."""

    @task
    def answer(messages: list[Any]) -> AIMessage:
        return reply(messages)

    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any]) -> AIMessage:
        return answer(given["messages"]).result()

    return flow


def answering_a_list(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: list[Any]) -> AIMessage:
        return reply(given)

    return flow


def answering_in_a_dict(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [reply(given["messages"])], "count": 1}

    return flow


def answering_behind_the_question_in_a_dict(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [*given["messages"], reply(given["messages"])]}

    return flow


def returning_a_dict_that_is_not_saved(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any], *, previous: int | None = None) -> Any:
        answered = {"messages": [*given["messages"], reply(given["messages"])]}
        return entrypoint.final(value=answered, save=(previous or 0) + 1)

    return flow


def saving_a_list_for_a_dict(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: dict[str, Any], *, previous: list[Any] | None = None) -> Any:
        messages = [*(previous or []), *given["messages"]]
        answer = reply(messages)
        return entrypoint.final(value={"answer": answer}, save=[*messages, answer])

    return flow


def of_one_message(saver: Any) -> Any:
    @entrypoint(checkpointer=saver)
    def flow(given: Any) -> Any:
        return reply([given])

    return flow


def giving_back_the_question(saver: Any) -> Any:
    """And the answer, of which the next run is given neither."""

    @entrypoint(checkpointer=saver)
    def flow(given: Any) -> list[Any]:
        question = HumanMessage(given) if isinstance(given, str) else given
        return [question, reply([question])]

    return flow


def list_as_state(saver: Any) -> Any:
    builder: Any = StateGraph(Annotated[list, operator.add])
    return (
        builder.add_node("answer", lambda state: [reply(state)]).add_edge(START, "answer").compile(checkpointer=saver)
    )


def list_with_ids_as_state(saver: Any) -> Any:
    builder: Any = StateGraph(Annotated[list, add_messages])
    return (
        builder.add_node("answer", lambda state: [reply(state)]).add_edge(START, "answer").compile(checkpointer=saver)
    )


def two_lists(saver: Any) -> Any:
    """Which both get what is said."""
    state: Any = TypedDict("state", dict.fromkeys(("talk", "log"), Annotated[list[Any], operator.add]))  # type: ignore[misc]

    def answer(state: Any) -> Any:
        said = [reply(state["talk"])]
        return {"talk": said, "log": [*state["talk"][-1:], *said]}

    return StateGraph(state).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)


def as_list(message: Any) -> Any:
    return [message]


def as_dict(message: Any) -> Any:
    return {"messages": [message]}


def as_talk(message: Any) -> Any:
    return {"talk": [message]}


def alone(message: Any) -> Any:
    return message


def as_text(message: Any) -> Any:
    return message.text


FLOWS: list[tuple[Build, Callable[[Any], Any]]] = [
    *((build, as_list) for build in (with_a_task, without_tasks, with_final, answering_with_a_text, answering_only)),
    *((build, as_list) for build in (answering_behind_the_question, calling_another_flow)),
    *((build, as_list) for build in (adding_messages, asking_a_model)),
    *((saving_a_dict, as_dict), (of_one_message, alone)),
    *((build, as_dict) for build in (answering_a_dict, answering_in_a_dict, saving_a_list_for_a_dict)),
    *((build, as_dict) for build in (answering_behind_the_question_in_a_dict, returning_a_dict_that_is_not_saved)),
    *((giving_back_the_question, alone), (giving_back_the_question, as_text)),
    *((list_as_state, as_list), (list_with_ids_as_state, as_list)),
]


def prepared(sessions: Sessions, build: Build, parts: str, session_id: str = "t") -> tuple[Any, Any]:
    config: Any = sessions.config(session_id)
    if parts == "attached":
        return sessions.attach(build(None)), config
    if parts == "checkpointer":
        return build(sessions.checkpointer), config
    config |= {"callbacks": [sessions.recorder]}
    return build(InMemorySaver() if "another" in parts else None), config


def texts(sessions: Sessions) -> list[str]:
    return [message.text for message in sessions.get("t").messages(branch="all", all_versions=True)]


def message_of(text: str, number: int, *, has_ids: bool) -> HumanMessage:
    return HumanMessage(text, id=f"h{number}" if has_ids else None)


@pairwise(
    parts=[*PARTS, "recorder"],
    flow=FLOWS,
    has_ids=[True, False],
    runner=[agents.invoke, agents.ainvoke],
    durability=["async", "sync", "exit"],
    each_engine=ENGINES,
)
async def test_each_message_of_a_flow_is_recorded_once(
    sessions: Sessions,
    parts: str,
    flow: tuple[Build, Callable[[Any], Any]],
    has_ids: bool,
    runner: agents.Runner,
    durability: str,
) -> None:
    build, shape = flow
    graph, config = prepared(sessions, build, parts)
    options: Any = {} if parts == "recorder" else {"durability": durability}
    for number, text in enumerate(TURNS):
        await runner(graph, shape(message_of(text, number, has_ids=has_ids)), config, **options)
    assert texts(sessions) == SAID
    recorded = sessions.get("t").messages()
    assert [message.role for message in recorded] == ["user", "assistant"] * len(TURNS)
    assert {message.checkpoint_ns for message in recorded if message.role == "user"} == {""}


def list_without_reducer(saver: Any) -> Any:
    builder: Any = StateGraph(list)
    builder.add_node("answer", lambda state: [*state, reply(state)])
    return builder.add_edge(START, "answer").compile(checkpointer=saver)


@pairwise(
    parts=[*PARTS, "recorder"],
    flow=[
        *((build, list) for build in (answering_only, answering_behind_the_question, list_without_reducer)),
        (answering_a_list, list),
        *((build, lambda talk: {"messages": talk}) for build in (answering_a_dict, answering_in_a_dict)),
        (answering_behind_the_question_in_a_dict, lambda talk: {"messages": talk}),
    ],
    turns=[TURNS, ["yes", "yes", "yes"]],
    runner=[agents.invoke, agents.ainvoke],
    durability=["async", "exit"],
    has_ids=[True, False],
    each_engine=ENGINES,
)
async def test_a_client_that_resends_the_whole_history_repeats_nothing(
    sessions: Sessions,
    parts: str,
    flow: tuple[Build, Callable[[Any], Any]],
    turns: list[str],
    runner: agents.Runner,
    durability: str,
    has_ids: bool,
) -> None:
    build, shape = flow
    graph, config = prepared(sessions, build, parts)
    options: Any = {} if parts == "recorder" else {"durability": durability}
    talk: list[BaseMessage] = []
    for number, text in enumerate(turns):
        talk.append(message_of(text, number, has_ids=has_ids))
        await runner(graph, shape([*talk]), config, **options)
        talk.append(AIMessage(f"you said {text}"))
    assert texts(sessions) == [message.text for message in talk]


@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
def test_a_fork_of_a_flow_has_what_was_said_before_it(sessions: Sessions, parts: str) -> None:
    graph, config = prepared(sessions, answering_behind_the_question_in_a_dict, parts)
    for text in ("one", "two"):
        graph.invoke({"messages": [HumanMessage(text)]}, config)
    ends = [state.config for state in graph.get_state_history(config) if not state.next]
    graph.invoke({"messages": [HumanMessage("other")]}, ends[1])
    session = sessions.get("t")
    assert [message.text for message in session.messages()] == ["one", "you said one", "other", "you said other"]
    assert [m.text for m in session.messages(branch="main")] == ["one", "you said one", "two", "you said two"]


@pytest.mark.parametrize("parts", [*PARTS, "recorder"])
def test_the_same_said_twice_at_once_is_two_messages(sessions: Sessions, parts: str) -> None:
    graph, config = prepared(sessions, without_tasks, parts)
    for _ in range(2):
        graph.invoke([HumanMessage("yes"), HumanMessage("yes")], config)
    assert texts(sessions) == ["yes", "yes", "you said yes"] * 2


@pytest.mark.parametrize("parts", [*PARTS, "recorder"])
def test_dicts_in_openais_format_are_messages_of_a_flow_too(sessions: Sessions, parts: str) -> None:
    graph, config = prepared(sessions, list_as_state, parts)
    for text in TURNS:
        graph.invoke([{"role": "user", "content": text}], config)
    assert texts(sessions) == SAID


@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
def test_a_message_without_an_id_that_goes_into_two_lists_is_one(sessions: Sessions, parts: str) -> None:
    graph, config = prepared(sessions, two_lists, parts)
    for text in ("one", "two"):
        graph.invoke({"talk": [HumanMessage(text)]}, config)
    assert [text for text in texts(sessions) if text.startswith("you")] == ["you said one", "you said two"]


@pytest.mark.parametrize("parts", PARTS)
def test_a_flow_that_stops_to_ask_goes_on_and_says_each_message_once(sessions: Sessions, parts: str) -> None:
    def asking(saver: Any) -> Any:
        @entrypoint(checkpointer=saver)
        def flow(given: list[BaseMessage], *, previous: Any = None) -> list[BaseMessage]:
            return [*(previous or []), *given, AIMessage(f"approved: {interrupt('may I?')}")]

        return flow

    graph, config = prepared(sessions, asking, parts)
    for text in ("one", "two"):
        graph.invoke([HumanMessage(text)], config)
        graph.invoke(Command(resume="yes"), config)
    assert texts(sessions) == [said for text in ("one", "two") for said in (text, "approved: yes")]
    asked = [(one.value, one.answer, one.node) for one in sessions.get("t").questions()]
    assert asked == [("may I?", "yes", "flow")] * 2


@pytest.mark.parametrize("parts", PARTS)
def test_what_a_flow_saves_beside_its_answer_is_recorded(sessions: Sessions, parts: str) -> None:
    def two_answers(saver: Any) -> Any:
        @entrypoint(checkpointer=saver)
        def flow(given: list[Any], *, previous: Any = None) -> Any:
            answers = [reply(given), AIMessage(f"approved: {interrupt('may I?')}"), AIMessage("done")]
            return entrypoint.final(value=answers[-1], save=[*(previous or []), *given, *answers])

        return flow

    graph, config = prepared(sessions, two_answers, parts)
    for _ in range(2):
        graph.invoke([HumanMessage("one")], config)
        graph.invoke(Command(resume="yes"), config)
    expected = ["one", "you said one", "approved: yes", "done"] * 2
    recorded = sessions.get("t").messages()
    assert [message.text for message in recorded] == expected


# Values that are not messages

VALUES = {"array": numpy.arange(3), "empty array": numpy.array([]), "touchy": Touchy()}
SCALARS = [numpy.datetime64("2026-01-02T03:04:05.123456789"), numpy.datetime64("NaT"), numpy.bool_(False)]
SHAPES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "list": lambda value: [value],
    "tuple": lambda value: (value, value),
    "dict": lambda value: {"value": value, "role": value},
    "message": lambda value: [HumanMessage([{"type": "text", "text": "see", "data": value}])],
    "beside a message": lambda value: [HumanMessage("see", additional_kwargs={"data": value})],
}


def echo(saver: Any) -> Any:
    @task
    def same(value: Any) -> Any:
        return value

    @entrypoint(checkpointer=saver)
    def flow(value: Any, *, previous: Any = None) -> Any:
        return entrypoint.final(value=value, save=same(value).result())

    return flow


@pairwise(
    parts=[*PARTS, "recorder"],
    value=VALUES,
    shape=SHAPES,
    runner=[agents.invoke, agents.ainvoke],
    each_engine=ENGINES,
)
async def test_a_flow_may_be_given_and_give_back_values_that_have_no_truth(
    sessions: Sessions, parts: str, value: str, shape: str, runner: agents.Runner
) -> None:
    graph, config = prepared(sessions, echo, parts)
    for _ in range(2):
        await runner(graph, SHAPES[shape](VALUES[value]), config)
    assert [run.outcome for run in sessions.get("t").runs()] == ([] if parts == "checkpointer" else ["ok", "ok"])


@pairwise(parts=["attached", "checkpointer", "recorder"], value=SCALARS, shape=SHAPES, each_engine=ENGINES)
def test_a_scalar_of_numpy_is_recorded_and_read_back_as_it_was(
    sessions: Sessions, parts: str, value: Any, shape: str
) -> None:
    graph, config = prepared(sessions, echo, parts)
    graph.invoke(SHAPES[shape](value), config)
    assert texts(sessions) == (["see"] if "message" in shape else [])
    if parts != "recorder":
        assert repr(value) in repr(graph.get_state(config).values)


@pairwise(parts=["attached", "checkpointer"], value=VALUES, each_engine=ENGINES)
def test_a_state_may_hold_such_values_beside_its_messages(sessions: Sessions, parts: str, value: str) -> None:
    state: Any = TypedDict(  # type: ignore[misc]
        "state",
        {"messages": Annotated[list[Any], add_messages], "frame": Any, "frames": Annotated[list[Any], operator.add]},
    )

    def build(saver: Any) -> Any:
        def answer(given: Any) -> Any:
            frame = given["frame"]
            return {"messages": [AIMessage("seen")], "frames": [frame, {"role": frame, "content": ""}, {"id": frame}]}

        return StateGraph(state).add_node("answer", answer).add_edge(START, "answer").compile(checkpointer=saver)

    graph, config = prepared(sessions, build, parts)
    for _ in range(2):
        graph.invoke({"messages": [HumanMessage("look")], "frame": VALUES[value]}, config)
    assert texts(sessions) == ["look", "seen"] * 2


@pytest.mark.parametrize("value", VALUES)
def test_a_person_may_answer_with_such_a_value(sessions: Sessions, value: str) -> None:
    def asking(saver: Any) -> Any:
        @entrypoint(checkpointer=saver)
        def flow(given: Any) -> Any:
            return interrupt("which?")

        return flow

    graph, config = prepared(sessions, asking, "attached")
    graph.invoke("go", config)
    graph.invoke(Command(resume=VALUES[value]), config)
    assert [run.outcome for run in sessions.get("t").runs()] == ["waiting", "ok"]


@pytest.mark.parametrize(("value", "nothing"), [(None, True), ({}, True), ("", True), (0, False), (Touchy(), False)])
def test_nothing_is_none_or_empty(value: Any, nothing: bool) -> None:
    assert is_nothing(value) is nothing
