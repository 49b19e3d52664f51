"""The values of the domain: what a reader of the database, or of a session, gets in hand.

All are frozen pydantic models whose field names are the column names. Times are aware UTC
``datetime``; in the database they are ISO-8601 text with milliseconds (`to_text`, `from_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from session_middleware.display.text import repr_parts

Clock: TypeAlias = Callable[[], datetime]
NewId: TypeAlias = Callable[[], str]

Status: TypeAlias = Literal["active", "idle", "expired", "completed", "failed", "abandoned"]
Closed: TypeAlias = Literal["completed", "failed", "abandoned"]  # what a session is ended as on purpose
Visibility: TypeAlias = Literal["private", "group", "group-write"]
OnExpire: TypeAlias = Literal["keep", "prune", "archive", "delete"]
Access: TypeAlias = Literal["owner", "host"]
OnResume: TypeAlias = Literal["revive", "fresh", "reject"]
OpenedAs: TypeAlias = Literal["opened", "resumed", "revived", "reopened", "forked"]
Admission: TypeAlias = Literal["opened", "resumed", "revived", "reopened", "fresh"]
Scope: TypeAlias = Literal["session", "user", "group", "global"]
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

CallStatus: TypeAlias = Literal["running", "ok", "error", "refused", "interrupted"]
CALL_STATUSES: tuple[CallStatus, ...] = get_args(CallStatus)

MAX_ID_LENGTH = 1024
LONGEST = timedelta(days=36_525)  # that a duration of a setting may be

# What a session's row may say, so that the moments of its expiry can be computed.
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=LONGEST.total_seconds())]
Moment: TypeAlias = Annotated[AwareDatetime, Field(lt=datetime(9000, 1, 1, tzinfo=UTC))]


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """ISO-8601 UTC with milliseconds, which sorts as text: ``2026-01-31T12:00:00.000Z``."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds")[:-6] + "Z"


def from_text(text: str) -> datetime:
    return datetime.fromisoformat(text)


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # built when first used
    _unsaid: ClassVar[frozenset[str]] = frozenset()  # what `repr` leaves out, beside what says nothing

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        fields = type(self).model_fields
        said = {name: getattr(self, name) for name in fields if name not in self._unsaid}
        return repr_parts(said, {name: field.default for name, field in fields.items()})

    def __str__(self) -> str:
        return repr(self)


class Identity(Value):
    """Who is asking. Nobody in particular, when both are ``None``."""

    user_id: str | None = None
    group_id: str | None = None
    group_ids: tuple[str, ...] = ()  # further groups they are in

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(self.group_ids) | ({self.group_id} if self.group_id is not None else frozenset())


class Pin(Value):
    """Why a session does not expire and is not cleaned away: a legal hold, say."""

    by: str | None = None
    why: str | None = None
    at: datetime


class SessionInfo(Value):
    """One session as it is stored, its status and expiry as of the moment it was read."""

    id: str
    home: int = 0  # the number of its family, in the keys of what is stored of it
    family_id: str  # the root session's id: what a session and its forks share is stored under it
    parent_id: str | None = None  # the session this one was forked from
    user_id: str | None = None  # the owner; None: open to everyone
    group_id: str | None = None
    visibility: Visibility = "private"  # what the owner's group may do: nothing, read, or read and write
    status: Status = "active"
    reason: str | None = None  # why it is in its status
    is_running: bool = False  # a run is in progress, in whichever process
    opened_as: OpenedAs = "opened"  # how it was last opened
    title: str | None = None
    purpose: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    client: dict[str, Any] = Field(default_factory=dict)
    idle_timeout_seconds: Seconds | None = None  # its own settings; None: as the settings say, 0: never
    max_age_seconds: Seconds | None = None
    retention_seconds: Seconds | None = None
    on_expire: OnExpire | None = None
    on_resume: OnResume | None = None
    pinned: Pin | None = None
    created_at: Moment
    began_at: Moment | None = None  # when it was opened, revived or reopened: its age counts from here
    incarnation: int = 1  # of its id: one more each time a deleted id is opened again
    last_active_at: Moment
    postponed_until: Moment | None = None
    ended_at: Moment | None = None
    expires_at: Moment | None = None
    branch: str = "main"  # the branch of the record that the session is on
    run_count: int = 0
    message_count: int = 0
    tool_call_count: int = 0
    model_call_count: int = 0
    unpriced_count: int = 0  # model calls whose cost is not known
    error_count: int = 0  # failed runs and failed tool calls
    input_tokens: int = 0  # of its model calls
    output_tokens: int = 0
    cost: float | None = None  # of its model calls, in US dollars; None: none of them has a known price


class Record(Value):
    """One row of the record: `seq` orders all rows of a session, whatever their table."""

    _unsaid: ClassVar[frozenset[str]] = frozenset({"session_id", "run_id", "message_id", "place", "checkpoint_ns"})

    session_id: str
    seq: int
    run_id: str | None = None


