"""What the middleware of both SDKs share: the session of a call, its record, and the argument in the schemas.

A call is refused before its tool runs, with a sentence for the model, if the session is unknown, another user's, or
admits no calls. Any other error of the record is logged and counted, and the tool runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from langchain_core.messages import ToolMessage
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.requests import Request

from session_middleware import Session, Sessions, errors, lifecycle
from session_middleware.integrations.callers import awaited
from session_middleware.models import Identity
from session_middleware.recording.tool_execution import ToolExecution
from session_middleware.storage.validation import check_choice, check_text

R = TypeVar("R")

Identify: TypeAlias = Callable[[Request | None], Awaitable[Identity | str | None] | Identity | str | None]

META_KEY = "session_id"
_DESCRIPTION = (
    "The id of the session in which this call is recorded. Pass the id that you were given, the same in each call "
    "of the conversation; never invent one."
)
_KEYS = {"mimeType": "mime_type", "blob": "base64"}  # of MCP's content, as in LangChain's content blocks


class Call(NamedTuple):
    """One ``tools/call``. `arguments` are those of the tool; `session_id` is anything that the client sent."""

    name: str
    arguments: dict[str, Any]
    session_id: object | None
    request: Request | None  # None: not over HTTP


class Refused(Exception):
    """The call is not passed to its tool. The text is for the model."""


@dataclass(frozen=True)
class CallRecorder:
    """The settings of a middleware, and the way of a call through it."""

    sessions: Sessions
    identity: Identify | Identity | str | None
    argument: str | None
    on_unknown: Literal["refuse", "open"]
    on_missing: Literal["run", "refuse"]

    def __post_init__(self) -> None:
        if not isinstance(self.sessions, Sessions):
            raise TypeError(f"the middleware takes a Sessions, not {self.sessions!r}; make one: Sessions('x.db')")
        if not callable(self.identity):
            _identity_of(self.identity)
        if self.argument is not None:
            check_text("argument", self.argument, at_least=1)
        check_choice("on_unknown", self.on_unknown, ("refuse", "open"))
        check_choice("on_missing", self.on_missing, ("run", "refuse"))

    def call_of(
        self, name: str, arguments: Mapping[str, Any], meta: Mapping[str, Any], request: Request | None, *, is_own: bool
    ) -> Call:
        """The call without our argument. `is_own`: the tool itself has an argument of this name."""
        given = dict(arguments)
        argued = given.pop(self.argument, None) if self.argument is not None and not is_own else None
        named = meta.get(META_KEY)
        session_id = argued if named is None else named
        return Call(name, given, None if session_id == "" else session_id, request)  # models leave arguments empty

    async def run(self, call: Call, execute: Callable[[], Awaitable[R]], note: Callable[[ToolExecution, R], None]) -> R:
        """Execute a call and record it. `note` sets the outcome from the result. Raises `Refused`."""
        if call.session_id is None:
            if self.on_missing == "refuse":
                raise Refused(f"This call names no session. Pass the id of your session{self._where}.")
            return await execute()
        identity = await self._identify(call.request)
        async with AsyncExitStack() as stack:
            execution = None
            try:
                session = await self._session(call.session_id, identity)
                execution = await stack.enter_async_context(session.tool_execution(call.name, call.arguments))
            except _DENIALS as denial:
                raise Refused(self._sentence(denial, call.session_id)) from denial
            except Exception as error:  # noqa: BLE001  # a fault of the record must not keep the tool from running
                self.sessions.recorder.buffer.fault(error)
            result = await execute()
            if execution is not None:
                self._note(execution, result, note)
            return result

    def _note(self, execution: ToolExecution, result: R, note: Callable[[ToolExecution, R], None]) -> None:
        try:
            note(execution, result)
        except Exception as error:  # noqa: BLE001  # a result of an unknown shape is still the caller's
            self.sessions.recorder.buffer.fault(error)

    async def _identify(self, request: Request | None) -> Identity:
        if not callable(self.identity):
            return _identity_of(_verified_user(request) if self.identity is None else self.identity)
        return _identity_of(await awaited(self.identity(request)))

    async def _session(self, given: object, identity: Identity) -> Session:
        """The session for this caller. Raises `SessionNotFound` for one of another user."""
        session_id, opens = lifecycle.session_id_of(given), self.on_unknown == "open"
        if identity.user_id is None:
            return await self._unowned_session(session_id, opens=opens)
        access = self.sessions.for_user(identity.user_id, identity.group_ids, group_id=identity.group_id)
        if opens:
            return await access.afind(session_id) or await access.aopen(session_id)
        return await access.aget(session_id)

    async def _unowned_session(self, session_id: str, *, opens: bool) -> Session:
        session = await self.sessions.afind(session_id)
        if session is None and opens:
            try:
                return await self.sessions.aopen(session_id)
            except errors.UserRequired:
                raise
            except errors.SessionAccessDenied:  # it was another user's, and is archived
                session = None
        if session is None or session.user_id is not None:
            raise errors.SessionNotFound(session_id)
        return session

    def _sentence(self, denial: errors.SessionError, given: object) -> str:
        """What a model can do about a denial."""
        problem = next(text for kind, text in _PROBLEMS.items() if isinstance(denial, kind))
        without = ", or call the tool without one" if self.on_missing == "run" else ""
        return f"Session {_short(given)} {problem}. Pass the id of your open session{self._where}{without}."

    @property
    def _where(self) -> str:
        return f" as {self.argument!r}" if self.argument is not None else f" as {META_KEY!r} in _meta"

    def advertise(self, schema: Any) -> Any:
        """The schema of a tool's arguments with ours, unless the tool has one of this name."""
        if self.argument is None or not isinstance(schema, Mapping) or self.declares(schema):
            return schema
        own = {"type": "string", "title": "Session", "description": _DESCRIPTION}
        with_ours = {**schema, "properties": {**(schema.get("properties") or {}), self.argument: own}}
        if self.on_missing == "refuse":
            with_ours["required"] = [*(schema.get("required") or ()), self.argument]
        return with_ours

    def declares(self, schema: Any) -> bool:
        """Whether a tool has an argument of our name, which we then leave to the tool."""
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        return self.argument is not None and isinstance(properties, Mapping) and self.argument in properties


