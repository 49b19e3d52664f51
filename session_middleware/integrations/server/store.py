"""The routes of the store. A user reads and writes the namespaces of the user and of the user's groups only.

These begin with ``user`` or ``group`` and an id of the caller. All others are the app's, whose graphs use them for
every user; here only an operator may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from langgraph.store.base import BaseStore, Item
from pydantic import BaseModel, Field, StrictBool
from starlette.responses import Response

from session_middleware.errors import MemoryAccessDenied, SessionError, UnserializableValue
from session_middleware.integrations.server.identity import Access, CurrentCaller
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.request_types import Document, Limit, Offset
from session_middleware.integrations.server.serialization import StateResponse

router = APIRouter(prefix="/store", tags=["store"], responses=problems(422))

_JOINED = r"^[^.\x00]+(\.[^.\x00]+)*$"  # a namespace in a query
_LONGEST = 36_525 * 24 * 60  # minutes

Label = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
Namespace = list[Label]


class ItemKey(BaseModel):
    """The place of an item."""

    namespace: Annotated[Namespace, Field(min_length=1)]
    key: str


class ItemPut(ItemKey):
    """An item to store; `index` names the paths of its value that searches find, and `ttl` is in minutes."""

    value: Document
    index: Annotated[StrictBool, Field(description="false: excluded from searches")] | list[str] | None = None
    ttl: Annotated[float, Field(ge=1 / 60, le=_LONGEST)] | None = None  # minutes


class ItemSearch(BaseModel):
    """The items below a namespace that match a filter, ranked by a query."""

    namespace_prefix: Namespace
    filter: Document | None = None
    limit: Limit = 10
    offset: Offset = 0
    query: str | None = None
    refresh_ttl: StrictBool | None = None


class NamespaceSearch(BaseModel):
    """The namespaces with this beginning and end, cut to a depth."""

    prefix: Namespace | None = None
    suffix: Namespace | None = None
    max_depth: Annotated[int | None, Field(ge=1)] = None
    limit: Limit = 100
    offset: Offset = 0


class ItemShown(BaseModel):
    """A stored item."""

    namespace: Namespace
    key: str
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class ItemFound(ItemShown):
    """An item that a search has found; its score, where a query ranked it."""

    score: float | None = None


class ItemsFound(BaseModel):
    """A page of items."""

    items: list[ItemFound]


class NamespacesFound(BaseModel):
    """A page of namespaces."""

    namespaces: list[Namespace]


@contextmanager
def _confined(access: Access, caller: CurrentCaller) -> Iterator[BaseStore]:
    """The caller's store. Raises `HTTPException` for namespaces of others, and for what a store refuses."""
    try:
        yield access.store
    except MemoryAccessDenied:
        sentence = (
            f"the namespaces of this user begin with {['user', caller.user_id]}, or 'group' and the id of a group"
        )
        raise HTTPException(403, sentence) from None
    except UnserializableValue as error:
        raise HTTPException(422, f"the value {error.problem}") from error
    except SessionError:
        raise
    except ValueError as error:  # of LangGraph: an invalid namespace, or an unknown operator of a filter
        raise HTTPException(422, str(error)) from error


def _shown(item: Item) -> dict[str, Any]:
    return {**item.dict(), "namespace": list(item.namespace)}


@router.put("/items", status_code=204)
async def put_item(access: Access, caller: CurrentCaller, given: ItemPut) -> None:
    """Store an item, or replace the one under this key."""
    index = given.index if isinstance(given.index, list) or given.index is False else None
    ttl = {} if given.ttl is None else {"ttl": given.ttl}
    with _confined(access, caller) as store:
        await store.aput(tuple(given.namespace), given.key, given.value, index=index, **ttl)


@router.get("/items", response_model=ItemShown | None)
async def get_item(
    access: Access,
    caller: CurrentCaller,
    namespace: Annotated[str, Query(description="its labels, with periods between them", pattern=_JOINED)],
    key: str,
    refresh_ttl: bool | None = None,
) -> Response:
    """An item; ``null`` if there is none."""
    with _confined(access, caller) as store:
        item = await store.aget(tuple(namespace.split(".")), key, refresh_ttl=refresh_ttl)
    return StateResponse(None if item is None else _shown(item))


@router.delete("/items", status_code=204)
async def delete_item(access: Access, caller: CurrentCaller, given: ItemKey) -> None:
    """Delete an item, if there is one."""
    with _confined(access, caller) as store:
        await store.adelete(tuple(given.namespace), given.key)


@router.post("/items/search", response_model=ItemsFound)
async def search_items(access: Access, caller: CurrentCaller, wanted: ItemSearch) -> Response:
    """The items below a namespace; of the empty one: of all that the caller may use."""
    with _confined(access, caller) as store:
        found = await store.asearch(
            tuple(wanted.namespace_prefix),
            query=wanted.query,
            filter=wanted.filter,
            limit=wanted.limit or 10,
            offset=wanted.offset or 0,
            refresh_ttl=wanted.refresh_ttl,
        )
    return StateResponse({"items": [_shown(each) for each in found]})


@router.post("/namespaces", response_model=NamespacesFound)
async def list_namespaces(access: Access, caller: CurrentCaller, wanted: NamespaceSearch) -> Response:
    """The namespaces that have items, of those that the caller may use."""
    with _confined(access, caller) as store:
        found = await store.alist_namespaces(
            prefix=None if wanted.prefix is None else tuple(wanted.prefix),
            suffix=None if wanted.suffix is None else tuple(wanted.suffix),
            max_depth=wanted.max_depth,
            limit=wanted.limit or 100,
            offset=wanted.offset or 0,
        )
    return StateResponse({"namespaces": [list(each) for each in found]})
