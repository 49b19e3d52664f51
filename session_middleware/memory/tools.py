"""Memory as tools for an agent. Whose memory it is, the run's config says and never the model."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool

from session_middleware.memory.context import line
from session_middleware.memory.door import MemoryDoor
from session_middleware.memory.found import Memory
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasOwnMemory, SessionMemory
from session_middleware.model import Scope


def memory_tools(
    sessions: MemoryDoor,
    *,
    scope: Scope | None = None,
    scopes: Sequence[Scope] = SCOPES,
    session: HasOwnMemory | None = None,
) -> list[BaseTool]:
    """The tools ``remember``, ``recall`` and ``forget``, sync and async.

    Args:
        sessions: whose memory it is: of the session that the config of the run names.
        scope: where ``remember`` keeps things, and ``forget`` finds them. By default with the user,
            where the run has one, else with the session.
        scopes: what ``recall`` may look into.
        session: for a loop that passes no config: always this session's memory.
    """
    made = _Tools(sessions, scope, scopes, session)
    return [
        StructuredTool.from_function(made.remember, made.aremember, name="remember"),
        StructuredTool.from_function(made.recall, made.arecall, name="recall"),
        StructuredTool.from_function(made.forget, made.aforget, name="forget"),
    ]


class _Tools:
    def __init__(
        self, sessions: MemoryDoor, scope: Scope | None, scopes: Sequence[Scope], session: HasOwnMemory | None
    ) -> None:
        self._sessions, self._session = sessions, session
        self._offload = sessions._memory.offload
        self._scope, self._scopes = scope, scopes

    def remember(self, text: str, config: RunnableConfig) -> str:
        """Remember a fact for later conversations, as one sentence that can be understood alone."""
        memory, scope = self._here(config)
        return _kept(memory.remember(text, scope=scope))

    async def aremember(self, text: str, config: RunnableConfig) -> str:
        return await self._offload.run(self.remember, text, config)

    def recall(self, query: str, config: RunnableConfig, limit: int = 5) -> str:
        """Look up what was remembered or said before. Ask with the words that were probably used."""
        return _listed(self._here(config)[0].recall(query, _few(limit), scopes=self._scopes))

    async def arecall(self, query: str, config: RunnableConfig, limit: int = 5) -> str:
        return await self._offload.run(self.recall, query, config, limit)

    def forget(self, key: str, config: RunnableConfig) -> str:
        """Forget something that was remembered, by the key that recall shows."""
        memory, scope = self._here(config)
        return _forgotten(key, memory.forget(key, scope=scope))

    async def aforget(self, key: str, config: RunnableConfig) -> str:
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


def _listed(memories: Sequence[Memory]) -> str:
    if not memories:
        return "Nothing is remembered about that."
    return "\n".join(f"{line(each)} (key: {each.key})" if each.kind == "item" else line(each) for each in memories)
