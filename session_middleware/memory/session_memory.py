"""`SessionMemory`: what one session remembers, and what it may recall."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from session_middleware.errors import InvalidMemoryArgument, MemoryNotFound, StorageError
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES, Namespace, both_of, namespace_of, visible_namespaces
from session_middleware.memory.session_recall import Duration, Namespaces, SessionRecall, Stored, Texts
from session_middleware.memory.validation import check_always, check_dict, check_text
from session_middleware.memory.values import check_key, checked_value, words_of
from session_middleware.models import Scope
from session_middleware.settings import parse_duration
from session_middleware.storage.executor import async_twin
from session_middleware.storage.memory_types import MemoryItemPut, MemoryPut, MemoryQuery
from session_middleware.storage.search.tokenizer import holds
from session_middleware.storage.validation import suggesting


@suggesting
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
        """Keep something; under a `key` that is there already, in place of what it held.

        A text is kept as ``{"text": …}``. `metadata` is kept with it, under ``"metadata"``: to
        filter by, not to be found by its words. `ttl` is how long it is kept. `message_id` names the
        message of this session it came from, and with which it is deleted. A session that is not there
        yet is opened, for whoever this is, by what is kept for the session.

        With `always` it belongs into every prompt, whatever that asks: it is the first that `context_for` gives, and
        what is made of it. In the store it is below the scope's namespace: ``("user", "alice", "always")``.

        Raises:
            SessionClosed: the session was deleted since.
            MemoryScopeUnavailable: the session has no id for the scope.
            UnserializableValue: the dict holds what JSON cannot keep.
        """
        check_dict("metadata", metadata)
        if message_id is not None:
            check_text("message_id", message_id)
        check_always(always)
        namespace, other = both_of(namespace_of(scope, self._owners), always=always)
        key = self._parts.new_id() if key is None else str(key)
        put = self._put(namespace, key, text_or_dict, metadata)
        put = put._replace(message_id=message_id, ttl=None if ttl is None else parse_duration(ttl))
        self._storage.put_memories([MemoryPut(other, [MemoryItemPut(key, None, None)]), put], context=self._visit)
        self._parts.embed_items()
        return self._kept(namespace, key)

    def forget(
        self, key: str | None = None, *, query: str | None = None, all: bool = False, scope: Scope = "session"
    ) -> int:
        """Forget items of a scope: the one of this key, those that hold every word of `query`, or `all`.

        A word is held as it is written, in any case of its letters: "apple" forgets no "apples", and "cafe" no "café".
        A query without a word that says something forgets nothing. Returns how many there were. What was said is not
        forgotten by this, but by `Session.delete_message`.

        Raises:
            MemoryScopeUnavailable: the session has no id for the scope.
            InvalidMemoryArgument: not exactly one of `key`, `query` and `all` is given, or not as text.
        """
        if [key is not None, query is not None, all is True].count(True) != 1 or not isinstance(all, bool):
            raise InvalidMemoryArgument("forget() was not told what", "give one of: a key, query=…, or all=True")
        namespace = namespace_of(scope, self._owners)
        if query is not None:
            check_text("query", query)
        if key is not None:
            check_text("key", key)
            check_key(key)
            items = self._of_key(namespace, key)
        else:
            items = self._search(MemoryQuery([namespace], prefix=True, limit=sys.maxsize))
            if query is not None:
                items = [item for item in items if holds(item.text or "", query)]
        gone = [MemoryPut(item.namespace, [MemoryItemPut(item.key, None, None)]) for item in items]
        if gone:
            self._storage.put_memories(gone, context=self._visit)
        return len(items)

    def promote(self, key: str, to: Scope = "user", *, scope: Scope = "session") -> Memory:
        """Move an item to another scope, where it outlives this session. It has no time to live there.

        Raises:
            MemoryNotFound: there is no item of this key in `scope`.
            MemoryScopeUnavailable: the session has no id for one of the scopes.
        """
        source, target = namespace_of(scope, self._owners), namespace_of(to, self._owners)
        check_text("key", key)
        check_key(key)
        found = next(iter(self._of_key(source, key)), None)
        if found is None:
            raise MemoryNotFound(key, scope=scope)
        if source == target:
            return self._memory(found)
        target, other = both_of(target, always=found.namespace != source)
        gone = [MemoryPut(namespace, [MemoryItemPut(key, None, None)]) for namespace in (found.namespace, other)]
        moved = MemoryPut(
            target,
            [MemoryItemPut(key, json.dumps(found.value), found.text)],
            found.session_id,
            found.message_id,
            found.paths,
            embed=found.text is not None and self._parts.embeds,
        )
        self._storage.put_memories([*gone, moved], context=self._visit)
        self._parts.embed_items()
        return self._kept(target, key)

    def _of_key(self, namespace: Namespace, key: str) -> Stored:
        found = self._storage.get_memories([(each, key) for each in both_of(namespace, always=False)])
        return [stored for stored in found if stored is not None]

    def has(self, scope: Scope) -> bool:
        """Whether there is an id to keep memories of this scope under."""
        return bool(self.namespaces([scope]))

    def namespace(self, scope: Scope) -> Namespace:
        """Where memories of this scope are. Raises `MemoryScopeUnavailable`."""
        return namespace_of(scope, self._owners)

    def namespaces(self, scopes: Sequence[Scope] = SCOPES) -> Namespaces:
        """Where memories of these scopes are, without those the session has no id for."""
        return visible_namespaces(self._owners, scopes)

    def stamps(self, scopes: Sequence[Scope] = SCOPES) -> Texts:
        """`namespaces`, as text to mark what is kept elsewhere: who has the session's id next has another stamp.

        Without the session's while that is not there, or no longer. Raises what `recall` does out of reach.
        """
        visit = self._visit
        begins = visit.admission == "fresh" and not visit.admitted  # then what is there is put aside
        incarnation = None if begins else visit.incarnation
        session = self._storage.find_session(self._session_id)
        found = self.namespaces(scopes)
        if session is None or session.incarnation != incarnation:
            return [_stamp(*namespace) for namespace in found if namespace[0] != "session"]
        return [_stamp(*namespace, *([incarnation] if namespace[0] == "session" else [])) for namespace in found]

    def check_may_change(self, namespaces: Collection[Namespace]) -> None:
        """Ask as `remember` does, for what is kept elsewhere: opens what that opens, and raises what that does."""
        self._storage.put_memories([MemoryPut(namespace, []) for namespace in namespaces], context=self._visit)

    aremember = async_twin(remember)

    aforget = async_twin(forget)

    apromote = async_twin(promote)

    astamps = async_twin(stamps)

    acheck_may_change = async_twin(check_may_change)

    def _put(
        self, namespace: Namespace, key: str, what: str | dict[str, Any], metadata: dict[str, Any] | None
    ) -> MemoryPut:
        check_key(key)
        value, encoded = checked_value(namespace, key, {"text": what} if isinstance(what, str) else what)
        words = words_of(value)
        if metadata is not None:
            _, encoded = checked_value(namespace, key, value | {"metadata": metadata})
        item = MemoryItemPut(key, encoded, words)
        return MemoryPut(namespace, [item], self._session_id, paths=(), embed=self._parts.embeds)

    def _kept(self, namespace: Namespace, key: str) -> Memory:
        [stored] = self._storage.get_memories([(namespace, key)])
        if stored is None:
            raise StorageError(
                self._storage.name,
                f"memory {key!r} in {namespace!r} was forgotten by somebody else as soon as it was kept",
                advice="remember it again",
            )
        return self._memory(stored)


def _stamp(*parts: object) -> str:
    return json.dumps(parts, separators=(",", ":"))


class HasOwnMemory(Protocol):
    """A `Session`, as far as it matters to what is made of its memory."""

    @property
    def memory(self) -> SessionMemory: ...
