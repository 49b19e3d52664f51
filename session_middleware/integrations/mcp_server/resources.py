"""The resources: what a person attaches to a conversation, or an app shows, without calling a tool."""

from __future__ import annotations

import json
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.resources import ResourceSecurity

from session_middleware.integrations.mcp_server.answers import Answer, SessionDetails, page_of
from session_middleware.integrations.mcp_server.identity import current_access
from session_middleware.integrations.mcp_server.session_tools import owner_of, stats_of, totals
from session_middleware.models import to_text
from session_middleware.storage.timeline import kind_of

_SHOWN_RECORDS = 200
_SHOWN_SESSIONS = 50
_IDS = ResourceSecurity(reject_path_traversal=False, reject_absolute_paths=False, reject_null_bytes=False)  # not paths
_JSON = "application/json"


def add_resources(made: MCPServer[Any]) -> None:
    @made.resource("session://{session_id}", name="session", title="A session", mime_type=_JSON, security=_IDS)
    async def session(session_id: str) -> str:
        """The facts of a session: title, status, owner, counts, tokens and cost."""
        return _text(SessionDetails.of(await current_access().aget(session_id)))

    @made.resource(
        "session://{session_id}/timeline",
        name="timeline",
        title="The timeline of a session",
        mime_type="text/plain",
        security=_IDS,
    )
    async def timeline(session_id: str) -> str:
        """The last records of a session, a line each: runs, messages, tool calls, model calls, questions, events."""
        found = await (await current_access().aget(session_id)).atimeline(last=_SHOWN_RECORDS + 1)
        lines = ["earlier records are left out"] if len(found) > _SHOWN_RECORDS else []
        for record in found[-_SHOWN_RECORDS:]:
            moment = "" if record.moment is None else f" {to_text(record.moment)}"
            lines.append(f"{record.seq}{moment} {kind_of(record)}: {record.line}")
        return "\n".join(lines)

    @made.resource(
        "session://{session_id}/stats",
        name="session_stats",
        title="A session in numbers",
        mime_type=_JSON,
        security=_IDS,
    )
    async def session_stats(session_id: str) -> str:
        """The numbers of a session: messages, tool calls by name, tokens, cost, durations and size."""
        return _text(await stats_of(await current_access().aget(session_id)))

    @made.resource(
        "user://{user_id}/sessions",
        name="user_sessions",
        title="The sessions of a user",
        mime_type=_JSON,
        security=_IDS,
    )
    async def user_sessions(user_id: str) -> str:
        """The latest sessions that a user owns."""
        found = await current_access().alist(user_id=owner_of(user_id), limit=_SHOWN_SESSIONS)
        return _text(page_of(found, None))

    @made.resource("stats://", name="stats", title="All sessions in numbers", mime_type=_JSON)
    async def stats() -> str:
        """The numbers of all your sessions, and for the operator of all sessions."""
        return _text(await totals())


def _text(answer: Answer) -> str:
    return json.dumps(answer.model_dump(mode="json"), ensure_ascii=False)
