"""`SessionMemory`: the items and the recall of one session."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from langchain_core.runnables import RunnableConfig

from session_middleware.errors import InvalidArgument, InvalidMemoryArgument, MemoryNotFound, StorageError
from session_middleware.memory.ops import check_key, encoded
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES, Namespace, both_of, namespace_of, visible_namespaces
from session_middleware.memory.session_recall import Duration, Namespaces, SessionRecall, Stored, Texts
from session_middleware.models import Scope
from session_middleware.settings import age_of
from session_middleware.storage import validation
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.memory_types import MemoryItemPut, MemoryPut, MemoryQuery, text_of
from session_middleware.storage.search.tokenizer import contains_all


@validation.suggesting
class SessionMemory(SessionRecall):
    """The memory of a session. Every method has an async twin with the prefix ``a``."""

    def remember(
        self,
        text_or_dict: str | dict[str, Any],
        key: str | None = None,
        *,
        scope: Scope = "session",
        metadata: dict[str, Any] | None = None,
        ttl: Duration | None = None,
        message_id: str | None = None,
        always: bool = False,
    ) -> Memory:
        """Store an item; an item of the same `key` is replaced.

        A text is stored as ``{"text": …}``. `metadata` is stored with it, under ``"metadata"``; filters see it, and
        word search does not. The item expires after `ttl`. It is deleted together with the message of this session
        that `message_id` names. Storing an item of scope ``"session"`` opens the session if it does not exist.

        With `always` the item belongs to every prompt, whatever its query: `context_for` returns it first. In the
        store it is below the scope's namespace: ``("user", "alice", "always")``.

        Raises:
            SessionClosed: the session was deleted since.
            MemoryScopeUnavailable: the session has no id for the scope.
            InvalidMemoryArgument: there is nothing to remember, or another argument is invalid.
            UnserializableValue: the dict is not JSON.
        """
        _check_content(text_or_dict)
        validation.check_given("metadata", metadata, Mapping | None, "a dict")
        validation.check_given("message_id", message_id, str | None, "the id of a message")
        validation.check_always(always)
        namespace, other = both_of(namespace_of(scope, self._owners), always=always)
        key = self._indexer.new_id() if key is None else key
        check_key(key)
        value = {"text": text_or_dict} if isinstance(text_or_dict, str) else text_or_dict
        whole = value if metadata is None else {**value, "metadata": metadata}
        put = MemoryPut(
            namespace,
            [MemoryItemPut(key, encoded(namespace, key, whole), None if metadata is None else text_of(value))],
            self._session_id,
            message_id,
            paths=(),
            embed=self._indexer.embeds and text_of(value) != "",
            ttl=_checked_ttl(ttl),
        )
        self._storage.put_memories([_deletion(other, key), put], context=self._context)
        self._indexer.embed_items()
        return self._stored(namespace, key)

    def forget(
        self, key: str | None = None, *, query: str | None = None, all: bool = False, scope: Scope = "session"
    ) -> int:
        """Delete items of a scope: the one of this key, those that contain every word of `query`, or `all`.

        Words must match as they are written, in any case: "apple" matches no "apples", "cafe" no "café", and "C" no
        "C++" or "C#". Thai, Lao, Khmer and Burmese have no spaces between words, so the query must have a whole
        phrase, from one space or punctuation mark to the next: "ยา" does not match "ผมยาว". A query of stop words only
        deletes nothing.

        Returns how many items were deleted. Recorded messages are deleted by `Session.delete_message`.

        Raises:
            MemoryScopeUnavailable: the session has no id for the scope.
            InvalidMemoryArgument: not exactly one of `key`, `query` and `all` is given, or not as text.
        """
        if [key is not None, query is not None, all is True].count(True) != 1 or not isinstance(all, bool):
            raise InvalidMemoryArgument(
                "the selection", (key, query, all), wanted="one of: a key, query=…, or all=True"
            )
        namespace = namespace_of(scope, self._owners)
        validation.check_given("query", query, str | None, "text")
        if key is not None:
            check_key(key)
            items = self._of_key(namespace, key)
        else:
            items = self._storage.search_memories(MemoryQuery([namespace], prefix=True, limit=sys.maxsize))
            if query is not None:
                items = [item for item in items if contains_all(item.searched_text, query)]
        if items:
            self._storage.put_memories([_deletion(item.namespace, item.key) for item in items], context=self._context)
        return len(items)

    def promote(self, key: str, to: Scope = "user", *, scope: Scope = "session") -> Memory:
        """Move an item to another scope, where it outlives this session and has no time to live.

        Raises:
            MemoryNotFound: there is no item of this key in `scope`.
            MemoryScopeUnavailable: the session has no id for one of the scopes.
        """
        source, target = namespace_of(scope, self._owners), namespace_of(to, self._owners)
        check_key(key)
        found = next(iter(self._of_key(source, key)), None)
        if found is None:
            raise MemoryNotFound(key, scope=scope)
        if source == target:
            return self._memory(found)
        target, other = both_of(target, always=found.namespace != source)
        deletions = [_deletion(namespace, key) for namespace in (found.namespace, other)]
        moved = MemoryPut(
            target,
            [MemoryItemPut(key, json.dumps(found.value), found.text)],
            found.session_id,
            found.message_id,
            found.paths,
            embed=found.searched_text != "" and self._indexer.embeds,
        )
        self._storage.put_memories([*deletions, moved], context=self._context)
        self._indexer.embed_items()
        return self._stored(target, key)

    def _of_key(self, namespace: Namespace, key: str) -> Stored:
        found = self._storage.get_memories([(each, key) for each in both_of(namespace, always=False)])
        return [stored for stored in found if stored is not None]

    def has(self, scope: Scope) -> bool:
        """Whether the session has an id for this scope."""
        return bool(self.namespaces([scope]))

    def namespace(self, scope: Scope) -> Namespace:
        """The namespace of this scope. Raises `MemoryScopeUnavailable`."""
        return namespace_of(scope, self._owners)

    def namespaces(self, scopes: Sequence[Scope] = SCOPES) -> Namespaces:
        """The namespaces of those of these scopes that the session has an id for."""
        return visible_namespaces(self._owners, scopes)

    def stamps(self, scopes: Sequence[Scope] = SCOPES) -> Texts:
        """The `namespaces` as text, to mark data in other stores. Another incarnation of the session has another stamp.

        The session's own stamp is left out while the session does not exist. Raises what `recall` raises.
        """
        state = self._context.state
        is_fresh = state.admission == "fresh" and not state.admitted  # the stored session will be renamed
        session = self._storage.find_session(self._session_id)
        exists = session is not None and not is_fresh and session.incarnation == state.incarnation
        return [
            _stamp(*namespace, state.incarnation) if namespace[0] == "session" else _stamp(*namespace)
            for namespace in self.namespaces(scopes)
            if exists or namespace[0] != "session"
        ]

    def check_may_change(self, namespaces: Collection[Namespace]) -> None:
        """Authorize a change of data in other stores as `remember` does: opens the session, or raises."""
        self._storage.put_memories([MemoryPut(namespace, []) for namespace in namespaces], context=self._context)

    aremember = async_twin(remember)
    aforget = async_twin(forget)
    apromote = async_twin(promote)
    astamps = async_twin(stamps)
    acheck_may_change = async_twin(check_may_change)

    def _stored(self, namespace: Namespace, key: str) -> Memory:
        [stored] = self._storage.get_memories([(namespace, key)])
        if stored is None:
            raise StorageError(
                self._storage.name,
                f"memory {key!r} in {namespace!r} was deleted by another call right after it was stored",
                advice="store it again",
            )
        return self._memory(stored)


def _check_content(value: object) -> None:
    if not isinstance(value, (str, Mapping)) or not value or (isinstance(value, str) and not value.strip()):
        raise InvalidMemoryArgument("a memory", value, wanted="a text or a dict with content")


def _checked_ttl(ttl: object) -> timedelta | None:
    try:
        return age_of("ttl", ttl)
    except InvalidArgument as error:
        raise InvalidMemoryArgument("ttl", ttl, wanted="a duration, such as '30m' or '7d'") from error


def _stamp(*parts: object) -> str:
    return json.dumps(parts, separators=(",", ":"))


def _deletion(namespace: Namespace, key: str) -> MemoryPut:
    return MemoryPut(namespace, [MemoryItemPut(key, None, None)])


@runtime_checkable
class HasOwnMemory(Protocol):
    """The part of `Session` that retrievers, tools and vector stores use."""

    @property
    def memory(self) -> SessionMemory: ...


def check_own(session: HasOwnMemory | None) -> None:
    """Raises `InvalidMemoryArgument` for anything but a session and ``None``."""
    if session is not None:
        validation.check_given("session", session, HasOwnMemory, "a Session, such as sessions.get('thread-42')")


@runtime_checkable
class HasMemory(Protocol):
    """The part of `Sessions` that retrievers, tools and vector stores use."""

    _offload: StorageExecutor

    def memory(self, config: RunnableConfig) -> SessionMemory: ...

    async def amemory(self, config: RunnableConfig) -> SessionMemory: ...
