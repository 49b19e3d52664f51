"""Admission: whether and how a context enters a session, and what that changes in the session.

A context is authorized when it reads, and admitted when it first writes, in the same transaction. The decision of the
first read holds for the whole run. Each later write checks, by one statement, that the session is still the same, is
still the caller's, and still has the run's lease.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from session_middleware import errors, lifecycle
from session_middleware.models import Admission, Identity, SessionInfo, to_text
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionState, SessionWrite, end_writes
from session_middleware.storage.sql.sessions import (
    endings,
    events,
    leases,
    session_rows,
    tombstones,
)

_MAX_EARLY = 256  # sessions that do not exist yet, with refused runs
_SECOND = len("2026-01-31T12:00:00")
_QUIET = timedelta(minutes=10)  # a session that was active since is not old enough for any sweep
_REASONS: dict[type[errors.SessionError], str] = {  # of the event; the first that matches
    errors.SessionAccessDenied: "owner",
    errors.SessionExpired: "expired",
    errors.SessionClosed: "closed",
    errors.SessionLimitReached: "limit",
    errors.LeaseLost: "lease",
    errors.SessionBusy: "busy",
}
REFUSALS = tuple(_REASONS)


def reason_of(error: errors.SessionError) -> str:
    return next(reason for kind, reason in _REASONS.items() if isinstance(error, kind))


def refuse(connection: Connection, run: RunWrite, error: errors.SessionError, rules: EngineContext) -> None:
    """Append the event of a refusal, once for a run; none for `UserRequired`."""
    if isinstance(error, errors.UserRequired):
        return
    session_id, user_id = run.session_id, run.context.identity.user_id
    if not run.state.refused:
        is_recorded = events.deny(connection, session_id, reason_of(error), user_id, rules.clock())
        if not is_recorded and isinstance(error, errors.SessionBusy) and len(rules.early_denials) < _MAX_EARLY:
            rules.early_denials.setdefault(session_id, {})[run.run_id] = user_id
        run.state = run.state._replace(refused=run.run_id is not None)


def deny_early(connection: Connection, rules: EngineContext, session_id: str) -> None:
    """Record the refusals of runs for which the session did not exist yet."""
    for user_id in rules.early_denials.pop(session_id, {}).values():
        events.deny(connection, session_id, "busy", user_id, rules.clock(), is_announced=True)


def is_same_second(last_active_at: str, now: datetime) -> bool:
    """Activity is stored once a second, because it changes four indexes."""
    return last_active_at[:_SECOND] == now.astimezone(UTC).isoformat()[:_SECOND]


def hold(connection: Connection, run: RunWrite, now: datetime) -> bool:
    """Take the run's lease before its first write; returns whether the session is still the one that it has read."""
    session = session_rows.find(connection, run.session_id)
    if session is None or session.incarnation != run.state.incarnation:
        return False
    leases.take(connection, run, now)
    return True


def hold_unread(connection: Connection, run: RunWrite, now: datetime) -> None:
    """Take the lease of a run that has read nothing, but not for a merged session: the admission finds the other id."""
    tombstone = tombstones.find(connection, run.session_id)
    if tombstone is None or tombstone.merged_into is None:
        leases.take(connection, run, now)


class Merged(Exception):
    """The session was merged into another one, which the context now is for. Nothing was written: admit it again."""


