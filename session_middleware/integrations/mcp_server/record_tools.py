"""The tools that add to the record of a session, and read, search and export it; and its memory."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import anyio.to_thread
from pydantic import Field

from session_middleware.integrations.mcp_server.answers import (
    Conversation,
    Export,
    Forgotten,
    HitLine,
    Hits,
    InvocationLine,
    Memories,
    MemoryLine,
    MessageLine,
    RecordedInvocation,
    RecordedMessage,
)
from session_middleware.integrations.mcp_server.identity import current_access
from session_middleware.integrations.mcp_server.registration import (
    ADDS,
    READS,
    REPLACES,
    Label,
    PageCursor,
    PageSize,
    SessionId,
    place_of,
    tool,
)
from session_middleware.memory.scopes import SCOPES
from session_middleware.models import Message, ToolCall

OwnScope = Annotated[
    Literal["session", "user", "group"],
    Field(description="session: for this session only. user: for all sessions of its user. group: for its group."),
]


@tool(ADDS, "Add a message")
async def add_message(
    session_id: SessionId,
    role: Annotated[
        Literal["user", "assistant", "system", "tool"], Field(description="Who says it; tool: an answer to a call.")
    ],
    content: Annotated[str, Field(description="The text.")],
    name: Annotated[Label, Field(description="The name of the speaker, if there are several.")] = None,
    message_id: Annotated[
        Label,
        Field(
            description="An id of your own, so that repeating the call adds nothing; a new text replaces the old one."
        ),
    ] = None,
    tool_call_id: Annotated[Label, Field(description="With role tool: the call that this answers.")] = None,
) -> RecordedMessage:
    """Record a message of the conversation, so that it is there when the session is resumed, and found by
    search_sessions and recall. Record tool executions with link_invocation."""
    session = await current_access().aget(session_id)
    given = {"role": role, "content": content, "name": name, "id": message_id, "tool_call_id": tool_call_id}
    message = await session.aadd({key: value for key, value in given.items() if value is not None})
    return RecordedMessage(
        session_id=session.id, message_id=message.message_id, seq=message.seq, version=message.version
    )


@tool(ADDS, "Record a tool invocation")
async def link_invocation(
    session_id: SessionId,
    tool_name: Annotated[str, Field(description="The name of the tool that was called, such as search_flights.")],
    arguments: Annotated[dict[str, Any] | None, Field(description="What it was called with.")] = None,
    result: Annotated[Any, Field(description="What it returned.")] = None,
    error: Annotated[str | None, Field(description="What went wrong, if it failed.")] = None,
    status: Annotated[
        Literal["ok", "error", "refused", "interrupted"] | None,
        Field(description="By default error if there is an error, and ok otherwise. refused: a person said no."),
    ] = None,
    duration_ms: Annotated[float | None, Field(ge=0, le=1e12, description="How long it took.")] = None,
    tool_call_id: Annotated[
        Label, Field(description="The id of the call, if it has one; the same id again is another attempt.")
    ] = None,
) -> RecordedInvocation:
    """Record that a tool was called, of this server or of any other, after it has finished: its name, arguments,
    result, status and duration become a part of the session's record. Call it once per execution."""
    session = await current_access().aget(session_id)
    call_id = uuid4().hex if tool_call_id is None else tool_call_id
    await session.arecord_tool(
        tool_name,
        arguments,
        result,
        error=error,
        status=status,
        tool_call_id=call_id,
        duration=None if duration_ms is None else timedelta(milliseconds=duration_ms),
    )
    count = (await current_access().aget(session.id)).tool_call_count
    recorded = status or ("error" if error else "ok")
    return RecordedInvocation(session_id=session.id, tool_call_id=call_id, status=recorded, tool_call_count=count)


@tool(READS, "Get the conversation")
async def get_conversation(
    session_id: SessionId,
    what: Annotated[
        Literal["messages", "tool_calls"],
        Field(description="messages: what was said. tool_calls: what tools did, of agents and of link_invocation."),
    ] = "messages",
    order: Annotated[
        Literal["latest", "oldest"],
        Field(description="latest: the last ones, and with cursor those before. oldest: from the beginning."),
    ] = "latest",
    limit: PageSize = 20,
    cursor: PageCursor = None,
    max_characters: Annotated[
        int, Field(ge=100, le=200_000, description="Of the whole answer; a longer message or value is cut.")
    ] = 20_000,
) -> Conversation:
    """Read what was said in a session, or what tools did, a page at a time and in order. A page ends early when its
    texts are long; next_cursor leads on."""
    kinds = ("before", "after") if order == "latest" else ("after", "before")
    kind, seq = place_of(cursor, *kinds)
    session = await current_access().aget(session_id)
    read: Callable[..., Awaitable[Sequence[Any]]] = session.amessages if what == "messages" else session.atool_calls
    if kind == "before":
        found = [*reversed(await read(last=limit + 1, before=seq or None))]
    else:
        found = [*await read(limit=limit + 1, after=seq)]
    lines = _within([_line(each, max_characters) for each in found[:limit]], max_characters)
    shown = lines[::-1] if kind == "before" else lines
    return Conversation(
        session_id=session.id,
        messages=[line for line in shown if isinstance(line, MessageLine)],
        tool_calls=[line for line in shown if isinstance(line, InvocationLine)],
        next_cursor=f"{kind}:{lines[-1].seq}" if len(found) > len(lines) else None,
    )


