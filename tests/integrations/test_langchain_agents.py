"""The middleware for `create_agent`: attached, with a checkpointer only, and alone; beside LangChain's own."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import PrivateAttr

from session_middleware import SessionAccessDenied, Sessions
from session_middleware.checkpoint.repair import INTERRUPTED
from session_middleware.integrations.langchain_agents import Recall, SessionMiddleware
from tests.support.agents import TOOLS, Scripted, chat, human, said
from tests.support.pairwise import pairwise

INTERRUPT_MODES = ("batched", "per_call")[: 1 + ("interrupt_mode" in signature(HumanInTheLoopMiddleware).parameters)]
MODES = ("attached", "checkpointer only", "alone")


class Remembering(Scripted):
    """Keeps what it was asked."""

    _asked: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._asked.append(list(messages))
        return super()._generate(messages)


class Flaky(Scripted):
    """Fails every other time."""

    _count: Any = PrivateAttr(default_factory=lambda: [0])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._count[0] += 1
        if self._count[0] % 2:
            raise ConnectionError("busy")
        return super()._generate(messages)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    async def run(agent: Any, value: Any, config: Any, **options: Any) -> Any:
        if request.param == "sync":
            return agent.invoke(value, config, **options)
        return await agent.ainvoke(value, config, **options)

    return run


def build(sessions: Sessions, mode: str, *others: AgentMiddleware, first: bool = True, **options: Any) -> Any:
    """An agent with the middleware, before or after the others."""
    own = SessionMiddleware(sessions, context=options.pop("context", None), recall=options.pop("recall", None))
    middleware = [own, *others] if first else [*others, own]
    model, tools = options.pop("model", None) or Scripted(), options.pop("tools", TOOLS)
    if mode == "alone":
        return create_agent(model, tools, middleware=middleware, checkpointer=InMemorySaver(), **options)
    return sessions.attach(create_agent(model, tools, middleware=middleware, **options), recorder=mode == "attached")


def statuses(sessions: Sessions) -> list[tuple[str, str]]:
    return sorted((call.name, call.status) for call in sessions.get("t").tool_calls())


def check_record(sessions: Sessions, agent: Any, config: Any) -> None:
    """What is in the state is recorded, and nothing twice."""
    recorded = [message.message_id for message in sessions.get("t").messages(branch="all")]
    state = [message.id for message in agent.get_state(config).values["messages"]]
    assert Counter(recorded).most_common(1)[0][1] == 1
    assert set(state) <= set(recorded)


@pytest.mark.parametrize("mode", MODES)
async def test_a_turn_is_recorded_once(mode: str, run: Any, sessions: Sessions) -> None:
    agent, config = build(sessions, mode), sessions.config("t", user_id="alice")
    await run(agent, human("both tea"), config)
    await run(agent, human("hello"), config)
    check_record(sessions, agent, config)
    session = sessions.get("t")
    assert [role for role, _ in said(session)] == [*("user", "assistant", "tool", "tool"), "assistant"] + [
        *("user", "assistant")
    ]
    assert [event.kind for event in session.events()] == ["opened", "resumed"]
    assert statuses(sessions) == [("look_up", "ok"), ("price", "ok")]
    assert all(call.duration_ms is not None and call.started_at for call in session.tool_calls())
    assert {call.arguments["thing"] for call in session.tool_calls()} == {"tea"}
    assert [(call.model, call.input_tokens) for call in session.model_calls()] == [("scripted-1", 3)] * 3
    assert (sessions.get("t").input_tokens, sessions.get("t").output_tokens) == (9, 6)
    assert len(session.runs()) == (2 if mode == "attached" else 0)


class LastOnly(AgentMiddleware):
    """Asks what was said last, and nothing before that."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(messages=request.messages[-1:]))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(messages=request.messages[-1:]))


@pytest.mark.parametrize("mode", ["attached", "alone"])  # a checkpoint has it once, where it was said first
async def test_a_cached_answer_is_said_again_and_takes_no_tokens(mode: str, run: Any, sessions: Sessions) -> None:
    agent = build(sessions, mode, LastOnly(), model=Scripted(cache=InMemoryCache()), tools=[])
    for _ in range(3):
        await run(agent, human("hello"), sessions.config("t"))
    session = sessions.get("t")
    assert said(session) == [("user", "hello"), ("assistant", "you said hello")] * 3
    assert [(call.input_tokens, call.flags) for call in session.model_calls()] == [(3, ()), *[(0, ("cached",))] * 2]
    assert (session.input_tokens, session.cost) == (3, 0.0)


