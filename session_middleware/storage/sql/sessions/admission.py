"""The door of every operation: who may come in, as what, and what that does to the session.

A context is looked at when it reads, and admitted when it first writes, in the same transaction. What
was decided at the first look stays for the whole run. Each later write asks, in one statement,
whether the session is still the one it was, still the caller's, and still this run's.
"""

from __future__ import annotations

import random
from datetime import datetime

from session_middleware import lifecycle
from session_middleware.errors import (
    LeaseLost,
    SessionAccessDenied,
    SessionBusy,
    SessionClosed,
    SessionError,
    SessionExists,
    SessionExpired,
    SessionLimitReached,
    UserRevoked,
)
from session_middleware.models import Admission, Identity, SessionInfo, to_text
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.session_state import SessionState, SessionWrite
from session_middleware.storage.sql.sessions import (
    endings,
    events,
    leases,
    limits,
    revocations,
    session_rows,
    tombstones,
)
from session_middleware.storage.sql.sessions.tombstones import Tombstone

_SECOND = len("2026-01-31T12:00:00")

REFUSALS = (SessionAccessDenied, SessionBusy, SessionClosed, SessionExpired, SessionLimitReached)


def authorize(connection: Connection, context: RunContext, rules: EngineContext) -> SessionInfo | None:
    revocations.check_not_revoked(connection, context.session_id, context.identity.user_id)
    session, _ = _find(connection, context)
    if session is not None:
        lifecycle.check_access(session, context.identity, rules.settings.access, reading=context.reading)
    if context.admission is None:
        try:
            _decide(connection, context, session, rules, context.at or rules.clock())
        except SessionClosed:
            if not context.reading:  # to read a closed session is no run of it, and decides nothing
                raise
    context.is_exposed = _is_exposed(session, context, rules)
    return None if context.admission == "fresh" and not context.admitted else session


def _is_exposed(session: SessionInfo | None, context: RunContext, rules: EngineContext) -> bool:
    """Whether another process may end the session before this run's first write, which is when others see the run.

    One that was active a moment ago, and expires in a while, is ended by nobody before that.
    """
    if context.lease is None or context.lease.number is not None or context.lease.is_over or context.reading:
        return False
    if session is None or session.status != "active":
        return session is not None
    now, end = rules.clock(), lifecycle.expiry_of(session, rules.settings)
    return now - session.last_active_at >= leases.STALE or (end is not None and end.at <= now + leases.STALE)


def hold(connection: Connection, context: RunContext, now: datetime) -> bool:
    """Take the lease of a run before its first write, if its session is still the one it has seen; whether it is."""
    session = session_rows.find(connection, context.session_id)
    if session is None or session.incarnation != context.incarnation:
        return False
    leases.take(connection, context, now)
    return True


def _find(connection: Connection, context: RunContext) -> tuple[SessionInfo | None, int]:
    """The session and its version."""
    session, version = session_rows.find_with_version(connection, context.session_id)
    if context.hand is not None and (session is None or session.incarnation != context.hand.incarnation):
        raise SessionClosed(context.session_id, status="deleted")
    return session, version


def _decide(
    connection: Connection,
    context: RunContext,
    session: SessionInfo | None,
    rules: EngineContext,
    now: datetime,
) -> None:
    context.admission, context.began_at = _admission(connection, context, session, rules, now), now
    context.incarnation = None if session is None else session.incarnation


def _admission(
    connection: Connection,
    context: RunContext,
    session: SessionInfo | None,
    rules: EngineContext,
    now: datetime,
) -> Admission:
    """As `lifecycle.admit`; but a session with a run in progress has not expired, however long that takes."""
    if session is None:
        tombstone = tombstones.find(connection, context.session_id)
        if tombstone is not None:
            _check_tombstone(tombstone, context, rules)
        return "opened"
    status = lifecycle.status_at(session, rules.settings, now)
    if session.status == "active" and status == "expired":
        number = None if context.lease is None else context.lease.number
        if leases.before(connection, session.id, number, rules):
            return "resumed"
    return lifecycle.admit(session, rules.settings, now)


