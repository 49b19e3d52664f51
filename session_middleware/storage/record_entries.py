"""The entries that the recorder, the checkpointer and hand-written loops pass to an engine.

These sources observe the same messages and calls, some of them twice, and none of them knows the stored
record. Each source passes on its observations, and the engine decides which of them are new.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

ASIDE = "aside"  # flag of a prompt or model output that is in no state and no history
REPORTED = "told"  # flag of a model call that only the usage in a message implies
MERGED = "merged"  # flag of a message of a session that was merged into this one, which is in no checkpoint
SHARED = "shared"  # flag of a subgraph's message that is in the outermost graph's state as well
OF_MEMORY = {"session_middleware": "memory"}  # artifact of our memory tools' answers, which are not indexed again
_RECALLED = re.compile(r"<memory-([0-9a-f]{12})>\n.*\n</memory-\1>", re.DOTALL)

Claim: TypeAlias = tuple[str, str]  # role and content: identifies a message whose id may have changed


def is_of_memory(artifact: dict[Any, Any]) -> bool:
    """Return whether an artifact is `OF_MEMORY`. Others may contain values that cannot be compared."""
    (value,) = artifact.values() if artifact.keys() == OF_MEMORY.keys() else (None,)
    return type(value) is str and value in OF_MEMORY.values()


def is_recalled(content: object) -> bool:
    """Return whether a message consists of the output of `context_for`, which is not indexed again."""
    return isinstance(content, str) and content.startswith("<memory-") and _RECALLED.fullmatch(content) is not None


class Attachment(NamedTuple):
    """An image or a file of a message. The content refers to it by its hash."""

    hash: str  # "sha256:" and 64 hexadecimal digits
    media_type: str | None
    data: bytes


class MessageEntry(NamedTuple):
    """An observed message. The engine decides whether it is new, known, or a new version."""

    message_id: str
    role: str
    text: str
    name: str | None = None
    content: Any = None
    tool_calls: Sequence[dict[str, Any]] = ()
    tool_call_id: str | None = None
    artifact: Any = None  # of a tool message: a value for the application, not for the model
    tool_error: bool = False  # the tool failed
    extra: dict[str, Any] | None = None  # further fields of the message; `status` if a tool failed
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    checkpoint_ns: str = ""
    complete: bool = True  # False: the text streamed so far
    refused: bool = False  # a tool message that answers the call without executing the tool, unless the run executed it
    told: bool = False  # a user message that an agent or the application may have made; the engine verifies it
    minted: bool = False  # the message had no id; this one was generated
    late: bool = False  # from a checkpoint, put after a later state of the run was recorded
    step: int | None = None  # of the checkpoint that it is from, if messages of later steps may be recorded
    followed_by: str | None = None  # the id of its successor, if known
    moved: bool = False  # a recorded message goes before its successor, or to the end without one
    flags: Sequence[str] = ()
    files: Sequence[Attachment] = ()
    created_at: datetime | None = None  # None: now
    call: ModelCallEntry | None = None  # the model call that its usage implies, used if no other entry has it
    again: str | None = None  # from a model cache: the id of the original, which the entry itself is if that is new

    @property
    def claim(self) -> Claim:
        return self.role, self.tool_call_id or self.text


class HistoryEntry(NamedTuple):
    """A complete conversation of a loop, prompt or state, to be aligned with the recorded one.

    `align` gets the recorded messages of the branch and the given ones. `is_said` removes the flag `ASIDE` from
    the recorded messages among the given ones.
    """

    messages: Sequence[MessageEntry]
    align: Callable[[Sequence[ComparableMessage], Sequence[ComparableMessage]], Alignment]
    is_said: bool = False


class ComparableMessage(NamedTuple):
    """A message as `HistoryEntry.align` compares it: its id, if it has one, and its content."""

    message_id: str | None
    words: tuple[Any, ...]  # role, text, content, tool calls, tool call id
    run_id: str | None = None  # of a recorded message; "" if the present run recorded it, and has no id

    def is_same_as(self, recorded: ComparableMessage) -> bool:
        return self.words == recorded.words if self.message_id is None else self.message_id == recorded.message_id


class Alignment(NamedTuple):
    """The result of `HistoryEntry.align`."""

    ids: Sequence[str | None]  # for each given message: the recorded message that it equals or edits, None if it is new
    branch_after: int | None = None  # the conversation leaves the recorded branch after this many messages
    renamed: bool = False  # the given ids are aliases of the recorded messages, also where the text differs


class ToolStart(NamedTuple):
    execution_id: str  # unique; its `ToolEnd` has the same
    tool_call_id: str | None  # None: the latest unexecuted request with these arguments, or a generated id
    name: str
    arguments: Any
    checkpoint_ns: str = ""
    node: str | None = None
    message_id: str | None = None  # the message that requested it, if known
    flags: Sequence[str] = ()
    corrects: bool = False  # changes the arguments of a recorded start with this execution id


class ToolEnd(NamedTuple):
    execution_id: str
    status: str
    result: Any = None
    error: str | None = None
    duration_ms: float | None = None
    artifact: Any = None
    flags: Sequence[str] = ()
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
    cost: Callable[[], float | None] | None = None  # called by the writer, because it may have to load the price table
    first_token_ms: float | None = None
    duration_ms: float | None = None
    error: str | None = None
    message_id: str | None = None
    checkpoint_ns: str = ""
    node: str | None = None
    flags: Sequence[str] = ()
    started_at: datetime | None = None
    by_hand: bool = False  # reported by the application: a message may imply the same call, before or after


def is_reported(taken: Sequence[int | None], seen: Sequence[Sequence[int | None]]) -> bool:
    """Return whether input and output tokens equal those of an observed call, or the sum of the latest calls."""
    total_input = total_output = 0
    for used, returned in reversed(seen):
        total_input, total_output = total_input + (used or 0), total_output + (returned or 0)
        if tuple(taken) in ((used, returned), (total_input, total_output)):
            return True
    return False


class QuestionEntry(NamedTuple):
    """A question that a graph asks at an interrupt. Of an open question that is asked again, the value is replaced."""

    interrupt_id: str | None  # LangGraph's; None: a breakpoint of the graph, which has no value
    value: Any = None
    node: str | None = None
    checkpoint_ns: str = ""
    checkpoint_id: str | None = None  # of the outermost graph, which waits there
    flags: Sequence[str] = ()


class AnswerEntry(NamedTuple):
    """The value with which a person resumes a graph: one answer, or answers by the ids of interrupts."""

    value: Any
    answered_at: datetime
    flags: Sequence[str] = ()


class RunEnd(NamedTuple):
    outcome: str
    error: str | None
    duration_ms: float
    cut_off: bool = True  # tools of the run may still be running
    rejects_answers: bool = False  # the graph refused the answers, and its questions are open again
    is_finished: bool = False  # the graph has reached its end, and waits for nothing


Entry: TypeAlias = (
    MessageEntry | HistoryEntry | ToolStart | ToolEnd | ModelCallEntry | QuestionEntry | AnswerEntry | RunEnd
)
