"""The values of the domain, as readers of the database and of a session receive them.

All are frozen pydantic models whose field names are the column names. Times are aware UTC
``datetime``; in the database they are ISO-8601 text with milliseconds (`to_text`, `from_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from session_middleware.display.html import facts_html, fields_html, rows_html
from session_middleware.display.text import (
    UNKNOWN,
    arguments_text,
    call_text,
    cost_text,
    detail_text,
    duration_text,
    json_text,
    plural,
    repr_parts,
    shortened,
)

Clock: TypeAlias = Callable[[], datetime]
NewId: TypeAlias = Callable[[], str]

Status: TypeAlias = Literal["active", "idle", "expired", "completed", "failed", "abandoned"]
Closed: TypeAlias = Literal["completed", "failed", "abandoned"]  # how an app ends a session
Ended: TypeAlias = Literal["completed", "failed", "abandoned", "expired"]
Visibility: TypeAlias = Literal["private", "group", "group-write"]
OnExpire: TypeAlias = Literal["keep", "prune", "archive", "delete"]
Access: TypeAlias = Literal["owner", "host"]
OnResume: TypeAlias = Literal["revive", "fresh", "reject"]
OpenedAs: TypeAlias = Literal["opened", "resumed", "revived", "reopened", "forked"]
Admission: TypeAlias = Literal["opened", "resumed", "revived", "reopened", "fresh"]
Scope: TypeAlias = Literal["session", "user", "group", "global"]
SessionOrder: TypeAlias = Literal["activity", "creation", "title"]
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

CallStatus: TypeAlias = Literal["running", "ok", "error", "refused", "interrupted"]
CALL_STATUSES: tuple[CallStatus, ...] = get_args(CallStatus)

MAX_ID_LENGTH = 1024
LONGEST = timedelta(days=36_525)  # of the durations in settings
_LINE_CHARACTERS = 200  # of a message's text in a line

# The ranges within which every moment of expiry can be computed.
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=LONGEST.total_seconds())]
Moment: TypeAlias = Annotated[AwareDatetime, Field(lt=datetime(9000, 1, 1, tzinfo=UTC))]


utc_now: Clock = partial(datetime.now, UTC)  # the default clock


def to_text(moment: datetime) -> str:
    """ISO-8601 UTC with milliseconds, which sorts as text: ``2026-01-31T12:00:00.000Z``."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds")[:-6] + "Z"


def plain_text(value: object) -> str:
    """`str()` of a value; but of a text of another class, such as a member of an enum of texts, the text itself."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def from_text(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Value(BaseModel):
    """A frozen value. `columns` are the fields that a table shows; ``()``: those that are not empty."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # built when first used
    columns: ClassVar[tuple[str, ...]] = ()
    _not_in_repr: ClassVar[frozenset[str]] = frozenset()  # beside the fields that are empty

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        fields = type(self).model_fields
        shown = {name: getattr(self, name) for name in fields if name not in self._not_in_repr}
        return repr_parts(shown, {name: field.default for name, field in fields.items()})

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)


class Identity(Value):
    """The identity of a caller. A caller without one has ``None`` for both ids."""

    user_id: str | None = None
    group_id: str | None = None
    group_ids: tuple[str, ...] = ()  # further groups of the user

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(self.group_ids) | ({self.group_id} if self.group_id is not None else frozenset())


class Pin(Value):
    """The reason why a session is exempt from expiry and retention, such as a legal hold."""

    by: str | None = None
    why: str | None = None
    at: datetime


