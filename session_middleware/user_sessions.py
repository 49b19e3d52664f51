"""`UserSessions`: the sessions of one user. What is not theirs is not found.

The check is made where the data is. A write asks in its own transaction. A read is made, and then it is
asked whether the session is still the one it was, and still in reach; only then is it handed out. A user
who was revoked is told so, wherever they ask. So
a session that is deleted and opened again by another between two calls is not seen by anybody
who held the old one.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, Unpack

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.errors import SessionAccessDenied, SessionNotFound, UserRevoked
from session_middleware.memory.results import SearchHit
from session_middleware.models import Explanation, Identity, SessionInfo, ToolCall, Usage
from session_middleware.runtime.explain import explain_absence
from session_middleware.runtime.run_context import acting_as, as_config
from session_middleware.services import Services
from session_middleware.session import Session
from session_middleware.session_storage import SessionStorage
from session_middleware.storage.executor import async_twin
from session_middleware.storage.reporting import UsageBy
from session_middleware.storage.run import SessionHandle
from session_middleware.storage.upkeep import ArchivedSession, DeletionCounts, TombstoneInfo
from session_middleware.storage.validation import SessionFilters, SessionOptions, spelled_out, suggesting

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from session_middleware.sessions import Sessions

T = TypeVar("T")
SessionList: TypeAlias = list[Session]
Archives: TypeAlias = list[ArchivedSession]
Usages: TypeAlias = list[Usage]
ToolCalls: TypeAlias = list[ToolCall]
FoundList: TypeAlias = list[SearchHit]

_SAID_ONCE = "for_user() was given it; ask for_user() of another user instead"


@suggesting
class UserSessions:
    """The door of `Sessions`, for one user: each access is checked, and what is not theirs is not found.

    Sessions without an owner are nobody's, and not found either. What is shared with a group of
    theirs (``visibility="group"`` or ``"group-write"``) is found, and may be read, or also changed. One who was
    revoked gets `UserRevoked` from each method that touches storage, and from a session they hold.
    """

    _elsewhere: ClassVar = dict.fromkeys(("user_id", "group_id", "group_ids"), _SAID_ONCE)

    def __init__(self, sessions: Sessions, parts: Services, identity: Identity) -> None:
        self._sessions = sessions
        self._parts = parts
        self._storage, self._offload = parts.storage, parts.offload
        self.identity = identity

    def __repr__(self) -> str:
        return f"{self._sessions!r}.for_user({self.identity.user_id!r})"

    def _in_hand(self, info: SessionInfo) -> Session:
        """A session for them: what it gives and takes is checked each time."""
        hand = SessionHandle(info.incarnation)
        storage: Any = SessionStorage(self._storage, info.id, hand, self.identity)
        return Session.of(info, replace(self._parts, storage=storage, by=self.identity, hand=hand))

    def _given(self, found: T) -> T:
        """What was found for them, unless they were revoked. Raises `UserRevoked`."""
        if self._storage.is_revoked(self.identity.user_id):
            raise UserRevoked("", user_id=self.identity.user_id)
        return found

    def _buried(self, session_id: object) -> TombstoneInfo | None:
        """What is remembered of an id that was theirs."""
        buried = self._storage.find_buried(lifecycle.session_id_of(session_id))
        return None if buried is None or buried.user_id != self.identity.user_id else buried

    def config(self, session_id: object = None, **configurable: Any) -> RunnableConfig:
        """A run's config, as this user. Raises `TypeError` for another `user_id`, and for groups."""
        if named := sorted(self._elsewhere.keys() & configurable):
            raise TypeError(f"config() has no argument {named[0]!r}; {_SAID_ONCE}")
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
        """As `Sessions.open`, as this user, for one of their groups. Raises `TypeError` for another `user_id`.

        Raises:
            SessionNotFound: the id is another's.
            SessionAccessDenied: they are not in the group.
        """
        identity = self.identity
        chosen = None if session_id is None else lifecycle.session_id_of(session_id)
        if group_id is not None:
            if group_id not in identity.groups:
                raise SessionAccessDenied(chosen or "", user_id=identity.user_id, group_id=group_id)
            identity = identity.model_copy(update={"group_id": group_id, "group_ids": tuple(identity.groups)})
        if chosen is not None:
            found = self._given(self._sessions.find(chosen))
            if found is not None and not lifecycle.is_theirs(found, self.identity):
                raise SessionNotFound(found.id)
        try:
            with acting_as(identity):
                return self._in_hand(self._sessions.open(chosen, if_exists=if_exists, **options))
        except UserRevoked:
            raise
        except SessionAccessDenied:
            raise SessionNotFound(chosen or "") from None

    aopen = async_twin(open)

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``: also when it is another's."""
        found = self._given(self._sessions.find(session_id))
        if found is None or not lifecycle.is_theirs(found, self.identity, reading=True):
            return None
        return self._in_hand(found)

    afind = async_twin(find)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`, also when it is another's."""
        session = self.find(session_id)
        if session is None:
            buried = self._buried(session_id)
            archived = buried is not None and buried.archive is not None
            raise SessionNotFound(lifecycle.session_id_of(session_id), archived=archived)
        return session

    aget = async_twin(get)

    @spelled_out(SessionFilters)
    def list(
        self, *, limit: int | None = 50, after: Session | None = None, **filters: Unpack[SessionFilters]
    ) -> SessionList:
        """Theirs and those shared with their groups, filtered as `Sessions.list` does."""
        found = self._given(self._sessions.list(visible_to=self.identity, limit=limit, after=after, **filters))
        return Rows(self._in_hand(session) for session in found)

    alist = async_twin(list)

    @spelled_out(SessionFilters)
    def count(self, **filters: Unpack[SessionFilters]) -> int:
        """How many `list` would find without a limit."""
        return self._given(self._sessions.count(visible_to=self.identity, **filters))

    acount = async_twin(count)

    def list_archived(self, *, limit: int | None = 50, after: ArchivedSession | None = None) -> Archives:
        """As `Sessions.list_archived`, of those that were their own."""
        user_id = self.identity.user_id
        return self._given(self._sessions.list_archived(user_id=user_id, limit=limit, after=after))

    alist_archived = async_twin(list_archived)

    def restore(self, session_id: object) -> Session:
        """As `Sessions.restore`, of one that was their own. Raises `SessionNotFound`, also for another's."""
        return self._in_hand(self._storage.restore_session(lifecycle.session_id_of(session_id), by=self.identity))

    arestore = async_twin(restore)

    def delete(self, session_id: object) -> DeletionCounts:
        """Delete one of theirs, or its archive. Raises `SessionNotFound`, also for what they may only read."""
        session = self.find(session_id)
        if session is None and self._buried(session_id) is not None:
            return self._storage.delete_session(lifecycle.session_id_of(session_id), by=self.identity)
        return self.get(session_id).delete()

    adelete = async_twin(delete)

    def prune(self, session_id: object) -> None:
        """Keep only the latest checkpoints of one of theirs. Raises `SessionNotFound`."""
        session = self.get(session_id)
        session._storage.prune_checkpoints([session.id])

    aprune = async_twin(prune)

    def copy(self, session_id: object, to: object = None) -> Session:
        """As `Sessions.copy`, of one of theirs.

        Raises:
            SessionNotFound: it is not theirs to change: a fork belongs to the owner of what was forked.
            SessionExists: there is a session with the id it is to have.
        """
        source = self.get(session_id)
        target = self._sessions.new_id() if to is None else lifecycle.session_id_of(to)
        source._storage.copy_session(source.id, target)
        return self.get(target)

    acopy = async_twin(copy)

    def explain(self, session_id: object) -> Explanation:
        """As `Sessions.explain`, of one of theirs, also if it is archived or deleted. Raises `SessionNotFound`."""
        session = self.find(session_id)
        if session is not None:
            return self._sessions.explain(session.id)
        buried = self._buried(session_id)
        if buried is None:
            raise SessionNotFound(lifecycle.session_id_of(session_id))
        return explain_absence(buried.session_id, buried, self._parts.settings)

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
    ) -> FoundList:
        """As `Sessions.search`, in their own sessions."""
        found = self._sessions.search(
            query,
            user_id=self.identity.user_id,
            session_id=session_id,
            since=since,
            limit=limit,
            offset=offset,
            marks=marks,
        )
        return self._given(found)

    asearch = async_twin(search)

    def usage(
        self,
        by: UsageBy = "session",
        *,
        group_id: str | None = None,
        session_id: object = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Usages:
        """As `Sessions.usage`, of their own sessions."""
        user_id = self.identity.user_id
        found = self._sessions.usage(
            by, user_id=user_id, group_id=group_id, session_id=session_id, since=since, until=until
        )
        return self._given(found)

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
    ) -> ToolCalls:
        """As `Sessions.tool_calls`, of their own sessions."""
        user_id = self.identity.user_id
        found = self._sessions.tool_calls(
            name=name, status=status, user_id=user_id, since=since, until=until, limit=limit, after=after
        )
        return self._given(found)

    atool_calls = async_twin(tool_calls)
