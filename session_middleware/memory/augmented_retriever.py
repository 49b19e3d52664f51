"""Session-aware retrieval: the documents of a retriever together with the memories of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig

from session_middleware.memory.context import CountTokens, about_tokens, normalized, within_budget
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.results import Memory
from session_middleware.memory.retriever import MemoryRetriever, as_document, caller_config

Complete: TypeAlias = Callable[[str, Sequence[str]], str]  # of the question and the texts before it, oldest first

_SCORES = ("score", "relevance_score", "similarity_score", "_score")  # metadata keys that retrievers use


class AugmentedRetriever(MemoryRetriever):
    """The documents of `retriever` and the memories of the session in one list, best first.

    Items remembered with ``always=True`` come before all others. A question that depends on the last turns of the
    session is completed from them. The scores of documents and of memories become shares of the best of their kind;
    each text comes once, within a token budget. ``metadata["from"]`` of a document is its source, and
    ``metadata["fused_score"]`` its rank.
    """

    retriever: BaseRetriever
    k: int = 8
    memory_weight: float = 0.8
    budget_tokens: int | None = None
    count_tokens: CountTokens = about_tokens
    complete: Complete = complete

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.memory or self.sessions.memory(caller_config())
        query = self.complete(query, memory.last_said())
        documents = self.retriever.invoke(query, _child_config(run_manager))
        k = self.k if k is None else k
        return self._fuse(documents, memory.select(query, k, **self._selection), k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.memory or await self.sessions.amemory(caller_config())
        query = self.complete(query, await memory.alast_said())
        documents = await self.retriever.ainvoke(query, _child_config(run_manager))
        k = self.k if k is None else k
        return self._fuse(documents, await memory.aselect(query, k, **self._selection), k)

    def _fuse(self, documents: Sequence[Document], memories: Sequence[Memory], k: int) -> list[Document]:
        first, others = ([as_document(each) for each in memories if each.always is always] for always in (True, False))
        ranked = _scored(documents, 1.0, {"from": "documents"}) + _scored(others, self.memory_weight, {})
        ranked.sort(key=lambda document: -document.metadata["fused_score"])
        by_text: dict[str, Document] = {}
        for document in _scored(first, 1.0, {}) + ranked:
            by_text.setdefault(normalized(document.page_content), document)
        found: Iterable[Document] = by_text.values()
        if self.budget_tokens is not None:
            found = within_budget(
                found, self.budget_tokens, text_of=lambda each: each.page_content, count_tokens=self.count_tokens
            )
        return list(found)[: len(first) + k]


def _child_config(run_manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun) -> RunnableConfig:
    """The config of a nested call: the same identity, traced below this call."""
    return {**caller_config(), "callbacks": run_manager.get_child(), "run_id": None}


def _scored(documents: Sequence[Document], weight: float, about: dict[str, Any]) -> list[Document]:
    """Copies with a score from 0 to `weight`: a share of the best score, or by rank if the document has no score."""
    own = [_score_of(document) for document in documents]
    best = max((score for score in own if score is not None), default=0.0)
    found = []
    for rank, (document, score) in enumerate(zip(documents, own, strict=True)):
        share = max(score, 0.0) / best if score is not None and best > 0 else 1 - rank / len(documents)
        metadata = {**document.metadata, **about, "fused_score": weight * share}
        found.append(Document(document.page_content, id=document.id, metadata=metadata))
    return found


def _score_of(document: Document) -> float | None:
    for name in _SCORES:
        value = document.metadata.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
