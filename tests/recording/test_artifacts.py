"""What tools make for their callers and not for the model, and values of any class that pass by."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import MagicMock
from uuid import UUID

import numpy
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel
from typing_extensions import TypedDict

from session_middleware import Sessions, UnserializableValue
from session_middleware.storage.record_entries import OF_MEMORY
from tests.support.agents import human
from tests.support.pairwise import ENGINES, pairwise


class Proxy:
    """Stands for something far away. It may be shown; LangGraph may ask it anything else, and we may not."""

    def __getattribute__(self, name: str) -> Any:
        forbid(f"asked for {name}")
        return object.__getattribute__(self, name)

    def __bool__(self) -> bool:
        forbid("asked whether it is true")
        return True

    def __eq__(self, other: object) -> bool:
        forbid("compared")
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "a proxy"


def forbid(what: str) -> None:
    caller = sys._getframe(2).f_globals["__name__"]
    if caller.startswith("session_middleware"):
        raise AssertionError(f"{caller}: it was {what}")


class Frame(Proxy):
    """A table."""


STORABLE: dict[str, tuple[Any, Any]] = {
    "a list": ([1, 2], [1, 2]),
    "an array": (numpy.arange(3), [0, 1, 2]),
    "an array in a dict": ({"rows": numpy.arange(2)}, {"rows": [0, 1]}),
    "an array where our own mark would be": ({next(iter(OF_MEMORY)): numpy.arange(2)}, {next(iter(OF_MEMORY)): [0, 1]}),
    "nothing much": (0, 0),
    "an empty list": ([], []),
    "bytes": (b"x", {"__repr__": "b'x'", "__type__": "bytes"}),
}
ANY = {
    **STORABLE,
    "a number of numpy": (numpy.float64(2.5), 2.5),
    "a table": (Frame(), {"__repr__": "a proxy", "__type__": "Frame"}),
    "an object": (Ellipsis, {"__repr__": "Ellipsis", "__type__": "ellipsis"}),
}


@pytest.fixture(params=["invoke", "ainvoke"])
def invoke(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def call(graph: Any, *given: Any) -> Any:
        return graph.invoke(*given) if request.param == "invoke" else asyncio.run(graph.ainvoke(*given))

    return call


def request(call_id: str = "c1") -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "look", "args": {"x": 1}, "id": call_id}])


def looking(artifact: Any, *, by_node: bool) -> StateGraph[Any]:
    """Asks for a tool, which is run by LangGraph's node, or by one that tells nobody of it; then says a word."""

    @tool(response_format="content_and_artifact")
    def look(x: int) -> tuple[str, Any]:
        """Look."""
        return "seen", artifact

    def answer(state: MessagesState) -> Any:
        return {"messages": [ToolMessage("seen", tool_call_id="c1", name="look", artifact=artifact)]}

    builder = StateGraph(MessagesState)
    builder.add_sequence(
        [
            ("ask", lambda state: {"messages": [request()]}),
            ("tools", ToolNode([look]) if by_node else answer),  # type: ignore[list-item]
            ("say", lambda state: {"messages": [AIMessage("done")]}),
        ]
    )
    return builder.add_edge(START, "ask")


def watched(sessions: Sessions, mode: str, builder: Any) -> tuple[Any, Any]:
    config: Any = sessions.config("t")
    if mode == "attach":
        return sessions.attach(builder.compile()), config
    if mode == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer), config
    return builder.compile(), {**config, "callbacks": [sessions.recorder]}


@pairwise(
    mode=["attach", "checkpointer", "recorder"],
    name=STORABLE,
    by_node=[True, False],
    invoke=["invoke", "ainvoke"],
    each_engine=ENGINES,
)
def test_an_artifact_is_kept_and_takes_no_message_with_it(
    sessions: Sessions, mode: str, name: str, by_node: bool, invoke: Callable[..., Any]
) -> None:
    artifact, kept = ANY[name]
    graph, config = watched(sessions, mode, looking(artifact, by_node=by_node))
    invoke(graph, human("hi"), config)
    session = sessions.get("t")
    assert [(m.role, m.text) for m in session.messages()] == [
        ("user", "hi"),
        ("assistant", ""),
        ("tool", "seen"),
        ("assistant", "done"),
    ]
    assert [m.flags for m in session.messages()] == [()] * 4
    (call,) = session.tool_calls()
    assert (call.name, call.arguments, call.result, call.status) == ("look", {"x": 1}, "seen", "ok")
    assert call.artifact == kept


@pairwise(
    name=[name for name in ANY if name not in STORABLE],
    by_node=[True, False],
    invoke=["invoke", "ainvoke"],
    each_engine=ENGINES,
)
def test_the_recorder_alone_keeps_an_artifact_that_no_checkpoint_can_hold(
    sessions: Sessions, name: str, by_node: bool, invoke: Callable[..., Any]
) -> None:
    test_an_artifact_is_kept_and_takes_no_message_with_it(sessions, "recorder", name, by_node, invoke)