class Run(Record):
    """One invocation of the graph, or one sitting of a hand-written loop."""

    id: str
    user_id: str | None = None  # who ran it, and so said what users say in it
    outcome: Literal["running", "ok", "error", "interrupted"]
    error: str | None = None
    started_at: datetime
    duration_ms: float | None = None
    input_tokens: int | None = None  # of its model calls, as the session's are
    output_tokens: int | None = None
    cost: float | None = None  # US dollars; None when no model call of it has a known price
    started_from: str | None = None  # the checkpoint it went on from
    checkpoint_id: str | None = None  # the checkpoint it ended at


class Message(Record):
    """Something said. An edited message is a new version; the old row says what replaced it."""

    message_id: str
    version: int = 1
    replaced_by: int | None = None  # the seq of the next version
    branch: str = "main"
    place: float = 0.0  # where it stands in its conversation, whatever its version
    role: Role
    name: str | None = None
    text: str
    content: Any = None  # the full content, where it is more than the text; files in it by their hash
    tool_calls: tuple[dict[str, Any], ...] = ()  # what an assistant asked for
    tool_call_id: str | None = None  # what a tool message answers
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    status: Literal["complete", "incomplete"] = "complete"  # incomplete: cut off while it was streamed
    checkpoint_ns: str = ""
    extra: dict[str, Any] | None = None  # more of LangChain's fields: `usage_metadata`, `status` of a tool's failure …
    marks: tuple[
        str, ...
    ] = ()  # "aside": to or by a model, in no state or history; "shared": said in a subgraph, and in the outermost
    # state; "resume": a person's answer to a graph that had stopped to ask; "redacted:emails", "unknown:role" …
    created_at: datetime


class Branch(Value):
    """A line of the conversation that left another: what its parent had up to a seq, and its own."""

    session_id: str
    id: str
    parent_id: str
    parent_seq: int
    run_id: str | None = None
    created_at: datetime


class ToolCall(Record):
    """One execution of a tool: `tool_call_id` and `attempt` name it among those that one message asked for.

    Models may use an id again, for what another message asks.
    """

    tool_call_id: str
    attempt: int = 1
    name: str
    arguments: Any = None
    result: Any = None
    artifact: Any = None
    status: CallStatus
    error: str | None = None
    message_id: str | None = None
    checkpoint_ns: str = ""
    node: str | None = None
    marks: tuple[str, ...] = ()
    started_at: datetime | None = None
    duration_ms: float | None = None


class ModelCall(Record):
    """What a model was asked, and what that cost.

    Its marks: "told", nobody saw the call and a message told of it; "cached", the answer came from LangChain's cache.
    """

    id: str
    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None  # of the input
    reasoning_tokens: int | None = None  # of the output
    cost: float | None = None  # US dollars; None: the model's price is not known
    first_token_ms: float | None = None  # where it was streamed
    duration_ms: float | None = None
    error: str | None = None
    message_id: str | None = None  # what it answered
    checkpoint_ns: str = ""
    node: str | None = None
    marks: tuple[str, ...] = ()
    started_at: datetime | None = None


class Event(Record):
    """A fact of the lifecycle: opened, resumed, revived, denied, expired …"""

    kind: str
    reason: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime


class Usage(Value):
    """What calls took, all together: of models, or with ``by="tool"`` of tools.

    The percentiles are durations that did occur (nearest rank); calls without one are not in them.
    """

    key: str | None  # the user, session, model, tool or day; None: calls that have none
    calls: int
    errors: int
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of the input
    reasoning_tokens: int = 0  # of the output
    cost: float | None = None  # US dollars; None: no call of a known price
    unpriced: int = 0  # calls whose cost is not known, and not in `cost`
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def error_rate(self) -> float:
        return self.errors / self.calls if self.calls else 0.0


class RepairedCall(Value):
    """A tool call that had no answer, and the answer it was given.

    "interrupted" and "unreadable" (its arguments) say so to the model; "known" is what the tool did
    say, from a part of the step that was finished.
    """

    tool_call_id: str
    name: str
    message_id: str | None  # the message that asks for it
    answer_id: str  # the message that answers
    answer: Literal["interrupted", "unreadable", "known"]
    checkpoint_ns: str = ""


class Stats(Value):
    """A session in numbers; the faults are this process's own, of all sessions."""

    run_count: int
    message_count: int
    tool_call_count: int
    model_call_count: int
    unpriced_count: int
    error_count: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    tools: dict[str, int]  # executions by tool name
    duration: timedelta  # the sum over its runs
    checkpoint_count: int
    created_at: datetime
    last_active_at: datetime
    messages_in: int  # of users
    messages_out: int  # of assistants
    bytes: int  # stored for it, its share of what its family has in common included
    recorder_faults: int = 0
    hook_faults: int = 0
