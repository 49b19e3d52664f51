"""The SQLite engine's half for memories: each method of `Storage`, as a transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from session_middleware.models import Message
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory, ToEmbed, Vectors
from session_middleware.storage.sql.memory import indexing, items, memories, recall, reindexing, vectors
from session_middleware.storage.sql.operations import Operations

_ITEMS_AT_ONCE = 500  # indexed in one transaction
_ALL_FIRST = 2000  # messages; of a longer backlog, only those in scope are indexed before a search


class MemoryOperations(Operations):
    _has_current_words = False  # as far as this process has looked

    def get_memories(
        self, keys: Sequence[tuple[tuple[str, ...], str]], *, refresh: Collection[int] = ()
    ) -> list[StoredMemory | None]:
        now = self._rules.clock()
        found = self._database.read(lambda connection: items.get(connection, keys, now))
        self._refresh([memory for place, memory in enumerate(found) if place in refresh and memory is not None])
        return found

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        if query.query is not None and not query.as_written:
            self._catch_up(query.whose)
        now = self._rules.clock()
        found = self._database.read(lambda connection: memories.search(connection, query, now))
        if query.refresh:
            self._refresh(found)
        return found

    def _refresh(self, found: Sequence[StoredMemory]) -> None:
        keys = [(memory.namespace, memory.key) for memory in found if memory.expires_at is not None]
        if keys and self._database.is_writable:
            now = self._rules.clock()
            self._database.write(lambda connection: items.refresh(connection, keys, now), durable=False)

    def _catch_up(self, whose: Sequence[MessageScope]) -> None:
        """Leave no more unindexed than a search may read from where it was written, unless it has to read all."""
        if not self._database.is_writable:
            return
        self._renew_words()
        most = indexing.LEFT_UNINDEXED
        messages, left, is_stale = self._database.read(
            lambda connection: (
                indexing.backlog(connection) if whose else 0,
                items.backlog(connection, most + 1),
                bool(whose) and indexing.is_stale(connection),
            )
        )
        if is_stale:
            self._refresh_index()
        if left > most:
            self._index_items()
        if whose and messages > most:
            for of in [indexing.EVERYBODY] if messages <= _ALL_FIRST else whose:
                while self._index_some(indexing.AT_ONCE, of) == indexing.AT_ONCE:
                    pass

    def _renew_words(self) -> None:
        """Make the index of words anew, where its words are those of another version of this package."""
        if self._has_current_words:
            return
        if not self._database.read(reindexing.is_current):
            self._database.write(reindexing.rebuild, durable=False)
        self._has_current_words = True

    def _refresh_index(self) -> None:
        now = self._rules.clock()
        self._database.write(lambda connection: memories.refresh(connection, now), durable=False)

    def _index_items(self) -> int:
        done = 0
        while found := self._database.write(
            lambda connection: items.index_some(connection, _ITEMS_AT_ONCE), durable=False
        ):
            done += found
        return done

    def _index_some(self, limit: int, of: MessageScope) -> int:
        return self._database.write(lambda connection: indexing.index_some(connection, limit, of=of), durable=False)

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

    def index_messages(self, limit: int, *, leave: int = 0) -> int:
        if not self._database.is_writable:
            return 0
        self._renew_words()
        if self._database.read(indexing.is_stale):
            self._refresh_index()
        if self._database.read(indexing.backlog) <= leave:
            return 0
        return self._index_some(limit, indexing.EVERYBODY)

    def list_to_embed(self, limit: int, *, messages: bool) -> list[ToEmbed]:
        if not self._database.is_writable:
            return []
        self._renew_words()
        self._index_items()
        return self._database.read(lambda connection: vectors.to_embed(connection, limit, messages=messages))

    def find_speakers(self, words: Sequence[str], whose: MessageScope) -> set[str]:
        return self._database.read(lambda connection: recall.speakers(connection, words, whose))

    def put_vectors(self, found: Sequence[Vectors]) -> None:
        self._database.write(lambda connection: vectors.put(connection, found), durable=False)

    def set_vector_model(self, name: str, dimensions: int, *, replace: bool = False) -> tuple[str, int]:
        stored = None if replace else self._database.read(vectors.model)
        return stored or self._database.write(
            lambda connection: vectors.set_model(connection, name, dimensions, replace=replace)
        )
