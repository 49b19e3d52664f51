"""Hooks: the app's own functions, called when something has happened to a session.

The storage hands out the events that this process has committed; so no hook is called before the commit
or in the transaction. What other processes do is in `Session.events`, and `Session.follow` gives it as it comes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
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
        self._turn = threading.RLock()  # one at a time; a hook may itself call `deliver`
        self.faults = 0

    def add(self, name: Name, hook: H) -> H:
        check_callable("hook", hook, _HOOK)
        self._hooks[name].append(hook)
        self._storage.watch({kind for name, hooks in self._hooks.items() if hooks for kind in _KINDS[name]})
        return hook

    def wake(self) -> None:
        """Call the hooks for all that has happened, on a thread of their own, and wait for nothing."""
        if self._storage.has_events():
            with suppress(RuntimeError):  # the interpreter is on its way out
                threading.Thread(target=self._deliver_beside, name="session-hooks").start()

    def _deliver_beside(self) -> None:
        while self._storage.has_events() and self._turn.acquire(blocking=False):  # else another thread does it
            try:
                self.deliver()
            finally:
                self._turn.release()

    def deliver(self) -> None:
        """Call the hooks for all that has happened; returns when they have returned."""
        with self._turn:
            while (event := self._storage.take_event()) is not None:
                for name, hooks in self._hooks.items():
                    for hook in tuple(hooks) if event.kind in _KINDS[name] else ():
                        self._call(hook, event)

    def postponed(self, ended: SweepResult, now: datetime) -> datetime | None:
        """Until when the hooks want a session that is due to be spared; ``None``: they do not."""
        asked = [self._call(hook, ended) for hook in tuple(self.expiring)]
        durations: list[timedelta] = []
        for answer in asked:
            try:
                durations += [] if answer is None or answer is False else [parse_duration(answer)]
            except ValueError as error:
                self._fault(error)
        return now + max(durations) if durations else None

    def _call(self, hook: Callable[[Any], Any], what: Any) -> Any:
        """A hook's answer. Its exceptions are its own: they are counted, and the first is logged."""
        try:
            answer = hook(what)
            return _awaited(answer) if inspect.isawaitable(answer) else answer
        except Exception as error:  # noqa: BLE001  # it is the app's, and must not break a run
            self._fault(error)
            return None

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            logger.warning(
                "a hook of session_middleware raised %r; what it was called for goes on. "
                "Further faults are counted in Session.stats(), not logged.",
                error,
                exc_info=error,
            )


def _awaited(answer: Awaitable[Any]) -> Any:
    """Run to its end, on an event loop of its own: that of the caller may be waiting for this."""

    async def wait() -> Any:
        return await answer

    with ThreadPoolExecutor(1, thread_name_prefix="session-hook") as thread:
        return thread.submit(asyncio.run, wait()).result()


class Hookable:
    """The decorators: ``@sessions.on_closed``. A hook takes an `Event`, and may be ``async``.

    Hooks are called soon after the commit of what they are for, one at a time and in order, on a thread of their own;
    an ``async`` one on an event loop of its own. `Sessions.settle` and `Sessions.close` wait for them. They are for
    what is done through this `Sessions`, its sweeps among it; a process that is killed calls them no more.
    `Event.seq` is 0 where the record has no such event: of an error of a run, and of a session that was deleted.
    """

    hooks: EventHooks

    def on_opened(self, hook: H) -> H:
        """Called when a session was opened or forked."""
        return self.hooks.add("opened", hook)

    def on_resumed(self, hook: H) -> H:
        """Called when a session was resumed, revived or reopened."""
        return self.hooks.add("resumed", hook)

    def on_state_changed(self, hook: H) -> H:
        """Called when a session's status has changed, but for idle, which is a matter of the clock."""
        return self.hooks.add("state_changed", hook)

    def on_closed(self, hook: H) -> H:
        """Called when a session has ended, whichever way: `Event.kind` and `Event.reason` say how and why."""
        return self.hooks.add("closed", hook)

    def on_error(self, hook: H) -> H:
        """Called when a run has ended with an error, which `Event.detail` has."""
        return self.hooks.add("error", hook)

    def on_expiring(self, hook: H) -> H:
        """Called with an `SweepResult` before a sweep expires a session. A duration returned postpones that, once.

        It is asked on the sweep's thread, and once again only after the session has been active.
        """
        check_callable("hook", hook, _HOOK)
        self.hooks.expiring.append(hook)
        return hook
