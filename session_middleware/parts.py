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
from session_middleware.hooks import Hooks
from session_middleware.memory.embedding import Embedder
from session_middleware.memory.parts import MemoryParts
from session_middleware.model import Clock, Identity, NewId, RepairedCall, SessionInfo
from session_middleware.pulse import Pulse
from session_middleware.recording.journal import Journal
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.witness import CheckpointWitness
from session_middleware.resources import Resources
from session_middleware.settings import SessionSettings
from session_middleware.storage.offload import Offload
from session_middleware.storage.opening import open_storage
from session_middleware.storage.port import Storage
from session_middleware.storage.visit import Hand, Visit
from session_middleware.turns import Turns
from session_middleware.visits import Visits, identity_of


@dataclass(frozen=True, slots=True)
class Parts:
    settings: SessionSettings
    clock: Clock
    new_id: NewId
    storage: Storage
    offload: Offload
    pulse: Pulse
    visits: Visits
    turns: Turns
    recorder: SessionRecorder
    repairs: Repairs
    checkpointer: SessionSaver
    memory: MemoryParts
    hooks: Hooks
    resources: Resources
    allowed: set[TypeName] = field(default_factory=set)  # types of the state of graphs that were attached
    by: Identity | None = None  # who has a session in hand; None: the operator
    hand: Hand | None = None  # and theirs

    def group_of(self, session: SessionInfo) -> str | None:
        """The session's group, if whoever has it in hand is in it."""
        return session.group_id if self.by is None or session.group_id in self.by.groups else None

    def repair(
        self, config: RunnableConfig, recorded: Recorded, *, block: Visit | None, dry_run: bool
    ) -> list[RepairedCall]:
        """See `Session.repair`. `block` is the run of the block by hand that this is called in."""
        configurable = config["configurable"]
        visit = block if self.visits.inside(configurable) is None else None  # a graph's run answers its calls itself
        visit = visit or Visit(configurable["thread_id"], identity_of(configurable), is_run=False)
        saver = self.checkpointer.with_allowlist(frozenset(self.allowed)) if self.allowed else self.checkpointer
        return self.repairs.now(cast("SessionSaver", saver), config, visit, recorded, dry_run=dry_run)


def assemble(settings: SessionSettings, serde: SerializerProtocol, *, clock: Clock, new_id: NewId) -> Parts:
    storage = open_storage(settings, clock, new_id)
    offload = Offload(storage.name, storage.together)
    pulse = Pulse(storage, at_once=settings.on_busy != "allow")
    path = "" if settings.storage_url == ":memory:" else os.path.realpath(settings.storage_url)
    visits = Visits(pulse, tracking=settings.tracking, path=path)
    recorder = _recorder(settings, storage, offload, visits, clock=clock, new_id=new_id)
    turns = _turns(settings, storage, offload, pulse, visits, recorder)
    repairs = Repairs(storage, new_id=new_id, on_input=settings.repair == "auto")
    witness = CheckpointWitness(recorder.journal, new_id=new_id)
    visits.on_begin(witness.begin)
    checkpointer = SessionSaver(
        storage,
        offload,
        visits,
        turns,
        serde=serde,
        witness=witness,
        settle=recorder.drain,
        repairs=repairs,
    )
    embedder = None if settings.index is None else Embedder(storage, settings.index)
    memory = MemoryParts(
        *(storage, offload),
        clock=clock,
        new_id=new_id,
        access=settings.access,
        embedder=embedder,
        settle=recorder.drain,
        inside=visits.inside,
    )
    hooks, resources = Hooks(storage), Resources(offload, limit=settings.max_open_resources)
    return Parts(
        *(settings, clock, new_id, storage, offload, pulse, visits, turns),
        *(recorder, repairs, checkpointer, memory, hooks, resources),
    )


def _recorder(
    settings: SessionSettings, storage: Storage, offload: Offload, visits: Visits, *, clock: Clock, new_id: NewId
) -> SessionRecorder:
    journal = Journal(
        storage, offload, clock=clock, redact=settings.redact, record=settings.record, tracking=settings.tracking
    )
    stream_flush = settings.stream_flush.total_seconds()
    return SessionRecorder(storage, journal, visits, new_id=new_id, clock=clock, stream_flush=stream_flush)


def _turns(
    settings: SessionSettings,
    storage: Storage,
    offload: Offload,
    pulse: Pulse,
    visits: Visits,
    recorder: SessionRecorder,
) -> Turns:
    return Turns(
        storage,
        offload,
        pulse,
        visits,
        settle=recorder.drain,
        on_busy=settings.on_busy,
        timeout_seconds=settings.busy_timeout.total_seconds(),
    )
