"""Search in what was said: for a person who looks for a conversation, so only where the words are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from session_middleware.display.html import Rows
from session_middleware.memory.results import SearchHit
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.protocol import Storage
from session_middleware.storage.search.tokenizer import begun_word, query_words, snippet


def search(
    storage: Storage,
    query: str,
    whose: MessageScope,
    *,
    since: datetime | None,
    limit: int,
    offset: int,
    marks: tuple[str, str],
) -> list[SearchHit]:
    """The messages of this scope that hold words of `query`, best first."""
    asked = MemoryQuery(
        [],
        prefix=False,
        query=query,
        messages=whose,
        since=since,
        limit=limit,
        offset=offset,
        begun=True,
        neighbours=False,
        as_written=not query_words(query) and begun_word(query) is None,
    )
    return Rows(_found(stored, query, marks) for stored in storage.search_memories(asked))


def _found(stored: StoredMemory, query: str, marks: tuple[str, str]) -> SearchHit:
    role: Any = stored.value["role"]
    return SearchHit(
        session_id=stored.session_id or "",
        seq=stored.seq or 0,
        message_id=stored.key,
        role=role,
        name=stored.value.get("name"),
        snippet=snippet(stored.text or "", query, marks=marks),
        text=stored.text or "",
        created_at=stored.created_at,
        score=stored.score or 0.0,
    )
