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
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar

from session_middleware.models import Event, SweepResult
from session_middleware.settings import parse_duration
from session_middleware.storage.protocol import Storage
from session_middleware.storage.validation import check_callable

logger = logging.getLogger("session_middleware")

Hook: TypeAlias = Callable[[Event], Awaitable[None] | None]
ExpiringHook: TypeAlias = Callable[[SweepResult], Any]
H = TypeVar("H", bound=Callable[..., Any])
Name: TypeAlias = Literal["opened", "resumed", "state_changed", "closed", "error"]

_KINDS: dict[Name, frozenset[str]] = {
    "opened": frozenset({"opened", "forked"}),
    "resumed": frozenset({"resumed", "revived", "reopened"}),
    "state_changed": frozenset(
        {"opened", "revived", "reopened", "restored", "completed", "failed", "abandoned", "expired"}
    ),
    "closed": frozenset({"completed", "failed", "abandoned", "expired", "deleted", "archived"}),
    "error": frozenset({"error"}),
}
_HOOK = "a function of one argument, as by @sessions.on_closed over its def"


class EventHooks:
    """The hooks of one `Sessions`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._hooks: dict[Name, list[Hook]] = {name: [] for name in _KINDS}
        self.expiring: list[ExpiringHook] = []
        self._process, self._lock = os.getpid(), threading.RLock()
        self.faults = 0

    def add(self, name: Name, hook: H) -> H:
        check_callable("hook", hook, _HOOK)
        self._hooks[name].append(hook)
        kinds = {kind for name, hooks in self._hooks.items() if hooks for kind in _KINDS[name]}
        self._storage.subscribe(kinds, self._wake)
        return hook

    def add_expiring(self, hook: H) -> H:
        check_callable("hook", hook, _HOOK)
        self.expiring.append(hook)
        return hook

    @property
    def _turn(self) -> threading.RLock:
        """The lock of the calls: one at a time, and a hook may itself call `deliver`. A forked child has its own."""
        if os.getpid() != self._process:
            self._process, self._lock = os.getpid(), threading.RLock()
        return self._lock

    def _wake(self) -> None:
        """Call the hooks for pending events on another thread, without waiting."""
        with suppress(RuntimeError):  # the interpreter is shutting down
            threading.Thread(target=self._deliver_pending, name="session-hooks").start()

    def _deliver_pending(self) -> None:
        while self._storage.has_events() and self._turn.acquire(blocking=False):  # else another thread delivers
            try:
                self.deliver()
            finally:
                self._turn.release()

    def deliver(self) -> None:
        """Call the hooks for pending events. Returns when they have returned."""
        with self._turn:
            while (event := self._storage.take_event()) is not None:
                for name, hooks in self._hooks.items():
                    for hook in tuple(hooks) if event.kind in _KINDS[name] else ():
                        self._call(hook, event)

    def postponed(self, due: SweepResult, now: datetime) -> datetime | None:
        """The time until which hooks postpone the expiry of a due session, or ``None``."""
        answers = [self._call(hook, due) for hook in tuple(self.expiring)]
        durations: list[timedelta] = []
        for answer in answers:
            try:
                durations += [] if answer is None or answer is False else [parse_duration(answer)]
            except ValueError as error:
                self._fault(error)
        return now + max(durations) if durations else None

    def _call(self, hook: Callable[[Any], Any], argument: Any) -> Any:
        """The result of a hook. An exception is counted, and the first one is logged."""
        try:
            answer = hook(argument)
            return _awaited(answer) if inspect.isawaitable(answer) else answer
        except Exception as error:  # noqa: BLE001  # a fault of the app must not break a run
            self._fault(error)
            return None

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            logger.warning(
                "a hook of session_middleware raised %r; the operation continues. "
                "Further faults are counted in Session.stats(), not logged.",
                error,
                exc_info=error,
            )


def _awaited(answer: Awaitable[Any]) -> Any:
    """The result, computed on another event loop: the caller's may be waiting for this call."""

    async def wait() -> Any:
        return await answer

    with ThreadPoolExecutor(1, thread_name_prefix="session-hook") as thread:
        return thread.submit(asyncio.run, wait()).result()
