"""A vector store whose documents have owners.

It wraps any LangChain `VectorStore`. The metadata of each document has a stamp with its scope. A search filters by
the visible stamps and then checks the stamp of each result again, so that a store that ignores the filter returns
too little rather than too much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from session_middleware.errors import InvalidMemoryArgument
from session_middleware.memory.retriever import SessionRetriever, caller_config
from session_middleware.memory.scopes import SCOPES, Namespace
from session_middleware.memory.session_memory import HasMemory, SessionMemory
from session_middleware.models import Scope
from session_middleware.storage.validation import check_given, check_members

FilterFor: TypeAlias = Callable[[str, Sequence[str]], Any]  # a metadata key and its allowed values, as a store's filter

STAMP = "session_scope"


def filter_for(store: VectorStore) -> FilterFor:
    """The filter for one of several values in most stores; LangChain's in-memory store takes a function."""
    if isinstance(store, InMemoryVectorStore):
        return lambda key, values: lambda document: document.metadata.get(key) in values
    return lambda key, values: {key: {"$in": list(values)}}


class ScopedVectorStore(VectorStore):
    """A vector store as one session sees it: it adds documents to `scope` and finds those of its `scopes`.

    The session is the one of `memory`, or else the one that the run's config names. Documents without a stamp are
    not found; documents for everyone are added with ``scope="global"``.
    """

    def __init__(
        self,
        store: VectorStore,
        sessions: HasMemory,
        *,
        memory: SessionMemory | None = None,
        scope: Scope = "session",
        scopes: Sequence[Scope] = SCOPES,
        filter_for: FilterFor,
    ) -> None:
        check_given("vectorstore", store, VectorStore, "a vector store of LangChain's")
        check_members("scope", [scope], SCOPES)
        check_members("scopes", scopes, SCOPES)
        self._store, self._sessions, self._memory = store, sessions, memory
        self._scope, self._scopes, self._filter_for = scope, scopes, filter_for

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
        """Add texts to the scope. Ids are shared by all scopes of the store, so choose unique ones.

        Raises:
            SessionError: as `SessionMemory.remember`, also when the caller may only read the session.
        """
        texts, memory = list(texts), self._session_memory()
        memory.check_may_change([memory.namespace(self._scope)])
        stamp = {STAMP: memory.stamps([self._scope])[0]}
        stamped = [{**metadata, **stamp} for metadata in metadatas or [{} for _ in texts]]
        visible, found = memory.stamps(self._scopes), self._store.get_by_ids(ids or ())
        for document in found:  # which is about to be replaced
            if document.metadata.get(STAMP) not in visible:
                raise ValueError(f"the id {document.id!r} is used by a document of another scope; choose another id")
        memory.check_may_change(_namespaces(found))
        return self._store.add_texts(texts, stamped, ids=ids, **kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The nearest visible documents. `filter` must be a function or a dict, like the store's own filters."""
        stamps, both = self._restricted(filter)
        found = self._store.similarity_search_with_score(query, k=k, filter=both, **kwargs)
        return [(document, score) for document, score in found if document.metadata.get(STAMP) in stamps]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, *, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The nearest visible documents that differ. Raises `NotImplementedError` if the store has no such search."""
        stamps, both = self._restricted(filter)
        found = self._store.max_marginal_relevance_search(query, k, fetch_k, lambda_mult, filter=both, **kwargs)
        return [document for document in found if document.metadata.get(STAMP) in stamps]

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        stamps = self._session_memory().stamps(self._scopes)
        return [document for document in self._store.get_by_ids(ids) if document.metadata.get(STAMP) in stamps]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete the visible ones of these documents; ``False`` if any of them was not deleted.

        Raises:
            InvalidMemoryArgument: without ids, because a store cannot list the documents of a scope.
            SessionError: for a document of a deleted session, or of a session that the caller may only read.
        """
        if ids is None:
            raise InvalidMemoryArgument("ids", ids, wanted="ids that add_texts returned")
        found = self.get_by_ids(ids)
        self._session_memory().check_may_change(_namespaces(found))
        mine = {document.id for document in found if document.id is not None}
        if mine and self._store.delete(sorted(mine), **kwargs) is False:
            return False
        return mine.issuperset(ids)

    def as_retriever(self, **kwargs: Any) -> ScopedRetriever:
        """A retriever that takes its session from the config of each call; `k` is short for ``search_kwargs["k"]``."""
        if "k" in kwargs:
            kwargs["search_kwargs"] = {"k": kwargs.pop("k"), **kwargs.get("search_kwargs", {})}
        for name in kwargs.keys() - ScopedRetriever.model_fields.keys():
            raise TypeError(f"as_retriever() takes no {name!r}; it takes k, {', '.join(ScopedRetriever.model_fields)}")
        return ScopedRetriever(vectorstore=self, **kwargs)

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Self:
        raise NotImplementedError("create a vector store, then call sessions.scope(store).add_texts(…)")

    def _session_memory(self) -> SessionMemory:
        return self._memory or self._sessions.memory(caller_config())

    def _restricted(self, theirs: Any) -> tuple[list[str], Any]:
        """The visible stamps, and the filter for them and `theirs`. A store may ignore it."""
        stamps = self._session_memory().stamps(self._scopes)
        ours = self._filter_for(STAMP, stamps)
        if theirs is None:
            return stamps, ours
        if callable(ours) and callable(theirs):
            return stamps, lambda document: ours(document) and theirs(document)
        if isinstance(ours, dict) and isinstance(theirs, dict) and not ours.keys() & theirs.keys():
            return stamps, {**theirs, **ours}
        raise ValueError("filter: give a function where the store takes functions, else a dict without session_scope")


class ScopedRetriever(SessionRetriever, VectorStoreRetriever):
    """Documents of a `ScopedVectorStore`."""


def _namespaces(documents: Iterable[Document]) -> set[Namespace]:
    """The namespaces in the stamps of documents."""
    return {tuple(json.loads(document.metadata[STAMP])[:2]) for document in documents}
