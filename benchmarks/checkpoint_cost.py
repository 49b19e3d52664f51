"""What a checkpointer costs one long chat, beside LangGraph's own savers in the same run.

    python -m benchmarks.checkpoint_cost [--quick] [--turns 200]

The conversation is that of `benchmarks.chat`. Each saver has a process of its own; they go block by
block, one at a time, in an order that is shuffled each time, so that a noisy moment of the machine
hits all of them. A graph without a checkpointer, which is given the whole history each time, is the
floor: nothing can take less.

Then the same for five times as many turns, to see what grows. The peers begin at the last tenth of
them, with all that came before in one checkpoint: to play it all, they would need some gigabytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.chat import (
    MEMORY,
    NONE,
    OURS,
    SQLITE,
    UNTRACKED,
    Chat,
    megabytes,
    open_saver,
    process,
    transcript_megabytes,
)
from benchmarks.run import Figure, arguments, machine, middle, show

_BLOCK = 5  # turns of one saver before it is the next one's
_READS = 9
_LONGER = 5  # times as many turns, the second time


class Measured(NamedTuple):
    """By saver: seconds of each turn, read and look at the history, and megabytes afterwards."""

    turns: dict[str, list[float]]
    reads: dict[str, list[float]]
    histories: dict[str, list[float]]
    sizes: dict[str, float]
    transcript: float

    def last(self, name: str, tenth: int) -> float:
        return middle(self.turns[name][-tenth:])


def _serve(connection: Connection, name: str, path: str) -> None:
    """One saver's process: do as often as told what is named."""
    with open_saver(name, path) as saver:
        chat = Chat(saver)
        while (told := connection.recv()) is not None:
            what, count = told
            if what == "skip":
                connection.send(chat.skip(count))
            elif what == "transcript":
                connection.send(transcript_megabytes(chat.messages()))
            else:
                connection.send([getattr(chat, what)() for _ in range(count)])


def measure(names: Sequence[str], turns: int, *, begin_late: Sequence[str] = ()) -> Measured:
    """Those who `begin_late` play the last tenth of the turns only."""
    order, chance = list(names), random.Random(1)
    found = Measured(*({name: [] for name in names} for _ in range(3)), {}, 0.0)  # type: ignore[arg-type]
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / str(number) for number, name in enumerate(names)}
        with ExitStack() as opened:
            processes: dict[str, Connection] = {}
            for name, folder in folders.items():
                folder.mkdir()
                processes[name] = opened.enter_context(process(_serve, name, str(folder / "bench.db")))

            def ask(who: Sequence[str], what: str, count: int, answers: dict[str, list[float]]) -> None:
                for name in chance.sample(who, len(who)):
                    processes[name].send((what, count))
                    answers[name] += processes[name].recv()

            late = turns - max(1, turns // 10)
            for name in begin_late:
                processes[name].send(("skip", late))
                processes[name].recv()
            for start in range(0, turns, _BLOCK):
                who = [name for name in order if start >= late or name not in begin_late]
                ask(who, "turn", min(_BLOCK, turns - start), found.turns)
            for _ in range(_READS):
                ask(order, "read", 1, found.reads)
                ask([name for name in order if name in (OURS, SQLITE)], "history", 1, found.histories)
            processes[OURS].send(("transcript", 1))
            transcript = processes[OURS].recv()
        sizes = {name: megabytes(folder) for name, folder in folders.items()}
    return found._replace(sizes=sizes, transcript=transcript)


def _figures(found: Measured, turns: int) -> list[Figure]:
    tenth = max(1, turns // 10)
    last, sizes = {name: found.last(name, tenth) for name in found.turns}, found.sizes
    read = {name: middle(taken) for name, taken in found.reads.items()}
    history = {name: middle(taken) for name, taken in found.histories.items() if taken}
    first = 1000 * median(found.turns[OURS][1 : tenth + 1])  # without the very first, which opens the session
    return [
        Figure("a turn, last tenth", last[OURS], "ms", SQLITE, last[SQLITE], aim=0.35),
        Figure("", last[OURS], "ms", MEMORY, last[MEMORY], aim=0.6),
        Figure("", last[OURS], "ms", NONE, last[NONE]),
        Figure("", last[OURS], "ms", "ours, first tenth", first),
        Figure("the same, tracking=False", last[UNTRACKED], "ms", MEMORY, last[MEMORY]),
        Figure("file", sizes[OURS], "MB", SQLITE, sizes[SQLITE], aim=0.0167),
        Figure("the same, tracking=False", sizes[UNTRACKED], "MB", "the transcript's JSON", found.transcript, aim=4),
        Figure("whole state read back", read[OURS], "ms", SQLITE, read[SQLITE], aim=1),
        Figure("", read[OURS], "ms", MEMORY, read[MEMORY]),
        Figure("the last 20 checkpoints", history[OURS], "ms", SQLITE, history[SQLITE], aim=0.2),
    ]


def _figures_of_longer(found: Measured, shorter: Measured, turns: int) -> list[Figure]:
    tenth = max(1, turns // 10)
    last = {name: found.last(name, tenth) for name in found.turns}
    before = f"ours, {turns // _LONGER} turns"
    return [
        Figure("a turn, last tenth", last[OURS], "ms", MEMORY, last[MEMORY], aim=0.35),
        Figure("", last[OURS], "ms", NONE, last[NONE]),
        Figure("", last[OURS], "ms", before, shorter.last(OURS, max(1, tenth // _LONGER))),
        Figure("file", found.sizes[OURS], "MB", before, shorter.sizes[OURS], aim=5.5),
        Figure("the same, tracking=False", found.sizes[UNTRACKED], "MB", before, shorter.sizes[UNTRACKED], aim=5.5),
        Figure("whole state read back", middle(found.reads[OURS]), "ms", MEMORY, middle(found.reads[MEMORY])),
    ]


def report(*, quick: bool, turns: int | None = None) -> None:
    turns = turns or (20 if quick else 200)
    of = "turns of 4 messages with a tool call (medians)"
    shorter = measure((OURS, UNTRACKED, SQLITE, MEMORY, NONE), turns)
    show(f"Checkpoints: one thread, {turns:,} {of}", _figures(shorter, turns), judged=not quick)
    turns *= _LONGER
    longer = measure((OURS, UNTRACKED, MEMORY, NONE), turns, begin_late=(MEMORY, NONE))
    show(f"Checkpoints: one thread, {turns:,} {of}", _figures_of_longer(longer, shorter, turns), judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, turns=options.turns)


if __name__ == "__main__":
    main()
