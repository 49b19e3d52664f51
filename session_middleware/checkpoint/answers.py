"""The answers to tool calls that are somewhere else than in the history: in a run's input, in writes, in the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from session_middleware.models import Message, ToolCall
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import SHARED

if TYPE_CHECKING:
    from session_middleware.storage.protocol import Storage

_READ = "__pregel_read"  # of a subgraph's config: reads the state of the graph around it
_DEPTH = 3  # how far below what a graph was called with answers are looked for


class UnansweredCall(NamedTuple):
    """A tool call that was asked for."""

    message_id: str | None
    call: Mapping[str, Any]
    is_readable: bool  # its arguments
    answer: ToolMessage | None = None  # what its tool did say, where that is known


# The answers that an input brings itself


def without_tasks(namespace: str) -> str:
    """The namespace of a subgraph that keeps its state, by one with the tasks of a run in it."""
    return "|".join(part.partition(":")[0] for part in namespace.split("|") if not part.isdigit())


def state_around(config: RunnableConfig) -> Any:
    """The state of the graph around a subgraph, which is most often its input; where nothing has seen that."""
    read = config["configurable"].get(_READ)
    channels = next((part for part in getattr(read, "args", ()) if isinstance(part, Mapping)), None)
    return read(list(channels)) if read is not None and channels else {}


def left_open(missing: Sequence[UnansweredCall], given: Any, channel: str) -> list[UnansweredCall]:
    """The calls that an input does not answer itself: one that a client has carried out, or another agent.

    An input that says again who asked says as well how much of that is answered.
    """
    part = given[channel] if isinstance(given, Mapping) and channel in given else given
    answers: Counter[str] = Counter()  # to calls that the input does not have
    calls: Counter[tuple[str, str]] = Counter()  # that the input has no answer to
    said: set[str] = set()
    for messages in _lists_in(part, _DEPTH):
        found: Counter[str] = Counter()
        for message in reversed(messages):
            if answered := _field(message, "tool_call_id"):
                found[str(answered)] += 1
            for call in _field(message, "tool_calls") or ():
                message_id, call_id = str(_field(message, "id")), str(_field(call, "id"))
                said.add(message_id)
                if found[call_id] > 0:
                    found[call_id] -= 1
                else:
                    calls[message_id, call_id] += 1
        answers += found
    return [asked for asked in missing if not _is_answered(asked, answers, calls, said)]


def _is_answered(asked: UnansweredCall, answers: Counter[str], calls: Counter[tuple[str, str]], said: set[str]) -> bool:
    key = str(asked.message_id), str(asked.call["id"])
    if key[0] in said:
        calls[key] -= 1
        return calls[key] < 0
    answers[key[1]] -= 1
    return answers[key[1]] >= 0


def _lists_in(value: Any, depth: int) -> Iterator[Sequence[Any]]:
    if is_a(value, (list, tuple)):
        yield value
    elif is_a(value, BaseMessage) or _field(value, "tool_call_id"):
        yield (value,)
    if depth and not is_a(value, BaseMessage):
        fields = value if is_a(value, Mapping) else getattr(value, "__dict__", {})  # of a pydantic state, say
        for part in value if is_a(value, (list, tuple)) else fields.values():
            if is_a(part, (list, tuple, Mapping)) and not _field(part, "tool_call_id"):
                yield from _lists_in(part, depth - 1)


def _field(value: Any, name: str) -> Any:
    """Of a message, or of a dict that may be one."""
    if is_a(value, Mapping):
        return value.get(name)
    return getattr(value, name, None) if is_a(value, BaseMessage) else None


# The answers that are known


def tool_messages(value: Any) -> Iterable[ToolMessage]:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return (part for part in parts if isinstance(part, ToolMessage))


def with_written(missing: Sequence[UnansweredCall], written: Sequence[ToolMessage]) -> list[UnansweredCall]:
    """With what some of them did say, though it is not in the history yet: others beside them were cut off."""
    left = list(written)
    found = dict(enumerate(missing))
    for place, asked in sorted(found.items(), key=lambda one: one[1].answer is None):  # the recorded ones first
        mine = [message for message in left if message.tool_call_id == asked.call["id"]]
        same = [message for message in mine if asked.answer is not None and message.content == asked.answer.content]
        if answer := next(iter(same or mine), None):
            left.remove(answer)
            found[place] = asked._replace(answer=answer)
    return list(found.values())


def recorded_answers(storage: Storage, session_id: str, missing: Sequence[UnansweredCall]) -> list[UnansweredCall]:
    """With what some of the calls did say, by the record of their executions and of the messages that answer them."""
    ids = [*dict.fromkeys(asked.call["id"] for asked in missing)]
    executions, messages = storage.find_executions(session_id, ids)
    executed = _executions(missing, executions)
    finished = {place: call for place, call in executed.items() if call.status in ("ok", "error")}
    answers = {place: _from_record(call, messages) for place, call in finished.items()}
    return [asked._replace(answer=answers.get(place)) for place, asked in enumerate(missing)]


def _executions(missing: Sequence[UnansweredCall], executions: list[ToolCall]) -> dict[int, ToolCall]:
    """The latest execution of each call: of several calls with one id the one with the same arguments."""
    times = Counter((asked.message_id, asked.call["id"]) for asked in missing)
    found: dict[int, ToolCall] = {}
    for place, asked in reversed([*enumerate(missing)]):
        key = asked.message_id, asked.call["id"]
        mine = [call for call in executions if (call.message_id, call.tool_call_id) == key]
        same = [call for call in mine if call.arguments == asked.call["args"]]
        if same or (mine and times[key] == 1):
            found[place] = (same or mine)[-1]
            executions.remove(found[place])
    return found


def _from_record(call: ToolCall, messages: list[Message]) -> ToolMessage | None:
    """The message as it was recorded, or else the result; where it is whole and was not withheld."""
    mine = [message for message in messages if message.tool_call_id == call.tool_call_id and message.seq > call.seq]
    same = [message for message in mine if message.text == call.result]
    message = (same or mine)[-1] if mine else None
    if message is not None:
        messages.remove(message)
    if message is not None and message.content is None and not set(message.marks) - {SHARED}:
        return ToolMessage(
            message.text,
            name=call.name,
            tool_call_id=call.tool_call_id,
            id=message.message_id,
            status="error" if call.status == "error" else "success",
        )
    if call.status != "ok" or call.marks or not isinstance(call.result, (str, list)):
        return None
    return ToolMessage(call.result, name=call.name, tool_call_id=call.tool_call_id)
