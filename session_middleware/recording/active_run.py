"""A run in progress, as the recorder follows it: its nodes, its tools, and what its models are saying."""

from __future__ import annotations

import threading
import time
from collections import ChainMap, Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from session_middleware.checkpoint.answers import without_tasks
from session_middleware.recording.messages import by_whom
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import ASIDE, MessageEntry, ToolStart
from session_middleware.storage.run import RunContext

_SESSIONS_REMEMBERED = 256
_HOOKS = (".before_agent", ".before_model", ".after_model", ".after_agent")  # how LangChain names middleware's nodes

CallKey: TypeAlias = tuple[str, str]  # the namespace of a node, or of its graph; and the id of a tool call
Asking: TypeAlias = tuple[str, Mapping[str, Any]]  # the id of a message, and a tool call in it


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
class ModelCallInProgress:
    """A model at work."""

    trace: ActiveRun
    id: str
    started: float
    started_at: datetime
    model: str | None
    provider: str | None
    namespace: str
    node: str | None
    step: int | None
    message_id: str | None = None  # of what it is saying
    first_token_ms: float | None = None
    parts: list[str] = field(default_factory=list)
    flushed: bool = False  # some of it is written down
    timer: Any = None
    done: bool = False
    inner: set[str] = field(default_factory=set)  # ids of what other models have said meanwhile

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(slots=True)
class ActiveRun:
    visit: RunContext
    started: float = field(default_factory=time.perf_counter)
    begun: bool = False
    interrupted: bool = False
    is_resumed: bool = False
    rewritten: bool = False  # by a node: what a state begins with may be new
    held: bool = False  # a state of it that was seen holds messages without ids
    first_step: Any = None  # LangGraph's number of the first step that was seen
    agents: set[str] = field(default_factory=set)  # the names of the nodes that have run
    ids_given: frozenset[str] = frozenset()  # of the messages it was called with
    given: dict[str, int] = field(default_factory=dict)  # what those are in its state: their words, by their ids
    went_back_to: str | None = None  # the checkpoint a run without a checkpointer of ours was sent back to
    nodes: dict[UUID, Node] = field(default_factory=dict)  # running
    graphs: dict[UUID, str] = field(default_factory=dict)  # running inside of nodes: their namespaces
    tools: dict[UUID, Tool] = field(default_factory=dict)  # running
    models: dict[UUID, ModelCallInProgress] = field(default_factory=dict)  # at work
    executed: Counter[CallKey] = field(default_factory=Counter)  # tool calls, and how often
    foretold: dict[CallKey, ToolStart] = field(default_factory=dict)  # starts that are written down before the tool's
    asking: dict[CallKey, list[Asking]] = field(default_factory=dict)  # what was asked for
    answers: dict[str, set[str]] = field(default_factory=dict)  # the messages that answer a tool call id
    said: list[MessageEntry] = field(default_factory=list)  # by models, and not yet seen in a node's output
    lock: threading.Lock = field(default_factory=threading.Lock)  # tools and nodes may run side by side

    def node_of(self, metadata: Mapping[str, Any]) -> Node:
        step = noted(metadata, "langgraph_step")
        if self.first_step is None:
            self.first_step = step
        namespace = namespace_of(metadata)
        self.agents.add(name := str(noted(metadata, "langgraph_node")))
        return Node(name, namespace, self.is_resumed and step == self.first_step, step)

    def take_node(self, run_id: UUID) -> Node | None:
        """A node that has ended, and what was called in it with it."""
        if (node := self.nodes.pop(run_id, None)) is not None:
            self.visit.inside.pop(without_tasks(node.namespace), None)
        return node

    def outer_step(self, namespace: str) -> int | None:
        """The step of the outermost graph that a graph with this namespace is carried out in."""
        outermost = namespace.partition("|")[0]
        return next((node.step for node in list(self.nodes.values()) if node.namespace == outermost), None)

    def hear(self, message: MessageEntry) -> None:
        with self.lock:
            self.said.append(message)
            self.note_asking([message])

    def note_asking(self, messages: Iterable[MessageEntry]) -> None:
        for message in messages:
            for call in message.tool_calls:
                key = message.checkpoint_ns, str(call.get("id"))
                self.asking.setdefault(key, []).append((message.message_id, call))

    def asked_by(self, namespace: str, call_id: str, arguments: Any) -> str | None:
        """The id of the message that asked for what is executed in a node, or in a graph inside of it.

        Models may use an id again: the latest with these arguments did, or else the latest.
        """
        while not (found := self.asking.get((namespace, call_id), [])) and namespace:
            namespace = namespace.rpartition("|")[0]
        same = [one for one in found if _has(arguments, one[1].get("args"))] if len(found) > 1 else ()
        return (same or found)[-1][0] if found else None

    def judged(self, message: MessageEntry, node: Node | None) -> MessageEntry:
        """Whose a message is; and whether an answer says no: no tool was executed, and its node may say so."""
        if message.role == "user":
            return by_whom(message, self.visit.users_words, self.agents)
        if node is None or message.tool_call_id is None:
            return message
        answers = self.answers.setdefault(message.tool_call_id, set())
        answers.add(message.message_id)
        refused = message.tool_error and len(answers) > self.executions_of(message.tool_call_id)
        return message._replace(refused=True) if refused and node.may_refuse else message

    def executions_of(self, call_id: str) -> int:
        return sum(times for (_, each), times in self.executed.items() if each == call_id)

    def take_said(self, namespace: str | None, told: Iterable[str] = ()) -> list[MessageEntry]:
        """What models said in a node (or anywhere), but what the node has `told` itself.

        It was said aside, unless the state turns out to hold the same under another id.
        """
        own = set(told)
        with self.lock:
            mine = [m for m in self.said if namespace is None or _is_inside(m.checkpoint_ns, namespace)]
            others = set(map(id, mine))
            self.said = [m for m in self.said if id(m) not in others]
        taken = [m._replace(again=None) for m in mine if (m.again or m.message_id) not in own]
        self.visit.unclaimed.update({message.claim: message.message_id for message in taken if message.text})
        aside = [message._replace(marks=(*message.marks, ASIDE)) for message in taken]
        return [*aside, *(message for message in mine if message.again in own)]


