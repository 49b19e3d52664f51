"""A session's agent is run again with the recorded answers, and the report says where the run left the record."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, ToolException, tool
from langgraph.types import Command, Send
from pydantic import BaseModel

from session_middleware import InvalidArgument, NotOnRecord, SessionNotFound, Sessions
from tests.support.agents import Saying, Scripted, asks, failing, look_up, price, tool_graph


@tool(response_format="content_and_artifact")
def chart(x: int) -> tuple[str, Any]:
    """Answers with an artifact."""
    return f"drew {x}", {"points": [x]}


@tool
def hand_over(x: int, tool_call_id: Annotated[str, InjectedToolCallId], runtime: ToolRuntime) -> Command[Any]:
    """Updates the state."""
    assert runtime.tool_call_id == tool_call_id
    return Command(update={"messages": [ToolMessage("handed over", tool_call_id=tool_call_id)]})


@tool
def handled(x: int) -> str:
    """Fails, and says so itself."""
    raise ToolException("not today")


handled.handle_tool_error = True


class Place(BaseModel):
    city: str


class Visit(BaseTool):
    """A tool that is a class, with a schema of its own."""

    name: str = "visit"
    description: str = "Visits a place."
    args_schema: type[BaseModel] = Place

    def _run(self, city: str) -> str:
        return f"was in {city}"


TOOLS = [chart, hand_over, handled, Visit(), look_up, failing]
SAYS = [
    asks(("chart", {"x": 1}), id="1"),
    asks(("hand_over", {"x": 1}), id="2"),
    asks(("handled", {"x": 1}), id="3"),
    asks(("visit", {"city": "Rome"}), id="4"),
    asks(("visit", {}), id="5"),  # invalid
    asks(("failing", {"thing": "tea"}), id="6"),
    AIMessage("that was all", usage_metadata={"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}),
]


def conversation(sessions: Sessions, session_id: str) -> list[Any]:
    messages = [(m.role, m.text, m.tool_calls, m.tool_call_id, m.status) for m in sessions.get(session_id).messages()]
    calls = [
        (c.name, c.arguments, c.result, c.artifact, c.status, c.error) for c in sessions.get(session_id).tool_calls()
    ]
    return [*messages, *calls]


def must_not_run(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a replayed tool was executed")


def inert(original: BaseTool) -> BaseTool:
    """The tool with a function that must not run."""
    if isinstance(original, Visit):
        return type("Inert", (Visit,), {"_run": must_not_run})()
    return original.model_copy(update={"func": must_not_run})


@pytest.mark.parametrize("is_async", [False, True])
def test_the_replayed_agent_says_and_does_what_is_on_record(
    each_engine: str, sessions: Sessions, *, is_async: bool
) -> None:
    tool_graph_ = sessions.attach(tool_graph(*TOOLS, model=Saying(says=list(SAYS))))
    tool_graph_.invoke({"messages": "hi"}, sessions.config("t", user_id="ann"))
    replay = asyncio.run(sessions.for_user("ann").areplay("t"))
    tools = replay.tools([look_up if each is look_up else inert(each) for each in TOOLS])
    assert [(one.name, one.tool_call_schema.model_json_schema()) for one in tools] == [
        (one.name, one.tool_call_schema.model_json_schema()) for one in TOOLS
    ]
    again = sessions.attach(tool_graph(*tools, model=replay.model()))
    for message in replay.inputs:
        if is_async:
            asyncio.run(again.ainvoke({"messages": [message]}, sessions.config("again", user_id="ann")))
        else:
            again.invoke({"messages": [message]}, sessions.config("again", user_id="ann"))
    assert conversation(sessions, "again") == conversation(sessions, "t")
    report = replay.report()
    assert report.followed
    assert (report.recorded, report.answered, report.answers, report.answers_given) == (6, 6, 7, 7)
    assert "6 of 6 recorded tool calls answered" in str(report)
    costs = sessions.get("again").stats()
    assert (costs.cost, costs.input_tokens, costs.unpriced_count) == (0, 0, 0)
    with pytest.raises(SessionNotFound):
        sessions.for_user("eve").replay("t")


def test_equal_calls_are_answered_in_the_order_of_the_record(sessions: Sessions) -> None:
    with sessions.open("t") as session:
        for result in ("first", "second"):
            session.record_tool("look_up", {"thing": "tea"}, result)
        session.record_tool("look_up", {"thing": "milk"}, error=KeyError("milk"))
        session.record_tool("look_up", {"thing": "jam"}, error="OwnError: no jam")
        session.record_tool("look_up", {"thing": "rum"}, status="refused")
    replay = sessions.replay("t")
    (replayed,) = replay.tools([look_up])
    assert [replayed.invoke({"thing": "tea"}) for _ in range(2)] == ["first", "second"]
    with pytest.raises(NotOnRecord, match=r'once more: look_up\(thing="tea"\) \(seq \d\) has answered already'):
        replayed.invoke({"thing": "tea"})
    with pytest.raises(KeyError) as raised:
        replayed.invoke({"thing": "milk"})
    assert str(raised.value) == "'milk'"
    with pytest.raises(RuntimeError, match="no jam") as own:
        replayed.invoke({"thing": "jam"})
    assert type(own.value).__name__ == "OwnError"
    with pytest.raises(NotOnRecord, match="it was refused, and not executed"):
        replayed.invoke({"thing": "rum"})
    assert [(departure.kind, departure.text) for departure in replay.report().departures] == [
        ("not on record", 'look_up(thing="tea")'),
        ("no answer", 'look_up(thing="rum"): it was refused, and not executed'),
    ]


def test_a_call_that_is_not_on_record_ends_the_run_whatever_handles_errors(sessions: Sessions) -> None:
    sessions.attach(tool_graph()).invoke({"messages": "look up tea"}, sessions.config("t"))
    replay = sessions.replay("t")
    graph = sessions.attach(tool_graph(*replay.tools([inert(look_up)]), model=Scripted()))
    with pytest.raises(NotOnRecord, match=r'nearest recorded call is look_up\(thing="tea"\) \(seq \d\)') as refused:
        graph.invoke({"messages": "look up milk"}, sessions.config("other"))
    assert refused.value.session_id == "t"
    assert sessions.get("other").tool_calls() == []
    report = replay.report()
    assert [(departure.kind, departure.text) for departure in report.departures] == [
        ("other arguments", 'look_up: thing="tea" → "milk"')
    ]
    assert str(report).splitlines()[1:] == ['  other arguments: look_up: thing="tea" → "milk"']


def test_calls_that_are_not_on_record_are_executed_on_request(sessions: Sessions) -> None:
    sessions.attach(create_agent(Scripted(), [look_up, price])).invoke({"messages": "both tea"}, sessions.config("t"))
    replay = sessions.replay("t", on_missing="run")
    again = create_agent(Scripted(), replay.tools([look_up, price, hand_over]))
    said = again.invoke({"messages": "both milk"})["messages"]
    assert [message.text for message in said if isinstance(message, ToolMessage)] == ["milk is nice", "4"]
    injected = create_agent(Saying(says=[asks(("hand_over", {"x": 2})), AIMessage("ok")]), replay.tools([hand_over]))
    assert injected.invoke({"messages": "go"})["messages"][-2].text == "handed over"
    assert {departure.kind for departure in replay.report().departures} == {"other arguments", "not on record"}


def test_the_report_says_what_was_not_made_and_what_came_in_another_order(sessions: Sessions) -> None:
    with sessions.open("t") as session:
        for thing in ("<b>tea</b>", "milk", "jam"):
            session.record_tool("look_up", {"thing": thing}, "fine")
    replay = sessions.replay("t")
    (replayed,) = replay.tools([look_up])
    replayed.invoke({"thing": "milk"})
    replayed.invoke({"thing": "<b>tea</b>"})
    replay.model()
    report = replay.report()
    assert [(departure.kind, departure.text) for departure in report.departures] == [
        ("not made", 'look_up(thing="jam")'),
        ("other order", 'look_up(thing="<b>tea</b>") after look_up(thing="milk")'),
    ]
    assert "<b>" not in report._repr_html_()
    assert "&lt;b&gt;tea" in report._repr_html_()


def test_a_call_whose_arguments_the_tool_does_not_accept_any_more_is_reported(sessions: Sessions) -> None:
    sessions.attach(create_agent(Scripted(), [look_up])).invoke({"messages": "look up tea"}, sessions.config("t"))

    @tool("look_up")
    def changed(thing: int) -> str:
        """What a thing is."""
        return ""

    replay = sessions.replay("t")
    create_agent(replay.model(), replay.tools([changed])).invoke({"messages": replay.inputs})
    (departure,) = replay.report().departures
    assert departure.kind == "no answer"
    assert "its arguments are not valid any more (ValidationError: 1 validation error" in departure.text


@pytest.mark.sessions(redact=("emails",), record={"price": {"tool_arguments"}})
def test_a_redacted_record_answers_with_what_it_has(sessions: Sessions, open_sessions: Any) -> None:
    model = Saying(says=[asks(("look_up", {"thing": "a@b.org"})), asks(("price", {"thing": "tea"})), AIMessage("ok")])
    sessions.attach(create_agent(model, [look_up, price])).invoke({"messages": "hi"}, sessions.config("t"))
    replay = sessions.replay("t")
    looks, prices = replay.tools([look_up, price])
    assert looks.invoke({"thing": "a@b.org"}) == "[redacted email] is nice"
    with pytest.raises(NotOnRecord, match="the setting record= withheld its result"):
        prices.invoke({"thing": "tea"})
    assert replay.report().redacted == 1
    (looks,) = open_sessions(redact=None).replay("t").tools([look_up])
    with pytest.raises(NotOnRecord, match="is redacted: open Sessions with the same redact= setting"):
        looks.invoke({"thing": "a@b.org"})


def test_a_command_whose_parts_were_not_recorded_is_not_guessed(sessions: Sessions) -> None:
    @tool
    def send(x: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Goes elsewhere."""
        return Command(update={"messages": [ToolMessage("ok", tool_call_id=tool_call_id)]}, goto=[Send("model", {})])

    with sessions.open("t") as session:
        session.record_tool("send", {"x": 1}, send.func(1, tool_call_id="1"))
    (replayed,) = sessions.replay("t").tools([send])
    with pytest.raises(NotOnRecord, match="the record has only the repr of a Send in its result"):
        replayed.invoke({"args": {"x": 1}, "id": "1", "name": "send", "type": "tool_call"})


