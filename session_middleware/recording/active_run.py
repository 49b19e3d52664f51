"""A run in progress, as the recorder tracks it: its nodes, tools and model calls, and the output of its models."""

from __future__ import annotations

import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from session_middleware.checkpoint.answers import without_tasks
from session_middleware.storage.record_entries import ASIDE, MessageEntry, ModelCallEntry, ToolStart
from session_middleware.storage.run import RunContext

_MAX_SESSIONS = 256
# Suffixes of LangChain's nodes that may answer a tool call without executing the tool.
HOOKS = (".before_agent", ".before_model", ".after_model", ".after_agent")

CallKey: TypeAlias = tuple[str, str]  # the namespace of a node or graph, and a tool call id
Request: TypeAlias = tuple[str, Mapping[str, Any]]  # a message id, and a tool call that this message requests


class Node(NamedTuple):
    """A node of a graph in a run."""

    name: str | None
    namespace: str  # the namespace of its graph, extended by its task
    graph_namespace: str
    step: int | None  # LangGraph's step number
    is_resumed: bool = False  # the run was resumed with an answer, and continues at this node


_NODE_KEYS = ("langgraph_checkpoint_ns", "checkpoint_ns", "langgraph_node", "langgraph_step")


def node_of(metadata: Mapping[str, Any], run: ActiveRun | None = None) -> Node:
    """Return the node that made a call, by the call's metadata. Values that are no text and no number are ignored.

    Its namespaces begin at the outermost graph of the `run`, if one is given.
    """
    found: list[Any] = []
    for key in _NODE_KEYS:
        value = metadata.get(key)
        found.append(value if issubclass(type(value), (str, int)) else None)
    namespace = str(found[0] or found[1] or "")
    if run is not None and namespace:
        if namespace == run.root_namespace:
            return Node(None, "", "", None)
        if run.outer_namespaces and (outer := run.outer_namespaces.get(namespace.partition("|")[0])):
            namespace = f"{outer}|{namespace}"
    return Node(found[2], namespace, namespace.rpartition("|")[0], found[3])


@dataclass(slots=True)
class Tool:
    name: str
    execution_id: str
    started: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class ModelCallInProgress:
    run: ActiveRun
    entry: ModelCallEntry  # what is known of it
    class_name: str  # of the model
    node: Node
    started: float = field(default_factory=time.perf_counter)
    message_id: str | None = None  # of the message being streamed
    parts: list[str] = field(default_factory=list)  # of the streamed text
    is_flushed: bool = False  # a part of the message is recorded
    timer: Any = None
    is_done: bool = False
    inner_ids: set[str] = field(default_factory=set)  # ids of messages that other models returned meanwhile

    @property
    def default_message_id(self) -> str:
        return f"lc_run--{self.entry.id}"  # LangChain's id for a message that comes without one


