"""Following a session while it goes on: what is committed, by whichever process, as it is committed.

Nothing is held between two looks, no transaction and no lock. A look costs a PRAGMA while nothing
was committed anywhere in the database, and looks come less often the longer nothing does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import NamedTuple

from session_middleware.errors import SessionNotFound
from session_middleware.models import Message, Run, ToolCall
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.types import Record

_PAGE = 256  # records read at a time
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.01, 0.25  # between two looks


class Look(NamedTuple):
    news: list[Record]
    is_over: bool


class Following:
    """Where a follower stands: what it has had, and what of that was not finished then."""

    def __init__(
        self,
        storage: Storage,
        session_id: str,
        *,
        after: int,
        has_ended: Callable[[], bool],
        check: Callable[[], object],
    ) -> None:
        self._storage = storage
        self._session_id = session_id
        self._after = after
        self._has_ended = has_ended
        self._check = check  # raises where there is nothing to follow
        self._version: int | None = None
        self._unfinished: dict[int, Record] | None = None

    def look(self) -> Look:
        """What is new, in order: records, and those that were going on when they were last told and have changed."""
        if self._unfinished is None:
            self._check()
        try:
            return self._look()
        except SessionNotFound as error:
            if not error.deleted:
                raise
            return Look([], True)

    def _look(self) -> Look:
        version = self._storage.data_version()  # before the reads: what is committed during them is found the next time
        has_ended = self._has_ended()
        if version == self._version:
            return Look([], has_ended)
        changed = self._changed()
        new = self._storage.list_timeline(self._session_id, after=self._after, limit=_PAGE).records
        for entry in (*changed, *new):
            self._remember(entry)
        if new:
            self._after = new[-1].seq
        is_all = len(new) < _PAGE
        self._version = version if is_all else None
        calls = [entry for entry in changed if not isinstance(entry, Run)]
        runs = [entry for entry in changed if isinstance(entry, Run)]  # their end comes after what was said in them
        return Look([*calls, *new, *runs], has_ended and is_all)

    def _changed(self) -> list[Record]:
        if self._unfinished is None:
            unfinished = self._storage.list_unfinished(self._session_id, up_to=self._after) if self._after else []
            self._unfinished = {entry.seq: entry for entry in unfinished}
        found = [(entry, self._read_again(entry)) for entry in self._unfinished.values()]
        return [now for before, now in found if now is not None and now != before]

    def _read_again(self, entry: Record) -> Record | None:
        rows = self._storage.list_records(type(entry), self._session_id, after=entry.seq - 1, limit=1)
        return rows[0] if rows and rows[0].seq == entry.seq else None  # else the row was deleted

    def _remember(self, entry: Record) -> None:
        assert self._unfinished is not None
        if _is_unfinished(entry):
            self._unfinished[entry.seq] = entry
        else:
            self._unfinished.pop(entry.seq, None)


def _is_unfinished(entry: Record) -> bool:
    if isinstance(entry, Run):
        return entry.outcome == "running"
    if isinstance(entry, ToolCall):
        return entry.status == "running"
    return isinstance(entry, Message) and entry.status == "incomplete" and entry.replaced_by is None


class _Pace:
    """How long to wait for the next look, and when to give up."""

    def __init__(self, timeout: timedelta | None) -> None:
        self._timeout = None if timeout is None else timeout.total_seconds()
        self.rest()

    def rest(self) -> None:
        """There were news."""
        self._next = _SHORTEST_SECONDS
        self._end = None if self._timeout is None else time.monotonic() + self._timeout

    def wait(self) -> float | None:
        """Seconds until the next look; ``None``: nothing came for too long."""
        left = _LONGEST_SECONDS if self._end is None else self._end - time.monotonic()
        if left <= 0:
            return None
        now, self._next = min(self._next, left), min(2 * self._next, _LONGEST_SECONDS)
        return now


def follow(
    following: Following, *, timeout: timedelta | None, until: Callable[[Record], bool] | None
) -> Iterator[Record]:
    pace = _Pace(timeout)
    while True:
        look = following.look()
        for entry in look.news:
            yield entry
            if until is not None and until(entry):
                return
        if look.news:
            pace.rest()
        elif look.is_over or (seconds := pace.wait()) is None:
            return
        else:
            time.sleep(seconds)


async def afollow(
    following: Following, offload: StorageExecutor, *, timeout: timedelta | None, until: Callable[[Record], bool] | None
) -> AsyncIterator[Record]:
    pace = _Pace(timeout)
    while True:
        look = await offload.run(following.look)
        for entry in look.news:
            yield entry
            if until is not None and until(entry):
                return
        if look.news:
            pace.rest()
        elif look.is_over or (seconds := pace.wait()) is None:
            return
        else:
            await asyncio.sleep(seconds)
