"""The tools that open, list, change and end sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import AwareDatetime, Field

from session_middleware.errors import InvalidArgument, SessionNotFound
from session_middleware.integrations.cursors import cursor_of, place_of
from session_middleware.integrations.mcp_server.answers import (
    VALUE_CHARACTERS,
    Cleanup,
    EndedLine,
    InvocationLine,
    MessageLine,
    QuestionLine,
    ResumedSession,
    SessionDetails,
    SessionPage,
    SessionStats,
    Totals,
    page_of,
)
from session_middleware.integrations.mcp_server.identity import current_access
from session_middleware.integrations.mcp_server.registration import (
    ADDS,
    ENDS,
    READS,
    REPLACES,
    RESUMES,
    Label,
    PageCursor,
    PageSize,
    SessionId,
    tool,
)
from session_middleware.models import Status, ToolCall
from session_middleware.session import Session
from session_middleware.sessions import Sessions
from session_middleware.user_sessions import UserSessions

_RECENT = 10  # messages, and as many executions of tools
_LATEST = 100  # records among which the last executions are looked for
_LISTED = 100  # sessions that a cleanup lists
_STATUSES: tuple[Status, ...] = ("active", "idle", "expired", "completed", "failed", "abandoned")

Title = Annotated[str | None, Field(description='A short title for lists. "" removes it.')]
Purpose = Annotated[str | None, Field(description='What the session is for, in one sentence. "" removes it.')]
Tags = Annotated[list[str] | None, Field(description="Labels, by which list_sessions filters. [] removes them.")]
Metadata = Annotated[
    dict[str, Any] | None, Field(description="Keys and values, merged with those there are; null removes a key.")
]
Context = Annotated[
    dict[str, Any] | None,
    Field(description="Facts and preferences to respect in this session, merged with those there are."),
]
AnyStatus = Annotated[
    Status | Literal["open"] | None, Field(description="Only sessions with this status; open is active or idle.")
]
AllTags = Annotated[list[str] | None, Field(description="Only sessions that have all of these tags.")]
TitleText = Annotated[str | None, Field(description="Only sessions with this text in the title.")]
Reason = Annotated[str, Field(description="Why, in a few words; it is kept in the session's record.")]


@tool(ADDS, "Create a session")
async def create_session(
    session_id: Annotated[str | None, Field(description="An id of your own; usually left out.")] = None,
    title: Title = None,
    purpose: Purpose = None,
    tags: Tags = None,
    metadata: Metadata = None,
    context: Context = None,
) -> SessionDetails:
    """Begin a session: one conversation or job, whose messages, tool invocations and memories are kept under its id.
    Keep the id of the answer and pass it to the other tools. To continue an earlier session, call list_sessions or
    search_sessions and then resume_session instead."""
    access = current_access()
    try:
        opened = await access.aopen(
            session_id, if_exists="raise", title=title, purpose=purpose, tags=tags, metadata=metadata, context=context
        )
    except SessionNotFound:
        raise ToolError(f"the session_id {session_id!r} cannot be used; choose another one, or leave it out") from None
    return SessionDetails.of(opened)


@tool(RESUMES, "Resume a session")
async def resume_session(session_id: SessionId) -> ResumedSession:
    """Continue a session, also one that has expired or ended: it becomes active again. Answers with its facts, its
    last messages, its last tool invocations, and what it waits for. get_conversation has the earlier messages."""
    session = await opened_again(session_id)
    messages = await session.amessages(last=_RECENT)
    calls = [each for each in await session.atimeline(last=_LATEST) if isinstance(each, ToolCall)]
    return ResumedSession(
        session=SessionDetails.of(session),
        opened_as=session.opened_as,
        recent_messages=[MessageLine.of(each, VALUE_CHARACTERS) for each in messages],
        recent_tool_calls=[InvocationLine.of(each) for each in calls[-_RECENT:]],
        open_questions=[QuestionLine.of(each) for each in await session.awaiting_for()],
    )


async def opened_again(session_id: str) -> Session:
    """The session, resumed by the caller; by an operator in the name of its owner. Raises `SessionNotFound`."""
    access = current_access()
    session = await access.aget(session_id)
    if isinstance(access, UserSessions):
        return await access.aopen(session.id)
    return await access.aopen(session.id, user_id=session.user_id, group_id=session.group_id)


@tool(READS, "Get a session")
async def get_session_info(session_id: SessionId) -> SessionDetails:
    """The facts of one session: title, status, owner, when it expires, counts, tokens and cost. Reading it does not
    count as activity."""
    return SessionDetails.of(await current_access().aget(session_id))


@tool(READS, "List sessions")
async def list_sessions(
    status: AnyStatus = None,
    tags: AllTags = None,
    title: TitleText = None,
    since: Annotated[AwareDatetime | None, Field(description="Only active since then.")] = None,
    limit: PageSize = 20,
    cursor: PageCursor = None,
) -> SessionPage:
    """Your sessions and those that a group of yours shares with you, latest activity first; for the operator of this
    server all sessions. To find words in messages, call search_sessions."""
    return await _page(limit, cursor, status=status, tags=tags, title=title, since=since)


@tool(READS, "List the sessions of a user")
async def list_user_sessions(
    user_id: Annotated[Label, Field(description="The owner; by default you. Only the operator sees others.")] = None,
    status: AnyStatus = None,
    limit: PageSize = 20,
    cursor: PageCursor = None,
) -> SessionPage:
    """The sessions that one user owns, latest activity first, without those that others share."""
    return await _page(limit, cursor, user_id=owner_of(user_id), status=status)


def owner_of(user_id: str | None) -> str:
    """The user whose sessions are asked for. Another one is not found, except by the operator."""
    access = current_access()
    own = access.identity.user_id if isinstance(access, UserSessions) else None
    if user_id is None and own is None:
        raise ToolError("you are the operator and own no sessions; give a user_id, or call list_sessions")
    if own is not None and user_id not in (None, own):
        raise ToolError(f"there is no user {user_id!r} for you; leave user_id out to list your own sessions")
    return str(user_id or own)


async def _page(limit: int, cursor: str | None, **where: Any) -> SessionPage:
    try:
        after = place_of(cursor)
    except InvalidArgument:
        raise ToolError("this is no cursor of this tool; leave cursor out to get the first page") from None
    found = await current_access().alist(limit=limit + 1, after=after, **where)
    return page_of(found[:limit], cursor_of(found[limit - 1]) if len(found) > limit else None)


@tool(REPLACES, "Change a session")
async def update_session(
    session_id: SessionId,
    title: Title = None,
    purpose: Purpose = None,
    tags: Tags = None,
    metadata: Metadata = None,
    context: Context = None,
) -> SessionDetails:
    """Change the title, purpose, tags, metadata or context of a session. What is left out stays as it is."""
    session = await current_access().aget(session_id)
    return SessionDetails.of(
        await session.aupdate(title=title, purpose=purpose, tags=tags, metadata=metadata, context=context)
    )


@tool(ADDS, "Complete a session")
async def complete_session(
    session_id: SessionId,
    outcome: Annotated[
        Literal["completed", "failed", "abandoned"],
        Field(
            description="completed: its purpose is reached. failed: it cannot be. abandoned: it is no longer needed."
        ),
    ] = "completed",
    reason: Reason = "by_user",
) -> SessionDetails:
    """End a session whose work is done. Its record stays readable, and resume_session makes it active again."""
    session = await current_access().aget(session_id)
    if outcome == "completed":
        return SessionDetails.of(await session.acomplete(reason=reason))
    end = session.afail if outcome == "failed" else session.aabandon
    return SessionDetails.of(await end(reason=reason))


@tool(ENDS, "Expire a session")
async def expire_session(session_id: SessionId, reason: Reason = "by_user") -> SessionDetails:
    """Let a session expire now instead of when it has been idle for long. The rules of this server say what happens
    to expired sessions: most keep the record, some delete it. To end a session whose work is done, call
    complete_session."""
    session = await current_access().aget(session_id)
    return SessionDetails.of(await session.aexpire(reason=reason))


@tool(READS, "Get the numbers of a session")
async def get_session_stats(session_id: SessionId) -> SessionStats:
    """A session in numbers: messages, tool invocations by name, model calls, tokens, cost, durations and size."""
    return await stats_of(await current_access().aget(session_id))


async def stats_of(session: Session) -> SessionStats:
    stats = dict(await session.astats())
    known = {name: value for name, value in stats.items() if name in SessionStats.model_fields}
    return SessionStats(session_id=session.id, duration_seconds=stats["duration"].total_seconds(), **known)


async def totals() -> Totals:
    """The numbers of all sessions of the caller."""
    access = current_access()
    own: Mapping[str, Any] = {"user_id": access.identity.user_id} if isinstance(access, UserSessions) else {}
    models, tools = await access.ausage("model"), await access.ausage("tool")
    costs = [each.cost for each in models if each.cost is not None]
    return Totals(
        sessions={status: await access.acount(status=status, **own) for status in _STATUSES},
        model_call_count=sum(each.calls for each in models),
        input_tokens=sum(each.input_tokens for each in models),
        output_tokens=sum(each.output_tokens for each in models),
        cost=sum(costs) if costs else None,
        tools={each.key or "unknown": each.calls for each in tools},
    )


@tool(ENDS, "Merge two sessions")
async def merge_sessions(
    session_id: Annotated[str, Field(description="The session that remains.")],
    secondary_id: Annotated[str, Field(description="The session that becomes a part of it; its id then finds it.")],
    state: Annotated[
        Literal["keep_primary", "append_messages"],
        Field(description="append_messages: the agent also sees the secondary's messages in its next run."),
    ] = "keep_primary",
) -> SessionDetails:
    """Make two sessions of the same owner one: messages, tool invocations and memories of both are kept in the order
    of time. This cannot be undone."""
    session = await current_access().aget(session_id)
    return SessionDetails.of(await session.amerge(secondary_id, state=state))


@tool(ENDS, "Clean up sessions")
async def cleanup_sessions(
    dry_run: Annotated[bool, Field(description="true: only list what would be ended or deleted.")] = True,
    older_than: Annotated[
        str | None,
        Field(
            description='Delete the sessions that were inactive for this long, such as "90d", whatever their status.'
        ),
    ] = None,
    status: Annotated[Status | None, Field(description="With older_than: only sessions with this status.")] = None,
) -> Cleanup:
    """For the operator of this server: end the sessions of all users that are due by its rules, or delete old ones.
    Call it with dry_run first, and show a person what would be deleted."""
    access = current_access()
    if not isinstance(access, Sessions):
        raise ToolError("only the operator may clean up; end sessions of your own with complete_session")
    if status is not None and older_than is None:
        raise ToolError("status needs older_than; give both, or neither")
    ended = await access.asweep(dry_run=dry_run, older_than=older_than, status=status)
    lines = [EndedLine.model_validate(each) for each in ended[:_LISTED]]
    return Cleanup(dry_run=dry_run, count=len(ended), sessions=lines)


TOOLS: Sequence[Any] = (
    create_session,
    resume_session,
    get_session_info,
    list_sessions,
    list_user_sessions,
    update_session,
    complete_session,
    expire_session,
    get_session_stats,
    merge_sessions,
    cleanup_sessions,
)
