"""The conversation that the checkpointer's benchmarks have, and who may keep it.

Each turn is: the user asks, the model calls a tool, the tool answers, the model answers; that is
four messages and five checkpoints, under ``durability="sync"``, so that every write is waited for.
Whoever keeps it, a thread of the same name has the same words.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from benchmarks.factories import checkpointer, checkpointer_untracked

OURS, UNTRACKED, SQLITE, MEMORY = "session_middleware", "tracking=False", "SqliteSaver", "InMemorySaver"
NONE = "no checkpointer"
_WORDS = ["".join(random.Random(number).choices("etaoinshrdlu", k=2 + number % 8)) for number in range(4000)]


@contextmanager
def open_saver(name: str, path: str) -> Iterator[Any]:
    if name in (OURS, UNTRACKED):
        with (checkpointer if name == OURS else checkpointer_untracked)(path) as saver:
            yield saver
    elif name == SQLITE:
        with SqliteSaver.from_conn_string(path) as saver:
            yield saver
    else:
        yield InMemorySaver() if name == MEMORY else None


@asynccontextmanager
async def aopen_saver(name: str, path: str) -> AsyncIterator[Any]:
    """The same; of LangGraph's the one that is made for asyncio."""
    if name == SQLITE:
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            yield saver
    else:
        with open_saver(name, path) as saver:
            yield saver


class Chat:
    """One thread of a saver. Without a saver it passes the whole history along, and is the floor for all."""

    def __init__(self, saver: Any, thread_id: str = "long") -> None:
        self._random = random.Random(thread_id)
        self._calls = 0
        self._saver = saver
        self._graph = self._build().compile(checkpointer=saver)
        self._config: Any = {"configurable": {"thread_id": thread_id}}
        self._history: list[AnyMessage] = []

    def turn(self) -> float:
        """Seconds of one more turn."""
        given = self._given()
        start = time.perf_counter()
        answer = self._graph.invoke(given, self._config, durability="sync" if self._saver else None)
        return self._taken(start, answer)

    async def aturn(self) -> float:
        given = self._given()
        start = time.perf_counter()
        answer = await self._graph.ainvoke(given, self._config, durability="sync" if self._saver else None)
        return self._taken(start, answer)

    def _given(self) -> dict[str, Any]:
        return {"messages": [*self._history, HumanMessage(self._words(30))]}

    def _taken(self, start: float, answer: Any) -> float:
        taken = time.perf_counter() - start
        if self._saver is None:
            self._history = answer["messages"]
        return taken

    def skip(self, turns: int) -> None:
        """Have these turns behind it, at the cost of one checkpoint."""
        saver, self._saver = self._saver, None
        graph, self._graph = self._graph, self._build().compile()
        for _ in range(turns):
            self.turn()
        self._saver, self._graph = saver, graph
        if saver is not None and turns:
            self._graph.update_state(self._config, {"messages": self._history}, as_node="model")
            self._history = []

    def read(self) -> float:
        """Seconds to read the whole state back."""
        start = time.perf_counter()
        messages = self.messages()
        taken = time.perf_counter() - start
        assert len(messages) == 4 * self._calls
        return taken

    def history(self) -> float:
        """Seconds to read the last 20 checkpoints of the thread."""
        start = time.perf_counter()
        states = list(self._graph.get_state_history(self._config, limit=20))
        taken = time.perf_counter() - start
        assert len(states) == 20
        return taken

    def messages(self) -> list[AnyMessage]:
        return self._graph.get_state(self._config).values["messages"] if self._saver else self._history

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=count))

    def _model(self, state: MessagesState) -> dict[str, Any]:
        usage: Any = {"input_tokens": 900, "output_tokens": 150, "total_tokens": 1050}
        if isinstance(state["messages"][-1], ToolMessage):
            about = {"model_name": "scripted", "finish_reason": "stop"}
            return {"messages": [AIMessage(self._words(120), usage_metadata=usage, response_metadata=about)]}
        self._calls += 1
        call: Any = {"name": "search", "args": {"query": self._words(8)}, "id": f"call-{self._calls}"}
        return {"messages": [AIMessage("", tool_calls=[call], usage_metadata=usage)]}

    def _tool(self, state: MessagesState) -> dict[str, Any]:
        call = state["messages"][-1].tool_calls[0]
        return {"messages": [ToolMessage(self._words(200), tool_call_id=call["id"], name=call["name"])]}

    def _build(self) -> StateGraph[Any, Any, Any, Any]:
        graph = StateGraph(MessagesState)
        graph.add_node("model", self._model)
        graph.add_node("tool", self._tool)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", lambda state: "tool" if state["messages"][-1].tool_calls else END)
        graph.add_edge("tool", "model")
        return graph


def transcript_megabytes(messages: list[AnyMessage]) -> float:
    """The messages as JSON, without the fields that say nothing."""
    lean = [{"type": message.type, **message.model_dump(exclude_defaults=True)} for message in messages]
    return len(json.dumps(lean, separators=(",", ":"))) / 1e6


def megabytes(folder: Path) -> float:
    """What is in the folder, which is to be asked after the database was closed."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


@contextmanager
def process(serve: Any, *arguments: Any) -> Iterator[Connection]:
    """A process of its own that runs ``serve(connection, *arguments)``, and ends when it receives ``None``.

    One peer's garbage is then not collected on another's time.
    """
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["benchmarks.chat"])  # so that all is imported once
    here, there = context.Pipe()
    started = context.Process(target=serve, args=(there, *arguments))
    started.start()
    there.close()  # so that `recv` ends should the process die
    try:
        yield here
    finally:
        here.send(None)
        started.join()