def _line(record: Message | ToolCall, limit: int) -> MessageLine | InvocationLine:
    return MessageLine.of(record, limit) if isinstance(record, Message) else InvocationLine.of(record, limit // 2)


Lines = list[MessageLine | InvocationLine]


def _within(lines: Lines, budget: int) -> Lines:
    """The first lines that are not longer than `budget` together, and at least one."""
    sizes = accumulate(len(line.model_dump_json()) for line in lines)
    return [line for n, (line, size) in enumerate(zip(lines, sizes, strict=True)) if n == 0 or size <= budget]


@tool(READS, "Search in sessions")
async def search_sessions(
    query: Annotated[str, Field(description="Words that were probably used.")],
    session_id: Annotated[str | None, Field(description="Only in this session.")] = None,
    limit: PageSize = 10,
    cursor: PageCursor = None,
) -> Hits:
    """Find messages by their words, in all sessions of yours or in one, best first. get_conversation shows what was
    said around a hit; list_sessions finds sessions by title or tag."""
    access, (_, offset) = current_access(), place_of(cursor, "from")
    chosen = None if session_id is None else (await access.aget(session_id)).id
    found = await access.asearch(query, session_id=chosen, limit=limit + 1, offset=offset)
    return Hits(
        hits=[HitLine.of(each) for each in found[:limit]],
        next_cursor=f"from:{offset + limit}" if len(found) > limit else None,
    )


@tool(READS, "Export a session")
async def export_session(
    session_id: SessionId,
    format: Annotated[
        Literal["markdown", "jsonl", "html"],
        Field(description="markdown and html: for people. jsonl: complete, for session-middleware import."),
    ] = "markdown",
    max_characters: Annotated[int, Field(ge=1_000, le=200_000, description="Of this part of the export.")] = 20_000,
    cursor: PageCursor = None,
) -> Export:
    """Export a whole session as text, a part at a time. For reading a conversation, get_conversation is shorter."""
    _, begin = place_of(cursor, "from")
    session = await current_access().aget(session_id)
    with tempfile.TemporaryDirectory() as folder:
        path = await session.aexport(Path(folder) / f"session.{format}", format)
        text = await anyio.to_thread.run_sync(_read, path)
    end = begin + max_characters
    return Export(
        session_id=session.id,
        format=format,
        content=text[begin:end],
        total_characters=len(text),
        next_cursor=f"from:{end}" if end < len(text) else None,
    )


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


# Memory


@tool(ADDS, "Remember")
async def remember(
    session_id: SessionId,
    text: Annotated[str, Field(description="One fact, as a sentence that can be understood alone.")],
    scope: OwnScope = "session",
    ttl: Annotated[str | None, Field(description='Forget it after this time, such as "7d".')] = None,
) -> MemoryLine:
    """Remember a fact, for this session or beyond it. The key of the answer is for forget."""
    session = await current_access().aget(session_id)
    return MemoryLine.of(await session.memory.aremember(text, scope=scope, ttl=ttl))


@tool(READS, "Recall")
async def recall(
    session_id: SessionId,
    query: Annotated[str, Field(description="Words that were probably used, or a question.")],
    limit: Annotated[int, Field(ge=1, le=50, description="How many at most.")] = 5,
    scopes: Annotated[
        list[Literal["session", "user", "group", "global"]] | None,
        Field(description="Only memories of these scopes; by default of all that the session may see."),
    ] = None,
) -> Memories:
    """Look up what was remembered, or said before in the sessions of this session's user, best first."""
    session = await current_access().aget(session_id)
    found = await session.memory.aselect(query, limit, scopes=scopes or SCOPES)
    return Memories(memories=[MemoryLine.of(each) for each in found])


@tool(REPLACES, "Forget")
async def forget(
    session_id: SessionId,
    key: Annotated[str, Field(description="The key that remember and recall answer with.")],
    scope: OwnScope = "session",
) -> Forgotten:
    """Delete something that was remembered. Messages of the record are not deleted."""
    session = await current_access().aget(session_id)
    return Forgotten(count=await session.memory.aforget(key, scope=scope))


TOOLS: Sequence[Any] = (
    add_message,
    link_invocation,
    get_conversation,
    search_sessions,
    export_session,
    remember,
    recall,
    forget,
)
