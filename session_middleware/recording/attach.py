"""Copies of compiled graphs with a checkpointer, a store and a recorder. The original graph is not changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from types import FunctionType
from typing import Any, TypeVar, cast

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from langgraph._internal._constants import CONFIG_KEY_CHECKPOINTER
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

from session_middleware.checkpoint.classes import TypeName, name_of, named_in
from session_middleware.checkpoint.saver import SessionSaver
from session_middleware.errors import GraphHasPart, NotAGraph
from session_middleware.lifecycle import session_id_of
from session_middleware.models import Identity
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.runtime.run_context import acting_as, as_config, identity_of
from session_middleware.storage.jsonable import is_a

G = TypeVar("G")

_ATTACHED = "__pregel_session_attached"  # LangGraph excludes this prefix from metadata and streams


class _Attached:
    """Mixin of an attached graph's class: it validates ids, and carries the caller's identity to subgraphs' state.

    LangGraph converts a thread id of any type to text before a checkpointer gets it, so ids are validated here.

    To read a subgraph's state, LangGraph makes a config with the thread id only. During such a read, calls without
    an identity get the caller's, and the returned configs of subgraphs contain it.
    """

    def _caller(self, config: RunnableConfig | None, *, is_run: bool = False) -> Identity:
        """Return the caller's identity. Raises `InvalidSessionId` or `InvalidIdentity`.

        Only a run with a checkpointer needs a thread id. A subgraph's checkpointer is the one of the run around it.
        """
        given = ensure_config(config) if is_run else config
        configurable = merge_configs(getattr(self, "config", None), given).get("configurable", {})
        has_saver = isinstance(getattr(self, "checkpointer", None), SessionSaver)
        thread_id = configurable.get("thread_id")
        if thread_id is not None or not is_run or (has_saver and CONFIG_KEY_CHECKPOINTER not in configurable):
            session_id_of(thread_id)
        return identity_of(configurable)

    def stream(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Iterator[Any]:
        self._caller(config, is_run=True)
        return super().stream(input, config, **options)  # type: ignore[misc, no-any-return]

    def astream(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> AsyncIterator[Any]:
        self._caller(config, is_run=True)
        return super().astream(input, config, **options)  # type: ignore[misc, no-any-return]

    def get_state(self, config: RunnableConfig, *, subgraphs: bool = False) -> StateSnapshot:
        identity = self._caller(config)
        with acting_as(identity):
            return _with_identity(super().get_state(config, subgraphs=subgraphs), identity)  # type: ignore[misc]

    async def aget_state(self, config: RunnableConfig, *, subgraphs: bool = False) -> StateSnapshot:
        identity = self._caller(config)
        with acting_as(identity):
            return _with_identity(await super().aget_state(config, subgraphs=subgraphs), identity)  # type: ignore[misc]

    def get_state_history(self, config: RunnableConfig, **options: Any) -> Iterator[StateSnapshot]:
        identity = self._caller(config)
        for state in super().get_state_history(config, **options):  # type: ignore[misc]
            yield _with_identity(state, identity)

    def bulk_update_state(self, config: RunnableConfig, supersteps: Any) -> RunnableConfig:
        self._caller(config)
        return super().bulk_update_state(config, supersteps)  # type: ignore[misc, no-any-return]

    async def abulk_update_state(self, config: RunnableConfig, supersteps: Any) -> RunnableConfig:
        self._caller(config)
        return await super().abulk_update_state(config, supersteps)  # type: ignore[misc, no-any-return]

    async def aget_state_history(self, config: RunnableConfig, **options: Any) -> AsyncIterator[StateSnapshot]:
        identity = self._caller(config)
        async for state in super().aget_state_history(config, **options):  # type: ignore[misc]
            yield _with_identity(state, identity)


def _with_identity(found: StateSnapshot, identity: Identity) -> StateSnapshot:
    """Add the identity to the configs of subgraphs in a snapshot, so that they can be read and updated."""
    tasks = tuple(task._replace(state=_state_with_identity(task.state, identity)) for task in found.tasks)
    return found._replace(tasks=tasks)


def _state_with_identity(state: Any, identity: Identity) -> Any:
    if isinstance(state, StateSnapshot):
        return _with_identity(state, identity)
    if not state:
        return state
    return {**state, "configurable": {**state.get("configurable", {}), **as_config(identity)}}


@cache
def _attached_class(base: type) -> type:
    if issubclass(base, _Attached):
        return base
    return type(base.__name__, (_Attached, base), {"__module__": base.__module__})


def attached(
    graph: G, parts: dict[str, Any], recorder: SessionRecorder | None, *, replace: bool, allowed: set[TypeName]
) -> G:
    """Return a copy of `graph` with `parts` (its checkpointer, its store) and the recorder.

    The types of its state are added to `allowed`, for reads of the state without the graph.
    """
    if not isinstance(graph, Pregel):
        raise NotAGraph(type(graph).__name__)
    for name, part in parts.items():
        own = getattr(graph, name, None)
        is_ours = own is part or (isinstance(part, SessionSaver) and part.serves_with(own))
        if own is not None and not is_ours and not replace:
            raise GraphHasPart(name)
    config = None if recorder is None else _config_with(recorder, graph.config, replace=replace)
    attached_class: Any = _attached_class(type(graph))
    found: Any = attached_class.__new__(attached_class)
    found.__dict__.update(graph.__dict__)
    for name, part in parts.items():
        if name == "checkpointer":
            types = _types_of(graph)
            allowed.update(types)
            part = part.with_allowlist(types)
        setattr(found, name, part)
    # LangGraph refuses a run without any configurable value, and its message does not mention the thread id.
    found.config = merge_configs(config or graph.config, {"configurable": {_ATTACHED: True}})
    return cast("G", found)


def _config_with(recorder: SessionRecorder, config: RunnableConfig | None, *, replace: bool) -> RunnableConfig:
    """Return the graph's config with this recorder. A second recorder would record the same run again."""
    given = (config or {}).get("callbacks")
    handlers = given.handlers if isinstance(given, BaseCallbackManager) else given or []
    others = [handler for handler in handlers if isinstance(handler, SessionRecorder) and handler is not recorder]
    if others and not replace:
        raise GraphHasPart("recorder")
    callbacks: Any = given
    if isinstance(given, BaseCallbackManager):
        callbacks = given.copy()
        for other in others:
            callbacks.remove_handler(other)
    elif given:
        callbacks = [handler for handler in given if handler not in others]
    own: Any = [] if recorder in handlers else [recorder]
    return merge_configs({**(config or {}), "callbacks": callbacks}, {"callbacks": own})


