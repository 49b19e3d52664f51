"""Sweeping: ending what is due, in one process at a time, and tidying up what died without saying so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from session_middleware.errors import InvalidArgument, StorageError
from session_middleware.models import Status, SweepResult
from session_middleware.runtime.resources import Key
from session_middleware.services import Services
from session_middleware.settings import age_of
from session_middleware.storage.run import Lease
from session_middleware.storage.validation import Timeout, checked_moment

logger = logging.getLogger("session_middleware")

_DUTY = "sweep"
_ORPHANED = timedelta(minutes=10)  # how long after a session's last activity its writes wait for their checkpoint
_FIRST = timedelta(days=1)  # how far back the first sweep of a process looks for such writes
_HOOKS_SECONDS = 1.0  # how long after the commit hooks are called for what happens in a run, at most
_RESOURCES_SECONDS = 5.0  # how often the sessions that have resources open are looked at


class Sweeper:
    def __init__(self, parts: Services) -> None:
        self._parts = parts
        self._tidied: datetime | None = None  # up to where

    def go_on(self) -> None:
        """Sweep every ``sweep_interval`` from the first run on, and do all else that is to be done beside runs."""
        pulse, interval = self._parts.pulse, self._parts.settings.sweep_interval
        self._parts.visits.on_end(self._parts.memory.wake)
        self._parts.visits.on_end(self._parts.hooks.wake)
        pulse.add_chore(self._parts.hooks.wake, _HOOKS_SECONDS)
        pulse.add_chore(self.close_resources, _RESOURCES_SECONDS)
        if interval is not None:
            pulse.add_chore(self._sweep_beside, interval.total_seconds())

    def sweep(
        self, now: datetime | None, *, dry_run: bool, older_than: Timeout, status: Status | None
    ) -> Sequence[SweepResult]:
        parts, moment = self._parts, checked_moment("now", now) or self._parts.clock()
        parts.recorder.drain()
        parts.pulse.settle()
        age = age_of("older_than", older_than)
        if age is None and status is not None:
            raise InvalidArgument("status", status, wanted="older_than too, as a sweep chooses by status only with it")
        if dry_run:
            return self._list(moment, age, status, sized=True)
        lease = parts.storage.take_over(_DUTY)
        if lease is None:
            return []
        try:
            ended = self._end(self._list(moment, age, status), moment, lease)
            if age is None and ended:  # what has expired now may have been expired for longer than it is kept
                ended += self._end(self._list(moment, None, None), moment, lease)
            self._tidy()
        finally:
            parts.storage.release([lease])
        return ended

    def _list(
        self, now: datetime, age: timedelta | None, status: Status | None, *, sized: bool = False
    ) -> Sequence[SweepResult]:
        storage = self._parts.storage
        if age is None:
            return storage.list_due(now, sized=sized)
        return storage.list_older(now - age, status=status, sized=sized)

    def _end(self, due: Sequence[SweepResult], now: datetime, lease: Lease) -> list[SweepResult]:
        parts = self._parts
        if parts.hooks.expiring:
            due = [each for each in due if not self._is_postponed(each, now, lease)]
        ended = parts.storage.end_due(due, now=now, duty=lease)
        for each in ended:
            if each.action in ("delete", "archive"):
                parts.recorder.forget(each.session_id)
                parts.visits.forget(each.session_id)
        parts.resources.close([each.session_id for each in ended])
        parts.hooks.wake()
        return ended

    def _is_postponed(self, ended: SweepResult, now: datetime, lease: Lease) -> bool:
        parts = self._parts
        if ended.reason not in ("idle_timeout", "max_age"):
            return False
        try:
            session = parts.storage.find_session(ended.session_id)
        except StorageError:  # its row cannot be read: storage passes over it, and tells of it
            return False
        if session is None or session.postponed_until is not None:
            return False
        until = parts.hooks.postponed(ended, now)
        parts.storage.renew([lease])  # a hook takes what time it likes
        if until is not None:
            parts.storage.postpone(ended.session_id, until)
        return until is not None

    def _tidy(self) -> None:
        """Take away memories whose time is over, and what the dead have left: leases, and stray writes."""
        now = self._parts.clock()
        before = now - _ORPHANED
        self._parts.storage.sweep_memories()
        self._parts.storage.tidy(self._tidied or before - _FIRST, before)
        self._tidied = before

    def _sweep_beside(self) -> None:
        try:
            self.sweep(None, dry_run=False, older_than=None, status=None)
        except StorageError as error:
            logger.warning("a sweep beside the runs failed, and is tried again (%s)", error)

    def close_resources(self) -> None:
        """Close what belongs to sessions that have ended, whichever way and in whichever process."""
        self._parts.resources.close_where(self._has_ended)

    def _has_ended(self, key: Key) -> bool:
        with suppress(StorageError):  # the next caller of the session is given it
            session = self._parts.storage.find_session(key.session_id)
            is_same = session is not None and session.incarnation == key.incarnation
            return session is None or not is_same or session.status != "active"
        return False
