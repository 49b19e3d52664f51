"""Repair: a history that asks for a tool and has no answer is refused by model APIs for ever.

A run that was cut off leaves one, and the next thing its user says makes it worse. So when new input
arrives, the missing answers are added first, as a checkpoint of their own (source ``update``) and
with an event. Never for ``None`` or a `Command`: they carry the call out after all. New input does not,
not even where a call waits for a person: LangGraph drops what waits. What was loaded is not altered: the
run reads the checkpoint that was added.

Answers are counted as calls are, because some models use an id again, even in one message.

The check costs one pass over the messages that were just read. The repair itself is one transaction
that reads, decides and writes, so that two processes do not both make it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

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

INTERRUPTED = "This tool call was interrupted: it gave no result, and was carried out in part or not at all."
UNREADABLE = "This tool call was not carried out: its arguments could not be read."

_NEW_INPUT = "new input"
_TASK, _RESUMING = "__pregel_task_id", "__pregel_resuming"  # a subgraph has both when it is told to go on
_INTERRUPT, _TASKS, _ROUTE = "__interrupt__", "__pregel_tasks", "branch:to:"


# What is missing, and the answers: pure functions


class Recorded(Protocol):
    """A conversation as the record has it."""

    def read(self) -> list[BaseMessage]: ...

    def add_among(self, visit: RunContext, messages: Sequence[BaseMessage], ids: Collection[str]) -> None:
        """Record those of the messages that have these ids, each where it stands among the others."""


class Mended(NamedTuple):
    messages: list[BaseMessage]
    calls: list[RepairedCall]


def unanswered(messages: Sequence[Any]) -> list[UnansweredCall]:
    """The calls without an answer, in order; none unless this is a conversation: messages, and not a model's only."""
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
    """Which kind of message a class is, for pydantic's `isinstance` is slow; ``None`` for what is no message."""
    return next(
        (kind for kind in (ToolMessage, HumanMessage, AIMessage, BaseMessage) if issubclass(cast("type", cls), kind)),
        None,
    )


def mend(
    messages: Sequence[BaseMessage], missing: Sequence[UnansweredCall], *, new_id: NewId, namespace: str = ""
) -> Mended:
    """The messages with an answer after each request that is `missing` one: what is known, or that there is none."""
    answers: dict[int, ToolMessage] = {}
    calls: list[RepairedCall] = []
    for asked in missing:
        answer, kind = _answer(asked, new_id)
        answers[id(asked.call)] = answer
        calls.append(
            RepairedCall(
                tool_call_id=asked.call["id"],
                name=asked.call.get("name") or "tool",
                message_id=asked.message_id,
                answer_id=str(answer.id),
                answer=kind,
                checkpoint_ns=namespace,
            )
        )
    return Mended(list(_with_answers(messages, answers)), calls)


def _answer(asked: UnansweredCall, new_id: NewId) -> tuple[ToolMessage, Any]:
    known = asked.answer
    if known is not None and asked.is_readable:
        return known if known.id else known.model_copy(update={"id": new_id()}), "known"
    text, kind = (INTERRUPTED, "interrupted") if asked.is_readable else (UNREADABLE, "unreadable")
    name, call_id = asked.call.get("name"), asked.call["id"]
    return ToolMessage(text, name=name, tool_call_id=call_id, status="error", id=new_id()), kind


def _with_answers(messages: Sequence[BaseMessage], answers: dict[int, ToolMessage]) -> Iterator[BaseMessage]:
    """Each answer after the message that asked, and after the answers it had."""
    due: list[ToolMessage] = []
    for message in messages:
        if due and message.type != "tool":
            yield from due
            due = []
        yield message
        if isinstance(message, AIMessage) and answers:
            asked = (*message.tool_calls, *message.invalid_tool_calls)
            due += [answers.pop(id(call)) for call in asked if id(call) in answers]
    yield from due


# The checkpoint that has them


