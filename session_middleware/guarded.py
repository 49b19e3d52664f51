"""`UserSessions`: the sessions of one user. What is not theirs is not found.

The check is made where the data is. A write asks in its own transaction. A read is made, and then it is
asked whether the session is still the one it was, and still in reach; only then is it handed out. A user
who was revoked is told so, wherever they ask. So
a session that is deleted and opened again by another between two calls is not seen by anybody
who held the old one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from session_middleware import lifecycle
from session_middleware.errors import SessionAccessDenied, SessionNotFound, UserRevoked
from session_middleware.explaining import explain_absence
from session_middleware.memory.found import Found
from session_middleware.model import Identity, SessionInfo, ToolCall, Usage
from session_middleware.names import suggesting
from session_middleware.notebook import Rows
from session_middleware.parts import Parts
from session_middleware.session import Session
from session_middleware.session_storage import SessionStorage
from session_middleware.storage.reporting import UsageBy
from session_middleware.storage.upkeep import ArchivedSession, Buried, Deleted
from session_middleware.storage.visit import Hand
from session_middleware.visits import acting_as, as_config

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from session_middleware.sessions import Sessions

T = TypeVar("T")
SessionList: TypeAlias = list[Session]
Archives: TypeAlias = list[ArchivedSession]
Usages: TypeAlias = list[Usage]
ToolCalls: TypeAlias = list[ToolCall]
FoundList: TypeAlias = list[Found]


def _check_names_nobody(given: dict[str, Any]) -> None:
    """Who asks was said once, by `Sessions.for_user`: not by what may come from a request."""
    if named := sorted({"user_id", "group_id", "group_ids"} & set(given)):
        raise TypeError(f"{named[0]} is what for_user() was given; ask for_user() of another user instead")


@suggesting
class UserSessions:
    """The door of `Sessions`, for one user: each access is checked, and what is not theirs is not found.

    Sessions without an owner are nobody's, and not found either. What is shared with a group of
    theirs (``visibility="group"`` or ``"group-write"``) is found, and may be read, or also changed. One who was
    revoked gets `UserRevoked` from each method that touches storage, and from a session they hold.
    """

    def __init__(self, sessions: Sessions, parts: Parts, identity: Identity) -> None:
        self._sessions = sessions
        self._parts = parts
        self._storage, self._offload = parts.storage, parts.offload
        self.identity = identity

    def __repr__(self) -> str:
        return f"{self._sessions!r}.for_user({self.identity.user_id!r})"

    def _in_hand(self, info: SessionInfo) -> Session:
        """A session for them: what it gives and takes is checked each time."""
        hand = Hand(info.incarnation)
        storage: Any = SessionStorage(self._storage, info.id, hand, self.identity)
        return Session.of(info, replace(self._parts, storage=storage, by=self.identity, hand=hand))

    def _given(self, found: T) -> T:
        """What was found for them, unless they were revoked. Raises `UserRevoked`."""
        if self._storage.is_revoked(self.identity.user_id):
            raise UserRevoked("", user_id=self.identity.user_id)
        return found

    def _buried(self, session_id: object) -> Buried | None:
        """What is remembered of an id that was theirs."""
        buried = self._storage.find_buried(lifecycle.session_id_of(session_id))
        return None if buried is None or buried.user_id != self.identity.user_id else buried

    def config(self, session_id: object = None, **configurable: Any) -> RunnableConfig:
        """A run's config, as this user. Raises `TypeError` for another `user_id`, and for groups."""
        _check_names_nobody(configurable)
        return self._sessions.config(session_id, **as_config(self.identity), **configurable)

    def open(self, session_id: object = None, *, group_id: str | None = None, **options: Any) -> Session:
        """As `Sessions.open`, as this user, for one of their groups. Raises `TypeError` for another `user_id`.

        Raises:
            SessionNotFound: the id is another's.
            SessionAccessDenied: they are not in the group.
        """
        _check_names_nobody(options)
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
                return self._in_hand(self._sessions.open(chosen, **options))
        except UserRevoked:
            raise
        except SessionAccessDenied:
            raise SessionNotFound(chosen or "") from None

    async def aopen(self, session_id: object = None, **options: Any) -> Session:
        return await self._offload.run(self.open, session_id, **options)

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``: also when it is another's."""
        found = self._given(self._sessions.find(session_id))
        if found is None or not lifecycle.is_theirs(found, self.identity, reading=True):
            return None
        return self._in_hand(found)

    async def afind(self, session_id: object) -> Session | None:
        return await self._offload.run(self.find, session_id)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`, also when it is another's."""
        session = self.find(session_id)
        if session is None:
            buried = self._buried(session_id)
            archived = buried is not None and buried.archive is not None
            raise SessionNotFound(lifecycle.session_id_of(session_id), archived=archived)
        return session

    async def aget(self, session_id: object) -> Session:
        return await self._offload.run(self.get, session_id)

    def list(self, **filters: Any) -> SessionList:
        """Theirs and those shared with their groups, filtered as `Sessions.list` does."""
        found = self._given(self._sessions.list(visible_to=self.identity, **filters))
        return Rows(self._in_hand(session) for session in found)

    async def alist(self, **filters: Any) -> SessionList:
        return await self._offload.run(self.list, **filters)

    def count(self, **filters: Any) -> int:
        """How many `list` would find without a limit."""
        return self._given(self._sessions.count(visible_to=self.identity, **filters))

    async def acount(self, **filters: Any) -> int:
        return await self._offload.run(self.count, **filters)

    def list_archived(self, **page: Any) -> Archives:
        """As `Sessions.list_archived`, of those that were their own."""
        return self._given(self._sessions.list_archived(user_id=self.identity.user_id, **page))

    async def alist_archived(self, **page: Any) -> Archives:
        return await self._offload.run(self.list_archived, **page)

    def restore(self, session_id: object) -> Session:
        """As `Sessions.restore`, of one that was their own. Raises `SessionNotFound`, also for another's."""
        return self._in_hand(self._storage.restore_session(lifecycle.session_id_of(session_id), by=self.identity))

    async def arestore(self, session_id: object) -> Session:
        return await self._offload.run(self.restore, session_id)

    def delete(self, session_id: object) -> Deleted:
        """Delete one of theirs, or its archive. Raises `SessionNotFound`, also for what they may only read."""
        session = self.find(session_id)
        if session is None and self._buried(session_id) is not None:
            return self._storage.delete_session(lifecycle.session_id_of(session_id), by=self.identity)
        return self.get(session_id).delete()

    async def adelete(self, session_id: object) -> Deleted:
        return await self._offload.run(self.delete, session_id)

    def prune(self, session_id: object) -> None:
        """Keep only the latest checkpoints of one of theirs. Raises `SessionNotFound`."""
        session = self.get(session_id)
        session._storage.prune_checkpoints([session.id])

    async def aprune(self, session_id: object) -> None:
        await self._offload.run(self.prune, session_id)

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

    async def acopy(self, session_id: object, to: object = None) -> Session:
        return await self._offload.run(self.copy, session_id, to)

    def explain(self, session_id: object) -> Any:
        """As `Sessions.explain`, of one of theirs, also if it is archived or deleted. Raises `SessionNotFound`."""
        session = self.find(session_id)
        if session is not None:
            return self._sessions.explain(session.id)
        buried = self._buried(session_id)
        if buried is None:
            raise SessionNotFound(lifecycle.session_id_of(session_id))
        return explain_absence(buried.session_id, buried, self._parts.settings)

    async def aexplain(self, session_id: object) -> Any:
        return await self._offload.run(self.explain, session_id)

    def search(self, query: str, **options: Any) -> FoundList:
        """As `Sessions.search`, in their own sessions."""
        return self._given(self._sessions.search(query, user_id=self.identity.user_id, **options))

    async def asearch(self, query: str, **options: Any) -> FoundList:
        return await self._offload.run(self.search, query, **options)

    def usage(self, by: UsageBy = "session", **filters: Any) -> Usages:
        """As `Sessions.usage`, of their own sessions."""
        return self._given(self._sessions.usage(by, user_id=self.identity.user_id, **filters))

    async def ausage(self, by: UsageBy = "session", **filters: Any) -> Usages:
        return await self._offload.run(self.usage, by, **filters)

    def tool_calls(self, **filters: Any) -> ToolCalls:
        """As `Sessions.tool_calls`, of their own sessions."""
        return self._given(self._sessions.tool_calls(user_id=self.identity.user_id, **filters))

    async def atool_calls(self, **filters: Any) -> ToolCalls:
        return await self._offload.run(self.tool_calls, **filters)