@pytest.mark.parametrize("mode", MODES)
async def test_another_user_is_refused_before_the_agent_starts(mode: str, run: Any, sessions: Sessions) -> None:
    agent = build(sessions, mode)
    await run(agent, human("hello"), sessions.config("t", user_id="alice"))
    count = sessions.get("t").message_count
    with pytest.raises(SessionAccessDenied):
        await run(agent, human("let me in"), sessions.config("t", user_id="bob"))
    assert sessions.get("t").message_count == count
    assert sessions.get("t").events()[-1].kind == "denied"


async def test_an_agent_without_a_thread_is_left_as_it_is(run: Any, sessions: Sessions) -> None:
    agent = create_agent(Scripted(), TOOLS, middleware=[SessionMiddleware(sessions)])
    out = await run(agent, human("look up tea"), {})
    assert [message.type for message in out["messages"]] == ["human", "ai", "tool", "ai"]
    assert sessions.list() == []


# A tool's start


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_finds_its_start_written_down(mode: str, sessions: Sessions, tmp_path: Path) -> None:
    found = []

    @tool
    async def look_up(thing: str) -> str:
        """Reads the file as another program would."""
        rows = sqlite3.connect(tmp_path / "sessions.db").execute("SELECT name, status, arguments FROM tool_calls")
        found.extend(rows.fetchall())
        return "nice"

    agent = build(sessions, mode, tools=[look_up])
    await agent.ainvoke(human("look up tea"), sessions.config("t"))
    assert found == [("look_up", "running", '{"thing": "tea"}')]
    assert statuses(sessions) == [("look_up", "ok")]


@pytest.mark.parametrize("mode", MODES)
async def test_a_start_does_not_hold_up_the_loop_and_is_waited_for_all_the_same(
    mode: str, sessions: Sessions, tmp_path: Path
) -> None:
    order: list[str] = []

    @tool
    async def look_up(thing: str) -> str:
        """Is told when it runs."""
        order.append("tool")
        return "nice"

    class Lock(AgentMiddleware):
        """Holds the database's write lock, as another process may, until the loop has gone on."""

        def __init__(self) -> None:
            self.other = sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            response = await handler(request)
            if response.result[0].tool_calls:
                await asyncio.to_thread(sessions.recorder.drain)
                self.other.execute("BEGIN IMMEDIATE")
                asyncio.get_running_loop().call_later(0.3, self.release)
            return response

        def release(self) -> None:
            order.append("released")
            self.other.execute("ROLLBACK")

    agent = create_agent(Scripted(), [look_up], middleware=[SessionMiddleware(sessions), Lock()])
    if mode != "alone":
        agent = sessions.attach(agent, recorder=mode == "attached")
    await agent.ainvoke(human("look up tea"), sessions.config("t"), durability="exit" if mode != "alone" else None)
    assert order == ["released", "tool"]


@pytest.mark.parametrize("mode", MODES)
async def test_arguments_are_those_the_tool_was_executed_with(mode: str, run: Any, sessions: Sessions) -> None:
    class Sweeten(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(self.sweetened(request))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(self.sweetened(request))

        def sweetened(self, request: Any) -> Any:
            return request.override(tool_call={**request.tool_call, "args": {"thing": "sweet tea"}})

    agent = build(sessions, mode, Sweeten())
    await run(agent, human("look up tea"), sessions.config("t"))
    [call] = sessions.get("t").tool_calls()
    assert (call.arguments, call.status, call.attempt) == ({"thing": "sweet tea"}, "ok", 1)


# Refusals


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False], interrupt_mode=INTERRUPT_MODES)
async def test_what_a_person_refuses_is_refused(
    mode: str, interrupt_mode: Any, first: bool, run: Any, sessions: Sessions
) -> None:
    options = {} if interrupt_mode == "batched" else {"interrupt_mode": interrupt_mode}
    asks = HumanInTheLoopMiddleware(interrupt_on={"look_up": True}, **options)
    agent, config = build(sessions, mode, asks, first=first), sessions.config("t", user_id="alice")
    await run(agent, human("both tea"), config)
    [waiting] = agent.get_state(config).interrupts
    decision: dict[str, Any] = {"type": "reject", "message": "no tea"}
    answer = {"decisions": [decision]} if interrupt_mode == "batched" else {waiting.id: decision}
    await run(agent, Command(resume=answer), config)
    check_record(sessions, agent, config)
    latest = {call.name: call.status for call in sessions.get("t").tool_calls()}
    assert latest["price"] == "ok"
    if mode == "attached" and not first and interrupt_mode == "per_call":
        assert latest["look_up"] in ("refused", "error")  # the answer is all there is to see
    else:
        assert latest["look_up"] == "refused"


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_person_approves_or_edits_is_executed(mode: str, run: Any, sessions: Sessions) -> None:
    asks = HumanInTheLoopMiddleware(interrupt_on={"look_up": True, "price": True})
    agent, config = build(sessions, mode, asks), sessions.config("t")
    await run(agent, human("both tea"), config)
    edit = {"type": "edit", "edited_action": {"name": "price", "args": {"thing": "coffee"}}}
    await run(agent, Command(resume={"decisions": [{"type": "approve"}, edit]}), config)
    check_record(sessions, agent, config)
    done = {call.name: (call.status, call.arguments["thing"]) for call in sessions.get("t").tool_calls()}
    assert done == {"look_up": ("ok", "tea"), "price": ("ok", "coffee")}


