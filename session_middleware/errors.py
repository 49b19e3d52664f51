"""The exceptions of this package.

    SessionError
    ├── SessionNotFound       (LookupError)      there is no such session for this caller
    ├── SessionExists         (ValueError)       open(..., if_exists="raise") on a known id
    ├── SessionExpired        (LookupError)      the session has expired and on_resume="reject", or is archived
    ├── SessionClosed         (ValueError)       on_closed="reject" and the session has ended
    ├── SessionAccessDenied   (PermissionError)  the session has another owner
    │   ├── MemoryAccessDenied                   the memory has another owner
    │   ├── UserRequired                         require_user refuses a run without a user
    │   └── UserRevoked                          sessions.revoke() refuses this user
    ├── SessionBusy           (TimeoutError)     another run holds the session
    │   ├── LeaseLost                            another run took over, because this run's lease expired
    │   └── ResourceHeld                         another process has an exclusive resource of the session open
    ├── SessionLimitReached   (ValueError)       max_sessions is reached
    ├── GraphHasPart          (ValueError)       attach() would replace a checkpointer, store or recorder
    ├── NotAGraph             (TypeError)        attach() was given something else
    ├── NotOnRecord           (LookupError)      a replayed call has no recorded answer; in `experiments.replay`
    ├── InvalidTransition     (ValueError)       a status that cannot follow the current one
    ├── InvalidSessionId      (ValueError)       a missing or invalid session id
    ├── InvalidIdentity       (ValueError)       an invalid user or group id
    ├── InvalidSettings       (ValueError)       a setting with an invalid value
    │   └── InvalidArgument                      an argument of a call with an invalid value
    │       └── InvalidMemoryArgument (TypeError)  an argument of a memory operation with an invalid value
    ├── EmbeddingFailed       (RuntimeError)     the embedding model raised, or returned no vectors
    ├── MemoryNotFound        (KeyError)         promote() names an unknown memory
    ├── MemoryScopeUnavailable (ValueError)      a scope for which the session has no id
    ├── MissingExtra          (ImportError)      a method needs a package that is not installed
    ├── PathTemplateError     (ValueError)       a path template with an unknown or empty field
    ├── UnknownStatus         (ValueError)       list() filters by an unknown status
    ├── UnknownStrategy       (ValueError)       prune() names an unknown strategy
    ├── UnknownGrouping       (ValueError)       usage() names an unknown key to sum by
    ├── UnserializableValue   (TypeError)        a value that cannot be stored or restored
    ├── ToolNotFound          (LookupError)      an MCP server has no such tool
    ├── InvalidToolArguments  (ValueError)       the arguments do not conform to the tool's schema
    ├── ToolFailed            (RuntimeError)     the tool itself reported an error
    ├── ToolTimedOut          (TimeoutError)     the tool took too long
    ├── ToolServerFailed      (RuntimeError)     an MCP server did not start, or ended
    ├── ServerUnavailable     (ConnectionError)  a server of sessions cannot be reached, or failed
    └── StorageError          (OSError)          the database is missing, damaged, full or not ours

A constructor takes facts and builds the sentence, which ends with what to do. An engine maps its driver's
exceptions to these, ``from`` the original.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any


class SessionError(Exception):
    """The base class of all exceptions of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), vars(self)  # the constructors take facts, and not `args`


def _restored(cls: type[SessionError], args: tuple[Any, ...]) -> SessionError:
    error = cls.__new__(cls)
    error.args = args
    return error


class SessionNotFound(SessionError, LookupError):
    """There is no such session for this caller. `deleted`: the caller holds a handle to a deleted one."""

    def __init__(self, session_id: str, *, archived: bool = False, deleted: bool = False) -> None:
        self.session_id = session_id
        self.archived = archived
        self.deleted = deleted
        super().__init__(
            f"session {session_id!r} was deleted, or its id now belongs to a new session; open that with "
            f"sessions.open({session_id!r}), or call sessions.explain({session_id!r})"
            if deleted
            else f"session {session_id!r} is archived; bring it back with sessions.restore({session_id!r}), "
            "or call sessions.explain(id)"
            if archived
            else f"there is no session {session_id!r}; list the sessions with sessions.list(), "
            "or call sessions.find(id), which returns None instead of raising"
        )


