"""Searching threads: the filters that a list of sessions has are the database's, the others are applied to its pages.

A search by status, values or nested metadata therefore reads sessions until its page is full, latest first.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from session_middleware import Session, Sessions
from session_middleware.integrations.server.containment import contains
from session_middleware.integrations.server.serialization import json_bytes
from session_middleware.integrations.server.server_state import Server
from session_middleware.integrations.server.threads.fields import (
    ThreadStatus,
    derived_keys,
    metadata_of,
    status_of,
    thread_json,
)
from session_middleware.integrations.server.threads.models import ThreadFilter, ThreadSearch
from session_middleware.models import SessionOrder
from session_middleware.user_sessions import UserSessions

_PAGE = 200
_STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d{1,9})\]")


async def search(server: Server, access: Sessions | UserSessions, wanted: ThreadSearch) -> tuple[list[Session], bool]:
    """A page of threads, and whether there are more after it."""
    start = wanted.offset or 0
    end = start + (wanted.limit or 10)
    found: list[Session] = []
    if wanted.ids is None and wanted.sort_order != "asc" and wanted.sort_by in _ORDERS:
        async for each in _matching(server, access, wanted, order=_ORDERS[wanted.sort_by]):
            found.append(each)
            if len(found) > end:
                break
    else:
        found = await _sorted([each async for each in _matching(server, access, wanted)], wanted)
    return found[start:end], len(found) > end


_ORDERS: dict[str | None, SessionOrder] = {
    **dict.fromkeys((None, "updated_at", "state_updated_at"), "activity"),
    "created_at": "creation",
}


async def _sorted(found: list[Session], wanted: ThreadSearch) -> list[Session]:
    keys: dict[str, Any]
    if wanted.sort_by == "status":
        keys = {session.id: await status_of(session) for session in found}
    elif wanted.sort_by == "thread_id":
        keys = {session.id: session.id for session in found}
    else:
        field = "created_at" if wanted.sort_by == "created_at" else "last_active_at"
        keys = {session.id: getattr(session, field) for session in found}
    return sorted(found, key=lambda session: keys[session.id], reverse=wanted.sort_order != "asc")


async def count(server: Server, access: Sessions | UserSessions, wanted: ThreadFilter) -> int:
    """The number of threads that a search finds in all pages."""
    stored = _stored(server, wanted)
    if stored == (wanted.metadata or {}) and wanted.values is None and wanted.status is None:
        return await access.acount(metadata=stored)
    return len([each async for each in _matching(server, access, wanted)])


def _stored(server: Server, wanted: ThreadFilter) -> dict[str, Any]:
    """The part of the filter of metadata that the database applies."""
    derived = derived_keys(server)
    return {
        name: value
        for name, value in (wanted.metadata or {}).items()
        if isinstance(value, str | int | float) and name not in derived
    }


async def _matching(
    server: Server, access: Sessions | UserSessions, wanted: ThreadFilter, *, order: SessionOrder = "activity"
) -> AsyncIterator[Session]:
    async for session in _candidates(server, access, wanted, order):
        if wanted.metadata and not contains(metadata_of(server, session), wanted.metadata):
            continue
        if wanted.status and not (_may_be(session, wanted.status) and await status_of(session) == wanted.status):
            continue
        if wanted.values:
            shown = await thread_json(server, session, fields=["values"])
            if not contains(_plain(shown["values"]), wanted.values):
                continue
        yield session


def _may_be(session: Session, status: ThreadStatus) -> bool:
    """Whether the session's own fields allow the status. The record of its runs has to be read only then."""
    if session.is_running or status == "busy":
        return session.is_running and status == "busy"
    return status != "error" or session.error_count > 0


async def _candidates(
    server: Server, access: Sessions | UserSessions, wanted: ThreadFilter, order: SessionOrder
) -> AsyncIterator[Session]:
    ids = wanted.ids if isinstance(wanted, ThreadSearch) else None
    if ids is not None:
        for thread_id in dict.fromkeys(ids):
            if (found := await access.afind(thread_id)) is not None:
                yield found
        return
    after: Session | None = None
    stored = _stored(server, wanted)
    while page := await access.alist(limit=_PAGE, after=after, order=order, metadata=stored):
        for each in page:
            yield each
        after = page[-1]


def _plain(value: Any) -> Any:
    return orjson.loads(json_bytes(value))


# Values at paths


def steps_of(path: str) -> list[str | int]:
    """The keys and indexes of a path such as ``values.messages[-1]``."""
    return [int(index) if index else name for name, index in _STEP.findall(f".{path}")]


async def extracted(server: Server, session: Session, paths: Mapping[str, str]) -> dict[str, Any]:
    """The values at the paths; ``None`` where there is none."""
    steps = {alias: steps_of(path) for alias, path in paths.items()}
    document = _plain(await thread_json(server, session, fields={str(each[0]) for each in steps.values()}))
    return {alias: _value_at(document, each) for alias, each in steps.items()}


def _value_at(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
