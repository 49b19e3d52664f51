"""The values that pass between a caller and the storage: filters, pages, memories, conversation items.

They are plain tuples without behaviour. The values of a checkpoint are in `checkpoint_types`, and the
entries that are appended to the record in `record_entries`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from session_middleware.models import (
    Event,
    Identity,
    Message,
    ModelCall,
    OnExpire,
    OnResume,
    Run,
    Status,
    ToolCall,
    Value,
    Visibility,
)
from session_middleware.storage.record_entries import Attachment, MessageEntry

Record: TypeAlias = Message | ToolCall | ModelCall | Run | Event  # one row of a session's record

# Sessions


class SessionFilter(NamedTuple):
    user_id: str | None = None
    group_id: str | None = None
    status: Status | None = None
    tags: Sequence[str] = ()  # all of them
    since: datetime | None = None  # active at or after
    until: datetime | None = None  # active before
    visible_to: Identity | None = None  # owned by the user, or shared with one of the user's groups


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


class SessionSize(NamedTuple):
    checkpoints: int
    bytes: int  # an estimate from the sizes of the rows


class DeletionCounts(NamedTuple):
    """The number of deleted rows of each kind."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    bytes_freed: int = 0  # returned to the file system; includes pages that were unused before


class TombstoneInfo(NamedTuple):
    """The remains of a deleted session: its id, its owner, and the reason of its end."""

    session_id: str
    action: str  # deleted, archived, put aside, forgotten
    reason: str | None
    archive: str | None
    ended_at: datetime | None
    deleted_at: datetime
    user_id: str | None = None
    on_resume: OnResume | None = None  # the session's own setting


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


# Conversations of other SDKs


class ConversationItemPut(NamedTuple):
    item: Any  # JSON, with the hashes of files in their places
    message_id: str  # of the item's message in the record
    message: Sequence[MessageEntry] = ()  # that message; empty if it is not recorded
    files: Sequence[Attachment] = ()


class StoredItem(NamedTuple):
    item: Any
    files: Mapping[str, bytes]  # by the hashes that the item refers to


# Memories


class MemoryItemPut(NamedTuple):
    """A plain tuple of three is accepted too, and is faster to make in large batches."""

    key: str
    value: str | None  # JSON; None deletes the item
    text: str | None  # indexed for word search; None excludes the item from it


class MemoryPut(NamedTuple):
    """Items of one namespace with common options. Each key occurs once."""

    namespace: tuple[str, ...]
    items: Sequence[MemoryItemPut] | Sequence[tuple[str, str | None, str | None]]
    session_id: str | None = None  # the session in which they are remembered
    message_id: str | None = None  # the message they derive from; deleted with it
    paths: Sequence[str] | None = None  # the texts to embed; None: those of the settings; empty: `text`
    embed: bool = False  # enqueue them for embedding
    ttl: timedelta | None = None  # time to live after a put, or after a get with `refresh`


class MessageScope(NamedTuple):
    """The recorded messages of one session, of one user, of one session owned by that user, or of all sessions."""

    session_id: str | None = None
    user_id: str | None = None


class MemoryQuery(NamedTuple):
    namespaces: Sequence[tuple[str, ...]]  # items of any of these
    prefix: bool  # include the namespaces below them
    query: str | None = None  # words; the result is ranked when given
    filter: dict[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    messages: MessageScope | None = None  # search recorded messages of this scope too
    more: MessageScope | None = None  # a second scope; disjoint from the first
    roles: Collection[str] | None = None  # messages of these roles only
    since: datetime | None = None  # created at or after
    vector: Sequence[float] | None = None  # the embedded query; with `query`, ranked by both
    begun: bool = False  # the last word may be a prefix
    neighbours: bool = True  # match a message by the words of adjacent messages too
    only_vector: bool = False  # rank items by cosine similarity alone; items without vectors come last
    as_written: bool = False  # messages that contain the query literally, newest first; no items
    refresh: bool = False  # restart the time to live of each result

    @property
    def whose(self) -> list[MessageScope]:
        """The scopes of the messages that are searched."""
        return [each for each in (self.messages, self.more) if each is not None]


class StoredMemory(NamedTuple):
    """An item, or a recorded message under its session's namespace and with its message id as the key."""

    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    text: str | None
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    score: float | None = None  # of a ranked search; higher is better
    message_id: str | None = None
    seq: int | None = None  # of a recorded message
    words: float | None = None  # the BM25 part of the score
    vector: float | None = None  # the cosine part
    expires_at: datetime | None = None
    paths: Sequence[str] | None = None


class ToEmbed(NamedTuple):
    """An item or a message that waits for its vectors. `scope_id`, `place` and `version` belong to the engine."""

    scope_id: int
    place: int
    version: int  # prevents storing the vectors of an old text
    item: StoredMemory | None = None  # its `paths`, or else the settings, name the texts to embed
    texts: Sequence[str] = ()  # of a message: its own text, and with the preceding ones; their mean is stored


class Vectors(NamedTuple):
    of: ToEmbed
    vectors: Sequence[Sequence[float]]
