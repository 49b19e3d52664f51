"""A real conversation of some hundred messages, kept by us and by SqliteSaver in the same run.

    python -m benchmarks.replay [--quick]

The conversation is the one that the integration tests replay; without its data this says so and
ends. Ours is measured twice: as a checkpointer alone, and attached with everything on.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.sqlite import SqliteSaver

from benchmarks.chat import megabytes
from benchmarks.factories import checkpointer
from benchmarks.run import Figure, arguments, machine, show
from session_middleware import Sessions
from tests.support import replay

SMALL = 40  # turns of a quick run
ALONE, ATTACHED, SQLITE = "checkpointer alone", "attached", "SqliteSaver"


class Player:
    """One graph that plays the conversation, and how long each turn took per message."""

    def __init__(self, name: str, path: str, opened: ExitStack) -> None:
        self._script: deque[BaseMessage] = deque()
        graph = replay.build(self._script)
        if name == ATTACHED:
            self._graph: Any = opened.enter_context(Sessions(path)).attach(graph.compile())
        else:
            open_saver: Any = SqliteSaver.from_conn_string if name == SQLITE else checkpointer
            self._graph = graph.compile(checkpointer=opened.enter_context(open_saver(path)))
        self.seconds = 0.0

    def play(self, turn: replay.Turn) -> None:
        config = {"configurable": {"thread_id": replay.THREAD}}
        start = time.perf_counter()
        replay.play(self._graph, self._script, turn, config)
        self.seconds += time.perf_counter() - start


def measure(turns: list[replay.Turn]) -> list[Figure]:
    count = sum(len(turn.said) + len(turn.answers) for turn in turns)
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / str(number) for number, name in enumerate((ALONE, ATTACHED, SQLITE))}
        with ExitStack() as opened:
            players: dict[str, Player] = {}
            for name, folder in folders.items():
                folder.mkdir()
                players[name] = Player(name, str(folder / "bench.db"), opened)
            order = list(players.values())
            for turn in turns:
                for player in order:
                    player.play(turn)
                order.append(order.pop(0))
        size = {name: megabytes(folder) for name, folder in folders.items()}
    each = {name: 1000 * player.seconds / count for name, player in players.items()}
    return [
        Figure(f"a message, {ALONE}", each[ALONE], "ms", SQLITE, each[SQLITE], aim=1),
        Figure(f"a message, {ATTACHED}", each[ATTACHED], "ms", SQLITE, each[SQLITE], aim=1),
        Figure(f"file, {ALONE}", size[ALONE], "MB", SQLITE, size[SQLITE], aim=0.1),
        Figure(f"file, {ATTACHED}", size[ATTACHED], "MB", SQLITE, size[SQLITE], aim=0.1),
    ]


def report(*, quick: bool) -> None:
    turns_file = replay.find_turns_file()
    if turns_file is None:
        show(f"Replay: skipped; {replay.ABSENT}", [])
        return
    turns = [turn for sitting in replay.read_sittings(turns_file).values() for turn in sitting]
    turns = turns[: SMALL if quick else None]
    count = sum(len(turn.said) + len(turn.answers) for turn in turns)
    show(
        f"Replay: a real conversation of {count} messages in {len(turns)} turns (means)",
        measure(turns),
        judged=not quick,
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    print(machine())
    report(quick=options.quick)


if __name__ == "__main__":
    main()
