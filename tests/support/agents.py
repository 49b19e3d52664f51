"""Graphs as people build them, around a model that says what it is told to.

The model reads the last human message: ``"look up tea"`` asks for the tool `look_up`, ``"both tea"``
for two tools at once, ``"fail tea"`` and ``"break tea"`` for tools that raise, and anything else is
answered in words. After a tool has answered, it says so.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedState, ToolNode, tools_condition
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, PrivateAttr
from typing_extensions import TypedDict


class Scripted(BaseChatModel):
    """Answers by rule, calls tools with ids of its own, and counts what it was asked."""

    has_tools: bool = True
    _numbers: Any = PrivateAttr(default_factory=lambda: itertools.count(1))

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Scripted:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._reply(messages))])

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        metadata = {"model_name": "scripted-1"}
        last = messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"it said {last.text}", usage_metadata=usage, response_metadata=metadata)
        calls = [
            {"name": name, "args": {"thing": last.text.split()[-1]}, "id": f"call-{next(self._numbers)}"}
            for name in (_ASKED.get(last.text.split(" ")[0], ()) if self.has_tools else ())
        ]
        text = "" if calls else f"you said {last.text}"
        return AIMessage(text, tool_calls=calls, usage_metadata=usage, response_metadata=metadata)


class Saying(Scripted):
    """Says what it was told to say, one after the other, and keeps what it was asked."""

    says: list[AIMessage]
    _asked: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        self._asked.append(messages)
        return self.says.pop(0)

    @property
    def asked(self) -> list[list[BaseMessage]]:
        return self._asked


def asks(*calls: tuple[str, dict[str, Any]], id: str = "call_0") -> AIMessage:
    """A message that asks for tools, all with one id, as some adapters give them."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": id} for name, args in calls])


def requests_a_tool(messages: Any) -> bool:
    """Whether the last message is a model's that asks for tools."""
    return isinstance(messages, list) and bool(messages) and bool(getattr(messages[-1], "tool_calls", None))


def answered_at_once(messages: Sequence[BaseMessage]) -> bool:
    """Whether each call is followed by its answers and by nothing else, as model APIs demand."""
    due: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in due:
                return False
            due.remove(message.tool_call_id)
        elif due:
            return False
        elif isinstance(message, AIMessage):
            due = [str(call["id"]) for call in message.tool_calls]
    return not due


_ASKED = {
    "look": ["look_up"],
    "both": ["look_up", "price"],
    "fail": ["failing"],
    "break": ["failing"],
    "ask": ["asking"],
    "await": ["waiting"],
}


@tool
def look_up(thing: str) -> str:
    """What a thing is."""
    return f"{thing} is nice"


@tool
def price(thing: str) -> int:
    """What a thing costs."""
    return len(thing)


@tool
def failing(thing: str) -> str:
    """Never works."""
    raise RuntimeError(f"no {thing} today")


@tool
def asking(thing: str) -> str:
    """Asks a person first."""
    return f"{thing}: {interrupt(f'may I have {thing}?')}"


TOOLS = [look_up, price, failing, asking]


def chat() -> Any:
    """One node: a model, which has no tools to ask for."""
    model = Scripted(has_tools=False)

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return StateGraph(MessagesState).add_node("model", answer).add_edge(START, "model").compile()


def tool_graph(
    *extra: BaseTool, model: BaseChatModel | None = None, handle_tool_errors: bool = True, **compiled_with: Any
) -> Any:
    """The textbook loop of a model and a `ToolNode`."""
    model = model or Scripted()

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer)
    own = {tool.name for tool in extra}
    tools = [*extra, *(tool for tool in TOOLS if tool.name not in own)]
    builder.add_node("tools", ToolNode(tools, handle_tool_errors=handle_tool_errors))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile(**compiled_with)


def agent(**options: Any) -> Any:
    """LangChain's own agent."""
    return create_agent(Scripted(), TOOLS, **options)


def shared_subgraph() -> Any:
    """A node that is a graph over the same messages."""
    builder = StateGraph(MessagesState)
    builder.add_node("team", tool_graph())
    builder.add_edge(START, "team")
    return builder.compile()


class Draft(TypedDict):
    draft: str