@pytest.mark.parametrize("mode", MODES)
async def test_what_another_middleware_refuses_is_refused(mode: str, run: Any, sessions: Sessions) -> None:
    class NoTea(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return self.refusal(request) or handler(request)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return self.refusal(request) or await handler(request)

        def refusal(self, request: Any) -> ToolMessage | None:
            if request.tool_call["name"] == "price":
                return None
            return ToolMessage("not allowed", tool_call_id=request.tool_call["id"], status="error")

    agent, config = build(sessions, mode, NoTea()), sessions.config("t")
    await run(agent, human("both tea"), config)
    check_record(sessions, agent, config)
    assert statuses(sessions) == [("look_up", "refused"), ("price", "ok")]
    [refused] = [call for call in sessions.get("t").tool_calls() if call.status == "refused"]
    assert (refused.result, refused.duration_ms) == ("not allowed", None)


@pytest.mark.parametrize("mode", MODES)
async def test_what_another_middleware_answers_is_no_refusal(mode: str, run: Any, sessions: Sessions) -> None:
    class Cache(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return ToolMessage("from the cache", tool_call_id=request.tool_call["id"])

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return ToolMessage("from the cache", tool_call_id=request.tool_call["id"])

    agent, config = build(sessions, mode, Cache()), sessions.config("t")
    await run(agent, human("look up tea"), config)
    check_record(sessions, agent, config)
    [call] = sessions.get("t").tool_calls()
    assert (call.status, call.result) == ("ok", "from the cache")


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_that_fails_and_one_that_does_not_exist_are_errors(
    mode: str, run: Any, sessions: Sessions
) -> None:
    agent, config = build(sessions, mode, tools=[t for t in TOOLS if t.name != "price"]), sessions.config("t")
    await run(agent, human("both tea"), config)
    assert statuses(sessions) == [("look_up", "ok"), ("price", "error")]
    with pytest.raises(RuntimeError, match="no tea today"):
        await run(agent, human("fail tea"), sessions.config("u"))
    [call] = sessions.get("u").tool_calls()
    assert (call.status, call.error) == ("error", "RuntimeError: no tea today")


# LangChain's others


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False])
async def test_beside_a_limit_of_tool_calls(mode: str, first: bool, run: Any, sessions: Sessions) -> None:
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior="continue")
    agent, config = build(sessions, mode, limit, first=first), sessions.config("t")
    await run(agent, human("both tea"), config)
    check_record(sessions, agent, config)
    assert {call.status for call in sessions.get("t").tool_calls()} == {"ok", "refused"}
    assert sessions.get("t").error_count == 0