def _check_tombstone(tombstone: Tombstone, context: RunContext, rules: EngineContext) -> None:
    """A deleted id is its owner's still, and resumed as ``on_resume`` says, its own before that of all.

    An archived session is not replaced by an empty one under its id, unless ``on_resume`` is ``"fresh"``.
    """
    is_checked = not lifecycle.is_vouched_for(context.identity, rules.settings.access)
    if is_checked and tombstone.user_id not in (None, context.identity.user_id):
        raise SessionAccessDenied(context.session_id, user_id=context.identity.user_id)
    on_resume = tombstone.on_resume or rules.settings.on_resume
    is_archived = tombstone.archive is not None
    if is_archived and on_resume != "fresh" and context.must_be_new:
        raise SessionExists(context.session_id, archived=True)
    if on_resume == "reject" or (is_archived and on_resume == "revive"):
        how = f"was {tombstone.action}"
        raise SessionExpired(context.session_id, since=tombstone.buried_at, how=how, archived=is_archived)


def admit(
    connection: Connection, context: RunContext, rules: EngineContext, known: SessionState | None = None
) -> tuple[SessionState | None, bool]:
    """Admit a run, opening or reviving its session. Raises one of `REFUSALS`.

    Returns `known` if it is still current, and whether the caller is to record activity.
    The run's flags are set inside the write transaction, so no second operation admits it again.
    """
    now = context.at or rules.clock()
    if context.admitted:
        version, is_active = _admit_again(connection, context, rules, now)
    else:
        version, is_active = _admit_first(connection, context, rules, now, known)
        context.admitted, context.begun = True, False
    lease = context.lease
    if lease is not None and lease.number is None and not lease.is_over:
        leases.take(connection, context, now)
    return (known if known is not None and version == (known.home, known.version) else None), is_active


def begin(write: SessionWrite, context: RunContext, rules: EngineContext, *, announce: bool) -> None:
    """Record that an admitted run has resumed its session and begun, as far as that is not recorded yet.

    Without `announce`, a later operation records that an active session was resumed.
    """
    now = context.at or rules.clock()
    if announce and not context.announced:
        context.announced = True
        if context.is_run and context.admission == "resumed":
            write.counters.opened_as = "resumed"
            events.insert(write, "resumed", now, run_id=context.run_id)
    begins = context.run_id is not None and context.announced and not context.begun and rules.settings.tracking
    if begins and runs.begin_run(write, context, now):
        dead = [each for each in leases.of(write.connection, context.session_id) if each.is_dead(rules)]
        if dead:
            leases.reap(write.finish(), dead)


def admit_memories(connection: Connection, context: RunContext, rules: EngineContext, *, changes: bool) -> None:
    """Let in what a context remembers, as a change of its session or not; one that is not there is opened by a change.

    A run changes its session as with every other write. Who has the session in hand does not go on
    with it by that: nothing is revived.
    """
    session_id, identity = context.session_id, context.identity
    revocations.check_not_revoked(connection, session_id, identity.user_id)
    session = session_rows.find(connection, session_id)
    if context.incarnation is not None and (session is None or session.incarnation != context.incarnation):
        raise SessionClosed(session_id, status="deleted")
    if runs.is_forgotten(connection, context):
        raise SessionClosed(session_id, status="closed to a user who was forgotten")
    if session is not None:
        lifecycle.check_access(session, identity, rules.settings.access, reading=not changes)
    if changes and (session is None or context.is_run):
        _, is_active = admit(connection, context, rules)
        if is_active:
            session_rows.touch(connection, session_id, rules, context.at or rules.clock())