@dataclass(slots=True)
class ActiveRun:
    context: RunContext
    thread_id: str | None = None  # in the metadata of its calls, if this is that of a run around it
    root_namespace: str = ""  # in the metadata of its outermost call: that of the node which made this call
    started: float = field(default_factory=time.perf_counter)
    has_begun: bool = False  # access was checked, and buffered entries may be written
    observers: int = 0  # `observe` blocks, if no callback reports the run itself
    interrupted: bool = False
    waits: bool = False  # a task was interrupted; the other tasks of its step are not part of the state yet
    is_resumed: bool = False
    prefix_changed: bool = False  # a node removed messages, or a subgraph ran: the beginning of a state may be new
    has_unidentified: bool = False  # a state of the run had messages without ids
    first_step: Any = None  # LangGraph's number of the first observed step
    agents: set[str] = field(default_factory=set)  # the names of the executed nodes
    input_ids: frozenset[str] = frozenset()  # of the messages in the run's input
    input_hashes: dict[str, int] = field(default_factory=dict)  # content hashes of the input messages, by state id
    resumed_checkpoint_id: str | None = None  # the checkpoint that the run was sent back to, without our checkpointer
    nodes: dict[UUID, Node] = field(default_factory=dict)  # running
    graphs: dict[UUID, str] = field(default_factory=dict)  # namespaces of the subgraphs that are running
    callers: dict[UUID, str] = field(default_factory=dict)  # namespaces of the nodes that running chains are part of
    # Of graphs that nodes call with a thread id, by their own nodes' namespaces: LangGraph begins these anew.
    outer_namespaces: dict[str, str] = field(default_factory=dict)
    tools: dict[UUID, Tool] = field(default_factory=dict)  # running
    models: dict[UUID, ModelCallInProgress] = field(default_factory=dict)
    executed: set[CallKey] = field(default_factory=set)  # tool calls whose tool was executed
    prerecorded: dict[CallKey, ToolStart] = field(default_factory=dict)  # starts that the middleware has recorded
    request_by_call: dict[CallKey, list[Request]] = field(default_factory=dict)
    pending_output: list[MessageEntry] = field(default_factory=list)  # model output that no node has returned yet
    lock: threading.Lock = field(default_factory=threading.Lock)  # tools and nodes may run in parallel
    admission: threading.Lock = field(default_factory=threading.Lock)  # and the first ones may begin together

    def add_node(self, run_id: UUID, node: Node) -> Node:
        if self.first_step is None:
            self.first_step = node.step
        self.agents.add(str(node.name))
        self.nodes[run_id] = node = node._replace(is_resumed=self.is_resumed and node.step == self.first_step)
        return node

    def pop_node(self, run_id: UUID) -> Node | None:
        """Remove a node that has ended."""
        if (node := self.nodes.pop(run_id, None)) is not None:
            self.outer_namespaces.pop(node.namespace.rpartition("|")[2], None)
            self.context.subgraph_inputs.pop(without_tasks(node.namespace), None)
        return node

    def outer_step(self, namespace: str) -> int | None:
        """Return the step of the outermost graph in which a subgraph with this namespace runs."""
        outermost = namespace.partition("|")[0]
        return next((node.step for node in list(self.nodes.values()) if node.namespace == outermost), None)

    def index_requests(self, messages: Iterable[MessageEntry]) -> None:
        for message in messages:
            for call in message.tool_calls:
                key = message.checkpoint_ns, str(call.get("id"))
                self.request_by_call.setdefault(key, []).append((message.message_id, call))

    def find_request(self, namespace: str, call_id: str, arguments: Any) -> str | None:
        """Return the id of the message that requested a tool call, executed in this node or in a graph inside it.

        A model may use a tool call id twice. The latest request with these arguments wins, then the latest.
        """
        while not (found := self.request_by_call.get((namespace, call_id), [])) and namespace:
            namespace = namespace.rpartition("|")[0]
        same = [request for request in found if _includes(arguments, request[1].get("args"))] if len(found) > 1 else ()
        return (same or found)[-1][0] if found else None

    def pop_model_output(self, namespace: str | None, already_recorded: Iterable[str] = ()) -> list[MessageEntry]:
        """Remove and return the model output of a node (``None``: of all) that the node has not returned itself.

        It gets the flag `ASIDE`, unless the state turns out to hold the same message under another id.
        """
        if not self.pending_output:
            return []
        own = set(already_recorded)
        aside: list[MessageEntry] = []
        again: list[MessageEntry] = []
        with self.lock:
            output, self.pending_output = self.pending_output, []
            for message in output:
                if namespace is not None and not f"{message.checkpoint_ns}|".startswith(f"{namespace}|"):
                    self.pending_output.append(message)
                elif (message.again or message.message_id) not in own:
                    aside.append(message._replace(again=None, flags=(*message.flags, ASIDE)))
                elif message.again is not None:
                    again.append(message)
        self.context.notes.unclaimed.update({message.claim: message.message_id for message in aside if message.text})
        return [*aside, *again]


def _includes(arguments: Any, requested: Any) -> bool:
    """True if the arguments include all requested ones; a graph may add more."""
    return isinstance(arguments, dict) and isinstance(requested, dict) and requested.items() <= arguments.items()


def elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


class KnownMessages:
    """The messages that this process has recorded lately: content hashes by message id, for each session."""

    def __init__(self) -> None:
        # of the outermost graph, and of subgraphs only
        self._of: Callable[[str], tuple[dict[str, int], dict[str, int]]] = lru_cache(_MAX_SESSIONS)(lambda _: ({}, {}))

    def for_graph(self, run: ActiveRun, namespace: str) -> ChainMap[str, int]:
        """Return the messages known to one graph of a run.

        A message of a subgraph may be new in the outermost graph's state. If our checkpointer serves the run,
        the checkpointer records it there.
        """
        outermost, inside = self._of(run.context.session_id)
        if namespace:
            return ChainMap(inside, outermost, run.input_hashes)
        return ChainMap(outermost, run.input_hashes, *([inside] if run.context.checkpointed else []))

    def outermost(self, session_id: str) -> dict[str, int]:
        """Return the messages known to the outermost graph."""
        return self._of(session_id)[0]

    def forget(self, session_id: str) -> None:
        for known in self._of(session_id):
            known.clear()