@pytest.mark.parametrize("mode", MODES)
async def test_beside_a_limit_of_model_calls(mode: str, run: Any, sessions: Sessions) -> None:
    agent = build(sessions, mode, ModelCallLimitMiddleware(run_limit=1, exit_behavior="end"))
    config = sessions.config("t")
    await run(agent, human("look up tea"), config)
    await run(agent, human("hello"), config)
    assert len(sessions.get("t").model_calls()) == 2
    if mode != "alone":  # which does not see what the limit itself says at the end
        check_record(sessions, agent, config)


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False])
async def test_beside_retries_of_tools(mode: str, first: bool, run: Any, sessions: Sessions) -> None:
    tries = []

    @tool
    def look_up(thing: str) -> str:
        """Works the second time."""
        tries.append(thing)
        if len(tries) % 2:
            raise ConnectionError("busy")
        return "nice"

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    agent, config = build(sessions, mode, retry, first=first, tools=[look_up]), sessions.config("t")
    await run(agent, human("look up tea"), config)
    check_record(sessions, agent, config)
    found = [(call.attempt, call.status) for call in sessions.get("t").tool_calls()]
    assert found == [(1, "error"), (2, "ok")]


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False])
async def test_beside_retries_of_models(mode: str, first: bool, run: Any, sessions: Sessions) -> None:
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    agent, config = build(sessions, mode, retry, first=first, model=Flaky()), sessions.config("t")
    await run(agent, human("hello"), config)
    check_record(sessions, agent, config)
    errors = [call.error for call in sessions.get("t").model_calls()]
    assert errors == ["ConnectionError: busy", None]


@pytest.mark.parametrize("mode", MODES)
async def test_what_an_agent_tells_another_one_in_a_tool_is_no_input_of_the_user(
    mode: str, run: Any, sessions: Sessions
) -> None:
    helper = create_agent(Scripted(), TOOLS, middleware=[SessionMiddleware(sessions)])

    @tool
    def look_up(thing: str) -> str:
        """Asks another agent."""
        return str(helper.invoke(human("both tea"))["messages"][-1].text)

    agent = build(sessions, mode, tools=[look_up])
    await run(agent, human("look up tea"), sessions.config("t"))
    found = said(sessions.get("t"), branch="all")
    assert ("assistant", "both tea") in found
    assert [text for role, text in found if role == "user"] == ["look up tea"]
    assert statuses(sessions) == [("look_up", "ok"), ("look_up", "ok"), ("price", "ok")]


@pytest.mark.parametrize("mode", ["checkpointer only", "alone"])
async def test_without_a_recorder_a_graph_of_another_thread_in_a_tool_is_not_recorded(
    mode: str, run: Any, sessions: Sessions
) -> None:
    @tool
    def look_up(thing: str) -> str:
        """Asks a graph that has nothing to do with sessions."""
        config: Any = {"configurable": {"thread_id": "other"}}
        helper = chat().copy({"checkpointer": False})  # earlier releases of LangGraph pass on that of the outer graph
        return str(helper.invoke(human("hi"), config)["messages"][-1].text)

    await run(build(sessions, mode, tools=[look_up]), human("look up tea"), sessions.config("t"))
    assert [session.id for session in sessions.list()] == ["t"]


@pytest.mark.parametrize("mode", ["checkpointer only", "alone"])
async def test_without_a_recorder_the_models_that_another_middleware_calls_around_it_are_not_recorded(
    mode: str, run: Any, sessions: Sessions
) -> None:
    class Judge(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            response = handler(request)
            Scripted(has_tools=False).invoke("is it good?")
            return response

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            response = await handler(request)
            await Scripted(has_tools=False).ainvoke("is it good?")
            return response

    agent, config = build(sessions, mode, Judge(), first=False), sessions.config("t")
    await run(agent, human("look up tea"), config)
    session = sessions.get("t")
    assert (len(session.model_calls()), len(session.tool_calls()), session.runs()) == (2, 1, [])
    assert [role for role, _ in said(session, branch="all")] == ["user", "assistant", "tool", "assistant"]


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False])
async def test_beside_summaries_nothing_that_was_said_is_lost(
    mode: str, first: bool, run: Any, sessions: Sessions
) -> None:
    shorten = SummarizationMiddleware(Scripted(has_tools=False), trigger=("messages", 4), keep=("messages", 2))
    agent, config = build(sessions, mode, shorten, first=first), sessions.config("t")
    for number in range(4):
        await run(agent, human(f"hello {number}"), config)
    state = agent.get_state(config).values["messages"]
    assert len(state) <= 6
    recorded = [text for role, text in said(sessions.get("t"), branch="all") if role == "user"]
    assert [text for text in recorded if text.startswith("hello")] == [f"hello {number}" for number in range(4)]
    answers = [text for role, text in said(sessions.get("t"), branch="all") if role == "assistant"]
    assert {f"you said hello {number}" for number in range(4)} <= set(answers)


