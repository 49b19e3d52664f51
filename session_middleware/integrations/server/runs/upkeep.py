"""`RunUpkeep`: what a process tells the others about its runs, and what they ask of it.

Changes are collected and written together, at most ten times a second for all runs of a process; a stream to its own
client does not wait for this. The task begins with the first run and ends with the last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from session_middleware.errors import SessionError
from session_middleware.integrations.server.runs.job import Job
from session_middleware.integrations.server.runs.notes import Batch, RunNote, RunNotes
from session_middleware.models import utc_now

logger = logging.getLogger("session_middleware")

_WRITE_SECONDS = 0.1  # between two writes
_ORDER_SECONDS = 0.5  # between two looks at what others ask
_RENEW_SECONDS = 20.0  # between two renewals of the notes, by which a process shows that it is alive
_FAILED = "notes about runs could not be written, so other processes may not see these runs (%s)"


class RunUpkeep:
    """Writes the notes and events of this process' jobs, and carries out orders for them."""

    def __init__(self, notes: RunNotes, active: Callable[[], Collection[Job]]) -> None:
        self._notes, self._active = notes, active
        self._changed: dict[str, RunNote] = {}  # notes to write, by run id
        self._sharing: dict[str, Job] = {}  # jobs with events to write
        self._unsent: list[Batch] = []  # of a write that failed
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    def note(self, job: Job) -> None:
        """The job has changed: its note or its events will be written soon."""
        if not job.is_temporary or job.note.is_active:
            self._changed[job.note.run_id] = job.note
        if job.shares_events:
            self._sharing[job.note.run_id] = job
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="runs")

    def share(self, job: Job) -> None:
        """Write the events of a job for the other processes, those in memory first."""
        if not job.shares_events:
            job.shares_events = True
            self.note(job)

    def flush_soon(self) -> None:
        """Write everything now, without waiting for it: others should learn at once that a run has begun."""
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._try_flush())

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except SessionError as error:
            logger.warning(_FAILED, error)

    async def flush(self) -> None:
        """Write everything now."""
        notes, self._changed = self._changed, {}
        jobs, self._sharing = self._sharing, {}
        batches, self._unsent = self._unsent, []
        batches += [batch for job in jobs.values() if (batch := job.next_batch()) is not None]
        try:
            await self._notes.put(notes.values(), batches)
        except BaseException:
            self._changed, self._unsent = notes | self._changed, batches + self._unsent
            raise

    async def _keep(self) -> None:
        looked, renewed = 0.0, time.monotonic()
        while self._changed or self._sharing or self._unsent or self._active():
            try:
                await self.flush()
                now = time.monotonic()
                if now - looked >= _ORDER_SECONDS:
                    looked = now
                    await self._carry_out_orders()
                if now - renewed >= _RENEW_SECONDS:
                    renewed, at = now, utc_now().isoformat()
                    self._changed |= {job.note.run_id: replace(job.note, updated_at=at) for job in self._active()}
            except SessionError as error:
                logger.warning(_FAILED, error)
            await asyncio.sleep(_WRITE_SECONDS)
            if not self._changed and not self._sharing:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _ORDER_SECONDS)
            self._wake.clear()

    async def _carry_out_orders(self) -> None:
        jobs = list(self._active())
        orders = await self._notes.orders([(job.note.thread_id, job.note.run_id) for job in jobs])
        for job, order in zip(jobs, orders, strict=True):
            if order.share_events:
                self.share(job)
            if order.action is not None:
                job.cancel(order.action)
