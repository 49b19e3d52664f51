"""Hooks: functions of the app that are called after events of a session.

The storage queues the events that this process commits, and reports each such commit. So no hook is called before
the commit or inside the transaction. Events of other processes are in `Session.events` and `Session.follow`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar

from session_middleware.models import Event, SweepResult
from session_middleware.settings import parse_duration
from session_middleware.storage.protocol import Storage
from session_middleware.storage.validation import check_callable

logger = logging.getLogger("session_middleware")

H = TypeVar("H", bound=Callable[..., Any])
Name: TypeAlias = Literal["opened", "resumed", "state_changed", "closed", "error", "expiring"]

_KINDS: dict[Name, set[str]] = {
    "opened": {"opened", "forked"},
    "resumed": {"resumed", "revived", "reopened"},
    "state_changed": {"opened", "revived", "reopened", "restored", "completed", "failed", "abandoned", "expired"},
    "closed": {"completed", "failed", "abandoned", "expired", "deleted", "archived", "merged"},
    "error": {"error"},
    "expiring": set(),  # called by a sweep, and not after an event
}


class EventHooks:
    """The hooks of one `Sessions`. They are called one at a time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pending: deque[Event] = deque()
        self._hooks: dict[Name, list[Callable[[Any], Any]]] = {name: [] for name in _KINDS}
        self._process, self._lock = os.getpid(), threading.RLock()  # a hook may itself call `deliver`
        self.faults = 0

    def add(self, name: Name, hook: H) -> H:
        check_callable("hook", hook, "a function of one argument, as by @sessions.on_closed over its def")
        self._hooks[name].append(hook)
        kinds = set[str]().union(*(_KINDS[name] for name, hooks in self._hooks.items() if hooks))
        self._storage.subscribe(kinds, self._deliver_on_a_thread)
        return hook

    def has(self, name: Name) -> bool:
        return bool(self._hooks[name])

    def _deliver_on_a_thread(self, events: Sequence[Event]) -> None:
        self._reset_after_fork()
        self._pending.extend(events)
        with suppress(RuntimeError):  # the interpreter is shutting down
            threading.Thread(target=self.deliver, name="session-hooks").start()

    def deliver(self) -> None:
        """Call the hooks for queued events. Returns when they have returned."""
        self._reset_after_fork()
        with self._lock:
            while self._pending:
                event = self._pending.popleft()
                for name, kinds in _KINDS.items():
                    for hook in tuple(self._hooks[name]) if event.kind in kinds else ():
                        self._call(hook, event)

    def _reset_after_fork(self) -> None:
        """The parent process delivers its events. The copy of its lock may be held by no thread."""
        if os.getpid() != self._process:
            self._process, self._lock = os.getpid(), threading.RLock()
            self._pending.clear()

    def postponed(self, due: SweepResult, now: datetime) -> datetime | None:
        """The time until which ``expiring`` hooks postpone the expiry of a due session, or ``None``."""
        durations: list[timedelta] = []
        for hook in tuple(self._hooks["expiring"]):
            answer = self._call(hook, due)
            try:
                durations += [] if answer is None or answer is False else [parse_duration(answer)]
            except ValueError as error:
                self._count_fault(error)
        return now + max(durations) if durations else None

    def _call(self, hook: Callable[[Any], Any], argument: Any) -> Any:
        try:
            answer = hook(argument)
            return _awaited(answer) if inspect.isawaitable(answer) else answer
        except Exception as error:  # noqa: BLE001  # a fault of the app must not break a run
            self._count_fault(error)
            return None

    def _count_fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            message = "a hook of session_middleware raised %r; the operation continues. Session.stats() counts further"
            logger.warning(f"{message} faults, which are not logged.", error, exc_info=error)


def _awaited(answer: Awaitable[Any]) -> Any:
    """The result, computed on another event loop: the caller's may be waiting for this call."""

    async def wait() -> Any:
        return await answer

    with ThreadPoolExecutor(1, thread_name_prefix="session-hook") as thread:
        return thread.submit(asyncio.run, wait()).result()
