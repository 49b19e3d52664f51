"""`Sessions`: the sessions of one database, and the parts that plug into a graph."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, Unpack
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import BaseStore

from session_middleware import lifecycle
from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.repair import Repairs
from session_middleware.checkpoint.saver import SessionSaver
from session_middleware.checkpoint.serde import StrictSerializer, own_within
from session_middleware.display.html import Rows
from session_middleware.display.progress import progress_bar
from session_middleware.errors import InvalidArgument, StorageError, UserRevoked
from session_middleware.exports.formats import checked_path
from session_middleware.memory.context import CountTokens, about_tokens
from session_middleware.memory.embedding import Embedder, model_of
from session_middleware.memory.indexer import Indexed, MemoryIndexer
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_memory import HasOwnMemory, SessionMemory, check_own
from session_middleware.memory.session_recall import RecallOptions
from session_middleware.memory.store import SessionStore
from session_middleware.models import (
    Clock,
    ErasureReceipt,
    Identity,
    NewId,
    Problem,
    Scope,
    Status,
    SweepResult,
    utc_now,
)
from session_middleware.recording.checkpoint_listener import RecordingListener
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.hooks import EventHooks
from session_middleware.runtime.resources import Resources
from session_middleware.runtime.run_context import (
    RunRegistry,
    acting_as,
    checked_identity,
    identity_of,
    named_identity,
    run_config,
)
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.runtime.sweeper import Sweeper
from session_middleware.session import Session
from session_middleware.settings import LASTING, SessionSettings, lasting_settings, load_settings
from session_middleware.storage import validation
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.factory import open_storage
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext, RunState
from session_middleware.storage.types import (
    DeletionCounts,
    SessionDetails,
    SessionFilter,
)
from session_middleware.user_sessions import SessionAccess, UserSessions

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore

    from session_middleware.memory.scoped_vectorstore import ScopedVectorStore

logger = logging.getLogger("session_middleware")

G = TypeVar("G")
H = TypeVar("H", bound=Callable[..., Any])


def new_session_id() -> str:
    """A random id that cannot be guessed."""
    return uuid4().hex


@validation.suggesting
class Sessions(SessionAccess):
    """The sessions of one database.

    Args:
        storage_url: a path, ``":memory:"``, or a ``postgresql://`` URL. A file that does not exist is created.
        clock: returns the time, an aware UTC ``datetime``; for tests.
        new_id: returns an id that cannot be guessed; for tests.
        serde: serialises state instead of strict msgpack, such as an ``EncryptedSerializer``.
        allowed_types: classes that may be deserialised from state, in addition to messages, plain values and
            (without ``strict_types``) data classes of imported modules. `attach` adds the data classes of the
            graph's own schemas.
        settings: those of `SessionSettings`.

    Raises:
        InvalidSettings: a setting is unknown or does not parse, or an argument is invalid.
        StorageError: the file cannot be used. Nothing on disk was changed.
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
                raise InvalidArgument("storage_url", storage_url, wanted="a path, ':memory:', or a postgresql:// URL")
            settings["storage_url"] = str(storage_url)
        validation.check_callable("clock", clock, "a function that returns a datetime with a time zone")
        validation.checked_moment("clock", clock())
        validation.check_callable("new_id", new_id, "a function that returns a new id, such as lambda: uuid4().hex")
        names = tuple[type | tuple[str, ...], ...]
        allowed = validation.validated("allowed_types", allowed_types, names, "a list of classes, such as [MyType]")
        wanted = "a serializer of LangGraph's, such as an EncryptedSerializer"
        validation.check_kind("serde", serde, SerializerProtocol | None, wanted)
        self.settings: SessionSettings = load_settings(**settings)
        own = StrictSerializer(allowed, only_allowed=self.settings.strict_types)
        self.new_id, self._clock = new_id, clock
        self._allowed_types: set[TypeName] = set()  # of the state of attached graphs
        self._templates: dict[str, SessionDetails] = {}
        self._closing, self._is_closed = threading.Lock(), False
        self._connect(own if serde is None else own_within(serde, own))
        self._keep_settings()

    def _keep_settings(self) -> None:
        """Keep the settings in the database, for the command line.

        An opening that gives none of them, such as that of a notebook, and a role that may not write change nothing.
        """
        if LASTING & self.settings.model_fields_set:
            with suppress(StorageError):
                self._storage.keep_settings(lasting_settings(self.settings))

    def _connect(self, serde: SerializerProtocol) -> None:
        """Open the storage and create the collaborators, each with those that it uses."""
        settings, clock, new_id = self.settings, self._clock, self.new_id
        model = None if settings.index is None else model_of(settings.index)  # raises before a file is created
        storage: Storage = open_storage(settings, clock)
        offload = StorageExecutor(storage.name, storage.run_batch)
        self._storage, self._offload = storage, offload
        self._background = BackgroundWorker(storage, at_once=settings.on_busy != "allow")
        path = "" if storage.name == ":memory:" else os.path.realpath(storage.name)
        self._runs = RunRegistry(
            self._background, tracking=settings.tracking, path=path, busy_timeout=settings.busy_timeout
        )
        buffer = RecordBuffer(storage, offload, settings, clock=clock, new_id=new_id)
        self.recorder = SessionRecorder(buffer, self._runs, stream_flush=settings.stream_flush.total_seconds())
        self._run_queue = RunQueue(
            *(storage, offload, self._background, self._runs),
            flush=self.recorder.drain,
            on_busy=settings.on_busy,
            timeout_seconds=settings.busy_timeout.total_seconds(),
        )
        if settings.on_busy == "reject":
            self.recorder.acquire = self._run_queue.acquire
        self._repairs = Repairs(storage, new_id=new_id, on_input=settings.repair == "auto")
        listener = RecordingListener(buffer)
        self.checkpointer = SessionSaver(
            *(storage, offload, self._runs, self._run_queue),
            serde=serde,
            listener=listener,
            flush=self.recorder.drain,
            repairs=self._repairs,
        )
        self._indexer = MemoryIndexer(
            *(storage, offload),
            clock=clock,
            new_id=new_id,
            access=settings.access,
            embedder=None if model is None else Embedder(storage, model),
            settle=self.recorder.drain,
            active_context=self._runs.active_context,
        )
        self.store: BaseStore = SessionStore(self._indexer, ttl=settings.memory_ttl)  # type: ignore[arg-type]
        self.hooks, self._resources = EventHooks(storage), Resources(offload, limit=settings.max_open_resources)
        self._runs.on_begin = listener.begin
        self._runs.on_first_read = self.recorder.begin_called_graph
        self._runs.on_end = self._indexer.wake
        self._sweeper = Sweeper(
            *(storage, settings, self.hooks, self._resources), clock=clock, flush=self._flush, forget=self._forget
        )
        self._sweeper.schedule(self._background)

    @property
    def _operator(self) -> Sessions:
        return self

    def __repr__(self) -> str:
        return f"Sessions({self._storage.name!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds an open database and cannot be pickled or copied; keep the path, and open it with "
            f"Sessions({self._storage.name!r})"
        )

    def close(self) -> None:
        """Flush the record, call the hooks for it, and close the file. Closing twice is allowed."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            self._resources.close_all()
            for finish in (self.settle, self._background.close):
                try:
                    finish()
                except StorageError as error:  # the file must still be closed
                    logger.warning("session_middleware could not record all that had ended (%s)", error)
            self._indexer.close()
            self._offload.close()
            self._storage.close()

    async def aclose(self) -> None:
        """`close`, for asyncio."""
        if not self._is_closed:
            await self._resources.aclose_all()
        await asyncio.to_thread(self.close)  # not on the storage's threads, for whose end it waits

    def settle(self) -> None:
        """Flush the record, call the hooks for it, and close the resources of sessions that have ended."""
        self._flush()
        self.hooks.deliver()
        self._sweeper.close_resources()

    def _flush(self, session_id: str | None = None) -> None:
        """Commit what the runs of this process have buffered, of one session or of all, before it is read."""
        self.recorder.drain(session_id)
        self._background.release_ended_leases(with_row=session_id is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Attaching to a graph

    def attach(
        self, graph: G, *, checkpointer: bool = True, store: bool = True, recorder: bool = True, replace: bool = False
    ) -> G:
        """A copy of a compiled graph with the checkpointer, store and recorder; everything else is unchanged.

        Raises:
            GraphHasPart: the graph has a checkpointer or a store already, or the recorder of another
                `Sessions`, and `replace` is false.
        """
        from session_middleware.recording.attach import attached

        parts = ({"checkpointer": self.checkpointer} if checkpointer else {}) | ({"store": self.store} if store else {})
        chosen = self.recorder if recorder else None
        return attached(graph, parts, chosen, replace=replace, allowed=self._allowed_types)

    def config(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        group_ids: Iterable[str] = (),
        **configurable: Any,
    ) -> RunnableConfig:
        """The config of a run: its session id, a new one by default, and the identity of the caller.

        Args:
            group_id: the group of a session that this run opens.
            group_ids: further groups of the user.
            configurable: other keys of ``configurable``. With ``on_busy="wait"``, ``"reject"`` or ``"allow"`` the run
                waits for another one of its session, is refused, or runs beside it, whatever the settings say;
                ``busy_timeout="5m"`` is its longest wait, and ``"never"`` means no limit.

        Raises:
            TypeError: a name is similar to one of these, such as ``user``.
        """
        validation.check_names(configurable, "config", ("user_id", "group_id", "group_ids", "session_id"))
        return run_config(self._id_of(session_id), named_identity(user_id, group_id, group_ids), configurable)

    def acting_as(
        self, user_id: str | None = None, group_id: str | None = None, group_ids: Iterable[str] = ()
    ) -> AbstractContextManager[None]:
        """A context manager that gives this identity to calls in its block whose config has none."""
        return acting_as(checked_identity(user_id, group_id, group_ids))

    def for_user(self, user_id: str, group_ids: Iterable[str] = (), *, group_id: str | None = None) -> UserSessions:
        """The sessions of one user: each access is checked, and sessions of other users are not found.

        Raises `InvalidArgument` for ``None``, which would give access to all sessions, and `InvalidIdentity`.
        """
        if user_id is None:
            raise InvalidArgument("user_id", user_id, wanted="the id of a user")
        return UserSessions(self, checked_identity(user_id, group_id, group_ids))

    # Opening and reading

    @validation.spelled_out(validation.SessionOptions)
    def open(
        self,
        session_id: object = None,
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        if_exists: Literal["resume", "raise"] = "resume",
        template: str | None = None,
        **options: Unpack[validation.SessionOptions],
    ) -> Session:
        """Open or resume a session, by default with a new id; `Session.opened_as` says which.

        The options from `idle_timeout` to `on_resume` override the settings for this session. A timeout
        of ``"never"`` means none. A new session gets the options of the `template` too, where they are not given here.

        Raises:
            InvalidArgument: an argument is invalid. Nothing was written.
            SessionAccessDenied: the session is owned by another user.
            SessionExists: the session exists and `if_exists` is ``"raise"``.
            SessionExpired: it has expired and ``on_resume`` is ``"reject"``, or is archived and it is not ``"fresh"``.
            SessionLimitReached: the limit of open sessions is reached, and ``on_limit`` is ``"reject"``.
        """
        return self._open(self._id_of(session_id), named_identity(user_id, group_id), if_exists, template, options)

    @validation.spelled_out(validation.SessionOptions)
    def template(self, name: str, **options: Unpack[validation.SessionOptions]) -> None:
        """Register options for new sessions of one kind, in this object; ``open(id, template=name)`` applies them.

        Raises `InvalidArgument` and `TypeError`, as `open` does.
        """
        validation.check_text("name", name, at_least=1)
        self._templates[name] = validation.details_of(**options)

    def claim(self, session_id: object, *, user_id: str) -> Session:
        """Give a session without an owner its owner, as when an anonymous visitor signs in. Returns it as changed.

        Its forks get the owner too, and its messages become part of the user's memory. An event ``claimed`` records
        it. A claim by the owner changes nothing.

        Raises:
            SessionNotFound: there is no such session.
            SessionAccessDenied: it has another owner.
            SessionBusy: a run is in progress in it, or in a fork. Claim it after that run.
            SessionLimitReached: the user has as many open sessions as ``max_sessions_per_user`` allows.
        """
        return self._claim(session_id, lifecycle.owner_id_of("user_id", user_id))

    # Maintenance

    def sweep(
        self,
        now: datetime | None = None,
        *,
        dry_run: bool = False,
        older_than: validation.Timeout = None,
        status: Status | None = None,
    ) -> Rows[SweepResult]:
        """Apply ``on_expire`` and ``retention`` to the sessions that are due. Returns them; `dry_run` only lists them.

        A dry run also estimates the bytes of each session.

        Pinned sessions, and sessions with a run in progress, are not due. Expiry holds without a sweep: a sweep
        updates the stored status, and prunes, archives and deletes. One process sweeps at a time; a sweep beside
        another does nothing and returns nothing.

        Args:
            older_than: delete the sessions that have been inactive for this long instead, such as ``"90d"``.
            status: only sessions with this status; with `older_than` only.
        """
        validation.check_status(status)
        found = self._sweeper.sweep(now, dry_run=dry_run, older_than=older_than, status=status)
        return Rows(found, of=SweepResult)

    def check(self, *, repair: bool = False, deep: bool = False) -> Rows[Problem]:
        """Validate the database: damage, lost rows, wrong counters, orphans, runs of killed processes.

        Damage is listed and never raised. The cost is linear in the number of rows; other writers may continue.

        Args:
            repair: recompute counters and SQLite's indexes, delete orphans, and end runs of dead processes, each
                with an event, until nothing more can be repaired. Problems with `repaired=False` are left. A file
                whose pages or schema are damaged is not changed.
            deep: also read every row, and compare state and files, which have checksums, with these.
        """
        self._flush()
        return Rows(self._storage.check(repair=repair, deep=deep), of=Problem)

    def backup(self, path: str | Path, *, keep: int | None = None, progress: bool = False) -> Path:
        """Write a copy of the database beside running writers, check the copy, and return its path.

        The copy is one SQLite file, the state of one moment. It replaces an older backup when it is complete. The
        folder of archives is not copied. ``session-middleware restore-backup`` puts a backup in the place of a damaged
        file. A PostgreSQL database is backed up with ``pg_dump``; here, all sessions and memories are exported, for
        `import_from`.

        Args:
            path: of the file. If it is an existing folder, or with `keep`, a file in it is named by the time.
            keep: the number of backups in the folder that remain; older ones of this database are deleted.
            progress: show a progress bar on the terminal.

        Raises:
            StorageError: the copy cannot be written, or its pages are damaged because those of the database are. Older
                backups remain. Of damaged rows, one is logged.
        """
        target, is_server = checked_path(path), "://" in self._storage.name
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            raise InvalidArgument("keep", keep, wanted="the number of backups to keep, such as 7")
        self._flush()
        stem, suffix = Path(self._storage.name).stem.strip(":"), ".db"
        if is_server:
            stem, suffix = "sessions", ".jsonl.gz"
        folder = target if keep is not None or target.is_dir() else None
        if folder is not None:
            target = folder / f"{stem}-{self._clock():%Y%m%d-%H%M%S-%f}{suffix}"
        if is_server:
            logger.warning("%s is a server's database: back it up with pg_dump; %s is an export", self, target)
        with progress_bar("backing up", wanted=progress) as report:
            self._storage.back_up(target, progress=report)
        if folder is not None and keep is not None:
            dated = re.compile(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}-\d{{6}}{re.escape(suffix)}")
            for old in sorted(each for each in folder.iterdir() if dated.fullmatch(each.name))[:-keep]:
                old.unlink()
        return target

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool = False) -> ErasureReceipt:
        """Delete all data of a user: sessions with state, record and memories, user memories, archives, mentions.

        The user's messages in sessions of other users stay, without the user's id. If a reader in another
        process still holds an older snapshot, the receipt has `pending`; call again when it has ended.
        """
        chosen = lifecycle.owner_id_of("user_id", user_id)
        self._flush()
        owned = [session.id for session in self._storage.list_sessions(SessionFilter(user_id=chosen), limit=None)]
        receipt = self._storage.forget_user(chosen, dry_run=dry_run)
        if not dry_run:
            for session_id in owned:
                self._forget(session_id)
            self._resources.close(owned)
        return receipt

    def revoke(self, user_id: str, *, reason: str | None = None, lift: bool = False) -> builtins.list[str]:
        """Deny all access to a user, in all processes, and abandon the user's open sessions. Returns their ids.

        `lift` ends the denial; the sessions stay abandoned.
        """
        chosen = lifecycle.owner_id_of("user_id", user_id)
        validation.check_optional_text("reason", reason)
        self._flush()
        ended = self._storage.revoke_user(chosen, reason=reason, lift=lift)
        self._resources.close(ended)
        return ended

    def list_revoked(self, user_ids: Iterable[str]) -> builtins.list[str]:
        """Those of these users that `revoke` denies access. One read, for a server that keeps connections open."""
        wanted = "a list of the ids of users"
        chosen = validation.validated("user_ids", user_ids, tuple[str, ...], wanted)
        return self._storage.list_revoked({lifecycle.owner_id_of("user_ids", user_id) for user_id in chosen})

    # Hooks
    #
    # A hook takes an `Event`, and may be ``async``. It is called soon after the commit, on a thread of its own (an
    # ``async`` hook on an event loop of its own), one call at a time and in order, for the changes that this
    # `Sessions` commits, its sweeps included. `settle` and `close` wait for pending calls; a process that is
    # killed makes none. `Event.seq` is 0 for an event that the record does not have: a run's error, and a deletion.

    def on_opened(self, hook: H) -> H:
        """Call the hook when a session was opened or forked."""
        return self.hooks.add("opened", hook)

    def on_resumed(self, hook: H) -> H:
        """Call the hook when a session was resumed, revived or reopened."""
        return self.hooks.add("resumed", hook)

    def on_state_changed(self, hook: H) -> H:
        """Call the hook when a session's status has changed; not for idle, which no write records."""
        return self.hooks.add("state_changed", hook)

    def on_closed(self, hook: H) -> H:
        """Call the hook when a session has ended. `Event.kind` and `Event.reason` say how and why."""
        return self.hooks.add("closed", hook)

    def on_error(self, hook: H) -> H:
        """Call the hook when a run has ended with an error, which is in `Event.detail`."""
        return self.hooks.add("error", hook)

    def on_expiring(self, hook: H) -> H:
        """Call the hook with a `SweepResult` before a sweep expires a session. It may return a duration to postpone.

        It runs on the sweep's thread. A session is postponed once, and again only after it was active.
        """
        return self.hooks.add("expiring", hook)

    # Memory

    def memory(self, config: RunnableConfig) -> SessionMemory:
        """The memory of the session and the caller that a run's config names.

        Raises:
            InvalidSessionId: the config names no session.
            SessionAccessDenied: the session is another user's.
            UserRevoked: `Sessions.revoke` has revoked the caller.
        """
        validation.check_given("config", config, Mapping, "the config of a run, such as sessions.config('thread-42')")
        configurable = config.get("configurable") or {}
        session_id = lifecycle.session_id_of(configurable.get("thread_id"))
        identity = identity_of(configurable)
        if self._storage.list_revoked([identity.user_id]):
            raise UserRevoked(session_id, user_id=identity.user_id)
        session = self._storage.find_session(session_id)
        if session is None and (primary := self._primary_of(session_id)) != session_id:
            session_id, session = primary, self._storage.find_session(primary)
        if session is not None:
            lifecycle.check_access(session, identity, self.settings.access)
        incarnation = None if session is None else session.incarnation
        context = RunContext(session_id, identity, is_run=False, state=RunState(incarnation=incarnation))
        return SessionMemory(
            *(self._indexer, self._storage, self._runs.active_context(configurable) or context),
            owner_id=identity.user_id if session is None else session.user_id,
            group_id=identity.group_id,
        )

    @validation.spelled_out(RecallOptions)
    def retriever(self, *, session: HasOwnMemory | None = None, **options: Unpack[RecallOptions]) -> BaseRetriever:
        """A LangChain retriever over the memories of `session`, or of the session that the run's config names.

        Options that are not given have the values of `SessionMemory.recall`, and `k` is 5. `name`, `tags` and
        `metadata` are LangChain's, for tracing.
        """
        from session_middleware.memory.retriever import MemoryRetriever

        return MemoryRetriever(sessions=self, memory=_own(session), **options)

    @validation.spelled_out(RecallOptions)
    def augment(
        self,
        retriever: BaseRetriever,
        *,
        memory_weight: float = 0.8,
        budget_tokens: int | None = None,
        count_tokens: CountTokens = about_tokens,
        complete: Callable[[str, Sequence[str]], str] = complete,
        session: HasOwnMemory | None = None,
        **options: Unpack[RecallOptions],
    ) -> BaseRetriever:
        """A retriever of documents and of the session's memories; see `AugmentedRetriever`.

        A question that depends on the last turns is completed with their words, or by `complete`, a function of the
        question and the texts before it. `memory_weight` is the weight of a memory's score beside a document's. The
        options are those of `retriever`, and `k` is 8.
        """
        from session_middleware.memory.retriever import AugmentedRetriever

        return AugmentedRetriever(
            retriever=retriever,
            sessions=self,
            memory=_own(session),
            memory_weight=memory_weight,
            budget_tokens=budget_tokens,
            count_tokens=count_tokens,
            complete=complete,
            **options,
        )

    def scope(
        self,
        vectorstore: VectorStore,
        *,
        scope: Scope = "session",
        scopes: Sequence[Scope] = SCOPES,
        session: HasOwnMemory | None = None,
        filter_for: Callable[[str, Sequence[str]], Any] | None = None,
    ) -> ScopedVectorStore:
        """A vector store whose documents belong to a session, its user or its group.

        Args:
            vectorstore: any LangChain vector store.
            scope: the scope of documents that are added.
            scopes: the scopes of documents that are found.
            session: this session instead of the one that the run's config names.
            filter_for: builds the store's filter from a metadata key and its allowed values; by default
                ``{key: {"$in": values}}``, or a function for LangChain's in-memory store.
        """
        from session_middleware.memory import scoped_vectorstore

        if filter_for is not None:
            validation.check_callable("filter_for", filter_for, "a function of a metadata key and its allowed values")
        return scoped_vectorstore.ScopedVectorStore(
            vectorstore,
            self,
            memory=_own(session),
            scope=scope,
            scopes=scopes,
            filter_for=filter_for or scoped_vectorstore.filter_for(vectorstore),
        )

    def index_memory(self, *, rebuild: bool = False) -> Indexed:
        """Index the words of all messages now and, where ``index`` is set, compute all missing vectors.

        The call is optional: a search finds all words anyway, and vectors are computed in the background after a
        run. `rebuild` computes all vectors again, which is necessary after a change of the model.

        Raises:
            EmbeddingFailed: the model failed during a `rebuild`. If it failed at the start, the old vectors are
                kept; otherwise the next call computes the missing ones.
        """
        return self._indexer.index(rebuild=rebuild)

    # The asynchronous twins

    asettle = async_twin(settle)
    aopen = async_twin(open)
    aclaim = async_twin(claim)
    asweep = async_twin(sweep)
    acheck = async_twin(check)
    abackup = async_twin(backup)
    aforget_user = async_twin(forget_user)
    arevoke = async_twin(revoke)
    alist_revoked = async_twin(list_revoked)
    amemory = async_twin(memory)
    aindex_memory = async_twin(index_memory)

    # Internals, shared with `Session` and `UserSessions`

    def _id_of(self, given: object) -> str:
        """The id, or a new one for ``None``."""
        return lifecycle.session_id_of(self.new_id() if given is None else given)

    def _primary_of(self, session_id: str) -> str:
        """The id of the session that a session was merged into; of any other one its own."""
        tombstone = self._storage.find_tombstone(session_id)
        while tombstone is not None and tombstone.merged_into is not None:
            session_id = tombstone.merged_into
            found = self._storage.find_session(session_id)
            tombstone = None if found else self._storage.find_tombstone(session_id)
        return session_id

    def _delete(self, session_id: str, storage: Storage, identity: Identity | None = None) -> DeletionCounts:
        """Delete a session through `storage`, also one whose row cannot be read."""
        self.recorder.drain(session_id)
        deleted = storage.delete_session(session_id, by=identity)
        self._forget(session_id)
        self._resources.close([session_id])
        return deleted

    def _forget(self, session_id: str) -> None:
        """Drop what this process caches of a deleted session."""
        self.recorder.forget(session_id)
        self._runs.forget(session_id)


def _own(session: HasOwnMemory | None) -> SessionMemory | None:
    check_own(session)
    return None if session is None else session.memory
