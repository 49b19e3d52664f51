"""`BackgroundWorker`: the daemon thread of a `Sessions`, which renews leases of active runs and runs periodic tasks.

The first run starts the thread, and after a fork the next one. It stops when the `Sessions` is closed or
garbage-collected. `BackgroundWorker.end` acquires no lock, because a garbage collector's callback may call it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from session_middleware.errors import SessionError
from session_middleware.storage.executor import is_on_a_loop
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import Lease, RunContext

logger = logging.getLogger("session_middleware")

HEARTBEAT_SECONDS = 10.0  # between two renewals of the leases
_SILENT_HEARTBEATS = 6  # without a write, after which a run whose end no callback reports counts as dead


@dataclass(slots=True)
class _PeriodicTask:
    run: Callable[[], object]
    every_seconds: float
    next_at: float = 0.0  # by the monotonic clock


class BackgroundWorker:
    """The active runs of this process, and the thread that renews their leases.

    Args:
        at_once: release a lease as soon as its run has ended, because another run may be waiting for it.
    """

    def __init__(self, storage: Storage, *, at_once: bool = False) -> None:
        self._storage, self._at_once = storage, at_once
        self._tasks = [_PeriodicTask(self.renew_leases, HEARTBEAT_SECONDS)]
        self._ended: deque[Lease] = deque()
        self._is_closed = False
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._runs: dict[Lease, RunContext] = {}
        self._wakeups: SimpleQueue[bool] = SimpleQueue()  # False: stop
        self._lock = threading.Lock()
        self._releasing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended.clear()

    def add_task(self, run: Callable[[], object], every_seconds: float) -> None:
        """Run a function periodically on the thread, once that has started."""
        self._tasks.append(_PeriodicTask(run, every_seconds))

    def begin(self, context: RunContext) -> None:
        """Register a run, whose lease is renewed from now on."""
        assert context.lease is not None
        self.start()
        with self._lock:
            self._runs[context.lease] = context

    def start(self) -> None:
        if os.getpid() != self._process:  # a fork; the runs of the parent process stay the parent's
            self._reset()
        with self._lock:
            if self._thread is None and not self._is_closed:
                now = time.monotonic()
                for task in self._tasks:
                    task.next_at = now + task.every_seconds
                self._thread = threading.Thread(
                    target=_run_thread, args=(weakref.ref(self), self._wakeups), name="session-upkeep", daemon=True
                )
                self._thread.start()

    def end(self, lease: Lease, error: BaseException | None = None) -> None:
        """Mark a run as ended, with its error if it has one. May be called from any thread, and repeatedly.

        The lease's row is deleted with the end of the run's row. If the run has no row, the next heartbeat
        releases the lease, or this call does so with `at_once`. On an event loop, and in a generator that is
        garbage-collected, the thread releases it.
        """
        if lease.is_over:
            return
        lease.is_over = True
        self._storage.mark_lease_ended(lease)
        self._ended.append(lease)
        if self._at_once and not lease.has_row:
            if isinstance(error, GeneratorExit) or is_on_a_loop():
                self._wakeups.put(True)
            else:
                self.release_ended_leases(with_row=False)

    def release_ended_leases(self, *, with_row: bool = True) -> None:
        """Release the leases of ended runs. When this returns, they are released, by this or another thread.

        Args:
            with_row: also those of runs with a row, whose end may not be written yet.
        """
        with self._releasing:
            given = [self._ended.popleft() for _ in range(len(self._ended))]
            self._ended.extend(lease for lease in given if lease.has_row and not with_row)
            if ended := [lease for lease in given if with_row or not lease.has_row]:
                with self._lock:
                    for lease in ended:
                        self._runs.pop(lease, None)
                self._storage.release_leases(ended)

    def note_activity(self, context: RunContext) -> None:
        """Note a write of a run whose end no callback reports: the run is still active."""
        if context.lease is not None and not context.lease.is_over:
            context.lease.silent_beats = 0
            self.begin(context)

    def renew_leases(self) -> None:
        """Renew the leases of active runs. A run that was silent for too long counts as dead."""
        self.release_ended_leases()
        with self._lock:
            silent = [lease for lease in self._runs if _is_silent(lease)]
            for lease in silent:
                del self._runs[lease]
            active = [context for lease, context in self._runs.items() if not lease.is_over]
        self._storage.renew_leases(active)
        self._storage.release_leases(silent)

    def close(self) -> None:
        """Stop the thread, and release all leases."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._wakeups.put(False)
            thread.join()
        with self._lock:
            left = list(self._runs)
            self._runs.clear()
        for lease in left:
            lease.is_over = True
        self._storage.release_leases(left)

    def run_due_tasks(self) -> float:
        """Run the tasks that are due. Returns the seconds until the next one is."""
        self.release_ended_leases(with_row=False)
        for task in self._tasks:
            if time.monotonic() >= task.next_at:
                try:
                    task.run()
                finally:
                    task.next_at = time.monotonic() + task.every_seconds
        return max(0.0, min(task.next_at for task in self._tasks) - time.monotonic())


def _is_silent(lease: Lease) -> bool:
    if lease.silent_beats is None:
        return False
    lease.silent_beats += 1
    return lease.silent_beats > _SILENT_HEARTBEATS


def _run_thread(worker_ref: weakref.ref[BackgroundWorker], wakeups: SimpleQueue[bool]) -> None:
    """The thread. It refers to the worker weakly while it waits, so that the worker can be garbage-collected."""
    pause = 0.0
    while True:
        try:
            if not wakeups.get(timeout=pause):
                return
        except Empty:
            pass
        worker = worker_ref()
        if worker is None:
            return
        try:
            pause = worker.run_due_tasks()
        except SessionError as error:
            logger.warning("a background task of session_middleware failed and will be repeated (%s)", error)
            pause = HEARTBEAT_SECONDS
        del worker
