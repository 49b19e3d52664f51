"""A session as a thread of LangGraph's API: its fields, its metadata, its status, and the graph that it is of.

The thread's id is the session's. Its metadata is the session's, with three keys that the session has elsewhere:
``title``, and ``graph_id`` and ``assistant_id``, which a session that a program of the host opened may lack. Where the
server has one graph, such a session is of this one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, Literal

from fastapi import HTTPException
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from session_middleware import Session
from session_middleware.integrations.server.assistants import Assistant, assistants_of, find_assistant
from session_middleware.integrations.server.serialization import (
    NO_STATE,
    interrupt_json,
    recorded_error_json,
    snapshot_of,
)
from session_middleware.integrations.server.server_state import Server

logger = logging.getLogger("session_middleware")

ThreadStatus = Literal["idle", "busy", "interrupted", "error"]

_LONGEST_TITLE = 1_024
_FROM_STATE = {"values", "interrupts"}
_CHECKPOINT = ("checkpoint_ns", "checkpoint_id", "checkpoint_map")


def find_assistant_of(server: Server, session: Session) -> Assistant | None:
    """The assistant of a thread: the one that its metadata names, else the only one."""
    named = session.metadata.get("graph_id", session.metadata.get("assistant_id"))
    if named is not None:
        return find_assistant(server, named)
    return assistants_of(server)[0] if len(server.graphs) == 1 else None


def get_assistant_of(server: Server, session: Session) -> Assistant:
    """Raises `HTTPException` 400 if the thread is of no graph of this server."""
    found = find_assistant_of(server, session)
    if found is None:
        advice = "create a run in it, or write the name of a graph to the thread's metadata as graph_id"
        raise HTTPException(400, f"the thread is of no graph of this server; {advice}")
    return found


def config_of(session: Session, checkpoint: Mapping[str, Any] | None = None) -> RunnableConfig:
    """The config to read or run a thread, by the caller; of a client's `checkpoint` only what names a checkpoint."""
    named = {name: checkpoint[name] for name in _CHECKPOINT if checkpoint and checkpoint.get(name) is not None}
    return session.config(**named)


async def check_checkpoint(server: Server, config: RunnableConfig) -> None:
    """Raises `HTTPException` 404 if the thread does not have the checkpoint that the config names.

    A graph would begin there with an empty state, as the latest one of the thread.
    """
    if config["configurable"].get("checkpoint_id") and not await server.sessions.checkpointer.aget_tuple(config):
        raise HTTPException(404, "the thread has no such checkpoint; name one of its history")


# Metadata


def metadata_of(server: Server, session: Session) -> dict[str, Any]:
    """The metadata that clients see."""
    known: dict[str, Any] = {} if session.title is None else {"title": session.title}
    if len(server.graphs) == 1 and (assistant := find_assistant_of(server, session)) is not None:
        known |= assistant.as_metadata
    return known | session.metadata


def derived_keys(server: Server) -> set[str]:
    """The keys of `metadata_of` that may not be among a session's metadata."""
    return {"title", "graph_id", "assistant_id"} if len(server.graphs) == 1 else {"title"}


def details_of(metadata: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options of a session for the metadata of a client; a text under ``title`` becomes its title.

    As in LangGraph's API each key is replaced as a whole, while a session merges at every depth: `before` has the
    metadata that is replaced.
    """
    rest = dict(metadata)
    title = rest.get("title")
    found: dict[str, Any] = {}
    if isinstance(title, str) and len(title) <= _LONGEST_TITLE:
        found["title"] = title
        rest["title"] = None
    elif "title" in rest and title is None:
        found["title"] = ""
    return found | {"metadata": _replacing(before or {}, rest)}


def _replacing(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new`, with ``None`` for each key of a nested dict that it does not have, which a merge removes."""
    changed = {}
    for key, value in new.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            value = dict.fromkeys(old, None) | _replacing(old, value)
        changed[key] = value
    return changed


# The thread


def _time_to_live(session: Session) -> dict[str, Any] | None:
    if not session.idle_timeout_seconds or session.on_expire not in ("delete", "prune"):
        return None
    return {
        "strategy": "delete" if session.on_expire == "delete" else "keep_latest",
        "ttl_minutes": session.idle_timeout_seconds / 60,
        "expires_at": session.expires_at,
    }


async def status_of(session: Session) -> ThreadStatus:
    """What the thread does now, or how its latest run ended. A graph that waits for an answer is ``interrupted``."""
    return (await _status_and_error(session))[0]


async def _status_and_error(session: Session) -> tuple[ThreadStatus, dict[str, str] | None]:
    if session.is_running:
        return "busy", None
    if session.waiting_count:
        return "interrupted", None
    runs = await session.aruns(last=1) if session.run_count else []
    if runs and runs[0].outcome == "error":
        return "error", recorded_error_json(runs[0].error)
    return "interrupted" if runs and runs[0].outcome == "interrupted" else "idle", None


async def thread_json(
    server: Server, session: Session, *, fields: Collection[str] = (), with_ttl: bool = False
) -> dict[str, Any]:
    """The thread, or only these fields of it. Its state is read for `values` and `interrupts` only."""

    def wants(*names: str) -> bool:
        return not fields or not set(fields).isdisjoint(names)

    state = await _find_state(server, session) if wants(*_FROM_STATE) else None
    status, error = await _status_and_error(session) if wants("status") else (None, None)
    found = {
        "thread_id": session.id,
        "created_at": session.created_at,
        "updated_at": session.last_active_at,
        "state_updated_at": session.last_active_at,
        "metadata": metadata_of(server, session),
        "config": {},
        "status": status,
        "error": error,
        "values": None if state is None else state.values,
        "interrupts": {} if state is None else _interrupts(state),
    }
    if with_ttl and (ttl := _time_to_live(session)) is not None:
        found["ttl"] = ttl
    return {name: value for name, value in found.items() if wants(name)}


async def read_state(
    server: Server, session: Session, config: RunnableConfig, *, subgraphs: bool = False
) -> StateSnapshot:
    """The state of a thread at a checkpoint, or the latest one; also of a thread that is of no graph of this server."""
    assistant = find_assistant_of(server, session)
    if assistant is not None:
        return await assistant.graph.aget_state(config, subgraphs=subgraphs)
    saved = await server.sessions.checkpointer.aget_tuple(config)
    return NO_STATE if saved is None else snapshot_of(saved)


async def _find_state(server: Server, session: Session) -> StateSnapshot | None:
    """The latest state; ``None`` for a thread that has none, or whose state cannot be read.

    Such a thread must not hide the others of a list: it was deleted meanwhile, has expired for good or is damaged, or
    its graph raises anything, as reducers do for the writes of an input that they cannot merge.
    """
    try:
        state = await read_state(server, session, config_of(session))
    except Exception as error:  # see above
        logger.info("the state of session %r cannot be read", session.id, exc_info=error)
        return None
    return None if state.created_at is None else state


def _interrupts(state: StateSnapshot) -> dict[str, list[dict[str, Any]]]:
    return {task.id: [interrupt_json(each) for each in task.interrupts] for task in state.tasks if task.interrupts}
