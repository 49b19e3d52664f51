"""`SessionMemory`: what one session remembers, and what it may recall.

The identity is fixed when the session is opened, so what is passed here, by a developer or by a
model through a tool, chooses among the session's own scopes and cannot name anybody else's.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeAlias

from session_middleware.errors import InvalidMemoryArgument, MemoryNotFound, StorageError
from session_middleware.memory.checking import check_count, check_dict, check_moment, check_names, check_text
from session_middleware.memory.context import CountTokens, about_tokens, facts_within_budget, render, within_budget
from session_middleware.memory.found import Memory
from session_middleware.memory.parts import MemoryParts
from session_middleware.memory.scopes import SCOPES, Namespace, Owners, namespace_of, visible_namespaces
from session_middleware.memory.values import check_key, checked_value, words_of
from session_middleware.model import Scope
from session_middleware.notebook import Rows
from session_middleware.settings import parse_duration
from session_middleware.storage.memory_port import (
    ItemPut,
    MemoryPut,
    MemoryQuery,
    MemoryStorage,
    MessageScope,
    StoredMemory,
)
from session_middleware.storage.visit import Visit
from session_middleware.storage.words import holds

Memories: TypeAlias = list[Memory]  # in the class below, `list` is its own method
Kind: TypeAlias = Literal["item", "message"]
Stored: TypeAlias = list[StoredMemory]
Vector: TypeAlias = list[float]
Texts: TypeAlias = list[str]
Namespaces: TypeAlias = list[Namespace]
KINDS: tuple[Kind, ...] = ("item", "message")
Duration: TypeAlias = timedelta | str | float

_FADES_BY_HALF = timedelta(days=30)


class SessionMemory:
    """The memory of a session. Every method has an async twin with the prefix ``a``."""

    def __init__(
        self,
        parts: MemoryParts,
        storage: MemoryStorage,
        visit: Visit,
        *,
        owner_id: str | None,
        group_id: str | None,
    ) -> None:
        self._parts = parts
        self._storage = storage  # of whoever has the session in hand
        self._owner_id = owner_id
        self._visit = visit  # who remembers, and in which incarnation of the session
        self._session_id = visit.session_id
        self._owners = Owners(visit.session_id, visit.identity.user_id, group_id, visit.identity.groups)

    def remember(
        self,
        text_or_dict: str | dict[str, Any],
        key: str | None = None,
        *,
        scope: Scope = "session",
        metadata: dict[str, Any] | None = None,
        ttl: Duration | None = None,
        message_id: str | None = None,
    ) -> Memory:
        """Keep something; under a `key` that is there already, in place of what it held.

        A text is kept as ``{"text": …}``. `metadata` is kept with it, under ``"metadata"``: to
        filter by, not to be found by its words. `ttl` is how long it is kept. `message_id` names the
        message of this session it came from, and with which it is deleted. A session that is not there
        yet is opened, for whoever this is, by what is kept for the session.

        Raises:
            SessionClosed: the session was deleted since.
            MemoryScopeUnavailable: the session has no id for the scope.
            UnserializableValue: the dict holds what JSON cannot keep.
        """
        check_dict("metadata", metadata)
        if message_id is not None:
            check_text("message_id", message_id)
        namespace, key = namespace_of(scope, self._owners), self._parts.new_id() if key is None else str(key)
        put = self._put(namespace, key, text_or_dict, metadata)
        put = put._replace(message_id=message_id, ttl=None if ttl is None else parse_duration(ttl))
        self._storage.put_memories([put], visit=self._visit)
        self._parts.embed_items()
        return self._kept(namespace, key)

    def recall(
        self,
        query: str,
        k: int = 5,
        *,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        since: datetime | None = None,
        filter: dict[str, Any] | None = None,
        window: int = 0,
        recency: float = 0.0,
        explain: bool = False,
    ) -> Memories:
        """The `k` memories that fit `query` best, best first, over all these scopes at once.

        Items are what was put with `remember` or through the store. Messages are what was said: in
        this session (scope ``"session"``), and by this user in all of theirs (scope ``"user"``).
        Scopes the session has no id for are passed over. A query without a word that says something
        finds nothing by words. What cannot be used raises `InvalidMemoryArgument`.

        Args:
            since: only what was kept or said at or after this time.
            filter: as in LangGraph's store, on an item's value; a message's value has ``text``,
                ``role`` and, where it has one, ``name``.
            window: messages come with so many neighbours each way, in `Memory.around`.
            recency: what newer counts for: a share of the score that halves every 30 days.
            explain: say in `Memory.parts` what the score is made of.
        """
        check_count("k", k)
        check_count("window", window)
        check_moment("since", since)
        check_dict("filter", filter)
        asked = self._query(query, scopes, kinds)._replace(filter=filter, since=since, limit=k)
        if not asked.namespaces and asked.messages is None:
            return Rows()
        self._parts.settle()
        if recency:
            asked = asked._replace(limit=4 * k)
        asked = asked._replace(vector=self._vector(asked))
        found = self._storage.search_memories(asked)
        memories = [self._memory(stored, recency=recency, explain=explain) for stored in found]
        if recency:
            memories.sort(key=lambda memory: -(memory.score or 0.0))
        self._parts.wake()
        return Rows(self._with_neighbours(memory, window) for memory in memories[:k])

    def context_for(
        self,
        query: str,
        *,
        k: int = 8,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        budget_tokens: int = 1_000,
        unless_in: Collection[str] = (),
        count_tokens: CountTokens = about_tokens,
    ) -> str | None:
        """What of this memory belongs into a prompt that asks `query`; ``None`` when nothing does.

        First the session's `context`, where its scope is asked for: preferences and facts belong into every prompt.
        Then at most `k` memories; all of it about `budget_tokens`. Messages whose ids are in `unless_in` are left
        out: those the prompt holds already.
        """
        found = self.recall(query, k + len(unless_in), scopes=scopes, kinds=kinds)
        left = [memory for memory in found if memory.kind == "item" or memory.message_id not in unless_in]
        session = self._storage.find_session(self._session_id) if "session" in scopes else None
        context = {} if session is None else session.context
        facts, budget_tokens = facts_within_budget(context, budget_tokens, count_tokens=count_tokens)
        return render(within_budget(left[:k], budget_tokens, count_tokens=count_tokens), facts)

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
            [found] = self._storage.get_memories([(namespace, key)])
            items = [] if found is None else [found]
        else:
            items = self._search(MemoryQuery([namespace], prefix=True, limit=sys.maxsize))
            if query is not None:
                items = [item for item in items if holds(item.text or "", query)]
        gone = [MemoryPut(item.namespace, [ItemPut(item.key, None, None)]) for item in items]
        if gone:
            self._storage.put_memories(gone, visit=self._visit)
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
        [found] = self._storage.get_memories([(source, key)])
        if found is None:
            raise MemoryNotFound(key, scope=scope)
        if source == target:
            return self._memory(found)
        moved = MemoryPut(
            target,
            [ItemPut(key, json.dumps(found.value), found.text)],
            found.session_id,
            found.message_id,
            found.paths,
            embed=found.text is not None and self._parts.embeds,
        )
        self._storage.put_memories([MemoryPut(source, [ItemPut(key, None, None)]), moved], visit=self._visit)
        self._parts.embed_items()
        return self._kept(target, key)

    def list(self, scopes: Sequence[Scope] = ("session",), *, filter: dict[str, Any] | None = None) -> Memories:
        """All items of these scopes, first kept first; scopes the session has no id for are passed over."""
        check_dict("filter", filter)
        namespaces = visible_namespaces(self._owners, scopes)
        found = self._search(MemoryQuery(namespaces, prefix=True, limit=sys.maxsize, filter=filter))
        return Rows(self._memory(stored) for stored in found)

    def last_said(self, count: int = 12) -> Texts:
        """The texts of the last messages of this session, oldest first; nobody's but the user's and the assistant's."""
        self._parts.settle()
        messages = self._storage.list_last_messages(self._session_id, count)
        return [message.text for message in messages if message.role in ("user", "assistant")]

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
        origin = self._storage.find_origin(self._session_id, incarnation or 0)
        found = self.namespaces(scopes)
        if origin is None:
            return [_stamp(*namespace) for namespace in found if namespace[0] != "session"]
        return [_stamp(*namespace, *([origin] if namespace[0] == "session" else [])) for namespace in found]

    def check_may_change(self, namespaces: Collection[Namespace]) -> None:
        """Ask as `remember` does, for what is kept elsewhere: opens what that opens, and raises what that does."""
        self._storage.put_memories([MemoryPut(namespace, []) for namespace in namespaces], visit=self._visit)

    async def alast_said(self, count: int = 12) -> Texts:
        return await self._parts.offload.run(self.last_said, count)

    async def aremember(self, text_or_dict: str | dict[str, Any], key: str | None = None, **options: Any) -> Memory:
        return await self._parts.offload.run(self.remember, text_or_dict, key, **options)

    async def arecall(self, query: str, k: int = 5, **options: Any) -> Memories:
        return await self._parts.offload.run(self.recall, query, k, **options)

    async def acontext_for(self, query: str, **options: Any) -> str | None:
        return await self._parts.offload.run(self.context_for, query, **options)

    async def aforget(self, key: str | None = None, **options: Any) -> int:
        return await self._parts.offload.run(self.forget, key, **options)

    async def apromote(self, key: str, to: Scope = "user", **options: Any) -> Memory:
        return await self._parts.offload.run(self.promote, key, to, **options)

    async def alist(self, scopes: Sequence[Scope] = ("session",), **options: Any) -> Memories:
        return await self._parts.offload.run(self.list, scopes, **options)

    def _put(
        self, namespace: Namespace, key: str, what: str | dict[str, Any], metadata: dict[str, Any] | None
    ) -> MemoryPut:
        check_key(key)
        value, encoded = checked_value(namespace, key, {"text": what} if isinstance(what, str) else what)
        words = words_of(value)
        if metadata is not None:
            _, encoded = checked_value(namespace, key, value | {"metadata": metadata})
        item = ItemPut(key, encoded, words)
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

    def _query(self, query: str, scopes: Sequence[Scope], kinds: Sequence[Kind]) -> MemoryQuery:
        """What lies below a scope's namespace, put there through the store, belongs to the scope too."""
        check_text("query", query)
        check_names("kinds", kinds, KINDS)
        namespaces = visible_namespaces(self._owners, scopes)
        whose: list[MessageScope] = []
        is_shared = self._owner_id != self._owners.user  # then what is said in it is theirs to find by being in it
        if "user" in scopes and self._owners.user:
            whose.append(MessageScope(user_id=self._owners.user))
        if "session" in scopes and (is_shared or not whose):
            whose.append(MessageScope(self._session_id, self._owner_id))
        messages, more = [*(whose if "message" in kinds else []), None, None][:2]
        return MemoryQuery(
            namespaces if "item" in kinds else [], prefix=True, query=query, messages=messages, more=more
        )

    def _vector(self, asked: MemoryQuery) -> Vector | None:
        """The query's vector, without the names of those who speak: they are on every second message."""
        query = asked.query or ""
        if self._parts.embedder is None or not query.strip():
            return None
        said = dict.fromkeys(re.findall(r"\w+", query))
        for whose in asked.whose:
            for name in self._storage.list_speakers(list(said), whose):
                query = re.sub(rf"\b{re.escape(name)}\b('s\b)?", "", query)
        return self._parts.embedder.query(query if query.strip() else asked.query or "")

    def _search(self, query: MemoryQuery) -> Stored:
        return self._storage.search_memories(query) if query.namespaces else []

    def _memory(self, stored: StoredMemory, *, recency: float = 0.0, explain: bool = False) -> Memory:
        scope: Any = stored.namespace[0]
        if stored.seq is not None and stored.session_id != self._session_id:
            scope = "user"
        age = max(self._parts.clock() - stored.updated_at, timedelta(0))  # a clock may have been set back
        fresh = 0.5 ** (age / _FADES_BY_HALF)
        score = None if stored.score is None else stored.score * (1 + recency * fresh)
        parts = {"words": stored.words or 0.0, "vector": stored.vector or 0.0, "recency": fresh}
        return Memory(
            text=words_of(stored.value) or "" if stored.text is None else stored.text,
            value=stored.value,
            key=stored.key,
            kind="item" if stored.seq is None else "message",
            scope=scope,
            session_id=stored.session_id,
            message_id=stored.message_id,
            seq=stored.seq,
            created_at=stored.created_at,
            updated_at=stored.updated_at,
            expires_at=stored.expires_at,
            score=score,
            parts=parts if explain and score is not None else None,
        )

    def _with_neighbours(self, memory: Memory, each_way: int) -> Memory:
        if memory.seq is None or not memory.session_id or each_way < 1:
            return memory
        around = self._storage.list_messages_around(memory.session_id, memory.seq, each_way=each_way)
        return memory.model_copy(update={"around": tuple(around)})


def _stamp(*parts: object) -> str:
    return json.dumps(parts, separators=(",", ":"))


class HasOwnMemory(Protocol):
    """A `Session`, as far as it matters to what is made of its memory."""

    @property
    def memory(self) -> SessionMemory: ...