class Essay(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    draft: str


def own_subgraph(*, asks: bool = False, **compiled_with: Any) -> Any:
    """A node that is a graph with a state of its own, which may ask a person."""

    def write(state: Draft) -> Draft:
        return {"draft": state["draft"] + (interrupt("how shall it end?") if asks else "!")}

    writer = StateGraph(Draft).add_node("write", write).add_edge(START, "write").compile()

    def begin(state: Essay) -> dict[str, Any]:
        return {"draft": state["messages"][-1].text}

    def end(state: Essay) -> dict[str, Any]:
        return {"messages": [AIMessage(state["draft"])]}

    builder = StateGraph(Essay)
    builder.add_node("begin", begin).add_node("writer", writer).add_node("end", end)
    builder.add_edge(START, "begin").add_edge("begin", "writer").add_edge("writer", "end")
    return builder.compile(**compiled_with)


def approval() -> Any:
    """Stops to ask a person."""

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"approved: {interrupt('may I?')}")]}

    return StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()


def fan_out() -> Any:
    """`Send`: as many branches as the message has words, each saying one."""

    def spread(state: MessagesState) -> list[Send]:
        return [Send("say", {"word": word}) for word in state["messages"][-1].text.split()]

    def say(state: dict[str, str]) -> dict[str, Any]:
        return {"messages": [AIMessage(state["word"])]}

    builder = StateGraph(MessagesState).add_node("say", say)
    builder.add_conditional_edges(START, spread, ["say"])
    return builder.compile()


def parallel() -> Any:
    """Two branches at once, then one that has seen both."""

    def saying(text: str) -> Callable[[MessagesState], dict[str, Any]]:
        return lambda state: {"messages": [AIMessage(text)]}

    builder = StateGraph(MessagesState)
    builder.add_node("left", saying("left")).add_node("right", saying("right")).add_node("both", saying("both"))
    builder.add_edge(START, "left").add_edge(START, "right").add_edge(["left", "right"], "both").add_edge("both", END)
    return builder.compile()


@dataclass
class Place:
    name: str
    contexts: int = 0


class Plan(BaseModel):
    steps: list[str] = []