def test_only_the_current_branch_is_replayed(sessions: Sessions) -> None:
    graph = sessions.attach(tool_graph())
    graph.invoke({"messages": [HumanMessage("look up tea", id="q")]}, sessions.config("t"))
    first = next(state for state in graph.get_state_history(sessions.config("t")) if state.next == ("__start__",))
    graph.invoke({"messages": "look up milk"}, first.config)
    replay = sessions.replay("t")
    assert [message.text for message in replay.inputs] == ["look up milk"]
    again = tool_graph(*replay.tools([inert(look_up)]), model=replay.model())
    again.invoke({"messages": replay.inputs})
    assert replay.report().followed


def test_the_model_streams_takes_tools_and_ends(sessions: Sessions) -> None:
    answers = [asks(("look_up", {"thing": "tea"})), AIMessage("it is  nice\n", response_metadata={"model_name": "m"})]
    graph = tool_graph(model=Saying(says=list(answers)))
    sessions.attach(graph).invoke({"messages": "hi"}, sessions.config("t"))
    replay = sessions.replay("t")
    model = replay.model().bind_tools([look_up])
    assert _joined(model.stream("x")).tool_calls == answers[0].tool_calls
    chunks = list(model.stream("y"))
    assert [chunk.text for chunk in chunks] == ["it ", "is  ", "nice\n", ""]
    with pytest.raises(NotOnRecord, match=r"a model was called for the 3\. time, and the record has 2 answers"):
        model.invoke("z")
    assert [departure.kind for departure in replay.report().departures] == ["not made", "calls of models"]


def _joined(chunks: Any) -> Any:
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


def test_arguments_of_replay_are_checked(sessions: Sessions) -> None:
    sessions.open("t")
    with pytest.raises(InvalidArgument, match="on_missing"):
        sessions.replay("t", on_missing="skip")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="tools"):
        sessions.replay("t").tools([3])  # type: ignore[list-item]
    with pytest.raises(SessionNotFound):
        sessions.replay("absent")
    provider_tool = {"type": "web_search"}
    assert sessions.replay("t").tools([provider_tool, len])[0] is provider_tool
