"""A session's memory as a LangChain retriever, which finds its session in the config of the run that asks."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from session_middleware.memory.api import MemoryAPI
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.memory.session_recall import KINDS, SPEAKERS, Kind
from session_middleware.models import Role, Scope

_asking: ContextVar[RunnableConfig | None] = ContextVar("session_middleware_asking", default=None)


def asking_config() -> RunnableConfig:
    """The config of whoever asks: that of the retriever's own call, else of the run around it."""
    return _asking.get() or ensure_config()


class SessionRetriever(BaseRetriever):
    """A retriever that knows whom it answers: `asking_config` holds while it works."""

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        token = _asking.set(ensure_config(config))
        try:
            return super().invoke(input, config, **kwargs)
        finally:
            _asking.reset(token)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        token = _asking.set(ensure_config(config))
        try:
            return await super().ainvoke(input, config, **kwargs)
        finally:
            _asking.reset(token)


class MemoryRetriever(SessionRetriever):
    """What a session may recall, as documents, each text once; `k` may be given to `invoke` too.

    First and besides those `k` comes what was remembered with ``always=True``, unless `always` is false.

    The session is the one the run's config names, or `memory`, which is fixed then.
    """

    sessions: MemoryAPI
    memory: SessionMemory | None = None
    k: int = 5
    scopes: Sequence[Scope] = SCOPES
    kinds: Sequence[Kind] = KINDS
    roles: Sequence[Role] = SPEAKERS
    always: bool = True

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.memory or self.sessions.memory(asking_config())
        return [as_document(each) for each in memory.select(query, self.k if k is None else k, **self._chosen)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        memory = self.memory or await self.sessions.amemory(asking_config())
        found = await memory.aselect(query, self.k if k is None else k, **self._chosen)
        return [as_document(each) for each in found]

    @property
    def _chosen(self) -> dict[str, Any]:
        return {"scopes": self.scopes, "kinds": self.kinds, "roles": self.roles, "always": self.always}


def as_document(memory: Memory) -> Document:
    """A memory as a document, whose metadata says where it came from."""
    about: dict[str, Any] = {
        "from": "memory",
        "kind": memory.kind,
        "scope": memory.scope,
        "key": memory.key,
        "session_id": memory.session_id,
        "message_id": memory.message_id,
        "created_at": memory.created_at.isoformat(),
        "score": memory.score,
    }
    said = {name: memory.value[name] for name in ("role", "name") if memory.kind == "message" and name in memory.value}
    return Document(memory.text, metadata={**about, **said})
