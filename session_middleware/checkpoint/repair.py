"""Repair of histories with unanswered tool calls, which model APIs refuse.

An interrupted run leaves such a history. When new input arrives, the missing answers are added as a
checkpoint of their own (source ``update``) with an event, and the run reads that checkpoint. There is no
repair for ``None`` or a `Command`, because they resume the run, which executes the call. New input does
not, even if the call waits for a person: LangGraph drops the pending tasks.

Answers are counted, because some models use one id for several calls, even in one message.

The check is one pass over the messages that were read. The repair reads, decides and writes in one
transaction, so that two processes cannot both repair a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.base.id import uuid6
from langgraph.types import Command

from session_middleware.checkpoint.answers import (
    UnansweredCall,
    left_open,
    recorded_answers,
    state_around,
    tool_messages,
    with_written,
    without_tasks,
)
from session_middleware.errors import SessionBusy
from session_middleware.models import NewId, RepairedCall
from session_middleware.storage.jsonable import is_nothing

if TYPE_CHECKING:
    from session_middleware.checkpoint.saver import SessionSaver
    from session_middleware.storage.protocol import Storage
    from session_middleware.storage.run import RunContext

T = TypeVar("T")

INTERRUPTED = "This tool call was interrupted: it returned no result, and was executed in part or not at all."
UNREADABLE = "This tool call was not executed: its arguments were malformed or truncated."

_NEW_INPUT = "new input"
_TASK, _RESUMING = "__pregel_task_id", "__pregel_resuming"  # a subgraph that is resumed has both
_INTERRUPT, _TASKS, _ROUTE = "__interrupt__", "__pregel_tasks", "branch:to:"


class Recorded(Protocol):
    """The conversation of a session in the record."""

    def read(self) -> list[BaseMessage]: ...

    def add_among(self, context: RunContext, messages: Sequence[BaseMessage], ids: Collection[str]) -> None:
        """Record the messages with these ids, each at its position among the others."""


# Finding the unanswered calls and adding answers: pure functions


class Mended(NamedTuple):
    messages: list[BaseMessage]
    calls: list[RepairedCall]


def unanswered(messages: Sequence[Any]) -> list[UnansweredCall]:
    """The tool calls without an answer, in order. A list that is not a conversation has none.

    A conversation consists of messages only, and not all of them are a model's.
    """
    found: list[UnansweredCall] = []
    answers: Counter[str] = Counter()
    is_conversation = False
    for message in reversed(messages):
        kind = _kind_of(type(message))  # type: ignore[arg-type]  # a class is hashable
        if kind is None:
            return []
        if kind is AIMessage:
            missing: list[UnansweredCall] = []
            for calls in (message.tool_calls, message.invalid_tool_calls):
                for call in calls:
                    if answers[call["id"]] > 0:
                        answers[call["id"]] -= 1
                    elif call["id"]:
                        missing.append(UnansweredCall(message.id, call, calls is message.tool_calls))
            found += reversed(missing)
        elif kind is not BaseMessage:
            is_conversation = True
            if kind is ToolMessage:
                answers[message.tool_call_id] += 1
    return found[::-1] if is_conversation else []


@cache
def _kind_of(cls: Hashable) -> type[BaseMessage] | None:
    """The message class that a class derives from, if any. Cached, because pydantic's `isinstance` is slow."""
    return next(
        (kind for kind in (ToolMessage, HumanMessage, AIMessage, BaseMessage) if issubclass(cast("type", cls), kind)),
        None,
    )


def mend(
    messages: Sequence[BaseMessage], missing: Sequence[UnansweredCall], *, new_id: NewId, namespace: str = ""
) -> Mended:
    """Insert an answer for each missing one: the known answer, or the statement that the call was interrupted.

    An answer before its call is moved behind the call, because model APIs refuse this order.
    """
    answers: dict[int, ToolMessage] = {}
    calls: list[RepairedCall] = []
    early = _without_call(messages)
    moved: list[ToolMessage] = []
    for message_id, call, is_readable, answer in missing:
        name, call_id, kind = call.get("name"), call["id"], "known"
        at = next((place for place, message in enumerate(early) if message.tool_call_id == call_id), None)
        if at is not None:
            answer = early.pop(at)
            moved.append(answer)
        elif answer is None or not is_readable:
            text, kind = (INTERRUPTED, "interrupted") if is_readable else (UNREADABLE, "unreadable")
            answer = ToolMessage(text, name=name, tool_call_id=call_id, status="error")
        answer = answers[id(call)] = answer if answer.id else answer.model_copy(update={"id": new_id()})
        made = {"tool_call_id": call_id, "name": name or "tool", "message_id": message_id, "answer": kind}
        calls.append(RepairedCall(**made, answer_id=str(answer.id), checkpoint_ns=namespace))
    left = [message for message in messages if not any(message is other for other in moved)]
    return Mended(list(_with_answers(left, answers)), calls)


