"""A session as a chat history: what comes back is what was added, for a model to go on from."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send
from pydantic import PrivateAttr
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.checkpoint.serde import StrictSerializer
from tests.support import agents
from tests.support.agents import human
from tests.support.pairwise import ENGINES, pairwise

CALL = {"name": "f", "args": {}, "id": "1", "type": "tool_call"}
INVALID = {"name": "g", "args": "{bad", "id": "2", "error": "no JSON", "type": "invalid_tool_call"}
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_token_details": {"cache_read": 1}}
TURN: list[BaseMessage] = [
    HumanMessage("q", id="q", additional_kwargs={"sent_by": "phone"}),
    AIMessage("", id="asks", tool_calls=[CALL], invalid_tool_calls=[INVALID]),
    ToolMessage("no such thing", id="fails", tool_call_id="1", status="error"),
    AIMessage(
        [{"type": "reasoning", "summary": []}, {"type": "text", "text": "x"}],
        id="answers",
        additional_kwargs={"signature": "s"},
        response_metadata={"model_name": "m", "finish_reason": "stop"},
        usage_metadata=USAGE,  # type: ignore[arg-type]
    ),
]


def test_what_was_added_comes_back_with_all_of_its_fields(sessions: Sessions) -> None:
    history = sessions.open("t").history()
    history.add_messages(TURN)
    assert history.messages == TURN
    history.add_messages(TURN)
    assert history.messages == TURN


def test_a_model_is_never_told_that_a_failed_call_succeeded(sessions: Sessions) -> None:
    sessions.attach(agents.tool_graph()).invoke(human("fail tea"), sessions.config("graph"))
    sessions.open("dict").add({"role": "tool", "content": "boom", "tool_call_id": "c", "status": "error"})
    for session_id in ("graph", "dict"):
        answers = [m for m in sessions.open(session_id).history().messages if isinstance(m, ToolMessage)]
        assert [answer.status for answer in answers] == ["error"]


@pytest.mark.parametrize(
    "settings",
    [{"redact": str.upper}, {"record": ["messages"]}, {"redact": lambda text: "…", "record": {"f": ["messages"]}}],
)
def test_whether_a_call_failed_or_could_not_be_parsed_is_told_whatever_is_kept_of_it(path: Path, settings: Any) -> None:
    with Sessions(path, **settings) as sessions:
        history = sessions.open("t").history()
        history.add_messages(TURN)
        _, asks, fails, _ = history.messages
        assert isinstance(asks, AIMessage)
        assert isinstance(fails, ToolMessage)
        assert fails.status == "error"
        assert [(len(asks.tool_calls), len(asks.invalid_tool_calls))] == [(1, 1)]


def test_the_words_in_a_messages_other_fields_are_redacted_and_its_calls_are_not_kept_twice(path: Path) -> None:
    raw = {"id": "c", "type": "function", "function": {"name": "mail", "arguments": '{"to": "a@b.com"}'}}
    said = AIMessage("", additional_kwargs={"reasoning": "to a@b.com", "tool_calls": [raw]})
    with Sessions(path, redact=["emails"], record=["messages"]) as sessions:
        session = sessions.open("t")
        session.add(said)
        (kept,) = session.history().messages
        assert kept.additional_kwargs == {"reasoning": "to [redacted email]"}
        assert "a@b.com" not in repr(session.messages())


def test_sound_in_a_messages_other_fields_is_stored_once_comes_back_and_goes_with_it(sessions: Sessions) -> None:
    sound = {"id": "a", "data": base64.b64encode(b"what was spoken" * 20).decode(), "transcript": "hello"}
    session = sessions.open("t")
    for name in ("first", "second"):
        session.add(AIMessage("", id=name, additional_kwargs={"audio": sound}))
    assert [m.additional_kwargs["audio"] for m in session.history().messages] == [sound, sound]
    name = session.messages()[0].extra["additional_kwargs"]["audio"]["data"]  # type: ignore[index]
    sessions.get("t").fork(id="copy")
    assert sessions.get("copy").history().messages[1].additional_kwargs["audio"] == sound
    assert session.delete_message("first") == 1
    assert session.history().messages[0].additional_kwargs["audio"] == sound
    session.delete_message("second")
    assert name.startswith("sha256:")
    assert sessions._storage.find_file("t", name) is None


class Asked(agents.Scripted):
    """Keeps what it is asked, and fails where it is told to."""

    _asked: list[Any] = PrivateAttr(default_factory=list)

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        self._asked.append([(message.type, message.text) for message in messages])
        if messages[-1].text.endswith("break"):
            raise ConnectionError("gone")
        return super()._reply(messages)


PROMPTS: dict[str, list[Any]] = {
    "the same each time": [("system", "be nice"), ("placeholder", "{history}"), ("human", "{question}")],
    "another each time": [("system", "at {number}"), ("placeholder", "{history}"), ("human", "{question}")],
    "with examples": [("human", "2"), ("ai", "4"), ("placeholder", "{history}"), ("human", "{question}")],
    "with a frame": [("placeholder", "{history}"), ("human", "Now, {number}: {question}")],
    "with an end": [("placeholder", "{history}"), ("human", "{question}"), ("system", "in one word")],
}


async def ask(chain: Any, given: dict[str, Any], config: Any, *, how: str) -> None:
    with contextlib.suppress(ConnectionError):
        if how == "invoke":
            chain.invoke(given, config)
        elif how == "ainvoke":
            await chain.ainvoke(given, config)
        else:
            _ = [chunk async for chunk in chain.astream(given, config)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["invoke", "ainvoke", "astream"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
async def test_a_model_is_asked_the_same_with_the_recorder_and_without_any_of_ours(
    sessions: Sessions, prompt: list[Any], how: str
) -> None:
    theirs, ours = Asked(has_tools=False), Asked(has_tools=False)
    memory = InMemoryChatMessageHistory()
    for model in (theirs, ours):
        chain = RunnableWithMessageHistory(
            ChatPromptTemplate.from_messages(prompt) | model,
            (lambda session_id: memory)
            if model is theirs
            else (lambda session_id: sessions.open(session_id).history()),
            input_messages_key="question",
            history_messages_key="history",
        )
        config: Any = {"configurable": {"session_id": "t"}}
        if model is ours:
            config |= {"metadata": {"thread_id": "t"}, "callbacks": [sessions.recorder]}
        for number, question in enumerate(("yes", "no", "break", "yes", "again: break", "and?")):
            await ask(chain, {"question": question, "number": str(number)}, config, how=how)
    assert ours._asked == theirs._asked
    assert [(m.type, m.text) for m in sessions.get("t").history().messages] == [
        (m.type, m.text) for m in memory.messages
    ]


# Of graphs of several agents

MAKERS: dict[str, Callable[[], StateGraph[Any]]] = {
    "hand over": lambda: agents.handing_over(lambda messages: messages[-1:])[0],
    "hand over all": lambda: agents.handing_over(list)[0],
    "supervisor": agents.supervisor,
    "researchers": agents.researchers,
    "delegating": agents.delegating,
    "nested": agents.nested,
}
INSIDE = {"go and help", "find out: hi", "find out: and?", "three facts", "four facts"}  # what agents tell each other


def with_parts(sessions: Sessions, builder: StateGraph[Any], parts: str) -> tuple[Any, Any]:
    """A graph that keeps its state with some parts of ours, and the config of its runs."""
    config = sessions.config("t", user_id="alice")
    if parts == "attach":
        return sessions.attach(builder.compile()), config
    if parts == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer), config
    return builder.compile(checkpointer=InMemorySaver()), config | {"callbacks": [sessions.recorder]}


@pairwise(
    make=MAKERS,
    parts=["attach", "checkpointer", "recorder"],
    runner=[agents.invoke, agents.ainvoke],
    durability=["async", "exit"],
    each_engine=ENGINES,
)
async def test_it_is_what_the_outermost_graph_has(
    make: str, parts: str, runner: Any, durability: str, sessions: Sessions
) -> None:
    graph, config = with_parts(sessions, MAKERS[make](), parts)
    for text in ("hi", "and?"):
        await runner(graph, human(text), config, durability=durability)
    session = sessions.get("t")
    assert session.history().messages == graph.get_state(config).values["messages"]
    if (parts, durability) != ("checkpointer", "exit"):  # whose only checkpoint has all of a run
        assert [m.text for m in session.messages() if m.role == "user"] == ["hi", "and?"]
        assert {m.role for m in session.messages() if m.text in INSIDE} <= {"assistant"}
        roles = {message.message_id: message.role for message in session.messages()}
        recalled = session.memory.recall(" ".join(INSIDE), k=20, kinds=["message"])
        assert {memory.text for memory in recalled if roles[memory.message_id or ""] == "user"} <= {"hi", "and?"}


@pytest.mark.parametrize("parts", ["attach", "checkpointer", "recorder"])
def test_an_answer_that_an_agent_gets_among_earlier_messages_moves_no_question(parts: str, sessions: Sessions) -> None:
    """The agent's own state is repaired, and the outermost one gets the answer at its end."""

    def delegate(to: str) -> Any:
        @tool(f"to_{to}")
        def send() -> Command[Any]:
            """Gives a task to another agent."""
            return Command(goto=[Send(to, {"messages": [HumanMessage(f"task for {to}")]})], graph=Command.PARENT)

        return send

    builder = StateGraph(MessagesState)
    for name, to, says in (("alice", "bob", [AIMessage("fine"), AIMessage("good")]), ("bob", "alice", [])):
        model = agents.Saying(says=[agents.asks((f"to_{to}", {})), *says])
        builder.add_node(name, create_agent(model, [delegate(to)], checkpointer=True), destinations=(to,))
    graph, config = with_parts(sessions, builder.add_edge(START, "alice"), parts)
    for text in ("hi", "and?"):
        graph.invoke(human(text), config)
    texts = [message.text for message in sessions.get("t").history().messages]
    assert texts == [message.text for message in graph.get_state(config).values["messages"]]
    assert [text for text in texts if text in ("hi", "task for alice", "and?")] == ["hi", "task for alice", "and?"]


