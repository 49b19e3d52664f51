"""Everything this package raises on purpose.

    SessionError
    ├── SessionNotFound       (LookupError)      no such session, or not the caller's
    ├── SessionExists         (ValueError)       open(..., if_exists="raise") on a known id
    ├── SessionExpired        (LookupError)      the session has expired and on_resume="reject", or is archived
    ├── SessionClosed         (ValueError)       on_closed="reject" and the session has ended
    ├── SessionAccessDenied   (PermissionError)  the session is owned by somebody else
    │   ├── MemoryAccessDenied                   the memory is
    │   └── UserRevoked                          sessions.revoke() refuses this user
    ├── SessionBusy           (TimeoutError)     another run holds the session
    │   └── LeaseLost                            it took over while this run was taken for dead
    ├── SessionLimitReached   (ValueError)       max_sessions is reached
    ├── GraphHasPart          (ValueError)       attach() would replace a checkpointer, store or recorder
    ├── NotAGraph             (TypeError)        attach() was given something else
    ├── InvalidTransition     (ValueError)       a status that cannot follow the present one
    ├── InvalidSessionId      (ValueError)       an id no session can have, or none at all
    ├── InvalidIdentity       (ValueError)       a user or group id no owner can have
    ├── InvalidSettings       (ValueError)       a setting that does not parse
    │   └── InvalidArgument                      an argument of a call that cannot be used
    ├── EmbeddingFailed       (RuntimeError)     the embedding model's answer is no vector
    ├── InvalidMemoryArgument (TypeError, ValueError)  memory was asked with what it cannot use
    ├── MemoryNotFound        (KeyError)         promote() names a memory there is not
    ├── MemoryScopeUnavailable (ValueError)      a scope the session has no id for
    ├── PathTemplateError     (ValueError)       a path over {session_id} … that cannot be filled in
    ├── UnknownStatus         (ValueError)       sessions were asked for by a status there is not
    ├── UnknownStrategy       (ValueError)       prune() was asked for one there is not
    ├── UnknownGrouping       (ValueError)       usage() was asked to sum by what there is not
    ├── UnserializableValue   (TypeError)        a value the checkpointer cannot store or give back
    └── StorageError          (OSError)          the database: missing, damaged, full, not ours

Each constructor takes facts and makes the sentence; the sentence ends with what to do. A driver's
exception never leaves an engine: it is mapped, ``from`` the original.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from datetime import datetime


class SessionError(Exception):
    """The root of the tree: ``except SessionError`` catches all that this package raises."""


class SessionNotFound(SessionError, LookupError):
    """No such session, or not the caller's; `deleted`: there was one, and the caller holds it."""

    def __init__(self, session_id: str, *, archived: bool = False, deleted: bool = False) -> None:
        self.session_id = session_id
        self.archived = archived
        self.deleted = deleted
        super().__init__(
            f"session {session_id!r} was deleted, or another one has its id since; get or open it anew with "
            f"sessions.open({session_id!r}), or ask sessions.explain({session_id!r})"
            if deleted
            else f"session {session_id!r} is archived; bring it back with sessions.restore({session_id!r}), "
            "or ask sessions.explain(id)"
            if archived
            else f"there is no session {session_id!r}; list what there is with sessions.list(), "
            "or ask with sessions.find(id), which returns None instead of raising"
        )


class SessionExists(SessionError, ValueError):
    def __init__(self, session_id: str, *, archived: bool = False) -> None:
        self.session_id = session_id
        where, call = (" in its archive", "restore") if archived else ("", "open")
        super().__init__(
            f"session {session_id!r} exists already{where}; resume it with sessions.{call}({session_id!r}), "
            "or choose another id"
        )


class SessionExpired(SessionError, LookupError):
    """`archived`: it is in its archive, and no empty session takes its place unasked."""

    def __init__(
        self, session_id: str, *, since: datetime | None, how: str = "expired", archived: bool = False
    ) -> None:
        self.session_id = session_id
        self.since = since
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
            f"session {session_id!r} is {status} and takes no more of this; start another thread id, "
            "or, if it was completed, failed or abandoned, set on_closed to 'reopen'"
        )


