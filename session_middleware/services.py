"""The parts of one `Sessions`, each made with what it leans on: what a session in hand needs of them as well."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.checkpoint.classes import TypeName
from session_middleware.checkpoint.repair import Recorded, Repairs
from session_middleware.checkpoint.saver import SessionSaver
from session_middleware.memory.embedding import Embedder
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.models import Clock, Identity, NewId, RepairedCall, SessionInfo
from session_middleware.recording.checkpoint_listener import RecordingListener
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.hooks import EventHooks
from session_middleware.runtime.resources import Resources
from session_middleware.runtime.run_context import RunRegistry, identity_of
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.settings import SessionSettings
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.factory import open_storage
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext, SessionHandle


@dataclass(frozen=True, slots=True)
class Services:
    settings: SessionSettings
    clock: Clock
    new_id: NewId
    storage: Storage
    offload: StorageExecutor
    pulse: BackgroundWorker
    visits: RunRegistry
    turns: RunQueue
    recorder: SessionRecorder
    repairs: Repairs
    checkpointer: SessionSaver
    memory: MemoryIndexer
    hooks: EventHooks
    resources: Resources
    allowed: set[TypeName] = field(default_factory=set)  # types of the state of graphs that were attached
    by: Identity | None = None  # who has a session in hand; None: the operator
    hand: SessionHandle | None = None  # and theirs

    def group_of(self, session: SessionInfo) -> str | None:
        """The session's group, if whoever has it in hand is in it."""
        return session.group_id if self.by is None or session.group_id in self.by.groups else None

    def repair(
        self, config: RunnableConfig, recorded: Recorded, *, block: RunContext | None, dry_run: bool
    ) -> list[RepairedCall]:
        """See `Session.repair`. `block` is the run of the block by hand that this is called in."""
        configurable = config["configurable"]
        visit = block if self.visits.inside(configurable) is None else None  # a graph's run answers its calls itself
        visit = visit or RunContext(configurable["thread_id"], identity_of(configurable), is_run=False)
        saver = self.checkpointer.with_allowlist(frozenset(self.allowed)) if self.allowed else self.checkpointer
        return self.repairs.now(cast("SessionSaver", saver), config, visit, recorded, dry_run=dry_run)


def assemble(settings: SessionSettings, serde: SerializerProtocol, *, clock: Clock, new_id: NewId) -> Services:
    storage = open_storage(settings, clock, new_id)
    offload = StorageExecutor(storage.name, storage.run_batch)
    pulse = BackgroundWorker(storage, at_once=settings.on_busy != "allow")
    path = "" if settings.storage_url == ":memory:" else os.path.realpath(settings.storage_url)
    visits = RunRegistry(pulse, tracking=settings.tracking, path=path)
    recorder = _recorder(settings, storage, offload, visits, clock=clock, new_id=new_id)
    turns = _turns(settings, storage, offload, pulse, visits, recorder)
    repairs = Repairs(storage, new_id=new_id, on_input=settings.repair == "auto")
    witness = RecordingListener(recorder.buffer)
    visits.on_begin(witness.begin)
    checkpointer = SessionSaver(
        storage,
        offload,
        visits,
        turns,
        serde=serde,
        listener=witness,
        flush=recorder.drain,
        repairs=repairs,
    )
    embedder = None if settings.index is None else Embedder(storage, settings.index)
    memory = MemoryIndexer(
        *(storage, offload),
        clock=clock,
        new_id=new_id,
        access=settings.access,
        embedder=embedder,
        settle=recorder.drain,
        inside=visits.inside,
    )
    hooks, resources = EventHooks(storage), Resources(offload, limit=settings.max_open_resources)
    return Services(
        *(settings, clock, new_id, storage, offload, pulse, visits, turns),
        *(recorder, repairs, checkpointer, memory, hooks, resources),
    )


def _recorder(
    settings: SessionSettings,
    storage: Storage,
    offload: StorageExecutor,
    visits: RunRegistry,
    *,
    clock: Clock,
    new_id: NewId,
) -> SessionRecorder:
    buffer = RecordBuffer(
        storage,
        offload,
        clock=clock,
        new_id=new_id,
        redact=settings.redact,
        record=settings.record,
        tracking=settings.tracking,
    )
    return SessionRecorder(buffer, visits, stream_flush=settings.stream_flush.total_seconds())


def _turns(
    settings: SessionSettings,
    storage: Storage,
    offload: StorageExecutor,
    pulse: BackgroundWorker,
    visits: RunRegistry,
    recorder: SessionRecorder,
) -> RunQueue:
    return RunQueue(
        storage,
        offload,
        pulse,
        visits,
        settle=recorder.drain,
        on_busy=settings.on_busy,
        timeout_seconds=settings.busy_timeout.total_seconds(),
    )
