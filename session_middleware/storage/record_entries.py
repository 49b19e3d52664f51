"""What somebody saw of a run, as it passes to an engine: the entries of the record.

The recorder, the checkpointer and hand-written loops see the same things, some of them twice, and none
of them knows what is recorded. So they tell what they saw, and the engine knows what is new in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

ASIDE = "aside"  # the mark of what was said to or by a model, and is in no state and no history
REPORTED = "told"  # the mark of a model call that nobody saw, and a message told of
SHARED = "shared"  # of what was said in a subgraph, and is in the state of the outermost graph as well
RESUME = "resume"  # of what a person answered a graph that had stopped to ask: it is in no state, and not remembered
OF_MEMORY = {"session_middleware": "memory"}  # the artifact of what our memory tools answer: it is memory already
_RECALLED = re.compile(r"<memory-([0-9a-f]{12})>\n.*\n</memory-\1>", re.DOTALL)

Claim: TypeAlias = tuple[str, str]  # what a message is found by where its id may have changed: who, and what


def is_of_memory(artifact: dict[Any, Any]) -> bool:
    """Whether it is `OF_MEMORY`. Any other may hold values that cannot be compared."""
    (value,) = artifact.values() if artifact.keys() == OF_MEMORY.keys() else (None,)
    return type(value) is str and value in OF_MEMORY.values()


def is_recalled(content: object) -> bool:
    """Whether a message is what `context_for` wrote, and nothing else: nobody's words, and memory already."""
    return isinstance(content, str) and content.startswith("<memory-") and _RECALLED.fullmatch(content) is not None


class Attachment(NamedTuple):
    """An image or a file of a message's content, which refers to it by its hash."""

    hash: str  # "sha256:" and 64 hexadecimal digits
    media_type: str | None
    data: bytes


class MessageEntry(NamedTuple):
    """A message as somebody saw it; whether it is new, known or a new version is the engine's to say."""

    message_id: str
    role: str
    text: str
    name: str | None = None
    content: Any = None
    tool_calls: Sequence[dict[str, Any]] = ()
    tool_call_id: str | None = None
    artifact: Any = None  # of a tool message: what the tool made for its caller and not for the model
    tool_error: bool = False  # a tool message that reports a failure
    extra: dict[str, Any] | None = None  # more fields of the message, by their names; `status` where a tool failed
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    checkpoint_ns: str = ""
    complete: bool = True  # False: as much of it as has been streamed
    refused: bool = False  # a tool message that says no, from somebody who did not run the tool
    told: bool = False  # a message in its user's name that an agent or the app may have made; the engine makes sure
    minted: bool = False  # it came without an id, and this one was made for it
    late: bool = False  # it is of a checkpoint, and a later state of the run has been seen
    followed_by: str | None = None  # the id of the message it stands before, where there is one
    marks: Sequence[str] = ()
    files: Sequence[Attachment] = ()
    created_at: datetime | None = None  # when it was said, where that is not now
    call: ModelCallEntry | None = None  # the model call it tells of, in case nobody has seen that
    again: str | None = None  # said from a cache: the id of what was said first, which it is itself where that is new

    @property
    def claim(self) -> Claim:
        return self.role, self.tool_call_id or self.text


class HistoryEntry(NamedTuple):
    """A whole conversation as a loop or a model was given it, to be aligned with what is recorded.

    `align` is given what the branch holds and what was given, and says what is new in it. What `is_said`
    is no longer said aside, if it was.
    """

    messages: Sequence[MessageEntry]
    align: Callable[[Sequence[ComparableMessage], Sequence[ComparableMessage]], Alignment]
    is_said: bool = False


class ComparableMessage(NamedTuple):
    """A message as `HistoryEntry.align` compares it: its id, if it has one, and its words."""

    message_id: str | None
    words: tuple[Any, ...]  # the role first
    run_id: str | None = None  # of a recorded one: the run it was said in

    def is_same_as(self, recorded: ComparableMessage) -> bool:
        return self.words == recorded.words if self.message_id is None else self.message_id == recorded.message_id


class Alignment(NamedTuple):
    """What a conversation says that is not recorded."""

    ids: Sequence[str | None]  # of each message given: the recorded one that it is, or an edit of it
    branch_after: int | None = None  # it leaves what is recorded after so many messages
    renamed: bool = False  # those known are the recorded ones, in other words or not, and are seen again by their ids


class ToolStart(NamedTuple):
    execution_id: str  # unique to this execution: what `end_tool_call` names it by
    tool_call_id: str | None  # None: the latest request for these arguments that was not executed, or else its own
    name: str
    arguments: Any
    checkpoint_ns: str = ""
    node: str | None = None
    message_id: str | None = None  # the message that asked for it, where that is known
    marks: Sequence[str] = ()
    corrects: bool = False  # it is known by its execution id, and is executed with these arguments


class ToolEnd(NamedTuple):
    execution_id: str
    status: str
    result: Any = None
    error: str | None = None
    duration_ms: float | None = None
    artifact: Any = None
    marks: Sequence[str] = ()
    name: str | None = None  # of the tool
    files: Sequence[Attachment] = ()


class ModelCallEntry(NamedTuple):
    id: str
    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: Callable[[], float | None] | None = None  # asked by the writer: it may load the prices first
    first_token_ms: float | None = None
    duration_ms: float | None = None
    error: str | None = None
    message_id: str | None = None
    checkpoint_ns: str = ""
    node: str | None = None
    marks: Sequence[str] = ()
    started_at: datetime | None = None
    by_hand: bool = False  # told by who made it: a message may have told of it already, or will


def is_reported(taken: Sequence[int | None], seen: Sequence[Sequence[int | None]]) -> bool:
    """Whether these input and output tokens are those of a call that was seen, or of the latest ones together."""
    given = answered = 0
    for asked, said in reversed(seen):
        given, answered = given + (asked or 0), answered + (said or 0)
        if tuple(taken) in ((asked, said), (given, answered)):
            return True
    return False


class RunEnd(NamedTuple):
    outcome: str
    error: str | None
    duration_ms: float
    cut_off: bool = True  # tools may still be at work in it


Entry: TypeAlias = MessageEntry | HistoryEntry | ToolStart | ToolEnd | ModelCallEntry | RunEnd
