"""`EventLog`: the events of a run in this process, for the client that began it and for those that join it.

A log is bounded. When it is full, the run waits for the slowest reader; a reader that has taken nothing for
`STALL_SECONDS` is cut off, so that one client which does not read can neither stop a run nor fill the memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

LIMIT_BYTES = 4 << 20  # of the events that are in memory for readers who come back
STALL_SECONDS = 30.0
PAUSE_SECONDS = 5.0  # without an event, after which a reader learns that there is none


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Its id is the same in all processes, and grows within the run, and in time over the runs."""

    seq: int  # within its run, from 1
    at_ms: int
    name: str
    data: bytes  # JSON, which has no line break

    @property
    def id(self) -> str:
        return f"{self.at_ms}-{self.seq}"

    def frame(self) -> bytes:
        """The event as a server sends it."""
        return b"event: %b\r\ndata: %b\r\nid: %b\r\n\r\n" % (self.name.encode(), self.data, self.id.encode())


def position_of(event_id: str | None) -> tuple[int, int]:
    """The time and the seq of an event's id; before all events for text that is no id."""
    at_ms, _, seq = (event_id or "").partition("-")
    if at_ms.isascii() and at_ms.isdigit() and seq.isascii() and seq.isdigit() and len(f"{at_ms}{seq}") < 40:
        return int(at_ms), int(seq)
    return 0, 0


@dataclass(slots=True, eq=False)
class _Reader:
    after: int  # the seq of the last event that it has
    moved_at: float
    is_cut_off: bool = False


class EventLog:
    """The latest events of one run, and its readers."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._events: deque[Event] = deque()
        self._readers: set[_Reader] = set()
        self._changed, self._moved = asyncio.Event(), asyncio.Event()
        self.last_seq, self._last_ms, self.size_bytes, self.is_closed = 0, 0, 0, False

    async def append(self, name: str, data: bytes) -> None:
        """Add an event. While the log is full, it waits for the readers."""
        while self.size_bytes > self._limit and (slowest := self._slowest()) is not None:
            if time.monotonic() - slowest.moved_at > STALL_SECONDS:
                slowest.is_cut_off = True
                self._readers.discard(slowest)
                self._wake()
            else:
                self._moved.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), 1)
        while self.size_bytes > self._limit and self._events:
            self.size_bytes -= len(self._events.popleft().data)
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000)
        self.last_seq += 1
        self._events.append(Event(self.last_seq, self._last_ms, name, data))
        self.size_bytes += len(data)
        self._wake()

    def close(self) -> None:
        self.is_closed = True
        self._wake()

    @property
    def first_seq(self) -> int:
        """The seq of the oldest event in memory."""
        return self.last_seq - len(self._events) + 1

    def since(self, seq: int) -> list[Event]:
        """The events after this one that are in memory."""
        count = min(self.last_seq - seq, len(self._events))
        return [self._events[place] for place in range(-count, 0)]

    async def read(self, after: int) -> AsyncGenerator[Event | None]:
        """The events after this one, as they come, until the log is closed; ``None`` in longer pauses.

        Close the iterator after use.
        """
        reader = _Reader(after, time.monotonic())
        self._readers.add(reader)
        try:
            while not reader.is_cut_off:
                changed = self._changed
                found = self.since(reader.after)
                for event in found:
                    yield event
                    reader.after, reader.moved_at = event.seq, time.monotonic()
                    self._moved.set()
                    if reader.is_cut_off:
                        return
                if not found:
                    if self.is_closed:
                        return
                    reader.moved_at = time.monotonic()  # it has all events
                    try:
                        await asyncio.wait_for(changed.wait(), PAUSE_SECONDS)
                    except TimeoutError:
                        yield None
        finally:
            self._readers.discard(reader)
            self._moved.set()

    def _slowest(self) -> _Reader | None:
        """The reader that needs the oldest event, if there is one."""
        return next((reader for reader in self._readers if reader.after < self.first_seq), None)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