def _types_of(graph: Pregel[Any, Any, Any, Any]) -> Collection[TypeName]:
    """Return the data classes in the schemas of the graph and its subgraphs."""
    graphs = [graph, *(subgraph for _, subgraph in graph.get_subgraphs(recurse=True))]
    schemas: list[Any] = []
    for each in graphs:
        for channel in getattr(each, "channels", {}).values():
            schemas += [getattr(channel, "ValueType", None), getattr(channel, "UpdateType", None)]
        builder = getattr(each, "builder", None)
        if builder is not None:
            schemas += [builder.state_schema, builder.input_schema, builder.output_schema]
            for node in builder.nodes.values():
                schemas += [node.input_schema, *_response_schemas(node.runnable)]
    return {(cls.__module__, name_of(cls)) for cls in named_in(schemas)}


def _response_schemas(node: Any) -> Iterator[type]:
    """Yield the classes of `create_agent`'s ``response_format``, which only the model node's closure refers to."""
    func = getattr(node, "func", None)
    for cell in (func.__closure__ or ()) if is_a(func, FunctionType) else ():
        with suppress(ValueError):  # the cell is empty
            held = cell.cell_contents
            for each in held.values() if is_a(held, dict) else (held,):
                schema = getattr(each, "schema", None) if is_dataclass(type(each)) else None
                if is_a(schema, type):
                    yield schema