_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)


class Later(StrictSerializer):
    """Serialises nothing of a run before the graph inside it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        assert _is_inside.get() or self.ended.wait(60)
        return super().dumps_typed(obj)


def test_what_a_graph_inside_is_told_is_not_the_users_where_its_checkpoints_come_first(path: Path) -> None:
    serde = Later()
    facts = create_agent(agents.Saying(says=[AIMessage("three facts"), AIMessage("four facts")]), [])

    def research(state: MessagesState) -> dict[str, Any]:
        _is_inside.set(True)
        facts.invoke({"messages": [HumanMessage(f"find out: {state['messages'][-1].text}")]})
        serde.ended.set()
        return {"messages": [AIMessage("found")]}

    builder = StateGraph(MessagesState).add_node("research", research).add_edge(START, "research")
    with Sessions(path, serde=serde) as sessions:
        graph, config = builder.compile(checkpointer=sessions.checkpointer), sessions.config("t")
        for text in ("hi", "and?"):
            serde.ended.clear()
            graph.invoke(human(text), config)
        session = sessions.get("t")
        assert [m.text for m in session.messages() if m.role == "user"] == ["hi", "and?"]
        assert session.history().messages == graph.get_state(config).values["messages"]


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", ["attach", "checkpointer", "recorder"])
async def test_a_summary_is_not_said_by_the_user(parts: str, runner: Any, sessions: Sessions) -> None:
    summaries = agents.Saying(says=[AIMessage("all about zebras") for _ in range(4)])
    said = agents.Saying(says=[AIMessage(f"number {number}") for number in range(4)])
    summing_up = SummarizationMiddleware(summaries, trigger=("messages", 4), keep=("messages", 2))
    graph, config = with_parts(sessions, create_agent(said, [], middleware=[summing_up]).builder, parts)
    for text in ("one", "two", "three"):
        await runner(graph, human(text), config)
    session, state = sessions.get("t"), graph.get_state(config).values["messages"]
    assert [m.text for m in session.messages() if m.role == "user"] == ["one", "two", "three"]
    assert [m.role for m in session.messages() if "conversation to date" in m.text] == ["system"]
    assert all("conversation to date" not in memory.text for memory in session.memory.recall("zebras", k=9))
    assert [message for message in session.history().messages if message in state] == state


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", ["attach", "checkpointer", "recorder"])
async def test_a_summary_in_a_subgraph_stands_where_the_outermost_state_has_it(
    parts: str, runner: Any, sessions: Sessions
) -> None:
    summaries = agents.Saying(says=[AIMessage(f"all about {number}") for number in range(5)])
    said = agents.Saying(says=[AIMessage(f"number {number}") for number in range(5)])
    summing_up = SummarizationMiddleware(summaries, trigger=("messages", 4), keep=("messages", 2))
    agent = create_agent(said, [], middleware=[summing_up], checkpointer=True)
    builder = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent")
    graph, config = with_parts(sessions, builder, parts)
    for text in ("one", "two", "three", "four", "five"):
        await runner(graph, human(text), config)
        assert sessions.get("t").history().messages == graph.get_state(config).values["messages"]


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", ["attach", "checkpointer"])
async def test_a_call_in_a_subgraph_that_is_given_up_stands_beside_its_answer(
    parts: str, runner: Any, sessions: Sessions
) -> None:
    said = agents.Saying(says=[agents.asks(("asking", {"thing": "tea"})), AIMessage("never mind"), AIMessage("fine")])
    agent = create_agent(said, [agents.asking], checkpointer=True)
    builder = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent")
    graph, config = with_parts(sessions, builder, parts)
    for text in ("tea, please", "what is the time?", "thanks"):
        await runner(graph, human(text), config)
    told = sessions.get("t").history().messages
    assert told == graph.get_state(config).values["messages"]
    assert len(told) == 7
    assert agents.answered_at_once(told)


def test_a_question_that_a_node_passes_on_to_an_agent_is_its_users(sessions: Sessions) -> None:
    class Question(TypedDict):
        question: str

    agent = create_agent(agents.Saying(says=[AIMessage("it is"), AIMessage("it was")]), [])

    def ask(state: Question) -> Question:
        agent.invoke({"messages": [HumanMessage(state["question"])]})
        return state

    graph = sessions.attach(StateGraph(Question).add_node("ask", ask).add_edge(START, "ask").compile())
    for question in ("what is it?", "what was it?"):
        graph.invoke({"question": question}, sessions.config("t"))
    assert agents.said(sessions.get("t")) == [
        *(("user", "what is it?"), ("assistant", "it is"), ("user", "what was it?"), ("assistant", "it was"))
    ]
    assert sessions.get("t").history().messages == []


# What a prompt adds


def test_what_a_prompt_adds_is_in_the_record_as_said_aside(sessions: Sessions) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "be nice"), ("human", "{question}")])
    history = sessions.open("t").history()
    config: Any = {"metadata": {"thread_id": "t"}, "callbacks": [sessions.recorder]}

    def answer(given: dict[str, str]) -> None:
        assert history.messages == []
        said = (prompt | agents.Scripted()).invoke(given)
        history.add_messages([HumanMessage(given["question"]), said])

    RunnableLambda(answer).invoke({"question": "hi"}, config)
    found = [(m.role, m.text, m.flags) for m in sessions.get("t").messages()]
    assert found == [("system", "be nice", ("aside",)), ("user", "hi", ()), ("assistant", "you said hi", ())]


def test_what_a_model_says_in_a_run_that_has_no_history_is_in_the_history(sessions: Sessions) -> None:
    config: Any = {"metadata": {"thread_id": "t"}, "callbacks": [sessions.recorder]}
    agents.Scripted().invoke("hi", config)
    assert [m.text for m in sessions.get("t").history().messages] == ["hi", "you said hi"]