class Trip(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    place: Place
    plans: Annotated[list[Plan], add]


def typed_graph(**compiled_with: Any) -> Any:
    """A dataclass and pydantic models in the state, which the schema names."""

    def go(state: Trip) -> dict[str, Any]:
        contexts = state["place"].contexts + 1 if state.get("place") else 1
        text = state["messages"][-1].text
        return {
            "place": Place(text, contexts),
            "plans": [Plan(steps=[text])],
            "messages": [AIMessage(f"context {contexts}")],
        }

    return StateGraph(Trip).add_node("go", go).add_edge(START, "go").compile(**compiled_with)


GRAPHS: dict[str, Callable[[], Any]] = {
    "chat": chat,
    "tool_graph": tool_graph,
    "agent": agent,
    "shared_subgraph": shared_subgraph,
    "own_subgraph": own_subgraph,
    "fan_out": fan_out,
    "parallel": parallel,
    "typed_graph": typed_graph,
}


def human(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [HumanMessage(text, **fields)]}


def said(session: Any, **options: Any) -> list[tuple[str, str]]:
    """Who said what, by the record."""
    return [(message.role, message.text) for message in session.messages(**options)]


def kinds(session: Any) -> list[str]:
    """The record of a session in its order: each message's role, and each tool's name."""
    found = []
    for entry in session.timeline():
        if type(entry).__name__ == "Message":
            found.append(entry.role)
        elif type(entry).__name__ == "ToolCall":
            found.append(entry.name)
    return found


# Every way of running a graph

Runner = Callable[..., Any]


async def invoke(graph: Any, value: Any, config: Any, **options: Any) -> None:
    graph.invoke(value, config, **options)


async def ainvoke(graph: Any, value: Any, config: Any, **options: Any) -> None:
    await graph.ainvoke(value, config, **options)


async def stream(graph: Any, value: Any, config: Any, **options: Any) -> None:
    assert list(graph.stream(value, config, **options))


async def astream(graph: Any, value: Any, config: Any, **options: Any) -> None:
    chunks: AsyncIterator[Any] = graph.astream(value, config, stream_mode="messages", **options)
    assert [chunk async for chunk in chunks]


async def batch(graph: Any, value: Any, config: Any, **options: Any) -> None:
    graph.batch([value], [config], **options)


async def abatch(graph: Any, value: Any, config: Any, **options: Any) -> None:
    await graph.abatch([value], [config], **options)


def handing_over(sends: Callable[[list[BaseMessage]], list[BaseMessage]], *, blocks: bool = False) -> Any:
    """Two agents that keep their state and hand over to each other: what of it goes along, `sends` says.

    The first has a turn to itself; in the second one the call is handed there and back.
    """

    def handover(to: str) -> BaseTool:
        @tool(f"to_{to}")
        def hand_over(
            state: Annotated[dict[str, Any], InjectedState], tool_call_id: Annotated[str, InjectedToolCallId]
        ) -> Command[Any]:
            """Lets another agent go on."""
            text: Any = [{"type": "text", "text": f"over to {to}"}] if blocks else f"over to {to}"
            answer = ToolMessage(text, tool_call_id=tool_call_id)
            update = {"messages": [*sends(state["messages"]), answer]}
            return Command(goto=to, graph=Command.PARENT, update=update)

        return hand_over

    alice = Saying(says=[asks(("to_bob", {})), asks(("to_bob", {}), id="call_1"), AIMessage("alice is back")])
    bob = Saying(says=[AIMessage("bob here"), asks(("to_alice", {}), id="call_2"), AIMessage("bob again")])
    builder = StateGraph(MessagesState)
    for name, model, other in (("alice", alice, "bob"), ("bob", bob, "alice")):
        node = create_agent(model, [handover(other)], name=name, checkpointer=True)
        builder.add_node(name, node, destinations=(other,))
    builder.add_conditional_edges(START, lambda state: "bob" if state["messages"][-1].text == "bob?" else "alice")
    return builder, [alice, bob]


def supervisor() -> StateGraph[Any]:
    """An agent in a node, whose tool is another agent."""
    helper = create_agent(Saying(says=[AIMessage("helped"), AIMessage("helped again")]), [], name="helper")

    @tool
    def ask_helper(task: str) -> str:
        """Asks another agent."""
        return str(helper.invoke({"messages": [HumanMessage(task)]})["messages"][-1].text)

    says = [
        message
        for number in (1, 2)
        for message in (asks(("ask_helper", {"task": "go and help"})), AIMessage(f"done {number}"))
    ]
    node = create_agent(Saying(says=says), [ask_helper], name="supervisor")
    return StateGraph(MessagesState).add_node("supervisor", node).add_edge(START, "supervisor")


def researchers() -> StateGraph[Any]:
    """Agents whose answers are passed on in their user's name, with their own."""
    facts = create_agent(Saying(says=[AIMessage("three facts"), AIMessage("four facts")]), [])
    writer = Saying(says=[AIMessage("a draft"), AIMessage("another draft")])

    def research(state: MessagesState) -> Command[Any]:
        found = facts.invoke({"messages": [HumanMessage(f"find out: {state['messages'][-1].text}")]})
        answer = HumanMessage(found["messages"][-1].text, name="research")
        return Command(update={"messages": [answer]}, goto="write")

    def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": [writer.invoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("research", research, destinations=("write",))
    return builder.add_node("write", write).add_edge(START, "research")


def delegating() -> StateGraph[Any]:
    """An agent whose tool sends a task to another agent, which has a state of its own."""

    @tool
    def delegate() -> Command[Any]:
        """Gives a task to another agent."""
        return Command(goto=[Send("helper", {"messages": [HumanMessage("go and help")]})], graph=Command.PARENT)

    boss = create_agent(Saying(says=[asks(("delegate", {})), asks(("delegate", {}))]), [delegate], name="boss")
    helper = create_agent(Saying(says=[AIMessage("helped"), AIMessage("helped again")]), [], checkpointer=True)
    builder = StateGraph(MessagesState).add_node("boss", boss, destinations=("helper",))
    return builder.add_node("helper", helper).add_edge(START, "boss")


def nested() -> StateGraph[Any]:
    """A graph in a graph in a graph, over the same messages."""

    def say(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"heard {state['messages'][-1].text}")]}

    inner = StateGraph(MessagesState).add_node("say", say).add_edge(START, "say").compile()
    middle = StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile()
    return StateGraph(MessagesState).add_node("middle", middle).add_edge(START, "middle")


RUNNERS = [invoke, ainvoke, stream, astream, batch, abatch]

ONE_CALL = ["user", "assistant", "look_up", "tool", "assistant"]
TURN = {  # what the record gains by "look up tea"
    "tool_graph": ONE_CALL,
    "agent": ONE_CALL,
    "shared_subgraph": ONE_CALL,
    "chat": ["user", "assistant"],
    "own_subgraph": ["user", "assistant"],
    "fan_out": ["user", "assistant", "assistant", "assistant"],
    "parallel": ["user", "assistant", "assistant", "assistant"],
    "typed_graph": ["user", "assistant"],
}