def _child(
    found: CheckpointTuple, changed: dict[str, Any], *, version: Any
) -> tuple[Checkpoint, CheckpointMetadata, ChannelVersions]:
    """A checkpoint with other values, in which nothing waits to run: new input ends what did."""
    before, step = found.checkpoint, found.metadata.get("step", -1) + 1
    values = before["channel_values"]
    ended = [name for name in values if name == _TASKS or name.startswith(_ROUTE)]
    new_versions = dict.fromkeys([*changed, *ended], version)
    checkpoint: Checkpoint = {
        **before,
        "id": str(uuid6(clock_seq=step)),
        "ts": datetime.now(UTC).isoformat(),
        "channel_values": {name: value for name, value in values.items() if name not in ended} | changed,
        "channel_versions": before["channel_versions"] | new_versions,
        "updated_channels": sorted(new_versions),
    }
    metadata: CheckpointMetadata = {"source": "update", "step": step, "parents": found.metadata.get("parents", {})}
    return checkpoint, metadata, new_versions


def _is_waiting(found: CheckpointTuple) -> bool:
    """Whether it waits for a person."""
    writes = found.pending_writes or ()
    interrupted = {task for task, channel, _ in writes if channel == _INTERRUPT}
    finished = {task for task, channel, _ in writes if not channel.startswith("__")}
    return bool(interrupted - finished)


def _is_made_of_writes(found: CheckpointTuple) -> bool:
    """Whether only its graph knows how to make its values."""
    return bool(found.metadata.get("counters_since_delta_snapshot"))


def _lacking(values: Mapping[str, Any]) -> Iterator[str]:
    return (name for name, value in values.items() if type(value) is list and unanswered(value))


def _next_version(saver: SessionSaver, checkpoint: Checkpoint) -> Any:
    return saver.get_next_version(max(checkpoint["channel_versions"].values()), None)