def _admit_first(
    connection: Connection,
    context: RunContext,
    rules: EngineContext,
    now: datetime,
    known: SessionState | None,
) -> tuple[tuple[int, int], bool]:
    """Returns the home and version of the session as it was found, and whether activity is to be recorded."""
    revocations.check_not_revoked(connection, context.session_id, context.identity.user_id)
    session, version = _find(connection, context)
    if session is not None:
        lifecycle.check_access(session, context.identity, rules.settings.access)
    if context.admission is None:
        _decide(connection, context, session, rules, now)
    elif context.incarnation != (None if session is None else session.incarnation):
        _check_same(context, session)
    if context.lease is not None and context.lease.is_exclusive and not context.lease.is_over:
        _check_lease(context, leases.of(connection, context.session_id))
    was, is_active = (0, 0), False
    if session is None:
        session = _insert(connection, context, rules, now)
    else:
        was = session.home, version
        is_known = known is not None and was == (known.home, known.version)
        session, is_active = _apply(connection, session, context, rules, now, is_known=is_known)
    context.incarnation = session.incarnation
    if context.hand is not None:
        context.hand.incarnation = session.incarnation
    return was, is_active


def _check_same(context: RunContext, session: SessionInfo | None) -> None:
    """A session that was there at the first look has been deleted since, and may have been opened again.

    One that was not there may have been opened by another meanwhile, and is resumed then.
    """
    if context.incarnation is not None:
        raise SessionClosed(context.session_id, status="deleted")
    if session is not None and context.admission == "opened":
        context.admission = "resumed"


def _check_lease(context: RunContext, places: list[leases.LeaseRow]) -> None:
    assert context.lease is not None
    number = context.lease.number
    if number is not None and number not in [place.number for place in places]:
        raise LeaseLost(context.session_id, number=number)


def _admit_again(
    connection: Connection,
    context: RunContext,
    rules: EngineContext,
    now: datetime,
) -> tuple[tuple[int, int], bool]:
    """Check by one statement what may have changed since the context was admitted. Returns as `_admit_first`."""
    lease, identity = context.lease, context.identity
    number = None if lease is None else lease.number
    row = connection.execute(
        "SELECT home, status, last_active_at, incarnation, user_id,"
        " EXISTS (SELECT 1 FROM leases WHERE session_id = sessions.id AND number = ?),"
        " EXISTS (SELECT 1 FROM revoked WHERE user_hash = ?), version"
        " FROM sessions WHERE id = ?",
        (number, revocations.hash_of(identity.user_id), context.session_id),
    ).fetchone()
    if row is None or row[3] != (context.incarnation or row[3]):
        raise SessionClosed(context.session_id, status="deleted")
    if row[6]:
        raise UserRevoked(context.session_id, user_id=identity.user_id)
    if row[4] is not None and row[4] != identity.user_id:
        lifecycle.check_access(session_rows.get(connection, context.session_id), identity, rules.settings.access)
    if lease is not None and number is not None and not row[5] and not lease.is_over:
        if lease.is_exclusive:
            raise LeaseLost(context.session_id, number=number)
        lease.number = None  # somebody took this run for dead; it is not, and nobody minds
    if row[1] == "expired":  # by a sweep that did not know of this run
        revive(connection, context, "revived", "running", now)
        return (0, 0), True
    return (row[0], row[7]), not is_same_second(row[2], now)


def refuse(connection: Connection, context: RunContext, error: SessionError, rules: EngineContext) -> None:
    """Leave an event of a refusal, one of a whole run, which says who and why and nothing of what was asked."""
    if not context.refused:
        events.deny(connection, context.session_id, reason_of(error), context.identity.user_id, rules.clock())
        context.refused = context.run_id is not None


def reason_of(error: SessionError) -> str:
    return next(reason for kind, reason in _REASONS.items() if isinstance(error, kind))


_REASONS: dict[type[SessionError], str] = {
    SessionAccessDenied: "owner",
    SessionExpired: "expired",
    SessionClosed: "closed",
    SessionLimitReached: "limit",
    LeaseLost: "lease",
    SessionBusy: "busy",
}


# What an admission does


