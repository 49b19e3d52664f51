"""`SessionRecall`: the memories that one session may recall, and the part of a prompt made from them.

The identity is fixed when the session is opened. Arguments, from a developer or from a model through a tool, select
among the session's own scopes and cannot name those of others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypedDict

from session_middleware.display.html import Rows
from session_middleware.memory.context import (
    CountTokens,
    about_tokens,
    facts_of,
    line,
    once,
    render,
    within_budget,
)
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES, Namespace, Owners, both_of, is_always, visible_namespaces
from session_middleware.models import Role, Scope
from session_middleware.storage import validation
from session_middleware.storage.executor import async_twin
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory, text_of
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

Memories: TypeAlias = list[Memory]  # in the class below, `list` is a method
Kind: TypeAlias = Literal["item", "message"]
Stored: TypeAlias = list[StoredMemory]
Texts: TypeAlias = list[str]
Namespaces: TypeAlias = list[Namespace]
KINDS: tuple[Kind, ...] = ("item", "message")
ROLES: tuple[Role, ...] = ("user", "assistant", "tool")  # whose messages are indexed
SPEAKERS: tuple[Role, ...] = ("user", "assistant")
Duration: TypeAlias = timedelta | str | float


class RecallOptions(TypedDict, total=False):
    """The options of retrievers that select memories."""

    k: int
    scopes: Sequence[Scope]
    kinds: Sequence[Kind]
    roles: Sequence[Role]
    always: bool
    name: str | None
    tags: Texts | None
    metadata: dict[str, Any] | None


_HALF_LIFE = timedelta(days=30)
_AS_STORED = ("value", "key", "session_id", "message_id", "seq", "created_at", "updated_at", "expires_at")


class SessionRecall:
    """The methods of `SessionMemory` that only read."""

    def __init__(
        self,
        indexer: MemoryIndexer,
        storage: Storage,
        context: RunContext,
        *,
        owner_id: str | None,
        group_id: str | None,
    ) -> None:
        self._indexer, self._offload = indexer, indexer.offload
        self._storage = storage  # of the session handle
        self._owner_id = owner_id
        self._context = context  # the identity, and the incarnation of the session
        self._session_id = context.session_id
        self._owners = Owners(context.session_id, context.identity.user_id, group_id, context.identity.groups)

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
        """The `k` memories that match `query` best, best first, over all these scopes together.

        Items are those of `remember` and of the store. Messages are those of this session (scope ``"session"``) and
        of all sessions of this user (scope ``"user"``). Scopes that the session has no id for are skipped. A query of
        stop words only finds nothing by words. Raises `InvalidMemoryArgument`.

        Args:
            roles: the roles of messages; by default without ``"tool"``, whose text may come from anywhere.
            since: only memories of this time or later.
            filter: as in LangGraph's store, on an item's value; a message's value has ``text``, ``role`` and, if the
                message has one, ``name``.
            window: how many messages before and after a message `Memory.around` has.
            recency: the weight of a memory's age: a share of the score that halves every 30 days.
            explain: return the parts of the score in `Memory.parts`.
        """
        validation.check_count("k", k)
        validation.check_count("window", window)
        validation.check_moment("since", since)
        validation.check_given("filter", filter, Mapping | None, "a dict")
        validation.check_weight("recency", recency)
        asked = self._query(query, scopes, kinds, roles)._replace(filter=filter, since=since, limit=k)
        if not asked.namespaces and not asked.whose:
            return Rows(of=Memory)
        if recency:
            asked = asked._replace(limit=4 * k)
        found = self._storage.search_memories(self._with_vector(asked))
        memories = [self._memory(stored, recency=recency, explain=explain) for stored in found]
        if recency:
            memories.sort(key=lambda memory: -(memory.score or 0.0))
        return Rows(self._with_neighbours(memories[:k], window), of=Memory)

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
        """The memories of `context_for`: those of every prompt, then the `k` best results of `recall`.

        Each text comes once. Messages without content of their own, which only their neighbours match, are left out.
        """
        validation.check_count("k", k)
        validation.check_always(always)
        validation.check_texts("unless_in", unless_in)
        asked = self._query(query, scopes, kinds, roles)
        first = self._always(scopes) if always else []
        if not k or not (asked.namespaces or asked.whose):
            return Rows(first, of=Memory)
        asked, found = self._with_vector(asked), first
        for limit in (2 * k + len(unless_in), 16 * k + 8 * len(unless_in)):  # the second when many are duplicates
            stored = self._storage.search_memories(asked._replace(limit=limit))
            found = once([*first, *map(self._memory, stored)], query=query, unless_in=unless_in)
            if len(found) >= len(first) + k or len(stored) < limit:
                break
        return Rows(found[: len(first) + k], of=Memory)

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
        """The memories for a prompt that asks `query`, as text; ``None`` when there are none.

        First the session's `context`, if its scope is selected, and the items remembered with ``always=True``; then at
        most `k` memories; all of it within about `budget_tokens`. Each has its source and date, and each text comes
        once. `unless_in` has the ids or texts of messages that the prompt contains already.

        The text is data that others may have written: put it into a user message, not into the system message.
        It stands between two marks that do not occur in it.
        """
        validation.check_count("budget_tokens", budget_tokens)
        validation.check_texts("unless_in", unless_in)
        validation.check_callable("count_tokens", count_tokens, "a function from text to a number of tokens")
        memories = self.select(
            query, k, scopes=scopes, kinds=kinds, roles=roles, always=always, unless_in=[query, *unless_in]
        )
        session = self._storage.find_session(self._session_id) if "session" in scopes else None
        context = {} if session is None else session.context
        facts = list(within_budget(facts_of(context), budget_tokens, text_of=str, count_tokens=count_tokens))
        budget_tokens -= sum(map(count_tokens, facts))
        found = within_budget(memories, budget_tokens, text_of=line, count_tokens=count_tokens)
        return render(list(found), facts)

    def list(self, scopes: Sequence[Scope] = ("session",), *, filter: dict[str, Any] | None = None) -> Memories:
        """All items of these scopes, the oldest first; scopes that the session has no id for are skipped."""
        validation.check_given("filter", filter, Mapping | None, "a dict")
        namespaces = visible_namespaces(self._owners, scopes)
        found = self._storage.search_memories(MemoryQuery(namespaces, prefix=True, limit=sys.maxsize, filter=filter))
        return Rows(map(self._memory, found), of=Memory)

    def last_said(self, count: int = 12) -> Texts:
        """The texts of the last messages of this session by users and assistants, oldest first."""
        validation.check_count("count", count)
        self._indexer.settle()
        [messages] = self._storage.list_messages_around([(self._session_id, None)], before=count)
        return [message.text for message in messages if message.role in ("user", "assistant")]

    arecall = async_twin(recall)
    aselect = async_twin(select)
    acontext_for = async_twin(context_for)
    alist = async_twin(list)
    alast_said = async_twin(last_said)

    def _always(self, scopes: Sequence[Scope]) -> Memories:
        namespaces = [both_of(namespace, always=True)[0] for namespace in visible_namespaces(self._owners, scopes)]
        found = self._storage.search_memories(MemoryQuery(namespaces, prefix=False, limit=sys.maxsize))
        return once(map(self._memory, found), query="", unless_in=())

    def _query(self, query: str, scopes: Sequence[Scope], kinds: Sequence[Kind], roles: Sequence[Role]) -> MemoryQuery:
        """A query for items in and below the scopes' namespaces, and for messages."""
        validation.check_given("query", query, str, "text")
        validation.check_members("kinds", kinds, KINDS)
        validation.check_members("roles", roles, ROLES)
        namespaces = visible_namespaces(self._owners, scopes)
        whose: list[MessageScope] = []
        is_shared = self._owner_id != self._owners.user  # its messages are not among those of the user
        if "user" in scopes and self._owners.user:
            whose.append(MessageScope(user_id=self._owners.user))
        if "session" in scopes and (is_shared or not whose):
            whose.append(MessageScope(self._session_id, self._owner_id))
        spaces, whose = (namespaces if "item" in kinds else []), (whose if "message" in kinds else [])
        return MemoryQuery(spaces, prefix=True, query=query, whose=whose, roles=roles)

    def _with_vector(self, asked: MemoryQuery) -> MemoryQuery:
        """Flush what the recorder has buffered, and add the vector of the query.

        It is computed without the names of speakers, which would match all of their messages.
        """
        self._indexer.settle()
        query = asked.query or ""
        if self._indexer.embedder is None or not query.strip():
            return asked
        self._indexer.wake()
        words = list(dict.fromkeys(re.findall(r"\w+", query)))
        for whose in asked.whose:
            for name in self._storage.find_speakers(words, whose):
                query = re.sub(rf"\b{re.escape(name)}\b('s\b)?", "", query)
        return asked._replace(vector=self._indexer.embedder.query(query if query.strip() else asked.query or ""))

    def _memory(self, stored: StoredMemory, *, recency: float = 0.0, explain: bool = False) -> Memory:
        is_item = stored.seq is None
        scope: Any = stored.namespace[0] if is_item or stored.session_id == self._session_id else "user"
        age = max(self._indexer.clock() - stored.updated_at, timedelta(0))  # the clock may have been set back
        recent = 0.5 ** (age / _HALF_LIFE)
        score = None if stored.score is None else stored.score * (1 + recency * recent)
        parts = {"words": stored.words or 0.0, "vector": stored.vector or 0.0, "recency": recent}
        return Memory(
            **{name: getattr(stored, name) for name in _AS_STORED},
            text=stored.text or text_of(stored.value),
            kind="item" if is_item else "message",
            always=is_item and is_always(stored.namespace),
            scope=scope,
            score=score,
            parts=parts if explain and score is not None else None,
        )

    def _with_neighbours(self, memories: Memories, each_way: int) -> Memories:
        places = [
            (memory.session_id, memory.seq) for memory in memories if memory.seq is not None and memory.session_id
        ]
        if each_way < 1 or not places:
            return memories
        read = self._storage.list_messages_around(places, before=each_way, after=each_way)
        around = dict(zip(places, read, strict=True))
        return [
            memory.model_copy(update={"around": tuple(around[place])})
            if (place := (memory.session_id, memory.seq)) in around
            else memory
            for memory in memories
        ]
