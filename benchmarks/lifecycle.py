"""The lifecycle at size: a sweep of many sessions beside runs, runs that wait, and what leases cost a turn.

    python -m benchmarks.lifecycle [--quick] [--sessions 1000000]

A tenth of the sessions are due. The runs beside the sweep are another process's, one turn after the
other; their times during the sweep are set beside their times before it.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.chat import OURS, Chat, process
from benchmarks.run import Figure, arguments, machine, middle, show
from session_middleware import Sessions
from session_middleware.models import to_text, utc_now
from session_middleware.runtime.background import BackgroundWorker

_SESSIONS = 1_000_000
_WAITING = 100

_FILL = """
    WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :count)
    INSERT INTO sessions
        (id, home, family_id, user_id, opened_as, reason, created_at, active_since, last_active_at, last_seq)
    SELECT printf('many-%07d', n), n + 1, printf('many-%07d', n), printf('user-%d', n % 5000), 'opened', 'opened',
        :long_ago, :long_ago, CASE WHEN n % 10 = 0 THEN :long_ago ELSE :lately END, 1
    FROM number
"""
_EVENTS = """
    INSERT INTO events (session_id, seq, kind, created_at)
    SELECT id, 1, 'opened', created_at FROM sessions WHERE last_seq = 1
"""


def fill(path: Path, count: int) -> None:
    """Sessions with an event each, a tenth of which have been idle for too long; by plain SQL, which is quicker."""
    with Sessions(path):
        pass
    now = utc_now()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        moments = {"long_ago": to_text(now - timedelta(days=30)), "lately": to_text(now - timedelta(hours=1))}
        connection.execute(_FILL, {"count": count, **moments})
        connection.execute(_EVENTS)
    connection.close()


def _serve(connection: Connection, path: str) -> None:
    """Talk, one turn after the other: so many turns first, then until told to stop; how long each took."""
    with Sessions(path, sweep_interval=None) as sessions:
        for number in range(3):
            Chat(sessions.checkpointer, f"first-{number}").turn()
        connection.send("ready")
        while (turns := connection.recv()) is not None:
            taken: list[float] = []
            while len(taken) < turns or (not turns and not connection.poll()):
                if len(taken) % 10 == 0:  # a longer thread has longer turns
                    chat = Chat(sessions.checkpointer, f"beside-{uuid4()}")
                    chat.turn()
                taken.append(chat.turn())
            if not turns:
                connection.recv()
            connection.send(taken)


def _timed(call: Callable[[], Any]) -> list[float]:
    taken = []
    for _ in range(5):
        gc.collect()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def _p99(seconds: list[float]) -> float:
    return 1000 * sorted(seconds)[int(0.99 * len(seconds))]


def sweeping(count: int, turns: int) -> None:
    with TemporaryDirectory() as place:
        path = Path(place) / "bench.db"
        fill(path, count)
        with Sessions(path, sweep_interval=None) as sessions, process(_serve, str(path)) as beside:
            beside.recv()
            beside.send(turns)
            before = beside.recv()
            assert sessions.count(status="expired") == count // 10
            counted = _timed(lambda: sessions.count(status="expired"))
            listed = _timed(lambda: sessions.list(status="expired", limit=100))
            all_listed = _timed(lambda: sessions.sweep(dry_run=True))
            planned = sessions.sweep(dry_run=True)
            read = _timed(lambda: sum(each.bytes or 0 for each in planned[: count // 100]))
            beside.send(0)
            start = time.perf_counter()
            ended = sessions.sweep()
            took = time.perf_counter() - start
            beside.send(0)  # which stops it
            during = beside.recv()
            assert len(ended) == count // 10
            assert sessions.sweep(dry_run=True) == []
            show(
                f"Lifecycle: {count:,} sessions, of which {count // 10:,} are due",
                [
                    Figure("list those that are due, a page of 100", middle(listed), "ms", "", 0, aim_of_ours=100),
                    Figure("count them", middle(counted), "ms", "", 0, aim_of_ours=100),
                    Figure("list all of them, by a dry sweep", middle(all_listed), "ms", "", 0, aim_of_ours=100),
                    Figure("measure a tenth of these", middle(read), "ms", "", 0),
                    Figure("end them all", took, "s", "", 0, aim_of_ours=60),
                    Figure("a turn beside it, p99", _p99(during), "ms", "before it", _p99(before), aim=2),
                    Figure("a turn beside it, median", middle(during), "ms", "before it", middle(before)),
                ],
                judged=count == _SESSIONS,
            )


def waiting(steps: int, rounds: int) -> None:
    """One run of many steps, while many wait for it, and while none does."""
    alone, awaited = [], []
    for _ in range(rounds):
        alone.append(asyncio.run(_run_and_wait(steps, 0)))
        awaited.append(asyncio.run(_run_and_wait(steps, _WAITING)))
    figure = Figure(f"a run of {steps} steps", middle(awaited), "ms", "nobody waits", middle(alone), aim=1.1)
    show(f"Lifecycle: {_WAITING} runs wait for one", [figure])


async def _run_and_wait(steps: int, count: int) -> float:
    """Seconds of the run that is waited for, from when all wait."""
    with TemporaryDirectory() as place, _opened(place, on_busy="wait") as sessions:
        inside, all_wait = asyncio.Event(), asyncio.Event()
        taken: list[float] = []

        async def step(_: MessagesState) -> dict[str, Any]:
            if not taken:
                inside.set()
                await all_wait.wait()
                taken.append(time.perf_counter())
            return {"messages": [("ai", "a word or two")]}

        async def last(_: MessagesState) -> dict[str, Any]:
            if len(taken) == 1:
                taken.append(time.perf_counter())
            return {}

        def more(state: MessagesState) -> str:
            return "step" if len(state["messages"]) < steps else "last"

        builder = StateGraph(MessagesState).add_node("step", step).add_node("last", last)
        builder.add_edge(START, "step").add_conditional_edges("step", more)
        graph = sessions.attach(builder.compile())
        config: Any = {**sessions.config("busy"), "recursion_limit": 2 * steps}
        first = asyncio.create_task(graph.ainvoke({"messages": "go"}, config, durability="sync"))
        await inside.wait()
        others = [asyncio.create_task(graph.ainvoke({"messages": "me too"}, config)) for _ in range(count)]
        await asyncio.sleep(1 if count else 0)  # until they all stand in the queue
        all_wait.set()
        await first
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return taken[1] - taken[0]


@contextmanager
def _opened(place: str, **settings: Any) -> Iterator[Sessions]:
    with Sessions(Path(place) / "bench.db", sweep_interval=None, **settings) as sessions:
        yield sessions


def leases(turns: int, rounds: int) -> None:
    """A turn with leases of either kind, and without any."""
    found: dict[str, list[float]] = {"none": [], "allow": [], "wait": []}
    for _ in range(rounds):
        for name, taken in found.items():
            taken.append(_turn(name, turns))
    none = 1000 * median(found["none"])
    figures = [
        Figure(f"a turn, on_busy={name}", 1000 * median(found[name]), "ms", "without leases", none)
        for name in ("allow", "wait")
    ]
    show(f"Lifecycle: what leases add to a turn of {OURS}", figures)


def _turn(name: str, turns: int) -> float:
    with TemporaryDirectory() as place, _opened(place, on_busy="wait" if name == "wait" else "allow") as sessions:
        begin: Callable[..., None] = BackgroundWorker.begin
        if name == "none":
            BackgroundWorker.begin = lambda _, context: setattr(context.lease, "is_over", True)  # type: ignore[method-assign]
        try:
            chat = Chat(sessions.checkpointer)
            for _ in range(5):
                chat.turn()
            return median(chat.turn() for _ in range(turns))
        finally:
            BackgroundWorker.begin = begin  # type: ignore[method-assign]


def report(*, quick: bool, sessions: int | None = None, turns: int | None = None) -> None:
    sweeping(sessions or (10_000 if quick else _SESSIONS), turns or (20 if quick else 200))
    waiting(turns or (20 if quick else 100), 1 if quick else 5)
    leases(turns or (5 if quick else 50), 1 if quick else 5)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sessions", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, sessions=options.sessions)


if __name__ == "__main__":
    main()
