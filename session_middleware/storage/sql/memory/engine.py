"""The memories' part of the SQL engine: each method is a transaction over the statements of its siblings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial

from session_middleware.models import to_text
from session_middleware.storage.filters import check_filter
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory, ToEmbed, Vectors
from session_middleware.storage.sql.connection import index_lock
from session_middleware.storage.sql.memory import indexing, items, memories, recall, vectors
from session_middleware.storage.sql.memory.indexing import LongBacklog
from session_middleware.storage.sql.operations import Operations, reading


class MemoryOperations(Operations):
    find_speakers = reading(recall.find_speakers)
    list_messages_around = reading(memories.list_messages_around)

    def get_memories(
        self, keys: Sequence[tuple[tuple[str, ...], str]], *, refresh: Collection[int] = ()
    ) -> list[StoredMemory | None]:
        now = self._rules.clock()
        found = self._database.read(lambda connection: items.get(connection, keys, now))
        self._restart_ttl([memory for place, memory in enumerate(found) if place in refresh and memory is not None])
        return found

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        check_filter(query.filter)
        now, can_index = self._rules.clock(), self._database.is_writable
        if can_index and query.whose:
            self._remove_outdated()
        found: list[StoredMemory] | None = None
        while found is None:
            try:
                found = self._database.read(lambda connection: memories.search(connection, query, now, can_index))
            except LongBacklog as backlog:
                while self._database.write(backlog.index_some, of=backlog.locks, durable=False) == indexing.BATCH:
                    pass
        if query.refresh:
            self._restart_ttl(found)
        return found

    def _restart_ttl(self, found: Sequence[StoredMemory]) -> None:
        if self._database.is_writable and any(memory.ttl_minutes is not None for memory in found):
            now = self._rules.clock()
            of = items.locks_of(found)
            self._database.write(lambda connection: items.refresh(connection, found, now), of=of, durable=False)

    def _remove_outdated(self) -> None:
        while outdated := self._database.read(indexing.list_outdated):
            remove = partial(indexing.remove_outdated, session_ids=outdated)
            self._database.write(remove, of=[*map(index_lock, outdated)], durable=False)

    def list_namespaces(self) -> list[tuple[str, ...]]:
        now = self._rules.clock()
        return self._database.read(lambda connection: items.list_namespaces(connection, now))

    def index_messages(self, limit: int, *, active_since: datetime | None = None) -> int:
        if not self._database.is_writable:
            return 0
        self._remove_outdated()
        since = "" if active_since is None else to_text(active_since)
        new = self._database.read(lambda connection: indexing.list_new(connection, limit, since))
        if not new:
            return 0
        index_some = partial(indexing.index_some, limit=limit, session_ids=new)
        return self._database.write(index_some, of=[*map(index_lock, new)], durable=False)

    def list_to_embed(self, limit: int, *, messages: bool) -> list[ToEmbed]:
        if not self._database.is_writable:
            return []
        self._remove_outdated()
        return self._database.read(lambda connection: vectors.list_to_embed(connection, limit, messages=messages))

    def put_vectors(self, found: Sequence[Vectors]) -> None:
        self._database.write(lambda connection: vectors.put(connection, found), of="", durable=False)

    def set_vector_model(self, name: str, dimensions: int, *, replace: bool = False) -> tuple[str, int]:
        stored = None if replace else self._database.read(vectors.model)
        return stored or self._database.write(
            lambda connection: vectors.set_model(connection, name, dimensions, replace=replace)
        )
