"""`Sessions`, the door: it opens a database, and hands out the parts that plug into a graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeAlias, TypeVar, Unpack
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import BaseStore

from session_middleware import lifecycle
from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.serde import StrictSerializer, own_within
from session_middleware.display.html import Rows
from session_middleware.errors import InvalidArgument, SessionNotFound, StorageError
from session_middleware.memory.api import MemoryAPI
from session_middleware.memory.store import SessionStore
from session_middleware.models import Clock, Identity, NewId, RepairedCall, SessionInfo, Status, utc_now
from session_middleware.operating import Operated
from session_middleware.reports import Reports
from session_middleware.runtime.hooks import Hookable
from session_middleware.runtime.run_context import acting_as, as_config, checked_identity, named_identity
from session_middleware.services import assemble
from session_middleware.session import Session
from session_middleware.settings import SessionSettings, load_settings
from session_middleware.storage import validation
from session_middleware.storage.executor import async_twin, run_apart
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import SessionFilter
from session_middleware.sweeper import Sweeper
from session_middleware.user_sessions import UserSessions

logger = logging.getLogger("session_middleware")

G = TypeVar("G")
SessionList: TypeAlias = list[Session]  # in the class below, `list` is its own method
RepairedCalls: TypeAlias = list[RepairedCall]


def new_session_id() -> str:
    """An id that nobody can guess."""
    return uuid4().hex


@validation.suggesting
class Sessions(Operated, Reports, Hookable, MemoryAPI):
    """The sessions of one database.

    Args:
        storage_url: a path, or ``":memory:"``. The file is made if it is not there.
        clock: returns the time, an aware UTC ``datetime``; for tests.
        new_id: returns an id nobody can guess; for tests.
        serde: what serialises state instead of strict msgpack, such as an ``EncryptedSerializer``.
        allowed_types: classes of the state's values that may be read back although they are no data
            classes of an imported module, or with ``strict_types`` beside messages and plain values.
            `attach` finds the data classes of the graph's own schemas by itself.
        settings: those of `SessionSettings`.

    Raises:
        InvalidSettings: a setting is unknown or does not parse, or an argument is not what it should be.
        StorageError: the file cannot be used; nothing on disk was changed.
    """

    @validation.spelled_out(SessionSettings)
    def __init__(
        self,
        storage_url: str | Path | None = None,
        *,
        clock: Clock = utc_now,
        new_id: NewId = new_session_id,
        serde: SerializerProtocol | None = None,
        allowed_types: Iterable[type | TypeName] = (),
        **settings: Any,
    ) -> None:
        if storage_url is not None:
            if not isinstance(storage_url, (str, Path)):
                raise InvalidArgument("storage_url", storage_url, wanted="a path, or ':memory:'")
            settings["storage_url"] = str(storage_url)
        validation.check_clock(clock)
        validation.check_callable("new_id", new_id, "a function that returns a new id, such as lambda: uuid4().hex")
        allowed = validation.checked_types(allowed_types)
        validation.check_serializer(serde)
        self.settings: SessionSettings = load_settings(**settings)
        own = StrictSerializer(allowed, only_allowed=self.settings.strict_types)
        serde = own if serde is None else own_within(serde, own)
        self.new_id = new_id
        self._clock = clock
        self._parts = parts = assemble(self.settings, serde, clock=clock, new_id=new_id)
        self._storage, self._offload, self._memory = parts.storage, parts.offload, parts.memory
        self._pulse, self._visits, self._resources = parts.pulse, parts.visits, parts.resources
        self.recorder, self.checkpointer, self.hooks = parts.recorder, parts.checkpointer, parts.hooks
        self.store: BaseStore = SessionStore(parts.memory, ttl=self.settings.memory_ttl)  # type: ignore[arg-type]
        self._sweeper = Sweeper(self._parts)
        self._sweeper.go_on()
        self._closing, self._is_closed = threading.Lock(), False

    def __repr__(self) -> str:
        return f"Sessions({self._storage.name!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds an open database and cannot be pickled or copied; keep the path, and open it with "
            f"Sessions({self._storage.name!r}) where it is needed"
        )

    def close(self) -> None:
        """Finish what is being written, call the hooks for it, and release the file. Closing twice is allowed."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            self._resources.close_all()
            for finish in (self.settle, self._pulse.close):
                try:
                    finish()
                except StorageError as error:  # what cannot be written any more must not keep the file open
                    logger.warning("session_middleware could not write down all that had ended (%s)", error)
            self._memory.close()
            self._offload.close()
            self._storage.close()

    async def aclose(self) -> None:
        """`close`, for asyncio."""
        await self._resources.aclose_all()
        await run_apart(self.close)

    def settle(self) -> None:
        """Wait until what was handed over is written, hooks have been called for it, and what has ended is closed."""
        self.recorder.drain()
        self._pulse.settle()
        self.hooks.deliver()
        self._sweeper.close_resources()

    asettle = async_twin(settle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # Plugging in

    def attach(
        self, graph: G, *, checkpointer: bool = True, store: bool = True, recorder: bool = True, replace: bool = False
    ) -> G:
        """A copy of a compiled graph with the parts in place; everything else is kept.

        Raises:
            GraphHasPart: the graph has a checkpointer or a store already, or the recorder of another
                `Sessions`, and `replace` is false.
        """
        from session_middleware.recording.attach import attached

        parts: dict[str, Any] = {}
        if checkpointer:
            parts["checkpointer"] = self.checkpointer
        if store:
            parts["store"] = self.store
        chosen = self.recorder if recorder else None
        return attached(graph, parts, chosen, replace=replace, allowed=self._parts.allowed)

    def config(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        group_ids: Iterable[str] = (),
        **configurable: Any,
    ) -> RunnableConfig:
        """A run's config: its session, new if none is named, and who asks. Anything else goes into ``configurable``.

        Args:
            group_id: the group that a session opened by this run is for.
            group_ids: further groups the user is in.

        Raises:
            TypeError: a name that is nearly one of these, such as ``user``, and would name nobody.
        """
        validation.check_names(configurable, "config", ("user_id", "group_id", "group_ids", "session_id"))
        thread_id = self.new_id() if session_id is None else lifecycle.session_id_of(session_id)
        who = named_identity(user_id, group_id, group_ids)
        identity = {"thread_id": thread_id, **as_config(who)}
        return {"configurable": {**configurable, **identity}, "metadata": identity}

    def acting_as(
        self, user_id: str | None = None, group_id: str | None = None, group_ids: Iterable[str] = ()
    ) -> AbstractContextManager[None]:
        """A context manager: in the block, calls whose config names nobody are made by this user."""
        return acting_as(checked_identity(user_id, group_id, group_ids))

    def for_user(self, user_id: str, group_ids: Iterable[str] = (), *, group_id: str | None = None) -> UserSessions:
        """The same door with every access checked: what is not theirs is not found.

        Raises `InvalidArgument` for ``None``, which would be everybody's door, and `InvalidIdentity`.
        """
        if user_id is None:
            raise InvalidArgument("user_id", user_id, wanted="the id of the user who asks: who has none has no door")
        return UserSessions(self, self._parts, checked_identity(user_id, group_id, group_ids))

    # Sessions

    @validation.spelled_out(validation.SessionOptions)
    def open(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        if_exists: Literal["resume", "raise"] = "resume",
        **options: Unpack[validation.SessionOptions],
    ) -> Session:
        """Open a session or resume it; `Session.opened_as` says which. A new id is made if none is given.

        From `idle_timeout` to `on_resume` they are settings of this session alone; a timeout of
        ``"never"`` is none, whatever the settings of all say.

        Raises:
            InvalidArgument: what is given cannot be used; nothing was written.
            SessionAccessDenied: it is another user's.
            SessionExists: it is there and `if_exists` is ``"raise"``.
            SessionExpired: it has expired and ``on_resume`` is ``"reject"``, or is archived and it is not ``"fresh"``.
            SessionLimitReached: as many are open as may be, and ``on_limit`` is ``"reject"``.
        """
        chosen = self.new_id() if session_id is None else lifecycle.session_id_of(session_id)
        visit = RunContext(chosen, named_identity(user_id, group_id))
        validation.check_choice("if_exists", if_exists, ("resume", "raise"))
        details = validation.details_of(**options)
        self._pulse.start()
        info = self._storage.open_session(visit, details, must_be_new=if_exists == "raise")
        self.hooks.wake()
        return self._session(info)

    aopen = async_twin(open)

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``."""
        self._settle()
        info = self._storage.find_session(lifecycle.session_id_of(session_id))
        return None if info is None else self._session(info)

    afind = async_twin(find)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`, which says so where it is archived."""
        session = self.find(session_id)
        if session is None:
            chosen = lifecycle.session_id_of(session_id)
            buried = self._storage.find_tombstone(chosen)
            raise SessionNotFound(chosen, archived=buried is not None and buried.archive is not None)
        return session

    aget = async_twin(get)

    @validation.spelled_out(validation.SessionFilters)
    def list(
        self,
        *,
        visible_to: Identity | None = None,
        limit: int | None = 50,
        after: Session | None = None,
        **filters: Unpack[validation.SessionFilters],
    ) -> SessionList:
        """Sessions, latest activity first. The next page is what follows `after`, the last one had.

        One whose row was damaged and cannot be read is left out, with a warning; `get` of it raises `StorageError`.

        Raises:
            UnknownStatus: there is no such status.
        """
        self._settle()
        where = _filter(visible_to, **filters)
        validation.check_after(after, SessionInfo, "the last session of the page before")
        before = None if after is None else (after.last_active_at, after.id)
        found = self._storage.list_sessions(where, limit=validation.checked_limit(limit), before=before)
        return Rows(self._session(info) for info in found)

    alist = async_twin(list)

    @validation.spelled_out(validation.SessionFilters)
    def count(self, *, visible_to: Identity | None = None, **filters: Unpack[validation.SessionFilters]) -> int:
        """How many sessions there are, filtered as in `list`."""
        self._settle()
        where = _filter(visible_to, **filters)
        return self._storage.count_sessions(where)

    acount = async_twin(count)

    def _session(self, info: SessionInfo) -> Session:
        return Session.of(info, self._parts)


def _filter(
    visible_to: Identity | None,
    *,
    user_id: str | None = None,
    group_id: str | None = None,
    status: Status | None = None,
    tags: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> SessionFilter:
    return SessionFilter(
        user_id,
        group_id,
        validation.checked_status(status),
        () if tags is None else validation.texts_of("tags", tags),
        validation.checked_moment("since", since),
        validation.checked_moment("until", until),
        visible_to,
    )
