"""Iteration over the records of a session, of any process, as they are committed.

No transaction and no lock is held between two polls. The interval between polls grows until there is a new record.
If the storage reports the changes of all processes, the follower polls after a change, and reads nothing while idle.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import NamedTuple

from session_middleware.errors import SessionNotFound
from session_middleware.models import Run, SessionInfo
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.types import Part, Record, Watch

_PAGE = 256  # records per read
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.01, 0.25  # between two polls
# Between two polls if changes are reported. The process of an unfinished record may be killed, or a report may be lost.
_UNFINISHED_SECONDS, _IDLE_SECONDS = 2.0, 60.0


class Poll(NamedTuple):
    new: list[Record]
    is_over: bool


class Following:
    """The position of a follower: the last record it got, and which of its records were unfinished then."""

    def __init__(
        self,
        storage: Storage,
        session_id: str,
        *,
        after: int,
        has_ended: Callable[[SessionInfo | None], bool],
        check: Callable[[], object],
    ) -> None:
        self._storage = storage
        self._session_id = session_id
        self._after = after
        self._has_ended = has_ended
        self._check = check  # raises if the session does not exist
        self._unfinished: dict[int, Record] | None = None
        self._session: SessionInfo | None = None
        self._polled_at = -math.inf
        self._watch = Watch()

    def watch(self, on_change: Callable[[], object]) -> Watch:
        self._watch = self._storage.watch_session(self._session_id, on_change)
        return self._watch

    def is_due(self, *, has_changed: bool) -> bool:
        """Whether a poll may return something. This reads nothing."""
        if has_changed or not self._watch.is_live or self._has_ended(self._session):
            return True
        longest = _UNFINISHED_SECONDS if self._unfinished else _IDLE_SECONDS
        return time.monotonic() - self._polled_at > longest

    def poll(self) -> Poll:
        """Return new records in order, and earlier ones that were unfinished and have changed."""
        if self._unfinished is None:
            self._check()
        try:
            return self._poll()
        except SessionNotFound as error:
            if not error.deleted:
                raise
            return Poll([], True)

    def _poll(self) -> Poll:
        self._polled_at = time.monotonic()
        self._session = self._storage.find_session(self._session_id)
        has_ended = self._has_ended(self._session)  # before the reads, which include what was written before the end
        if self._unfinished is None:
            unfinished = self._storage.list_unfinished(self._session_id, up_to=self._after) if self._after else []
            self._unfinished = {entry.seq: entry for entry in unfinished}
        found = [(entry, self._read_again(entry)) for entry in self._unfinished.values()]
        changed = [now for before, now in found if now is not None and now != before]
        new = self._storage.list_timeline(self._session_id, Part(after=self._after, limit=_PAGE)).records
        for entry in (*changed, *new):
            self._unfinished.pop(entry.seq, None)
            if not entry.is_finished:
                self._unfinished[entry.seq] = entry
        if new:
            self._after = new[-1].seq
        is_all = len(new) < _PAGE
        if not is_all:
            self._polled_at = -math.inf  # the next poll is due
        calls = [entry for entry in changed if not isinstance(entry, Run)]
        runs = [entry for entry in changed if isinstance(entry, Run)]  # a run ends after its messages
        return Poll([*calls, *new, *runs], has_ended and is_all)

    def _read_again(self, entry: Record) -> Record | None:
        rows = self._storage.list_records(type(entry), self._session_id, Part(after=entry.seq - 1, limit=1))
        return rows[0] if rows and rows[0].seq == entry.seq else None  # else the row was deleted


def _pauses(timeout: timedelta | None) -> Iterator[float]:
    """Yield the seconds between two polls without new records, until the timeout."""
    end = math.inf if timeout is None else time.monotonic() + timeout.total_seconds()
    pause = _SHORTEST_SECONDS
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, _LONGEST_SECONDS)


_NOTHING = Poll([], False)


def follow(
    following: Following, *, timeout: timedelta | None, until: Callable[[Record], bool] | None
) -> Iterator[Record]:
    pauses, changed = _pauses(timeout), threading.Event()
    with closing(following.watch(changed.set)):
        while True:
            has_changed = changed.is_set()
            changed.clear()
            poll = following.poll() if following.is_due(has_changed=has_changed) else _NOTHING
            for entry in poll.new:
                yield entry
                if until is not None and until(entry):
                    return
            if poll.new:
                pauses = _pauses(timeout)
            elif poll.is_over or (seconds := next(pauses, None)) is None:
                return
            else:
                changed.wait(seconds)


async def afollow(
    following: Following,
    executor: StorageExecutor,
    *,
    timeout: timedelta | None,
    until: Callable[[Record], bool] | None,
) -> AsyncIterator[Record]:
    pauses, changed, loop = _pauses(timeout), asyncio.Event(), asyncio.get_running_loop()

    def on_change() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(changed.set)

    with closing(following.watch(on_change)):
        while True:
            has_changed = changed.is_set()
            changed.clear()
            poll = await executor.run(following.poll) if following.is_due(has_changed=has_changed) else _NOTHING
            for entry in poll.new:
                yield entry
                if until is not None and until(entry):
                    return
            if poll.new:
                pauses = _pauses(timeout)
            elif poll.is_over or (seconds := next(pauses, None)) is None:
                return
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), seconds)
