"""`MemoryAPI`: the memory methods of `Sessions`, for all its sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.errors import UserRevoked
from session_middleware.memory.context import CountTokens, about_tokens
from session_middleware.memory.indexer import Indexed, MemoryIndexer
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.results import SearchHit
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasOwnMemory, SessionMemory
from session_middleware.memory.session_recall import KINDS, SPEAKERS, Kind
from session_middleware.models import Role, Scope
from session_middleware.runtime.run_context import identity_of
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.run import RunContext
from session_middleware.storage.search.tokenizer import query_words, snippet, unfinished_word
from session_middleware.storage.validation import check_count, check_moment, check_string

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore

    from session_middleware.memory.scoped_vectorstore import ScopedVectorStore


class MemoryAPI:
    _memory: MemoryIndexer
    _offload: StorageExecutor

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: object = None,
        since: datetime | None = None,
        limit: int = 20,
        offset: int = 0,
        marks: tuple[str, str] = ("", ""),
    ) -> list[SearchHit]:
        """Messages that contain words of `query`, best first: of a user, of a session, or of everybody.

        A last word of three letters or more also matches as a prefix, for search while typing; a space or a sign
        after it ends the word. A query of stop words ("the who") or signs (an emoji) only matches messages that
        contain it as it is written, the latest first; such a search reads all texts in scope.

        Searched are the texts of messages by users, assistants and tools, each up to 65,536 characters. Arguments,
        and results of functions under `Session.tool`, are not messages: `tool_calls` lists them.

        With both ids, the session must be that user's. Each result has a snippet with `marks` around the words.
        """
        check_string("query", query)
        check_moment("since", since)
        check_count("limit", limit)
        check_count("offset", offset)
        self._memory.settle()
        whose = MessageScope(
            None if session_id is None else lifecycle.session_id_of(session_id),
            None if user_id is None else lifecycle.owner_id_of("user_id", user_id),
        )
        asked = MemoryQuery(
            [],
            prefix=False,
            query=query,
            messages=whose,
            since=since,
            limit=limit,
            offset=offset,
            unfinished=True,
            neighbours=False,
            as_written=not query_words(query) and unfinished_word(query) is None,
        )
        return Rows(_hit(stored, query, marks) for stored in self._memory.storage.search_memories(asked))

    asearch = async_twin(search)

    def memory(self, config: RunnableConfig) -> SessionMemory:
        """The memory of the session and the caller that a run's config names.

        Raises:
            InvalidSessionId: the config names no session.
            SessionAccessDenied: the session is another user's.
            UserRevoked: `Sessions.revoke` has revoked the caller.
        """
        configurable = config.get("configurable") or {}
        session_id = lifecycle.session_id_of(configurable.get("thread_id"))
        identity = identity_of(configurable)
        if self._memory.storage.is_revoked(identity.user_id):
            raise UserRevoked(session_id, user_id=identity.user_id)
        session = self._memory.storage.find_session(session_id)
        if session is not None:
            lifecycle.check_access(session, identity, self._memory.access)
        incarnation = None if session is None else session.incarnation
        context = RunContext(session_id, identity, is_run=False, incarnation=incarnation)
        return SessionMemory(
            *(self._memory, self._memory.storage, self._memory.inside(configurable) or context),
            owner_id=identity.user_id if session is None else session.user_id,
            group_id=identity.group_id,
        )

    amemory = async_twin(memory)

    def retriever(
        self,
        *,
        k: int = 5,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        roles: Sequence[Role] = SPEAKERS,
        always: bool = True,
        session: HasOwnMemory | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> BaseRetriever:
        """A LangChain retriever over the memories of `session`, or of the session that the run's config names.

        `name`, `tags` and `metadata` are LangChain's, for tracing.
        """
        from session_middleware.memory.retriever import MemoryRetriever

        return MemoryRetriever(
            sessions=self,
            memory=_own(session),
            k=k,
            scopes=scopes,
            kinds=kinds,
            roles=roles,
            always=always,
            name=name,
            tags=tags,
            metadata=metadata,
        )

    def augment(
        self,
        retriever: BaseRetriever,
        *,
        k: int = 8,
        scopes: Sequence[Scope] = SCOPES,
        kinds: Sequence[Kind] = KINDS,
        roles: Sequence[Role] = SPEAKERS,
        always: bool = True,
        memory_weight: float = 0.8,
        budget_tokens: int | None = None,
        count_tokens: CountTokens = about_tokens,
        complete: Callable[[str, Sequence[str]], str] = complete,
        session: HasOwnMemory | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> BaseRetriever:
        """A retriever of documents and of the session's memories; see `AugmentedRetriever`.

        A question that depends on the last turns is completed with their words, or by `complete`, a function of the
        question and the texts before it. `memory_weight` is the weight of a memory's score beside a document's.
        """
        from session_middleware.memory.augmented_retriever import AugmentedRetriever

        return AugmentedRetriever(
            retriever=retriever,
            sessions=self,
            memory=_own(session),
            k=k,
            scopes=scopes,
            kinds=kinds,
            roles=roles,
            always=always,
            memory_weight=memory_weight,
            budget_tokens=budget_tokens,
            count_tokens=count_tokens,
            complete=complete,
            name=name,
            tags=tags,
            metadata=metadata,
        )

    def scope(
        self,
        vectorstore: VectorStore,
        *,
        scope: Scope = "session",
        scopes: Sequence[Scope] = SCOPES,
        session: HasOwnMemory | None = None,
        filter_for: Callable[[str, Sequence[str]], Any] | None = None,
    ) -> ScopedVectorStore:
        """A vector store whose documents belong to a session, its user or its group.

        Args:
            vectorstore: any LangChain vector store.
            scope: the scope of documents that are added.
            scopes: the scopes of documents that are found.
            session: this session instead of the one that the run's config names.
            filter_for: builds the store's filter from a metadata key and its allowed values; by default
                ``{key: {"$in": values}}``, or a function for LangChain's in-memory store.
        """
        from session_middleware.memory import scoped_vectorstore

        return scoped_vectorstore.ScopedVectorStore(
            vectorstore,
            self,
            memory=_own(session),
            scope=scope,
            scopes=scopes,
            filter_for=filter_for or scoped_vectorstore.filter_for(vectorstore),
        )

    def index_memory(self, *, rebuild: bool = False) -> Indexed:
        """Index the words of all messages now and, where ``index`` is set, compute all missing vectors.

        The call is optional: a search finds all words anyway, and vectors are computed in the background after a
        run. `rebuild` computes all vectors again, which is necessary after a change of the model.

        Raises:
            EmbeddingFailed: the model failed during a `rebuild`. If it failed at the start, the old vectors are
                kept; otherwise the next call computes the missing ones.
        """
        return self._memory.index(rebuild=rebuild)

    aindex_memory = async_twin(index_memory)


def _hit(stored: StoredMemory, query: str, marks: tuple[str, str]) -> SearchHit:
    text = stored.text or ""
    return SearchHit(
        session_id=stored.session_id or "",
        seq=stored.seq or 0,
        message_id=stored.key,
        role=stored.value["role"],
        name=stored.value.get("name"),
        snippet=snippet(text, query, marks=marks),
        text=text,
        created_at=stored.created_at,
        score=stored.score or 0.0,
    )


def _own(session: HasOwnMemory | None) -> SessionMemory | None:
    return None if session is None else session.memory
