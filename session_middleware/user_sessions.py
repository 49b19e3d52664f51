"""`UserSessions`: the sessions of one user. Sessions of other users are not found.

The sessions that it returns check each call by an `AuthorizedStorage`.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Unpack

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.errors import SessionAccessDenied, SessionNotFound, UserRevoked
from session_middleware.memory.results import SearchHit
from session_middleware.models import Explanation, Identity, SessionInfo, ToolCall, Usage
from session_middleware.runtime.explain import explain_absence
from session_middleware.runtime.run_context import acting_as, as_config
from session_middleware.session import Session
from session_middleware.storage.executor import async_twin
from session_middleware.storage.types import ArchivedSession, DeletionCounts, TombstoneInfo, UsageBy
from session_middleware.storage.validation import SessionFilters, SessionOptions, spelled_out, suggesting

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from session_middleware.sessions import Sessions

T = TypeVar("T")

_FIXED = "for_user() sets it; call for_user() for another user instead"


@suggesting
class UserSessions:
    """`Sessions` for one user: each access is checked, and sessions of other users are not found.

    Sessions without an owner are not found either. Sessions shared with a group of the user
    (``visibility="group"`` or ``"group-write"``) are found. The first may only be read: its changes raise
    `SessionAccessDenied`. The second may also be changed and deleted. For a revoked user, each method that uses the
    storage raises `UserRevoked`, also those of a `Session`.
    """

    _elsewhere: ClassVar = dict.fromkeys(("user_id", "group_id", "group_ids"), _FIXED)

    def __init__(self, sessions: Sessions, identity: Identity) -> None:
        self._sessions, self.identity = sessions, identity
        self._storage, self._offload = sessions._storage, sessions._offload

    def __repr__(self) -> str:
        return f"{self._sessions!r}.for_user({self.identity.user_id!r})"

    def _session(self, info: SessionInfo) -> Session:
        return Session.of(info, self._sessions, self.identity)

    def _checked(self, found: T) -> T:
        """`found`, unless the user is revoked. Raises `UserRevoked`."""
        if self._storage.is_revoked(self.identity.user_id):
            raise UserRevoked("", user_id=self.identity.user_id)
        return found

    def _tombstone(self, session_id: object) -> TombstoneInfo | None:
        """The tombstone of a session that the user owned."""
        tombstone = self._storage.find_tombstone(lifecycle.session_id_of(session_id))
        return None if tombstone is None or tombstone.user_id != self.identity.user_id else tombstone

    def config(self, session_id: object = None, **configurable: Any) -> RunnableConfig:
        """The config of a run of this user. Raises `TypeError` for a `user_id` and for groups."""
        if named := sorted(self._elsewhere.keys() & configurable):
            raise TypeError(f"config() has no argument {named[0]!r}; {_FIXED}")
        return self._sessions.config(session_id, **as_config(self.identity), **configurable)

    @spelled_out(SessionOptions)
    def open(
        self,
        session_id: object = None,
        *,
        group_id: str | None = None,
        if_exists: Literal["resume", "raise"] = "resume",
        **options: Unpack[SessionOptions],
    ) -> Session:
        """As `Sessions.open`, by this user, for one of the user's groups. Raises `TypeError` for a `user_id`.

        Raises:
            SessionNotFound: the session is owned by another user.
            SessionAccessDenied: the user may only read the session, or is not in the group.
        """
        identity, group_id = self.identity, lifecycle.owner_id_or_none("group_id", group_id)
        chosen = None if session_id is None else lifecycle.session_id_of(session_id)
        if group_id is not None:
            if group_id not in identity.groups:
                raise SessionAccessDenied(chosen or "", user_id=identity.user_id, group_id=group_id)
            identity = identity.model_copy(update={"group_id": group_id, "group_ids": tuple(identity.groups)})
        if chosen is not None:
            found = self._checked(self._sessions.find(chosen))
            if found is not None:
                lifecycle.check_theirs(found, self.identity)
        try:
            with acting_as(identity):
                return self._session(self._sessions.open(chosen, if_exists=if_exists, **options))
        except UserRevoked:
            raise
        except SessionAccessDenied:
            raise SessionNotFound(chosen or "") from None

    aopen = async_twin(open)

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``, also if it is another user's."""
        found = self._checked(self._sessions.find(session_id))
        if found is None or not lifecycle.is_theirs(found, self.identity, reading=True):
            return None
        return self._session(found)

    afind = async_twin(find)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`, also if it is another user's."""
        session = self.find(session_id)
        if session is None:
            tombstone = self._tombstone(session_id)
            archived = tombstone is not None and tombstone.archive is not None
            raise SessionNotFound(lifecycle.session_id_of(session_id), archived=archived)
        return session

    aget = async_twin(get)

    @spelled_out(SessionFilters)
    def list(
        self, *, limit: int | None = 50, after: Session | None = None, **filters: Unpack[SessionFilters]
    ) -> builtins.list[Session]:
        """The user's sessions and those shared with the user's groups, filtered as in `Sessions.list`."""
        found = self._checked(self._sessions.list(visible_to=self.identity, limit=limit, after=after, **filters))
        return Rows(self._session(session) for session in found)

    alist = async_twin(list)

    @spelled_out(SessionFilters)
    def count(self, **filters: Unpack[SessionFilters]) -> int:
        """The number of sessions that `list` finds without a limit."""
        return self._checked(self._sessions.count(visible_to=self.identity, **filters))

    acount = async_twin(count)

    def list_archived(
        self, *, limit: int | None = 50, after: ArchivedSession | None = None
    ) -> builtins.list[ArchivedSession]:
        """As `Sessions.list_archived`, for sessions that the user owned."""
        user_id = self.identity.user_id
        return self._checked(self._sessions.list_archived(user_id=user_id, limit=limit, after=after))

    alist_archived = async_twin(list_archived)

    def restore(self, session_id: object) -> Session:
        """As `Sessions.restore`, for a session that the user owned. Raises `SessionNotFound` for others."""
        return self._session(self._storage.restore_session(lifecycle.session_id_of(session_id), by=self.identity))

    arestore = async_twin(restore)

    def delete(self, session_id: object) -> DeletionCounts:
        """Delete a session that the user may change, or an archive of the user.

        Raises:
            SessionNotFound: the session is owned by another user.
            SessionAccessDenied: the user may only read the session.
        """
        session = self.find(session_id)
        if session is None and self._tombstone(session_id) is not None:
            return self._storage.delete_session(lifecycle.session_id_of(session_id), by=self.identity)
        return self.get(session_id).delete()

    adelete = async_twin(delete)

    def prune(self, session_id: object) -> None:
        """Delete all but the latest checkpoints of a session of the user. Raises `SessionNotFound`."""
        session = self.get(session_id)
        session._storage.prune_checkpoints([session.id])

    aprune = async_twin(prune)

    def copy(self, session_id: object, to: object = None) -> Session:
        """As `Sessions.copy`, for a session of the user.

        Raises:
            SessionNotFound: the session is owned by another user.
            SessionAccessDenied: the user may only read the session. A fork belongs to the owner of the original.
            SessionExists: a session has the new id already.
        """
        source = self.get(session_id)
        target = self._sessions._id_of(to)
        source._storage.copy_session(source.id, target)
        return self.get(target)

    acopy = async_twin(copy)

    def explain(self, session_id: object) -> Explanation:
        """As `Sessions.explain`, for a session of the user, also a deleted one. Raises `SessionNotFound`."""
        session = self.find(session_id)
        if session is not None:
            return self._sessions.explain(session.id)
        tombstone = self._tombstone(session_id)
        if tombstone is None:
            raise SessionNotFound(lifecycle.session_id_of(session_id))
        return explain_absence(tombstone.session_id, tombstone, self._sessions.settings)

    aexplain = async_twin(explain)

    def search(
        self,
        query: str,
        *,
        session_id: object = None,
        since: datetime | None = None,
        limit: int = 20,
        offset: int = 0,
        marks: tuple[str, str] = ("", ""),
    ) -> builtins.list[SearchHit]:
        """As `Sessions.search`, in the user's own sessions."""
        found = self._sessions.search(
            query,
            user_id=self.identity.user_id,
            session_id=session_id,
            since=since,
            limit=limit,
            offset=offset,
            marks=marks,
        )
        return self._checked(found)

    asearch = async_twin(search)

    def usage(
        self,
        by: UsageBy = "session",
        *,
        group_id: str | None = None,
        session_id: object = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> builtins.list[Usage]:
        """As `Sessions.usage`, for the user's own sessions."""
        user_id = self.identity.user_id
        found = self._sessions.usage(
            by, user_id=user_id, group_id=group_id, session_id=session_id, since=since, until=until
        )
        return self._checked(found)

    ausage = async_twin(usage)

    def tool_calls(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 50,
        after: ToolCall | None = None,
    ) -> builtins.list[ToolCall]:
        """As `Sessions.tool_calls`, for the user's own sessions."""
        user_id = self.identity.user_id
        found = self._sessions.tool_calls(
            name=name, status=status, user_id=user_id, since=since, until=until, limit=limit, after=after
        )
        return self._checked(found)

    atool_calls = async_twin(tool_calls)