class SessionExists(SessionError, ValueError):
    """`line`: of the file that was imported, of which nothing was stored. `is_theirs`: it has the same owner."""

    def __init__(
        self, session_id: str, *, archived: bool = False, line: int | None = None, is_theirs: bool = True
    ) -> None:
        self.session_id, self.line = session_id, line
        where, call = (" in its archive", "restore") if archived else ("", "open")
        advice = f"resume it with sessions.{call}({session_id!r}), or choose another id"
        if line is not None:
            advice = "import with if_exists='skip' to leave it as it is, or delete it first"
            if archived or not is_theirs:
                advice = "nothing was imported"
                where += "" if is_theirs else " and has another owner"
        place = "" if line is None else f"line {line}: "
        super().__init__(f"{place}session {session_id!r} exists already{where}; {advice}")


class SessionExpired(SessionError, LookupError):
    """The session has expired. `archived`: it is in its archive, and is not replaced by an empty session."""

    def __init__(
        self, session_id: str, *, since: datetime | None, how: str = "expired", archived: bool = False
    ) -> None:
        self.session_id = session_id
        self.since = since
        self.archived = archived
        when = f" at {since.isoformat(timespec='seconds')}" if since else ""
        super().__init__(
            f"session {session_id!r} {how}{when}; bring it back with sessions.restore({session_id!r}), "
            "start another thread id, or set on_resume to 'fresh'"
            if archived
            else f"session {session_id!r} {how}{when} and on_resume='reject' refuses to resume it; "
            "start another thread id, or set on_resume to 'revive' or 'fresh'"
        )


class SessionClosed(SessionError, ValueError):
    def __init__(self, session_id: str, *, status: str) -> None:
        self.session_id = session_id
        self.status = status
        super().__init__(
            f"session {session_id!r} is {status} and admits no more runs; start another thread id, "
            "or, if it was completed, failed or abandoned, set on_closed to 'reopen'"
        )