class SessionFields:
    """The fields of a session, as `SessionInfo` validates them and `Session` shows them."""

    columns: ClassVar = _names("id user_id title status last_active_at message_count tool_call_count cost")

    id: str
    home: int = 0  # the number of its family, in the keys of what is stored of it
    family_id: str  # the root session's id: what a session and its forks share is stored under it
    parent_id: str | None = None  # the session this one was forked from
    user_id: str | None = None  # the owner; None: every caller has access
    group_id: str | None = None
    visibility: Visibility = "private"  # the access of the owner's group: none, read, or read and write
    status: Status = "active"
    reason: str | None = None  # of the status
    is_running: bool = False  # a run is in progress, in this or another process
    opened_as: OpenedAs = "opened"  # how it was last opened
    title: str | None = None  # given, or made from the first message of a user
    preview: str | None = None  # the beginning of the last message of its user or assistant
    last_message_at: Moment | None = None  # when that was written
    purpose: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    client: dict[str, Any] = Field(default_factory=dict)
    idle_timeout_seconds: Seconds | None = None  # overrides of the settings; None: no override, 0: never
    max_age_seconds: Seconds | None = None
    retention_seconds: Seconds | None = None
    on_expire: OnExpire | None = None
    on_resume: OnResume | None = None
    pinned: Pin | None = None
    created_at: Moment
    active_since: Moment | None = None  # when it was opened, revived or reopened; `max_age` counts from here
    incarnation: int = 1  # of its id; opening a deleted id again increments it
    last_active_at: Moment
    postponed_until: Moment | None = None
    ended_at: Moment | None = None
    expires_at: Moment | None = None
    branch: str = "main"  # the current branch of the record
    run_count: int = 0
    message_count: int = 0
    tool_call_count: int = 0
    model_call_count: int = 0
    unpriced_count: int = 0  # model calls whose cost is not known
    error_count: int = 0  # failed runs and failed tool calls
    waiting_count: int = 0  # open questions of its graph
    input_tokens: int = 0  # of its model calls
    output_tokens: int = 0
    cost: float | None = None  # of its model calls, in US dollars; None: no call has a known price

    def _repr_html_(self) -> str:
        return facts_html(facts_of(self))


class SessionInfo(SessionFields, Value):
    """One session as it is stored, its status and expiry as of the moment it was read."""


def facts_of(session: SessionFields) -> dict[str, Any]:
    """The facts about a session that people read, by their names; ``None``: there is no such fact."""
    counts = {
        "run": session.run_count,
        "message": session.message_count,
        "tool call": session.tool_call_count,
        "error": session.error_count,
    }
    holds = ", ".join(plural(count, noun) for noun, count in counts.items())
    known = "" if session.cost is None else f", {cost_text(session.cost)}"
    cost = known or (f", cost {UNKNOWN}" if session.model_call_count else "")
    return {
        "session": session.id,
        "title": session.title,
        "owner": session.user_id or "none (open to everyone)",
        "group": session.group_id,
        "status": f"{session.status} ({session.reason})" if session.reason else session.status,
        "waits": plural(session.waiting_count, "answer") if session.waiting_count else None,
        "holds": f"{holds}, {session.input_tokens:,} + {session.output_tokens:,} tokens{cost}",
        "opened": session.created_at,
        "last active": session.last_active_at,
        "expired" if session.status == "expired" else "expires": session.expires_at,
        "pinned": session.pinned and (", by ".join(filter(None, (session.pinned.why, session.pinned.by))) or "yes"),
    }


class Record(Value):
    """One row of the record: `seq` orders all rows of a session, whatever their table."""

    _not_in_repr: ClassVar = frozenset({"session_id", "run_id", "message_id", "position", "checkpoint_ns"})

    session_id: str
    seq: int
    run_id: str | None = None

    def __hash__(self) -> int:
        return hash((self.session_id, self.seq))

    @property
    def moment(self) -> datetime | None:
        """When it was created, was asked or began."""
        fields = ("created_at", "started_at", "asked_at")
        return next((getattr(self, name) for name in fields if name in type(self).model_fields), None)

    @property
    def is_finished(self) -> bool:
        """False while it may still change: `Session.follow` yields it again then."""
        return True

    @property
    def line(self) -> str:
        """The record as one line of plain text, without its kind and its time."""
        return self.describe()

    def describe(self, *, full: bool = False) -> str:
        """As `line`, with `full` in its whole length."""
        raise NotImplementedError


