"""The app: what its routes share, and which routes there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from langgraph.pregel import Pregel

from session_middleware import Sessions, __version__
from session_middleware.integrations.fastapi_errors import add_error_handler
from session_middleware.integrations.server import (
    assistants,
    follow,
    info,
    store,
    thread_states,
    threads,
    unsupported,
)
from session_middleware.integrations.server.identity import Authenticate, Authentication, LoopbackUser
from session_middleware.integrations.server.problems import add_validation_handler
from session_middleware.integrations.server.server_state import Server
from session_middleware.integrations.server.streams import OpenStreams


def app(
    sessions: Sessions,
    graphs: Mapping[str, Pregel[Any, Any, Any, Any]] | None = None,
    *,
    authenticate: Authenticate | None = None,
) -> FastAPI:
    """An app of FastAPI that serves `sessions`, alone or mounted into another app.

    Args:
        graphs: the graphs that clients may run, by name; each is attached unless it has a checkpointer already.
        authenticate: finds the caller of a request, or ``None`` to refuse it. Without it, `LoopbackUser` serves
            programs of this machine only, all as the user ``"local"``.
    """
    attached = {name: sessions.attach(graph) for name, graph in (graphs or {}).items()}
    made = FastAPI(title="session-middleware", version=__version__)
    authentication = Authentication(authenticate or LoopbackUser(), sessions)
    made.state.server = Server(sessions, attached, authentication, OpenStreams(sessions))
    add_error_handler(made)
    add_validation_handler(made)
    _add_routes(made)
    return made


def _add_routes(made: FastAPI) -> None:
    """One line for each router."""
    made.include_router(info.router)
    made.include_router(unsupported.router)  # before the routes whose paths would match too
    made.include_router(assistants.router)
    made.include_router(threads.router)
    made.include_router(thread_states.router)
    made.include_router(store.router)
    made.include_router(follow.router)