def _has(arguments: Any, asked: Any) -> bool:
    """Whether a tool was given what was asked for, and maybe what its graph adds to that."""
    if not isinstance(arguments, Mapping) or not isinstance(asked, Mapping):
        return False
    return all(type(arguments.get(name)) is type(value) and arguments[name] == value for name, value in asked.items())


def _is_inside(namespace: str, outer: str) -> bool:
    return namespace == outer or namespace.startswith(outer + "|")


def noted(metadata: Mapping[str, Any], name: str) -> Any:
    """A text or a number that LangGraph notes in a run's metadata. Any other value there is the caller's own."""
    value = metadata.get(name)
    return value if is_a(value, (str, int)) else None


def namespace_of(metadata: Mapping[str, Any]) -> str:
    return str(noted(metadata, "langgraph_checkpoint_ns") or noted(metadata, "checkpoint_ns") or "")


def since(started: float) -> float:
    """Milliseconds."""
    return round((time.perf_counter() - started) * 1000, 3)


class KnownMessages:
    """The messages this process has recorded lately: what their words were, by their ids."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, dict[str, int]] = OrderedDict()  # by session
        self._inside: dict[str, dict[str, int]] = {}  # of subgraphs only
        self._lock = threading.Lock()  # runs of several sessions begin at once, and forget

    def to(self, trace: ActiveRun, namespace: str) -> ChainMap[str, int]:
        """As a graph of a run knows them. What is known of its subgraphs may be news to the outermost graph's state.

        Where a checkpointer of ours serves that, it says so.
        """
        session_id = trace.visit.session_id
        outermost = self.of(session_id)
        with self._lock:
            inside = self._inside.setdefault(session_id, {})
        if namespace:
            return ChainMap(inside, outermost, trace.given)
        return ChainMap(outermost, trace.given, *([inside] if trace.visit.checkpointed else []))

    def of(self, session_id: str) -> dict[str, int]:
        """In the outermost graph."""
        with self._lock:
            known = self._found.setdefault(session_id, {})
            self._found.move_to_end(session_id)
            while len(self._found) > _SESSIONS_REMEMBERED:
                gone, _ = self._found.popitem(last=False)
                self._inside.pop(gone, None)
            return known

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._found.pop(session_id, None)
            self._inside.pop(session_id, None)


def sentence(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # it is the user's own, whose code may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