_PROBLEMS: Mapping[type[errors.SessionError], str] = {  # the first that fits
    errors.SessionNotFound: "does not exist",
    errors.InvalidSessionId: "does not exist",
    errors.SessionExpired: "has expired",
    errors.SessionClosed: "has ended",
    errors.SessionLimitReached: "cannot be opened, because too many sessions are open",
    errors.UserRequired: "needs a user, and this connection has none",
    errors.UserRevoked: "cannot be used, because access was withdrawn from this user",
    errors.SessionAccessDenied: "may only be read by you",
    errors.SessionBusy: "is busy",
}
_DENIALS = tuple(_PROBLEMS)


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _verified_user(request: Request | None) -> str | None:
    """The user of the token that the server's own authentication has verified."""
    user = None if request is None else request.scope.get("user")
    return user.access_token.subject if isinstance(user, AuthenticatedUser) else None


def _identity_of(given: Identity | str | None) -> Identity:
    """Raises `InvalidIdentity` for what is no user."""
    if isinstance(given, Identity):
        return given
    return Identity(user_id=lifecycle.owner_id_or_none("user_id", given))


# Results


def note_result(
    execution: ToolExecution, content: list[Any], structured: Any, *, is_error: bool, needs_input: bool = False
) -> None:
    """Set the outcome: MCP's content as a tool message has it, with the structured content as its artifact."""
    if needs_input:  # the client calls again, with the answers
        execution.status = "interrupted"
        return
    parts = [_block(part) for part in content]
    is_text = len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text"
    execution.result = ToolMessage(
        parts[0]["text"] if is_text else [part if isinstance(part, dict) else str(part) for part in parts],
        artifact=structured,
        status="error" if is_error else "success",
        tool_call_id="",
    )


def _block(value: Any) -> Any:
    """A content block with the keys of LangChain's, so that images and files are stored as files."""
    if isinstance(value, list):
        return [_block(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    block = {_KEYS.get(key, key): _block(part) for key, part in value.items() if part is not None}
    if block.get("type") in ("image", "audio") and "data" in block:
        block["base64"] = block.pop("data")
    return block
