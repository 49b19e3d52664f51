"""`Storage`: what an engine promises, in the words of the domain.

An engine keeps sessions, checkpoints, the record and memories, and knows nothing of LangGraph: it
takes and gives values of `model.py`, the dataclasses below, and opaque bytes. These docstrings are
the contract; engines do not repeat them, and `tests/contract` holds every engine to them.

Every method is one operation: all of it is done or nothing, also when it raises or the process
dies. What a method has returned survives `kill -9`; a `put_…`, `open_…` and `delete_…` also
survives a power cut when ``synchronous`` is ``"full"``. Methods may be called from any thread at
once. Driver exceptions never leave: they become `StorageError`, naming the file.

Times come from the clock the storage was made with.

A method that takes a `Visit` first admits it, in the same transaction: the session is opened if it
is not there, its owner is checked, and its expiry is applied. It raises `SessionAccessDenied` or
`SessionExpired` and then has changed nothing but the event that says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from session_middleware.model import (
    Admission,
    Ended,
    Event,
    Identity,
    Message,
    Run,
    SessionInfo,
    Status,
    ToolCall,
)


@dataclass(slots=True)
class Visit:
    """Somebody at the door of a session: who, when, and what was decided at the first look.

    `admission` is decided once, when a run first reads its session, and stays for the whole run, so
    a run that takes longer than ``idle_timeout`` ends as it began. The engine fills it in when it
    is ``None``, and sets `admitted` once the visit is in the database.
    """

    session_id: str
    identity: Identity
    run_id: str | None = None  # a run that begins when this visit is admitted
    is_run: bool = True  # False: a change from outside, such as update_state; it resumes nothing
    admission: Admission | None = None
    admitted: bool = False  # it is in the database
    announced: bool = False  # and so is the event that says so
    checkpointed: bool = False  # a checkpointer of ours serves this run, and records what its checkpoints bring


class Blob(NamedTuple):
    """One serialised value: the serializer's type tag, and its bytes."""

    type: str
    data: bytes


class Chunk(NamedTuple):
    """Some successive elements of a list, in one blob: the first `length` of those it holds."""

    blob: Blob
    length: int = 1


class ListRef(NamedTuple):
    """A list as a checkpoint keeps it: the first `length` elements of a stored list.

    `check` is the CRC-32 over the digests of the chunks it is made of, so that a reference that
    leads to other elements than it was made for is found when it is followed.
    """

    list_id: int
    length: int
    check: int


@dataclass(frozen=True, slots=True)
class ListPut:
    """The list a channel holds now: the first `keep` elements of `base`, then `tail`."""

    base: ListRef | None
    keep: int
    tail: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class Parent:
    """What the writer believes the parent checkpoint to be: its id, and its channels as stored."""

    checkpoint_id: str
    channels: str


@dataclass(frozen=True, slots=True)
class CheckpointPut:
    visit: Visit
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob  # the checkpoint without its channel values, and its metadata
    source: str | None
    step: int | None
    parent: Parent | None  # given when `inherited` or a `ListPut.base` leans on it
    inherited: Sequence[str]  # channels whose value is the parent's
    values: dict[str, Blob | ListPut | None]  # channels whose value is new
    messages: Sequence[MessageSeen] = ()  # what the record learns from this checkpoint


@dataclass(frozen=True, slots=True)
class Write:
    idx: int  # negative: one of LangGraph's special writes, which replace; else the first one stays
    channel: str
    value: Blob | Sequence[Chunk] | None  # chunks: the elements of a list


@dataclass(frozen=True, slots=True)
class WritesPut:
    visit: Visit
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    writes: Sequence[Write]


@dataclass(frozen=True, slots=True)
class StoredList:
    ref: ListRef
    chunks: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class StoredWrite:
    task_id: str
    channel: str
    value: Blob | Sequence[Chunk] | None


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint as it came from storage, its pieces joined but not deserialised."""

    session_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_id: str | None
    body: Blob
    channels: str  # as stored: what a later put passes as `Parent.channels`
    values: dict[str, Blob | StoredList | None]
    writes: Sequence[StoredWrite]  # in LangGraph's ``writes_sort_key`` order


@dataclass(frozen=True, slots=True)
class MessageSeen:
    """A message as somebody saw it; whether it is new, known or a new version is the engine's to say."""

    message_id: str
    role: str
    text: str
    name: str | None = None
    content: Any = None
    tool_calls: Sequence[dict[str, Any]] = ()
    tool_call_id: str | None = None
    tool_error: bool = False  # a tool message that reports a failure
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    checkpoint_ns: str = ""


@dataclass(frozen=True, slots=True)
class ToolStart:
    execution_id: str  # unique to this execution: what `end_tool_call` names it by
    tool_call_id: str
    name: str
    arguments: Any
    checkpoint_ns: str = ""
    node: str | None = None


@dataclass(frozen=True, slots=True)
class SessionDetails:
    """What an opener may say of a session. ``None`` leaves what is there."""

    title: str | None = None
    purpose: str | None = None
    tags: Sequence[str] | None = None
    metadata: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    client: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SessionFilter:
    user_id: str | None = None
    group_id: str | None = None
    status: Status | None = None
    tags: Sequence[str] = ()  # all of them
    since: datetime | None = None  # active at or after
    until: datetime | None = None  # active before


@dataclass(frozen=True, slots=True)
class MemoryPut:
    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any] | None  # None deletes
    text: str | None  # what word search sees; None keeps the item out of it
    session_id: str | None = None  # the session it is remembered in


@dataclass(frozen=True, slots=True)
class MemoryQuery:
    namespaces: Sequence[tuple[str, ...]]  # any of these
    prefix: bool  # these and everything below them; False: exactly these
    query: str | None = None  # words; ranked when given
    filter: dict[str, Any] | None = None
    limit: int = 10
    offset: int = 0