@pytest.mark.parametrize("name", ANY)
def test_an_artifact_is_kept_of_what_is_recorded_by_hand(sessions: Sessions, name: str) -> None:
    artifact, kept = ANY[name]
    session = sessions.open("t")

    @session.tool
    def look(x: int) -> str:
        return "seen"

    def answer(call_id: str) -> ToolMessage:
        return ToolMessage("seen", tool_call_id=call_id, artifact=artifact)

    session.add_history([HumanMessage("look"), request("passed"), answer("passed"), AIMessage("done")])
    session.add(request("added"))
    session.add(answer("added"))
    session.record_tool("look", {"x": 1}, answer("recorded"), tool_call_id="recorded")
    with session:
        session.add(request("executed"))
        look(x=1, tool_call_id="executed")
        session.add(answer("executed"))
    session.add({"role": "tool", "tool_call_id": "a dict", "content": "seen", "artifact": artifact})
    calls = session.tool_calls()
    assert [call.tool_call_id for call in calls] == ["passed", "added", "recorded", "executed", "a dict"]
    assert [call.artifact for call in calls] == [kept] * 5
    assert [message.text for message in session.messages()].count("seen") == 4


def test_an_artifact_is_redacted_and_withheld_as_a_result_is(tmp_path: Path) -> None:
    for settings, kept in (({"redact": ["emails"]}, {"to": "[redacted email]"}), ({"record": ["messages"]}, None)):
        with Sessions(tmp_path / f"{next(iter(settings))}.db", **settings) as sessions:  # type: ignore[arg-type]
            session = sessions.open("t")
            session.add(request())
            session.add(ToolMessage("seen", tool_call_id="c1", artifact={"to": "a@b.com"}))
            assert session.tool_calls()[0].artifact == kept


# Values that pass by


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    thing: Any
    things: list[Any]


@pytest.mark.parametrize("by_command", [False, True])
def test_nothing_is_called_on_what_a_graph_holds_beside_its_messages(
    sessions: Sessions, by_command: bool, invoke: Callable[..., Any]
) -> None:
    mock = MagicMock(spec=AIMessage)

    def node(state: State) -> Any:
        update = {"thing": Proxy(), "things": [mock, Proxy()], "messages": [AIMessage("hello")]}
        return Command(update=update) if by_command else update

    builder = StateGraph(State).add_node("node", node).add_edge(START, "node")
    graph, config = watched(sessions, "recorder", builder)
    invoke(graph, {"messages": "hi", "thing": mock, "things": [Proxy()]}, config)
    assert [message.text for message in sessions.get("t").messages()] == ["hi", "hello"]
    assert mock.mock_calls == []


@pairwise(
    mode=["attach", "checkpointer"],
    spec=[None, Command, dict, UUID],
    in_message=[False, True],
    invoke=["invoke", "ainvoke"],
    each_engine=ENGINES,
)
def test_a_mock_in_a_state_that_is_stored_is_refused_and_asked_nothing(
    sessions: Sessions, mode: str, spec: Any, in_message: bool, invoke: Callable[..., Any]
) -> None:
    mock = MagicMock(spec=spec)

    def node(state: State) -> Any:
        return {"messages": [AIMessage("hello", response_metadata={"by": mock})]} if in_message else {"thing": mock}

    graph, config = watched(sessions, mode, StateGraph(State).add_node("node", node).add_edge(START, "node"))
    with pytest.raises(UnserializableValue, match="MagicMock"):
        invoke(graph, {"messages": "hi"}, config)
    assert mock.mock_calls == []


class Made:
    """Answers for any attribute, as a proxy of something far away does."""

    def __init__(self, **own: Any) -> None:
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: forbid_all(name)


