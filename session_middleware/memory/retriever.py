"""A session's memory as LangChain retrievers. The config of the calling run names the session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from session_middleware.memory.context import CountTokens, about_tokens, normalized, within_budget
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasMemory, SessionMemory
from session_middleware.memory.session_recall import KINDS, SPEAKERS, Kind
from session_middleware.models import Role, Scope

_caller: ContextVar[RunnableConfig | None] = ContextVar("session_middleware_caller", default=None)


def caller_config() -> RunnableConfig:
    """The config of the retriever's current call; outside a call, of the run around it."""
    return _caller.get() or ensure_config()


class SessionRetriever(BaseRetriever):
    """A retriever whose methods can read the config of their call with `caller_config`."""

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        token = _caller.set(ensure_config(config))
        try:
            return super().invoke(input, config, **kwargs)
        finally:
            _caller.reset(token)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        token = _caller.set(ensure_config(config))
        try:
            return await super().ainvoke(input, config, **kwargs)
        finally:
            _caller.reset(token)


class MemoryRetriever(SessionRetriever):
    """The memories that a session may recall, as documents, each text once.

    `invoke` accepts `k` too. The items remembered with ``always=True`` come first and are not counted by `k`, unless
    `always` is false. The session is the one of `memory`, or else the one that the run's config names.
    """

    sessions: HasMemory
    memory: SessionMemory | None = None
    k: int = 5
    scopes: Sequence[Scope] = SCOPES
    kinds: Sequence[Kind] = KINDS
    roles: Sequence[Role] = SPEAKERS
    always: bool = True

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.memory or self.sessions.memory(caller_config())
        return [as_document(each) for each in memory.select(query, self.k if k is None else k, **self._selection)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        call = self._get_relevant_documents
        return await self.sessions._offload.run(call, query, run_manager=run_manager.get_sync(), k=k)

    @property
    def _selection(self) -> dict[str, Any]:
        return {"scopes": self.scopes, "kinds": self.kinds, "roles": self.roles, "always": self.always}


Complete: TypeAlias = Callable[[str, Sequence[str]], str]  # of the query and the texts before it, oldest first

_SCORES = ("score", "relevance_score", "similarity_score", "_score")  # metadata keys that retrievers use


class AugmentedRetriever(MemoryRetriever):
    """The documents of `retriever` and the memories of the session in one list, best first.

    Items remembered with ``always=True`` come before all others. A query that depends on the last turns of the
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


def as_document(memory: Memory) -> Document:
    """A memory as a document, with its source in the metadata."""
    about: dict[str, Any] = {"from": "memory", "created_at": memory.created_at.isoformat()}
    about |= {name: getattr(memory, name) for name in ("kind", "scope", "key", "session_id", "message_id", "score")}
    if memory.kind == "message":
        about |= {name: memory.value[name] for name in ("role", "name") if name in memory.value}
    return Document(memory.text, metadata=about)
