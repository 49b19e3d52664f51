"""What goes on beside the runs of one `Sessions`, on one thread: telling that they live, sweeps, calling hooks.

The thread is started by the first run, again after a fork, and stops when the `Sessions` is closed or
nobody holds it any more. A run's end may be told from anywhere, a garbage collector's callback included,
so telling it takes no lock.
"""

from __future__ import annotations

import gc
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
from session_middleware.storage.port import Storage
from session_middleware.storage.visit import Lease, Visit

logger = logging.getLogger("session_middleware")

BEAT_SECONDS = 10.0  # how often the leases of runs are renewed
_COLLECT_SECONDS = 1.0  # how often garbage is collected for it, at most


@dataclass(slots=True)
class _Chore:
    do: Callable[[], None]
    every_seconds: float
    on_wake: bool = False  # also whenever the thread is woken
    next_at: float = 0.0  # by the monotonic clock


class Pulse:
    """The runs in progress, and the thread that tells of them while they live."""

    def __init__(self, storage: Storage, *, at_once: bool = False, beat_seconds: float = BEAT_SECONDS) -> None:
        self._storage = storage
        self._at_once = at_once  # somebody may wait for the end of a run
        self._chores = [_Chore(self.beat, beat_seconds)]
        self._ended: deque[Lease] = deque()
        self._collected = 0.0  # when garbage was
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._runs: dict[Lease, Visit] = {}
        self._wakeups: SimpleQueue[bool] = SimpleQueue()  # False: stop
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended.clear()

    def add_chore(self, do: Callable[[], None], every_seconds: float, *, on_wake: bool = False) -> None:
        """Have something done on the thread, as long as there is one."""
        self._chores.append(_Chore(do, every_seconds, on_wake))

    def begin(self, visit: Visit) -> None:
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
                    target=_go_on, args=(weakref.ref(self), self._wakeups), name="session-upkeep", daemon=True
                )
                self._thread.start()

    def end(self, lease: Lease) -> None:
        """The run has ended. May be called from anywhere, at any time, and again.

        Its row goes with the next beat, or as soon as can be where another run may be waiting for that.
        """
        if not lease.is_over:
            lease.is_over = True
            self._storage.leave(lease)
            self._ended.append(lease)
            if self._at_once and not lease.is_told:  # else it goes with the row of the run
                self.wake()

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
                self._storage.release(ended)

    def end_unheld(self) -> None:
        """End runs whose end nobody tells: those that have failed, and those that garbage is left of.

        Where no handler sees a run, its end is known by its config's. An error keeps that in its traceback.
        """
        now = time.monotonic()
        with self._lock:
            untold = [lease for lease in self._runs if not lease.is_told]
            is_time = bool(untold) and now - self._collected > _COLLECT_SECONDS
            self._collected = now if is_time else self._collected
        for lease in untold:
            if lease.has_failed:
                self.end(lease)
        if is_time:
            gc.collect()
        self.settle()

    def is_untold(self, visit: Visit) -> bool:
        """Whether another run goes on here in the visit's session, and nobody tells its end."""
        with self._lock:
            others = [each for lease, each in self._runs.items() if not (lease.is_told or lease.is_over)]
        return any(each is not visit and each.session_id == visit.session_id for each in others)

    def beat(self) -> None:
        """Tell of the runs that live."""
        with self._lock:
            failed = [lease for lease in self._runs if lease.has_failed and not lease.is_told]
        for lease in failed:
            self.end(lease)
        self.settle()
        with self._lock:
            living = [visit for lease, visit in self._runs.items() if not lease.is_over]
        for visit in living:
            self._storage.hold(visit)
        self._storage.renew([visit.lease for visit in living if visit.lease is not None])

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
        self._storage.release(left)

    def do_chores(self, *, woken: bool) -> float:
        """Do what is due; how many seconds until something is again."""
        self.settle()
        for chore in self._chores:
            if time.monotonic() >= chore.next_at or (woken and chore.on_wake):
                chore.do()
                chore.next_at = time.monotonic() + chore.every_seconds
        return max(0.0, min(chore.next_at for chore in self._chores) - time.monotonic())


def _go_on(pulse_ref: weakref.ref[Pulse], wakeups: SimpleQueue[bool]) -> None:
    """The thread. It holds the pulse only while there is something to do."""
    pause = 0.0
    while True:
        try:
            woken = wakeups.get(timeout=pause)
            if not woken:
                return
        except Empty:
            woken = False
        pulse = pulse_ref()
        if pulse is None:
            return
        try:
            pause = pulse.do_chores(woken=woken)
        except SessionError as error:
            logger.warning("session_middleware's upkeep failed and goes on (%s)", error)
            pause = BEAT_SECONDS
        del pulse
