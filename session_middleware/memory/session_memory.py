"""`SessionMemory`: what one session remembers, and what it may recall.

The identity is fixed when the session is opened, so what is passed here, by a developer or by a
model through a tool, chooses among the session's own scopes and cannot name anybody else's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from session_middleware.errors import StorageError
from session_middleware.memory.scopes import SCOPES, Namespace, Owners, namespace_of, visible_namespaces
from session_middleware.memory.values import check_key, checked_value, words_of
from session_middleware.model import Memory, NewId, Scope
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import MemoryPut, MemoryQuery, Storage, StoredMemory

Memories: TypeAlias = list[Memory]  # in the class below, `list` is its own method


class SessionMemory:
    """The memory of a session. Every method has an async twin with the prefix ``a``."""

    def __init__(
        self,
        storage: Storage,
        offload: Offload,
        *,
        session_id: str,
        user_id: str | None,
        group_id: str | None,
        new_id: NewId,
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._session_id = session_id
        self._owners = Owners(session_id, user_id, group_id)
        self._new_id = new_id

    def remember(
        self,
        text_or_dict: str | dict[str, Any],
        key: str | None = None,
        *,
        scope: Scope = "session",
        metadata: dict[str, Any] | None = None,
    ) -> Memory:
        """Keep something; under a `key` that is there already, in place of what it held.

        A text is kept as ``{"text": …}``. `metadata` is kept with it, under ``"metadata"``: to
        filter by, not to be found by its words.

        Raises:
            MemoryScopeUnavailable: the session has no id for the scope.
            UnserializableValue: the dict holds what JSON cannot keep.
        """
        namespace, key = namespace_of(scope, self._owners), self._new_id() if key is None else str(key)
        put = self._put(namespace, key, text_or_dict, metadata)
        self._storage.put_memories([put])
        [stored] = self._storage.get_memories([(namespace, key)])
        if stored is None:
            raise StorageError(
                self._storage.name,
                f"memory {key!r} in {namespace!r} was forgotten by somebody else as soon as it was kept",
                advice="remember it again",
            )
        return _memory(stored)

    def recall(self, query: str, k: int = 5, *, scopes: Sequence[Scope] = SCOPES) -> Memories:
        """The `k` memories that fit the words of `query` best, best first, over all these scopes at once.

        Scopes the session has no id for are passed over. Without a word in the query, nothing is found.
        """
        return self._search(scopes, query=query, limit=k)

    def forget(self, key: str, scope: Scope = "session") -> bool:
        """Whether there was something to forget. Raises `MemoryScopeUnavailable`."""
        namespace = namespace_of(scope, self._owners)
        check_key(key)
        if self._storage.get_memories([(namespace, key)]) == [None]:
            return False
        self._storage.put_memories([MemoryPut(namespace, key, value=None, text=None)])
        return True

    def list(self, scopes: Sequence[Scope] = ("session",)) -> Memories:
        """All memories of these scopes, first kept first; scopes the session has no id for are passed over."""
        return self._search(scopes, query=None, limit=sys.maxsize)

    async def aremember(
        self,
        text_or_dict: str | dict[str, Any],
        key: str | None = None,
        *,
        scope: Scope = "session",
        metadata: dict[str, Any] | None = None,
    ) -> Memory:
        return await self._offload.run(self.remember, text_or_dict, key, scope=scope, metadata=metadata)

    async def arecall(self, query: str, k: int = 5, *, scopes: Sequence[Scope] = SCOPES) -> Memories:
        return await self._offload.run(self.recall, query, k, scopes=scopes)

    async def aforget(self, key: str, scope: Scope = "session") -> bool:
        return await self._offload.run(self.forget, key, scope)

    async def alist(self, scopes: Sequence[Scope] = ("session",)) -> Memories:
        return await self._offload.run(self.list, scopes)

    def _put(
        self, namespace: Namespace, key: str, what: str | dict[str, Any], metadata: dict[str, Any] | None
    ) -> MemoryPut:
        check_key(key)
        value = checked_value(namespace, key, {"text": what} if isinstance(what, str) else what)
        words = words_of(value)
        if metadata is not None:
            value = checked_value(namespace, key, value | {"metadata": metadata})
        return MemoryPut(namespace, key, value, words, self._session_id)

    def _search(self, scopes: Sequence[Scope], *, query: str | None, limit: int) -> Memories:
        """What lies below a scope's namespace, put there through the store, belongs to the scope too."""
        namespaces = visible_namespaces(self._owners, scopes)
        found = self._storage.search_memories(MemoryQuery(namespaces, prefix=True, query=query, limit=limit))
        return [_memory(stored) for stored in found]


def _memory(stored: StoredMemory) -> Memory:
    scope: Any = stored.namespace[0]
    return Memory(
        text=words_of(stored.value) or "" if stored.text is None else stored.text,
        value=stored.value,
        key=stored.key,
        scope=scope,
        session_id=stored.session_id,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        score=stored.score,
    )
