"""`GET /metrics`, in the format of Prometheus.

The number of open sessions is read from the database, so it is the same on all processes. All else is counted in each
process: what it served, swept and closed. No metric has ids of users or sessions, so their number stays small.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Response
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.errors import GraphBubbleUp
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request

from session_middleware import Sessions
from session_middleware.integrations.open_runs import OpenRuns
from session_middleware.integrations.server.identity import LoopbackUser
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.server_state import CurrentServer
from session_middleware.models import Event
from session_middleware.recording.usage import cost_of, model_in, text_in, usage_of

router = APIRouter(tags=["operation"])

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FRESH_SECONDS = 10.0  # that a count of the database is used again, or
_TIMES_ITS_DURATION = 50  # as long as this, so that counting takes at most 2 % of the time


@dataclass
class _Begun:
    at: float = field(default_factory=time.monotonic)
    provider: str | None = None  # of a model
    is_waiting: bool = False  # the run stopped at an interrupt


class Metrics(GraphCallbackHandler):
    """The metrics of an app, in a registry of their own. As a callback handler it observes the graphs' runs."""

    run_inline = True

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._open = OpenRuns[_Begun | None]()  # None: a part of a run that is not counted
        self._stale_at = 0.0
        self.registry = registry = CollectorRegistry()
        self._active = Gauge("mcp_sessions_active", "Open sessions, in the database.", registry=registry)
        self._opened = Counter("mcp_sessions_opened", "Sessions opened or forked.", registry=registry)
        self._expired = Counter("mcp_sessions_expired", "Sessions expired.", registry=registry)
        self._closed = Counter("mcp_sessions_closed", "Sessions ended otherwise.", ["how"], registry=registry)
        self._runs = Counter("mcp_runs", "Runs of graphs.", ["outcome"], registry=registry)
        self._tools = Counter("mcp_tool_calls", "Executions of tools in runs.", ["status"], registry=registry)
        self._models = Counter("mcp_model_calls", "Calls of models in runs.", ["status"], registry=registry)
        self._tokens = Counter("mcp_tokens", "Tokens of model calls.", ["direction"], registry=registry)
        self._cost = Counter("mcp_cost_dollars", "Cost of model calls with a known price.", registry=registry)
        self._streams = Gauge("mcp_streams_open", "Streams that clients have open.", registry=registry)
        self._run_seconds, self._tool_seconds, self._model_seconds = (
            Histogram(f"mcp_{what}_duration_seconds", f"Of {what}s.", buckets=_SECONDS, registry=registry)
            for what in ("run", "tool_call", "model_call")
        )
        sessions.on_opened(self._count_opened)
        sessions.on_closed(self._count_closed)

    async def text(self, *, streams: int) -> bytes:
        """The metrics as Prometheus reads them."""
        began = time.monotonic()
        if began >= self._stale_at:
            self._stale_at = began + _FRESH_SECONDS  # one scrape counts, others beside it do not wait
            self._active.set(await self._sessions.acount(status="open"))
            taken = time.monotonic() - began
            self._stale_at = time.monotonic() + max(_FRESH_SECONDS, _TIMES_ITS_DURATION * taken)
        self._streams.set(streams)
        return generate_latest(self.registry)

    def _count_opened(self, event: Event) -> None:
        self._opened.inc()

    def _count_closed(self, event: Event) -> None:
        if event.kind == "expired":
            self._expired.inc()
        else:
            self._closed.labels(how=event.kind).inc()

    # Callbacks

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self._open.begin(run_id, parent_run_id, _Begun() if parent_run_id is None else None)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        if (begun := self._open.find(event.run_id)) is not None:
            begun.is_waiting = True

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_run(run_id, "ok")

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_run(run_id, "error" if isinstance(error, Exception) else "interrupted")

    def _end_run(self, run_id: UUID, outcome: str) -> None:
        if (begun := self._end(run_id)) is not None:
            self._runs.labels(outcome="waiting" if begun.is_waiting and outcome == "ok" else outcome).inc()
            self._run_seconds.observe(time.monotonic() - begun.at)

    def _end(self, run_id: UUID) -> _Begun | None:
        return (self._open.end(run_id) or (None,))[-1]

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        self._open.begin(run_id, parent_run_id, _Begun())

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_tool(run_id, "error" if getattr(output, "status", None) == "error" else "ok")

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        is_fault = isinstance(error, Exception) and not isinstance(error, GraphBubbleUp)
        self._end_tool(run_id, "error" if is_fault else "interrupted")

    def _end_tool(self, run_id: UUID, status: str) -> None:
        if (begun := self._end(run_id)) is not None:
            self._tools.labels(status=status).inc()
            self._tool_seconds.observe(time.monotonic() - begun.at)

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._begin_model(run_id, kwargs)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self._begin_model(run_id, kwargs)

    def _begin_model(self, run_id: UUID, given: Mapping[str, Any]) -> None:
        begun = _Begun(provider=text_in(given.get("metadata"), "ls_provider"))
        self._open.begin(run_id, given.get("parent_run_id"), begun)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        provider = self._end_model(run_id, "ok")
        for generation in (each for some in response.generations for each in some):
            message = getattr(generation, "message", None)
            if message is None:
                continue
            tokens, _ = usage_of(message)
            self._tokens.labels(direction="input").inc(tokens.input or 0)
            self._tokens.labels(direction="output").inc(tokens.output or 0)
            model = model_in(message.response_metadata) or model_in(response.llm_output)
            self._cost.inc(cost_of(model, provider, tokens) or 0)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_model(run_id, "error" if isinstance(error, Exception) else "interrupted")

    def _end_model(self, run_id: UUID, status: str) -> str | None:
        if (begun := self._end(run_id)) is None:
            return None
        self._models.labels(status=status).inc()
        self._model_seconds.observe(time.monotonic() - begun.at)
        return begun.provider


@router.get("/metrics", response_class=Response, responses=problems())
async def metrics(request: Request, server: CurrentServer) -> Response:
    """The metrics of this process, for Prometheus.

    They are read by operators, by programs of the server's machine, and with the token for metrics, if there is one.
    """
    if not _has_token(request) and not _is_local(request):
        caller = await server.authentication.caller_of(request)
        if not caller.is_operator:
            raise HTTPException(403, "only operators read the metrics; call as one, or with the token for metrics")
    found: Metrics = request.app.state.metrics
    return Response(await found.text(streams=server.streams.count()), media_type=CONTENT_TYPE_LATEST)


def _has_token(request: Request) -> bool:
    token: str | None = request.app.state.metrics_token
    given = request.headers.get("authorization", "")
    return token is not None and hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def _is_local(request: Request) -> bool:
    try:
        return bool(LoopbackUser()(request))
    except HTTPException:
        return False
