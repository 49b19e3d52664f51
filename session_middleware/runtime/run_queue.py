"""One run at a time in a session, where ``on_busy`` asks for it: taking a turn, waiting for it, or being refused.

The queue is in the database, so it holds across processes. Of those that wait in this process for one
session, only the first asks the database, and under asyncio they wait on the event loop: a hundred
waiting runs are a hundred sleeping tasks. A thread that waits for a run that waits for the thread
does not come about, because a run inside a run has its turn already.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Literal

from session_middleware.errors import SessionBusy
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

_SHORTEST, _LONGEST = 0.01, 0.25  # seconds between two times a waiting run asks


class _Waiter:
    """A run that waits, and since when."""

    def __init__(self, visit: RunContext) -> None:
        self.visit = visit
        self.began = time.monotonic()
        self.asked = 0
        self.lock = threading.Lock()  # a run that is cancelled while it asks leaves when it has asked
        self.is_over = False

    @property
    def number(self) -> int | None:
        """Its place in the queue."""
        return self.visit.lease.number if self.visit.lease is not None else None


class RunQueue:
    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        pulse: BackgroundWorker,
        visits: RunRegistry,
        *,
        settle: Callable[[str], None],
        on_busy: Literal["allow", "wait", "reject"],
        timeout_seconds: float,
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._pulse = pulse
        self._visits = visits
        self._settle = settle  # what the recorder has handed over may be the end of the last run
        self._on_busy = on_busy
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._queues: dict[str, list[_Waiter]] = {}

    def _is_needed(self, visit: RunContext) -> bool:
        """Whether this visit has to ask for its turn."""
        lease = visit.lease
        return self._on_busy != "allow" and lease is not None and not lease.is_exclusive and not visit.reading

    def take(self, visit: RunContext) -> RunContext:
        """The visit, when it has the session alone. Raises `SessionBusy`, or what refuses the visit."""
        if not self._is_needed(visit):
            return visit
        wait = self._join(visit)
        try:
            with self._visits.claiming(visit):
                while (pause := self._ask(wait)) is not None:
                    time.sleep(pause)
        finally:
            self._part(wait)
        return visit

    async def atake(self, visit: RunContext) -> RunContext:
        """As `take`. Nothing of the waiting is done on a thread."""
        if not self._is_needed(visit):
            return visit
        wait = self._join(visit)
        try:
            with self._visits.claiming(visit):
                while True:
                    is_mine_to_ask = self._is_late(wait) or not self._place(wait)
                    pause = await self._offload.run(self._ask, wait) if is_mine_to_ask else self._pause(wait)
                    if pause is None:
                        return visit
                    await asyncio.sleep(pause)
        finally:
            if visit.lease is None or visit.lease.is_exclusive:
                self._part(wait)
            else:
                await asyncio.shield(self._offload.run(self._part, wait))

    def _join(self, visit: RunContext) -> _Waiter:
        wait = _Waiter(visit)
        with self._lock:
            self._queues.setdefault(visit.session_id, []).append(wait)
        return wait

    def _place(self, wait: _Waiter) -> int:
        """How many of this process are before it; one that has no place in the queue yet takes it after those."""
        with self._lock:
            queue = list(self._queues[wait.visit.session_id])
        if wait.number is None:
            return sum(other.number is None for other in queue[: queue.index(wait)])
        return sum(other.number is not None and other.number < wait.number for other in queue)

    def _ask(self, wait: _Waiter) -> float | None:
        """Ask for the turn; after how many seconds to ask again, ``None`` when it has come. Raises `SessionBusy`."""
        with wait.lock:
            return None if wait.is_over else self._ask_now(wait)

    def _ask_now(self, wait: _Waiter) -> float | None:
        visit = wait.visit
        if self._place(wait) == 0:
            if not wait.asked:
                self._settle(visit.session_id)
            self._pulse.settle()
            wait.asked += 1
            if self._storage.acquire_session(visit, wait=self._on_busy == "wait"):
                return None
        if self._is_late(wait):  # only now: on a busy machine it may be late before it has asked at all
            run_id, process = self._storage.find_active_run(visit.session_id, but=visit.lease) or (None, None)
            raise SessionBusy(visit.session_id, run_id=run_id, process=process)
        return self._pause(wait)

    def _is_late(self, wait: _Waiter) -> bool:
        return time.monotonic() - wait.began > self._timeout_seconds

    def _pause(self, wait: _Waiter) -> float:
        return min(_LONGEST, _SHORTEST * (1 + wait.asked / 4 + 4 * self._place(wait)))

    def _part(self, wait: _Waiter) -> None:
        """It waits no more; if it has not had its turn, it gives its place away."""
        with wait.lock:
            wait.is_over = True
            with self._lock:
                queue = self._queues[wait.visit.session_id]
                queue.remove(wait)
                if not queue:
                    del self._queues[wait.visit.session_id]
            lease = wait.visit.lease
            if lease is not None and not lease.is_exclusive:
                self._storage.release_leases([lease])
                lease.number = None
