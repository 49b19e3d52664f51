"""The engine: each method of the port, as a transaction over the statements beside it."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from session_middleware.errors import SessionError, SessionExists
from session_middleware.models import Clock, Problem, SessionInfo
from session_middleware.settings import SessionSettings
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    ListRef,
    StoredCheckpoint,
    StoredHistory,
    WritesPut,
)
from session_middleware.storage.memory_types import MemoryPut
from session_middleware.storage.record_entries import AnswerEntry, Entry, RunEnd, ToolEnd
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql import checks
from session_middleware.storage.sql.checkpoints import (
    blobs,
    checkpoints,
    delta_channels,
    forks,
    latest_checkpoint,
    points,
    pruning,
    switching,
)
from session_middleware.storage.sql.connection import CommitThenRaise, Connection, Lock, Locks, Shared
from session_middleware.storage.sql.database import Database
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.memory.engine import MemoryOperations
from session_middleware.storage.sql.operations import reading, reading_by_rules
from session_middleware.storage.sql.record.branches import BranchPoint
from session_middleware.storage.sql.record.engine import RecordOperations
from session_middleware.storage.sql.record.writer import RecordWriteError, write_end
from session_middleware.storage.sql.record.writer import write as record
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import (
    SessionWrite,
    StateCache,
    end_writes,
)
from session_middleware.storage.sql.session_state import find as find_state
from session_middleware.storage.sql.sessions import (
    admission,
    endings,
    events,
    leases,
    merging,
    session_rows,
)
from session_middleware.storage.sql.sessions.engine import SessionOperations
from session_middleware.storage.types import DeletionCounts, Progress, SessionDetails

T = TypeVar("T")

_NONE = SessionDetails()
_PRUNED = 10  # sessions in one transaction, for whose end other writers wait


class SqlStorage(SessionOperations, RecordOperations, MemoryOperations):
    list_checkpoint_namespaces = reading(checkpoints.list_namespaces)
    find_message_point = reading(points.find_message_point)

    def __init__(self, database: Database, settings: SessionSettings, *, clock: Clock) -> None:
        self._database = database
        self.name = database.path
        self._rules = EngineContext(settings, clock, self.name)
        self._states = StateCache()
        database.on_rollback = self._states.clear

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"what uses the open database {self.name!r} cannot be pickled or copied; keep the path, "
            f"and open it with Sessions({self.name!r}) where it is needed"
        )

    def close(self) -> None:
        self._database.close()

    def compact(self) -> int | None:
        return self._database.compact()

    def run_batch(self, calls: Sequence[Callable[[], Any]], *, durable: bool, of: str = "") -> list[Callable[[], Any]]:
        return self._database.together(calls, durable=durable, of=of)

    def _run_admitted(
        self,
        context: RunContext,
        then: Callable[[SessionWrite, RunWrite], T],
        *,
        durable: bool = True,
        announce: bool = True,
        patient: bool = False,
        if_admitted: bool = False,
        entries: Sequence[Entry] = (),
    ) -> T:
        """Admit a run and write for it, in one transaction.

        Args:
            if_admitted: write only for an admitted run.
            entries: what the operation records. Of a run that is refused, only its end is written.
        """
        is_careful, of = False, self._locks_of_admission(context) if self._database.locks_sessions else set[Lock]()

        def operation(connection: Connection) -> T | CommitThenRaise | None:
            run = RunWrite(connection, context, is_careful=is_careful)
            if if_admitted and not run.state.admitted:
                return None
            try:
                write = self._admit(connection, run, announce=announce)
            except admission.REFUSALS as error:
                return self._end_refused(connection, run, entries, error)
            connection.unfinished.append(write)
            result = then(write, run)
            connection.decisions[context] = run
            return result

        while True:
            try:
                result: Any = self._database.write(operation, of=of, durable=durable, patient=patient, joins=True)
            except RecordWriteError:
                is_careful = True
            except admission.Merged:
                of = self._locks_of_admission(context)
            else:
                return result  # type: ignore[no-any-return]  # a `CommitThenRaise` was raised by write

    def _locks_of_admission(self, context: RunContext) -> set[Lock]:
        """The locks for the admission of a context: of its session, and of what it changes by opening one."""
        state, user_id, locks = context.state, context.identity.user_id, set[Lock]({context.session_id})
        if not state.admitted and state.admission != "resumed":
            locks.update(endings.limit_locks(user_id, self._rules))
            if user_id is not None:  # a transaction that forgets the user has the owner's lock alone
                locks.add(Shared(items.owner_lock(("user", user_id))))
        return locks

    def _admit(self, connection: Connection, run: RunWrite, *, announce: bool) -> SessionWrite:
        """Admit the run to its session. Nothing is read if the admission would write nothing.

        What is known of the session is verified by its version, when the operations of the transaction are finished.
        """
        context, state, settings = run.context, run.state, self._rules.settings
        known, now, lease = self._states.get(run.session_id), context.at or self._rules.clock(), context.lease
        begins = run.run_id is not None and not state.has_row and settings.tracking
        if (
            known is not None
            and state.cached_session is known
            and state.admitted
            and (not begins if state.announced else not announce)
            and lease is not None  # only a run with a lease is known not to have been revoked
            and (lease.is_over or run.lease_number is not None)
        ):
            write = known.write or SessionWrite(connection, known)
            if admission.is_same_second(known.last_active_at, now):
                return write
            if not known.has_own_terms and settings.max_age is None:  # else the expiry is computed from the row
                session_rows.touch_with(write, self._rules, now)
                return write
        end_writes(connection)
        admitting = admission.Admitting(connection, run, self._rules)
        known, is_active = admitting.admit(known)
        if known is None and admitting.opened is not None:
            known = admitting.opened
            self._states.keep(run.session_id, known)
        session = known or self._states.load(connection, run.session_id)
        run.state = run.state._replace(cached_session=session)
        write = session.write or SessionWrite(connection, session)
        if is_active:
            session_rows.touch_with(write, self._rules, now)
        admission.begin(write, run, self._rules, announce=announce)
        return write

    def _end_refused(
        self, connection: Connection, run: RunWrite, entries: Sequence[Entry], error: SessionError
    ) -> CommitThenRaise:
        """Write the end of a run that was refused, and the event."""
        state = find_state(connection, run.session_id)
        write = None if state is None else SessionWrite(connection, state)
        end = write_end(write, run, entries, admission.reason_of(error), self._now())
        if end is not None:
            self._run_ended(connection, run, end)
        return self._refused(connection, run, error)

    def _write(
        self,
        write: SessionWrite,
        run: RunWrite,
        entries: Sequence[Entry] = (),
        put: CheckpointPut | None = None,
    ) -> BranchPoint:
        """Record the buffered entries of the run, and what the operation brings."""
        entries = [*run.take(), *entries]
        if not self._rules.settings.tracking or not (entries or put):
            return BranchPoint()
        place = record(write, run, entries, run.context.at or self._rules.clock(), put=put)
        for entry in entries:
            if isinstance(entry, RunEnd):
                self._run_ended(write.connection, run, entry)
        return place

    def _run_ended(self, connection: Connection, run: RunWrite, end: RunEnd) -> None:
        if run.lease_number is not None and not run.context.is_inside:
            leases.release(connection, [run.lease_number])
        if end.outcome == "error":
            detail, now = {"run_id": run.run_id, "error": end.error}, self._now()
            events.announce(connection, run.session_id, "error", None, detail, now, run_id=run.run_id)

    def back_up(self, path: Path, *, progress: Progress | None = None) -> None:
        raise NotImplementedError

    # Sessions

    def open_session(
        self, context: RunContext, details: SessionDetails, template: SessionDetails = _NONE
    ) -> SessionInfo:
        def then(write: SessionWrite, run: RunWrite) -> SessionInfo:
            if context.must_be_new and run.state.admission not in ("opened", "fresh"):
                raise SessionExists(context.session_id)
            given = session_rows.with_template(details, template) if run.state.admission == "opened" else details
            session = session_rows.update(write.finish(), self._rules, context.session_id, given)
            if given != _NONE:  # the row has another version
                self._states.pop(context.session_id, None)
            return session

        return self._run_admitted(context, then)

    def authorize(self, context: RunContext) -> SessionInfo | None:
        is_new = context.run_id is not None and not context.state.admitted and not context.is_inside
        is_new = is_new and context.lease is not None and not context.lease.is_exclusive
        if is_new and self._rules.settings.on_busy == "reject":
            self.acquire_session(context, wait=False)
        return self._read_authorized(context, lambda _, session: session)

    def _read_authorized(
        self,
        context: RunContext,
        then: Callable[[Connection, SessionInfo], T],
        prefetch: Callable[[Connection], object] = lambda _: None,
    ) -> T | None:
        """Authorize a context and read for it in one snapshot; ``None`` if its run starts with no session."""

        def operation(connection: Connection) -> tuple[admission.Admitting, T | None]:
            admitting = admission.Admitting(connection, RunWrite(connection, context), self._rules)
            if connection.is_optimistic:
                prefetch(connection)
                admitting.prefetch(opens=False if context.session_id not in self._states else None)
            session = admitting.authorize()
            if session is None and admitting.run.state.admission == "opened":
                latest_checkpoint.check_new(connection, context.session_id, self.name)
            return admitting, None if session is None else then(connection, session)

        while True:
            try:
                admitting, found = self._database.read(operation)
            except admission.Merged:
                continue
            except admission.REFUSALS as error:
                if not self._database.is_writable:  # nor can the event be written
                    raise
                self._refuse(context, error)
                raise  # never reached: the refusal was raised by write
            admitting.run.publish_admission()
            if not admitting.is_exposed or self._hold_seen(context):
                return found

    find_session = reading_by_rules(session_rows.seen)
    list_sessions = reading_by_rules(session_rows.list_)
    count_sessions = reading_by_rules(session_rows.count)

    # The record

    def append(self, context: RunContext, entries: Sequence[Entry] = (), *, if_admitted: bool = False) -> None:
        def then(write: SessionWrite, run: RunWrite) -> None:
            self._write(write, run, entries)

        self._run_admitted(context, then, durable=False, if_admitted=if_admitted, entries=entries)

    # Memories

    def put_memories(self, puts: Sequence[MemoryPut], *, context: RunContext | None = None) -> None:
        changes = any(put.namespace[0] == "session" for put in puts)

        def operation(connection: Connection) -> CommitThenRaise | None:
            if context is not None:
                run = RunWrite(connection, context)
                try:
                    admission.Admitting(connection, run, self._rules).admit_memories(changes=changes)
                except admission.REFUSALS as error:
                    return self._refused(connection, run, error)
                connection.decisions[context] = run
            items.put(connection, puts, self._now())
            return None

        while True:
            of: set[Lock] = {*items.locks_of(puts)}
            if context is not None:
                of |= self._locks_of_admission(context)
            try:
                self._database.write(operation, of=of)
            except admission.Merged:
                continue
            return

    # Checkpoints

    def put_checkpoint(self, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
        def then(write: SessionWrite, run: RunWrite) -> tuple[str, dict[str, ListRef]]:
            return checkpoints.put(write, put, *self._write(write, run, put=put))

        return self._run_admitted(put.context, then)

    def put_writes(self, put: WritesPut) -> None:
        def then(write: SessionWrite, run: RunWrite) -> None:
            # the result will not be computed again, and the answer not be given again, so the record must have them
            if put.context.notes.entries and not {ToolEnd, AnswerEntry}.isdisjoint(map(type, run.pending())):
                self._write(write, run)
            if put.questions and self._rules.settings.tracking:
                record(write, run, put.questions, put.context.at or self._now())
            checkpoints.put_writes(write, put)

        self._run_admitted(put.context, then, announce=False, patient=True)

    def read_checkpoint(
        self,
        context: RunContext,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        have: Container[ListRef] = (),
    ) -> StoredCheckpoint | None:
        key = checkpoint_ns, checkpoint_id

        def prefetch(connection: Connection) -> None:
            checkpoints.prefetch(connection, context.session_id, *key, self._states.get(context.session_id))

        return self._read_authorized(
            context,
            lambda connection, _: checkpoints.get(connection, context.session_id, *key, self.name, have),
            prefetch,
        )

    def get_checkpoint(self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> StoredCheckpoint | None:
        return self._read(checkpoints.get, session_id, checkpoint_ns, checkpoint_id, self.name)

    def list_checkpoints(
        self, where: CheckpointFilter, *, limit: int | None = None, matches: Callable[[Blob], bool] | None = None
    ) -> list[StoredCheckpoint]:
        return self._read(checkpoints.list_, where, limit=limit, matches=matches, path=self.name)

    def get_history(
        self, session_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, StoredHistory]:
        return self._read(delta_channels.get_history, session_id, checkpoint_ns, checkpoint_id, channels, self.name)

    def _change_state(self, change: Callable[[Connection], T], of: Locks, session_id: str | None = None) -> T:
        """Run an operation in a transaction. It reads rows of state, of which damaged ones are reported."""

        def operation(connection: Connection) -> T:
            with blobs.reading_rows(session_id):
                return change(connection)

        return self._database.write(operation, of=of)

    def fork_session(
        self, source: str, target: str, *, at: str | None = None, details: SessionDetails | None = None
    ) -> SessionInfo:
        copy = partial(forks.copy, source_id=source, target_id=target, rules=self._rules, at=at, details=details)
        return self._change_state(copy, {source, target}, source)

    def switch_branch(self, session_id: str, branch: str) -> SessionInfo:
        switch = partial(switching.switch, session_id=session_id, branch=branch)
        return self._change_state(switch, session_id, session_id)

    def merge_sessions(self, primary: str, secondary: str, *, with_items: bool) -> SessionInfo:
        def merge(connection: Connection) -> SessionInfo:
            for each in (primary, secondary):
                self._states.pop(each, None)
            return merging.merge(connection, primary, secondary, self._rules, with_items=with_items)

        return self._change_state(merge, {primary, secondary}, secondary)

    def prune_checkpoints(self, session_ids: Sequence[str]) -> DeletionCounts:
        gone, damaged = 0, list[Exception]()
        for start in range(0, len(session_ids), _PRUNED):
            some = session_ids[start : start + _PRUNED]
            pruned = self._change_state(partial(pruning.prune, session_ids=some), some)
            gone, damaged = gone + pruned.checkpoints, [*damaged, *pruned.damaged]
        deleted = self._erased(gone)
        if damaged:
            raise self._database.mapped_error(damaged[0])
        return deleted

    def delete_for_runs(self, run_ids: Sequence[str]) -> DeletionCounts:
        return self._erased(self._change_state(partial(pruning.delete_for_runs, run_ids=run_ids), ""))

    def _erased(self, checkpoints_gone: int) -> DeletionCounts:
        return DeletionCounts(
            checkpoints=checkpoints_gone, bytes_freed=self._database.erase() if checkpoints_gone else 0
        )

    # Health

    def check(self, *, repair: bool, deep: bool = False) -> list[Problem]:
        found, repaired = self._find(deep=deep), dict[Problem, Problem]()
        while repair and (due := [each for each in checks.repairable(found) if each not in repaired]):
            for problem in due:  # each in its own transaction, so that runs are not blocked
                repaired[problem] = self._repair(problem)
            found = self._find(deep=deep)  # a repair may uncover further problems, such as orphans of orphans
        return [done for problem, done in repaired.items() if problem not in found] + found

    def _find(self, *, deep: bool) -> list[Problem]:
        raise NotImplementedError

    def _repair(self, problem: Problem) -> Problem:
        return self._database.write(lambda connection: checks.repair(connection, problem, self._rules), durable=False)