def _apply(
    connection: Connection,
    session: SessionInfo,
    context: RunContext,
    rules: EngineContext,
    now: datetime,
    *,
    is_known: bool,
) -> tuple[SessionInfo, bool]:
    """Carry out the decision of the first look. Returns the session that has the id now, and whether it is active.

    A state that is known was loaded after the tool calls of dead processes had been interrupted.
    """
    status = lifecycle.status_at(session, rules.settings, now)
    if context.admission == "fresh" and status == "expired":
        return _start_fresh(connection, session, context, rules, now), False
    if context.admission in ("revived", "reopened") and status not in lifecycle.OPEN:
        limits.make_room(connection, session.user_id, rules, now, but=session.id)
        end = lifecycle.expiry_of(session, rules.settings)
        reason = session.reason if session.status != "active" else end and end.reason
        revive(connection, context, context.admission, reason, now)
        is_known = False
    elif session.status == "expired":  # by another process, since this context was let in
        revive(connection, context, "revived", "running", now)
        is_known = False
    elif context.hand is not None and context.lease is None and is_same_second(to_text(session.last_active_at), now):
        return session, False
    if not is_known:
        runs.interrupt_calls_outside(connection, session.id)
    return session, True


def is_same_second(last_active_at: str, now: datetime) -> bool:
    """Each touch rewrites four indexes: once a second will do for what is many times written."""
    return last_active_at[:_SECOND] == to_text(now)[:_SECOND]


def revive(connection: Connection, context: RunContext, kind: str, reason: str | None, now: datetime) -> None:
    connection.execute(
        "UPDATE sessions SET status = 'active', reason = ?, ended_at = NULL, began_at = ?, opened_as = ?, pruned = 0"
        " WHERE id = ?",
        (kind, to_text(now), kind, context.session_id),
    )
    events.record(connection, context.session_id, kind, reason, now, run_id=context.run_id)


def _start_fresh(
    connection: Connection, session: SessionInfo, context: RunContext, rules: EngineContext, now: datetime
) -> SessionInfo:
    """The id with nothing said in it yet: whose it is, what it is called and its own settings stay."""
    aside = endings.rename_expired(connection, session, rules, now)
    _insert(
        connection, context, rules, now, owner=session if session.user_id is not None else context.identity, aside=aside
    )
    session_rows.inherit_details(connection, aside, session.id, is_fork=False)
    session_rows.write_expiry(connection, session.id, rules)
    return session_rows.get(connection, session.id)


def new_home() -> int:
    """A number for a new family. Numbers of 52 bits are exact in JSON, and 52 random bits do not repeat."""
    return random.getrandbits(52) + 1


def _insert(
    connection: Connection,
    context: RunContext,
    rules: EngineContext,
    now: datetime,
    *,
    owner: Identity | SessionInfo | None = None,
    aside: str | None = None,
) -> SessionInfo:
    """Open a session for the caller, or for another `owner`; `aside` is where one with this id was put."""
    owner, session_id = owner or context.identity, context.session_id
    latest_checkpoint.check_new(connection, session_id, rules.path)
    limits.make_room(connection, owner.user_id, rules, now)
    incarnation = tombstones.next_incarnation(connection, session_id)
    aside = aside or endings.put_archive_aside(connection, session_id)
    connection.execute(
        "INSERT INTO sessions (id, home, family_id, user_id, group_id, opened_as, reason, created_at, began_at,"
        " incarnation, last_active_at) VALUES (?, ?, ?, ?, ?, 'opened', 'opened', ?, ?, ?, ?)",
        (session_id, new_home(), session_id, owner.user_id, owner.group_id)
        + (to_text(now), to_text(now), incarnation, to_text(now)),
    )
    reason, detail = (None, {}) if aside is None else ("fresh", {"put_aside": aside})
    events.record(connection, session_id, "opened", reason, now, detail=detail, run_id=context.run_id)
    session_rows.touch(connection, session_id, rules, now)
    return session_rows.get(connection, session_id)