class Admitting:
    """The admission of one run, in one transaction. The methods raise one of `REFUSALS`."""

    is_exposed = False  # another process may end the session before the run's first write

    def __init__(self, connection: Connection, run: RunWrite, rules: EngineContext) -> None:
        context = run.context
        self.connection, self.run, self.context, self.rules = connection, run, context, rules
        self.session_id, self.identity, self.lease = context.session_id, context.identity, context.lease
        self.now = context.at or rules.clock()
        self.opened: SessionState | None = None  # of the session that this admission has opened

    def authorize(self) -> SessionInfo | None:
        """Check the caller, and decide the admission if it is not decided. ``None``: the run starts with no session."""
        context = self.context
        if not context.reading:
            self._check_user()
        session, _ = self._find()
        if session is not None:
            self._check_access(session, reading=context.reading)
        if self.run.state.admission is None:
            try:
                self._decide(session)
            except errors.SessionClosed:
                if not context.reading:  # reading a closed session is no run of it
                    raise
        self.is_exposed = self._is_exposed(session)
        state = self.run.state
        return None if state.admission == "fresh" and not state.admitted else session

    def _check_user(self) -> None:
        if self.rules.settings.require_user and self.identity.user_id is None:
            raise errors.UserRequired(self.session_id)

    def prefetch(self, *, opens: bool | None) -> None:
        """Announce the statements of the admission. `opens` adds those of an opening; ``None``: no session is new."""
        tombstones.prefetch_revoked(self.connection, self.identity.user_id)
        self.connection.prefetch(session_rows.WITH_VERSION, (self.session_id,))
        if opens is not None:
            tombstones.prefetch(self.connection, self.session_id, opens=opens)
            self.connection.prefetch(latest_checkpoint.ANY_EVENT, (self.session_id,))

    def _check_access(self, session: SessionInfo, *, reading: bool = False) -> None:
        """Check the caller. A refusal names the id that the caller named, not the one that it was merged into."""
        if (named := self.context.named_id) not in ("", session.id):
            session = session.model_copy(update={"id": named})
        lifecycle.check_access(session, self.identity, self.rules.settings.access, reading=reading)

    def _find(self) -> tuple[SessionInfo | None, int]:
        """The session and its version."""
        tombstones.check_not_revoked(self.connection, self.session_id, self.identity.user_id)
        session, version = session_rows.find_with_version(self.connection, self.session_id, self.rules)
        if (handle := self.context.handle) is not None:
            known = [run.state for run in self.connection.decisions.values() if run.context.handle is handle]
            admitted = [state.incarnation for state in known if state.admitted]
            if session is None or session.incarnation != [handle.incarnation, *admitted][-1]:
                raise errors.SessionClosed(self.context.named_id, status="deleted")
        return session, version

    def _is_exposed(self, session: SessionInfo | None) -> bool:
        """Whether another process may end the session before the run's first write, which registers its lease."""
        if self.lease is None or self.run.lease_number is not None or self.lease.is_over or self.context.reading:
            return False
        if session is None or session.status != "active":
            return session is not None
        now, end = self.rules.clock(), lifecycle.expiry_of(session, self.rules.settings)
        return now - session.last_active_at >= _QUIET or (end is not None and end.at <= now + leases.STALE)

    def _decide(self, session: SessionInfo | None) -> None:
        incarnation = None if session is None else session.incarnation
        self._change(admission=self._admission(session), began_at=self.now, incarnation=incarnation)

    def _change(self, **changes: Any) -> None:
        self.run.state = self.run.state._replace(**changes)

    def _admission(self, session: SessionInfo | None) -> Admission:
        """As `lifecycle.admit`; but a session with a run in progress has not expired."""
        if session is None:
            self._check_tombstone()
            return "opened"
        if self._is_open(session):
            return "resumed"
        if session.status == "active" and leases.before(self.connection, self.run, self.rules):
            return "resumed"
        return lifecycle.admit(session, self.rules.settings, self.now)

    def _is_open(self, session: SessionInfo) -> bool:
        return lifecycle.status_at(session, self.rules.settings, self.now) in lifecycle.OPEN

    def _check_tombstone(self) -> None:
        """A deleted id still belongs to its owner, and is resumed as ``on_resume`` says, its own before the setting.

        An archived session is replaced by an empty one under its id only if that is ``"fresh"``.
        """
        tombstone, settings = tombstones.find(self.connection, self.session_id), self.rules.settings
        if tombstone is None:
            return
        if (primary := tombstone.merged_into) is not None:
            self.context.session_id = primary
            raise Merged
        is_checked = not lifecycle.is_vouched_for(self.identity, settings.access)
        if is_checked and tombstone.user_id not in (None, self.identity.user_id):
            raise errors.SessionAccessDenied(self.session_id, user_id=self.identity.user_id)
        on_resume, is_archived = tombstone.on_resume or settings.on_resume, tombstone.archive is not None
        if is_archived and on_resume != "fresh" and self.context.must_be_new:
            raise errors.SessionExists(self.session_id, archived=True)
        if on_resume == "reject" or (is_archived and on_resume == "revive"):
            how = f"was {tombstone.action}"
            raise errors.SessionExpired(self.session_id, since=tombstone.deleted_at, how=how, archived=is_archived)

    def admit(self, known: SessionState | None = None) -> tuple[SessionState | None, bool]:
        """Admit the context, opening or reviving its session.

        Returns `known` if it is still current, and whether the caller is to record activity.
        """
        lease = self.lease
        if self.run.state.admitted:
            is_known, is_active = self._admit_again(known)
        else:
            is_known, is_active = self._admit_first(known)
            self._change(admitted=True, has_row=False)
        if lease is not None and self.run.lease_number is None and not lease.is_over:
            leases.take(self.connection, self.run, self.now)
        return known if is_known else None, is_active

    def admit_memories(self, *, changes: bool) -> None:
        """Admit what a context remembers. Only a change opens a session, and only a run resumes one."""
        context, session = self.context, session_rows.find(self.connection, self.session_id)
        tombstones.check_not_revoked(self.connection, self.session_id, self.identity.user_id)
        self._check_incarnation(session)
        if runs.is_forgotten(self.connection, self.run):
            raise errors.SessionClosed(self.session_id, status="closed to a user who was forgotten")
        if session is not None:
            self._check_access(session, reading=not changes)
        if changes and (session is None or context.is_run):
            _, is_active = self.admit()
            if is_active:
                session_rows.touch(self.connection, self.session_id, self.rules, self.now)

    def _check_incarnation(self, session: SessionInfo | None) -> None:
        """Raise `SessionClosed` if the session that was authorized is gone.

        Another `Sessions` that serves the same run may have started it afresh.
        """
        run, found = self.run, None if session is None else session.incarnation
        if run.state.incarnation in (None, found):
            return
        shared_with = run.context.shared_with
        if not (shared_with and events.has_entered(self.connection, self.session_id, shared_with)):
            raise errors.SessionClosed(self.context.named_id, status="deleted")
        self._change(admission="resumed", incarnation=found)

    def _admit_first(self, known: SessionState | None) -> tuple[bool, bool]:
        """Returns whether `known` is still current, and whether activity is to be recorded."""
        self._check_user()
        found = self._known(known)
        if found is None and self.connection.is_optimistic:
            self.prefetch(opens=True if known is None else None)
        session, version = found or self._find()
        if session is not None:
            self._check_access(session)
        if self.run.state.admission is None:
            self._decide(session)
        self._check_incarnation(session)
        if self.run.state.incarnation is None and session is not None and self.run.state.admission == "opened":
            self._change(admission="resumed")  # another run has opened it since
        lease = self.lease
        number = self.run.lease_number if lease is not None and lease.is_exclusive and not lease.is_over else None
        if number is not None and number not in [row.number for row in leases.of(self.connection, self.session_id)]:
            raise errors.LeaseLost(self.session_id, number=number)
        is_known = is_active = False
        if session is None:
            self._change(incarnation=self._open())
        else:
            is_known = known is not None and (session.home, version) == (known.home, known.version)
            session, is_known, is_active = self._enter(session, is_known=is_known)
            self._change(incarnation=session.incarnation)
        return is_known, is_active

    def _known(self, known: SessionState | None) -> tuple[SessionInfo, int] | None:
        """The session as it was authorized, if that is current as far as known. The version is verified by the write.

        A revocation of the owner changes the version, and a revocation of others does not.
        """
        found, state = self.rules.parsed.get(self.session_id), self.run.state
        if known is None or found is None or found[0][0] != known.version or state.admission != "resumed":
            return None
        session = found[1]
        is_same = session.incarnation == state.incarnation and self.context.handle is None
        return (session, known.version) if is_same and session.user_id == self.identity.user_id else None

    def _admit_again(self, known: SessionState | None) -> tuple[bool, bool]:
        """Check by one statement what may have changed since the context was admitted. Returns as `_admit_first`."""
        lease, user_id = self.lease, self.identity.user_id
        number, incarnation = self.run.lease_number, self.run.state.incarnation
        row = self.connection.execute(_CURRENT, (number, tombstones.hash_of(user_id), self.session_id)).fetchone()
        if row is None or row[3] != (incarnation or row[3]):
            raise errors.SessionClosed(self.context.named_id, status="deleted")
        home, status, last_active_at, _, owner, has_lease, is_revoked, version = row
        if is_revoked:
            raise errors.UserRevoked(self.session_id, user_id=user_id)
        if owner not in (None, user_id):
            session = session_rows.get(self.connection, self.session_id)
            self._check_access(session)
        if lease is not None and number is not None and not has_lease and not lease.is_over:
            if lease.is_exclusive:
                raise errors.LeaseLost(self.session_id, number=number)
            self.run.lease_number = None  # another process has reaped it; it is taken again
        if status == "expired":  # by a sweep that did not see this run
            return self._revive("revived", "running"), True
        is_known = known is not None and (home, version) == (known.home, known.version)
        return is_known, not is_same_second(last_active_at, self.now)

    def _enter(self, session: SessionInfo, *, is_known: bool) -> tuple[SessionInfo, bool, bool]:
        """Carry out the decision for a session that is there. Returns the session, and as `_admit_first`.

        When a state that `is_known` was loaded, the tool calls of dead processes had been interrupted.
        """
        kind = self.run.state.admission
        if kind == "fresh" and session.status in ("active", "expired") and not self._is_open(session):
            return self._start_fresh(session), False, False
        if kind in ("revived", "reopened") and not self._is_open(session):
            endings.make_room(self.connection, session.user_id, self.rules, self.now, but=session.id)
            end = lifecycle.expiry_of(session, self.rules.settings)
            reason = session.reason if session.status != "active" else end and end.reason
            is_known = self._revive(kind, reason)
        elif session.status == "expired":  # by another process, since this context was authorized
            is_known = self._revive("revived", "running")
        elif is_same_second(to_text(session.last_active_at), self.now) and self.context.handle and self.lease is None:
            return session, is_known, False
        if not is_known:
            runs.interrupt_calls_outside(self.connection, session.id)
        return session, is_known, True

    def _revive(self, kind: str, reason: str | None) -> bool:
        """Returns ``False``: the cached state of the session is no longer current."""
        self.connection.execute(_REVIVE, (kind, to_text(self.now), kind, self.session_id))
        events.append(self.connection, self.session_id, kind, reason, {}, self.now, run_id=self.context.run_id)
        return False

    def _start_fresh(self, session: SessionInfo) -> SessionInfo:
        """Open an empty session under the id of an expired one, with its owner, title and own settings."""
        renamed = endings.rename_expired(self.connection, session, self.rules, self.now)
        self._open(session if session.user_id is not None else self.identity, renamed)
        self._end_opening()
        session_rows.inherit_details(self.connection, renamed, session.id, is_fork=False)
        session_rows.write_expiry(self.connection, session.id, self.rules)
        return session_rows.get(self.connection, session.id)

    def _open(self, owner: Identity | SessionInfo | None = None, renamed: str | None = None) -> int:
        """Insert a session for the caller or another owner, and return its incarnation.

        `renamed`: the new id of the session that had this id.
        """
        owner, connection, session_id = owner or self.identity, self.connection, self.session_id
        latest_checkpoint.check_new(connection, session_id, self.rules.path)
        endings.make_room(connection, owner.user_id, self.rules, self.now)
        incarnation = tombstones.next_incarnation(connection, session_id)
        renamed = renamed or endings.rename_archived(connection, session_id)
        home, now = new_home(), to_text(self.now)
        values = (session_id, home, session_id, owner.user_id, owner.group_id, incarnation, now, now, now)
        connection.execute(_OPEN, (*values, session_rows.expiry_without_own_terms(self.rules, self.now)))
        self.opened = SessionState.opened(session_id, home, now)
        write = SessionWrite(connection, self.opened)
        connection.unfinished.append(write)
        reason, detail = (None, None) if renamed is None else ("fresh", {"renamed": renamed})
        events.insert(write, "opened", self.now, run_id=self.context.run_id, reason=reason, detail=detail)
        if session_id in self.rules.early_denials:
            self._end_opening()
            deny_early(connection, self.rules, session_id)
        return incarnation

    def _end_opening(self) -> None:
        """Write the collected rows of the opened session. Its state must be read afterwards."""
        end_writes(self.connection)
        self.opened = None


