"""An async call never makes the event loop wait: no statement, file or lock of ours blocks the loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError, blockbuster_ctx
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.types import Command

from session_middleware import SessionAccessDenied, Sessions, memory_tools
from session_middleware.checkpoint.saver import SessionSaver
from session_middleware.integrations.langchain_agents import SessionMiddleware
from tests.conftest import OpenSessions
from tests.support import agents, scenarios
from tests.support.agents import human


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Iterator[Sessions]:
    """Whatever of ours blocks an event loop raises, as under LangGraph's own server."""
    with open_sessions() as sessions, blockbuster_ctx("session_middleware"):
        yield sessions
        assert sessions.recorder.faults == 0, "something blocked, and the recorder kept that from the run"


async def test_a_call_that_waits_for_storage_on_the_loop_is_noticed(sessions: Sessions) -> None:
    with pytest.raises(BlockingError):
        sessions.list()


async def test_a_graph_runs_without_blocking_the_loop(sessions: Sessions) -> None:
    graph, asking = sessions.attach(agents.tool_graph()), sessions.attach(agents.own_subgraph(asks=True))
    await graph.ainvoke(human("both tea"), sessions.config("t", user_id="alice"))
    runs = [graph.ainvoke(human("look up tea"), sessions.config(f"t{number}")) for number in range(10)]
    await asyncio.gather(*runs)
    await asking.ainvoke(human("hi"), sessions.config("asks"))
    await asking.aget_state(sessions.config("asks"), subgraphs=True)
    await asking.ainvoke(Command(resume="so"), sessions.config("asks"))
    assert [state async for state in asking.aget_state_history(sessions.config("asks"))]
    await asking.aupdate_state(sessions.config("asks"), human("more"), as_node="begin")
    assert [chunk async for chunk in graph.astream(human("ask tea"), sessions.config("stream"))]
    recorded = await sessions.aget("t")
    assert (recorded.message_count, recorded.tool_call_count) == (5, 2)


async def test_a_graph_with_the_checkpointer_alone_runs_without_blocking_the_loop(sessions: Sessions) -> None:
    graph = agents.tool_graph(checkpointer=sessions.checkpointer)
    await graph.ainvoke(human("both tea"), sessions.config("t", user_id="alice"))
    recorded = await sessions.aget("t")
    assert (recorded.user_id, recorded.message_count, recorded.tool_call_count) == ("alice", 5, 2)


async def test_a_graph_with_the_recorder_alone_runs_without_blocking_the_loop(sessions: Sessions) -> None:
    graph, model = agents.tool_graph(), GenericFakeChatModel(messages=iter(["hello"]))
    with_recorder: RunnableConfig = {"callbacks": [sessions.recorder]}
    await graph.ainvoke(human("both tea"), sessions.config("t", user_id="alice") | with_recorder)
    await model.ainvoke("hi", sessions.config("model", user_id="alice") | with_recorder)
    await agents.look_up.ainvoke({"thing": "tea"}, sessions.config("tool", user_id="alice") | with_recorder)
    counts = {each.id: (each.message_count, each.tool_call_count) for each in await sessions.alist()}
    assert counts == {"t": (5, 2), "model": (2, 0), "tool": (0, 1)}
    for call in (
        graph.ainvoke(human("both tea"), sessions.config("t", user_id="mallory") | with_recorder),
        model.ainvoke("hi", sessions.config("t", user_id="mallory") | with_recorder),
        agents.look_up.ainvoke({"thing": "tea"}, sessions.config("t", user_id="mallory") | with_recorder),
    ):
        with pytest.raises(SessionAccessDenied):
            await call


async def test_a_synchronous_run_on_the_thread_of_a_loop_is_refused_as_elsewhere(tmp_path: Path) -> None:
    """As in a notebook, where LangChain drops what a handler's coroutine raises."""
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = agents.tool_graph().with_config(callbacks=[sessions.recorder])
        graph.invoke(human("both tea"), sessions.config("t", user_id="alice"))
        with pytest.raises(SessionAccessDenied):
            graph.invoke(human("both tea"), sessions.config("t", user_id="mallory"))
        assert (sessions.get("t").message_count, sessions.get("t").tool_call_count) == (5, 2)


