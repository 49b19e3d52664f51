"""`RunNotes`: what all server processes of a database know of the runs of the API.

The record has a run once its session has admitted it, with its outcome, tokens and cost. The API needs a little more:
runs that still wait, how a run was asked for, events for clients that join it elsewhere, and orders to cancel it. These
are items of the store, in a namespace that is deleted with the session and that no run and no search of memories sees.
They have nothing that was said, apart from the events, which expire soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from langgraph.store.base import GetOp, Op, PutOp, SearchItem, SearchOp

from session_middleware import Sessions
from session_middleware.integrations.server.runs.log import Event
from session_middleware.integrations.server.runs.request import Action
from session_middleware.memory.scopes import RESERVED
from session_middleware.storage.memory_types import MemoryQuery
from session_middleware.storage.processes import is_gone, is_near, this_process

RunStatus = Literal["pending", "running", "success", "error", "interrupted"]

_DAY_MINUTES = 24 * 60.0
_ENDED_MINUTES = 7 * _DAY_MINUTES  # afterwards a run is shown as the record has it
_EVENTS_MINUTES = 15.0  # for clients that come back
_ORDER_MINUTES = 15.0
_SILENT = timedelta(minutes=1)  # a process of another machine that has not renewed its runs for so long is dead
_AHEAD = 4  # batches of events that a reader asks for at once
_MANY = 10_000

DIED = "the server process of this run has ended; run the thread again without input to continue it"


@dataclass(frozen=True)
class RunNote:
    """One run, as the API shows it."""

    run_id: str
    thread_id: str
    assistant_id: str
    created_at: str
    updated_at: str
    status: RunStatus = "pending"
    metadata: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    multitask_strategy: str = "enqueue"
    error: dict[str, str] | None = None
    owner: str | None = None  # the server process that runs it
    is_hidden: bool = False  # it was deleted or rolled back

    @property
    def is_active(self) -> bool:
        """Whether it waits to begin or is in progress."""
        return self.status in ("pending", "running")

    def is_abandoned(self, now: datetime) -> bool:
        """Whether its process ended before the run did."""
        if not self.is_active or self.owner is None:
            return False
        if is_near(self.owner):
            return is_gone(self.owner)
        return datetime.fromisoformat(self.updated_at) < now - _SILENT

    def ended(self, status: RunStatus, at: datetime, error: dict[str, str] | None = None) -> RunNote:
        """The note of the same run after its end."""
        return replace(self, status=status, updated_at=at.isoformat(), error=error)

    def shown(self) -> dict[str, Any]:
        """The fields that clients get."""
        return {name: value for name, value in asdict(self).items() if name not in ("error", "owner", "is_hidden")}


@dataclass(frozen=True)
class Batch:
    """Successive events of a run, which one commit makes visible to the other processes."""

    thread_id: str
    run_id: str
    number: int
    events: Sequence[Event]


@dataclass(frozen=True)
class Order:
    """What another process asks of the process that runs a run."""

    action: Action | None = None  # cancel it
    share_events: bool = False  # write its events for others


class RunNotes:
    """The notes about runs in the store of a `Sessions`."""

    def __init__(self, sessions: Sessions) -> None:
        self._batch: Callable[[Sequence[Op]], Awaitable[Any]] = sessions.store.abatch
        self._storage, self._off_loop = sessions._storage, sessions._offload.run

    @staticmethod
    def new(run_id: str, thread_id: str, assistant_id: str, at: datetime, **more: Any) -> RunNote:
        """The note of a run that this process will execute."""
        time = at.isoformat()
        return RunNote(run_id, thread_id, assistant_id, time, time, owner=this_process(), **more)

    async def put(self, notes: Iterable[RunNote], batches: Iterable[Batch] = ()) -> None:
        """Store notes and events in one transaction."""
        puts: list[Op] = [_put(note) for note in notes]
        puts += [
            PutOp(
                _events(batch.thread_id, batch.run_id),
                _key(batch.number),
                {"events": [[e.seq, e.at_ms, e.name, e.data.decode()] for e in batch.events]},
                index=False,
                ttl=_EVENTS_MINUTES,
            )
            for batch in batches
        ]
        if puts:
            await self._batch(puts)

    async def find(self, thread_id: str, run_id: str) -> RunNote | None:
        """The note of a run, or `None`."""
        return next(iter(await self.list_some(thread_id, [run_id])), None)

    async def list_some(self, thread_id: str, run_ids: Iterable[str]) -> list[RunNote]:
        """The notes of these runs of a thread, of those that are noted."""
        items = await self._batch([GetOp(_runs(thread_id), run_id) for run_id in run_ids])
        return [RunNote(**item.value) for item in items if item is not None]

    async def list_runs(self, thread_id: str, since: datetime | None = None) -> list[RunNote]:
        """The runs of a thread that are noted, or were first noted at `since` or later, in this order."""
        query = MemoryQuery([_runs(thread_id)], prefix=False, since=since, limit=_MANY)
        return [RunNote(**each.value) for each in await self._off_loop(self._storage.search_memories, query)]

    async def list_active(self, *statuses: str) -> list[RunNote]:
        """The runs with a status in all threads."""
        asked: list[Op] = [SearchOp((RESERVED,), filter={"status": status}, limit=_MANY) for status in statuses]
        found: Sequence[list[SearchItem]] = await self._batch(asked)
        return [RunNote(**item.value) for items in found for item in items if item.namespace[2:] == ("runs",)]

    async def delete(self, notes: Iterable[RunNote]) -> None:
        await self._batch([PutOp(_runs(note.thread_id), note.run_id, None) for note in notes])

    # Orders

    async def order(self, note: RunNote, order: Order) -> None:
        """Leave an order for the process that runs the run."""
        name = "cancel" if order.action else "share"
        value = asdict(order)
        await self._batch(
            [PutOp(_orders(note.thread_id), f"{name}:{note.run_id}", value, index=False, ttl=_ORDER_MINUTES)]
        )

    async def orders(self, runs: Sequence[tuple[str, str]]) -> list[Order]:
        """What is asked of these runs, each given by thread and run id."""
        asked: list[Op] = [
            GetOp(_orders(thread), f"{name}:{run}") for thread, run in runs for name in ("cancel", "share")
        ]
        found = await self._batch(asked) if asked else []
        given = [Order() if item is None else Order(**item.value) for item in found]
        return [Order(cancel.action, share.share_events) for cancel, share in zip(given[::2], given[1::2], strict=True)]

    # Events

    async def first_events(self, note: RunNote) -> tuple[int, list[Event]]:
        """The stored events of a run, and the number of the next batch."""
        (items,) = await self._batch([SearchOp(_events(note.thread_id, note.run_id), limit=_MANY)])
        ordered = sorted(items, key=lambda item: item.key)
        following = int(ordered[-1].key) + 1 if ordered else 0
        return following, [event for item in ordered for event in _events_in(item)]

    async def next_events(self, note: RunNote, number: int) -> tuple[int, list[Event], RunNote | None]:
        """The events from this batch on, the number of the next batch, and the run's note as it is with them."""
        numbers = range(number, number + _AHEAD)
        space = _events(note.thread_id, note.run_id)
        asked: list[Op] = [*(GetOp(space, _key(each)) for each in numbers), GetOp(_runs(note.thread_id), note.run_id)]
        *items, now = await self._batch(asked)
        events: list[Event] = []
        for item in items:
            if item is None:
                break
            events += _events_in(item)
            number += 1
        return number, events, None if now is None else RunNote(**now.value)


def _put(note: RunNote) -> PutOp:
    is_over = not note.is_active and not note.is_hidden  # a hidden one hides what the record has
    ttl = _ENDED_MINUTES if is_over else None
    return PutOp(_runs(note.thread_id), note.run_id, asdict(note), index=False, ttl=ttl)


def _events_in(item: Any) -> list[Event]:
    return [Event(seq, at_ms, name, data.encode()) for seq, at_ms, name, data in item.value["events"]]


def _key(number: int) -> str:
    return f"{number:010d}"


def _runs(thread_id: str) -> tuple[str, ...]:
    return RESERVED, thread_id, "runs"


def _orders(thread_id: str) -> tuple[str, ...]:
    return RESERVED, thread_id, "orders"


def _events(thread_id: str, run_id: str) -> tuple[str, ...]:
    return RESERVED, thread_id, "events", run_id
