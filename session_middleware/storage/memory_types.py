"""The values of memories that pass between a caller and the storage.

An item is a JSON value by namespace and key. A recorded message is a memory without anybody's doing.
Both are found by words, and by vectors where they have them; vectors are made by the caller, outside
of any transaction, and put when they are ready.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple


class MemoryItemPut(NamedTuple):
    """A plain tuple of the three will do, and is made more quickly where they are many."""

    key: str
    value: str | None  # as JSON; None deletes
    text: str | None  # what word search sees; None keeps the item out of it


class MemoryPut(NamedTuple):
    """Items of one namespace that are put alike, each key once."""

    namespace: tuple[str, ...]
    items: Sequence[MemoryItemPut] | Sequence[tuple[str, str | None, str | None]]
    session_id: str | None = None  # the session they are remembered in
    message_id: str | None = None  # the message they came from; deleted with it
    paths: Sequence[str] | None = None  # which of their texts get vectors; None: as the settings say; none: `text`
    embed: bool = False  # they wait for vectors
    ttl: timedelta | None = None  # how long they are kept after they are put, or got with `refresh`


class MessageScope(NamedTuple):
    """Whose recorded messages: one session's, one user's, one session's if it is that user's, or everybody's."""

    session_id: str | None = None
    user_id: str | None = None


class MemoryQuery(NamedTuple):
    namespaces: Sequence[tuple[str, ...]]  # items of any of these
    prefix: bool  # these and everything below them; False: exactly these
    query: str | None = None  # words; ranked when given
    filter: dict[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    messages: MessageScope | None = None  # recorded messages too,
    more: MessageScope | None = None  # and these; none of the sessions of the first
    roles: Collection[str] | None = None  # of messages: only what these said
    since: datetime | None = None  # created at or after
    vector: Sequence[float] | None = None  # of the query; ranked by both when given
    begun: bool = False  # the last word may be the beginning of one
    neighbours: bool = True  # a message is found by the words of those around it as well
    only_vector: bool = False  # items by the cosine of their vectors alone, then those that have none
    as_written: bool = False  # messages that hold the query as it stands there, the latest first, and no items
    refresh: bool = False  # give what is found its whole time to live again

    @property
    def whose(self) -> list[MessageScope]:
        """Of whose messages any are found."""
        return [each for each in (self.messages, self.more) if each is not None]


class StoredMemory(NamedTuple):
    """An item, or a recorded message: then the namespace is its session's, and the key its message id."""

    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    text: str | None
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    score: float | None = None  # of a search by words or vectors: greater is better
    message_id: str | None = None
    seq: int | None = None  # of a recorded message
    words: float | None = None  # the parts of the score: BM25,
    vector: float | None = None  # the cosine
    expires_at: datetime | None = None
    paths: Sequence[str] | None = None


class ToEmbed(NamedTuple):
    """What waits for its vectors. `scope_id`, `place` and `version` are the engine's own."""

    scope_id: int
    place: int
    version: int  # so that what changed meanwhile is not given an old vector
    item: StoredMemory | None = None  # which of its texts are wanted, its `paths` or the settings say
    texts: Sequence[str] = ()  # of a message: its own, and with those before it; its vector is their mean


class Vectors(NamedTuple):
    of: ToEmbed
    vectors: Sequence[Sequence[float]]
