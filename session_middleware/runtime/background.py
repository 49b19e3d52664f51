"""What goes on beside the runs of one `Sessions`, on one thread: telling that they live, and sweeps.

The thread is started by the first run, again after a fork, and stops when the `Sessions` is closed or
nobody holds it any more. A run's end may be told from anywhere, a garbage collector's callback included,
so telling it takes no lock.
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

BEAT_SECONDS = 10.0  # how often the leases of runs are renewed
_SILENT_BEATS = 6  # a run whose end nothing tells is taken for dead when it has written nothing for so long


@dataclass(slots=True)
class _PeriodicTask:
    do: Callable[[], None]
    every_seconds: float
    next_at: float = 0.0  # by the monotonic clock


class BackgroundWorker:
    """The runs in progress, and the thread that tells of them while they live."""

    def __init__(self, storage: Storage, *, at_once: bool = False, beat_seconds: float = BEAT_SECONDS) -> None:
        self._storage = storage
        self._at_once = at_once  # somebody may wait for the end of a run
        self._chores = [_PeriodicTask(self.beat, beat_seconds)]
        self._ended: deque[Lease] = deque()
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._runs: dict[Lease, RunContext] = {}
        self._wakeups: SimpleQueue[bool] = SimpleQueue()  # False: stop
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended.clear()

    def add_chore(self, do: Callable[[], None], every_seconds: float) -> None:
        """Have something done on the thread, as long as there is one."""
        self._chores.append(_PeriodicTask(do, every_seconds))

    def begin(self, visit: RunContext) -> None:
        """A run begins."""
        assert visit.lease is not None
        self.start()
        with self._lock:
            self._runs[visit.lease] = visit

    def start(self) -> None:
        if os.getpid() != self._process:  # this is a fork: its parent's runs are its parent's
            self._start_afresh()
        with self._lock:
            if self._thread is None:
                now = time.monotonic()
                for chore in self._chores:
                    chore.next_at = now + chore.every_seconds
                self._thread = threading.Thread(
                    target=_run_thread, args=(weakref.ref(self), self._wakeups), name="session-upkeep", daemon=True
                )
                self._thread.start()

    def end(self, lease: Lease, error: BaseException | None = None) -> None:
        """The run has ended, by `error` if by one. May be called from anywhere, at any time, and again.

        The lease's row goes with that of the run. Where the run has none, it goes with the next beat, or at once
        where another run may be waiting for that; on an event loop, and in a generator that the garbage collector
        closes, the thread does it.
        """
        if not lease.is_over:
            lease.is_over = True
            self._storage.mark_lease_ended(lease)
            self._ended.append(lease)
            if not self._at_once or lease.has_row:
                return
            if isinstance(error, GeneratorExit) or is_on_a_loop():
                self.wake()
            else:
                self.settle()

    def wake(self) -> None:
        self._wakeups.put(True)

    def settle(self) -> None:
        """Take the leases of ended runs out of the database."""
        with self._settling:  # when this returns, they are out, whoever did it
            ended: list[Lease] = []
            while self._ended:
                ended.append(self._ended.popleft())
            if ended:
                with self._lock:
                    for lease in ended:
                        self._runs.pop(lease, None)
                self._storage.release_leases(ended)

    def hear(self, visit: RunContext) -> None:
        """A run whose end nothing tells has written something, so it goes on."""
        if visit.lease is not None and not visit.lease.is_over:
            visit.lease.silent_beats = 0
            self.begin(visit)

    def beat(self) -> None:
        """Tell of the runs that live. One whose end nothing tells is taken for dead when it was silent for long."""
        self.settle()
        with self._lock:
            silent = [lease for lease in self._runs if _is_silent(lease)]
            for lease in silent:
                del self._runs[lease]
            living = [visit for lease, visit in self._runs.items() if not lease.is_over]
        for visit in living:
            self._storage.register_lease(visit)
        self._storage.renew_leases([visit.lease for visit in living if visit.lease is not None])
        self._storage.release_leases(silent)

    def close(self) -> None:
        """Stop, and release all that is left."""
        if os.getpid() != self._process:
            return
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

    def do_chores(self) -> float:
        """Do what is due; how many seconds until something is again."""
        self.settle()
        for chore in self._chores:
            if time.monotonic() >= chore.next_at:
                chore.do()
                chore.next_at = time.monotonic() + chore.every_seconds
        return max(0.0, min(chore.next_at for chore in self._chores) - time.monotonic())


def _is_silent(lease: Lease) -> bool:
    if lease.silent_beats is None:
        return False
    lease.silent_beats += 1
    return lease.silent_beats > _SILENT_BEATS


def _run_thread(pulse_ref: weakref.ref[BackgroundWorker], wakeups: SimpleQueue[bool]) -> None:
    """The thread. It holds the pulse only while there is something to do."""
    pause = 0.0
    while True:
        try:
            if not wakeups.get(timeout=pause):
                return
        except Empty:
            pass
        pulse = pulse_ref()
        if pulse is None:
            return
        try:
            pause = pulse.do_chores()
        except SessionError as error:
            logger.warning("session_middleware's upkeep failed and goes on (%s)", error)
            pause = BEAT_SECONDS
        del pulse
