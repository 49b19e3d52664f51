"""`RunQueue`: mutual exclusion of the runs of a session, if ``on_busy`` is ``"wait"`` or ``"reject"``.

The setting holds for runs whose config has no ``on_busy`` of its own.

The queue is in the database, so it covers all processes. Of the runs of this process that wait for one session, only
the first polls the database. Under asyncio a waiting run is a sleeping task and occupies no thread. A nested run shares
the lease of the run that encloses it, so the two cannot deadlock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from session_middleware.errors import SessionError
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import BusyRule, RunContext

_SHORTEST, _LONGEST = 0.01, 0.25  # seconds between two attempts of a waiting run
_GRACE_SECONDS = 0.1  # in which ``on_busy="reject"`` waits for the end of a run to be stored


@dataclass(slots=True, eq=False)
class _Waiter:
    """A waiting run."""

    context: RunContext
    began: float = field(default_factory=time.monotonic)
    attempts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # a cancelled run leaves after its attempt
    is_over: bool = False

    @property
    def number(self) -> int | None:
        """Its position in the database's queue."""
        return self.context.lease.number if self.context.lease is not None else None


class RunQueue:
    """Waiting for exclusive use of sessions.

    Args:
        flush: commits the buffered record of a session, which may contain the end of its last run.
    """

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        background: BackgroundWorker,
        runs: RunRegistry,
        *,
        flush: Callable[[str], None],
        on_busy: Literal["allow", "wait", "reject"],
        timeout_seconds: float,
    ) -> None:
        self._storage, self._offload, self._background, self._runs = storage, offload, background, runs
        self._flush, self._rule = flush, BusyRule(on_busy, timeout_seconds)
        self._lock = threading.Lock()
        self._queues: dict[str, list[_Waiter]] = {}

    def _is_needed(self, context: RunContext) -> bool:
        lease = context.lease
        is_exclusive = self._rule_of(context).on_busy != "allow"
        return is_exclusive and lease is not None and not lease.is_exclusive and not context.reading

    def _rule_of(self, context: RunContext) -> BusyRule:
        return context.busy or self._rule

    def acquire(self, context: RunContext) -> RunContext:
        """Return the context once its run has the session exclusively. Raises `SessionBusy`, or an admission error."""
        if not self._is_needed(context):
            return context
        waiter = self._enqueue(context)
        try:
            while (pause := self._try_acquire(waiter)) is not None:
                time.sleep(pause)
        except SessionError:
            self._runs.discard(context)
            raise
        finally:
            self._leave(waiter)
        return context

    async def aacquire(self, context: RunContext) -> RunContext:
        """`acquire`, for asyncio. No thread is occupied while the run waits."""
        if not self._is_needed(context):
            return context
        waiter = self._enqueue(context)
        try:
            while True:
                may_attempt = self._is_late(waiter) or not self._position(waiter)
                pause = await self._offload.run(self._try_acquire, waiter) if may_attempt else self._pause(waiter)
                if pause is None:
                    return context
                await asyncio.sleep(pause)
        except SessionError:
            self._runs.discard(context)
            raise
        finally:
            if context.lease is None or context.lease.is_exclusive:
                self._leave(waiter)
            else:
                await asyncio.shield(self._offload.run(self._leave, waiter))

    def _enqueue(self, context: RunContext) -> _Waiter:
        waiter = _Waiter(context)
        with self._lock:
            self._queues.setdefault(context.named_id, []).append(waiter)
        return waiter

    def _position(self, waiter: _Waiter) -> int:
        """The number of runs of this process before it. Runs without a number get theirs in order."""
        with self._lock:
            queue = list(self._queues[waiter.context.named_id])
        if waiter.number is None:
            return sum(other.number is None for other in queue[: queue.index(waiter)])
        return sum(other.number is not None and other.number < waiter.number for other in queue)

    def _try_acquire(self, waiter: _Waiter) -> float | None:
        """The seconds until the next attempt, or ``None`` if the session is acquired. Raises `SessionBusy`."""
        context, on_busy = waiter.context, self._rule_of(waiter.context).on_busy
        with waiter.lock:
            if waiter.is_over:
                return None
            is_late = self._is_late(waiter)  # on a busy machine, before its first attempt
            if is_late or self._position(waiter) == 0:
                if not waiter.attempts:
                    self._flush(context.session_id)
                self._background.release_ended_leases()
                waiter.attempts += 1
                if on_busy == "reject" and self._may_end(waiter):
                    return _SHORTEST
                if self._storage.acquire_session(context, wait=on_busy == "wait" and not is_late):
                    return None
            return self._pause(waiter)

    def _may_end(self, waiter: _Waiter) -> bool:
        """Whether the run that holds the session may be over: under asyncio its lease is released afterwards."""
        if time.monotonic() - waiter.began >= _GRACE_SECONDS:
            return False
        found = self._storage.find_active_run(waiter.context.session_id, but=waiter.context.lease)
        return found is not None and found.run_id not in waiter.context.shared_with

    def _is_late(self, waiter: _Waiter) -> bool:
        seconds = self._rule_of(waiter.context).timeout_seconds
        return seconds is not None and time.monotonic() - waiter.began > seconds

    def _pause(self, waiter: _Waiter) -> float:
        return min(_LONGEST, _SHORTEST * (1 + waiter.attempts / 4 + 4 * self._position(waiter)))

    def _leave(self, waiter: _Waiter) -> None:
        """Leave the queue. Releases the position, unless the session was acquired."""
        with waiter.lock:
            waiter.is_over = True
            with self._lock:
                queue = self._queues[waiter.context.named_id]
                queue.remove(waiter)
                if not queue:
                    del self._queues[waiter.context.named_id]
            lease = waiter.context.lease
            if lease is not None and not lease.is_exclusive:
                self._storage.release_leases([lease])
                lease.number = None
