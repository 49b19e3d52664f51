"""The values of sessions, of the record and of conversations that pass between a caller and the storage.

Those of checkpoints are in `checkpoint_types`, those of memories in `memory_types`, and the entries that are
appended to the record in `record_entries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from session_middleware.models import (
    Event,
    Identity,
    Message,
    ModelCall,
    OnExpire,
    OnResume,
    Question,
    Run,
    Status,
    ToolCall,
    Value,
    Visibility,
)
from session_middleware.storage.record_entries import Attachment, MessageEntry

Record: TypeAlias = Message | ToolCall | ModelCall | Run | Question | Event  # one row of a session's record
Progress: TypeAlias = Callable[[int, int], object]  # called with what is done, and the whole


class Watch:
    """Calls a function after each commit that may have changed a session's record, until it is closed."""

    @property
    def is_live(self) -> bool:
        """Whether all commits of every process are reported. If not, changes may be unreported."""
        return False

    def close(self) -> None:
        pass


# Sessions


class SessionFilter(NamedTuple):
    user_id: str | None = None
    group_id: str | None = None
    status: Sequence[Status | Literal["open"]] = ()  # one of them
    tags: Sequence[str] = ()  # all of them
    since: datetime | None = None  # active at or after
    until: datetime | None = None  # active before
    metadata: Mapping[str, str | int | float | bool] | None = None  # all of them
    title: str | None = None  # a part of it, as a `title_key`
    visible_to: Identity | None = None  # owned by the user, or shared with one of the user's groups
    waiting: bool | None = None  # whether its graph waits for an answer
    family_of: str | None = None  # this session, those that it was forked from, and all their forks
    # The latest run was cut off: its process has ended, and no run is in progress; or also: it was cancelled.
    unfinished: Literal["cut_off", "or_cancelled"] | None = None


class SessionDetails(NamedTuple):
    """The fields of a session that a caller may set. ``None`` keeps the stored value; ``""`` clears a title."""

    title: str | None = None
    purpose: str | None = None
    tags: Sequence[str] | None = None
    metadata: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    client: dict[str, Any] | None = None
    visibility: Visibility | None = None
    idle_timeout_seconds: float | None = None  # overrides the setting; 0 means never
    max_age_seconds: float | None = None
    retention_seconds: float | None = None
    on_expire: OnExpire | None = None
    on_resume: OnResume | None = None


class MessagePoint(NamedTuple):
    """Where a message entered the state of the outermost graph."""

    checkpoint_id: str | None = None  # the first checkpoint that contains it; None: it is in no state
    parent_id: str | None = None  # the checkpoint before that, if it is stored
    is_complete: bool = True  # the checkpoint before that is stored, or there was none


class ActiveRun(NamedTuple):
    """A run in progress; or a process that does work which one process does at a time."""

    number: int  # of the lease
    process: str
    run_id: str | None  # of a duty: a text of that process for others, such as an address


class SessionSize(NamedTuple):
    checkpoints: int
    bytes: int  # an estimate from the sizes of the rows
    messages: Mapping[str, int]  # of the current branch, by role
    tools: Mapping[str, int]  # executions by name, in the order of the first
    run_ms: float  # the sum of the durations of its runs


class DeletionCounts(NamedTuple):
    """The number of deleted rows of each kind."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    bytes_freed: int = 0  # returned to the file system; includes pages that were unused before


MERGED = "merged"  # an action, whose reason is the id of the primary session


def merged_id(message_id: object, session_id: object) -> str:
    """The id of a message that comes from this session into one that has the id for another text."""
    return f"{message_id}~{session_id}"


class TombstoneInfo(NamedTuple):
    """The remains of a deleted session: its id, its owner, and the reason of its end."""

    session_id: str
    action: str  # deleted, archived, renamed, merged, forgotten
    reason: str | None
    archive: str | None
    deleted_at: datetime
    user_id: str | None = None
    on_resume: OnResume | None = None  # the session's own setting
    digest: str | None = None  # of the archive
    ended_at: datetime | None = None  # of an archived session
    retention_seconds: float | None = None  # its own setting; 0: never

    def archive_ends_at(self, retention: timedelta | None) -> datetime | None:
        """When ``retention`` deletes the archive; ``None``: never."""
        if self.retention_seconds is not None:
            retention = timedelta(seconds=self.retention_seconds) if self.retention_seconds else None
        if retention is None or self.archive is None or self.ended_at is None:
            return None
        return self.ended_at + retention

    @property
    def merged_into(self) -> str | None:
        """The id of the session that has its content."""
        return self.reason if self.action == MERGED else None


class ArchivedSession(Value):
    """A session in an archive file, as far as it is known without reading the file."""

    columns: ClassVar = ("session_id", "user_id", "title", "reason", "ended_at", "archived_at", "path")

    session_id: str
    user_id: str | None = None
    group_id: str | None = None
    title: str | None = None
    reason: str | None = None  # why the session had ended
    ended_at: datetime | None = None
    archived_at: datetime
    path: str  # of the file


# The record


class Part(NamedTuple):
    """A part of a session's record: between two seqs, of it the first records, or the last ones."""

    after: int = 0
    before: int | None = None
    limit: int | None = None
    from_end: bool = False
    subgraphs: bool = True  # False: only the outermost graph's own records, and of messages those of its conversation


class Page(NamedTuple):
    """Records in order of `seq`, and the runs they belong to that are not among them."""

    records: list[Record]
    runs: list[Run]


class ToolCallFilter(NamedTuple):
    name: str | None = None
    status: str | None = None
    user_id: str | None = None
    since: datetime | None = None  # started at or after
    until: datetime | None = None  # started before


UsageBy: TypeAlias = Literal["user", "group", "session", "model", "tool", "day"]


class UsageFilter(NamedTuple):
    user_id: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    since: datetime | None = None  # started at or after
    until: datetime | None = None  # started before
    sessions: SessionFilter | None = None  # of calls in these only


# Conversations of other SDKs


class ConversationItemPut(NamedTuple):
    item: Any  # JSON, with the hashes of files in their places
    message_id: str  # of the item's message in the record
    message: Sequence[MessageEntry] = ()  # that message; empty if it is not recorded
    files: Sequence[Attachment] = ()


class StoredItem(NamedTuple):
    item: Any
    files: Mapping[str, bytes]  # by the hashes that the item refers to
