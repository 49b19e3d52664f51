"""Many writers on one file: 16 Python threads of one process, and 4 processes of 4 threads.

    python -m benchmarks.crowd [--quick] [--rounds 3]

Each thread has a session of its own. Told is the median round: milliseconds of the whole for each
turn that succeeded, the turns that failed, and the turns that were acknowledged and are not there.
"""

from __future__ import annotations

import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.chat import NONE, OURS, SQLITE, Chat, open_saver, process
from benchmarks.run import Figure, arguments, machine, show
from session_middleware import SessionError


class Crowd(NamedTuple):
    what: str
    processes: int
    threads: int


class Round(NamedTuple):
    each: float  # milliseconds of the whole for each turn that succeeded
    failed: float
    lost: float


_CROWDS = (Crowd("16 threads", 1, 16), Crowd("4 processes of 4 threads", 4, 4))


def _serve(connection: Connection, name: str, path: str, number: int, threads: int, turns: int) -> None:
    """Wait for a sign, let all threads talk, and say how many turns of each succeeded."""
    with open_saver(name, path) as saver:

        def talk(thread: int) -> int:
            chat, done = Chat(saver, f"session-{number}-{thread}"), 0
            for _ in range(turns):
                try:
                    chat.turn()
                    done += 1
                except (sqlite3.Error, SessionError):
                    pass  # what an app would show its user; counted by what is not done
            return done

        connection.send("ready")
        connection.recv()
        with ThreadPoolExecutor(threads) as pool:
            connection.send(list(pool.map(talk, range(threads))))
        connection.recv()


def _play(name: str, crowd: Crowd, turns: int) -> Round:
    with TemporaryDirectory() as place, ExitStack() as opened:
        path = str(Path(place) / "bench.db")
        if name != NONE:
            with open_saver(name, path) as saver:
                Chat(saver, "first").turn()  # the file is there, whoever can be the first to open it or not
        writers = [
            opened.enter_context(process(_serve, name, path, number, crowd.threads, turns))
            for number in range(crowd.processes)
        ]
        for writer in writers:
            writer.recv()
        start = time.perf_counter()
        for writer in writers:
            writer.send("go")
        done = [writer.recv() for writer in writers]
        whole = time.perf_counter() - start
        lost = 0
        if name != NONE:
            with open_saver(name, path) as saver:
                lost = sum(
                    max(0, count - _answers(Chat(saver, f"session-{number}-{thread}")))
                    for number, counts in enumerate(done)
                    for thread, count in enumerate(counts)
                )
    succeeded = sum(map(sum, done))
    return Round(1000 * whole / max(1, succeeded), crowd.processes * crowd.threads * turns - succeeded, lost)


def _answers(chat: Chat) -> int:
    """How many turns of a thread have come to their end."""
    return sum(message.type == "ai" and not message.tool_calls for message in chat.messages())


def measure(crowd: Crowd, turns: int, rounds: int) -> dict[str, Round]:
    order, chance = [OURS, SQLITE, NONE], random.Random(1)
    found: dict[str, list[Round]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in chance.sample(order, len(order)):
            found[name].append(_play(name, crowd, turns))
    return {
        name: Round(median(r.each for r in all_of_it), sum(r.failed for r in all_of_it), sum(r.lost for r in all_of_it))
        for name, all_of_it in found.items()
    }


def report(*, quick: bool, rounds: int | None = None) -> None:
    turns, rounds = 2 if quick else 20, rounds or (1 if quick else 3)
    for crowd in _CROWDS:
        found = measure(crowd, turns, rounds)
        ours, theirs, floor = found[OURS], found[SQLITE], found[NONE]
        show(
            f"Crowd: {crowd.what} on one file, {turns} turns each",
            [
                Figure("the whole, a turn", ours.each, "ms", SQLITE, theirs.each, aim=0.667),
                Figure("", ours.each, "ms", NONE, floor.each),
                Figure("turns that failed", ours.failed, "", SQLITE, theirs.failed, aim_of_ours=0),
                Figure("turns that were lost", ours.lost, "", SQLITE, theirs.lost, aim_of_ours=0),
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
