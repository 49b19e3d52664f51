"""`MemoryStorage`: the storage operations on memories; the rest of the contract is `Storage`.

An item is a JSON value by namespace and key. Each recorded message is a memory too. Both are found by words, and
by vectors when they have them. The caller computes vectors outside of any transaction and puts them later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from session_middleware.models import Message, SessionInfo
from session_middleware.storage.run import RunContext


class MemoryItemPut(NamedTuple):
    """A plain tuple of the three is accepted too, and is faster to create for many items."""

    key: str
    value: str | None  # as JSON; None deletes
    text: str | None  # the text that word search finds; None excludes the item from it


class MemoryPut(NamedTuple):
    """Items of one namespace that are put with the same options, each key once."""

    namespace: tuple[str, ...]
    items: Sequence[MemoryItemPut] | Sequence[tuple[str, str | None, str | None]]
    session_id: str | None = None  # the session in which they are put
    message_id: str | None = None  # the message they came from; deleted with it
    paths: Sequence[str] | None = None  # of the texts that get vectors; None: by the settings; empty: `text`
    embed: bool = False  # they need vectors
    ttl: timedelta | None = None  # they expire this long after the put, or after a get with `refresh`


class MessageScope(NamedTuple):
    """The recorded messages of one session, of one user, of one session if it is that user's, or of everybody."""

    session_id: str | None = None
    user_id: str | None = None


class MemoryQuery(NamedTuple):
    namespaces: Sequence[tuple[str, ...]]  # items of any of these
    prefix: bool  # and of all namespaces below them
    query: str | None = None  # words to rank by
    filter: dict[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    messages: MessageScope | None = None  # recorded messages too
    more: MessageScope | None = None  # and these; it shares no session with the first
    roles: Collection[str] | None = None  # of messages
    since: datetime | None = None  # created at or after
    vector: Sequence[float] | None = None  # of the query, to rank by
    unfinished: bool = False  # the last word may be unfinished
    neighbours: bool = True  # the words of a message count for its neighbours
    only_vector: bool = False  # items by cosine alone, then items without a vector
    as_written: bool = False  # only messages that contain the query as it is written, the latest first
    refresh: bool = False  # restart the time to live of the results

    @property
    def whose(self) -> list[MessageScope]:
        return [scope for scope in (self.messages, self.more) if scope is not None]


class StoredMemory(NamedTuple):
    """An item; or a recorded message, with its session as namespace and its message id as key."""

    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    text: str | None
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    score: float | None = None  # of a search by words or vectors; greater is better
    message_id: str | None = None
    seq: int | None = None  # of a recorded message
    words: float | None = None  # the parts of the score: BM25
    vector: float | None = None  # and the cosine
    expires_at: datetime | None = None
    paths: Sequence[str] | None = None


class ToEmbed(NamedTuple):
    """A document without vectors. Only the engine uses `scope_id`, `document` and `version`."""

    scope_id: int
    document: int
    version: int  # detects a change before the vectors are put
    item: StoredMemory | None = None  # its `paths`, or the settings, select the texts
    texts: Sequence[str] = ()  # of a message: its own, and with those before it; its vector is their mean


class Vectors(NamedTuple):
    source: ToEmbed
    vectors: Sequence[Sequence[float]]


class MemoryStorage(Protocol):
    name: str  # for error messages

    def find_session(self, session_id: str) -> SessionInfo | None:
        """As in `Storage`."""

    def put_memories(self, puts: Sequence[MemoryPut], *, visit: RunContext | None = None) -> None:
        """Put all items or none, in order. A key put again keeps its `created_at`.

        A `visit` is validated in the same transaction: its session must still be the same incarnation. An item of
        a session that does not exist opens the session, so that the session has an owner.

        Raises:
            SessionClosed: the session was deleted since, or the visit's user forgotten.
            SessionAccessDenied: it is another user's, or the user may only read it.
        """

    def get_memories(
        self, keys: Sequence[tuple[tuple[str, ...], str]], *, refresh: Collection[int] = ()
    ) -> list[StoredMemory | None]:
        """Get items in the given order, and restart the time to live of those at the places in `refresh`.

        An expired item is ``None``, whether or not it was swept.
        """

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        """The memories that pass `filter`: the best first when words or a vector are given, else the oldest first.

        The scope is in the ``WHERE``, and the ranking uses statistics of that scope only: other memories change
        neither the order nor the cost. A query without indexed words finds nothing by words. Every recorded
        message is found, also one that was just written; a long backlog in scope is indexed first.
        """

    def list_namespaces(self) -> list[tuple[str, ...]]:
        """The namespaces that have items, sorted."""

    def sweep_memories(self) -> int:
        """Delete the expired items; returns how many."""

    def list_messages_around(self, session_id: str, seq: int, *, each_way: int) -> list[Message]:
        """The message at `seq` and up to `each_way` messages before and after it, in order."""

    def list_last_messages(self, session_id: str, count: int) -> list[Message]:
        """The last messages of a session, in order, each in its latest version."""

    def index_messages(self, limit: int, *, active_since: datetime | None = None) -> int:
        """Index the words of at most `limit` messages, in one transaction; returns how many.

        With `active_since` only of sessions that were active at or after that time, which costs less.
        """

    def list_to_embed(self, limit: int, *, messages: bool) -> list[ToEmbed]:
        """Items, and with `messages` indexed messages too, that need vectors."""

    def list_speakers(self, words: Sequence[str], whose: MessageScope) -> set[str]:
        """Those of these words that are part of a speaker's name."""

    def put_vectors(self, vectors: Sequence[Vectors]) -> None:
        """Store vectors, except those of documents that were changed or deleted in the meantime."""

    def vector_model(self) -> tuple[str, int] | None:
        """The name and dimensions of the model of the stored vectors, if a model was set."""

    def set_vector_model(self, name: str, dimensions: int) -> None:
        """Set the model and delete all vectors, so that every document needs new ones."""