def _joined(*parts: str | None, outcome: str | None = None) -> str:
    text = ", ".join(filter(None, parts))
    return f"{text}: {outcome}" if outcome else text


def _cut(text: str | None, *, full: bool) -> str | None:
    return text if full or text is None else shortened(text, _LINE_CHARACTERS)


def _took(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else duration_text(milliseconds)


def _tokens(call: Run | ModelCall) -> str | None:
    if call.input_tokens is None and call.output_tokens is None:
        return None
    return f"{call.input_tokens or 0:,} + {call.output_tokens or 0:,} tokens"


class Run(Record):
    """One invocation of the graph, or one block of a hand-written loop."""

    columns: ClassVar = _names("seq user_id outcome error duration_ms input_tokens output_tokens cost started_at")

    id: str
    user_id: str | None = None  # the caller, who is the author of the user messages
    # "waiting": its graph stopped at an interrupt; "interrupted": it was cancelled, or its process has died
    outcome: Literal["running", "ok", "error", "waiting", "interrupted"]
    error: str | None = None
    tags: tuple[str, ...] = ()  # those of its config
    metadata: dict[str, Any] = Field(default_factory=dict)  # that of its config, without the ids
    started_at: datetime
    duration_ms: float | None = None
    input_tokens: int | None = None  # of its model calls, as the session's are
    output_tokens: int | None = None
    cost: float | None = None  # US dollars; None when no model call of it has a known price
    started_from: str | None = None  # the checkpoint that it continued
    checkpoint_id: str | None = None  # the checkpoint it ended at

    @property
    def is_finished(self) -> bool:
        return self.outcome != "running"

    def describe(self, *, full: bool = False) -> str:
        by = self.user_id and f"by {self.user_id}"
        return _joined(self.outcome, by, _took(self.duration_ms), _tokens(self), outcome=_cut(self.error, full=full))


class Message(Record):
    """A message. An edit adds a version; `replaced_by` of the old row is the `seq` of the new one."""

    columns: ClassVar = _names("seq role line model output_tokens created_at")

    message_id: str
    version: int = 1
    replaced_by: int | None = None  # the seq of the next version
    branch: str = "main"
    position: float = 0.0  # in the conversation, the same for all versions
    role: Role
    name: str | None = None
    text: str
    content: Any = None  # the full content, if it is more than the text; files are replaced by their hash
    tool_calls: tuple[dict[str, Any], ...] = ()  # the calls that an assistant requested
    tool_call_id: str | None = None  # the call that a tool message answers
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    status: Literal["complete", "incomplete"] = "complete"  # incomplete: the stream was cut off
    checkpoint_ns: str = ""
    extra: dict[str, Any] | None = None  # other fields of LangChain's: `usage_metadata`, `status` of a tool's failure …
    # "aside": to or from a model, in no state or history; "shared": of a subgraph, and in the outermost state too;
    # "redacted:emails", "unknown:role" …
    flags: tuple[str, ...] = ()
    created_at: datetime

    @property
    def is_finished(self) -> bool:
        return self.status == "complete" or self.replaced_by is not None

    def describe(self, *, full: bool = False) -> str:
        calls = (f"asks for {call_text(call.get('name'), call.get('args'), full=full)}" for call in self.tool_calls)
        notes = {"incomplete": self.status == "incomplete", "edited later": self.replaced_by is not None}
        notes[self.branch] = self.branch != "main"
        return " ".join(
            filter(None, (_cut(self.text, full=full), *calls, *(f"({note})" for note, holds in notes.items() if holds)))
        )


class Branch(Value):
    """A branch of the conversation: its parent's messages up to `parent_seq`, and its own."""

    session_id: str
    id: str
    parent_id: str
    parent_seq: int
    run_id: str | None = None
    created_at: datetime


class Siblings(Value):
    """The versions of a turn: a user's message and its edits, or the answers to it. ``str()`` is ``"2 of 3"``."""

    index: int  # of the version that was asked for, from 1
    total: int
    messages: tuple[Message, ...]  # the first of each version, in the order in which they were recorded
    branches: tuple[str, ...]  # a branch with each version, for `switch`: the current one, or the latest

    def __str__(self) -> str:
        return f"{self.index} of {self.total}"

    def _repr_html_(self) -> str:
        return rows_html(self.messages)


class ToolCall(Record):
    """One execution of a tool. `message_id`, `tool_call_id` and `attempt` identify it.

    Models may use a `tool_call_id` again in another message.
    """

    columns: ClassVar = _names("seq name arguments status result error attempt duration_ms started_at")

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
    flags: tuple[str, ...] = ()
    started_at: datetime | None = None
    duration_ms: float | None = None

    @property
    def is_finished(self) -> bool:
        return self.status != "running"

    def describe(self, *, full: bool = False) -> str:
        outcome = json_text(self.error if self.error is not None else self.result, full=full)
        call = f"{call_text(self.name, self.arguments, full=full)} → {self.status}"
        attempt = f"attempt {self.attempt}" if self.attempt > 1 else None
        return _joined(call, attempt, _took(self.duration_ms), outcome=outcome)


class ModelCall(Record):
    """One call of a model, and its cost.

    Its flags: "told", the call is known from a message only; "cached", the answer came from LangChain's cache.
    """

    columns: ClassVar = _names("seq model input_tokens output_tokens cost duration_ms error started_at")

    id: str
    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None  # of the input
    reasoning_tokens: int | None = None  # of the output
    cost: float | None = None  # US dollars; None: the model's price is not known
    first_token_ms: float | None = None  # of a streamed answer
    duration_ms: float | None = None
    error: str | None = None
    message_id: str | None = None  # the answer
    checkpoint_ns: str = ""
    node: str | None = None
    flags: tuple[str, ...] = ()
    started_at: datetime | None = None

    def describe(self, *, full: bool = False) -> str:
        cost = None if self.cost is None else cost_text(self.cost)
        parts = (self.model or "a model", _tokens(self), cost, _took(self.duration_ms))
        return _joined(*parts, outcome=_cut(self.error, full=full))


def _spoken(value: Any, *, full: bool) -> str | None:
    """A question or an answer as text; of LangChain's `HumanInTheLoopMiddleware` its tool calls and decisions."""
    for key, name in (("action_requests", "name"), ("decisions", "type")):
        listed = value.get(key) if isinstance(value, dict) else None
        if not full and isinstance(listed, list) and all(isinstance(one, dict) and name in one for one in listed):
            args = (f"({arguments_text(one['args'], full=False)})" if "args" in one else "" for one in listed)
            return ", ".join(f"{one[name]}{call}" for one, call in zip(listed, args, strict=True))
    return json_text(value, full=full)


class Question(Record):
    """A question that a graph asked at an interrupt, and the answer with which a run resumed it.

    A question is dropped when the graph continues without an answer: from new input, or from an earlier checkpoint.
    """

    columns: ClassVar = _names("seq node value status answer answered_by asked_at answered_at")

    interrupt_id: str | None = None  # LangGraph's, for ``Command(resume={interrupt_id: …})``; None: a breakpoint
    value: Any = None
    node: str | None = None  # None: not known
    checkpoint_ns: str = ""
    checkpoint_id: str | None = None  # of the outermost graph, which waits there
    status: Literal["open", "answered", "dropped"] = "open"
    asked_at: datetime
    answer: Any = None
    answered_by: str | None = None  # the user of the run that resumed the graph
    answered_at: datetime | None = None
    answer_run_id: str | None = None  # that run
    flags: tuple[str, ...] = ()  # "withheld:value", "redacted:emails" …

    @property
    def is_finished(self) -> bool:
        return self.status != "open"

    @property
    def asked(self) -> str:
        """The node and the question as one line of text."""
        return self._asked(full=False)

    def _asked(self, *, full: bool) -> str:
        asked = "a breakpoint" if self.interrupt_id is None else _spoken(self.value, full=full) or "a question"
        return f"{self.node}: {asked}" if self.node else asked

    def describe(self, *, full: bool = False) -> str:
        if self.status == "answered":
            by = f" (by {self.answered_by})" if self.answered_by else ""
            outcome = f"{'continued' if self.interrupt_id is None else _spoken(self.answer, full=full)}{by}"
        else:
            outcome = "not answered yet" if self.status == "open" else "dropped"
        return f"{self._asked(full=full)} → {outcome}"


class Event(Record):
    """A fact of the lifecycle: opened, resumed, revived, denied, expired …"""

    columns: ClassVar = _names("seq kind reason detail created_at")
    _not_in_repr: ClassVar = Record._not_in_repr - {"session_id"}  # a hook receives events of all sessions

    kind: str
    reason: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime

    def describe(self, *, full: bool = False) -> str:
        return " ".join(
            filter(None, (self.kind, self.reason and f"({self.reason})", detail_text(self.detail, full=full)))
        )


class Usage(Value):
    """The sum over calls of models, or with ``by="tool"`` of tools.

    The percentiles are nearest-rank, over the calls that have a duration.
    """

    columns: ClassVar = _names("key calls errors input_tokens output_tokens cost unpriced p50_ms p95_ms p99_ms")

    key: str | None  # the user, session, model, tool or day; None: calls without one
    calls: int
    errors: int
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of the input
    reasoning_tokens: int = 0  # of the output
    cost: float | None = None  # US dollars; None: no call has a known price
    unpriced: int = 0  # calls whose cost is not known; not in `cost`
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def error_rate(self) -> float:
        return self.errors / self.calls if self.calls else 0.0


class RepairedCall(Value):
    """A tool call that had no answer, and the answer that the repair gave.

    "interrupted" and "unreadable" (arguments) inform the model; "known" is the tool's own answer,
    from a part of the step that had finished.
    """

    tool_call_id: str
    name: str
    message_id: str | None  # the message that asks for it
    answer_id: str  # the message that answers
    answer: Literal["interrupted", "unreadable", "known"]
    checkpoint_ns: str = ""


class Stats(Value):
    """A session in numbers. The faults are those of this process, in all sessions."""

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
    messages_in: int  # from users
    messages_out: int  # from assistants
    bytes: int  # stored for it, including its share of what the family has in common
    recorder_faults: int = 0
    hook_faults: int = 0


# Results of maintenance


class SweepResult(Value):
    """A session that a sweep ended, or would end: the reason and the action."""

    columns: ClassVar = _names("session_id user_id reason action last_active_at expired_at bytes")

    session_id: str
    user_id: str | None = None
    reason: str = "idle_timeout"  # or max_age, on_expire (of one that had expired before), retention, older_than
    action: OnExpire
    last_active_at: datetime
    expired_at: datetime  # when it became due
    bytes: int | None = None  # of a dry run: about how much would be freed


class Explanation(Value):
    """Why a session has its status, and its next status if no activity follows."""

    session_id: str
    status: Status | Literal["unknown", "deleted", "archived", "renamed", "merged", "forgotten"]
    reason: str | None = None
    since: datetime | None = None
    next_status: Status | Literal["deleted", "archived"] | None = None
    next_reason: str | None = None
    next_at: datetime | None = None
    text: str  # all of it as sentences

    def __str__(self) -> str:
        return self.text


class ErasureReceipt(Value):
    """The number of rows that forgetting a user deleted. `pending`: the files may still hold some of them."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    archives: int = 0
    traces: int = 0  # mentions in the record of other sessions
    bytes_freed: int = 0
    dry_run: bool = False
    pending: bool = False  # a reader of an older snapshot, or PostgreSQL until its vacuum, keeps the bytes


class Problem(Value):
    """A violated invariant that `Sessions.check` found: its place, and what to do about it."""

    kind: str  # file, damage, family, index, counter, orphan, dead_lease, dead_run, archive
    table: str | None = None
    session_id: str | None = None
    key: str | None = None  # of the row, within its session
    text: str
    repaired: bool = False
