"""`SessionRecall`: what one session may recall, and what of it belongs into a prompt.

The identity is fixed when the session is opened, so what is passed here, by a developer or by a
model through a tool, chooses among the session's own scopes and cannot name anybody else's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from session_middleware.display.html import Rows
from session_middleware.memory.context import (
    CountTokens,
    about_tokens,
    facts_within_budget,
    once,
    render,
    within_budget,
)
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES, Namespace, Owners, both_of, is_always, visible_namespaces
from session_middleware.memory.validation import (
    check_always,
    check_count,
    check_dict,
    check_moment,
    check_names,
    check_text,
)
from session_middleware.memory.values import words_of
from session_middleware.models import Role, Scope
from session_middleware.storage.executor import async_twin
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

Memories: TypeAlias = list[Memory]  # in the class below, `list` is its own method
Kind: TypeAlias = Literal["item", "message"]
Stored: TypeAlias = list[StoredMemory]
Vector: TypeAlias = list[float]
Texts: TypeAlias = list[str]
Namespaces: TypeAlias = list[Namespace]
KINDS: tuple[Kind, ...] = ("item", "message")
ROLES: tuple[Role, ...] = ("user", "assistant", "tool")  # whose messages are found
SPEAKERS: tuple[Role, ...] = ("user", "assistant")
Duration: TypeAlias = timedelta | str | float

_FADES_BY_HALF = timedelta(days=30)


class SessionRecall:
    """The half of `SessionMemory` that only reads."""

    def __init__(
        self,
        parts: MemoryIndexer,
        storage: Storage,
        visit: RunContext,
        *,
        owner_id: str | None,
        group_id: str | None,
    ) -> None:
        self._parts, self._offload = parts, parts.offload
        self._storage = storage  # of whoever has the session in hand
        self._owner_id = owner_id
        self._visit = visit  # who remembers, and in which incarnation of the session
        self._session_id = visit.session_id
        self._owners = Owners(visit.session_id, visit.identity.user_id, group_id, visit.identity.groups)

    def recall(
        self,
        query: str,
        k: int = 5,
        *,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        roles: Sequence[Role] = SPEAKERS,
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
            roles: whose messages: by default what users and assistants said, and not what a ``"tool"`` answered,
                which may be anybody's words.
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
        asked = self._query(query, scopes, kinds, roles)._replace(filter=filter, since=since, limit=k)
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

    def select(
        self,
        query: str,
        k: int = 5,
        *,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        roles: Sequence[Role] = SPEAKERS,
        always: bool = True,
        unless_in: Collection[str] = (),
    ) -> Memories:
        """What `context_for` writes: what belongs into every prompt, then the `k` best of what `recall` finds.

        Each text once, and no message that says nothing and is found by what was said around it alone.
        """
        check_count("k", k)
        check_always(always)
        asked = self._query(query, scopes, kinds, roles)
        first = self._always(scopes) if always else []
        if not asked.namespaces and asked.messages is None:
            return Rows(first)
        self._parts.settle()
        asked = asked._replace(vector=self._vector(asked))
        found: Memories = []
        known = len(unless_in) // 2  # messages: each has an id and a text
        for limit in (2 * k + known, 16 * (k + known)):  # more, where much of it is the same
            stored = self._storage.search_memories(asked._replace(limit=limit)) if k else []
            found = once([*first, *map(self._memory, stored)], query=query, unless_in=unless_in)
            if len(found) >= len(first) + k or len(stored) < limit:
                break
        self._parts.wake()
        return Rows(found[: len(first) + k])

    def context_for(
        self,
        query: str,
        *,
        k: int = 8,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        roles: Sequence[Role] = SPEAKERS,
        always: bool = True,
        budget_tokens: int = 1_000,
        unless_in: Collection[str] = (),
        count_tokens: CountTokens = about_tokens,
    ) -> str | None:
        """What of this memory belongs into a prompt that asks `query`; ``None`` when nothing does.

        First the session's `context`, where its scope is asked for, and what was remembered with ``always=True``;
        then at most `k` memories; all of it about `budget_tokens`. Each says where it is from and when, and each
        text comes once. Messages whose ids or texts are in `unless_in` are left out: those the prompt holds already.

        It is data, and others may have written it: put it where a user's words go, not into the system message.
        It stands between two marks that nothing in it can imitate.
        """
        check_count("budget_tokens", budget_tokens)
        left = self.select(
            query, k, scopes=scopes, kinds=kinds, roles=roles, always=always, unless_in=[query, *unless_in]
        )
        session = self._storage.find_session(self._session_id) if "session" in scopes else None
        context = {} if session is None else session.context
        facts, budget_tokens = facts_within_budget(context, budget_tokens, count_tokens=count_tokens)
        return render(within_budget(left, budget_tokens, count_tokens=count_tokens), facts)

    def list(self, scopes: Sequence[Scope] = ("session",), *, filter: dict[str, Any] | None = None) -> Memories:
        """All items of these scopes, first kept first; scopes the session has no id for are passed over."""
        check_dict("filter", filter)
        namespaces = visible_namespaces(self._owners, scopes)
        found = self._search(MemoryQuery(namespaces, prefix=True, limit=sys.maxsize, filter=filter))
        return Rows(self._memory(stored) for stored in found)

    def last_said(self, count: int = 12) -> Texts:
        """The texts of the last messages of this session, oldest first; nobody's but the user's and the assistant's."""
        self._parts.settle()
        messages = self._storage.list_messages_around(self._session_id, None, before=count)
        return [message.text for message in messages if message.role in ("user", "assistant")]

    arecall = async_twin(recall)

    aselect = async_twin(select)

    acontext_for = async_twin(context_for)

    alist = async_twin(list)

    alast_said = async_twin(last_said)

    def _always(self, scopes: Sequence[Scope]) -> Memories:
        namespaces = [both_of(namespace, always=True)[0] for namespace in visible_namespaces(self._owners, scopes)]
        kept = self._search(MemoryQuery(namespaces, prefix=False, limit=sys.maxsize))
        return once(map(self._memory, kept), query="", unless_in=())

    def _query(self, query: str, scopes: Sequence[Scope], kinds: Sequence[Kind], roles: Sequence[Role]) -> MemoryQuery:
        """What lies below a scope's namespace, put there through the store, belongs to the scope too."""
        check_text("query", query)
        check_names("kinds", kinds, KINDS)
        check_names("roles", roles, ROLES)
        namespaces = visible_namespaces(self._owners, scopes)
        whose: list[MessageScope] = []
        is_shared = self._owner_id != self._owners.user  # then what is said in it is theirs to find by being in it
        if "user" in scopes and self._owners.user:
            whose.append(MessageScope(user_id=self._owners.user))
        if "session" in scopes and (is_shared or not whose):
            whose.append(MessageScope(self._session_id, self._owner_id))
        messages, more = [*(whose if "message" in kinds else []), None, None][:2]
        return MemoryQuery(
            namespaces if "item" in kinds else [], prefix=True, query=query, messages=messages, more=more, roles=roles
        )

    def _vector(self, asked: MemoryQuery) -> Vector | None:
        """The query's vector, without the names of those who speak: they are on every second message."""
        query = asked.query or ""
        if self._parts.embedder is None or not query.strip():
            return None
        said = dict.fromkeys(re.findall(r"\w+", query))
        for whose in asked.whose:
            for name in self._storage.find_speakers(list(said), whose):
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
            always=stored.seq is None and is_always(stored.namespace),
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
        around = self._storage.list_messages_around(memory.session_id, memory.seq, before=each_way, after=each_way)
        return memory.model_copy(update={"around": tuple(around)})
