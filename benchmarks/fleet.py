"""Many threads under asyncio: 200 sessions of 5 turns, 50 of them at a time.

    python -m benchmarks.fleet [--quick] [--rounds 3]

The conversation is that of `benchmarks.chat`. Each round is a process and a file of its own for each
saver, in an order that is shuffled; told is the median round. Throughput is told as its inverse,
milliseconds of the whole for each turn, so that less is better, as everywhere.
"""

from __future__ import annotations

import asyncio
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.chat import NONE, OURS, SQLITE, Chat, aopen_saver, process
from benchmarks.run import Figure, arguments, machine, show


class Size(NamedTuple):
    sessions: int
    turns: int
    tasks: int


SMALL = Size(20, 2, 10)


class Round(NamedTuple):
    """In milliseconds."""

    each: float  # the whole round, for each of its turns
    median: float  # of one turn
    p99: float


async def _play(name: str, path: str, size: Size) -> Round:
    gate, seconds = asyncio.Semaphore(size.tasks), list[float]()

    async def talk(chat: Chat) -> None:
        for _ in range(size.turns):
            async with gate:
                seconds.append(await chat.aturn())

    async with aopen_saver(name, path) as saver:
        chats = [Chat(saver, f"session-{number}") for number in range(size.sessions)]
        start = time.perf_counter()
        await asyncio.gather(*map(talk, chats))
        whole = time.perf_counter() - start
    return Round(
        1000 * whole / len(seconds), 1000 * median(seconds), 1000 * quantiles(seconds, n=100, method="inclusive")[-1]
    )


def _serve(connection: Connection, name: str, path: str, size: Size) -> None:
    connection.send(asyncio.run(_play(name, path, size)))
    connection.recv()


def measure(size: Size, rounds: int) -> dict[str, Round]:
    order, chance = [OURS, SQLITE, NONE], random.Random(1)
    found: dict[str, list[Round]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in chance.sample(order, len(order)):
            with TemporaryDirectory() as place, process(_serve, name, str(Path(place) / "bench.db"), size) as one:
                found[name].append(one.recv())
    return {name: Round(*map(median, zip(*all_of_it, strict=True))) for name, all_of_it in found.items()}


def report(*, quick: bool, rounds: int | None = None) -> None:
    size = Size(*SMALL) if quick else Size(200, 5, 50)
    found = measure(size, rounds or (1 if quick else 3))
    ours, theirs, floor = found[OURS], found[SQLITE], found[NONE]
    peer = "AsyncSqliteSaver"
    show(
        f"Fleet: {size.sessions} sessions of {size.turns} turns, {size.tasks} at a time",
        [
            Figure("the whole, a turn", ours.each, "ms", peer, theirs.each, aim=0.4),
            Figure("", ours.each, "ms", NONE, floor.each),
            Figure("one turn, median", ours.median, "ms", peer, theirs.median),
            Figure("", ours.median, "ms", NONE, floor.median),
            Figure("one turn, p99", ours.p99, "ms", peer, theirs.p99, aim=0.5),
            Figure("", ours.p99, "ms", NONE, floor.p99),
        ],
        judged=not quick,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, rounds=options.rounds)


if __name__ == "__main__":
    main()
