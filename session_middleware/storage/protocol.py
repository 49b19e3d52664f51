"""`Storage`: the port to a database, in operations of the domain.

An engine stores sessions, checkpoints, the record and memories. It does not know LangGraph: it accepts and
returns values of `models`, `types`, `checkpoint_types` and `record_entries`, and opaque bytes. These docstrings
are the contract. Engines do not repeat them, and `tests/contract` checks every engine against them.

Atomicity: each method is one operation. It is applied completely or not at all, also when it raises or the
process dies. Exceptions are documented. Methods that must be one operation together are called in `Storage.run_batch`.

Durability: an operation that has returned survives `kill -9`. Checkpoints, writes, and changes and deletions
of sessions also survive a power failure when ``synchronous`` is ``"full"``.

Concurrency: methods may be called from any thread. Driver exceptions are mapped to `StorageError`, which names
the file. Timestamps are those of the clock that the storage was created with.

Admission: a method with a `context` first admits it in the same transaction. It opens the session if there is
none, checks the owner and applies the expiry, unless the docstring says otherwise. It raises
`SessionAccessDenied`, `SessionExpired`, `SessionClosed`, `SessionLimitReached` or `LeaseLost`; then only the
event that reports the refusal is written.

Identity: a method with `by` acts for that user. It raises `SessionNotFound` if the user may not read the session,
`SessionAccessDenied` if the user may only read it, and `UserRevoked` if the user is revoked. ``None`` is the operator,
who may change every session.

Pages: `after` and `before` name the last element of the previous page; ``limit=None`` reads all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from session_middleware.models import (
    Branch,
    Ended,
    ErasureReceipt,
    Event,
    Identity,
    Message,
    Pin,
    Problem,
    RepairedCall,
    SessionFields,
    SessionInfo,
    SessionOrder,
    Status,
    SweepResult,
    ToolCall,
    Usage,
)
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    ListRef,
    StoredCheckpoint,
    StoredHistory,
    WritesPut,
)
from session_middleware.storage.memory_types import MemoryPut, MemoryQuery, MessageScope, StoredMemory, ToEmbed, Vectors
from session_middleware.storage.record_entries import Entry
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.types import (
    ActiveRun,
    ArchivedSession,
    ConversationItemPut,
    DeletionCounts,
    MessagePoint,
    Page,
    Part,
    Progress,
    Record,
    SessionDetails,
    SessionFilter,
    SessionSize,
    StoredItem,
    TombstoneInfo,
    ToolCallFilter,
    UsageBy,
    UsageFilter,
    Watch,
)

R = TypeVar("R", bound=Record)

_WHOLE, _NONE = Part(), SessionDetails()


class Storage(Protocol):
    name: str  # for messages: the path, or ":memory:"

    def close(self) -> None:
        """Release all resources. Closing twice is allowed; any other call afterwards raises `StorageError`."""

    def run_batch(self, calls: Sequence[Callable[[], Any]], *, durable: bool, of: str = "") -> list[Callable[[], Any]]:
        """Execute calls in order; their writes through this object share as few commits as possible.

        Each call is one operation: the storage methods in it are applied together or not at all.
        Returns after the commit. Each element returns the result of its call, or raises its error. A failed call
        does not affect the others, which may be executed again because of it. No other process writes to the session
        `of` meanwhile, so that what a call has read remains true.
        """

    def check(self, *, repair: bool, deep: bool = False) -> list[Problem]:
        """List violated invariants. `deep` verifies all checksums; `repair` recomputes derived data.

        Never raises because of damage. Each repair is a transaction and an event. Repairs are repeated until a check
        finds nothing more to repair. Nothing is repaired in a file whose pages or schema are damaged.
        """

    def compact(self) -> int | None:
        """Rebuild the files without unused space, and return the bytes released; ``None``: it is the server's task."""

    # Sessions

    def open_session(
        self, context: RunContext, details: SessionDetails, template: SessionDetails = _NONE
    ) -> SessionInfo:
        """Open or resume; sets `context.state`. Raises `SessionExists` if the context requires a new session.

        A session that is opened gets the details of the template too, where `details` has none.
        """

    def authorize(self, context: RunContext) -> SessionInfo | None:
        """Check owner and expiry without admitting; sets `context.state`. Writes only on refusal.

        Returns the stored session, or ``None`` if there is none or the run starts with an empty one. A refusal is
        recorded as a ``denied`` event, then raised.
        """

    def find_session(self, session_id: str) -> SessionInfo | None:
        """The session as stored, and whether a run is in progress. The caller derives the rest from the clock."""

    def list_sessions(
        self,
        where: SessionFilter,
        *,
        limit: int | None,
        order: SessionOrder = "activity",
        after: SessionFields | None = None,
    ) -> list[SessionInfo]:
        """Latest activity or creation first, or by title, and then by id, with the preview of each.

        `after` is the previous page's last as it was read there, and need not be there any more.
        """

    def count_sessions(self, where: SessionFilter) -> int: ...

    def list_ids(self, prefix: str, *, limit: int, deleted: bool = False) -> list[str]:
        """The ids of sessions that begin with `prefix`, in order; `deleted`: those of deleted and archived ones."""

    def measure_session(self, session_id: str) -> SessionSize:
        """The numbers of its rows and an estimate of its bytes, without reading its content."""

    def update_session(self, session_id: str, details: SessionDetails) -> SessionInfo:
        """Replace the given fields. Metadata, context and client merge at every depth; ``None`` deletes a key."""

    def end_session(self, session_id: str, status: Ended, *, reason: str, detail: Mapping[str, Any]) -> SessionInfo:
        """Complete, fail, abandon or expire. Raises `InvalidTransition` if the session has ended."""

    def claim_session(self, session_id: str, user_id: str) -> SessionInfo:
        """Give a session without an owner, and its family, this owner. The owner of a session may claim it again.

        Raises `SessionNotFound`, `SessionAccessDenied` if it has another owner, `UserRevoked`, `SessionBusy` while a
        run is in progress in the family, and `SessionLimitReached`.
        """

    def ping_session(self, session_id: str) -> SessionInfo:
        """Record activity without a run. Raises `InvalidTransition` if the session has ended."""

    def pin_session(self, session_id: str, pin: Pin | None) -> SessionInfo:
        """Exempt from expiry and deletion; ``None`` ends the exemption, and the idle time starts now."""

    def postpone_expiry(self, session_id: str, until: datetime) -> None:
        """The session does not expire before `until`, or before its next activity ends the postponement."""

    def fork_session(
        self, source: str, target: str, *, at: str | None = None, details: SessionDetails | None = None
    ) -> SessionInfo:
        """Copy checkpoints, writes, owner, messages with their branches and ids, and files.

        `at` is the id of a message or run, before which the fork ends; or of a checkpoint of the outermost graph, which
        is its last one. The fork then has one line of the conversation. `details` are set in the same transaction.
        Runs, calls, events and token counts are not copied. Title, purpose, tags and metadata are copied unless the
        target was opened before. Source and target are one family and share the stored values.
        Raises `SessionNotFound` for an unknown source, and `SessionExists` for a target that has a state, messages,
        forks or another owner, or is archived, and `InvalidArgument` for an unknown `at`.
        """

    def switch_branch(self, session_id: str, branch: str) -> SessionInfo:
        """Make a branch the current one of the record and of the state, which the next run continues from.

        The latest checkpoints of subgraphs that keep a state of their own become those of the branch too.
        Raises `InvalidArgument` for an unknown branch, and for one whose checkpoints were deleted.
        """

    def find_message_point(self, session_id: str, message_id: str, branch: str | None = None) -> MessagePoint | None:
        """Where a message entered the state; ``None`` for an unknown id.

        Of its versions, the one on `branch` is meant, by default the current branch; or else the latest.
        """

    def merge_sessions(self, primary: str, secondary: str, *, with_items: bool) -> SessionInfo:
        """Make a session a part of another one: record, memories, files, tags and metadata. Returns the primary.

        Both records become one in the order of time; rows of one id are one. What both have is the primary's. The
        secondary's current branch becomes a part of the primary's. Its state is deleted, except, `with_items`, the
        items of its conversation. Forks of it keep theirs. Its tombstone names the primary, and contexts for its id
        are then admitted to the primary. The index of both is made again.
        Raises `SessionNotFound`, `SessionBusy` while a run is in progress in one of them, and `InvalidArgument` for
        one session, or sessions of different owners.
        """

    def delete_session(self, session_id: str, *, by: Identity | None = None) -> DeletionCounts:
        """Delete checkpoints, writes, record, memories and archive; all counts are 0 for an unknown id.

        A tombstone remains, so a run that was admitted before is refused its further writes. Values of the family
        remain while a member refers to them. On return the files contain none of the text, unless another process
        reads an older snapshot. Of an archived session only the session and the bytes of its file are counted.
        """

    def restore_session(self, session_id: str, *, by: Identity | None = None) -> SessionInfo:
        """Insert an archived session again, active from now on, and delete its file.

        Raises `SessionNotFound` unless it is archived and was this user's, `SessionExists` if a session has this id,
        `SessionLimitReached`, and `StorageError` for a file that is missing or was changed.
        """

    def export_sessions(
        self,
        path: Path,
        where: SessionFilter,
        *,
        only: tuple[str, int] | None = None,
        memories: tuple[str, ...] | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Write sessions of one snapshot to a file (`storage/jsonl.py`), and return their number.

        Exported is all that is deleted with a session, and the state that it shares with its family. `memories` is a
        namespace: the memories in it and below are exported too; ``()``: all. `only` is the id and incarnation of the
        one session to export; raises `SessionNotFound`. The memory does not grow with the number of sessions.
        """

    def import_sessions(
        self, path: Path, *, by: Identity | None = None, skips: bool = False, progress: Progress | None = None
    ) -> list[str]:
        """Insert the sessions of a file, all or none, and return their ids.

        The whole file is verified before the transaction begins. Runs in progress are ``interrupted``. `skips` leaves
        sessions that are here already. Raises `StorageError` for a file that is not what was exported, and
        `SessionExists` for an id that is taken; `by` a user also `StorageError` for a session of another user, and
        `SessionLimitReached`.
        """

    def back_up(self, path: Path, *, progress: Progress | None = None) -> None:
        """Write a verified copy of one snapshot to a file, atomically: a database file, or an export of all sessions.

        The second where the database is on a server.
        """

    def find_tombstone(self, session_id: str) -> TombstoneInfo | None: ...

    def list_archived(
        self, *, user_id: str | None, limit: int | None, before: tuple[datetime, str] | None = None
    ) -> list[ArchivedSession]:
        """Latest archived first, then by id; `before` is the (archived_at, session_id) of the previous page's last."""

    # Leases of runs

    def acquire_session(self, context: RunContext, *, wait: bool) -> bool:
        """Request exclusive use of the session for `context.lease`; returns whether the lease has it now.

        The first call authorizes the context and enqueues the lease behind earlier ones. The lease is exclusive
        when no earlier one is alive. Without `wait`, raises `SessionBusy` if one is, and records an event.
        """

    def mark_lease_ended(self, lease: Lease) -> None:
        """Treat the lease as ended in this process; `release_leases` deletes its row.

        Takes no lock and does no I/O, so a garbage collector's callback may call it.
        """

    def release_leases(self, given: Sequence[Lease]) -> None:
        """Delete the rows of leases whose runs have ended or no longer wait. Leases without a row are skipped."""

    def renew_leases(self, given: Sequence[RunContext]) -> None:
        """Record that the runs are alive, for processes that cannot check whether this process exists.

        Inserts the lease of a run that has written nothing yet, unless its session was merged into another one.
        """

    def find_active_run(self, session_id: str, *, but: Lease | None = None) -> ActiveRun | None:
        """The first active run in a session, other than that of the lease `but`; or the process that has a duty."""

    # Expiry

    def list_due(
        self,
        now: datetime,
        *,
        inactive_since: datetime | None = None,
        status: Status | None = None,
        sized: bool = False,
        limit: int | None = None,
    ) -> list[SweepResult]:
        """The sessions due at `now`, first due first; `sized` adds an estimate of their bytes.

        With `inactive_since`: instead, sessions of that status without activity since then, to be deleted. Pinned
        sessions and sessions with an active run are never due.
        """

    def end_due(
        self, listed: Sequence[SweepResult], *, now: datetime, duty: RunContext | None = None
    ) -> list[SweepResult]:
        """End those of the listed sessions that are still due, in many short transactions; returns those.

        Each transaction renews the lease of the `duty`. If another process has acquired the duty, the rest is skipped.
        An archived session is written to its file and deleted in one transaction; if that fails, the others are
        ended before `StorageError` is raised.
        """

    def acquire_duty(self, duty: str, *, holder: str | None = None) -> RunContext | None:
        """A context whose lease is on work that one process does at a time; ``None`` if it is held already.

        The context's session id is the duty, and `holder`, a text for other processes, its run id: `find_active_run`.
        """

    def collect_garbage(self) -> int:
        """Delete the memories whose time to live is over, and return their number; and the leases of dead processes.

        The runs and tool calls of these processes become ``interrupted``.
        """

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool) -> ErasureReceipt:
        """Delete all data of a user: sessions with their record, state and memories, archives, traces elsewhere."""

    def revoke_user(self, user_id: str, *, reason: str | None = None, lift: bool = False) -> list[str]:
        """Refuse the user from now on and abandon the user's open sessions; returns their ids. `lift`: admit again."""

    def list_revoked(self, user_ids: Collection[str | None]) -> list[str]:
        """Those of the users that are revoked."""

    # The record

    def append(self, context: RunContext, entries: Sequence[Entry] = (), *, if_admitted: bool = False) -> None:
        """Append `context.notes.entries` and then `entries`, in order; with `if_admitted`, only for an admitted run.

        The first write of a run inserts the run's row. Then earlier runs of the session whose process has died,
        and their tool calls, become ``interrupted``.

        A message with a known id and equal content adds nothing. With other content it adds a version at the same
        position, and the old row names its replacement. An incomplete message is completed. A tool message whose
        call has no row adds one.

        A tool's start is a row with status ``running``. Its attempt counts earlier executions of the same call of
        the same message. Those of the same namespace that are still ``running`` become ``interrupted``.

        A question that is open already is one row. It drops the questions of earlier checkpoints, as the next
        checkpoint of the outermost graph drops this one, unless an `AnswerEntry` has answered it.

        A `RunEnd` closes the run's row, if there is one, and releases the run's lease.
        """

    def append_repair(
        self,
        session_id: str,
        calls: Sequence[RepairedCall],
        *,
        run_id: str | None,
        reason: str,
        checkpoint_id: str | None,
    ) -> None:
        """Append the event ``repaired``; calls that did not finish or did not start become ``interrupted``."""

    def list_records(self, kind: type[R], session_id: str, part: Part = _WHOLE) -> list[R]:
        """The rows of one kind in order of `seq`; of messages all versions on all branches."""

    def list_timeline(self, session_id: str, part: Part = _WHOLE) -> Page:
        """The rows of all kinds in order of `seq`; of a message its latest version. Cost is linear in the page."""

    def list_unfinished(self, session_id: str, *, up_to: int) -> list[Record]:
        """Active runs, running tool calls and incomplete messages up to a `seq`, in its order."""

    def list_messages(
        self, session_id: str, part: Part = _WHOLE, *, all_versions: bool = False, branch: str | None = None
    ) -> list[Message]:
        """The messages of a branch in the order of the conversation; by default of the session's current branch.

        Each message has its content on that branch and its original position. The seqs of `part` are those of
        messages of neighbouring pages. ``branch="all"``: of all branches, in order of `seq`.
        """

    def list_messages_around(
        self, places: Sequence[tuple[str, int | None]], *, before: int, after: int = 0
    ) -> list[list[Message]]:
        """For each session and seq the message with so many before and after it, in order.

        The seq ``None`` stands for the last `before` messages. Latest versions on all branches, without outputs of
        memory tools.
        """

    def find_message(self, session_id: str, message_id: str) -> Message | None:
        """The latest version of a message."""

    def delete_message(self, session_id: str, message_id: str) -> int:
        """Delete all versions of a message, its files, and memories derived from it; returns the number of versions.

        Erases like `delete_session`, with an event ``message_deleted``. A checkpoint that contains the message
        does not record it again.
        """

    def find_file(self, session_id: str, hash: str) -> bytes | None:
        """A file of the session's messages, by its hash."""

    def list_branches(self, session_id: str) -> list[Branch]:
        """The branches other than ``"main"``, in the order they were created."""

    def list_tool_calls(
        self, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
    ) -> list[ToolCall]:
        """Tool calls of all sessions, latest start first; those without a known start come last."""

    def find_executions(self, session_id: str, tool_call_ids: Sequence[str]) -> tuple[list[ToolCall], list[Message]]:
        """All executions of these calls, and the messages that answer the finished ones, each in order of `seq`.

        Reads the session's messages if a call has finished.
        """

    def sum_usage(self, by: UsageBy, where: UsageFilter) -> list[Usage]:
        """Sums in no particular order: over tool calls by ``"tool"``, else over model calls.

        Reads only the selected sessions and their calls. Raises `UnknownGrouping`.
        """

    # Items of other SDKs' conversations. They are state: they are returned as given, whatever the record stores.

    def append_items(self, context: RunContext, items: Sequence[ConversationItemPut]) -> None:
        """Append items after the stored ones, and their messages to the record."""

    def list_items(self, session_id: str, *, limit: int | None = None) -> list[StoredItem]:
        """The last `limit` items, in order, without removed ones."""

    def remove_items(self, context: RunContext, *, limit: int | None = None) -> list[StoredItem]:
        """Remove the last `limit` items, or all; returns them in order. Their messages get the flag ``removed``."""

    # Checkpoints

    def put_checkpoint(self, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
        """Store a checkpoint and append its messages to the record. Idempotent by the checkpoint's id.

        Returns its channels as stored, and the reference of each list in `put.values`. Raises `StaleParent`.
        """

    def put_writes(self, put: WritesPut) -> None:
        """Store writes; their checkpoint may arrive later."""

    def read_checkpoint(
        self, context: RunContext, checkpoint_ns: str, checkpoint_id: str | None, have: Container[ListRef] = ()
    ) -> StoredCheckpoint | None:
        """`authorize` and `get_checkpoint` in one snapshot, so the owner cannot change in between.

        The elements of lists in `have` are left out.
        """

    def get_checkpoint(self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        """That checkpoint, or the one that was put last in the namespace. Raises `StorageError` on damage."""

    def list_checkpoints(
        self, where: CheckpointFilter, *, limit: int | None = None, matches: Callable[[Blob], bool] | None = None
    ) -> list[StoredCheckpoint]:
        """Newest first over all sessions and namespaces. Shared values are read once per call.

        Checkpoints are ordered by id. One whose parent has a greater id, because a clock was behind, is newer than
        all earlier ones of its namespace. `matches` selects checkpoints by their body.
        """

    def get_history(
        self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, StoredHistory]:
        """The seed and the writes that make each channel's value at a checkpoint, or at the latest.

        The seed is the value at the nearest ancestor that has one. The writes are those of that ancestor and of its
        descendants, in the order they were applied.
        """

    def list_checkpoint_namespaces(self, session_id: str) -> list[str]: ...

    def prune_checkpoints(self, session_ids: Sequence[str]) -> DeletionCounts:
        """Keep the latest checkpoint of each namespace with its writes and values.

        Ancestors remain if a channel is replayed from their writes. The namespace of a subgraph is deleted with the
        checkpoint that started it (`CheckpointPut.enclosing`). A session is pruned in one transaction, which some
        sessions share. Erases like `delete_session`. Raises `StorageError` if one is damaged, and prunes the others.
        """

    def delete_for_runs(self, run_ids: Sequence[str]) -> DeletionCounts:
        """Delete the checkpoints and writes of these runs in all sessions. Erases like `delete_session`.

        Those remain whose writes a remaining checkpoint is replayed from.
        """

    # Memories. An item is a JSON value under a namespace and a key; a recorded message is a memory too.

    def put_memories(self, puts: Sequence[MemoryPut], *, context: RunContext | None = None) -> None:
        """Store items in order; a key that exists keeps its `created_at`.

        With a `context`, the transaction opens the session if there is none, so that the items have an owner. Raises
        `SessionClosed` if the session was deleted since, or its user forgotten, and `SessionAccessDenied`.
        """

    def get_memories(
        self, keys: Sequence[tuple[tuple[str, ...], str]], *, refresh: Collection[int] = ()
    ) -> list[StoredMemory | None]:
        """The items in the order of `keys`; expired ones are ``None``, whether or not they were swept.

        `refresh` has the indexes of the keys whose time to live restarts.
        """

    def search_memories(self, query: MemoryQuery) -> list[StoredMemory]:
        """The memories that match; best first if ranked by words or a vector, else in the order they were put.

        The scope is part of the ``WHERE``, and the ranking uses statistics of that scope only: other users' data
        changes neither order nor cost. A query of stop words matches nothing by words. Every committed message is
        found; if very many are not indexed yet, they are indexed first.
        """

    def list_namespaces(self) -> list[tuple[str, ...]]:
        """The namespaces that have an item, sorted."""

    def index_messages(self, limit: int, *, active_since: datetime | None = None) -> int:
        """Index up to `limit` recorded messages for word search, in one transaction; returns their number.

        With `active_since` only of sessions that were active at or after that time, which costs less.
        """

    def find_speakers(self, words: Sequence[str], whose: MessageScope) -> set[str]:
        """Those of the words that are part of the name of a message's author in that scope."""

    def list_to_embed(self, limit: int, *, messages: bool) -> list[ToEmbed]:
        """Items that wait for vectors, oldest first; with `messages`, indexed messages too."""

    def put_vectors(self, found: Sequence[Vectors]) -> None:
        """Store vectors and mark their items and messages as embedded; skips those that changed or are gone."""

    def set_vector_model(self, name: str, dimensions: int, *, replace: bool = False) -> tuple[str, int]:
        """Store the model of the vectors, unless one is stored; returns the name and dimensions that are stored.

        `replace` deletes all vectors, also those of the same model; all items and messages wait for new ones.
        """

    # Settings

    def find_settings(self) -> dict[str, Any]:
        """The values that `keep_settings` kept last."""

    def keep_settings(self, values: Mapping[str, Any]) -> None:
        """Replace the kept settings, whose values are JSON. Writes only if they differ."""

    # Events

    def watch_session(self, session_id: str, on_change: Callable[[], object]) -> Watch:
        """Call `on_change` after commits that may have changed the session's record, of any process.

        It is called on any thread, and must not wait. An engine that cannot watch returns one that is never live.
        """

    def subscribe(self, kinds: Collection[str], on_events: Callable[[Sequence[Event]], object]) -> None:
        """Call `on_events` after each commit of this object that has events of these kinds, in the order of commits.

        It is called on any thread, and must not wait. Replaces the previous subscription.
        """
