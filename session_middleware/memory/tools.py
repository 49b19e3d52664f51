"""Memory as tools for an agent. The run's config names the session and the user; the model cannot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool

from session_middleware.memory.context import render
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasMemory, HasOwnMemory, SessionMemory, check_own
from session_middleware.memory.session_recall import ROLES, SPEAKERS
from session_middleware.models import Role, Scope
from session_middleware.storage.record_entries import OF_MEMORY
from session_middleware.storage.validation import check_always, check_given, check_members

Answer: TypeAlias = tuple[str, dict[str, Any]]  # text for the model, and an artifact by which the recorder knows it


def memory_tools(
    sessions: HasMemory,
    *,
    scope: Scope | None = None,
    scopes: Sequence[Scope] = SCOPES,
    roles: Sequence[Role] = SPEAKERS,
    always: bool = True,
    session: HasOwnMemory | None = None,
) -> list[BaseTool]:
    """The tools ``remember``, ``recall`` and ``forget``, sync and async.

    Their answers are recorded like those of any tool, but not indexed, so that no search finds forgotten items in
    them. The recorder knows them by their artifact: a loop of your own must record the `ToolMessage` that
    ``tool.invoke(call)`` returns.

    Args:
        sessions: the memory of the session that the run's config names.
        scope: the scope of ``remember`` and ``forget``; by default the user's, or the session's if the run has no
            user.
        scopes: the scopes of ``recall``.
        roles: the roles of messages that ``recall`` finds.
        always: whether ``recall`` also returns items remembered with ``always=True``. A model cannot store these.
        session: this session's memory, for a loop that passes no config.
    """
    check_given("sessions", sessions, HasMemory, "a Sessions")
    check_own(session)
    check_members("scopes", scopes, SCOPES)
    check_members("scope", ["session" if scope is None else scope], SCOPES)
    check_members("roles", roles, ROLES)
    check_always(always)

    def here(config: RunnableConfig) -> tuple[SessionMemory, Scope]:
        memory = sessions.memory(config) if session is None else session.memory
        return memory, scope or ("user" if memory.has("user") else "session")

    def remember(text: str, config: RunnableConfig) -> Answer:
        """Remember a fact for later conversations, as one sentence that can be understood alone."""
        memory, own = here(config)
        return f"Remembered, under the key {memory.remember(text, scope=own).key}.", OF_MEMORY

    def recall(query: str, config: RunnableConfig, limit: int = 5) -> Answer:
        """Look up what was remembered or said before. Ask with the words that were probably used."""
        memory, _ = here(config)
        found = memory.select(query, max(1, min(limit, 50)), scopes=scopes, roles=roles, always=always)
        return render(found, with_keys=True) or "Nothing is remembered about that.", OF_MEMORY

    def forget(key: str, config: RunnableConfig) -> Answer:
        """Forget something that was remembered, by the key that recall shows."""
        memory, own = here(config)
        unknown = f"There is nothing under the key {key}; recall shows the keys."
        return "Forgotten." if memory.forget(key, scope=own) else unknown, OF_MEMORY

    return [
        StructuredTool.from_function(each, _off_loop(each, sessions), response_format="content_and_artifact")
        for each in (remember, recall, forget)
    ]


def _off_loop(function: Callable[..., Answer], sessions: HasMemory) -> Callable[..., Awaitable[Answer]]:
    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Answer:
        return await sessions._offload.run(function, *args, **kwargs)

    return call
