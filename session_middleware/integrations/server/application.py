"""The app: what its routes share, and which routes there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.pregel import Pregel

from session_middleware import Sessions, __version__
from session_middleware.errors import InvalidArgument
from session_middleware.integrations.fastapi_errors import add_error_handler
from session_middleware.integrations.server import assistants, follow, info, metrics, store, unsupported
from session_middleware.integrations.server.gateway.settings import Gateway
from session_middleware.integrations.server.identity import Authenticate, Authentication, LoopbackUser
from session_middleware.integrations.server.limits import Limits, RequestRates
from session_middleware.integrations.server.metrics import Metrics
from session_middleware.integrations.server.page import page_of
from session_middleware.integrations.server.problems import add_validation_handler
from session_middleware.integrations.server.runs import routes as run_routes
from session_middleware.integrations.server.runs.service import RunService
from session_middleware.integrations.server.server_state import Server
from session_middleware.integrations.server.streams import OpenStreams
from session_middleware.integrations.server.threads import routes as thread_routes
from session_middleware.integrations.server.threads import states, stream


def app(
    sessions: Sessions,
    graphs: Mapping[str, Pregel[Any, Any, Any, Any]] | None = None,
    *,
    authenticate: Authenticate | None = None,
    origins: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    gateway: Gateway | None = None,
    metrics_token: str | None = None,
) -> FastAPI:
    """An app of FastAPI that serves `sessions`, alone or mounted into another app.

    Args:
        graphs: the graphs that clients may run, by name; each is attached unless it has a checkpointer already.
        authenticate: finds the caller of a request, or ``None`` to refuse it. Without it, `LoopbackUser` serves
            programs of this machine only, all as the user ``"local"``.
        origins: the web pages that may call, such as ``"https://chat.example"``, or ``"*"`` for all, which then send
            no cookies. Without `authenticate`, pages that this machine serves may call too.
        limits: of the size of requests, and of each user.
        gateway: the MCP server of which each session gets a process.
        metrics_token: with which ``/metrics`` is read, beside operators and programs of this machine.
    """
    observed = Metrics(sessions)
    attached = {name: _observed(sessions.attach(graph), observed) for name, graph in (graphs or {}).items()}
    made = FastAPI(title="session-middleware", version=__version__, max_body_size=limits.body_bytes, lifespan=_lifespan)
    authentication = Authentication(authenticate or LoopbackUser(), sessions, RequestRates(limits.requests_per_minute))
    streams = OpenStreams(sessions, per_user=limits.streams_per_user)
    made.state.server = Server(sessions, attached, authentication, streams)
    made.state.metrics, made.state.metrics_token = observed, metrics_token
    made.state.runs = RunService(made.state.server)
    _allow_origins(made, origins, local=isinstance(authentication.authenticate, LoopbackUser))
    add_error_handler(made)
    add_validation_handler(made)
    _add_routes(made)
    if gateway is not None:
        _add_gateway(made, gateway)
    return made


def _observed(graph: Pregel[Any, Any, Any, Any], metrics: Metrics) -> Pregel[Any, Any, Any, Any]:
    """The graph with the handlers of metrics, and of spans if OpenTelemetry is installed and it has none of its own."""
    added: list[BaseCallbackHandler] = [metrics]
    with suppress(ImportError):
        from session_middleware.integrations.opentelemetry_spans import SpanHandler

        own: Any = (graph.config or {}).get("callbacks") or []
        if not any(isinstance(each, SpanHandler) for each in getattr(own, "handlers", own)):
            added.append(SpanHandler())
    return graph.with_config({"callbacks": added})


_ENDING_SECONDS = 2.0
_LOCAL_PAGE = r"https?://(localhost|[a-z0-9.-]+\.localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
_READABLE = ("Location", "Content-Location", "Retry-After", "X-Pagination-Total", "X-Pagination-Next")


def _allow_origins(made: FastAPI, origins: Sequence[str], *, local: bool) -> None:
    """Let pages of these origins read responses. A browser asks before it sends a request of theirs."""
    if isinstance(origins, str):
        raise InvalidArgument("origins", origins, wanted=f"a list, such as [{origins!r}]")
    if origins or local:
        made.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_origin_regex=_LOCAL_PAGE if local else None,
            allow_credentials="*" not in origins and not local,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_READABLE,
        )


@asynccontextmanager
async def _lifespan(made: FastAPI) -> AsyncIterator[None]:
    """End the work of the app with its server. Work begins with the first request, so a mounted app needs no start."""
    yield
    await made.state.runs.close()
    if hasattr(made.state, "gateway"):
        await made.state.gateway.close()


async def end_streams(made: FastAPI) -> None:
    """End the runs of the app, and then its open streams, whose clients learn why."""
    with suppress(TimeoutError):  # of a run that does not end
        async with asyncio.timeout(_ENDING_SECONDS):
            await made.state.runs.close()
    made.state.server.streams.end()


def _add_gateway(made: FastAPI, settings: Gateway) -> None:
    from session_middleware.integrations.server.gateway import service  # which imports the SDK of MCP

    made.state.gateway = service.GatewayService(made.state.server.sessions, settings)
    made.include_router(service.router)


def ui(sessions: Sessions, *, authenticate: Authenticate | None = None) -> FastAPI:
    """An app of FastAPI with the page alone, which `app` has at ``/ui``.

    Args:
        authenticate: as of `app`. Without it, the user ``"local"`` of this machine sees the sessions of that user.
    """
    authentication = Authentication(authenticate or LoopbackUser(), sessions, RequestRates(None))
    return page_of(Server(sessions, {}, authentication, OpenStreams(sessions)))


def _add_routes(made: FastAPI) -> None:
    """One line for each router."""
    made.mount("/ui", page_of(made.state.server))
    made.include_router(info.router)
    made.include_router(unsupported.router)  # before the routes whose paths would match too
    made.include_router(assistants.router)
    made.include_router(thread_routes.router)
    made.include_router(states.router)
    made.include_router(store.router)
    made.include_router(follow.router)
    made.include_router(metrics.router)
    made.include_router(run_routes.router)
    made.include_router(stream.router)