@dataclass(frozen=True, slots=True)
class StoredMemory:
    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    text: str | None
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    score: float | None = None  # of a search by words: greater is better


@dataclass(frozen=True, slots=True)
class Deleted:
    """How much went: rows of each kind."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0


class StaleParent(Exception):
    """A put leaned on a parent that is not what the writer believed; nothing was stored.

    Never seen by users: the saver reads the parent afresh and puts again.
    """


class Storage(Protocol):
    name: str  # for messages to people: the path, or ":memory:"

    def close(self) -> None:
        """Release everything. Closing twice is allowed; any other call after it raises `StorageError`."""

    # Sessions

    def open_session(self, visit: Visit, details: SessionDetails, *, must_be_new: bool = False) -> SessionInfo:
        """Open or resume, as `visit.admission` then says. Raises `SessionExists` when `must_be_new` and it is there."""

    def look(self, visit: Visit) -> SessionInfo | None:
        """Check a visit without admitting it: owner, expiry. Sets `visit.admission`; a read otherwise.

        Returns the session as stored, or ``None`` when there is none or the visit starts afresh.
        A refusal is recorded as a ``denied`` event, then raised.
        """

    def find_session(self, session_id: str) -> SessionInfo | None:
        """The session as stored; status and expiry are the reader's to derive from the clock."""

    def list_sessions(
        self, where: SessionFilter, *, limit: int | None, before: tuple[datetime, str] | None = None
    ) -> list[SessionInfo]:
        """Latest activity first, then by id; `before` is the (last_active_at, id) of the last one had."""

    def count_sessions(self, where: SessionFilter) -> int: ...

    def update_session(self, session_id: str, details: SessionDetails) -> SessionInfo:
        """Replace what is given; metadata, context and client merge by key. Raises `SessionNotFound`."""

    def delete_session(self, session_id: str) -> Deleted:
        """Everything of the session: checkpoints, writes, record, memory. Counts; 0 for an unknown id.

        Pieces shared with the rest of its family stay as long as a member refers to them. When this
        returns, none of the text is left in the database's files.
        """

    def end_expired(self, *, now: datetime, dry_run: bool, leave: Collection[str] = ()) -> list[Ended]:
        """Expire what is due at `now`, oldest first, as ``on_expire`` says, and say what was done.

        One transaction a session. Those named in `leave` are left alone: a run is going on in them.
        """

    # The record

    def begin_run(self, visit: Visit) -> None:
        """Admit the visit and add the row of its `run_id`. Beginning the same run again does nothing.

        Earlier runs of the session whose process has died are interrupted, and their tool calls too.
        """

    def end_run(self, visit: Visit, *, outcome: str, error: str | None, duration_ms: float) -> None:
        """Close the row of the visit's run; nothing if there is none."""

    def append_messages(self, visit: Visit, messages: Sequence[MessageSeen]) -> None:
        """Add the messages that are not recorded yet, in order.

        A known id with the same words adds nothing; with other words it adds a version, and the
        old row says which replaced it. A tool message whose call has no row of its own adds one.
        """

    def start_tool_call(self, visit: Visit, call: ToolStart) -> None:
        """A row with status ``running``; executions of the same call before it count its `attempt`.

        Earlier executions of the call that still say ``running`` were cut off: they become ``interrupted``.
        """

    def end_tool_call(
        self,
        visit: Visit,
        execution_id: str,
        *,
        status: str,
        result: Any,
        error: str | None,
        duration_ms: float,
    ) -> None:
        """Close that execution."""

    def append_event(
        self, session_id: str, kind: str, *, reason: str | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Add an event; nothing when the session is not there."""

    def list_messages(
        self, session_id: str, *, after: int = 0, limit: int | None = None, all_versions: bool = False
    ) -> list[Message]:
        """By `seq`, from after `after`; only the latest version of each unless `all_versions`."""

    def list_tool_calls(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[ToolCall]: ...

    def list_runs(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[Run]: ...

    def list_events(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[Event]: ...

    # Checkpoints

    def put_checkpoint(self, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
        """Store a checkpoint, and what the record learns from it. Idempotent by its id.

        Returns its channels as stored, and where each list of `values` is now. Raises `StaleParent`.
        """

    def put_writes(self, put: WritesPut) -> None:
        """Store writes; their checkpoint may arrive later. All of them or none."""

    def get_checkpoint(self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """That checkpoint, or the latest (greatest id) of the namespace. Raises `StorageError` on damage."""

    def list_checkpoints(
        self,
        session_id: str | None,
        *,
        checkpoint_ns: str | None = None,
        before: str | None = None,
        checkpoint_id: str | None = None,
        limit: int | None = None,
        after: tuple[str, str, str] | None = None,
    ) -> list[tuple[str, str, str, Blob]]:
        """(session id, namespace, checkpoint id, body), by session and namespace, newest first in each.

        `before` keeps ids below it; `after` is the key of the last one had.
        """

    def count_checkpoints(self, session_id: str) -> int: ...

    # Memories

    def put_memories(self, puts: Sequence[MemoryPut]) -> None:
        """All of them or none, in order; a key put again keeps its `created_at`."""

    def get_memories(self, keys: Sequence[tuple[tuple[str, ...], str]]) -> list[StoredMemory | None]:
        """In the order asked."""

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        """Those that pass `filter`, best first when words are given, else in order of first put.

        The namespaces are in the ``WHERE``. Words that are only punctuation find nothing.
        """

    def list_namespaces(self) -> list[tuple[str, ...]]:
        """All that hold an item, sorted."""