class Remembering(agents.Scripted):
    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage("noted")
        return AIMessage("", tool_calls=[{"name": "remember", "args": {"text": "Alice likes tea"}, "id": "call-1"}])


async def test_an_agent_with_memory_and_the_middleware_runs_without_blocking_the_loop(sessions: Sessions) -> None:
    tools, middleware = memory_tools(sessions), SessionMiddleware(sessions)
    agent = create_agent(Remembering(), tools, middleware=[middleware], checkpointer=sessions.checkpointer)
    await agent.ainvoke(human("I like tea"), sessions.config("t", user_id="alice"))
    memory = await sessions.amemory(sessions.config("t", user_id="alice"))
    assert [found.text for found in await memory.arecall("tea", kinds=["item"])] == ["Alice likes tea"]


async def test_a_database_is_closed_without_blocking_the_loop(tmp_path: Path) -> None:
    opened = Sessions(tmp_path / "sessions.db")
    with blockbuster_ctx("session_middleware"):
        await opened.attach(agents.tool_graph()).ainvoke(human("both tea"), opened.config("t"))
        await opened.aclose()


async def test_every_method_of_the_checkpointer_is_off_the_loop(sessions: Sessions) -> None:
    saver, config = sessions.checkpointer, sessions.config("t", checkpoint_ns="")
    checkpoint = {**empty_checkpoint(), "channel_values": {"v": [1]}, "channel_versions": {"v": 1}}
    put = await saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {"v": 1})
    calls: dict[str, Any] = {
        "aput": lambda: saver.aput(config, {**checkpoint, "id": "z"}, {"source": "loop", "step": 2}, {"v": 1}),
        "aput_writes": lambda: saver.aput_writes(put, [("v", 1)], "task"),
        "aget_tuple": lambda: saver.aget_tuple(config),
        "aget": lambda: saver.aget(config),
        "alist": lambda: collected(saver.alist(config)),
        "aget_delta_channel_history": lambda: saver.aget_delta_channel_history(config=config, channels=["v"]),
        "acopy_thread": lambda: saver.acopy_thread("t", "u"),
        "aprune": lambda: saver.aprune(["t"]),
        "adelete_for_runs": lambda: saver.adelete_for_runs(["r"]),
        "adelete_thread": lambda: saver.adelete_thread("t"),
    }
    contract = {name for name in dir(BaseCheckpointSaver) if name.startswith("a") and hasattr(SessionSaver, name[1:])}
    assert contract == set(calls)
    for call in calls.values():
        await call()


async def collected(found: Any) -> list[Any]:
    return [one async for one in found]


async def test_a_session_its_memory_and_the_store_are_off_the_loop(sessions: Sessions) -> None:
    session = await sessions.aopen("t", user_id="alice")
    await sessions.attach(scenarios.chat().compile()).ainvoke(scenarios.say("hi"), session.config())
    for call in (
        sessions.aget("t"), sessions.afind("t"), sessions.alist(), sessions.acount(), sessions.asweep(),
        session.amessages(), session.atool_calls(), session.aruns(), session.aevents(), session.atimeline(),
        session.astats(), session.aupdate(title="x"), session.memory.aremember("tea", "k"),
        session.memory.arecall("tea"), session.memory.alist(), session.memory.aforget("k"),
        sessions.store.aput(("notes",), "k", {"text": "tea"}), sessions.store.aget(("notes",), "k"),
        sessions.store.asearch(("notes",), query="tea"), sessions.store.alist_namespaces(),
        sessions.store.adelete(("notes",), "k"), session.adelete(), sessions.adelete("u"),
    ):  # fmt: skip
        await call
