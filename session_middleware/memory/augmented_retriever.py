"""Session-aware retrieval: a document retriever joined with what the session remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig

from session_middleware.memory.api import MemoryAPI
from session_middleware.memory.context import CountTokens, about_tokens
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.results import Memory
from session_middleware.memory.retriever import SessionRetriever, as_document, asking_config
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.memory.session_recall import KINDS, SPEAKERS, Kind
from session_middleware.models import Role, Scope

Complete: TypeAlias = Callable[[str, Sequence[str]], str]  # the question and what was said before, oldest first

_SCORES = ("score", "relevance_score", "similarity_score", "_score")  # where retrievers leave one


class AugmentedRetriever(SessionRetriever):
    """The documents of `retriever` and the memories of the session, best first, in one list, after what was
    remembered with ``always=True``.

    The question is completed from the last turns of the session where it leans on them. Both kinds are
    fused by their scores as shares of their best, each text once, under a token budget. A document's
    ``metadata["from"]`` says where it came from, and ``metadata["fused_score"]`` how it ranked.
    """

    retriever: BaseRetriever
    sessions: MemoryAPI
    memory: SessionMemory | None = None
    k: int = 8
    scopes: Sequence[Scope] = SCOPES
    kinds: Sequence[Kind] = KINDS
    roles: Sequence[Role] = SPEAKERS
    always: bool = True
    memory_weight: float = 0.8
    budget_tokens: int | None = None
    count_tokens: CountTokens = about_tokens
    complete: Complete = complete

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        k = self.k if k is None else k
        config = _within(run_manager)
        memory = self.memory or self.sessions.memory(asking_config())
        query = self.complete(query, memory.last_said())
        documents = self.retriever.invoke(query, config)
        return self._fused(documents, memory.select(query, k, **self._chosen), k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        k = self.k if k is None else k
        config = _within(run_manager)
        memory = self.memory or await self.sessions.amemory(asking_config())
        query = self.complete(query, await memory.alast_said())
        documents = await self.retriever.ainvoke(query, config)
        return self._fused(documents, await memory.aselect(query, k, **self._chosen), k)

    @property
    def _chosen(self) -> dict[str, Any]:
        return {"scopes": self.scopes, "kinds": self.kinds, "roles": self.roles, "always": self.always}

    def _fused(self, documents: Sequence[Document], memories: Sequence[Memory], k: int) -> list[Document]:
        first = [as_document(memory) for memory in memories if memory.always]
        found = [
            *_scored(documents, 1.0, about={"from": "documents"}),
            *_scored([as_document(memory) for memory in memories if not memory.always], self.memory_weight, about={}),
        ]
        found.sort(key=lambda document: -document.metadata["fused_score"])
        kept = _once([*_scored(first, 1.0, about={}), *found])
        if self.budget_tokens is not None:
            kept = _affordable(kept, self.budget_tokens, self.count_tokens)
        return list(kept)[: len(first) + k]


def _within(run_manager: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun) -> RunnableConfig:
    """The config of a call within this one: who asks stays the same, and it is traced below it."""
    return {**asking_config(), "callbacks": run_manager.get_child(), "run_id": None}


def _scored(documents: Sequence[Document], weight: float, *, about: dict[str, Any]) -> list[Document]:
    """Copies with a score from 0 to `weight`: their own as a share of the best, or else by their order."""
    own = [_score_of(document) for document in documents]
    best = max((score for score in own if score is not None), default=0.0)
    found = []
    for place, (document, score) in enumerate(zip(documents, own, strict=True)):
        share = max(score, 0.0) / best if score is not None and best > 0 else 1 - place / len(documents)
        metadata = {**document.metadata, **about, "fused_score": weight * share}
        found.append(Document(document.page_content, id=document.id, metadata=metadata))
    return found


def _score_of(document: Document) -> float | None:
    for name in _SCORES:
        value = document.metadata.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _once(documents: Iterable[Document]) -> Iterable[Document]:
    """Each text once, the best of them."""
    seen = set()
    for document in documents:
        text = " ".join(document.page_content.lower().split())
        if text not in seen:
            seen.add(text)
            yield document


def _affordable(documents: Iterable[Document], budget: int, count_tokens: CountTokens) -> Iterable[Document]:
    """Those that fit; one that does not makes room for the next."""
    for document in documents:
        cost = count_tokens(document.page_content)
        if cost <= budget:
            budget -= cost
            yield document
