"""The SQLite engine's upkeep: each method of `storage/upkeep.py`, as transactions over the statements beside it."""

from __future__ import annotations

import sqlite3
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
    Problem,
    SessionInfo,
    Status,
    SweepResult,
)
from session_middleware.storage import jsonl
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import dead_runs
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
from session_middleware.storage.sqlite.database import SqliteDatabase
from session_middleware.storage.sqlite.integrity import checks
from session_middleware.storage.sqlite.writer import CommitThenRaise
from session_middleware.storage.upkeep import ArchivedSession, DeletionCounts, SessionDetails, TombstoneInfo

T = TypeVar("T")
Connection = sqlite3.Connection

_TURN_SECONDS = 0.005  # how long a transaction of a sweep may take; then others have their turn
_PAUSE, _LONGEST_PAUSE_SECONDS = 3, 0.05  # so many times as long: what others wait for is the disk as well
_TOGETHER = 50  # sessions that are expired by one statement, at most


class SqliteUpkeep:
    name: str
    _database: SqliteDatabase
    _rules: EngineContext

    def _now(self) -> datetime:
        return self._rules.clock()

    # Runs

    def enter(self, visit: RunContext, *, wait: bool) -> bool:
        lease = visit.lease
        assert lease is not None

        def operation(connection: Connection) -> bool | CommitThenRaise:
            now = self._now()
            leases.reap(
                connection, [place for place in leases.of(connection, visit.session_id) if place.is_dead(self._rules)]
            )
            try:
                admission.authorize(connection, visit, self._rules)
                others = leases.before(connection, visit.session_id, None, self._rules)
                if others and not wait:
                    raise SessionBusy(visit.session_id, run_id=others[0].run_id, process=others[0].process)
            except admission.REFUSALS as error:
                return self._refused(connection, visit, error)
            leases.take(connection, visit, now)
            return not others

        if lease.number is None:
            entered: Any = self._database.write(operation, durable=False, undo=_forgetting(lease))
            has_it = bool(entered)
        else:
            has_it = self._is_first(visit.session_id, lease.number)
        if has_it:
            lease.is_exclusive = True
            visit.admission = None  # while it waited, another run may have changed what there is to admit
        return has_it

    def _refused(self, connection: Connection, visit: RunContext, error: SessionError) -> CommitThenRaise:
        admission.refuse(connection, visit, error, self._rules)
        return CommitThenRaise(error)

    def _is_first(self, session_id: str, number: int) -> bool:
        return self._database.read(lambda connection: not leases.before(connection, session_id, number, self._rules))

    def hold(self, visit: RunContext) -> None:
        lease = visit.lease
        if lease is not None and lease.number is None:
            self._database.write(
                lambda connection: leases.take(connection, visit, self._now()), durable=False, undo=_forgetting(lease)
            )

    def _hold_seen(self, visit: RunContext) -> bool:
        """As `hold`, if the session is still the one that the visit has seen; else that is to look again."""
        if not self._database.is_writable:
            return True
        is_same = self._database.write(
            lambda connection: admission.hold(connection, visit, self._now()),
            durable=False,
            undo=_forgetting(visit.lease),
        )
        if not is_same:
            visit.admission = visit.incarnation = None
        return is_same

    def leave(self, lease: Lease) -> None:
        if lease.number is not None:
            self._rules.over.add(lease.number)

    def release(self, given: Sequence[Lease]) -> None:
        numbers = [lease.number for lease in given if lease.number is not None]
        if numbers:
            are_over = all(lease.is_over for lease in given)
            self._database.write(
                lambda connection: leases.release(connection, numbers, are_over=are_over), durable=False
            )
            self._rules.over.difference_update(numbers)

    def renew(self, given: Sequence[Lease]) -> None:
        numbers = [lease.number for lease in given if lease.number is not None]
        if numbers:
            self._database.write(lambda connection: leases.renew(connection, numbers, self._now()), durable=False)

    def find_holder(self, session_id: str, *, but: Lease | None = None) -> tuple[str | None, str] | None:
        number = None if but is None else but.number
        places = self._database.read(lambda connection: leases.before(connection, session_id, None, self._rules))
        others = [place for place in places if place.number != number]
        return (others[0].run_id, others[0].process) if others else None

    # Changes and ends

    def update_session(self, session_id: str, details: SessionDetails, *, by: Identity | None = None) -> SessionInfo:
        return self._database.write(
            lambda connection: session_rows.update(connection, session_id, details, self._rules, by)
        )

    def delete_session(self, session_id: str, *, by: Identity | None = None) -> DeletionCounts:
        def operation(connection: Connection) -> DeletionCounts:
            stone = tombstones.find(connection, session_id)
            is_archived = stone is not None and stone.archive is not None
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
            stone = tombstones.get_archived(connection, session_id, by)
            limits.make_room(connection, stone.user_id, self._rules, self._now())
            path = self._rules.archive_at(str(stone.archive))
            return archives.restore(connection, stone, jsonl.read(path, stone.digest), self._rules), path

        session, path = self._database.write(operation)
        jsonl.remove(path)
        return session

    def end_session(
        self, session_id: str, status: Closed, *, reason: str, detail: Mapping[str, Any], by: Identity | None
    ) -> SessionInfo:
        return self._database.write(
            lambda connection: endings.end(
                connection, session_id, status, self._rules, reason=reason, detail=dict(detail), by=by
            )
        )

    def ping_session(self, session_id: str, *, by: Identity | None) -> SessionInfo:
        return self._database.write(lambda connection: session_rows.ping(connection, session_id, self._rules, by))

    def pin_session(self, session_id: str, pin: Pin | None, *, by: Identity | None) -> SessionInfo:
        return self._database.write(lambda connection: endings.pin(connection, session_id, pin, self._rules, by))

    def postpone(self, session_id: str, until: datetime) -> None:
        self._database.write(
            lambda connection: endings.postpone(connection, session_id, until, self._rules, self._now())
        )

    def list_due(self, now: datetime, *, sized: bool = False) -> Sequence[SweepResult]:
        found = self._database.read(lambda connection: expiry.list_due(connection, self._rules, now))
        return found.measured(self._measure) if sized else found

    def list_older(
        self, before: datetime, *, status: Status | None = None, sized: bool = False
    ) -> Sequence[SweepResult]:
        found = self._database.read(lambda connection: expiry.list_older(connection, before, status, self._rules))
        return found.measured(self._measure) if sized else found

    def _measure(self, session_ids: Sequence[str]) -> dict[str, int]:
        return self._database.read(lambda connection: expiry.sizes(connection, session_ids))

    def measure_session(self, session_id: str) -> int:
        return self._measure([session_id])[session_id]

    def end_due(self, listed: Sequence[SweepResult], *, now: datetime, duty: Lease | None = None) -> list[SweepResult]:
        done: list[SweepResult] = []
        waiting = [each for each in reversed(listed) if each.action != "archive"]
        while waiting:
            ended, seconds = self._database.write(
                lambda connection: self._end_some(connection, waiting, now, duty), durable=False
            )
            done += ended
            if waiting:
                time.sleep(min(_PAUSE * seconds, _LONGEST_PAUSE_SECONDS))
        failure = None
        for each in listed:
            if each.action == "archive":
                try:
                    done += self._database.write(partial(self._archive, due=each, now=now, duty=duty))
                except StorageError as error:  # the others do not wait for it
                    failure = failure or error
        if failure is not None:
            raise failure
        if any(ended.action in ("delete", "archive", "prune") for ended in done):
            self._database.erase()
        return done

    def _archive(
        self, connection: Connection, *, due: SweepResult, now: datetime, duty: Lease | None
    ) -> list[SweepResult]:
        is_done = self._is_ours(connection, duty) and endings.end_due(connection, due, self._rules, now)
        return [due] if is_done else []

    def _is_ours(self, connection: Connection, duty: Lease | None) -> bool:
        """Whether a duty is still this process's, which is told again with it."""
        return duty is None or duty.number is None or leases.renew(connection, [duty.number], self._now()) == 1

    def _end_some(
        self, connection: Connection, waiting: list[SweepResult], now: datetime, duty: Lease | None
    ) -> tuple[list[SweepResult], float]:
        """As many as a turn's time is enough for, taken from `waiting` when all of them are done; in how long."""
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

    def take_over(self, duty: str) -> Lease | None:
        visit = RunContext(f"\0{duty}", Identity(), lease=Lease())

        def operation(connection: Connection) -> bool:
            now = self._now()
            places = leases.of(connection, visit.session_id)
            leases.release(connection, [place.number for place in places if place.is_dead(self._rules)])
            if leases.before(connection, visit.session_id, None, self._rules):
                return False
            leases.take(connection, visit, now)
            return True

        return visit.lease if self._database.write(operation, durable=False) else None

    def tidy(self, since: datetime, before: datetime) -> None:
        def bury(connection: Connection) -> None:
            leases.reap(connection, leases.dead(connection, self._rules))

        if self._database.read(lambda connection: leases.dead(connection, self._rules)):
            self._database.write(bury)
        if any(self._database.read(dead_runs.find)):
            self._database.write(dead_runs.interrupt, durable=False)
        for session_id in self._database.read(lambda connection: endings.list_orphaned(connection, since, before)):
            self._free_orphans(session_id)

    def _free_orphans(self, session_id: str) -> int:
        return self._database.write(lambda connection: endings.free_orphans(connection, session_id, self._rules))

    def find_buried(self, session_id: str) -> TombstoneInfo | None:
        stone = self._database.read(lambda connection: tombstones.find(connection, session_id))
        if stone is None:
            return None
        when, archive = (stone.ended_at, stone.buried_at), stone.archive
        return TombstoneInfo(session_id, stone.action, stone.reason, archive, *when, stone.user_id, stone.on_resume)

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

    def watch(self, kinds: Collection[str]) -> None:
        self._database.watch(frozenset(kinds))

    def has_events(self) -> bool:
        return self._database.has_events()

    def take_event(self) -> Event | None:
        return self._database.take_event()

    # Health

    def check(self, *, repair: bool, deep: bool = False) -> list[Problem]:
        self._database.version()  # raises when the file, or its log, is not the one that was opened
        found = self._database.read(lambda connection: checks.find(connection, self._rules, deep=deep))
        if not repair or not checks.is_repairable(found):
            return found
        return [self._repair(problem) for problem in found]  # each on its own: runs go on meanwhile

    def _repair(self, problem: Problem) -> Problem:
        return self._database.write(lambda connection: checks.repair(connection, problem, self._rules), durable=False)


def _forgetting(lease: Lease | None) -> Callable[[], None]:
    """What undoes that a lease was taken."""
    return partial(setattr, lease, "number", None)
