"""What an operator does with sessions: sweeping, explaining, checking, forgetting and refusing users."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.living import delete
from session_middleware.models import ErasureReceipt, Explanation, Problem, Status, SweepResult
from session_middleware.runtime.explain import explain, explain_absence
from session_middleware.services import Services
from session_middleware.session import Session
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.protocol import SessionFilter
from session_middleware.storage.upkeep import ArchivedSession, DeletionCounts
from session_middleware.storage.validation import Timeout, check_after, checked_limit, checked_status
from session_middleware.sweeper import Sweeper


class Operated:
    """The part of `Sessions` that is the operator's."""

    _parts: Services
    _offload: StorageExecutor
    _sweeper: Sweeper

    def delete(self, session_id: object) -> DeletionCounts:
        """Delete everything of a session, its archive too, and say how much that was. Nothing for an unknown id."""
        self._settle()
        chosen = lifecycle.session_id_of(session_id)
        return delete(chosen, self._parts)

    adelete = async_twin(delete)

    def copy(self, session_id: object, to: object = None) -> Session:
        """Fork a session, under a new id unless one is named: its state, owner, title, tags, metadata, and messages.

        Raises:
            SessionNotFound: there is none with this id.
            SessionExists: there is a session with the id it is to have.
        """
        self._settle()
        target = self._parts.new_id() if to is None else lifecycle.session_id_of(to)
        info = self._parts.storage.copy_session(lifecycle.session_id_of(session_id), target)
        self._parts.hooks.wake()
        return Session.of(info, self._parts)

    acopy = async_twin(copy)

    def sweep(
        self,
        now: datetime | None = None,
        *,
        dry_run: bool = False,
        older_than: Timeout = None,
        status: Status | None = None,
    ) -> Sequence[SweepResult]:
        """End what is due, as ``on_expire`` and ``retention`` say, and say what that was; `dry_run` only says.

        However many are due, a dry run says at once how many, by the length of what it returns. What there is to
        say of each, its bytes too, is found out when it is asked for.

        Sessions that are pinned, or that a run is in progress in, are not due. Expiry holds without a sweep:
        this is for the status that others read in the database, and for pruning, archiving and deleting.
        One process sweeps at a time; where another is at it, nothing is done, and nothing returned.

        Args:
            older_than: delete the sessions that were last active so long ago instead, such as ``"90d"``.
            status: only those with this status; with `older_than` only.
        """
        found = self._sweeper.sweep(now, dry_run=dry_run, older_than=older_than, status=checked_status(status))
        return found if dry_run else Rows(found)

    async def asweep(
        self,
        now: datetime | None = None,
        *,
        dry_run: bool = False,
        older_than: Timeout = None,
        status: Status | None = None,
    ) -> Sequence[SweepResult]:
        """`sweep`, for asyncio; all there is to say is found out before it returns."""
        return await self._offload.run(
            lambda: list(self.sweep(now, dry_run=dry_run, older_than=older_than, status=status))
        )

    def explain(self, session_id: object) -> Explanation:
        """Why a session is as it is, and what comes next if nothing happens; also of a deleted or unknown id."""
        self._settle()
        chosen = lifecycle.session_id_of(session_id)
        session = self._parts.storage.find_session(chosen)
        if session is None:
            return explain_absence(chosen, self._parts.storage.find_buried(chosen), self._parts.settings)
        events = self._parts.storage.list_events(chosen)
        return explain(session, self._parts.settings, self._parts.clock(), events)

    aexplain = async_twin(explain)

    def list_archived(
        self, *, user_id: str | None = None, limit: int | None = 50, after: ArchivedSession | None = None
    ) -> list[ArchivedSession]:
        """Sessions that are in their archives, latest first. The next page is what follows `after`, the last one had.

        `restore` brings one back; `delete` deletes it with its file.
        """
        self._settle()
        check_after(after, ArchivedSession, "the last archived session of the page before")
        before = None if after is None else (after.archived_at, after.session_id)
        chosen = None if user_id is None else lifecycle.owner_id_of("user_id", user_id)
        return Rows(self._parts.storage.list_archived(user_id=chosen, limit=checked_limit(limit), before=before))

    alist_archived = async_twin(list_archived)

    def restore(self, session_id: object) -> Session:
        """Bring an archived session back as it was: id, owner, record, memories and state. Its idle time begins now.

        Raises:
            SessionNotFound: Nothing is archived under this id.
            SessionExists: There is a session with this id.
            SessionLimitReached: As many are open as may be, and ``on_limit`` is ``"reject"``.
            StorageError: The archive's file is missing, or is not what was written.
        """
        self._settle()
        chosen = lifecycle.session_id_of(session_id)
        return Session.of(self._parts.storage.restore_session(chosen), self._parts)

    arestore = async_twin(restore)

    def check(self, *, repair: bool = False, deep: bool = False) -> list[Problem]:
        """What does not hold in the database: damage, lost rows, wrong counters, orphans, what killed processes left.

        Damage is listed and never raised. The cost is linear in the number of rows; others may write meanwhile.

        Args:
            repair: compute counters and SQLite's indexes again, delete orphans, end runs of processes that are gone;
                each with an event. Nothing else is changed, and nothing in a file whose pages or schema are damaged.
            deep: read every row, value, list and reference too, and compare it with its checksum.
        """
        self._settle()
        return Rows(self._parts.storage.check(repair=repair, deep=deep))

    acheck = async_twin(check)

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool = False) -> ErasureReceipt:
        """Delete all that is kept of a user, and give a receipt.

        Sessions, their state, record and memories, what they remember, archives, and mentions elsewhere.
        What they said in others' sessions is the others', and stays without their name.
        When a reader elsewhere still holds a snapshot from before, the receipt says `pending`: call again
        when it has ended, to erase the last of it.
        """
        self._settle()
        chosen = lifecycle.owner_id_of("user_id", user_id)
        where = SessionFilter(user_id=chosen)
        theirs = [session.id for session in self._parts.storage.list_sessions(where, limit=None)]
        forgotten = self._parts.storage.forget_user(chosen, dry_run=dry_run)
        if not dry_run:
            for session_id in theirs:
                self._parts.recorder.forget(session_id)
                self._parts.visits.forget(session_id)
            self._parts.resources.close(theirs)
        return forgotten

    aforget_user = async_twin(forget_user)

    def revoke(self, user_id: str, *, reason: str | None = None, lift: bool = False) -> list[str]:
        """Refuse a user from now on, in all processes, and abandon their open sessions, whose ids are returned.

        `lift` takes it back; the sessions stay as they are.
        """
        self._settle()
        chosen = lifecycle.owner_id_of("user_id", user_id)
        if lift:
            self._parts.storage.lift_revocation(chosen)
            return []
        ended = self._parts.storage.revoke_user(chosen, reason=reason)
        self._parts.resources.close(ended)
        self._parts.hooks.wake()
        return ended

    arevoke = async_twin(revoke)

    def _settle(self) -> None:
        """What has happened in this process is in the database before it is read."""
        self._parts.recorder.drain()
        self._parts.pulse.settle()
