"""`Upkeep`: the part of `Storage` that minds how sessions live and end. Its docstrings are the contract.

Where a method takes `by`, it is done for that user: a session that is not theirs is not found, and a
user who was revoked is refused (`UserRevoked`); ``None`` is the operator. As everywhere in the port, each
method is one operation, whole or not at all, but for those that say that they are done in several
transactions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Protocol

from session_middleware.models import (
    Closed,
    ErasureReceipt,
    Event,
    Identity,
    OnExpire,
    OnResume,
    Pin,
    Problem,
    SessionInfo,
    Status,
    SweepResult,
    Value,
    Visibility,
)
from session_middleware.storage.run import Lease, RunContext


class SessionDetails(NamedTuple):
    """What an opener may say of a session. ``None`` leaves what is there; an empty title or purpose is none."""

    title: str | None = None
    purpose: str | None = None
    tags: Sequence[str] | None = None
    metadata: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    client: dict[str, Any] | None = None
    visibility: Visibility | None = None
    idle_timeout_seconds: float | None = None  # its own settings; 0 means never
    max_age_seconds: float | None = None
    retention_seconds: float | None = None
    on_expire: OnExpire | None = None
    on_resume: OnResume | None = None


class DeletionCounts(NamedTuple):
    """How much went: rows of each kind."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    bytes_freed: int = 0  # given back to the file system; unused pages from before among them


class TombstoneInfo(NamedTuple):
    """What is remembered of a deleted id."""

    session_id: str
    action: str  # deleted, archived, put aside, forgotten
    reason: str | None
    archive: str | None
    ended_at: datetime | None
    buried_at: datetime
    user_id: str | None = None  # whose it was
    on_resume: OnResume | None = None  # its own, if it had one


class ArchivedSession(Value):
    """A session that is in its archive: what is known of it without reading that."""

    columns: ClassVar = ("session_id", "user_id", "title", "reason", "ended_at", "archived_at", "path")

    session_id: str
    user_id: str | None = None
    group_id: str | None = None
    title: str | None = None
    reason: str | None = None  # why it had ended
    ended_at: datetime | None = None
    archived_at: datetime
    path: str  # of the file


