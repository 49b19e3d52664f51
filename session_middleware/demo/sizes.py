"""How large a file the same conversation makes: in ours, and in LangGraph's own SQLite saver's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from session_middleware import Sessions

Agent = CompiledStateGraph[Any, Any, Any, Any]

_QUESTIONS = (
    "What is our refund policy for water filters?",
    "How many headlamps did we sell in the North?",
    "Which product has the highest revenue?",
    "What is 17 * 23?",
    "When is the shop open on Saturday?",
    "What is the revenue by region?",
)


def questions(turns: int) -> Iterator[str]:
    return itertools.islice(itertools.cycle(_QUESTIONS), turns)


def our_size(agent: Agent, path: Path, *, turns: int) -> int:
    """The bytes on disk after the conversation, its record included."""
    with Sessions(path) as sessions:
        _converse(sessions.attach(agent), sessions.config("size"), turns)
    return _size(path)


def langgraph_size(agent: Agent, path: Path, *, turns: int) -> int | None:
    """The bytes on disk in a `SqliteSaver`; ``None`` when its package is not installed."""
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError:
        return None
    with SqliteSaver.from_conn_string(str(path)) as saver:
        _converse(agent.copy(update={"checkpointer": saver}), {"configurable": {"thread_id": "size"}}, turns)
    return _size(path)


def _converse(agent: Agent, config: RunnableConfig, turns: int) -> None:
    for question in questions(turns):
        agent.invoke({"messages": question}, config)


def _size(path: Path) -> int:
    """The file, and whatever SQLite left beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
