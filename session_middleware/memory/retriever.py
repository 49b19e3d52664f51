"""A session's memory as a LangChain retriever. The config of the calling run names the session."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

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
        memory = self.memory or await self.sessions.amemory(caller_config())
        found = await memory.aselect(query, self.k if k is None else k, **self._selection)
        return [as_document(each) for each in found]

    @property
    def _selection(self) -> dict[str, Any]:
        return {"scopes": self.scopes, "kinds": self.kinds, "roles": self.roles, "always": self.always}


def as_document(memory: Memory) -> Document:
    """A memory as a document, with its source in the metadata."""
    about: dict[str, Any] = {"from": "memory", "created_at": memory.created_at.isoformat()}
    about |= {name: getattr(memory, name) for name in ("kind", "scope", "key", "session_id", "message_id", "score")}
    if memory.kind == "message":
        about |= {name: memory.value[name] for name in ("role", "name") if name in memory.value}
    return Document(memory.text, metadata=about)
