"""What a checkpointer costs one long chat, beside LangGraph's own savers in the same run.

    python -m benchmarks.checkpoint_cost [--quick] [--turns 200]

Each turn is: the user asks, the model calls a tool, the tool answers, the model answers; that is
four messages and five checkpoints, under ``durability="sync"``, so that every write is waited for.
All savers get the same words. Each has a process of its own, so that one's garbage is not collected
on another's time; they go block by block, one at a time, in an order that is shuffled each time, so
that a noisy moment of the machine hits all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from benchmarks.factories import checkpointer, checkpointer_untracked
from benchmarks.run import Figure, arguments, machine, middle, show

_BLOCK = 5  # turns of one saver before it is the next one's
_READS = 9
_WORDS = ["".join(random.Random(number).choices("etaoinshrdlu", k=2 + number % 8)) for number in range(4000)]

OURS, UNTRACKED, SQLITE, MEMORY = "session_middleware", "tracking=False", "SqliteSaver", "InMemorySaver"


@contextmanager
def _memory(_: str) -> Iterator[InMemorySaver]:
    yield InMemorySaver()


_SAVERS: dict[str, Any] = {
    OURS: checkpointer,
    UNTRACKED: checkpointer_untracked,
    SQLITE: SqliteSaver.from_conn_string,
    MEMORY: _memory,
}


class Chat:
    """One saver's thread: always the same conversation, whoever keeps it."""

    def __init__(self, saver: Any) -> None:
        self._random = random.Random(7)
        self._calls = 0
        self._graph = self._build().compile(checkpointer=saver)
        self._config: Any = {"configurable": {"thread_id": "long"}}

    def turn(self) -> float:
        """Seconds of one more turn."""
        message = HumanMessage(self._words(30))
        start = time.perf_counter()
        self._graph.invoke({"messages": [message]}, self._config, durability="sync")
        return time.perf_counter() - start

    def read(self) -> float:
        """Seconds to read the whole state back."""
        start = time.perf_counter()
        state = self._graph.get_state(self._config)
        taken = time.perf_counter() - start
        assert len(state.values["messages"]) == 4 * self._calls
        return taken

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=count))

    def _model(self, state: MessagesState) -> dict[str, Any]:
        usage: Any = {"input_tokens": 900, "output_tokens": 150, "total_tokens": 1050}
        if isinstance(state["messages"][-1], ToolMessage):
            about = {"model_name": "scripted", "finish_reason": "stop"}
            return {"messages": [AIMessage(self._words(120), usage_metadata=usage, response_metadata=about)]}
        self._calls += 1
        call: Any = {"name": "search", "args": {"query": self._words(8)}, "id": f"call-{self._calls}"}
        return {"messages": [AIMessage("", tool_calls=[call], usage_metadata=usage)]}

    def _tool(self, state: MessagesState) -> dict[str, Any]:
        call = state["messages"][-1].tool_calls[0]
        return {"messages": [ToolMessage(self._words(200), tool_call_id=call["id"], name=call["name"])]}

    def _build(self) -> StateGraph[Any, Any, Any, Any]:
        graph = StateGraph(MessagesState)
        graph.add_node("model", self._model)
        graph.add_node("tool", self._tool)
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", lambda state: "tool" if state["messages"][-1].tool_calls else END)
        graph.add_edge("tool", "model")
        return graph


def megabytes(folder: Path) -> float:
    """What is in the folder, which is to be asked after the database was closed."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def _serve(connection: Connection, name: str, path: str) -> None:
    """One saver's process: play as many turns as asked, read where ``0`` is asked, end at ``None``."""
    with _SAVERS[name](path) as saver:
        chat = Chat(saver)
        while (turns := connection.recv()) is not None:
            connection.send([chat.turn() for _ in range(turns)] if turns else [chat.read()])


@contextmanager
def _process(name: str, folder: Path) -> Iterator[Connection]:
    here, there = (context := get_context("spawn")).Pipe()
    folder.mkdir()
    process = context.Process(target=_serve, args=(there, name, str(folder / "bench.db")))
    process.start()
    there.close()  # so that `recv` ends should the process die
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def measure(turns: int) -> list[Figure]:
    order = list(_SAVERS)
    shuffle = random.Random(1).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in order}
    reads: dict[str, list[float]] = {name: [] for name in order}
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / str(number) for number, name in enumerate(order)}
        with ExitStack() as opened:
            processes = {name: opened.enter_context(_process(name, folders[name])) for name in order}

            def ask(count: int, answers: dict[str, list[float]]) -> None:
                shuffle(order)
                for name in order:
                    processes[name].send(count)
                    answers[name] += processes[name].recv()

            for start in range(0, turns, _BLOCK):
                ask(min(_BLOCK, turns - start), seconds)
            for _ in range(_READS):
                ask(0, reads)
        sizes = {name: megabytes(folder) for name, folder in folders.items()}
    return _figures(seconds, reads, sizes)


def _figures(seconds: dict[str, list[float]], reads: dict[str, list[float]], sizes: dict[str, float]) -> list[Figure]:
    tenth = max(1, len(seconds[OURS]) // 10)
    last = {name: middle(taken[-tenth:]) for name, taken in seconds.items()}
    first = 1000 * median(seconds[OURS][1 : tenth + 1])  # without the very first, which opens the session
    read = {name: middle(taken) for name, taken in reads.items()}
    return [
        Figure("a turn, last tenth", last[OURS], "ms", SQLITE, last[SQLITE], aim=1),
        Figure("", last[OURS], "ms", MEMORY, last[MEMORY], aim=1),
        Figure("", last[OURS], "ms", "ours, first tenth", first, aim=2),
        Figure("the same, tracking=False", last[UNTRACKED], "ms", MEMORY, last[MEMORY]),
        Figure("file", sizes[OURS], "MB", SQLITE, sizes[SQLITE], aim=0.03, aim_of_ours=10),
        Figure("the same, tracking=False", sizes[UNTRACKED], "MB", SQLITE, sizes[SQLITE]),
        Figure("whole state read back", read[OURS], "ms", SQLITE, read[SQLITE], aim=1),
        Figure("", read[OURS], "ms", MEMORY, read[MEMORY]),
    ]


def report(*, quick: bool, turns: int | None = None) -> None:
    turns = turns or (40 if quick else 200)
    show(
        f"Checkpoints: one thread, {turns} turns of 4 messages with a tool call (medians)",
        measure(turns),
        judged=not quick,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, turns=options.turns)


if __name__ == "__main__":
    main()
