"""The values of the operations of `Storage` on memories.

An item is a JSON value by namespace and key. Each recorded message is a memory too. Both are found by words, and
by vectors when they have them. The caller computes vectors outside of any transaction and puts them later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple


class MemoryItemPut(NamedTuple):
    """A plain tuple of the three is accepted too, and is faster to create for many items."""

    key: str
    value: str | None  # as JSON; None deletes
    text: str | None  # the text that word search finds: None is all texts in the value, and "" none


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
    whose: Sequence[MessageScope] = ()  # recorded messages too, of scopes that share no session
    roles: Collection[str] | None = None  # of messages
    since: datetime | None = None  # created at or after
    vector: Sequence[float] | None = None  # of the query, to rank by
    typed: bool = False  # into a search field: the last word may be unfinished, and neighbours of messages do not count
    only_vector: bool = False  # items by cosine alone, then items without a vector
    refresh: bool = False  # restart the time to live of the results


class StoredMemory(NamedTuple):
    """An item; or a recorded message, with its session as namespace and its message id as key."""

    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    text: str | None  # of an item: as it was put
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    score: float | None = None  # of a search by words or vectors; greater is better
    message_id: str | None = None
    seq: int | None = None  # of a recorded message
    words: float | None = None  # the parts of the score: BM25
    vector: float | None = None  # and the cosine
    expires_at: datetime | None = None
    ttl_minutes: float | None = None
    paths: Sequence[str] | None = None

    @property
    def searched_text(self) -> str:
        """The text that word search finds."""
        return text_of(self.value) if self.text is None else self.text


class ToEmbed(NamedTuple):
    """An item or a message without vectors."""

    ref: tuple[Any, ...]  # by which the engine finds it again, unless it was changed in the meantime
    item: StoredMemory | None = None  # its `paths`, or the settings, select the texts
    texts: Sequence[str] = ()  # of a message: its own, and with those before it; its vector is their mean


class Vectors(NamedTuple):
    source: ToEmbed
    vectors: Sequence[Sequence[float]]


def text_of(value: Mapping[str, Any]) -> str:
    """The text of an item for word search: all texts in its value, depth first, a line each."""
    return joined(_texts(value))


def joined(texts: Iterable[str]) -> str:
    """The texts, a line each; half of a surrogate pair, which is not UTF-8, becomes a question mark."""
    text = "\n".join(texts)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _texts(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    waiting: list[Iterator[Any]] = [iter(value.values())]  # no recursion: JSON may be nested deeper than Python's stack
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, str):
                found.append(item)
            elif isinstance(item, dict):
                waiting.append(iter(item.values()))
                break
            elif isinstance(item, (list, tuple)):
                waiting.append(iter(item))
                break
        else:
            waiting.pop()
    return found
