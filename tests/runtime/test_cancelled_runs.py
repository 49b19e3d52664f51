"""A run that is cancelled while a thread still works for it, as when a client has gone away."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionBusy, Sessions
from session_middleware.checkpoint.serde import StrictSerializer
from tests.support import agents
from tests.support.agents import human


class Held(StrictSerializer):
    """Serialises; once it `is_armed`, not before it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_armed = False
        self.reached, self.go_on = threading.Event(), threading.Event()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if self.is_armed:
            self.is_armed = False
            self.reached.set()
            self.go_on.wait(30)
        return super().dumps_typed(obj)


@tool
def look_up(thing: str) -> str:
    """What a thing is, if it were not cut off."""
    raise KeyboardInterrupt


async def test_a_run_that_is_cancelled_while_its_repair_is_written_has_ended(tmp_path: Path) -> None:
    serde = Held()
    with Sessions(tmp_path / "sessions.db", serde=serde) as sessions:
        config = sessions.config("t")
        with pytest.raises(KeyboardInterrupt):
            sessions.attach(agents.tool_graph(look_up)).invoke(human("look up tea"), config)
        graph = sessions.attach(agents.tool_graph())
        serde.is_armed = True
        run = asyncio.create_task(graph.ainvoke(human("hello"), config))
        await asyncio.to_thread(serde.reached.wait, 30)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        serde.go_on.set()
        await graph.ainvoke(human("next"), config)
        session = sessions.get("t")
        assert [run.outcome for run in session.runs()] == ["interrupted", "interrupted", "ok"]
        assert [event.kind for event in session.events()] == ["opened", "resumed", "repaired", "resumed"]
        assert sessions.check() == []


class Tidying:
    """A node that is not done with cleaning up when it is cancelled, however often, before it `may_end`."""

    def __init__(self) -> None:
        self.entered, self.cleaning, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.begun = self.cancelled = self.ended = 0

    async def node(self, state: Any) -> dict[str, Any]:
        self.begun += 1
        if self.begun == 2:  # a task that is cancelled before it begins never ends
            self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.cancelled == 2:
                self.cleaning.set()
            while not self.may_end.is_set():
                try:
                    await self.may_end.wait()
                except asyncio.CancelledError:
                    continue
            self.ended += 1
            raise
        raise AssertionError("it was not cancelled")

    def graph(self, *, nested: bool) -> Any:
        builder = StateGraph(MessagesState)
        for name in ("one", "two"):
            builder.add_node(name, self.node).add_edge(START, name)
        return (
            StateGraph(MessagesState).add_node("inner", builder.compile()).add_edge(START, "inner")
            if nested
            else builder
        )


def answering(state: Any) -> dict[str, Any]:
    return {"messages": [("ai", "ok")]}


def compiled(part: str, builder: Any, sessions: Sessions) -> Any:
    if part == "attached":
        return sessions.attach(builder.compile())
    if part == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer)
    return builder.compile().with_config(callbacks=[sessions.recorder])


async def cancel_until_it_ends(run: asyncio.Task[Any]) -> None:
    while not run.done():
        run.cancel()
        await asyncio.sleep(0)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("part", ["attached", "checkpointer", "recorder"])
async def test_a_run_that_is_cancelled_again_while_it_cleans_up_holds_its_session_until_its_tasks_end(
    part: str, nested: bool, tmp_path: Path
) -> None:
    tidying, quick = Tidying(), StateGraph(MessagesState).add_node("node", answering).add_edge(START, "node")
    path = tmp_path / "sessions.db"
    with Sessions(path, on_busy="reject") as sessions, Sessions(path, on_busy="wait", busy_timeout="60s") as others:
        sessions.open("t")
        graph = compiled(part, tidying.graph(nested=nested), sessions)
        run = asyncio.create_task(asyncio.wait_for(graph.ainvoke(human("hi"), sessions.config("t")), 60))
        try:
            await tidying.entered.wait()
            run.cancel()
            await tidying.cleaning.wait()
            await cancel_until_it_ends(run)
            sessions._background.renew_leases()
            assert (tidying.ended, sessions.get("t").is_running) == (0, True)
            with pytest.raises(SessionBusy):
                await compiled(part, quick, sessions).ainvoke(human("beside"), sessions.config("t"))
            waiting = asyncio.create_task(compiled(part, quick, others).ainvoke(human("next"), others.config("t")))
        finally:
            tidying.may_end.set()
        await waiting
        while sessions.get("t").is_running:  # a run with the recorder alone is refused, and does not wait
            await asyncio.sleep(0)
        assert tidying.ended == 2
        sessions.settle()
        outcomes = [run.outcome for run in others.get("t").runs()]
        assert outcomes == ([] if part == "checkpointer" else ["interrupted", "ok"])
        assert sessions.check() == []
