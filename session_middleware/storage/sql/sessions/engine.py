"""The sessions' part of the SQL engine: each method is one or more transactions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from session_middleware.errors import SessionBusy, SessionError, SessionExists, SessionNotFound, StorageError
from session_middleware.models import (
    ErasureReceipt,
    Event,
    Identity,
    SessionInfo,
    Status,
    SweepResult,
)
from session_middleware.storage import jsonl
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.sql import app_settings
from session_middleware.storage.sql.checkpoints import checkpoints
from session_middleware.storage.sql.connection import CommitThenRaise, Connection
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.operations import Operations, changing, reading, reading_by_rules
from session_middleware.storage.sql.record import reads, runs
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.sessions import (
    admission,
    claims,
    endings,
    expiry,
    exports,
    imports,
    leases,
    privacy,
    session_rows,
    tombstones,
)
from session_middleware.storage.types import (
    ActiveRun,
    DeletionCounts,
    Progress,
    SessionFilter,
    SessionSize,
    Watch,
)

T = TypeVar("T")

_SMALLEST, _BATCH = 10, 200  # sessions that a sweep ends in one transaction, at least and at most
_PAUSE, _LONGEST_PAUSE_SECONDS = 2, 0.05  # after it, as a multiple of its duration, to free the disk


class SessionOperations(Operations):
    find_tombstone = reading(tombstones.find)
    list_ids = reading(session_rows.list_ids)
    list_revoked = reading(tombstones.list_revoked)
    find_settings = reading(app_settings.find)
    list_archived = reading_by_rules(tombstones.list_archived)

    end_session = changing(endings.end)
    pin_session = changing(endings.pin)
    ping_session = changing(session_rows.ping)
    postpone_expiry = changing(endings.postpone)
    update_session = changing(session_rows.update)

    def keep_settings(self, values: Mapping[str, Any]) -> None:
        if self.find_settings() != values:
            self._database.write(
                lambda connection: app_settings.replace(connection, values, self._now()), of="", durable=False
            )

    # Leases of runs

    def acquire_session(self, context: RunContext, *, wait: bool) -> bool:
        try:
            return self._acquire(context, wait=wait)
        except admission.Merged:
            return self.acquire_session(context, wait=wait)

    def _acquire(self, context: RunContext, *, wait: bool) -> bool:
        lease = context.lease
        assert lease is not None
        if lease.number is None or not wait:
            enqueue = partial(self._enqueue, context=context, wait=wait)
            is_first: Any = self._database.write(enqueue, of=context.session_id, durable=False)
        else:
            is_first = not self._database.read(
                lambda connection: leases.before(connection, RunWrite(connection, context), self._rules)
            )
        if is_first:
            lease.is_exclusive = True
            context.state = context.state._replace(admission=None)  # an earlier run may have changed the session since
        return bool(is_first)

    def _enqueue(self, connection: Connection, *, context: RunContext, wait: bool) -> bool | CommitThenRaise:
        """Insert the lease, if it has no row yet, behind those of active runs; returns whether there are none."""
        run, rows = RunWrite(connection, context), leases.of(connection, context.session_id)
        leases.reap(connection, [row for row in rows if row.is_dead(self._rules)])
        try:
            if run.lease_number is None:  # else another node of the run, or a heartbeat, has inserted it
                admission.Admitting(connection, run, self._rules).authorize()
            others = leases.before(connection, run, self._rules)
            if others and not wait:
                raise SessionBusy(context.session_id, run_id=others[0].run_id, process=others[0].process)
        except admission.REFUSALS as error:
            return self._refused(connection, run, error)
        leases.take(connection, run, self._now())
        connection.decisions[context] = run
        return not others

    def _refused(self, connection: Connection, run: RunWrite, error: SessionError) -> CommitThenRaise:
        admission.refuse(connection, run, error, self._rules)
        connection.decisions[run.context] = run
        return CommitThenRaise(error)

    def _refuse(self, context: RunContext, error: SessionError) -> NoReturn:
        """Record a refusal, and raise it."""
        self._database.write(
            lambda connection: self._refused(connection, RunWrite(connection, context), error), of=context.session_id
        )
        raise error

    def _hold_seen(self, context: RunContext) -> bool:
        """Register the lease if the session is still the one that was authorized; if not, it must be read again."""
        is_same = not self._database.is_writable or self._take_lease(context, admission.hold)
        if not is_same:
            context.state = context.state._replace(admission=None, incarnation=None)
        return is_same

    def _take_lease(self, context: RunContext, take: Callable[[Connection, RunWrite, datetime], T]) -> T:
        def operation(connection: Connection) -> T:
            run = RunWrite(connection, context)
            result = take(connection, run, self._now())
            connection.decisions[context] = run
            return result

        return self._database.write(operation, of=context.session_id, durable=False)

    def mark_lease_ended(self, lease: Lease) -> None:
        if lease.number is not None:
            self._rules.over.add(lease.number)

    def release_leases(self, given: Sequence[Lease]) -> None:
        self._record_early_denials()
        numbers = _numbers(given)
        if numbers:
            are_over = all(lease.is_over for lease in given)
            self._database.write(
                lambda connection: leases.release(connection, numbers, are_over=are_over), of="", durable=False
            )
            self._rules.over.difference_update(numbers)

    def _record_early_denials(self) -> None:
        """Record the refusals of runs for which the session did not exist yet, if another process has opened it."""
        for session_id in list(self._rules.early_denials):
            if self._read(session_rows.find, session_id) is not None:
                self._change(admission.deny_early, session_id)

    def renew_leases(self, given: Sequence[RunContext]) -> None:
        self._record_early_denials()
        for context in given:
            if context.lease is not None and context.lease.number is None:
                self._take_lease(context, admission.hold_unread)
        if numbers := _numbers([context.lease for context in given if context.lease is not None]):
            self._database.write(
                lambda connection: leases.renew(connection, numbers, self._now()), of="", durable=False
            )

    def find_active_run(self, session_id: str, *, but: Lease | None = None) -> ActiveRun | None:
        number = None if but is None else but.number
        rows = self._read(leases.live_of, session_id, self._rules)
        return next((ActiveRun(row.number, row.process, row.run_id) for row in rows if row.number != number), None)

    # Changes

    def delete_session(self, session_id: str, *, by: Identity | None = None) -> DeletionCounts:
        def operation(connection: Connection) -> DeletionCounts:
            tombstone = tombstones.find(connection, session_id)
            is_archived = tombstone is not None and tombstone.archive is not None
            if is_archived and not session_rows.find_remains(connection, [session_id]):
                return endings.delete_archived(connection, session_id, self._rules, by)
            if by is not None:
                session_rows.get_for(connection, session_id, by, self._rules)
            return endings.delete(connection, [session_id], self._rules, reason="by_user")

        deleted = self._database.write(operation, of=session_id)
        if not deleted.sessions:
            return deleted
        return deleted._replace(bytes_freed=deleted.bytes_freed + self._database.erase())

    def restore_session(self, session_id: str, *, by: Identity | None = None) -> SessionInfo:
        def operation(connection: Connection) -> tuple[SessionInfo, Path]:
            if session_rows.find(connection, session_id) is not None:
                session_rows.get_for(connection, session_id, by, self._rules)
                raise SessionExists(session_id)
            tombstone = tombstones.get_archived(connection, session_id, by)
            endings.make_room(connection, tombstone.user_id, self._rules, self._now())
            path = self._rules.archive_at(str(tombstone.archive))
            return imports.restore_archive(connection, tombstone, path, self._rules), path

        session, path = self._database.write(operation, of=session_id)

        def remove_file(connection: Connection) -> None:
            tombstone = tombstones.find(connection, session_id)
            if tombstone is None or tombstone.archive is None:  # else it is archived again, in the same file
                jsonl.remove(path)

        self._database.write(remove_file, of=session_id)
        return session

    def export_sessions(
        self,
        path: Path,
        where: SessionFilter,
        *,
        only: tuple[str, int] | None = None,
        memories: tuple[str, ...] | None = None,
        progress: Progress | None = None,
    ) -> int:
        def operation(connection: Connection) -> int:
            chosen = None if only is None else session_rows.find(connection, only[0])
            if only is not None and (chosen is None or chosen.incarnation != only[1]):
                raise SessionNotFound(only[0], deleted=True)
            count = 1 if chosen else session_rows.count(connection, self._rules, where)
            found = [(chosen.home, [chosen.id])] if chosen else exports.families(connection, where, self._rules)
            jsonl.write(path, count, exports.rows(connection, found, memories, count, progress))
            return count

        return self._database.read(operation)

    def import_sessions(
        self, path: Path, *, by: Identity | None = None, skips: bool = False, progress: Progress | None = None
    ) -> list[str]:
        with jsonl.reading(path):
            verified = jsonl.Reading(path, progress=progress)
            for line in verified:
                imports.check(line)

            def operation(connection: Connection) -> list[str]:
                importing = imports.Import(connection, self._rules, by=by, skips=skips)
                importing.run(jsonl.Reading(path, verified.digest, progress=progress))
                return importing.ids

            return self._database.write(operation)

    def claim_session(self, session_id: str, user_id: str) -> SessionInfo:
        return self._database.write(lambda connection: claims.claim(connection, session_id, user_id, self._rules))

    def list_due(
        self,
        now: datetime,
        *,
        inactive_since: datetime | None = None,
        status: Status | None = None,
        sized: bool = False,
        limit: int | None = None,
    ) -> list[SweepResult]:
        if inactive_since is None:
            found = self._read(expiry.list_due, self._rules, now, limit)
        else:
            found = self._read(expiry.list_older, inactive_since, status, self._rules, limit)
        if sized:
            bytes_of = self._read(expiry.sizes, [due.session_id for due in found])
            found = [due.model_copy(update={"bytes": bytes_of[due.session_id]}) for due in found]
        return found

    def measure_session(self, session_id: str) -> SessionSize:
        def measure(connection: Connection) -> SessionSize:
            tools = connection.execute(_TOOLS, (session_id,))
            duration = connection.execute("SELECT SUM(duration_ms) FROM runs WHERE session_id = ?", (session_id,))
            return SessionSize(
                checkpoints.count(connection, session_id),
                expiry.sizes(connection, [session_id])[session_id],
                reads.count_messages(connection, session_id),
                dict(tools.fetchall()),
                duration.fetchone()[0] or 0,
            )

        return self._database.read(measure)

    def end_due(
        self, listed: Sequence[SweepResult], *, now: datetime, duty: RunContext | None = None
    ) -> list[SweepResult]:
        done: list[SweepResult] = []
        busy: list[SweepResult] = []  # another process writes to their families at the moment
        failure: StorageError | None = None

        def end(connection: Connection, due: Sequence[SweepResult]) -> tuple[list[SweepResult], ...] | None:
            """The ended and the busy sessions; ``None`` if another process has acquired the duty."""
            numbers = [] if duty is None or duty.lease is None else _numbers([duty.lease])
            if numbers and not leases.renew(connection, numbers, self._now()):
                return None
            free = connection.lock_free([each.session_id for each in due])
            ended = endings.end_due(connection, [each for each in due if each.session_id in free], self._rules, now)
            return ended, [each for each in due if each.session_id not in free]

        together = [due for due in listed if not endings.STRATEGIES[due.action].is_alone]
        size, waits = _SMALLEST, False
        while together:
            batch, together, began = together[:size], together[size:], time.perf_counter()
            locks = [due.session_id for due in batch] if waits else ""
            ended = self._database.write(partial(end, due=batch), of=locks, durable=False)
            if ended is None:
                return done
            done += ended[0]
            busy += ended[1]
            took = time.perf_counter() - began
            size = max(_SMALLEST, min(_BATCH, int(size * min(2, self._database.turn_seconds / took))))
            if not together and not waits:
                together, waits = busy, True
            if together:
                time.sleep(min(_PAUSE * took, _LONGEST_PAUSE_SECONDS))
        for due in listed:
            if endings.STRATEGIES[due.action].is_alone:
                try:
                    ended = self._database.write(partial(end, due=[due]), of=due.session_id)
                    done += ended[0] if ended else []
                except StorageError as error:  # end the others first
                    failure = failure or error
        if failure is not None:
            raise failure
        if any(endings.STRATEGIES[ended.action].frees for ended in done):
            self._database.erase()
        return done

    def acquire_duty(self, duty: str, *, holder: str | None = None) -> RunContext | None:
        context = RunContext(duty, Identity(), run_id=holder, lease=Lease())  # a duty has no run

        def acquire(connection: Connection) -> bool:
            rows = leases.of(connection, context.session_id)
            leases.release(connection, [row.number for row in rows if row.is_dead(self._rules)])
            if leases.live_of(connection, context.session_id, self._rules):
                return False
            run = RunWrite(connection, context)
            leases.take(connection, run, self._now())
            connection.decisions[context] = run
            return True

        return context if self._database.write(acquire, of=context.session_id, durable=False) else None

    def collect_garbage(self) -> int:
        expired = self._database.write(lambda connection: items.sweep(connection, self._now()), of="")
        if expired:
            self._database.erase()
        if self._read(leases.dead, self._rules):
            self._database.write(partial(leases.reap_dead, rules=self._rules), of="", durable=False)
        if any(self._read(runs.find_dead)):
            self._database.write(runs.interrupt_dead, of="", durable=False)
        return expired

    # Users

    def forget_user(self, user_id: str, *, dry_run: bool) -> ErasureReceipt:
        forget = partial(privacy.forget, user_id=user_id, rules=self._rules, dry_run=dry_run)
        forgotten = self._database.write(forget, of=items.owner_lock(("user", user_id)))
        if dry_run:
            return forgotten
        freed = forgotten.bytes_freed + self._database.erase()
        return forgotten.model_copy(update={"bytes_freed": freed, "pending": not self._database.is_erased()})

    def revoke_user(self, user_id: str, *, reason: str | None = None, lift: bool = False) -> list[str]:
        return self._database.write(
            lambda connection: privacy.revoke(connection, user_id, self._rules, reason=reason, lift=lift),
            of=items.owner_lock(("user", user_id)),
        )

    # Hooks

    def watch_session(self, session_id: str, on_change: Callable[[], object]) -> Watch:
        return self._database.watch_session(session_id, on_change)

    def subscribe(self, kinds: Collection[str], on_events: Callable[[Sequence[Event]], object]) -> None:
        self._database.watch(frozenset(kinds), on_events)


_TOOLS = "SELECT name, COUNT(*) FROM tool_calls WHERE session_id = ? GROUP BY name ORDER BY MIN(seq)"


def _numbers(given: Sequence[Lease]) -> list[int]:
    return [lease.number for lease in given if lease.number is not None]