class Wrapper(Made):
    """Hands out what another object has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)


class Address(IPv4Address):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Thing(BaseModel):
    size: int = 1


def forbid_all(name: str) -> Any:
    raise AssertionError(f"{name} was called")


MADE_UP: dict[str, tuple[Any, Any]] = {
    "a subclass of what can be stored": (Address("10.0.0.1"), IPv4Address("10.0.0.1")),
    "a wrapper of a model": (Wrapper(inner=Thing()), {"size": 1}),
    "its own method": (Wrapper(inner=None, model_dump=lambda: {"size": 2}), {"size": 2}),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_a_value_with_attributes_of_its_making_is_stored_where_langgraph_stores_it(
    sessions: Sessions, name: str, invoke: Callable[..., Any]
) -> None:
    value, stored = MADE_UP[name]
    builder = StateGraph(State).add_node("node", lambda state: {"thing": value}).add_edge(START, "node")
    graph, config = watched(sessions, "checkpointer", builder)
    invoke(graph, {"messages": "hi"}, config)
    assert str(graph.get_state(config).values["thing"]) == str(stored)


def test_a_method_that_a_value_makes_up_is_not_called(sessions: Sessions, invoke: Callable[..., Any]) -> None:
    builder = StateGraph(State).add_node("node", lambda state: {"thing": Made()}).add_edge(START, "node")
    graph, config = watched(sessions, "checkpointer", builder)
    with pytest.raises(UnserializableValue, match="Made") as refused:
        invoke(graph, {"messages": "hi"}, config)
    assert "was called" not in str(refused.value)


RESULTS: dict[str, Any] = {
    "a mock": MagicMock(),
    "a mock of a message": MagicMock(spec=ToolMessage),
    "a mock of a command": MagicMock(spec=Command),
    "a mock of a dict": MagicMock(spec=dict),
    "a proxy": Proxy(),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("is_async", [False, True])
def test_nothing_is_called_on_what_a_tool_is_given_and_gives_back(
    sessions: Sessions, name: str, is_async: bool
) -> None:
    result = RESULTS[name]
    session = sessions.open("t")

    @session.tool
    def fetch(what: Any) -> Any:
        return result

    @session.tool(name="fetch")
    async def afetch(what: Any) -> Any:
        return result

    @tool
    def fetching(what: Any) -> Any:
        """Fetch."""
        return result

    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    came = asyncio.run(afetch(result)) if is_async else fetch(result)
    assert came is result
    session.record_tool("fetch", {"what": result}, result)
    assert (
        asyncio.run(fetching.ainvoke({"what": 1}, config)) if is_async else fetching.invoke({"what": 1}, config)
    ) is result
    calls = session.tool_calls()
    assert [call.status for call in calls] == ["ok"] * 3
    assert {call.result["__type__"] for call in calls} == {type(result).__name__}
    if type(result) is MagicMock:
        assert result.mock_calls == []


@pytest.mark.parametrize("is_async", [False, True])
def test_an_id_of_a_call_that_is_no_text_is_asked_for_its_repr_only(sessions: Sessions, is_async: bool) -> None:
    session, call_id = sessions.open("t"), MagicMock()

    @session.tool
    def fetch(what: str) -> str:
        return what

    @session.tool(name="fetch")
    async def afetch(what: str) -> str:
        return what

    came = asyncio.run(afetch("tea", tool_call_id=call_id)) if is_async else fetch("tea", tool_call_id=call_id)
    assert came == "tea"
    assert [call.tool_call_id for call in session.tool_calls()] == [repr(call_id)]
    assert call_id.mock_calls == []


@pytest.mark.parametrize("key", ["langgraph_node", "langgraph_step", "checkpoint_ns", "checkpoint_id"])
def test_what_is_no_text_in_the_metadata_of_a_model_call_is_asked_nothing(sessions: Sessions, key: str) -> None:
    odd, config = MagicMock(), sessions.config("t")
    metadata: Any = {**config.get("metadata", {}), key: odd}
    model = GenericFakeChatModel(messages=iter([AIMessage("hello")]))
    model.invoke("hi", {**config, "callbacks": [sessions.recorder], "metadata": metadata})
    (call,) = sessions.get("t").model_calls()
    assert (call.node, call.error) == (None, None)
    assert odd.mock_calls == []
    assert sessions.recorder.faults == 0


def test_nothing_is_called_on_a_key_that_is_no_text(sessions: Sessions) -> None:
    mock = MagicMock()
    given = {mock: 1, 2: 3, (4, 5): 6, numpy.int64(7): 8}
    mock.reset_mock()
    session = sessions.open("t")
    session.record_tool("fetch", given, {"deep": [given]})
    (call,) = session.tool_calls()
    assert call.arguments == call.result["deep"][0] == {repr(mock): 1, "2": 3, "(4, 5)": 6, "7": 8}
    assert mock.mock_calls == []


@pytest.mark.parametrize("odd", [3, ["x"], numpy.arange(3), MagicMock(), MagicMock(spec=ValueError)])
def test_an_error_and_an_id_of_any_class_are_recorded_as_what_they_show(sessions: Sessions, odd: Any) -> None:
    session = sessions.open("t")
    session.record_tool("fetch", {}, None, error=odd, tool_call_id=odd)
    session.record_model_call("gpt-4o-mini", error=odd)
    (call,) = session.tool_calls()
    assert (call.status, call.error, call.tool_call_id) == ("error", repr(odd), repr(odd))
    assert session.model_calls()[0].error == repr(odd)
    assert not getattr(odd, "mock_calls", ())