class Upkeep(Protocol):
    # Runs

    def enter(self, visit: RunContext, *, wait: bool) -> bool:
        """Ask for the session alone, for a visit with a lease; whether it has it now.

        The first call checks the visit as `look` does and takes a place behind those who came before;
        the visit has the session when none of them lives. Without `wait`, `SessionBusy` is raised where
        somebody does, and an event says so.
        """

    def hold(self, visit: RunContext) -> None:
        """A run goes on in the session, even if it has written nothing yet."""

    def leave(self, lease: Lease) -> None:
        """The run has ended: from now on it is not alive to this process; `release` tells the others.

        Takes no lock and no time, so that it may be called from anywhere.
        """

    def release(self, leases: Sequence[Lease]) -> None:
        """These runs have ended, or do not wait any longer. Those that have no row are passed over."""

    def renew(self, leases: Sequence[Lease]) -> None:
        """These runs live. By this, those of processes that cannot be asked are told from the dead."""

    def find_holder(self, session_id: str, *, but: Lease | None = None) -> tuple[str | None, str] | None:
        """The run and the process of the first run alive in a session."""

    # Changes and ends

    def update_session(self, session_id: str, details: SessionDetails, *, by: Identity | None = None) -> SessionInfo:
        """Replace what is given; metadata, context and client merge at every depth, and ``None`` takes a key away.

        Raises `SessionNotFound`, also when it is not theirs for whom it is done (`by`).
        """

    def delete_session(self, session_id: str, *, by: Identity | None = None) -> DeletionCounts:
        """Everything of the session: checkpoints, writes, record, memory, archive. Counts; 0 for an unknown id.

        Of one that is archived only that it was one session, and the bytes of its file, are known.
        A tombstone stays: a run that was admitted before is refused what it still writes.

        Pieces shared with the rest of its family stay as long as a member refers to them. When this
        returns, none of the text is left in the database's files, unless a reader elsewhere still holds
        an older snapshot: then it goes with a later checkpoint of the write-ahead log.
        """

    def restore_session(self, session_id: str, *, by: Identity | None = None) -> SessionInfo:
        """Insert an archived session again, active from now on, and delete its file.

        Raises:
            SessionNotFound: Nothing is archived under this id, or it was another user's.
            SessionExists: There is a session with this id.
            SessionLimitReached: As many are open as may be.
            StorageError: The file is missing, or is not what was written.
        """

    def end_session(
        self, session_id: str, status: Closed, *, reason: str, detail: Mapping[str, Any], by: Identity | None
    ) -> SessionInfo:
        """Complete, fail or abandon. Raises `InvalidTransition` when it has ended, `SessionNotFound`."""

    def ping_session(self, session_id: str, *, by: Identity | None) -> SessionInfo:
        """Activity without a run. Raises `InvalidTransition` when it has ended: a ping revives nothing."""

    def pin_session(self, session_id: str, pin: Pin | None, *, by: Identity | None) -> SessionInfo:
        """Exempt from expiry and deletion, or no longer; then its idle time begins now."""

    def postpone(self, session_id: str, until: datetime) -> None:
        """It does not expire before that. Activity ends it."""

    def list_due(self, now: datetime, *, sized: bool = False) -> Sequence[SweepResult]:
        """What is due at `now`, first due first, all of one moment.

        The length is known; values are made when they are asked for, since there may be very many. `sized`:
        with their bytes, which are those of when they are asked for.
        """

    def list_older(
        self, before: datetime, *, status: Status | None = None, sized: bool = False
    ) -> Sequence[SweepResult]:
        """As `list_due`, what was last active before a moment and has neither a pin nor a run in progress."""

    def measure_session(self, session_id: str) -> int:
        """About how many bytes it holds, without reading them."""

    def end_due(self, listed: Sequence[SweepResult], *, now: datetime, duty: Lease | None = None) -> list[SweepResult]:
        """End those listed that are still due, in transactions of a few milliseconds; which those were.

        Each transaction renews the lease of whose duty it is; once that is another's, the rest is left to it.
        A session to be archived is written to its file and deleted in one transaction; when that fails, the others
        are ended before `StorageError` is raised.
        """

    def take_over(self, duty: str) -> Lease | None:
        """A lease on something that one process does at a time; ``None`` when another process is at it."""

    def tidy(self, since: datetime, before: datetime) -> None:
        """Take away what the dead have left: leases; and writes whose checkpoint never came, of sessions without
        a run, last active between the two moments."""

    def find_buried(self, session_id: str) -> TombstoneInfo | None: ...

    def list_archived(
        self, *, user_id: str | None, limit: int | None, before: tuple[datetime, str] | None = None
    ) -> list[ArchivedSession]:
        """Latest archived first, then by id; `before` is the (archived_at, session_id) of the last one had."""

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool) -> ErasureReceipt:
        """Delete all that is kept of a user: sessions, their record, state and memories, archives, traces elsewhere."""

    def revoke_user(self, user_id: str, *, reason: str | None) -> list[str]:
        """Refuse a user from now on, and abandon their open sessions, whose ids are returned."""

    def lift_revocation(self, user_id: str) -> bool:
        """Whether there was one."""

    def is_revoked(self, user_id: str | None) -> bool: ...

    # Hooks

    def watch(self, kinds: Collection[str]) -> None:
        """Hand out events of these kinds with `take_event`: those that are committed by this object from now on."""

    def has_events(self) -> bool:
        """Whether there are any to take. Costs nothing."""

    def take_event(self) -> Event | None:
        """The next event, in the order of the commits; ``None`` when all have been taken."""

    # Health

    def check(self, *, repair: bool, deep: bool = False) -> list[Problem]:
        """What should hold and does not; `deep` compares each row with its checksum, `repair` computes anew.

        Never raises on damage, and repairs nothing of a file whose pages or schema are damaged. Repairs are events.
        """
