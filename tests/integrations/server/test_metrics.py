"""The metrics, read by Prometheus' own parser, and the spans of the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from langchain.agents import create_agent
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from session_middleware import Sessions
from session_middleware.integrations.opentelemetry_spans import SpanHandler
from session_middleware.integrations.server import app
from session_middleware.integrations.server.metrics import Metrics
from session_middleware.models import utc_now
from tests.support import agents
from tests.support.http_server import caller_of

OPERATOR = {"x-user": "root", "x-operator": "yes"}


def values(client: TestClient, **headers: str) -> dict[str, float]:
    response = client.get("/metrics", headers=headers or OPERATOR)
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value for each in families for sample in each.samples
    }


@pytest.mark.usefixtures("each_engine")
@pytest.mark.sessions(idle_timeout="1h")
def test_sessions_are_counted_in_the_database_and_what_happens_to_them_here(
    sessions: Sessions, open_sessions: Any
) -> None:
    client = TestClient(app(sessions, authenticate=caller_of))
    for session_id in ("a", "b", "c"):
        sessions.open(session_id, user_id="ada")
    open_sessions().open("elsewhere")  # as by another process
    sessions.get("a").complete()
    sessions.delete("b")
    sessions.settle()
    found = values(client)
    assert (found["mcp_sessions_active"], found["mcp_sessions_opened_total"]) == (2, 3)
    assert (found["mcp_sessions_closed_total,completed"], found["mcp_sessions_closed_total,deleted"]) == (1, 1)
    sessions.sweep(utc_now() + timedelta(hours=2))
    sessions.settle()
    found = values(client)
    assert found["mcp_sessions_expired_total"] == 2
    assert found["mcp_sessions_active"] == 2  # counted a moment ago
    assert "ada" not in client.get("/metrics", headers=OPERATOR).text


async def test_runs_tools_tokens_and_durations_are_counted(sessions: Sessions) -> None:
    made = app(sessions, {"agent": agents.agent(), "approval": agents.approval()}, authenticate=caller_of)
    graphs = made.state.server.graphs
    client = TestClient(made)
    await graphs["agent"].ainvoke(agents.human("look up tea"), sessions.config("a", user_id="ada"))
    with pytest.raises(RuntimeError):
        graphs["agent"].invoke(agents.human("fail tea"), sessions.config("b", user_id="ada"))
    graphs["approval"].invoke({"messages": "x"}, sessions.config("c", user_id="ada"))
    assert [run.outcome for each in "abc" for run in sessions.get(each).runs()] == ["ok", "error", "waiting"]
    found = values(client)
    tools = sum(len(sessions.get(each).tool_calls()) for each in "abc")
    models = [call for each in "abc" for call in sessions.get(each).model_calls()]
    assert [found[f"mcp_runs_total,{outcome}"] for outcome in ("ok", "error", "waiting")] == [1, 1, 1]
    assert (found["mcp_tool_calls_total,ok"], found["mcp_tool_calls_total,error"]) == (tools - 1, 1)
    assert (found["mcp_run_duration_seconds_count"], found["mcp_tool_call_duration_seconds_count"]) == (3, tools)
    assert found["mcp_model_calls_total,ok"] == len(models)
    assert found["mcp_tokens_total,input"] == sum(call.input_tokens or 0 for call in models)
    assert is_empty(made.state.metrics)


def is_empty(metrics: Metrics) -> bool:
    return metrics._open.values() == []


async def test_a_cancelled_run_and_one_that_is_left_are_counted_and_leave_nothing(sessions: Sessions) -> None:
    started = asyncio.Event()

    class Slow(agents.Scripted):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            started.set()
            await asyncio.Event().wait()

    made = app(sessions, {"slow": create_agent(Slow(), []), "agent": agents.agent()}, authenticate=caller_of)
    graphs = made.state.server.graphs
    run = asyncio.create_task(graphs["slow"].ainvoke(agents.human("hi"), sessions.config("a")))
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    left = graphs["agent"].stream(agents.human("look up tea"), sessions.config("b"), stream_mode="values")
    next(left)
    left.close()
    assert values(TestClient(made))["mcp_runs_total,interrupted"] == 2
    assert is_empty(made.state.metrics)


def test_operators_this_machine_and_the_token_read_them(sessions: Sessions) -> None:
    made = app(sessions, authenticate=caller_of, metrics_token="secret")
    client, local = TestClient(made), TestClient(made, base_url="http://localhost", client=("127.0.0.1", 1))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"x-user": "ada"}).status_code == 403
    assert client.get("/metrics", headers={"authorization": "Bearer secreT"}).status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer "}).status_code == 401
    assert values(client, authorization="Bearer secret")["mcp_sessions_active"] == 0
    assert local.get("/metrics").status_code == 200
    assert local.get("/metrics", headers={"x-forwarded-for": "127.0.0.1"}).status_code == 401
    without = TestClient(app(sessions, authenticate=caller_of))
    assert without.get("/metrics", headers={"authorization": "Bearer None"}).status_code == 401


async def test_the_server_makes_spans_by_itself(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)  # the global one can be set once only
    graph = app(sessions, {"agent": agents.agent()}).state.server.graphs["agent"]
    await graph.ainvoke(agents.human("look up tea"), sessions.config("a", user_id="ada"))
    assert [span.name.split()[0] for span in exporter.get_finished_spans()].count("invoke_agent") == 1
    own = agents.agent().with_config({"callbacks": [SpanHandler(provider)]})
    graph = app(sessions, {"agent": own}).state.server.graphs["agent"]
    graph.invoke(agents.human("hi"), sessions.config("b", user_id="ada"))
    assert [span.name.split()[0] for span in exporter.get_finished_spans()].count("invoke_agent") == 2
