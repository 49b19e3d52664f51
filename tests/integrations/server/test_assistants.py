"""The graphs that are served, as the official clients see them: as assistants."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from langgraph.graph import START, MessagesState, StateGraph
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import (
    APIStatusError,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    UnprocessableEntityError,
)
from pydantic import BaseModel
from starlette.testclient import TestClient

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, app

AGENT_ID = "fe096781-5601-53d2-b2f6-0d3403f7e9ca"  # as LangGraph's server gives it to each graph that is named "agent"


@pytest.fixture
def client(served: str) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=served, headers={"x-user": "alice"}) as client:
        yield client


def test_an_assistant_is_found_by_its_id_and_by_the_name_of_its_graph(client: SyncLangGraphClient) -> None:
    found = client.assistants.get(AGENT_ID)
    assert client.assistants.get("agent") == found
    assert (found["assistant_id"], found["graph_id"], found["name"], found["version"]) == (
        AGENT_ID,
        "agent",
        "agent",
        1,
    )
    assert found["metadata"] == {"created_by": "system"}
    assert client.assistants.get_versions("agent") == [found]
    with pytest.raises(NotFoundError, match="the graphs of this server are: agent, chat"):
        client.assistants.get("unknown")


def test_assistants_are_searched_counted_and_paged(client: SyncLangGraphClient) -> None:
    search = client.assistants.search
    assert [one["graph_id"] for one in search()] == ["agent", "chat"]
    assert [one["graph_id"] for one in search(graph_id="chat")] == ["chat"]
    assert [one["name"] for one in search(name="AGE")] == ["agent"]
    assert [one["graph_id"] for one in search(sort_by="name", sort_order="desc")] == ["chat", "agent"]
    assert search(metadata={"created_by": "user"}) == []
    assert search(limit=1, select=["graph_id"]) == [{"graph_id": "agent"}]
    assert search(limit=1, response_format="object")["next"] == "1"
    assert search(limit=1, offset=1, response_format="object")["next"] is None
    assert (client.assistants.count(), client.assistants.count(graph_id="agent")) == (2, 1)
    with pytest.raises(UnprocessableEntityError, match="limit: input should be less than"):
        search(limit=10_000)


def test_a_graph_is_drawn_with_its_schemas_and_subgraphs(client: SyncLangGraphClient) -> None:
    drawn = client.assistants.get_graph("agent", xray=True)
    assert {node["id"] for node in drawn["nodes"]} >= {"__start__", "model", "tools"}
    assert drawn["edges"]
    schemas = client.assistants.get_schemas("agent")
    assert schemas["graph_id"] == "agent"
    assert "messages" in schemas["input_schema"]["properties"]
    assert "messages" in schemas["state_schema"]["properties"]
    assert client.assistants.get_subgraphs("agent") == {}
    assert client.assistants.get_subgraphs("agent", namespace="x|y", recurse=True) == {}


def test_what_the_server_does_not_have_is_refused_in_a_sentence(client: SyncLangGraphClient, served: str) -> None:
    for change in (
        lambda: client.assistants.create("agent"),
        lambda: client.assistants.update("agent", name="x"),
        lambda: client.assistants.delete("agent"),
    ):
        with pytest.raises(APIStatusError, match="the graphs that the server was started with") as changed:
            change()
        assert changed.value.status_code == 405
    with pytest.raises(InternalServerError, match="this server has no crons") as refused:
        client.crons.create("agent", schedule="* * * * *")
    assert refused.value.status_code == 501
    with client.threads.stream("t", assistant_id="agent") as stream, pytest.raises(RuntimeError, match=r"runs\.stream"):
        stream.run.start(input={})
    answer = httpx.post(f"{served}/threads/t/stream/events", headers={"x-user": "alice"}, timeout=60)
    assert (answer.status_code, "runs.stream()" in answer.json()["detail"]) == (501, True)
    with get_sync_client(url=served) as nobody, pytest.raises(AuthenticationError):
        nobody.assistants.search()


class Opaque:
    """Of no schema."""


class State(MessagesState):
    opaque: Opaque


class Context(BaseModel):
    tone: str = "calm"


def test_a_graph_has_schemas_also_where_a_part_of_its_state_has_none(sessions: Sessions) -> None:
    inner = StateGraph(MessagesState).add_node("answer", lambda _: {}).add_edge(START, "answer").compile()
    outer = StateGraph(State, context_schema=Context).add_node("inner", inner).add_edge(START, "inner").compile()
    http = TestClient(app(sessions, {"nested": outer}, authenticate=lambda _: Caller("alice")))
    schemas = http.get("/assistants/nested/schemas").json()
    assert schemas["input_schema"] is None
    assert set(schemas["state_schema"]["properties"]) == {"messages", "opaque"}
    assert set(schemas["config_schema"]["properties"]) == set(schemas["context_schema"]["properties"]) == {"tone"}
    assert http.get("/assistants/nested/subgraphs").json()["inner"]["input_schema"]["properties"].keys() == {"messages"}
    assert "inner:answer" in {node["id"] for node in http.get("/assistants/nested/graph?xray=true").json()["nodes"]}
