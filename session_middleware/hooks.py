"""Hooks: the app's own functions, called when something happens to a session.

What happened is told by a row in the outbox, written in the transaction in which it happened, by whichever
process, and taken away when the hooks have returned. So hooks are called at least once, after a crash too, by
one of the processes that have them; and they may be called twice. The row waits for such a process for 30 days.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar, cast

from session_middleware.findings import Ended
from session_middleware.model import Event
from session_middleware.names import check_callable
from session_middleware.settings import parse_duration
from session_middleware.storage.port import Storage

logger = logging.getLogger("session_middleware")

Hook: TypeAlias = Callable[[Event], Awaitable[None] | None]
ExpiringHook: TypeAlias = Callable[[Ended], Any]
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


class Hooks:
    """The hooks of one `Sessions`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._hooks: dict[Name, list[Hook]] = {name: [] for name in _KINDS}
        self._expiring: list[ExpiringHook] = []
        self._turn = threading.RLock()  # events are told in order
        self.faults = 0

    def add(self, name: Name, hook: Hook) -> None:
        self._hooks[name].append(hook)
        self._storage.announce(name, _KINDS[name])

    @property
    def minds_expiry(self) -> bool:
        return bool(self._expiring)

    def add_expiring(self, hook: ExpiringHook) -> None:
        self._expiring.append(hook)

    def deliver(self) -> None:
        """Call the hooks for all that has happened; returns when they have returned."""
        if not any(self._hooks.values()):
            return
        with self._turn:
            while told := self._storage.take_told():
                for number, name, event in told:
                    for hook in self._hooks[cast("Name", name)]:
                        self._call(hook, event)
                    self._storage.acknowledge([number])

    def postponed(self, ended: Ended, now: datetime) -> datetime | None:
        """Until when the hooks want a session that is due to be spared; ``None``: they do not."""
        asked = [self._call(hook, ended) for hook in self._expiring]
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


_HOOK = "a function of one argument, as by @sessions.on_closed over its def"


class Hookable:
    """The decorators: ``@sessions.on_closed``. A hook takes an `Event`, and may be ``async``.

    Hooks are called soon after what they are for, one at a time and in order, on a thread of their own;
    an ``async`` one on an event loop of its own. `Sessions.settle` waits for them. What a process without such hooks
    has done, as a sweep from the command line, waits for one that has registered them on this database, for 30 days.
    """

    hooks: Hooks

    def on_opened(self, hook: H) -> H:
        """Called when a session was opened or forked."""
        return self._add("opened", hook)

    def on_resumed(self, hook: H) -> H:
        """Called when a session was resumed, revived or reopened."""
        return self._add("resumed", hook)

    def on_state_changed(self, hook: H) -> H:
        """Called when a session's status has changed, but for idle, which is a matter of the clock."""
        return self._add("state_changed", hook)

    def on_closed(self, hook: H) -> H:
        """Called when a session has ended, whichever way: `Event.kind` and `Event.reason` say how and why."""
        return self._add("closed", hook)

    def on_error(self, hook: H) -> H:
        """Called when a run has ended with an error, which `Event.detail` has."""
        return self._add("error", hook)

    def on_expiring(self, hook: H) -> H:
        """Called with an `Ended` before a sweep expires a session. A duration returned postpones that, once.

        It is asked on the sweep's thread, and once again only after the session has been active.
        """
        check_callable("hook", hook, _HOOK)
        self.hooks.add_expiring(hook)
        return hook

    def _add(self, name: Name, hook: H) -> H:
        check_callable("hook", hook, _HOOK)
        self.hooks.add(name, hook)
        return hook
