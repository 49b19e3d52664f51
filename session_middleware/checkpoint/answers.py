"""Answers to tool calls that are not in the history: in a run's input, in pending writes, or in the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from session_middleware.models import Message, ToolCall
from session_middleware.storage.jsonable import is_a, stored_id
from session_middleware.storage.record_entries import SHARED

if TYPE_CHECKING:
    from session_middleware.storage.protocol import Storage

_READ = "__pregel_read"  # in a subgraph's config: a function that reads the outer graph's state
_DEPTH = 3  # levels of a graph's input that are searched for answers


class UnansweredCall(NamedTuple):
    """A tool call without an answer in the history."""

    message_id: str | None
    call: Mapping[str, Any]
    is_readable: bool  # whether the model's arguments could be parsed
    answer: ToolMessage | None = None  # from the record or a pending write


# Answers in an input


@lru_cache(maxsize=256)  # called when a node begins and when it ends
def without_tasks(namespace: str) -> str:
    """The namespace of a subgraph, without the ids of a run's tasks."""
    return "|".join(part.partition(":")[0] for part in namespace.split("|") if not part.isdigit())


def state_around(config: RunnableConfig) -> Any:
    """The state of the graph around a subgraph. It stands for the subgraph's input if no callback reported that."""
    read = config["configurable"].get(_READ)
    channels = next((part for part in getattr(read, "args", ()) if isinstance(part, Mapping)), None)
    return read(list(channels)) if read is not None and channels else {}


def left_open(missing: Sequence[UnansweredCall], given: Any, channel: str) -> list[UnansweredCall]:
    """The missing calls that a run's input does not answer. A client or another agent may have executed a call.

    If the input repeats the message with the calls, only its own list counts for their answers.
    """
    part = given[channel] if isinstance(given, Mapping) and channel in given else given
    answers: Counter[str] = Counter()  # to calls that are not in the input
    calls: Counter[tuple[str, str]] = Counter()  # in the input, without an answer there
    repeated: set[str] = set()  # the ids of messages in the input
    for messages in _lists_in(part, _DEPTH):
        found: Counter[str] = Counter()
        for message in reversed(messages):
            if answered := _field(message, "tool_call_id"):
                found[str(answered)] += 1
            for call in _field(message, "tool_calls") or ():
                message_id, call_id = str(_field(message, "id")), str(_field(call, "id"))
                repeated.add(message_id)
                if found[call_id] > 0:
                    found[call_id] -= 1
                else:
                    calls[message_id, call_id] += 1
        answers += found
    left: list[UnansweredCall] = []
    for unanswered in missing:
        key = str(unanswered.message_id), str(unanswered.call["id"])
        if key[0] in repeated:
            calls[key] -= 1
            is_answered = calls[key] < 0
        else:
            answers[key[1]] -= 1
            is_answered = answers[key[1]] >= 0
        if not is_answered:
            left.append(unanswered)
    return left


def _lists_in(value: Any, depth: int) -> Iterator[Sequence[Any]]:
    if is_a(value, (list, tuple)):
        yield value
    elif is_a(value, BaseMessage) or _field(value, "tool_call_id"):
        yield (value,)
    if depth and not is_a(value, BaseMessage):
        fields = value if is_a(value, Mapping) else getattr(value, "__dict__", {})  # such as a pydantic state
        for part in value if is_a(value, (list, tuple)) else fields.values():
            if is_a(part, (list, tuple, Mapping)) and not _field(part, "tool_call_id"):
                yield from _lists_in(part, depth - 1)


def _field(value: Any, name: str) -> Any:
    """A field of a message, or of a dict that may be one."""
    if is_a(value, Mapping):
        return value.get(name)
    return getattr(value, name, None) if is_a(value, BaseMessage) else None


# Answers in pending writes and in the record


def tool_messages(value: Any) -> Iterable[ToolMessage]:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return (part for part in parts if isinstance(part, ToolMessage))


def with_written(missing: Sequence[UnansweredCall], written: Sequence[ToolMessage]) -> list[UnansweredCall]:
    """Add the answers from the pending writes of a super-step that did not finish."""
    left = list(written)
    calls = dict(enumerate(missing))
    for index, call in sorted(calls.items(), key=lambda entry: entry[1].answer is None):  # those in the record first
        own = [message for message in left if message.tool_call_id == call.call["id"]]
        equal = [message for message in own if call.answer is not None and message.content == call.answer.content]
        if answer := next(iter(equal or own), None):
            left.remove(answer)
            calls[index] = call._replace(answer=answer)
    return list(calls.values())


def recorded_answers(storage: Storage, session_id: str, missing: Sequence[UnansweredCall]) -> list[UnansweredCall]:
    """Add the answers from the record: the tools' messages, or else the results of the executions."""
    ids = [*dict.fromkeys(unanswered.call["id"] for unanswered in missing)]
    executions, messages = storage.find_executions(session_id, ids)
    executed = _executions(missing, executions)
    finished = {index: call for index, call in executed.items() if call.status in ("ok", "error")}
    answers = {index: _recorded_answer(call, messages) for index, call in finished.items()}
    return [unanswered._replace(answer=answers.get(index)) for index, unanswered in enumerate(missing)]


def _executions(missing: Sequence[UnansweredCall], executions: list[ToolCall]) -> dict[int, ToolCall]:
    """The latest execution of each call. Calls that share an id are told apart by their arguments."""
    counts = Counter((unanswered.message_id, unanswered.call["id"]) for unanswered in missing)
    found: dict[int, ToolCall] = {}
    for index, unanswered in reversed([*enumerate(missing)]):
        key = unanswered.message_id, unanswered.call["id"]
        recorded = tuple(stored_id(given) if isinstance(given, str) else given for given in key)
        own = [call for call in executions if (call.message_id, call.tool_call_id) == recorded]
        equal = [call for call in own if call.arguments == unanswered.call["args"]]
        if equal or (own and counts[key] == 1):
            found[index] = (equal or own)[-1]
            executions.remove(found[index])
    return found


def _recorded_answer(call: ToolCall, messages: list[Message]) -> ToolMessage | None:
    """The recorded message, or else the result, unless it was redacted or is incomplete."""
    own = [message for message in messages if message.tool_call_id == call.tool_call_id and message.seq > call.seq]
    equal = [message for message in own if message.text == call.result]
    message = (equal or own)[-1] if own else None
    if message is not None:
        messages.remove(message)
    if message is not None and message.content is None and not set(message.flags) - {SHARED}:
        return ToolMessage(
            message.text,
            name=call.name,
            tool_call_id=call.tool_call_id,
            id=message.message_id,
            status="error" if call.status == "error" else "success",
        )
    if call.status != "ok" or call.flags or not isinstance(call.result, (str, list)):
        return None
    return ToolMessage(call.result, name=call.name, tool_call_id=call.tool_call_id)
