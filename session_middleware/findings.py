"""What the upkeep of sessions finds, did, or would do."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from session_middleware.models import OnExpire, Status, Value


class SweepResult(Value):
    """What a sweep ended, or would end: a session, why, and what was done with it."""

    session_id: str
    user_id: str | None = None
    reason: str = "idle_timeout"  # or max_age, on_expire (of one that had expired before), retention, older_than
    action: OnExpire
    last_active_at: datetime
    expired_at: datetime  # when it became due
    bytes: int | None = None  # what it holds, of a dry run: about what would be freed


class Explanation(Value):
    """Why a session is as it is, and what comes next if nothing happens."""

    session_id: str
    status: Status | Literal["unknown", "deleted", "archived", "put aside", "forgotten"]
    reason: str | None = None
    since: datetime | None = None
    next_status: Status | Literal["deleted", "archived"] | None = None
    next_reason: str | None = None
    next_at: datetime | None = None
    text: str  # all of it in words

    def __str__(self) -> str:
        return self.text


class ErasureReceipt(Value):
    """The receipt for forgetting a user: how much went. `pending`: the files may still hold some of it."""

    sessions: int = 0
    checkpoints: int = 0
    messages: int = 0
    tool_calls: int = 0
    memories: int = 0
    archives: int = 0
    traces: int = 0  # mentions in the record of other sessions
    bytes_freed: int = 0
    dry_run: bool = False
    pending: bool = False  # a reader elsewhere holds an older snapshot; call again when it has ended


class Problem(Value):
    """Something that should hold and does not, as `Sessions.check` found it: where, what, and what to do."""

    kind: str  # file, damage, family, index, counter, orphan, orphaned_writes, dead_lease, dead_run, archive
    table: str | None = None
    session_id: str | None = None
    key: str | None = None  # of the row, within its session
    text: str
    repaired: bool = False