@pairwise(mode=MODES, run=["sync", "async"], first=[True, False])
async def test_beside_redaction_of_personal_data(mode: str, first: bool, run: Any, sessions: Sessions) -> None:
    hide = PIIMiddleware("email", strategy="redact", apply_to_input=True, apply_to_output=True)
    agent, config = build(sessions, mode, hide, first=first), sessions.config("t")
    await run(agent, human("hello a@b.example"), config, durability="sync")
    check_record(sessions, agent, config)
    latest = {m.message_id: m.text for m in sessions.get("t").messages()}
    for message in agent.get_state(config).values["messages"]:
        assert latest[message.id] == message.text
        assert "a@b" not in message.text


# Repair


@pytest.mark.parametrize("mode", MODES)
async def test_what_was_cut_off_is_answered_before_the_agent_starts(mode: str, run: Any, sessions: Sessions) -> None:
    @tool
    def price(thing: str) -> str:
        """Is cut off."""
        raise KeyboardInterrupt

    look_up = TOOLS[0]
    agent, config = build(sessions, mode, tools=[look_up, price]), sessions.config("t", user_id="alice")
    with pytest.raises(KeyboardInterrupt):
        agent.invoke(human("both tea"), config)
    out = await run(agent, human("hello"), config)
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "human", "ai"]
    check_record(sessions, agent, config)
    session = sessions.get("t")
    assert [m.message_id for m in session.messages()] == [m.id for m in out["messages"]]
    [event] = [event for event in session.events() if event.kind == "repaired"]
    assert event.reason == "new input"
    assert INTERRUPTED in [m.text for m in out["messages"]]
    assert {call.name: call.status for call in session.tool_calls()} == {"look_up": "ok", "price": "interrupted"}
    assert session.error_count == 0


class Truncated(Scripted):
    """Is cut off in the arguments of a tool."""

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        call = {"name": "look_up", "args": '{"thing": "te', "id": "call_1", "error": "not JSON"}
        return AIMessage("", invalid_tool_calls=[call]) if len(messages) == 1 else super()._reply(messages)


@pytest.mark.parametrize("mode", MODES)
async def test_arguments_that_were_cut_off_have_one_answer_whether_or_not_langchain_gives_it(
    mode: str, run: Any, sessions: Sessions
) -> None:
    agent, config = build(sessions, mode, model=Truncated()), sessions.config("t")
    await run(agent, human("look up tea"), config)
    out = await run(agent, human("hello"), config)
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "human", "ai"]
    assert "malformed or truncated" in out["messages"][2].text
    check_record(sessions, agent, config)
    assert [m.message_id for m in sessions.get("t").messages()] == [m.id for m in out["messages"]]


@pytest.mark.parametrize("mode", MODES)
def test_the_record_is_in_order_where_checkpoints_come_late(
    mode: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_working, put = threading.Event(), sessions._storage.put_checkpoint

    def put_late(given: Any) -> Any:
        is_working.wait(5)
        return put(given)

    @tool
    def look_up(thing: str) -> str:
        """Takes its time."""
        is_working.set()
        return "nice"

    monkeypatch.setattr(sessions._storage, "put_checkpoint", put_late)
    agent, config = build(sessions, mode, tools=[look_up]), sessions.config("t")
    out = agent.invoke(human("look up tea"), config)
    assert [m.message_id for m in sessions.get("t").messages()] == [m.id for m in out["messages"]]


async def test_what_waited_for_a_person_is_answered_when_new_input_has_ended_that(run: Any, sessions: Sessions) -> None:
    agent, config = build(sessions, "attached"), sessions.config("t")
    await run(agent, human("ask tea"), config)
    out = await run(agent, human("never mind"), config)
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "human", "ai"]


# Context


@pairwise(mode=MODES, run=["sync", "async"], prompt=[None, "be kind"])
async def test_context_reaches_the_model_and_nothing_else(
    mode: str, prompt: str | None, run: Any, sessions: Sessions
) -> None:
    def context(session: Any, query: str) -> str | None:
        return f"{session.id} knows about {query}" if query != "nothing" else None

    model = Remembering()
    agent = build(sessions, mode, model=model, context=context, system_prompt=prompt)
    config = sessions.config("t")
    await run(agent, human("look up tea"), config)
    await run(agent, human("nothing"), config)
    first, second, third = ([m.text for m in asked if isinstance(m, SystemMessage)] for asked in model._asked)
    assert first == second == [f"{prompt or ''}t knows about look up tea"]
    assert third == ([prompt] if prompt else [])
    assert not any("knows" in m.text for m in agent.get_state(config).values["messages"])
    assert not any("knows" in text for _, text in said(sessions.get("t")))