class SessionAccessDenied(SessionError, PermissionError):
    """Also who may only read it (`may_read`), and who would open one for a group they are not in (`group_id`)."""

    def __init__(
        self, session_id: str, *, user_id: str | None, may_read: bool = False, group_id: str | None = None
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        who = f"user {user_id!r}" if user_id is not None else "a caller without a user_id"
        super().__init__(
            f"{who} is not in group {group_id!r}; name a group of theirs, or give it with for_user(…, group_ids=…)"
            if group_id is not None
            else f"session {session_id!r} is another user's, and {who} may only read it; start another thread id, "
            "or have its owner set visibility='group-write'"
            if may_read
            else f"session {session_id!r} is owned by another user and {who} may not use it; "
            f"pass its owner with sessions.config({session_id!r}, user_id=…)"
        )


class UserRevoked(SessionAccessDenied):
    def __init__(self, session_id: str, *, user_id: str | None) -> None:
        self.session_id = session_id
        self.user_id = user_id
        SessionError.__init__(
            self, f"user {user_id!r} was revoked and is refused; sessions.revoke({user_id!r}, lift=True) lifts it"
        )


class MemoryAccessDenied(SessionAccessDenied):
    """A memory namespace that belongs to another session, user or group."""

    def __init__(self, namespace: tuple[str, ...], *, owner: str | None) -> None:
        self.namespace = namespace
        self.session_id = ""
        self.user_id = owner
        SessionError.__init__(
            self,
            f"memory {namespace!r} belongs to another {namespace[0]} than this run's ({owner!r}); "
            "use the id of the run's own config, or a namespace that does not begin with "
            "'session', 'user' or 'group'",
        )


class GraphHasPart(SessionError, ValueError):
    def __init__(self, part: str) -> None:
        self.part = part
        super().__init__(
            f"the graph has a {part} already; compile it without one, keep its own with "
            f"attach(graph, {part}=False), or put this one in its place with attach(graph, replace=True)"
        )


class NotAGraph(SessionError, TypeError):
    def __init__(self, found: str) -> None:
        super().__init__(
            f"attach() takes a compiled graph and was given a {found}; call .compile() on a StateGraph first, "
            "or pass what create_agent(...) returns"
        )


class SessionBusy(SessionError, TimeoutError):
    def __init__(self, session_id: str, *, run_id: str | None = None, process: str | None = None) -> None:
        self.session_id = session_id
        self.run_id = run_id
        self.process = process
        which = f"run {run_id!r}" if run_id is not None else "another run"
        where = f" of process {process}" if process is not None else ""
        super().__init__(
            f"session {session_id!r} is busy with {which}{where}; try again when it has ended, "
            "or set on_busy to 'wait' or 'allow'"
        )


class LeaseLost(SessionBusy):
    """This run was taken for dead, and another may have gone on in its place."""

    def __init__(self, session_id: str, *, number: int) -> None:
        self.session_id = session_id
        self.run_id = self.process = None
        self.number = number
        SessionError.__init__(
            self,
            f"session {session_id!r} was given to another run, because this one (lease {number}) was taken for dead, "
            "and nothing it still writes is kept; run it again",
        )


class SessionLimitReached(SessionError, ValueError):
    def __init__(self, limit: int, *, user_id: str | None = None) -> None:
        self.limit = limit
        self.user_id = user_id
        whose = f" for user {user_id!r}" if user_id is not None else ""
        super().__init__(f"the limit of {limit} open sessions{whose} is reached; end one or raise the limit")


class InvalidTransition(SessionError, ValueError):
    def __init__(self, session_id: str, *, status: str, to: str) -> None:
        self.session_id = session_id
        self.status = status
        self.to = to
        super().__init__(
            f"session {session_id!r} is {status} and cannot become {to}; "
            "sessions.explain(…) says why it is so, and opening it again resumes it"
        )


class InvalidSessionId(SessionError, ValueError):
    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; pass a thread id of 1 to 1,024 characters, for example "
            "sessions.config('thread-42'), or sessions.config() to get a new one"
        )


class InvalidIdentity(SessionError, ValueError):
    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; pass 1 to 1,024 characters, or leave it out for a session without an owner")


class InvalidSettings(SessionError, ValueError):
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(
            "settings that cannot be used: "
            + "; ".join(problems)
            + "; correct the argument of Sessions(...), the SESSION_… variable or the .env file"
        )


class InvalidArgument(InvalidSettings):
    """Found before anything is written."""

    def __init__(self, name: str, value: object, *, wanted: str) -> None:
        self.name = name
        self.problems = [f"{name} cannot be {reprlib.repr(value)}"]
        SessionError.__init__(self, f"{self.problems[0]}; give {wanted}")


class PathTemplateError(SessionError, ValueError):
    def __init__(self, template: str, problem: str) -> None:
        self.template = template
        super().__init__(
            f"the path {template!r} cannot be filled in: {problem}; use {{session_id}}, which every session has, "
            "or open the session with what is missing"
        )


class UnknownStatus(SessionError, ValueError):
    def __init__(self, status: str, *, known: tuple[str, ...]) -> None:
        self.status = status
        also = "; what is archived is in sessions.list_archived()" if status == "archived" else ""
        super().__init__(f"there is no status {status!r}; use one of {', '.join(known)}{also}")


class UnknownStrategy(SessionError, ValueError):
    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        super().__init__(
            f"there is no way to prune called {strategy!r}; use 'keep_latest', which keeps the latest checkpoint "
            "of each namespace, or 'delete', which deletes the sessions"
        )


class UnknownGrouping(SessionError, ValueError):
    def __init__(self, by: str, *, known: Sequence[str]) -> None:
        self.by = by
        super().__init__(f"usage cannot be summed by {by!r}; sum it by one of: {', '.join(known)}")


class UnserializableValue(SessionError, TypeError):
    """A value of a graph's state that cannot be stored, or not be read back as what it was."""

    def __init__(self, problem: str, *, advice: str) -> None:
        self.problem = problem
        self.advice = advice
        super().__init__(f"{problem}; {advice}")


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
            f"{whose} no {scope}_id to keep memories of scope {scope!r} under; give one with "
            f"sessions.config(…, {scope}_id=…) or sessions.open(…, {scope}_id=…), or use another scope"
        )


class InvalidMemoryArgument(SessionError, TypeError, ValueError):
    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")


class MemoryNotFound(SessionError, KeyError):
    def __init__(self, key: str, *, scope: str) -> None:
        self.key = key
        self.scope = scope
        super().__init__(
            f"there is no memory {key!r} of scope {scope!r}; list what there is with session.memory.list()"
        )

    def __str__(self) -> str:  # a KeyError shows its argument's repr
        return str(self.args[0])


class EmbeddingFailed(SessionError, RuntimeError):
    """Raised by ``index_memory(rebuild=True)``, and else logged: what has no vector is found by its words."""

    def __init__(self, model: str, problem: str) -> None:
        self.model = model
        super().__init__(f"the embedding model {model!r} cannot be used: {problem}; correct index= of Sessions(...)")
