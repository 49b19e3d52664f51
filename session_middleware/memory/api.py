"""`MemoryAPI`: what `Sessions` offers of memory, over all its sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig

from session_middleware import lifecycle
from session_middleware.errors import UserRevoked
from session_middleware.memory.context import CountTokens, about_tokens
from session_middleware.memory.indexer import Indexed, MemoryIndexer
from session_middleware.memory.message_search import search
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.results import SearchHit
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasOwnMemory, SessionMemory
from session_middleware.memory.session_recall import KINDS, SPEAKERS, Kind
from session_middleware.memory.validation import check_count, check_moment, check_text
from session_middleware.models import Role, Scope
from session_middleware.runtime.run_context import identity_of
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.memory_types import MessageScope
from session_middleware.storage.run import RunContext

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
        """What was said that holds words of `query`, best first: of a user, of a session, or of everybody.

        A last word of three letters or more is found as the beginning of a longer one too, as it is while
        somebody types; a space or a sign after it says that it is whole. A query of nothing but words that say
        nothing ("the who") or signs (an emoji) finds what holds it as it is written, the latest first; that
        reads all the texts there are to look in.

        Searched are the texts of messages, each up to 65,536 characters: what users, assistants and tools said.
        Arguments, and what functions under `Session.tool` gave back, are no messages: `tool_calls` lists them.

        Of a session with a `user_id`: only if it is that user's. Each comes with a snippet, in which
        `marks` are put around the words.
        """
        check_text("query", query)
        check_moment("since", since)
        check_count("limit", limit)
        check_count("offset", offset)
        self._memory.settle()
        session = None if session_id is None else lifecycle.session_id_of(session_id)
        whose = MessageScope(session, None if user_id is None else lifecycle.owner_id_of("user_id", user_id))
        storage = self._memory.storage
        return search(storage, query, whose, since=since, limit=limit, offset=offset, marks=marks)

    asearch = async_twin(search)

    def memory(self, config: RunnableConfig) -> SessionMemory:
        """The memory of the session a run's config names, for the caller it names.

        Raises:
            InvalidSessionId: it names none.
            SessionAccessDenied: it is another user's.
            UserRevoked: `Sessions.revoke` refuses the caller.
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
        visit = RunContext(session_id, identity, is_run=False, incarnation=incarnation)
        return SessionMemory(
            *(self._memory, self._memory.storage, self._memory.inside(configurable) or visit),
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
        """A LangChain retriever of what a session may recall: of the one the run's config names, or of `session`.

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
        """A document retriever joined with the session's memory, as `AugmentedRetriever` describes it.

        A question that leans on what came before is completed with the words the last turns were about,
        or by `complete`, a function of the question and the texts before it. `memory_weight` is what a memory's
        score counts for, beside a document's.
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
        """A vector store in which documents belong to a session, its user or its group.

        Args:
            vectorstore: any LangChain vector store.
            scope: whose the documents are that are added through it.
            scopes: whose documents are found.
            session: always this session, instead of the one the run's config names.
            filter_for: makes the store's filter from a metadata key and its allowed values; by default
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
        """Index now what is not indexed yet: the words of messages and, where ``index`` is set, vectors.

        Nobody has to call it: a search finds all words anyhow, and the rest is done in the background
        after a run. `rebuild` makes all vectors anew, as it must be after a change of the model. Words need no
        such thing: they go in and out with what they are of.

        Raises:
            EmbeddingFailed: the model did not answer a `rebuild`. Nothing is lost if it did not from the
                start; else what is left gets its vectors by the next call, with `rebuild` or without.
        """
        return self._memory.index(rebuild=rebuild)

    aindex_memory = async_twin(index_memory)


def _own(session: HasOwnMemory | None) -> SessionMemory | None:
    return None if session is None else session.memory