def systems(model: Remembering) -> list[str]:
    """What the system messages of each call said."""
    return ["".join(m.text for m in asked if isinstance(m, SystemMessage)) for asked in model._asked]


def recalls(model: Remembering) -> list[str]:
    """What each call was given of the memory: a message of its own before what the user said last."""
    found = []
    for asked in model._asked:
        said = [m for m in asked if isinstance(m, HumanMessage)]
        recalled = [m for m in said if m.text.startswith("<memory-")]
        assert recalled in ([], said[-2:-1])
        found.append(recalled[0].text if recalled else "")
    return found


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_recalled_reaches_the_model_and_not_the_state(mode: str, run: Any, sessions: Sessions) -> None:
    sessions.open("before", user_id="alice").memory.remember("Alice drinks green tea", scope="user")
    sessions.open("other", user_id="bob").memory.remember("Bob drinks black tea", scope="user")
    model = Remembering()
    agent = build(sessions, mode, model=model, recall=Recall(), system_prompt="be kind")
    config = sessions.config("t", user_id="alice")
    await run(agent, human("what tea do I drink"), config)
    await run(agent, human("and is it green?"), config)
    assert len(model._asked) >= 2
    assert all(text == "be kind" for text in systems(model))
    assert all(text.count("Alice drinks green tea") == 1 for text in recalls(model))
    assert not any("Bob" in text for text in recalls(model))
    assert not any("what tea do I drink" in text for text in recalls(model)), "it is in the prompt already"
    assert not any("Alice drinks" in m.text for m in agent.get_state(config).values["messages"])
    assert not any("Alice drinks" in text for _, text in said(sessions.get("t")))


async def test_a_turn_recalls_what_another_session_said(run: Any, sessions: Sessions) -> None:
    model = Remembering()
    agent = build(sessions, "attached", model=model, recall=Recall(kinds=["message"]))
    await run(agent, human("my flight leaves on friday"), sessions.config("1", user_id="alice"))
    await run(agent, human("when is the flight?"), sessions.config("2", user_id="alice"))
    await run(agent, human("when is the flight?"), sessions.config("3", user_id="bob"))
    assert ["friday" in text for text in recalls(model)] == [False, True, False]


def test_settings_say_how_much_is_recalled_and_of_which_scopes(sessions: Sessions) -> None:
    memory = sessions.open("t", user_id="alice").memory
    for number in range(20):
        memory.remember(f"green tea number {number}")
    memory.remember("green tea of the user", scope="user")

    def count(recall: Recall) -> int:
        model = Remembering()
        build(sessions, "attached", model=model, recall=recall).invoke(
            {"messages": "green tea, please"}, sessions.config("t", user_id="alice")
        )
        return recalls(model)[0].count("green tea")

    assert count(Recall(kinds=["item"])) == 8
    assert count(Recall(3, kinds=["item"])) == 3
    assert count(Recall(scopes=["user"], kinds=["item"])) == 1
    assert count(Recall(20, kinds=["item"], budget_tokens=60)) in range(2, 8)
    assert count(Recall(budget_tokens=0)) == 0


def test_context_and_recall_go_together(sessions: Sessions) -> None:
    sessions.open("t").memory.remember("green tea is best")
    model = Remembering()
    agent = build(sessions, "attached", model=model, recall=Recall(), context=lambda session, said: f"in {session.id}")
    agent.invoke({"messages": "green tea, please"}, sessions.config("t"))
    assert systems(model) == ["in t"]
    assert "green tea is best" in recalls(model)[0]


@pytest.mark.slow
def test_the_package_is_imported_without_langchain() -> None:
    code = (
        "import sys; sys.modules['langchain'] = None; sys.modules['agents'] = None\n"
        "from session_middleware import Sessions; Sessions(':memory:').open('t')"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root}, cwd=root)


def test_an_answer_of_a_model_has_an_id_before_it_is_recorded(sessions: Sessions) -> None:
    class Nameless(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return AIMessage("by hand")

    agent, config = build(sessions, "alone", Nameless()), sessions.config("t")
    agent.invoke({"messages": [HumanMessage("hi", id="hi")]}, config)
    check_record(sessions, agent, config)
