"""Memory as tools for an agent. Whose memory it is, the run's config says and never the model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool

from session_middleware.memory.api import MemoryAPI
from session_middleware.memory.context import render
from session_middleware.memory.results import Memory
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasOwnMemory, SessionMemory
from session_middleware.memory.session_recall import ROLES, SPEAKERS
from session_middleware.models import Role, Scope
from session_middleware.storage.record_entries import OF_MEMORY
from session_middleware.storage.validation import check_always, check_members

Answer: TypeAlias = tuple[str, dict[str, Any]]  # what the model reads, and by what the record knows it


def memory_tools(
    sessions: MemoryAPI,
    *,
    scope: Scope | None = None,
    scopes: Sequence[Scope] = SCOPES,
    roles: Sequence[Role] = SPEAKERS,
    always: bool = True,
    session: HasOwnMemory | None = None,
) -> list[BaseTool]:
    """The tools ``remember``, ``recall`` and ``forget``, sync and async.

    What they answer is recorded like any tool's answer, but not indexed: what was forgotten is not found
    in it. It is known by its artifact, so a loop of your own adds the `ToolMessage` that ``tool.invoke(call)``
    gives.

    Args:
        sessions: whose memory it is: of the session that the config of the run names.
        scope: where ``remember`` keeps things, and ``forget`` finds them. By default with the user,
            where the run has one, else with the session.
        scopes: what ``recall`` may look into.
        roles: whose messages ``recall`` finds.
        always: whether ``recall`` also gives what was remembered with ``always=True``; no model can remember so.
        session: for a loop that passes no config: always this session's memory.
    """
    check_members("scopes", scopes, SCOPES)
    check_members("scope", [scope or "session"], SCOPES)
    check_members("roles", roles, ROLES)
    check_always(always)
    made = _Tools(sessions, scope, scopes, roles, always, session)
    return [
        _tool("remember", made.remember, made.aremember),
        _tool("recall", made.recall, made.arecall),
        _tool("forget", made.forget, made.aforget),
    ]


def _tool(name: str, function: Callable[..., Answer], coroutine: Callable[..., Awaitable[Answer]]) -> BaseTool:
    return StructuredTool.from_function(function, coroutine, name=name, response_format="content_and_artifact")


class _Tools:
    def __init__(
        self,
        sessions: MemoryAPI,
        scope: Scope | None,
        scopes: Sequence[Scope],
        roles: Sequence[Role],
        always: bool,
        session: HasOwnMemory | None,
    ) -> None:
        self._sessions, self._session = sessions, session
        self._offload = sessions._memory.offload
        self._scope, self._scopes = scope, scopes
        self._roles, self._always = roles, always

    def remember(self, text: str, config: RunnableConfig) -> Answer:
        """Remember a fact for later conversations, as one sentence that can be understood alone."""
        memory, scope = self._here(config)
        return _kept(memory.remember(text, scope=scope)), OF_MEMORY

    async def aremember(self, text: str, config: RunnableConfig) -> Answer:
        return await self._offload.run(self.remember, text, config)

    def recall(self, query: str, config: RunnableConfig, limit: int = 5) -> Answer:
        """Look up what was remembered or said before. Ask with the words that were probably used."""
        memory, _ = self._here(config)
        found = memory.select(query, _few(limit), scopes=self._scopes, roles=self._roles, always=self._always)
        return render(found, with_keys=True) or "Nothing is remembered about that.", OF_MEMORY

    async def arecall(self, query: str, config: RunnableConfig, limit: int = 5) -> Answer:
        return await self._offload.run(self.recall, query, config, limit)

    def forget(self, key: str, config: RunnableConfig) -> Answer:
        """Forget something that was remembered, by the key that recall shows."""
        memory, scope = self._here(config)
        return _forgotten(key, memory.forget(key, scope=scope)), OF_MEMORY

    async def aforget(self, key: str, config: RunnableConfig) -> Answer:
        return await self._offload.run(self.forget, key, config)

    def _here(self, config: RunnableConfig) -> tuple[SessionMemory, Scope]:
        memory = self._sessions.memory(config) if self._session is None else self._session.memory
        return memory, self._scope or ("user" if memory.has("user") else "session")


def _few(limit: int) -> int:
    return max(1, min(limit, 50))


def _kept(memory: Memory) -> str:
    return f"Remembered, under the key {memory.key}."


def _forgotten(key: str, count: int) -> str:
    return "Forgotten." if count else f"There is nothing under the key {key}; recall shows the keys."
