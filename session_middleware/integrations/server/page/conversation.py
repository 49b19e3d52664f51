"""A session as a chat: messages, with the tool calls, questions and events between them.

A page of it begins at a message. It is read with few statements, whatever the length of the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from session_middleware.models import Branch, Event, Message, Question, ToolCall
from session_middleware.session import Session

PAGE = 50  # messages
_MOST_LIVE = 500  # messages of a page that grows while it is open
_MOST_BESIDE = 1_000  # tool calls, questions or events of a page
_END = 2**63
_UNSHOWN_EVENTS = frozenset({"resumed", "connected"})
_FILE = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Call:
    """A tool call that a message asked for, or that was recorded without one."""

    name: str
    arguments: Any
    execution: ToolCall | None = None  # None: only the messages know of it
    answer: Message | None = None
    asked_by: int = 0  # the seq of the message

    @property
    def status(self) -> str:
        if self.execution is not None:
            return self.execution.status
        if self.answer is None:
            return "unanswered"
        return "error" if (self.answer.extra or {}).get("status") == "error" else "ok"

    @property
    def is_failed(self) -> bool:
        return self.status in ("error", "refused", "interrupted")


@dataclass(frozen=True)
class Entry:
    """One thing that a conversation shows."""

    kind: str  # "message", "call", "question" or "event"
    seq: int
    record: Message | Question | Event | None = None
    calls: list[Call] = field(default_factory=list)
    branches: Sequence[Branch] = ()  # that begin after it
    files: Sequence[str] = ()  # images and other files of a message


class Place(NamedTuple):
    """Which page of a session is asked for, by the `seq` of records; without any, the last one."""

    before: int | None = None  # it ends before this one
    start: int | None = None  # it begins with this one
    since: int | None = None  # it is the last page, which began with this one, and has grown since

    @property
    def is_last(self) -> bool:
        return self.before is None and self.start is None


class Conversation(NamedTuple):
    """What the view of a conversation shows: one branch of it, or a page of it."""

    entries: list[Entry]
    first_seq: int  # of its messages; 0: there are none
    has_earlier: bool
    later: int | None  # the seq with which the next page begins; None: this is the last one


async def conversation_of(session: Session, place: Place, branch: str | None = None) -> Conversation:
    """A page of a conversation.

    Args:
        branch: a branch of the session; by default the current one.
    """
    read = partial(session.amessages, subgraphs=False, branch=branch)
    later = place.before
    if place.start is not None:
        found = await read(after=place.start - 1, limit=PAGE + 1)
        messages, later = found[:PAGE], found[PAGE].seq if len(found) > PAGE else None
    elif place.since is not None:
        messages = await read(after=place.since - 1, last=_MOST_LIVE)
    else:
        found = await read(before=place.before, last=PAGE + 1)
        messages = found[-PAGE:]
    first = messages[0].seq if messages else 0
    has_earlier = bool(messages and await read(before=first, last=1))
    after = first - 1 if has_earlier else 0
    calls = await session.atool_calls(after=after, limit=_MOST_BESIDE)
    questions = await session.aquestions(after=after, limit=_MOST_BESIDE)
    events = await session.aevents(after=after, limit=_MOST_BESIDE)
    beside: list[Question | Event] = [*questions, *(event for event in events if event.kind not in _UNSHOWN_EVENTS)]
    shown = branch or session.branch
    branches = [one for one in await session.abranches() if one.id != shown]
    return Conversation(_entries(messages, calls, beside, branches, later or _END), first, has_earlier, later)


def _entries(
    messages: Sequence[Message],
    executions: Sequence[ToolCall],
    beside: Iterable[Question | Event],
    branches: Sequence[Branch],
    end: int,
) -> list[Entry]:
    """The entries of a page that ends before the seq `end`."""
    executed: dict[tuple[str | None, str | None], ToolCall] = {}
    executed.update(((call.message_id, call.tool_call_id), call) for call in executions)  # the last attempt
    answers = {message.tool_call_id: message for message in messages if message.role == "tool"}
    asked: set[str | None] = set()
    entries: list[Entry] = []
    for message in messages:
        if message.role == "tool" and message.tool_call_id in asked:
            continue
        calls = []
        for request in message.tool_calls:
            call_id = request.get("id")
            asked.add(call_id)
            execution = executed.pop((message.message_id, call_id), None)
            name, arguments = str(request.get("name")), request.get("args")
            calls.append(Call(name, arguments, execution, answers.get(call_id), message.seq))
        following = [branch for branch in branches if branch.parent_seq == message.seq]
        entries.append(Entry("message", message.seq, message, calls, following, files_of(message.content)))
    alone = [call for call in executed.values() if not call.message_id and not call.checkpoint_ns]
    others = [Entry("question" if isinstance(one, Question) else "event", one.seq, one) for one in beside]
    others += [Entry("call", call.seq, calls=[Call(call.name, call.arguments, call)]) for call in alone]
    return _merged(entries, sorted((one for one in others if one.seq < end), key=lambda entry: entry.seq))


def _merged(messages: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """The messages in their order, each other entry before the first message that was recorded after it."""
    found: list[Entry] = []
    waiting = list(reversed(others))
    for entry in messages:
        while waiting and waiting[-1].seq < entry.seq:
            found.append(waiting.pop())
        found.append(entry)
    return found + waiting[::-1]


def files_of(content: Any) -> list[str]:
    """The hashes of the files that a message's content has."""
    if isinstance(content, dict):
        return [found for part in content.values() for found in files_of(part)]
    if isinstance(content, list):
        return [found for part in content for found in files_of(part)]
    return _FILE.findall(content) if isinstance(content, str) and len(content) < 500 else []
