"""LangGraph's assistants: the graphs that the app serves, one assistant for each, which clients cannot change.

The id of an assistant is the one that LangGraph's own server gives to the graph of this name. Each route finds an
assistant by the graph's name too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

from fastapi import APIRouter, HTTPException, Query
from langgraph.pregel import Pregel
from pydantic import BaseModel, Field, TypeAdapter, create_model
from starlette.responses import Response

from session_middleware.integrations.server.containment import contains
from session_middleware.integrations.server.identity import CurrentCaller
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.request_types import Document, Limit, Offset
from session_middleware.integrations.server.serialization import StateResponse
from session_middleware.integrations.server.server_state import CurrentServer, Server

_GRAPHS = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")  # the namespace of LangGraph's server for names of graphs
_ENTRY = "LangGraph"  # the name of a graph that has none of its own

Graph = Pregel[Any, Any, Any, Any]


@dataclass(frozen=True)
class Assistant:
    """A graph that clients may run."""

    id: str
    graph_id: str
    graph: Graph

    @property
    def as_metadata(self) -> dict[str, str]:
        """What a thread's metadata says of the assistant that ran in it, by which front ends find their threads."""
        return {"graph_id": self.graph_id, "assistant_id": self.id}


def assistants_of(server: Server) -> list[Assistant]:
    """One assistant for each graph of the server."""
    return [Assistant(assistant_id_of(name), name, graph) for name, graph in server.graphs.items()]


def assistant_id_of(graph_id: str) -> str:
    """The id that LangGraph's own server gives to a graph of this name."""
    return str(uuid5(_GRAPHS, graph_id))


def find_assistant(server: Server, assistant_id: object) -> Assistant | None:
    """The assistant with this id, or of the graph with this name."""
    return next((one for one in assistants_of(server) if assistant_id in (one.graph_id, one.id)), None)


def get_assistant(server: Server, assistant_id: object) -> Assistant:
    """Raises `HTTPException` 404, which names the graphs that there are."""
    found = find_assistant(server, assistant_id)
    if found is None:
        names = ", ".join(server.graphs) or "none"
        raise HTTPException(404, f"there is no such assistant; the graphs of this server are: {names}")
    return found


# What clients send and get

AssistantField = Literal[
    "assistant_id", "graph_id", "name", "description", "config", "context", "created_at", "updated_at", "metadata",
    "version",
]  # fmt: skip


class AssistantFilter(BaseModel):
    """The assistants to find; `name` is a part of the name, in any case."""

    metadata: Document | None = None
    graph_id: str | None = None
    name: str | None = None  # a part of the name, without regard to case


class AssistantSearch(AssistantFilter):
    """The assistants to find, their order and page, and the fields to respond with."""

    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["assistant_id", "created_at", "updated_at", "name", "graph_id"] | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[AssistantField] | None = None


class AssistantShown(BaseModel):
    """A graph as an assistant of the API."""

    assistant_id: str
    graph_id: str
    name: str
    description: str | None
    config: dict[str, Any]
    context: dict[str, Any]
    metadata: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


class AssistantPart(BaseModel):
    """An assistant, of which only the selected fields are there."""

    assistant_id: str | None = None
    graph_id: str | None = None
    name: str | None = None
    description: str | None = None
    config: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    version: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class GraphSchemas(BaseModel):
    """The JSON schemas of a graph; ``null`` for one that has none."""

    graph_id: str
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    state_schema: dict[str, Any] | None
    config_schema: dict[str, Any] | None
    context_schema: dict[str, Any] | None


def _shown(server: Server, assistant: Assistant) -> dict[str, Any]:
    name = assistant.graph.name
    return {
        "assistant_id": assistant.id,
        "graph_id": assistant.graph_id,
        "name": assistant.graph_id if name in (None, _ENTRY) else name,
        "description": None,
        "config": {},
        "context": {},
        "metadata": {"created_by": "system"},
        "version": 1,
        "created_at": server.started_at,
        "updated_at": server.started_at,
    }


def _matching(server: Server, wanted: AssistantFilter) -> list[dict[str, Any]]:
    if wanted.graph_id is not None:
        get_assistant(server, wanted.graph_id)
    shown = [_shown(server, each) for each in assistants_of(server)]
    return [
        each
        for each in shown
        if wanted.graph_id in (None, each["graph_id"])
        and (wanted.name or "").casefold() in each["name"].casefold()
        and contains(each["metadata"], wanted.metadata or {})
    ]


# Routes

router = APIRouter(prefix="/assistants", tags=["assistants"], responses=problems(404, 422))


