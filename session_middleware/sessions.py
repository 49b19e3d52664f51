"""`Sessions`, the door: it opens a database, and hands out the parts that plug into a graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import BaseStore

from session_middleware import lifecycle
from session_middleware.checkpoint.repair import Repairs
from session_middleware.checkpoint.saver import SessionSaver
from session_middleware.checkpoint.serde import StrictSerializer, TypeName
from session_middleware.errors import InvalidSettings, SessionNotFound
from session_middleware.memory.door import MemoryDoor
from session_middleware.memory.embedding import Embedder
from session_middleware.memory.parts import Parts
from session_middleware.memory.store import SessionStore
from session_middleware.model import (
    Clock,
    Ended,
    Identity,
    NewId,
    RepairedCall,
    Salvaged,
    SessionInfo,
    Status,
    Verified,
    utc_now,
)
from session_middleware.recording.journal import Journal
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.witness import CheckpointWitness
from session_middleware.reports import Reports
from session_middleware.session import Session
from session_middleware.settings import SessionSettings, load_settings
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import Deleted, SessionDetails, SessionFilter, Storage, Visit
from session_middleware.storage.sqlite.engine import SqliteStorage
from session_middleware.storage.sqlite.salvaging import salvage
from session_middleware.storage.sqlite.verifying import Progress, verify
from session_middleware.visits import Visits, acting_as, identity_of

G = TypeVar("G")
SessionList: TypeAlias = list[Session]  # in the class below, `list` is its own method
EndedList: TypeAlias = list[Ended]
RepairedCalls: TypeAlias = list[RepairedCall]


class Sessions(Reports, MemoryDoor):
    """The sessions of one database.

    Args:
        storage_url: a path, or ``":memory:"``. The file is made if it is not there.
        clock: returns the time, an aware UTC ``datetime``; for tests.
        new_id: returns an id nobody can guess; for tests.
        serde: what serialises state instead of strict msgpack, such as an ``EncryptedSerializer``.
        allowed_types: classes of the state's values that may be read back beside messages and plain
            values. `attach` finds those of the graph's own schemas by itself.
        settings: those of `SessionSettings`.

    Raises:
        InvalidSettings: a setting is unknown or does not parse.
        StorageError: the file cannot be used; nothing on disk was changed.
    """

    def __init__(
        self,
        storage_url: str | Path | None = None,
        *,
        clock: Clock = utc_now,
        new_id: NewId = lambda: uuid4().hex,
        serde: SerializerProtocol | None = None,
        allowed_types: Iterable[type | TypeName] = (),
        **settings: Any,
    ) -> None:
        if storage_url is not None:
            settings["storage_url"] = str(storage_url)
        self.settings: SessionSettings = load_settings(**settings)
        self.new_id = new_id
        self._clock = clock
        self._storage: Storage = _open_storage(self.settings, clock, new_id)
        self._offload = Offload(self._storage.name, self._storage.together)
        self._visits = Visits()
        self._repairs = Repairs(self._storage, new_id=new_id, on_input=self.settings.repair == "auto")
        self._journal = Journal(
            self._storage,
            self._offload,
            redact=self.settings.redact,
            record=self.settings.record,
            tracking=self.settings.tracking,
        )
        self.recorder = SessionRecorder(
            self._storage,
            self._journal,
            self._visits,
            new_id=new_id,
            clock=clock,
            stream_flush=self.settings.stream_flush.total_seconds(),
        )
        self._witness = CheckpointWitness(self._journal, new_id=new_id)
        self.checkpointer = SessionSaver(
            self._storage,
            self._offload,
            self._visits,
            serde=serde or StrictSerializer(allowed_types),
            witness=self._witness,
            settle=self.recorder.drain,
            repairs=self._repairs,
        )
        self._parts = Parts(
            self._storage,
            self._offload,
            clock=clock,
            new_id=new_id,
            embedder=None if self.settings.index is None else Embedder(self._storage, self.settings.index),
            settle=self.recorder.drain,
        )
        self._visits.on_end(self._parts.wake)
        self.store: BaseStore = SessionStore(self._parts, ttl=self.settings.memory_ttl)  # type: ignore[arg-type]
        self._closing = threading.Lock()

    def close(self) -> None:
        """Finish what is being written and release the file. Closing twice is allowed."""
        with self._closing:
            self._parts.close()
            self._offload.close()
            self._storage.close()

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
        self.close()

    # Plugging in

    def attach(
        self, graph: G, *, checkpointer: bool = True, store: bool = True, recorder: bool = True, replace: bool = False
    ) -> G:
        """A copy of a compiled graph with the parts in place; everything else is kept.

        Raises:
            GraphHasPart: the graph has a checkpointer or a store already, and `replace` is false.
        """
        from session_middleware.attaching import attached

        parts: dict[str, Any] = {}
        if checkpointer:
            parts["checkpointer"] = self.checkpointer
        if store:
            parts["store"] = self.store
        return attached(graph, parts, [self.recorder] if recorder else [], replace=replace)

    def config(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        **configurable: Any,
    ) -> RunnableConfig:
        """A run's config: its session, new if none is named, and who asks. Anything else goes into ``configurable``."""
        thread_id = self.new_id() if session_id is None else lifecycle.session_id_of(session_id)
        who = identity_of({"user_id": user_id, "group_id": group_id}).model_dump(exclude_none=True)
        identity = {"thread_id": thread_id, **who}
        return {"configurable": {**configurable, **identity}, "metadata": identity}

    def acting_as(self, user_id: str | None = None, group_id: str | None = None) -> AbstractContextManager[None]:
        """A context manager: in the block, calls whose config names nobody are made by this user."""
        return acting_as(identity_of({"user_id": user_id, "group_id": group_id}))

    # Sessions

    def open(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        title: str | None = None,
        purpose: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        client: dict[str, Any] | None = None,
        if_exists: Literal["resume", "raise"] = "resume",
    ) -> Session:
        """Open a session or resume it; `Session.opened_as` says which. A new id is made if none is given.

        Raises:
            SessionAccessDenied: it is another user's.
            SessionExists: it is there and `if_exists` is ``"raise"``.
            SessionExpired: it has expired and ``on_resume`` is ``"reject"``.
        """
        chosen = self.new_id() if session_id is None else lifecycle.session_id_of(session_id)
        visit = Visit(chosen, identity_of({"user_id": user_id, "group_id": group_id}))
        details = SessionDetails(title, purpose, tags, metadata, context, client)
        return self._session(self._storage.open_session(visit, details, must_be_new=if_exists == "raise"))

    async def aopen(self, session_id: object = None, **options: Any) -> Session:
        return await self._offload.run(self.open, session_id, **options)

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``."""
        self.recorder.drain()
        info = self._storage.find_session(lifecycle.session_id_of(session_id))
        return None if info is None else self._session(info)

    async def afind(self, session_id: object) -> Session | None:
        return await self._offload.run(self.find, session_id)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`."""
        session = self.find(session_id)
        if session is None:
            raise SessionNotFound(str(session_id))
        return session

    async def aget(self, session_id: object) -> Session:
        return await self._offload.run(self.get, session_id)

    def list(
        self,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        status: Status | None = None,
        tags: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 50,
        after: Session | None = None,
    ) -> SessionList:
        """Sessions, latest activity first. The next page is what follows `after`, the last one had."""
        self.recorder.drain()
        where = SessionFilter(user_id, group_id, status, tuple(tags), since, until)
        before = None if after is None else (after.last_active_at, after.id)
        return [self._session(info) for info in self._storage.list_sessions(where, limit=limit, before=before)]

    async def alist(self, **options: Any) -> SessionList:
        return await self._offload.run(self.list, **options)

    def count(
        self,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        status: Status | None = None,
        tags: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """How many sessions there are, filtered as in `list`."""
        self.recorder.drain()
        return self._storage.count_sessions(SessionFilter(user_id, group_id, status, tuple(tags), since, until))

    async def acount(self, **options: Any) -> int:
        return await self._offload.run(self.count, **options)

    def delete(self, session_id: object) -> Deleted:
        """Delete everything of a session, and say how much that was. Nothing for an unknown id."""
        self.recorder.drain()
        chosen = lifecycle.session_id_of(session_id)
        self.recorder.forget(chosen)
        return self._storage.delete_session(chosen)

    async def adelete(self, session_id: object) -> Deleted:
        return await self._offload.run(self.delete, session_id)

    # Ends

    def sweep(self, now: datetime | None = None, *, dry_run: bool = False) -> EndedList:
        """End what is due, as ``on_expire`` says, and say what that was; `dry_run` only says.

        Sessions with a run in progress in this process are not due. Expiry holds without it:
        a sweep is for the status others read in the database, and for ``on_expire="delete"``.
        """
        self.recorder.drain()
        if not dry_run:
            self._storage.sweep_memories()
        return self._storage.end_expired(now=now or self._clock(), dry_run=dry_run, leave=self._visits.live())

    async def asweep(self, now: datetime | None = None, *, dry_run: bool = False) -> EndedList:
        return await self._offload.run(self.sweep, now, dry_run=dry_run)

    # Damage

    def verify(self, progress: Progress | None = None) -> Verified:
        """Look for damage in the whole file, which others may use meanwhile. Only reads; linear in its size.

        `progress` is told how many of how many sessions are done. The command line offers this and
        `salvage` for files that cannot be opened any more.

        Raises:
            StorageError: SQLite cannot read any of it, or it is in memory.
        """
        self.recorder.drain()
        return verify(self._storage.name, progress)

    async def averify(self, progress: Progress | None = None) -> Verified:
        return await self._offload.run(self.verify, progress)

    def salvage(self, target: str | Path, progress: Progress | None = None) -> Salvaged:
        """Copy what is whole into a new file, and say what was lost. This file is only read.

        `progress` is told of rows. What was pruned or deleted does not come back.

        Raises:
            StorageError: `target` exists or cannot be written, or nothing can be read.
        """
        self.recorder.drain()
        return salvage(self._storage.name, str(target), progress)

    async def asalvage(self, target: str | Path, progress: Progress | None = None) -> Salvaged:
        return await self._offload.run(self.salvage, target, progress)

    def _session(self, info: SessionInfo) -> Session:
        seen = lifecycle.as_of(info, self.settings, self._clock())
        return Session.of(
            seen,
            self._storage,
            self._offload,
            self.recorder,
            self._parts,
            repair=partial(self._repair, info),
            has_ended=partial(self._has_ended, info.id),
        )

    def _has_ended(self, session_id: str) -> bool:
        info = self._storage.find_session(session_id)
        return info is None or lifecycle.status_at(info, self.settings, self._clock()) not in ("active", "idle")

    def _repair(self, info: SessionInfo, *, dry_run: bool) -> RepairedCalls:
        owner = Identity(user_id=info.user_id, group_id=info.group_id)
        config = self.config(info.id, **owner.model_dump())
        return self._repairs.now(self.checkpointer, config, Visit(info.id, owner, is_run=False), dry_run=dry_run)


def _open_storage(settings: SessionSettings, clock: Clock, new_id: NewId) -> Storage:
    url = settings.storage_url
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "sqlite":
        raise InvalidSettings([f"storage_url: {scheme}:// is not supported; name a file, or ':memory:'"])
    path = rest.removeprefix("/") or ":memory:" if separator else url
    if path.startswith("~"):
        path = str(Path(path).expanduser())
    return SqliteStorage(path, settings, clock=clock, new_id=new_id)
