"""Documents that belong to somebody: a vector store in which each sees what is theirs.

Any LangChain `VectorStore` can be behind it. What is added is stamped with a scope in its metadata; a
search asks the store for the stamps that are visible, and looks at each answer's stamp again, so that
a store which does not understand the filter shows too little rather than too much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from pydantic import ConfigDict

from session_middleware.errors import InvalidMemoryArgument
from session_middleware.memory.api import MemoryAPI
from session_middleware.memory.retriever import SessionRetriever, asking_config
from session_middleware.memory.scopes import SCOPES, Namespace
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.models import Scope
from session_middleware.storage.validation import check_members

FilterFor: TypeAlias = Callable[[str, Sequence[str]], Any]  # a metadata key and its allowed values, as a store's filter

STAMP = "session_scope"


def filter_for(store: VectorStore) -> FilterFor:
    """How most stores are asked for "one of these"; LangChain's in-memory store takes a function."""
    if isinstance(store, InMemoryVectorStore):
        return lambda key, values: lambda document: document.metadata.get(key) in values
    return lambda key, values: {key: {"$in": list(values)}}


class ScopedVectorStore(VectorStore):
    """A vector store seen by one session: what is added is its `scope`'s, what is found is visible to it.

    The session is the one the run's config names, or `memory`, which is fixed then. Documents without
    a stamp are nobody's and are not found; add those for everyone with ``scope="global"``.
    """

    def __init__(
        self,
        store: VectorStore,
        sessions: MemoryAPI,
        *,
        memory: SessionMemory | None = None,
        scope: Scope = "session",
        scopes: Sequence[Scope] = SCOPES,
        filter_for: FilterFor,
    ) -> None:
        check_members("scope", [scope], SCOPES)
        check_members("scopes", scopes, SCOPES)
        self._store = store
        self._sessions = sessions
        self._memory = memory
        self._scope = scope
        self._scopes = scopes
        self._filter_for = filter_for

    @property
    def embeddings(self) -> Embeddings | None:
        return self._store.embeddings

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts of this scope. Ids are the store's own: choose some that nobody else can have.

        Raises:
            SessionError: as `SessionMemory.remember`; one who may only read a session adds nothing to it.
        """
        texts, memory = list(texts), self._here()
        memory.check_may_change([memory.namespace(self._scope)])
        stamp = {STAMP: memory.stamps([self._scope])[0]}
        stamped = [{**metadata, **stamp} for metadata in metadatas or [{} for _ in texts]]
        if ids is not None:
            self._refuse_others(ids, memory)
        return self._store.add_texts(texts, stamped, ids=ids, **kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The nearest that are visible. A `filter` of your own must be a function or a dict, as the store's are."""
        stamps = self._visible()
        both = _both(self._filter_for(STAMP, stamps), filter)
        found = self._store.similarity_search_with_score(query, k=k, filter=both, **kwargs)
        return [(document, score) for document, score in found if document.metadata.get(STAMP) in stamps]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, *, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The nearest that are visible and differ. Raises `NotImplementedError` where the store has no such search."""
        stamps = self._visible()
        both = _both(self._filter_for(STAMP, stamps), filter)
        try:
            found = self._store.max_marginal_relevance_search(
                query, k=k, fetch_k=fetch_k, lambda_mult=lambda_mult, filter=both, **kwargs
            )
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(self._store).__name__} has no search by marginal relevance; use similarity_search"
            ) from error
        return self._seen(found, stamps)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return self._seen(self._store.get_by_ids(ids), self._visible())

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete those of these documents that are visible; ``False`` unless that is all of them.

        Raises:
            InvalidMemoryArgument: no ids. A store cannot be asked for all documents of a scope.
            SessionError: one of them belongs to a session that whoever asks may only read, or to one that is gone.
        """
        if ids is None:
            raise InvalidMemoryArgument("delete() was not told what", "give ids: those that add_texts gave")
        memory = self._here()
        found = self._seen(self._store.get_by_ids(ids), memory.stamps(self._scopes))
        memory.check_may_change(_namespaces(found))
        mine = {document.id for document in found if document.id is not None}
        if mine and self._store.delete(sorted(mine), **kwargs) is False:
            return False
        return mine.issuperset(ids)

    def as_retriever(self, **kwargs: Any) -> ScopedRetriever:  # type: ignore[override]
        """A retriever that takes its session from the config of each call. `search_kwargs` may have ``k``."""
        search_kwargs = kwargs.pop("search_kwargs", {})
        k = search_kwargs.get("k", kwargs.pop("k", 4))
        for name in (*kwargs, *search_kwargs.keys() - {"k"}):
            raise TypeError(f"as_retriever() takes no {name!r}; it takes k, search_kwargs={{'k': …}}")
        return ScopedRetriever(store=self, k=k)

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Self:
        raise NotImplementedError("make a vector store first, then sessions.scope(store).add_texts(…)")

    def _here(self) -> SessionMemory:
        return self._memory or self._sessions.memory(asking_config())

    def _visible(self) -> list[str]:
        return self._here().stamps(self._scopes)

    @staticmethod
    def _seen(found: Iterable[Document], stamps: Sequence[str]) -> list[Document]:
        """Those with a visible stamp, for stores that do not understand the filter."""
        return [document for document in found if document.metadata.get(STAMP) in stamps]

    def _refuse_others(self, ids: Sequence[str], memory: SessionMemory) -> None:
        """An id that is taken by a document of another scope is not overwritten."""
        stamps, found = memory.stamps(self._scopes), self._store.get_by_ids(ids)
        for document in found:
            if document.metadata.get(STAMP) not in stamps:
                raise ValueError(
                    f"a document of the id {document.id!r} is there already, in another scope; choose another id"
                )
        memory.check_may_change(_namespaces(found))


class ScopedRetriever(SessionRetriever):
    """Documents of a `ScopedVectorStore`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: ScopedVectorStore
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return self.store.similarity_search(query, self.k if k is None else k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return await self.store.asimilarity_search(query, self.k if k is None else k)


def _namespaces(documents: Iterable[Document]) -> set[Namespace]:
    """Whose these are, by their stamps."""
    return {tuple(json.loads(document.metadata[STAMP])[:2]) for document in documents}


def _both(ours: Any, theirs: Any) -> Any:
    if theirs is None:
        return ours
    if callable(ours) and callable(theirs):
        return lambda document: ours(document) and theirs(document)
    if isinstance(ours, dict) and isinstance(theirs, dict) and not ours.keys() & theirs.keys():
        return {**theirs, **ours}
    raise ValueError("filter: give a function where the store takes functions, else a dict without session_scope")