@router.post("/search", response_model=list[AssistantPart])
async def search_assistants(server: CurrentServer, _: CurrentCaller, wanted: AssistantSearch) -> Response:
    """The graphs of this server."""
    found = _matching(server, wanted)
    if (key := wanted.sort_by) is not None:
        found.sort(key=lambda each: each[key], reverse=wanted.sort_order != "asc")
    start = wanted.offset or 0
    end = start + (wanted.limit or 10)
    page = found[start:end]
    if wanted.select:
        page = [{name: each[name] for name in each if name in wanted.select} for each in page]
    return StateResponse(page, headers=page_headers(start + len(page), has_more=len(found) > end))


def page_headers(end: int, *, has_more: bool) -> dict[str, str]:
    """The headers of a page, by which LangGraph's clients find the next one."""
    if has_more:
        return {"X-Pagination-Total": str(end + 1), "X-Pagination-Next": str(end)}
    return {"X-Pagination-Total": str(end)}


@router.post("/count")
async def count_assistants(server: CurrentServer, _: CurrentCaller, wanted: AssistantFilter) -> int:
    """The number of graphs of this server."""
    return len(_matching(server, wanted))


@router.get("/{assistant_id}", response_model=AssistantShown)
async def read_assistant(server: CurrentServer, _: CurrentCaller, assistant_id: str) -> Response:
    """An assistant, by its id or its graph's name."""
    return StateResponse(_shown(server, get_assistant(server, assistant_id)))


@router.post("/{assistant_id}/versions", response_model=list[AssistantShown])
async def list_versions(server: CurrentServer, _: CurrentCaller, assistant_id: str) -> Response:
    """The one version that an assistant has."""
    return StateResponse([_shown(server, get_assistant(server, assistant_id))])


@router.get("/{assistant_id}/graph")
async def draw_assistant(
    server: CurrentServer,
    _: CurrentCaller,
    assistant_id: str,
    xray: Annotated[bool | Annotated[int, Field(ge=0)], Query()] = False,
) -> dict[str, Any]:
    """The nodes and edges of the graph; with `xray` those of its subgraphs too, or of so many levels of them."""
    graph = get_assistant(server, assistant_id).graph
    drawn = await graph.aget_graph(xray=xray)
    found = drawn.to_json()
    for node in found.get("nodes", []):
        if isinstance(data := node.get("data"), dict):
            data.pop("id", None)  # the path of a class
    return found


@router.get("/{assistant_id}/schemas", response_model=GraphSchemas)
async def read_schemas(server: CurrentServer, _: CurrentCaller, assistant_id: str) -> Response:
    """The JSON schemas of the graph's input, output, state and context."""
    assistant = get_assistant(server, assistant_id)
    return StateResponse({"graph_id": assistant.graph_id, **await asyncio.to_thread(_schemas, assistant.graph)})


@router.get("/{assistant_id}/subgraphs")
@router.get("/{assistant_id}/subgraphs/{namespace}")
async def list_subgraphs(
    server: CurrentServer, _: CurrentCaller, assistant_id: str, namespace: str | None = None, recurse: bool = False
) -> dict[str, dict[str, Any]]:
    """The schemas of the graph's subgraphs, or of the one at a namespace, such as ``parent|child``."""
    graph = get_assistant(server, assistant_id).graph

    def found() -> dict[str, dict[str, Any]]:
        nested = graph.get_subgraphs(namespace=namespace, recurse=recurse)
        return {name: _schemas(each) for name, each in nested if isinstance(each, Pregel)}

    return await asyncio.to_thread(found)


def _schemas(graph: Graph) -> dict[str, Any]:
    return {
        "input_schema": _schema(graph.get_input_jsonschema),
        "output_schema": _schema(graph.get_output_jsonschema),
        "state_schema": _schema(lambda: _state_schema(graph)),
        "config_schema": _schema(lambda: graph.get_context_jsonschema() or {}),
        "context_schema": _schema(graph.get_context_jsonschema),
    }


def _schema(make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    try:
        return make()
    except Exception:  # noqa: BLE001  # the classes of a graph's state are the host's: some have no schema, and raise
        return None


def _state_schema(graph: Graph) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in graph.stream_channels_list:
        kind = getattr(graph.channels[name], "UpdateType", Any)
        has_schema = _schema(lambda: TypeAdapter(kind).json_schema()) is not None  # noqa: B023
        fields[name] = (kind if has_schema else Any, None)
    return TypeAdapter(create_model(graph.get_name("State"), **fields)).json_schema()
