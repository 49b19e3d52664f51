"""How long an event loop is kept from its other work while 200 tasks run graphs on it.

    python -m benchmarks.loop_lag [--quick] [--rounds 3]

One more task sleeps for a millisecond, again and again; its lag is by how much it wakes too late.
Graphs take their time on the loop themselves, whoever keeps their state: with 200 of them ready at
once, a loop comes round late without any checkpointer, and that is the floor. So the lag is measured
a second time while 200 tasks call the saver's methods and run no graph.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint

from benchmarks.chat import NONE, OURS, SQLITE, Chat, aopen_saver, process
from benchmarks.run import Figure, arguments, machine, show

_NAP_SECONDS = 0.001
GRAPHS, CALLS = "running graphs", "calling the saver's methods"
SMALL = (20, 1)  # tasks and turns of a quick run


class Lag(NamedTuple):
    """In milliseconds."""

    longest: float
    p99: float


async def _lag_during(work: Callable[[], Awaitable[Any]]) -> Lag:
    lags: list[float] = []

    async def nap() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_NAP_SECONDS)
            lags.append(1000 * (time.perf_counter() - start - _NAP_SECONDS))

    napping = asyncio.ensure_future(nap())
    await asyncio.sleep(0)
    await work()
    await asyncio.sleep(2 * _NAP_SECONDS)  # so that the last nap is counted, however long it took
    napping.cancel()
    return Lag(max(lags), quantiles(lags, n=100, method="inclusive")[-1] if len(lags) > 1 else lags[0])


async def _run_graphs(saver: Any, tasks: int, turns: int) -> None:
    async def talk(chat: Chat) -> None:
        for _ in range(turns):
            await chat.aturn()

    await asyncio.gather(*(talk(Chat(saver, f"session-{number}")) for number in range(tasks)))


async def _call_methods(saver: Any, tasks: int, turns: int) -> None:
    """What a graph asks of its saver: a read, then writes and checkpoints of a list that grows."""

    async def talk(number: int) -> None:
        config: Any = {"configurable": {"thread_id": f"session-{number}", "checkpoint_ns": ""}}
        messages: list[HumanMessage] = []
        for turn in range(turns):
            await saver.aget_tuple(config)
            for step in range(5):
                messages.append(HumanMessage("lorem ipsum " * 50, id=f"{turn}-{step}"))
                version = saver.get_next_version(None, None)
                checkpoint = {**empty_checkpoint(), "id": f"{turn:06}-{step}"}
                checkpoint.update(channel_values={"messages": messages}, channel_versions={"messages": version})
                put = saver.aput(config, checkpoint, {"source": "loop", "step": step}, {"messages": version})
                config = await put
                await saver.aput_writes(config, [("messages", messages[-1:])], "task")

    await asyncio.gather(*map(talk, range(tasks)))


async def _play(name: str, path: str, tasks: int, turns: int) -> dict[str, Lag]:
    found = {}
    async with aopen_saver(name, path) as saver:
        await _run_graphs(saver, 1, 1)  # what is imported at first use is imported
        found[GRAPHS] = await _lag_during(lambda: _run_graphs(saver, tasks, turns))
        if saver is not None:
            found[CALLS] = await _lag_during(lambda: _call_methods(saver, tasks, turns))
    return found


def _serve(connection: Connection, name: str, path: str, tasks: int, turns: int) -> None:
    connection.send(asyncio.run(_play(name, path, tasks, turns)))
    connection.recv()


def measure(tasks: int, turns: int, rounds: int) -> dict[tuple[str, str], Lag]:
    """By saver and work; of several rounds the median."""
    order, chance = [OURS, SQLITE, NONE], random.Random(1)
    found: dict[tuple[str, str], list[Lag]] = {}
    for _ in range(rounds):
        for name in chance.sample(order, len(order)):
            with TemporaryDirectory() as place:
                with process(_serve, name, str(Path(place) / "bench.db"), tasks, turns) as one:
                    lags = one.recv()
                for work, lag in lags.items():
                    found.setdefault((name, work), []).append(lag)
    return {key: Lag(*map(median, zip(*lags, strict=True))) for key, lags in found.items()}


def report(*, quick: bool, rounds: int | None = None) -> None:
    tasks, turns = SMALL if quick else (200, 3)
    found = measure(tasks, turns, rounds or (1 if quick else 3))
    figures = []
    for work in (GRAPHS, CALLS):
        ours, theirs, floor = (found.get((name, work)) for name in (OURS, SQLITE, NONE))
        assert ours is not None
        assert theirs is not None
        peer, aim = "AsyncSqliteSaver", 50 if work == CALLS else None
        figures.append(Figure(f"{work}: longest", ours.longest, "ms", peer, theirs.longest, aim_of_ours=aim))
        if floor is not None:
            figures.append(Figure("", ours.longest, "ms", NONE, floor.longest))
        figures.append(Figure(f"{work}: p99", ours.p99, "ms", peer, theirs.p99))
        if floor is not None:
            figures.append(Figure("", ours.p99, "ms", NONE, floor.p99))
    show(f"The loop's lag while {tasks} tasks are", figures, judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, rounds=options.rounds)


if __name__ == "__main__":
    main()
