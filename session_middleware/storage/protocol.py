"""`Storage`: what an engine promises, in the words of the domain.

An engine keeps sessions, checkpoints, the record and memories, and knows nothing of LangGraph: it
takes and gives values of `model.py`, the dataclasses below, and opaque bytes. These docstrings are
the contract; engines do not repeat them, and `tests/contract` holds every engine to them.

Every method is one operation: all of it is done or nothing, also when it raises or the process
dies. What a method has returned survives `kill -9`; a `put_…`, `open_…` and `delete_…` also
survives a power cut when ``synchronous`` is ``"full"``. Methods may be called from any thread at
once. Driver exceptions never leave: they become `StorageError`, naming the file.

Times come from the clock the storage was made with.

A method that takes a `RunContext` first admits it, in the same transaction: the session is opened if it
is not there, its owner is checked, and its expiry is applied. It raises `SessionAccessDenied`,
`SessionExpired`, `SessionClosed`, `SessionLimitReached` or `LeaseLost`, and then has changed nothing
but the event that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from session_middleware.models import Branch, Event, Identity, Message, ModelCall, Run, SessionInfo, Status, ToolCall
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointPut,
    ListRef,
    StoredCheckpoint,
    StoredHistory,
    WritesPut,
)
from session_middleware.storage.conversations import Conversations
from session_middleware.storage.memory_port import MemoryStorage
from session_middleware.storage.record_entries import Entry, MessageEntry, ToolStart
from session_middleware.storage.reporting import Reporting
from session_middleware.storage.run import RunContext
from session_middleware.storage.upkeep import DeletionCounts, SessionDetails, Upkeep


class SessionFilter(NamedTuple):
    user_id: str | None = None
    group_id: str | None = None
    status: Status | None = None
    tags: Sequence[str] = ()  # all of them
    since: datetime | None = None  # active at or after
    until: datetime | None = None  # active before
    visible_to: Identity | None = None  # theirs, or their groups' where these may see it


class Storage(Upkeep, Reporting, Conversations, MemoryStorage, Protocol):
    name: str  # for messages to people: the path, or ":memory:"

    def close(self) -> None:
        """Release everything. Closing twice is allowed; any other call after it raises `StorageError`."""

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool) -> list[Callable[[], Any]]:
        """Carry out whole calls, in order; what they write through this object shares as few commits as can be.

        Returns, when all is committed, what gives each call's result or raises its error. One that
        fails does not concern the others, which may be carried out again because of it.
        """

    # Sessions

    def open_session(self, visit: RunContext, details: SessionDetails, *, must_be_new: bool = False) -> SessionInfo:
        """Open or resume, as `visit.admission` then says. Raises `SessionExists` when `must_be_new` and it is there."""

    def look(self, visit: RunContext) -> SessionInfo | None:
        """Check a visit without admitting it: owner, expiry. Sets `visit.admission`; a read otherwise.

        Returns the session as stored, or ``None`` when there is none or the visit starts afresh.
        A refusal is recorded as a ``denied`` event, then raised.
        """

    def find_session(self, session_id: str) -> SessionInfo | None:
        """The session as stored, and whether a run is in progress in it; the rest is derived from the clock."""

    def list_sessions(
        self, where: SessionFilter, *, limit: int | None, before: tuple[datetime, str] | None = None
    ) -> list[SessionInfo]:
        """Latest activity first, then by id; `before` is the (last_active_at, id) of the last one had."""

    def count_sessions(self, where: SessionFilter) -> int: ...

    # The record

    def begin_run(self, visit: RunContext) -> None:
        """Admit the visit and add the row of its `run_id`. Beginning the same run again does nothing.

        Earlier runs of the session whose process has died are interrupted, and their tool calls too.
        """

    def append(self, visit: RunContext, entries: Sequence[Entry] = ()) -> None:
        """Add `visit.entries` and then these to the record, in order; nothing without ``tracking``.

        A message with a known id and the same words adds nothing; with other words it adds a
        version in the same place, and the old row says which replaced it. One that was incomplete is
        completed. A tool message whose call has no row of its own adds one.

        A tool's start is a row with status ``running``; executions of the same call of the same message
        before it count its attempt, and those of them in its namespace that still say ``running`` were
        cut off: they become ``interrupted``.
        """

    def end_run(self, visit: RunContext, *, outcome: str, error: str | None, duration_ms: float) -> None:
        """`append` with a `RunEnd`: close the row of the visit's run, nothing if there is none; give back its lease."""

    def append_messages(self, visit: RunContext, messages: Sequence[MessageEntry]) -> None: ...

    def start_tool_call(self, visit: RunContext, call: ToolStart) -> None: ...

    def end_tool_call(
        self,
        visit: RunContext,
        execution_id: str,
        *,
        status: str,
        result: Any,
        error: str | None,
        duration_ms: float,
    ) -> None: ...

    def append_event(
        self, session_id: str, kind: str, *, reason: str | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Add an event; nothing when the session is not there."""

    def list_messages(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int | None = None,
        all_versions: bool = False,
        branch: str | None = None,
    ) -> list[Message]:
        """What was said on a branch, in the order of the conversation; by default the session's own branch.

        Each message is as the branch has it, in the place it was first said at. `after` is the `seq`
        of the last one had. ``branch="all"``: of all branches, by `seq`, as they were written.
        """

    def get_message(self, session_id: str, message_id: str) -> Message | None:
        """The latest version of a message."""

    def delete_message(self, session_id: str, message_id: str) -> int:
        """All versions of a message, with its files, what memory has of it and what came from it; how many versions.

        Erased as by `delete_session`, with an event ``message_deleted``. It is not recorded again, also if
        a checkpoint brings it.
        """

    def get_file(self, session_id: str, hash: str) -> bytes | None:
        """A file of the session's messages, by its hash."""

    def list_tool_calls(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[ToolCall]: ...

    def list_model_calls(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[ModelCall]: ...

    def list_branches(self, session_id: str) -> list[Branch]:
        """Those beside ``"main"``, in the order they were begun."""

    def list_runs(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[Run]: ...

    def list_events(self, session_id: str, *, after: int = 0, limit: int | None = None) -> list[Event]: ...

    # Checkpoints

    def put_checkpoint(self, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
        """Store a checkpoint, and what the record learns from it. Idempotent by its id.

        Returns its channels as stored, and where each list of `values` is now. Raises `StaleParent`.
        """

    def put_writes(self, put: WritesPut) -> None:
        """Store writes; their checkpoint may arrive later. All of them or none."""

    def read_checkpoint(
        self,
        visit: RunContext,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        have: Mapping[int, ListRef] = MappingProxyType({}),
    ) -> StoredCheckpoint | None:
        """`look`, then `get_checkpoint`, in one snapshot: the session cannot change hands in between.

        Of a list that begins with what the reader has, by its id in `have`, only the rest is read.
        """

    def get_checkpoint(self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """That checkpoint, or the latest (put last) of the namespace. Raises `StorageError` on damage."""

    def list_checkpoints(
        self,
        session_id: str | None,
        *,
        checkpoint_ns: str | None = None,
        before: str | None = None,
        checkpoint_id: str | None = None,
        matches: Callable[[Blob], bool] | None = None,
        limit: int | None = None,
        after: tuple[str, str, str] | None = None,
    ) -> list[StoredCheckpoint]:
        """Newest first over all sessions and namespaces; what they refer to is read once for all of them.

        A checkpoint's id says how new it is, unless it follows from one with a greater id, as when the clock
        was behind: then it is newer than all of its namespace. `before` keeps what is older than it;
        `matches` those whose body it accepts; `after` is the key of the last one had.
        """

    def get_history(
        self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, StoredHistory]:
        """What makes each channel's value at a checkpoint (or the latest): for each of `channels`.

        The seed is the value at the nearest ancestor that has one; the writes are those stored with
        that ancestor and with the later ones, in the order they were applied.
        """

    def count_checkpoints(self, session_id: str) -> int: ...

    def copy_session(self, source: str, target: str) -> SessionInfo:
        """Fork a session: the target has the source's checkpoints and writes, its owner, and what was said.

        The messages are copied with their branches and ids, and without their tokens; runs, calls and events are not.

        It has its title, purpose, tags and metadata too, unless it was opened before. They are one family
        and share what is stored. Raises `SessionNotFound` for an unknown source, and `SessionExists` for a
        target that has a state, messages, forks or another owner already, or is archived.
        """

    def prune_checkpoints(self, session_ids: Sequence[str]) -> DeletionCounts:
        """Keep the latest checkpoint of each namespace, its writes, and what it refers to. One transaction a session.

        Ancestors stay when a channel of the kept one is replayed from their writes. A subgraph's
        namespace goes with the checkpoint that started it (`CheckpointPut.enclosing`). Erased as by
        `delete_session`.
        """

    def delete_for_runs(self, run_ids: Sequence[str]) -> DeletionCounts:
        """Delete those runs' checkpoints with their writes, in whichever session. Erased as by `delete_session`.

        Those stay whose writes a checkpoint that stays is replayed from.
        """