class Repairs:
    """Looks for what is missing, and adds it, by whichever saver reads the state."""

    def __init__(self, storage: Storage, *, new_id: NewId, on_input: bool) -> None:
        self._storage = storage
        self._new_id = new_id
        self._on_input = on_input

    def before_input(
        self, saver: SessionSaver, config: RunnableConfig, visit: RunContext, found: CheckpointTuple | None
    ) -> CheckpointTuple | None:
        """What a run goes on from: as it was found, or with the answers its new input would have left out."""
        namespace = config["configurable"].get("checkpoint_ns", "")
        given = visit.inside.pop(without_tasks(namespace), None) if namespace else visit.given
        visit.given = None
        is_new = self._on_input and _brings_input(given, visit, config, found)
        if not is_new or found is None or not any(_lacking(found.checkpoint["channel_values"])):
            return found
        if namespace and given is None:
            given = state_around(config)
        work = partial(self._repair, saver, config, visit, given, reason=_NEW_INPUT, dry_run=False)
        mended: CheckpointTuple | None = self._storage.run_batch([work], durable=True)[0]()[0]
        return mended

    def now(
        self,
        saver: SessionSaver,
        config: RunnableConfig,
        visit: RunContext,
        recorded: Recorded,
        *,
        dry_run: bool,
    ) -> list[RepairedCall]:
        """Repair a session on demand: the latest state of its graph, and of subgraphs that keep theirs.

        Where it has no checkpoints, its conversation is repaired as it is `recorded`.

        Raises:
            SessionBusy: a run is in progress, and may give the answers itself.
        """
        if (holder := self._storage.find_active_run(visit.session_id, but=visit.lease)) is not None:
            raise SessionBusy(visit.session_id, run_id=holder[0], process=holder[1])
        namespaces = self._storage.list_checkpoint_namespaces(visit.session_id)
        if not namespaces:
            by_hand = partial(self._repair_recorded, visit, recorded, dry_run=dry_run)
            repaired: list[RepairedCall] = self._storage.run_batch([by_hand], durable=True)[0]()
            return repaired
        done: list[RepairedCall] = []
        for namespace in namespaces:
            if ":" not in namespace:  # with a task's id in it, it is of one run only
                at: RunnableConfig = {**config, "configurable": {**config["configurable"], "checkpoint_ns": namespace}}
                around = _stored_state_around(saver, at, visit) if namespace else None
                work = partial(self._repair, saver, at, visit, around, reason="asked for", dry_run=dry_run)
                done += self._storage.run_batch([work], durable=True)[0]()[1]
        return done

    def _repair(
        self,
        saver: SessionSaver,
        config: RunnableConfig,
        visit: RunContext,
        given: Any,
        *,
        reason: str,
        dry_run: bool,
    ) -> tuple[CheckpointTuple | None, list[RepairedCall]]:
        """In one transaction: what is there now, and what was added to it."""
        found = saver.load(config, visit)
        if found is None or _is_made_of_writes(found) or (reason != _NEW_INPUT and _is_waiting(found)):
            return found, []  # new input ends what waits
        if self._storage.find_active_run(visit.session_id, but=visit.lease):
            return found, []
        changed, calls = self._mended(found, visit.session_id, given)
        if dry_run or not calls:
            return found, calls
        checkpoint, metadata, new_versions = _child(found, changed, version=_next_version(saver, found.checkpoint))
        key = (visit.session_id, found.config["configurable"]["checkpoint_ns"], checkpoint["id"])
        at: RunnableConfig = {**config, "configurable": config["configurable"] | found.config["configurable"]}
        saver._put(visit, key, at, checkpoint, metadata, new_versions)
        self._storage.append_repair(key[0], calls, run_id=visit.run_id, reason=reason, checkpoint_id=key[2])
        at["configurable"]["checkpoint_id"] = key[2]
        return saver.load(at, visit), calls

    def _repair_recorded(self, visit: RunContext, recorded: Recorded, *, dry_run: bool) -> list[RepairedCall]:
        """As `_repair`, of a conversation that was recorded by hand."""
        messages = recorded.read()
        missing = recorded_answers(self._storage, visit.session_id, unanswered(messages))
        mended = mend(messages, missing, new_id=self._new_id)
        if dry_run or not missing:
            return mended.calls
        recorded.add_among(visit, mended.messages, frozenset(call.answer_id for call in mended.calls))
        self._storage.append_repair(
            visit.session_id, mended.calls, run_id=visit.run_id, reason="asked for", checkpoint_id=None
        )
        return mended.calls

    def _mended(self, found: CheckpointTuple, session_id: str, given: Any) -> tuple[dict[str, Any], list[RepairedCall]]:
        values, namespace = found.checkpoint["channel_values"], found.config["configurable"]["checkpoint_ns"]
        changed: dict[str, Any] = {}
        calls: list[RepairedCall] = []
        for name in _lacking(values):
            missing = left_open(unanswered(values[name]), given, name)
            if missing:
                written = [value for _, channel, value in found.pending_writes or () if channel == name]
                answers = [message for value in written for message in tool_messages(value)]
                missing = with_written(recorded_answers(self._storage, session_id, missing), answers)
                mended = mend(values[name], missing, new_id=self._new_id, namespace=namespace)
                changed[name] = mended.messages
                calls += mended.calls
        return changed, calls


def _stored_state_around(saver: SessionSaver, config: RunnableConfig, visit: RunContext) -> Any:
    """The state of the graph around a subgraph: the next input brings the answers that are there."""
    namespace = config["configurable"]["checkpoint_ns"]
    while namespace:
        namespace = namespace.rpartition("|")[0]
        at: RunnableConfig = {**config, "configurable": {**config["configurable"], "checkpoint_ns": namespace}}
        if (found := saver.load(at, visit)) is not None:
            return found.checkpoint["channel_values"]
    return None


def _brings_input(given: Any, visit: RunContext, config: RunnableConfig, found: CheckpointTuple | None) -> bool:
    """Whether this is the first look of a run that brings new input, which goes on from what it finds.

    Later ones are reads from inside the run, and what has no answer by then is being carried out.
    """
    namespace = config["configurable"].get("checkpoint_ns", "")
    if namespace in visit.looked:
        return False
    visit.looked.add(namespace)
    if namespace:
        return _TASK in config["configurable"] and not config["configurable"].get(_RESUMING)
    run_id = config.get("metadata", {}).get("run_id")  # LangGraph takes the same id again for the same run
    is_same = found is not None and run_id is not None and run_id == found.metadata.get("run_id")
    return not is_nothing(given) and not isinstance(given, Command) and not is_same