class SessionAccessDenied(SessionError, PermissionError):
    """`may_read`: the caller may only read it. `group_id`: the caller opened it for a group of others."""

    def __init__(
        self, session_id: str, *, user_id: str | None, may_read: bool = False, group_id: str | None = None
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        who = f"user {user_id!r}" if user_id is not None else "a caller without a user_id"
        super().__init__(
            f"{who} is not in group {group_id!r}; name a group of theirs, or pass it with for_user(…, group_ids=…)"
            if group_id is not None
            else f"session {session_id!r} has another owner, and {who} may only read it; start another thread id, "
            "or have its owner set visibility='group-write'"
            if may_read
            else f"session {session_id!r} is owned by another user and {who} may not use it; "
            f"pass its owner with sessions.config({session_id!r}, user_id=…)"
        )


class UserRequired(SessionAccessDenied):
    """The setting `require_user` refuses a run or an opening without a user. Nothing was written."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.user_id = None
        SessionError.__init__(
            self,
            f"require_user refuses session {session_id!r} to a caller without a user_id; pass it with "
            f"sessions.config({session_id!r}, user_id=…) or sessions.for_user(…)",
        )


class UserRevoked(SessionAccessDenied):
    def __init__(self, session_id: str, *, user_id: str | None) -> None:
        self.session_id = session_id
        self.user_id = user_id
        SessionError.__init__(
            self, f"user {user_id!r} was revoked; admit the user again with sessions.revoke({user_id!r}, lift=True)"
        )


class MemoryAccessDenied(SessionAccessDenied):
    """The memory namespace belongs to another session, user or group."""

    def __init__(self, namespace: tuple[str, ...], *, owner: str | None) -> None:
        self.namespace = namespace
        self.session_id = ""
        self.user_id = owner
        if namespace[0] in ("session", "user", "group"):
            text = (
                f"memory {namespace!r} belongs to another {namespace[0]} than this run's ({owner!r}); "
                "use the id of the run's own config, or a namespace that does not begin with "
                "'session', 'user' or 'group'"
            )
        else:
            text = f"memory {namespace!r} belongs to the app; use a namespace that begins with {('user', owner)!r}"
        SessionError.__init__(self, text)


class GraphHasPart(SessionError, ValueError):
    def __init__(self, part: str) -> None:
        self.part = part
        super().__init__(
            f"the graph has a {part} already; compile it without one, keep it with "
            f"attach(graph, {part}=False), or replace it with attach(graph, replace=True)"
        )


class NotAGraph(SessionError, TypeError):
    def __init__(self, found: str) -> None:
        super().__init__(
            f"attach() takes a compiled graph, not a {found}; call .compile() on a StateGraph first, "
            "or pass the agent that create_agent(...) returns"
        )


class SessionBusy(SessionError, TimeoutError):
    def __init__(self, session_id: str, *, run_id: str | None = None, process: str | None = None) -> None:
        self.session_id = session_id
        self.run_id = run_id
        self.process = process
        which = f"run {run_id!r}" if run_id is not None else "another run"
        where = f" of process {process}" if process is not None else ""
        super().__init__(
            f"session {session_id!r} is busy with {which}{where}; try again after that run, "
            "or set on_busy to 'wait' or 'allow'"
        )


class LeaseLost(SessionBusy):
    """The lease of this run expired, and another run may have taken over."""

    def __init__(self, session_id: str, *, number: int) -> None:
        self.session_id = session_id
        self.run_id = self.process = None
        self.number = number
        SessionError.__init__(
            self,
            f"session {session_id!r} was given to another run, because the lease {number} of this one expired; "
            "its further writes are discarded, so run it again",
        )


class ResourceHeld(SessionBusy):
    """Another process has the exclusive resource open. `holder` is the text that it gave for other processes."""

    def __init__(self, session_id: str, name: str, *, process: str | None, holder: str | None = None) -> None:
        self.session_id, self.name = session_id, name
        self.run_id, self.process, self.holder = None, process, holder
        SessionError.__init__(
            self,
            f"the resource {name!r} of session {session_id!r} is open in process {process}; "
            "use it there, or try again when it has been closed",
        )


class SessionLimitReached(SessionError, ValueError):
    def __init__(self, limit: int, *, user_id: str | None = None) -> None:
        self.limit = limit
        self.user_id = user_id
        whose = f" for user {user_id!r}" if user_id is not None else ""
        super().__init__(f"the limit of {limit} open sessions{whose} is reached; end a session or raise the limit")


class InvalidTransition(SessionError, ValueError):
    def __init__(self, session_id: str, *, status: str, to: str) -> None:
        self.session_id = session_id
        self.status = status
        self.to = to
        super().__init__(
            f"session {session_id!r} is {status} and cannot become {to}; "
            "see the reason with sessions.explain(…), or open it again to resume it"
        )


class InvalidSessionId(SessionError, ValueError):
    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{problem}; pass a thread id of 1 to 1,024 characters, for example "
            "sessions.config('thread-42'), or sessions.config() to get a new one"
        )


class InvalidIdentity(SessionError, ValueError):
    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; pass 1 to 1,024 characters, or omit it for a session without an owner")


class InvalidSettings(SessionError, ValueError):
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(
            "invalid settings: "
            + "; ".join(problems)
            + "; correct the argument of Sessions(...), the SESSION_… variable or the .env file"
        )


class InvalidArgument(InvalidSettings):
    """Raised before anything is written."""

    def __init__(self, name: str, value: object, *, wanted: str) -> None:
        self.name = name
        self.problems = [f"{name} cannot be {reprlib.repr(value)}"]
        SessionError.__init__(self, f"{self.problems[0]}; give {wanted}")


class InvalidMemoryArgument(InvalidArgument, TypeError):
    """As `InvalidArgument`."""


class MissingExtra(SessionError, ImportError):
    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{what} needs a package that is not installed; run: pip install 'session-middleware[{extra}]'"
        )


class PathTemplateError(SessionError, ValueError):
    def __init__(self, template: str, problem: str) -> None:
        self.template = template
        super().__init__(
            f"the path template {template!r} cannot be used: {problem}; use {{session_id}}, which every session has, "
            "or open the session with the missing value"
        )


class UnknownStatus(SessionError, ValueError):
    def __init__(self, status: str, *, known: tuple[str, ...]) -> None:
        self.status = status
        also = "; list archived sessions with sessions.list_archived()" if status == "archived" else ""
        super().__init__(f"there is no status {status!r}; use one of {', '.join(known)}{also}")


class UnknownStrategy(SessionError, ValueError):
    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        super().__init__(
            f"there is no prune strategy {strategy!r}; use 'keep_latest', which leaves the latest checkpoint of each "
            "namespace, or 'delete', which deletes the sessions"
        )


class UnknownGrouping(SessionError, ValueError):
    def __init__(self, by: str, *, known: Sequence[str]) -> None:
        self.by = by
        super().__init__(f"usage cannot be summed by {by!r}; use one of: {', '.join(known)}")


class UnserializableValue(SessionError, TypeError):
    """A value of a graph's state that cannot be stored, or cannot be restored with its type."""

    def __init__(self, problem: str, *, advice: str) -> None:
        self.problem = problem
        self.advice = advice
        super().__init__(f"{problem}; {advice}")


class ToolNotFound(SessionError, LookupError):
    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no tool {reprlib.repr(name)}; list the tools of the session")


class InvalidToolArguments(SessionError, ValueError):
    """The tool was not called."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"the arguments of {name!r} are not valid ({problem}); see its input schema")


class ToolFailed(SessionError, RuntimeError):
    """`text` is that of the tool."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        super().__init__(f"the tool {name!r} failed: {text}")


class ToolTimedOut(SessionError, TimeoutError):
    """The tool may still have its effect."""

    def __init__(self, name: str, seconds: float | None = None) -> None:
        self.name = name
        after = "" if seconds is None else f" within {seconds:g} s"
        super().__init__(f"{name or 'the MCP server'} did not answer{after}; ask for less, or raise call_timeout")


class ToolServerFailed(SessionError, RuntimeError):
    """The process of an MCP server failed. The next call starts a new one in the same folder."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"the MCP server {problem}; call again to start a new one")


class ServerUnavailable(SessionError, ConnectionError):
    """A server of sessions could not be reached, or gave no answer of its own."""

    def __init__(self, url: str, problem: str) -> None:
        self.url, self.problem = url, problem
        super().__init__(f"{url}: {problem}; check that the server runs, and try again")


class StorageError(SessionError, OSError):
    def __init__(self, where: str, problem: str, *, advice: str) -> None:
        self.where = where
        super().__init__(f"{where}: {problem}; {advice}")


class MemoryScopeUnavailable(SessionError, ValueError):
    def __init__(self, scope: str, *, session_id: str | None) -> None:
        self.scope = scope
        self.session_id = session_id
        whose = f"session {session_id!r} has" if session_id is not None else "there is"
        super().__init__(
            f"{whose} no {scope}_id for memories of scope {scope!r}; pass one with "
            f"sessions.config(…, {scope}_id=…) or sessions.open(…, {scope}_id=…), or use another scope"
        )


class MemoryNotFound(SessionError, KeyError):
    def __init__(self, key: str, *, scope: str) -> None:
        self.key = key
        self.scope = scope
        super().__init__(f"there is no memory {key!r} of scope {scope!r}; list the memories with session.memory.list()")

    def __str__(self) -> str:  # `KeyError` would return the argument's repr
        return str(self.args[0])


class EmbeddingFailed(SessionError, RuntimeError):
    """Raised by ``index_memory(rebuild=True)``; elsewhere it is logged, and memories are found by their words."""

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        super().__init__(f"the embedding model {model!r} cannot be used: {problem}; correct index= of Sessions(...)")
