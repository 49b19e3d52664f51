"""The memories' part of the SQL engine: each method is a transaction over the statements of its siblings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from session_middleware.models import Message, to_text
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory, ToEmbed, Vectors
from session_middleware.storage.sql.memory import indexing, items, memories, recall, vectors
from session_middleware.storage.sql.operations import Operations


class MemoryOperations(Operations):
    _is_index_current = False  # no scope is of another version, as far as this process knows

    def get_memories(
        self, keys: Sequence[tuple[tuple[str, ...], str]], *, refresh: Collection[int] = ()
    ) -> list[StoredMemory | None]:
        now = self._rules.clock()
        found = self._database.read(lambda connection: items.get(connection, keys, now))
        self._restart_ttl([memory for place, memory in enumerate(found) if place in refresh and memory is not None])
        return found

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        if query.query is not None and not query.as_written:
            self._update_index(query.whose)
        now = self._rules.clock()
        found = self._database.read(lambda connection: memories.search(connection, query, now))
        if query.refresh:
            self._restart_ttl(found)
        return found

    def _restart_ttl(self, found: Sequence[StoredMemory]) -> None:
        keys = [(memory.namespace, memory.key) for memory in found if memory.expires_at is not None]
        if keys and self._database.is_writable:
            now = self._rules.clock()
            self._database.write(lambda connection: items.refresh(connection, keys, now), durable=False)

    def _update_index(self, whose: Sequence[MessageScope]) -> None:
        """Index the scopes in which more is unindexed than a search reads from where it is stored."""
        if not self._database.is_writable:
            return
        self._rebuild_outdated()
        most = indexing.MAX_UNINDEXED
        unindexed_items, long, has_stale = self._database.read(
            lambda connection: (
                items.count_unindexed(connection, most + 1),
                [scope for scope in whose if indexing.count_new(connection, scope, most + 1) > most],
                bool(whose) and indexing.has_stale(connection),
            )
        )
        if has_stale:
            self._refresh_index()
        if unindexed_items > most:
            self._index_items()
        for scope in long:
            while self._index_some(indexing.BATCH, scope) == indexing.BATCH:
                pass

    def _rebuild_outdated(self) -> None:
        while not self._is_index_current:
            scope_id = self._database.read(memories.find_outdated)
            if scope_id is None:
                self._is_index_current = True
            else:
                self._rebuild(scope_id)

    def _rebuild(self, scope_id: int) -> None:
        now = self._rules.clock()
        self._database.write(lambda connection: memories.rebuild(connection, scope_id, now), durable=False)

    def _refresh_index(self) -> None:
        now = self._rules.clock()
        self._database.write(lambda connection: memories.refresh(connection, now), durable=False)

    def _index_items(self) -> None:
        while self._database.read(lambda connection: items.count_unindexed(connection, 1)):
            self._database.write(lambda connection: items.index_some(connection, items.BATCH), durable=False)

    def _index_some(self, limit: int, whose: MessageScope, active_since: str = "") -> int:
        return self._database.write(
            lambda connection: indexing.index_some(connection, limit, whose, active_since=active_since), durable=False
        )

    def list_namespaces(self) -> list[tuple[str, ...]]:
        now = self._rules.clock()
        return self._database.read(lambda connection: items.list_namespaces(connection, now))

    def delete_expired_memories(self) -> int:
        now = self._rules.clock()
        swept = self._database.write(lambda connection: items.sweep(connection, now))
        if swept:
            self._database.erase()
        return swept

    def list_messages_around(self, session_id: str, seq: int | None, *, before: int, after: int = 0) -> list[Message]:
        return self._database.read(
            lambda connection: memories.list_messages_around(connection, session_id, seq, before, after)
        )

    def index_messages(self, limit: int, *, active_since: datetime | None = None) -> int:
        if not self._database.is_writable:
            return 0
        self._rebuild_outdated()
        since = "" if active_since is None else to_text(active_since)
        if self._database.read(indexing.has_stale):
            self._refresh_index()
        if not self._database.read(lambda connection: indexing.count_new(connection, indexing.EVERYBODY, 1, since)):
            return 0
        return self._index_some(limit, indexing.EVERYBODY, since)

    def list_to_embed(self, limit: int, *, messages: bool) -> list[ToEmbed]:
        if not self._database.is_writable:
            return []
        self._rebuild_outdated()
        self._index_items()
        return self._database.read(lambda connection: vectors.list_to_embed(connection, limit, messages=messages))

    def find_speakers(self, words: Sequence[str], whose: MessageScope) -> set[str]:
        return self._database.read(lambda connection: recall.list_speakers(connection, words, whose))

    def put_vectors(self, found: Sequence[Vectors]) -> None:
        self._database.write(lambda connection: vectors.put(connection, found), durable=False)

    def set_vector_model(self, name: str, dimensions: int, *, replace: bool = False) -> tuple[str, int]:
        stored = None if replace else self._database.read(vectors.model)
        return stored or self._database.write(
            lambda connection: vectors.set_model(connection, name, dimensions, replace=replace)
        )
