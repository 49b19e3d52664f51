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
    from session_middleware.errors import (
        EmbeddingFailed,
        GraphHasPart,
        InvalidArgument,
        InvalidIdentity,
        InvalidMemoryArgument,
        InvalidSessionId,
        InvalidSettings,
        InvalidTransition,
        LeaseLost,
        MemoryAccessDenied,
        MemoryNotFound,
        MemoryScopeUnavailable,
        NotAGraph,
        PathTemplateError,
        SessionAccessDenied,
        SessionBusy,
        SessionClosed,
        SessionError,
        SessionExists,
        SessionExpired,
        SessionLimitReached,
        SessionNotFound,
        StorageError,
        UnknownGrouping,
        UnknownStatus,
        UnknownStrategy,
        UnserializableValue,
        UserRevoked,
    )
    from session_middleware.memory.tools import memory_tools
    from session_middleware.session import Session
    from session_middleware.sessions import Sessions
    from session_middleware.settings import SessionSettings

__version__ = "0.1.0"

_HOMES = {
    "Session": "session",
    "Sessions": "sessions",
    "SessionSettings": "settings",
    "EmbeddingFailed": "errors",
    "GraphHasPart": "errors",
    "InvalidArgument": "errors",
    "InvalidIdentity": "errors",
    "InvalidMemoryArgument": "errors",
    "InvalidSessionId": "errors",
    "InvalidSettings": "errors",
    "InvalidTransition": "errors",
    "LeaseLost": "errors",
    "MemoryAccessDenied": "errors",
    "MemoryNotFound": "errors",
    "MemoryScopeUnavailable": "errors",
    "NotAGraph": "errors",
    "PathTemplateError": "errors",
    "SessionAccessDenied": "errors",
    "SessionBusy": "errors",
    "SessionClosed": "errors",
    "SessionError": "errors",
    "SessionExists": "errors",
    "SessionExpired": "errors",
    "SessionLimitReached": "errors",
    "SessionNotFound": "errors",
    "StorageError": "errors",
    "UnknownGrouping": "errors",
    "UnknownStatus": "errors",
    "UnknownStrategy": "errors",
    "UnserializableValue": "errors",
    "UserRevoked": "errors",
    "memory_tools": "memory.tools",
}

__all__ = [  # the names above, spelled out for type checkers
    "EmbeddingFailed",
    "GraphHasPart",
    "InvalidArgument",
    "InvalidIdentity",
    "InvalidMemoryArgument",
    "InvalidSessionId",
    "InvalidSettings",
    "InvalidTransition",
    "LeaseLost",
    "MemoryAccessDenied",
    "MemoryNotFound",
    "MemoryScopeUnavailable",
    "NotAGraph",
    "PathTemplateError",
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
    "UnknownGrouping",
    "UnknownStatus",
    "UnknownStrategy",
    "UnserializableValue",
    "UserRevoked",
    "memory_tools",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
