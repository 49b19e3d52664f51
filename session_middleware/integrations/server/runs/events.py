"""A graph's stream as the events of LangGraph's API: names and payloads by stream mode.

The graph's own stream gives chunks by mode; here they get the names that clients know: ``values``, ``updates``,
``messages/partial`` and so on, with the namespace of a subgraph behind them (``updates|child:…``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, cast

from langchain_core.messages import BaseMessage, BaseMessageChunk, message_chunk_to_message
from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel

from session_middleware.integrations.server.runs.request import RunCreate
from session_middleware.integrations.server.serialization import checkpoint_json

Graph = Pregel[Any, Any, Any, Any]
Named = tuple[str, Any]  # the name of an event, and its payload, which may have any value of a state

_HIDDEN = "langsmith:hidden"


async def events_of(graph: Graph, asked: RunCreate, config: RunnableConfig) -> AsyncGenerator[Named]:
    """Run the graph, and yield its events as they come. Raises what the graph raises."""
    names = _Names(asked.modes, subgraphs=asked.stream_subgraphs)
    modes = sorted({"messages" if mode == "messages-tuple" else mode for mode in asked.modes - {"events"}})
    options: dict[str, Any] = {
        **asked.options(),
        "stream_mode": modes or ["values"],
        "subgraphs": asked.stream_subgraphs,
        "context": asked.context_for(graph),
    }
    if "events" not in asked.modes:
        chunks = graph.astream(asked.graph_input(), config, **options)
        async with aclosing(cast("Any", chunks)) as stream:
            async for chunk in stream:
                for event in names.of(chunk):
                    yield event
        return
    run_id = str(config.get("run_id"))
    found = graph.astream_events(asked.graph_input(), config, version="v2", **options)
    async with aclosing(cast("Any", found)) as stream:
        async for event in stream:
            if _HIDDEN in (event.get("tags") or ()):
                continue
            if event["event"] == "on_chain_stream" and event["run_id"] == run_id:
                for named in names.of(event["data"]["chunk"]):
                    yield named
            else:
                yield "events", event


class _Names:
    """Names the chunks of one run. For the mode ``messages`` it adds up the chunks of each message."""

    def __init__(self, modes: frozenset[str], *, subgraphs: bool) -> None:
        self._modes, self._subgraphs = modes, subgraphs
        self._messages: dict[str | None, Any] = {}

    def of(self, streamed: Any) -> list[Named]:
        namespace, mode, chunk = streamed if self._subgraphs else ((), *streamed)
        if mode == "messages" and "messages-tuple" not in self._modes:
            return self._message(*chunk)
        if mode != "messages" and mode not in self._modes:
            return []
        if mode == "debug" and chunk["type"] == "checkpoint":
            chunk = {**chunk, "payload": _checkpoint(chunk["payload"])}
        return [("|".join((mode, *namespace)), chunk)]

    def _message(self, message: BaseMessage, metadata: Mapping[str, Any]) -> list[Named]:
        """The message so far: of a token the sum of the chunks, as a whole message."""
        found: list[Named] = []
        before = self._messages.get(message.id)
        if before is None:
            found.append(("messages/metadata", {message.id: {"metadata": metadata}}))
        if isinstance(before, BaseMessageChunk) and isinstance(message, BaseMessageChunk):
            message = before + message
        self._messages[message.id] = message
        name = "messages/partial" if isinstance(message, BaseMessageChunk) else "messages/complete"
        return [*found, (name, [message_chunk_to_message(self._messages[message.id])])]


def _checkpoint(payload: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A checkpoint of the mode ``debug``, which names it and its parent, and those of subgraphs in its tasks."""
    if not payload:
        return None
    return {
        **payload,
        "checkpoint": checkpoint_json(payload.get("config")),
        "parent_checkpoint": checkpoint_json(payload.get("parent_config")),
        "tasks": [_task(task) for task in payload["tasks"]],
    }


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    state = task.get("state")
    if not isinstance(state, Mapping) or not state.get("configurable"):
        return dict(task)
    named = {"checkpoint": checkpoint_json(cast("RunnableConfig", state), with_id=False)}
    return {name: value for name, value in task.items() if name != "state"} | named