def _without_call(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """The answers to calls that no earlier message contains."""
    due: Counter[str] = Counter()
    found: list[ToolMessage] = []
    for message in messages:
        if isinstance(message, AIMessage):
            due.update(str(call["id"]) for call in (*message.tool_calls, *message.invalid_tool_calls))
        elif isinstance(message, ToolMessage):
            due[message.tool_call_id] -= 1
            if due[message.tool_call_id] < 0:
                due[message.tool_call_id] = 0
                found.append(message)
    return found


def _with_answers(messages: Sequence[BaseMessage], answers: dict[int, ToolMessage]) -> Iterator[BaseMessage]:
    """Insert each answer after the message with its call, and after that message's other answers."""
    pending: list[ToolMessage] = []
    for message in messages:
        if pending and message.type != "tool":
            yield from pending
            pending = []
        yield message
        if isinstance(message, AIMessage) and answers:
            calls = (*message.tool_calls, *message.invalid_tool_calls)
            pending += [answers.pop(id(call)) for call in calls if id(call) in answers]
    yield from pending


# The checkpoint with the answers


def child_of(
    found: CheckpointTuple, changed: dict[str, Any], *, version: Any
) -> tuple[Checkpoint, CheckpointMetadata, ChannelVersions]:
    """A child checkpoint with changed values and without pending tasks, which new input ends."""
    step = found.metadata.get("step", -1) + 1
    ended = [name for name in found.checkpoint["channel_values"] if name == _TASKS or name.startswith(_ROUTE)]
    checkpoint, new_versions = with_values(found.checkpoint, changed, ended, version=version, step=step)
    metadata: CheckpointMetadata = {"source": "update", "step": step, "parents": found.metadata.get("parents", {})}
    return checkpoint, metadata, new_versions


def with_values(
    before: Checkpoint, changed: dict[str, Any], ended: Collection[str] = (), *, version: Any, step: int
) -> tuple[Checkpoint, ChannelVersions]:
    """A new checkpoint with changed values, and without those of the channels that have `ended`."""
    new_versions = dict.fromkeys([*changed, *ended], version)
    values = {name: value for name, value in before["channel_values"].items() if name not in ended}
    checkpoint: Checkpoint = {
        **before,
        "id": str(uuid6(clock_seq=step)),
        "ts": datetime.now(UTC).isoformat(),
        "channel_values": values | changed,
        "channel_versions": before["channel_versions"] | new_versions,
        "updated_channels": sorted(new_versions),
    }
    return checkpoint, new_versions


def _is_waiting(found: CheckpointTuple) -> bool:
    """Whether a task waits at an interrupt."""
    writes = found.pending_writes or ()
    interrupted = {task for task, channel, _ in writes if channel == _INTERRUPT}
    finished = {task for task, channel, _ in writes if not channel.startswith("__")}
    return bool(interrupted - finished)


def is_open(found: CheckpointTuple) -> bool:
    """Whether tools or a person have not answered yet."""
    return _is_waiting(found) or bool(_unanswered_in(found.checkpoint["channel_values"]))


def _unanswered_in(values: Mapping[str, Any]) -> dict[str, list[UnansweredCall]]:
    """The unanswered calls of the channels that have some."""
    found = {name: unanswered(value) for name, value in values.items() if type(value) is list}
    return {name: missing for name, missing in found.items() if missing}


class Repairs:
    """Finds unanswered tool calls and adds their answers, through the saver that reads the state."""

    def __init__(self, storage: Storage, *, new_id: NewId, on_input: bool) -> None:
        self._storage = storage
        self._new_id = new_id
        self._on_input = on_input

    def before_input(
        self, saver: SessionSaver, config: RunnableConfig, context: RunContext, found: CheckpointTuple | None
    ) -> CheckpointTuple | None:
        """The checkpoint that a run starts from: `found`, or a repaired one if the run has new input."""
        namespace = config["configurable"].get("checkpoint_ns", "")
        given = context.subgraph_inputs.pop(without_tasks(namespace), None) if namespace else context.run_input
        context.run_input = None
        is_new = self._on_input and _has_new_input(given, context, config, found)
        if not is_new or found is None or not _unanswered_in(found.checkpoint["channel_values"]):
            return found
        if namespace and given is None:
            given = state_around(config)
        work = partial(self._repair, saver, config, context, given, reason=_NEW_INPUT, dry_run=False)
        return self._in_transaction(context, work)[0]

    def now(
        self, saver: SessionSaver, config: RunnableConfig, context: RunContext, recorded: Recorded, *, dry_run: bool
    ) -> list[RepairedCall]:
        """Repair a session on demand: the latest state of its graph, and of subgraphs with a state of their own.

        In a session without checkpoints the conversation in the record is repaired.

        Raises:
            SessionBusy: A run is in progress, and may produce the answers itself.
        """
        if (holder := self._storage.find_active_run(context.session_id, but=context.lease)) is not None:
            raise SessionBusy(context.session_id, run_id=holder.run_id, process=holder.process)
        namespaces = self._storage.list_checkpoint_namespaces(context.session_id)
        repaired: list[RepairedCall] = []
        for namespace in namespaces:
            if ":" not in namespace:  # a namespace with a task's id belongs to one run
                at, outer, around = _in_namespace(config, namespace), namespace, None
                while outer and around is None:  # its next input contains the answers in the state around it
                    outer = outer.rpartition("|")[0]
                    if (found := saver.load(_in_namespace(config, outer), context)) is not None:
                        around = found.checkpoint["channel_values"]
                job = partial(self._repair, saver, at, context, around, reason="asked for", dry_run=dry_run)
                repaired += self._in_transaction(context, job)[1]
        if not namespaces:
            repaired = self._in_transaction(context, partial(self._repair_record, context, recorded, dry_run=dry_run))
        return repaired

    def _in_transaction(self, context: RunContext, work: Callable[[], T]) -> T:
        result: T = self._storage.run_batch([work], durable=True, of=context.session_id)[0]()
        return result

    def _repair(
        self,
        saver: SessionSaver,
        config: RunnableConfig,
        context: RunContext,
        given: Any,
        *,
        reason: str,
        dry_run: bool,
    ) -> tuple[CheckpointTuple | None, list[RepairedCall]]:
        """Within one transaction, read and repair a checkpoint. Returns the result and the repaired calls."""
        found = saver.load(config, context)
        if (
            found is None
            or found.metadata.get("counters_since_delta_snapshot")  # only the graph has the reducer of such a channel
            or (reason != _NEW_INPUT and _is_waiting(found))  # new input ends the waiting tasks
            or self._storage.find_active_run(context.session_id, but=context.lease)
        ):
            return found, []
        changed, calls = self._answer_channels(found, context.session_id, given)
        if dry_run or not calls:
            return found, calls
        version = saver.get_next_version(max(found.checkpoint["channel_versions"].values()), None)
        checkpoint, metadata, new_versions = child_of(found, changed, version=version)
        at = _of_no_run({**config, "configurable": config["configurable"] | found.config["configurable"]})
        saver.store(at, context, checkpoint, metadata, new_versions)
        checkpoint_id = at["configurable"]["checkpoint_id"] = checkpoint["id"]
        self._storage.append_repair(
            context.session_id, calls, run_id=context.run_id, reason=reason, checkpoint_id=checkpoint_id
        )
        return saver.load(at, context), calls

    def _repair_record(self, context: RunContext, recorded: Recorded, *, dry_run: bool) -> list[RepairedCall]:
        """`_repair` for a conversation that is only in the record."""
        messages = recorded.read()
        missing = recorded_answers(self._storage, context.session_id, unanswered(messages))
        mended = mend(messages, missing, new_id=self._new_id)
        if dry_run or not missing:
            return mended.calls
        recorded.add_among(context, mended.messages, frozenset(call.answer_id for call in mended.calls))
        self._storage.append_repair(
            context.session_id, mended.calls, run_id=context.run_id, reason="asked for", checkpoint_id=None
        )
        return mended.calls

    def _answer_channels(
        self, found: CheckpointTuple, session_id: str, given: Any
    ) -> tuple[dict[str, Any], list[RepairedCall]]:
        values, namespace = found.checkpoint["channel_values"], found.config["configurable"]["checkpoint_ns"]
        changed: dict[str, Any] = {}
        calls: list[RepairedCall] = []
        for name, missing in _unanswered_in(values).items():
            if left := left_open(missing, given, name):
                written = [value for _, channel, value in found.pending_writes or () if channel == name]
                answers = [message for value in written for message in tool_messages(value)]
                left = with_written(recorded_answers(self._storage, session_id, left), answers)
                mended = mend(values[name], left, new_id=self._new_id, namespace=namespace)
                changed[name] = mended.messages
                calls += mended.calls
        return changed, calls


def _in_namespace(config: RunnableConfig, namespace: str) -> RunnableConfig:
    return {**config, "configurable": {**config["configurable"], "checkpoint_ns": namespace}}


def _of_no_run(config: RunnableConfig) -> RunnableConfig:
    """The config without a run id: LangGraph takes a run that finds its own id in a checkpoint for a resumed one."""
    configurable, metadata = (
        {name: value for name, value in (part or {}).items() if name != "run_id"}
        for part in (config.get("configurable"), config.get("metadata"))
    )
    return {**config, "configurable": configurable, "metadata": metadata}


def _has_new_input(given: Any, context: RunContext, config: RunnableConfig, found: CheckpointTuple | None) -> bool:
    """Whether this is the first read of a run with new input.

    Later reads come from inside the run, which is then executing the calls without an answer.
    """
    namespace = config["configurable"].get("checkpoint_ns", "")
    if namespace in context.read_namespaces:
        return False
    context.read_namespaces.add(namespace)
    if namespace:
        return _TASK in config["configurable"] and not config["configurable"].get(_RESUMING)
    run_id = config.get("metadata", {}).get("run_id")  # LangGraph uses the same id when it resumes a run
    is_same = found is not None and run_id is not None and run_id == found.metadata.get("run_id")
    return not is_nothing(given) and not isinstance(given, Command) and not is_same
