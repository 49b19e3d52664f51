"""The sessions' part of the SQL engine: each method is one or more transactions over the statements of its siblings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from session_middleware.errors import SessionBusy, SessionError, SessionExists, StorageError
from session_middleware.models import (
    Closed,
    ErasureReceipt,
    Event,
    Identity,
    Pin,
    SessionInfo,
    Status,
    SweepResult,
)
from session_middleware.storage import jsonl
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.sql.checkpoints import checkpoints
from session_middleware.storage.sql.connection import CommitThenRaise, Connection
from session_middleware.storage.sql.operations import Operations
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.sessions import (
    admission,
    archives,
    endings,
    expiry,
    leases,
    limits,
    privacy,
    revocations,
    session_rows,
    tombstones,
)
from session_middleware.storage.types import ArchivedSession, DeletionCounts, SessionDetails, SessionSize, TombstoneInfo

T = TypeVar("T")

_TURN_SECONDS = 0.005  # the longest transaction of a sweep; other writers wait for its end
_PAUSE, _LONGEST_PAUSE_SECONDS = 3, 0.05  # the pause after it, as a multiple: other writers wait for the disk too
_TOGETHER = 50  # the most sessions that one statement expires


class SessionOperations(Operations):
    # Leases of runs

    def acquire_session(self, context: RunContext, *, wait: bool) -> bool:
        lease = context.lease
        assert lease is not None
        if lease.number is None or not wait:
            is_acquired = self._enqueue(context, lease, wait=wait)
        else:
            is_acquired = self._is_first(context.session_id, lease.number)
        if is_acquired:
            lease.is_exclusive = True
            context.admission = None  # an earlier run may have changed the session since
        return is_acquired

    def _enqueue(self, context: RunContext, lease: Lease, *, wait: bool) -> bool:
        """Insert the lease, if it has no row yet, behind those of active runs; returns whether there are none."""
        number, was_refused = lease.number, context.refused

        def enqueue(connection: Connection) -> bool | CommitThenRaise:
            leases.reap(
                connection, [row for row in leases.of(connection, context.session_id) if row.is_dead(self._rules)]
            )
            try:
                if lease.number is None:  # else another node of the run, or a heartbeat, has inserted it
                    admission.authorize(connection, context, self._rules)
                others = leases.before(connection, context.session_id, lease.number, self._rules)
                if others and not wait:
                    raise SessionBusy(context.session_id, run_id=others[0].run_id, process=others[0].process)
            except admission.REFUSALS as error:
                return self._refused(connection, context, error)
            leases.take(connection, context, self._now())
            return not others

        def undo() -> None:
            lease.number, context.refused = number, was_refused

        is_first: Any = self._database.write(enqueue, of=context.session_id, durable=False, undo=undo)
        return bool(is_first)

    def _refused(self, connection: Connection, context: RunContext, error: SessionError) -> CommitThenRaise:
        admission.refuse(connection, context, error, self._rules)
        return CommitThenRaise(error)

    def _is_first(self, session_id: str, number: int) -> bool:
        return self._database.read(lambda connection: not leases.before(connection, session_id, number, self._rules))

    def register_lease(self, context: RunContext) -> None:
        lease = context.lease
        if lease is not None and lease.number is None:
            self._database.write(
                lambda connection: leases.take(connection, context, self._now()),
                of=context.session_id,
                durable=False,
                undo=_clear_number(lease),
            )

    def _hold_seen(self, context: RunContext) -> bool:
        """Register the lease if the session is still the one that was authorized; if not, it must be read again."""
        if not self._database.is_writable:
            return True
        is_same = self._database.write(
            lambda connection: admission.hold(connection, context, self._now()),
            of=context.session_id,
            durable=False,
            undo=_clear_number(context.lease),
        )
        if not is_same:
            context.admission = context.incarnation = None
        return is_same

    def mark_lease_ended(self, lease: Lease) -> None:
        if lease.number is not None:
            self._rules.over.add(lease.number)

    def release_leases(self, given: Sequence[Lease]) -> None:
        numbers = _numbers(given)
        if numbers:
            are_over = all(lease.is_over for lease in given)
            self._database.write(
                lambda connection: leases.release(connection, numbers, are_over=are_over), of="", durable=False
            )
            self._rules.over.difference_update(numbers)

    def renew_leases(self, given: Sequence[Lease]) -> None:
        numbers = _numbers(given)
        if numbers:
            self._database.write(
                lambda connection: leases.renew(connection, numbers, self._now()), of="", durable=False
            )

    def find_active_run(self, session_id: str, *, but: Lease | None = None) -> tuple[str | None, str] | None:
        number = None if but is None else but.number
        rows = self._database.read(lambda connection: leases.before(connection, session_id, None, self._rules))
        return next(((row.run_id, row.process) for row in rows if row.number != number), None)

    # Changes

    def update_session(self, session_id: str, details: SessionDetails) -> SessionInfo:
        return self._database.write(
            lambda connection: session_rows.update(connection, session_id, details, self._rules), of=session_id
        )

    def delete_session(self, session_id: str, *, by: Identity | None = None) -> DeletionCounts:
        def operation(connection: Connection) -> DeletionCounts:
            tombstone = tombstones.find(connection, session_id)
            is_archived = tombstone is not None and tombstone.archive is not None
            if is_archived and session_rows.find_remains(connection, session_id) is None:
                return endings.delete_archived(connection, session_id, self._rules, by)
            if by is not None:
                session_rows.get_for(connection, session_id, by, self._rules)
            return endings.delete(connection, session_id, self._rules, reason="by_user")

        deleted = self._database.write(operation)
        if not deleted.sessions:
            return deleted
        return deleted._replace(bytes_freed=deleted.bytes_freed + self._database.erase())

    def restore_session(self, session_id: str, *, by: Identity | None = None) -> SessionInfo:
        def operation(connection: Connection) -> tuple[SessionInfo, Path]:
            if session_rows.find(connection, session_id) is not None:
                session_rows.get_for(connection, session_id, by, self._rules)
                raise SessionExists(session_id)
            tombstone = tombstones.get_archived(connection, session_id, by)
            limits.make_room(connection, tombstone.user_id, self._rules, self._now())
            path = self._rules.archive_at(str(tombstone.archive))
            return archives.restore(connection, tombstone, jsonl.read(path, tombstone.digest), self._rules), path

        session, path = self._database.write(operation)
        jsonl.remove(path)
        return session

    def end_session(self, session_id: str, status: Closed, *, reason: str, detail: Mapping[str, Any]) -> SessionInfo:
        return self._database.write(
            lambda connection: endings.end(
                connection, session_id, status, self._rules, reason=reason, detail=dict(detail)
            ),
            of=session_id,
        )

    def ping_session(self, session_id: str) -> SessionInfo:
        return self._database.write(
            lambda connection: session_rows.ping(connection, session_id, self._rules), of=session_id
        )

    def pin_session(self, session_id: str, pin: Pin | None) -> SessionInfo:
        return self._database.write(
            lambda connection: endings.pin(connection, session_id, pin, self._rules), of=session_id
        )

    def postpone_expiry(self, session_id: str, until: datetime) -> None:
        self._database.write(
            lambda connection: endings.postpone(connection, session_id, until, self._rules, self._now()), of=session_id
        )

    def list_due(
        self,
        now: datetime,
        *,
        inactive_since: datetime | None = None,
        status: Status | None = None,
        sized: bool = False,
    ) -> Sequence[SweepResult]:
        def find(connection: Connection) -> expiry.DueSessions:
            if inactive_since is None:
                return expiry.list_due(connection, self._rules, now)
            return expiry.list_older(connection, inactive_since, status, self._rules)

        found = self._database.read(find)
        return found.measured(self._measure) if sized else found

    def _measure(self, session_ids: Sequence[str]) -> dict[str, int]:
        return self._database.read(lambda connection: expiry.sizes(connection, session_ids))

    def measure_session(self, session_id: str) -> SessionSize:
        return self._database.read(
            lambda connection: SessionSize(
                checkpoints.count(connection, session_id), expiry.sizes(connection, [session_id])[session_id]
            )
        )

    def end_due(self, listed: Sequence[SweepResult], *, now: datetime, duty: Lease | None = None) -> list[SweepResult]:
        done: list[SweepResult] = []
        waiting = [each for each in reversed(listed) if not endings.STRATEGIES[each.action].is_alone]
        while waiting:
            ended, seconds = self._database.write(
                lambda connection: self._end_some(connection, waiting, now, duty), durable=False
            )
            done += ended
            if waiting:
                time.sleep(min(_PAUSE * seconds, _LONGEST_PAUSE_SECONDS))
        failure = None
        for each in listed:
            if endings.STRATEGIES[each.action].is_alone:
                try:
                    done += self._database.write(partial(self._end_alone, due=each, now=now, duty=duty))
                except StorageError as error:  # end the others first
                    failure = failure or error
        if failure is not None:
            raise failure
        if any(endings.STRATEGIES[ended.action].frees for ended in done):
            self._database.erase()
        return done

    def _end_alone(
        self, connection: Connection, *, due: SweepResult, now: datetime, duty: Lease | None
    ) -> list[SweepResult]:
        is_done = self._is_ours(connection, duty) and endings.end_due(connection, due, self._rules, now)
        return [due] if is_done else []

    def _is_ours(self, connection: Connection, duty: Lease | None) -> bool:
        """Renew the lease of a duty; returns whether this process still holds it."""
        return duty is None or duty.number is None or leases.renew(connection, [duty.number], self._now()) == 1

    def _end_some(
        self, connection: Connection, waiting: list[SweepResult], now: datetime, duty: Lease | None
    ) -> tuple[list[SweepResult], float]:
        """End sessions from the end of `waiting` for up to `_TURN_SECONDS`; returns them and the seconds it took."""
        began = time.perf_counter()
        if not self._is_ours(connection, duty):
            waiting.clear()
        done, tried = [], 0
        while tried < len(waiting) and (tried == 0 or time.perf_counter() < began + _TURN_SECONDS):
            some = waiting[-tried - 1 : -tried - 1 - _TOGETHER : -1]
            plain = list(takewhile(endings.is_plain, some))
            tried += len(plain) or 1
            expired = endings.expire_plain(connection, plain, self._rules, now) if plain else []
            is_done = {each.session_id for each in expired}
            rest = [each for each in plain or some[:1] if each.session_id not in is_done]
            done += expired + [each for each in rest if endings.end_due(connection, each, self._rules, now)]
        del waiting[len(waiting) - tried :]
        return done, time.perf_counter() - began

    def acquire_duty(self, duty: str) -> Lease | None:
        context = RunContext(f"\0{duty}", Identity(), lease=Lease())

        def acquire(connection: Connection) -> bool:
            rows = leases.of(connection, context.session_id)
            leases.release(connection, [row.number for row in rows if row.is_dead(self._rules)])
            if leases.before(connection, context.session_id, None, self._rules):
                return False
            leases.take(connection, context, self._now())
            return True

        return context.lease if self._database.write(acquire, durable=False) else None

    def collect_garbage(self, since: datetime, before: datetime) -> None:
        def reap(connection: Connection) -> None:
            leases.reap(connection, leases.dead(connection, self._rules))

        if self._database.read(lambda connection: leases.dead(connection, self._rules)):
            self._database.write(reap)
        if any(self._database.read(runs.find_dead)):
            self._database.write(runs.interrupt_dead, durable=False)
        for session_id in self._database.read(lambda connection: endings.list_orphaned(connection, since, before)):
            self._free_orphans(session_id)

    def _free_orphans(self, session_id: str) -> int:
        return self._database.write(lambda connection: endings.free_orphans(connection, session_id, self._rules))

    def find_tombstone(self, session_id: str) -> TombstoneInfo | None:
        tombstone = self._database.read(lambda connection: tombstones.find(connection, session_id))
        if tombstone is None:
            return None
        when, archive = (tombstone.ended_at, tombstone.buried_at), tombstone.archive
        return TombstoneInfo(
            session_id, tombstone.action, tombstone.reason, archive, *when, tombstone.user_id, tombstone.on_resume
        )

    def list_archived(
        self, *, user_id: str | None, limit: int | None, before: tuple[datetime, str] | None = None
    ) -> list[ArchivedSession]:
        return self._database.read(
            lambda connection: [
                each.model_copy(update={"path": str(self._rules.archive_at(each.path))})
                for each in tombstones.list_archived(connection, user_id, limit=limit, before=before)
            ]
        )

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool) -> ErasureReceipt:
        forgotten = self._database.write(
            lambda connection: privacy.forget(connection, user_id, self._rules, dry_run=dry_run)
        )
        if dry_run:
            return forgotten
        freed = forgotten.bytes_freed + self._database.erase()
        return forgotten.model_copy(update={"bytes_freed": freed, "pending": not self._database.is_erased()})

    def revoke_user(self, user_id: str, *, reason: str | None) -> list[str]:
        return self._database.write(lambda connection: privacy.revoke(connection, user_id, reason, self._rules))

    def lift_revocation(self, user_id: str) -> bool:
        return self._database.write(lambda connection: revocations.lift(connection, user_id))

    def is_revoked(self, user_id: str | None) -> bool:
        return self._database.read(lambda connection: revocations.is_revoked(connection, user_id))

    # Hooks

    def subscribe(self, kinds: Collection[str], on_events: Callable[[], object]) -> None:
        self._database.watch(frozenset(kinds), on_events)

    def take_event(self) -> Event | None:
        return self._database.take_event()


def _numbers(given: Sequence[Lease]) -> list[int]:
    return [lease.number for lease in given if lease.number is not None]


def _clear_number(lease: Lease | None) -> Callable[[], None]:
    """The undo of a lease's insertion."""
    return partial(setattr, lease, "number", None)
