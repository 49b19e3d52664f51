"""The lifecycle over storage against a small model of it: whatever happens in whichever order, they agree."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from session_middleware import lifecycle
from session_middleware.errors import InvalidTransition, SessionClosed, SessionExpired, SessionNotFound
from session_middleware.models import Identity, Pin, Status
from session_middleware.settings import load_settings
from session_middleware.storage.record_entries import MessageEntry, RunEnd
from session_middleware.storage.run import RunContext
from session_middleware.storage.sqlite.engine import SqliteStorage
from session_middleware.storage.types import SessionFilter
from tests.conftest import Clock

IDLE_AFTER, IDLE_TIMEOUT, MAX_AGE, RETENTION = (timedelta(minutes=n) for n in (5, 30, 120, 300))
OPEN, ENDED = ("active", "idle"), ("expired", "completed", "failed", "abandoned")


class Model:
    """What a session should be, kept by hand: a few fields and the rules of the README."""

    def __init__(self, now: datetime) -> None:
        self.stored = "active"
        self.began = self.last_active = now
        self.ended: datetime | None = None
        self.pinned = self.running = False

    def status(self, now: datetime) -> str:
        if self.stored != "active":
            return self.stored
        if self.running:
            return "active"
        if not self.pinned and now >= min(self.last_active + IDLE_TIMEOUT, self.began + MAX_AGE):
            return "expired"
        return "idle" if now - self.last_active >= IDLE_AFTER else "active"

    def expire(self, now: datetime) -> bool:
        """Write down that it has expired, if it has and nobody did."""
        is_due = self.stored == "active" and self.status(now) == "expired"
        if is_due:
            self.ended = min(self.last_active + IDLE_TIMEOUT, self.began + MAX_AGE)
            self.stored = "expired"
        return is_due


class Machine(RuleBasedStateMachine):
    @initialize(
        on_resume=st.sampled_from(["revive", "reject"]),
        on_closed=st.sampled_from(["reopen", "reject"]),
        on_expire=st.sampled_from(["keep", "delete", "prune"]),
    )
    def start(self, on_resume: str, on_closed: str, on_expire: str) -> None:
        self.clock = Clock()
        self.settings = load_settings(
            idle_after=IDLE_AFTER,
            idle_timeout=IDLE_TIMEOUT,
            max_age=MAX_AGE,
            retention=RETENTION,
            on_resume=on_resume,
            on_closed=on_closed,
            on_expire=on_expire,
        )
        self.storage = SqliteStorage(":memory:", self.settings, clock=self.clock)
        self.model: Model | None = None
        self.was_deleted = False
        self.run: RunContext | None = None
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            assert self.storage.check(repair=False) == []
            self.storage.close()

    @rule(minutes=st.sampled_from([1, 4, 5, 26, 30, 90, 120, 301]))
    def time_passes(self, minutes: int) -> None:
        self.clock.advance(minutes=minutes)

    @precondition(lambda self: self.model is not None)
    @rule(seconds=st.sampled_from([-1, 0]))
    def time_passes_until_it_is_due(self, seconds: int) -> None:
        assert self.model is not None
        due = min(self.model.last_active + IDLE_TIMEOUT, self.model.began + MAX_AGE)
        self.clock.now = max(self.clock.now, due + timedelta(seconds=seconds))

    @precondition(lambda self: self.run is None)
    @rule()
    def a_run_begins_and_ends(self) -> None:
        self.a_run_begins()
        if self.run is not None:
            self.a_run_ends()

    @precondition(lambda self: self.run is None)
    @rule()
    def a_run_begins(self) -> None:
        now = self.clock()
        self.number += 1
        run = RunContext("t", Identity(), run_id=f"r{self.number}")
        status = self.model.status(now) if self.model else None
        refused: Any = None
        if status == "expired" and self.settings.on_resume == "reject":
            refused = SessionExpired
        elif status in ("completed", "failed", "abandoned") and self.settings.on_closed == "reject":
            refused = SessionClosed
        elif status is None and self.was_deleted and self.settings.on_resume == "reject":
            refused = SessionExpired
        try:
            self.storage.append(run)
        except (SessionExpired, SessionClosed) as error:
            was: Any = type(error)
        else:
            was = None
        assert was is refused
        if refused is not None:
            return
        expected = {None: "opened", "expired": "revived"}.get(status, "resumed" if status in OPEN else "reopened")
        assert run.state.admission == expected
        if self.model is None or status in ENDED:
            self.model, pinned = Model(now), self.model is not None and self.model.pinned
            self.model.pinned = pinned
        self.model.last_active = now
        self.model.running = True
        self.run = run

    @precondition(lambda self: self.run is not None)
    @rule()
    def a_run_writes(self) -> None:
        assert self.model is not None
        assert self.run is not None
        self.number += 1
        self.storage.append(self.run, [MessageEntry(f"m{self.number}", "user", "hi")])
        self.model.last_active = self.clock()

    @precondition(lambda self: self.run is not None)
    @rule()
    def a_run_ends(self) -> None:
        assert self.model is not None
        assert self.run is not None
        self.storage.append(self.run, [RunEnd("ok", None, 1)])
        self.run, self.model.running, self.model.last_active = None, False, self.clock()

    @precondition(lambda self: self.model is not None)
    @rule(to=st.sampled_from(["completed", "failed", "abandoned"]))
    def it_is_ended(self, to: Any) -> None:
        assert self.model is not None
        status = self.model.status(self.clock())
        if status not in OPEN:
            with pytest.raises(InvalidTransition, match=f"is {status} and cannot become {to}"):
                self.storage.end_session("t", to, reason="by_user", detail={})
            return
        self.storage.end_session("t", to, reason="by_user", detail={})
        self.model.stored, self.model.ended = to, self.clock()

    @precondition(lambda self: self.model is not None)
    @rule()
    def it_is_pinged(self) -> None:
        assert self.model is not None
        status = self.model.status(self.clock())
        if status not in OPEN:
            with pytest.raises(InvalidTransition, match=f"is {status} and cannot become active"):
                self.storage.ping_session("t")
            return
        self.storage.ping_session("t")
        self.model.last_active = self.clock()

    @precondition(lambda self: self.model is not None)
    @rule(pinned=st.booleans())
    def it_is_pinned_or_not(self, pinned: bool) -> None:
        assert self.model is not None
        self.storage.pin_session("t", Pin(at=self.clock()) if pinned else None)
        if pinned:
            self.model.expire(self.clock())  # what has expired stays so
        if self.model.pinned and not pinned:
            self.model.last_active = self.clock()
        self.model.pinned = pinned

    @rule()
    def it_is_swept(self) -> None:
        now = self.clock()
        for _ in range(2):  # what has just expired may have been expired for longer than it is kept
            self.storage.end_due(self.storage.list_due(now), now=now)
            self._sweep_model(now)
        assert self.storage.list_due(now) == []

    def _sweep_model(self, now: datetime) -> None:
        model = self.model
        if model is None or model.running or model.pinned:
            return
        if model.expire(now):
            if self.settings.on_expire == "delete":
                self.model, self.was_deleted = None, True
        elif model.ended is not None and now >= model.ended + RETENTION:
            self.model, self.was_deleted = None, True

    @precondition(lambda self: self.model is not None and self.run is None)
    @rule()
    def it_is_deleted(self) -> None:
        assert self.storage.delete_session("t").sessions == 1
        self.model, self.was_deleted = None, True

    @rule()
    def it_is_looked_at(self) -> None:
        before = self.storage.find_session("t")
        try:
            self.storage.authorize(RunContext("t", Identity(), reading=True))
        except (SessionExpired, SessionNotFound):
            return
        assert self.storage.find_session("t") == before

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "storage"):
            return
        found = self.storage.find_session("t")
        if self.model is None:
            assert found is None
            return
        assert found is not None
        seen = lifecycle.as_of(found, self.settings, self.clock())
        assert seen.status == self.model.status(self.clock())
        assert seen.last_active_at == self.model.last_active
        assert (seen.ended_at is None) == (self.model.stored == "active")
        for status in ("active", "idle", *ENDED):
            where = SessionFilter(status=[status])  # type: ignore[arg-type]
            assert self.storage.count_sessions(where) == int(status == seen.status)


TestLifecycle = pytest.mark.slow(Machine.TestCase)
TestLifecycle.settings = hypothesis_settings(max_examples=15, stateful_step_count=30, deadline=None)


def test_only_the_transitions_of_the_table_are_transitions() -> None:
    for status, to in product(get_args(Status), repeat=2):
        if (status, to) in lifecycle.TRANSITIONS:
            assert lifecycle.check_transition("t", status, to) == lifecycle.TRANSITIONS[status, to]
        else:
            with pytest.raises(InvalidTransition, match=f"is {status} and cannot become {to}"):
                lifecycle.check_transition("t", status, to)
