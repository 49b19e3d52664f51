"""Sweeps: ending the sessions that are due, in one process at a time, and deleting what dead processes left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from session_middleware import lifecycle
from session_middleware.errors import InvalidArgument, StorageError
from session_middleware.models import Clock, Status, SweepResult
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.hooks import EventHooks
from session_middleware.runtime.resources import Key, Resources
from session_middleware.settings import SessionSettings, age_of
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext
from session_middleware.storage.validation import Timeout, checked_moment

_DUTY = "\0sweep"
_PAGE = 5_000  # sessions that are listed at a time
_RESOURCES_SECONDS = 5.0  # between two checks for resources of ended sessions


class Sweeper:
    """Sweeps on request, and periodically in the background.

    Args:
        flush: commits what the runs of this process have buffered.
        forget: drops what this process caches of a deleted session.
    """

    def __init__(
        self,
        storage: Storage,
        settings: SessionSettings,
        hooks: EventHooks,
        resources: Resources,
        *,
        clock: Clock,
        flush: Callable[[], object],
        forget: Callable[[str], object],
    ) -> None:
        self._storage, self._settings = storage, settings
        self._hooks, self._resources = hooks, resources
        self._clock, self._flush, self._forget = clock, flush, forget

    def schedule(self, background: BackgroundWorker) -> None:
        """Sweep every ``sweep_interval`` from the first run on, and close resources of ended sessions."""
        background.add_task(self.close_resources, _RESOURCES_SECONDS)
        if self._settings.sweep_interval is not None:
            background.add_task(self._sweep_in_background, self._settings.sweep_interval.total_seconds())

    def sweep(
        self,
        now: datetime | None = None,
        *,
        dry_run: bool = False,
        older_than: Timeout = None,
        status: Status | None = None,
    ) -> list[SweepResult]:
        moment = checked_moment("now", now) or self._clock()
        self._flush()
        age = age_of("older_than", older_than)
        if age is None and status is not None:
            raise InvalidArgument("status", status, wanted="older_than too, as a sweep chooses by status only with it")
        list_due = partial(
            self._storage.list_due, moment, inactive_since=None if age is None else moment - age, status=status
        )
        if dry_run:
            return list_due(sized=True)
        return list(self._end_all(list_due, moment))

    def _sweep_in_background(self) -> None:
        now = self._clock()
        self._flush()
        for _ in self._end_all(partial(self._storage.list_due, now), now):  # no list: only a page is in memory
            pass

    def _end_all(self, list_due: Callable[..., list[SweepResult]], now: datetime) -> Iterator[SweepResult]:
        """End the due sessions until none is due: the retention of a session that expires now may be over already.

        A failure is raised after the other sessions have ended.
        """
        duty = self._storage.acquire_duty(_DUTY)
        if duty is None or duty.lease is None:
            return
        left: set[str] = set()  # sessions that were not ended, because of a hook, a new run, or a failure
        failure: StorageError | None = None
        try:
            while page := [due for due in list_due(limit=_PAGE + len(left)) if due.session_id not in left]:
                ended: list[SweepResult] = []
                try:
                    ended = self._end(page, now, duty)
                except StorageError as error:
                    failure = failure or error
                left |= {due.session_id for due in page} - {due.session_id for due in ended}
                yield from ended
            self._storage.collect_garbage()
        finally:
            self._storage.release_leases([duty.lease])
        if failure is not None:
            raise failure

    def _end(self, due: Sequence[SweepResult], now: datetime, duty: RunContext) -> list[SweepResult]:
        if self._hooks.has("expiring"):
            due = [each for each in due if not self._is_postponed(each, now, duty)]
        ended = self._storage.end_due(due, now=now, duty=duty)
        for each in ended:
            if each.action in ("delete", "archive"):
                self._forget(each.session_id)
        self._resources.close([each.session_id for each in ended])
        return ended

    def _is_postponed(self, due: SweepResult, now: datetime, duty: RunContext) -> bool:
        session = None
        with suppress(StorageError):  # the row is damaged; `end_due` skips it with a warning
            session = self._storage.find_session(due.session_id)
        if due.reason not in ("idle_timeout", "max_age") or session is None or session.postponed_until is not None:
            return False
        until = self._hooks.postponed(due, now)
        self._storage.renew_leases([duty])  # the hook may have taken a long time
        if until is not None:
            self._storage.postpone_expiry(due.session_id, until)
        return until is not None

    def close_resources(self) -> None:
        """Close the resources of sessions that have ended, in this or another process."""
        self._resources.close_where(self._has_ended)

    def _has_ended(self, key: Key) -> bool:
        with suppress(StorageError):  # the next call of the session raises it
            session = self._storage.find_session(key.session_id)
            if session is None or session.incarnation != key.incarnation:
                return True
            return lifecycle.status_at(session, self._settings, self._clock()) not in lifecycle.OPEN
        return False
