"""A run in progress, as the recorder follows it: its nodes, its tools, and what its models are saying."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from session_middleware.storage.seen import ASIDE, MessageSeen, ToolStart
from session_middleware.storage.visit import Visit

_SESSIONS_REMEMBERED = 256
_HOOKS = (".before_agent", ".before_model", ".after_model", ".after_agent")  # how LangChain names middleware's nodes


@dataclass(slots=True)
class Node:
    name: str
    namespace: str  # its own: that of its graph, and its task's
    is_resumed: bool  # a person has just answered what the run stopped for, and this is where it goes on
    step: int | None = None  # LangGraph's number of the step it is carried out in

    @property
    def graph_namespace(self) -> str:
        return self.namespace.rpartition("|")[0]

    @property
    def may_refuse(self) -> bool:
        """Whether it may answer for a tool that was not to be executed."""
        return self.is_resumed or self.name.endswith(_HOOKS)


@dataclass(slots=True)
class Tool:
    name: str
    execution_id: str
    started: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Asked:
    """A model at work."""

    trace: Trace
    id: str
    started: float
    started_at: datetime
    model: str | None
    provider: str | None
    namespace: str
    node: str | None
    message_id: str | None = None  # of what it is saying
    first_token_ms: float | None = None
    parts: list[str] = field(default_factory=list)
    flushed: bool = False  # some of it is written down
    timer: Any = None
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(slots=True)
class Trace:
    visit: Visit
    started: float = field(default_factory=time.perf_counter)
    begun: bool = False
    interrupted: bool = False
    is_resumed: bool = False
    rewritten: bool = False  # by the latest node: what its state begins with may be new
    first_step: Any = None  # LangGraph's number of the first step that was seen
    ids_given: frozenset[str] = frozenset()  # of the messages it was called with
    given: dict[str, int] = field(default_factory=dict)  # what those are in its state: their words, by their ids
    went_back_to: str | None = None  # the checkpoint a run without a checkpointer of ours was sent back to
    nodes: dict[UUID, Node] = field(default_factory=dict)  # running
    graphs: dict[UUID, str] = field(default_factory=dict)  # running inside of nodes: their namespaces
    tools: dict[UUID, Tool] = field(default_factory=dict)  # running
    models: dict[UUID, Asked] = field(default_factory=dict)  # at work
    executed: set[str] = field(default_factory=set)  # ids of tool calls that were
    foretold: dict[str, ToolStart] = field(default_factory=dict)  # starts that are written down before the tool's own
    asking: dict[str, str] = field(default_factory=dict)  # the message that asked for a tool call
    said: list[MessageSeen] = field(default_factory=list)  # by models, and not yet seen in a node's output
    lock: threading.Lock = field(default_factory=threading.Lock)  # tools and nodes may run side by side

    def node_of(self, metadata: Mapping[str, Any]) -> Node:
        step = metadata.get("langgraph_step")
        if self.first_step is None:
            self.first_step = step
        namespace = namespace_of(metadata)
        return Node(str(metadata.get("langgraph_node")), namespace, self.is_resumed and step == self.first_step, step)

    def outer_step(self, namespace: str) -> int | None:
        """The step of the outermost graph that a graph with this namespace is carried out in."""
        outermost = namespace.partition("|")[0]
        return next((node.step for node in list(self.nodes.values()) if node.namespace == outermost), None)

    def hear(self, message: MessageSeen) -> None:
        with self.lock:
            self.said.append(message)

    def take_said(self, namespace: str | None, told: Iterable[str] = ()) -> list[MessageSeen]:
        """What models said in a node (or anywhere), but what the node has `told` itself.

        It was said aside, unless the state turns out to hold the same under another id.
        """
        own = set(told)
        with self.lock:
            mine = [m for m in self.said if namespace is None or _is_inside(m.checkpoint_ns, namespace)]
            self.said = [m for m in self.said if m not in mine]
        taken = [message for message in mine if message.message_id not in own]
        self.visit.unclaimed.update({message.claim: message.message_id for message in taken if message.text})
        return [message._replace(marks=(*message.marks, ASIDE)) for message in taken]


def _is_inside(namespace: str, outer: str) -> bool:
    return namespace == outer or namespace.startswith(outer + "|")


def namespace_of(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("langgraph_checkpoint_ns") or metadata.get("checkpoint_ns") or "")


def since(started: float) -> float:
    """Milliseconds."""
    return round((time.perf_counter() - started) * 1000, 3)


class KnownMessages:
    """The messages this process has recorded lately: what their words were, by their ids."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, dict[str, int]] = OrderedDict()  # by session

    def of(self, session_id: str) -> dict[str, int]:
        known = self._found.setdefault(session_id, {})
        self._found.move_to_end(session_id)
        while len(self._found) > _SESSIONS_REMEMBERED:
            self._found.popitem(last=False)
        return known

    def forget(self, session_id: str) -> None:
        self._found.pop(session_id, None)


def sentence(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # it is the user's own, whose code may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
