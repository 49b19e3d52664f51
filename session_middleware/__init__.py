"""Sessions for agents, in one file.

    from session_middleware import Sessions

    sessions = Sessions("sessions.db")
    agent = sessions.attach(graph)
    agent.invoke({"messages": "hi"}, sessions.config("thread-42", user_id="alice"))

Importing this package imports nothing else; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from session_middleware.errors import *
    from session_middleware.experiments.replay import NotOnRecord
    from session_middleware.memory.tools import memory_tools
    from session_middleware.session import Session
    from session_middleware.sessions import Sessions
    from session_middleware.settings import SessionSettings

__version__ = "0.1.0"

__all__ = [
    "EmbeddingFailed",
    "GraphHasPart",
    "InvalidArgument",
    "InvalidIdentity",
    "InvalidMemoryArgument",
    "InvalidSessionId",
    "InvalidSettings",
    "InvalidToolArguments",
    "InvalidTransition",
    "LeaseLost",
    "MemoryAccessDenied",
    "MemoryNotFound",
    "MemoryScopeUnavailable",
    "MissingExtra",
    "NotAGraph",
    "NotOnRecord",
    "PathTemplateError",
    "ResourceHeld",
    "ServerUnavailable",
    "Session",
    "SessionAccessDenied",
    "SessionBusy",
    "SessionClosed",
    "SessionError",
    "SessionExists",
    "SessionExpired",
    "SessionLimitReached",
    "SessionNotFound",
    "SessionSettings",
    "Sessions",
    "StorageError",
    "ToolFailed",
    "ToolNotFound",
    "ToolServerFailed",
    "ToolTimedOut",
    "UnknownGrouping",
    "UnknownStatus",
    "UnknownStrategy",
    "UnserializableValue",
    "UserRequired",
    "UserRevoked",
    "memory_tools",
]


_MODULES = dict.fromkeys(__all__, "errors") | {
    "NotOnRecord": "experiments.replay",
    "Session": "session",
    "SessionSettings": "settings",
    "Sessions": "sessions",
    "memory_tools": "memory.tools",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext session_middleware``: add ``%session``, which opens and resumes sessions in a notebook."""
    import_module(f"{__name__}.integrations.ipython_magic").load_ipython_extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext session_middleware``."""
    import_module(f"{__name__}.integrations.ipython_magic").unload_ipython_extension(ipython)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