_CURRENT = """
    SELECT home, status, last_active_at, incarnation, user_id,
    EXISTS (SELECT 1 FROM leases WHERE session_id = sessions.id AND number = ?),
    EXISTS (SELECT 1 FROM revoked WHERE user_hash = ?), version
    FROM sessions WHERE id = ?
"""
_REVIVE = """
    UPDATE sessions SET status = 'active', reason = ?, ended_at = NULL, active_since = ?, opened_as = ?, pruned = 0
    WHERE id = ?
"""
_OPEN = """
    INSERT INTO sessions (id, home, family_id, user_id, group_id, incarnation, opened_as, reason,
    created_at, active_since, last_active_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, 'opened', 'opened', ?, ?, ?, ?)
"""


def new_home() -> int:
    """A number for a new family. Numbers of 52 bits are exact in JSON, and 52 random bits do not repeat."""
    return random.getrandbits(52) + 1


def begin(write: SessionWrite, run: RunWrite, rules: EngineContext, *, announce: bool) -> None:
    """Record that an admitted run has resumed its session and begun, as far as that is not recorded yet.

    Without `announce`, a later operation records that an active session was resumed.
    """
    context, now, has_dead = run.context, run.context.at or rules.clock(), False
    if announce and not run.state.announced:
        run.state = run.state._replace(announced=True)
        if context.has_new_input and run.run_id is None and rules.settings.tracking:
            has_dead = runs.interrupt_earlier(write, run)
        others, is_resumed = context.shared_with, context.is_run and run.state.admission == "resumed"
        if is_resumed and not (others and events.has_entered(write.connection, run.session_id, others)):
            write.counters.opened_as = "resumed"
            events.insert(write, "resumed", now, run_id=run.run_id)
    begins = run.run_id is not None and run.state.announced and not run.state.has_row and rules.settings.tracking
    if has_dead or (begins and runs.begin_run(write, run, now)):
        dead = [each for each in leases.of(write.connection, run.session_id) if each.is_dead(rules)]
        if dead:
            leases.reap(write.finish(), dead)
