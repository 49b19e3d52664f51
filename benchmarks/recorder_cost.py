"""What the recorder adds to a turn, beside the same graph attached without it, in the same run.

    python -m benchmarks.recorder_cost [--quick] [--turns 200]

A turn is a model's tool call, the tool (a real one, in LangGraph's `ToolNode`), and the model's
answer. The variants take turns one by one, in an order that rotates, each on its own file and on
threads of a few turns; what is told is the median of the differences between turns made in the same
round. A handler that does nothing shows what LangGraph itself charges for having a handler.

Under asyncio the recorder hands its writes to a thread: "until written" waits for that thread, too.
"50 tasks" are as many threads at once, and what is told is a round's time for each turn of it; "a long
thread" is one that has a thousand turns already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables.config import merge_configs
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from benchmarks.run import Figure, arguments, machine, show
from session_middleware import Sessions

_THREAD_LENGTH = 20  # turns of a thread before the next one
_LONG = 1000  # turns of a long thread before its turns are measured
_TASKS = 50
_WARM_UP = 5  # rounds that are not counted
WITH, WITHOUT, EMPTY = "with the recorder", "attach(recorder=False)", "an empty handler"


class _Empty(BaseCallbackHandler):
    run_inline = True


@tool
def search(query: str) -> str:
    """Look something up."""
    return "found: " + query


def build() -> StateGraph[Any, Any, Any, Any]:
    def model(state: MessagesState) -> dict[str, Any]:
        count = len(state["messages"])
        if isinstance(state["messages"][-1], HumanMessage):
            call: Any = {"name": "search", "args": {"query": "weather"}, "id": f"call-{count}", "type": "tool_call"}
            return {"messages": [AIMessage("", tool_calls=[call])]}
        return {"messages": [AIMessage("It is sunny. " * 20)]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode([search]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    return graph


class Variant:
    def __init__(self, name: str, path: Path, opened: ExitStack) -> None:
        self.sessions = opened.enter_context(Sessions(path))
        self.graph: Any = self.sessions.attach(build().compile(), recorder=name == WITH)
        if name == EMPTY:
            self.graph.config = merge_configs(self.graph.config, {"callbacks": [_Empty()]})
        self.returned: list[float] = []  # seconds of each turn until the graph returned
        self.written: list[float] = []  # until the record was written, too

    def turn(self, number: int) -> None:
        config, given, start = self._begin(number)
        self.graph.invoke(given, config, durability="sync")
        self._end(start)

    async def aturn(self, number: int) -> None:
        config, given, start = self._begin(number)
        await self.graph.ainvoke(given, config, durability="sync")
        self._end(start)

    async def around(self, number: int) -> None:
        """A turn of many threads at once."""
        given = {"messages": [HumanMessage("how is the weather? " * 5)]}
        configs = [self.sessions.config(f"task-{task}-{number // _THREAD_LENGTH}") for task in range(_TASKS)]
        start = time.perf_counter()
        await asyncio.gather(*(self.graph.ainvoke(given, config, durability="sync") for config in configs))
        self._end(start)

    def lengthen(self, turns: int) -> None:
        """Make the thread long, by its state."""
        config = self.sessions.config("long", user_id="alice")
        said: list[Any] = []
        for number in range(turns):
            call: Any = {"name": "search", "args": {"query": "weather"}, "id": f"long-{number}", "type": "tool_call"}
            said += [HumanMessage("how is the weather? " * 5), AIMessage("", tool_calls=[call])]
            said += [ToolMessage("found: weather", tool_call_id=call["id"]), AIMessage("It is sunny. " * 20)]
        self.graph.update_state(config, {"messages": said}, as_node="model")
        self.sessions.recorder.drain()

    def long_turn(self, number: int) -> None:
        _, given, start = self._begin(number)
        self.graph.invoke(given, self.sessions.config("long", user_id="alice"), durability="sync")
        self._end(start)

    def _begin(self, number: int) -> tuple[Any, dict[str, Any], float]:
        config = self.sessions.config(f"thread-{number // _THREAD_LENGTH}", user_id="alice")
        return config, {"messages": [HumanMessage("how is the weather? " * 5)]}, time.perf_counter()

    def _end(self, start: float) -> None:
        self.returned.append(time.perf_counter() - start)
        self.sessions.recorder.drain()
        self.written.append(time.perf_counter() - start)


def _rounds(variants: list[Variant], turns: int) -> list[tuple[int, list[Variant]]]:
    """Each turn's number, and the order in which the variants make it."""
    count = len(variants)
    return [(number, variants[number % count :] + variants[: number % count]) for number in range(turns)]


def _sync(variants: list[Variant], turns: int) -> None:
    for number, order in _rounds(variants, turns):
        for variant in order:
            variant.turn(number)


def _async(variants: list[Variant], turns: int) -> None:
    async def play() -> None:
        for number, order in _rounds(variants, turns):
            for variant in order:
                await variant.aturn(number)

    asyncio.run(play())


def _long(variants: list[Variant], turns: int) -> None:
    for variant in variants:
        variant.lengthen(_LONG)
    for number, order in _rounds(variants, turns):
        for variant in order:
            variant.long_turn(number)


def _crowd(variants: list[Variant], turns: int) -> None:
    async def play() -> None:
        for number, order in _rounds(variants, turns // 5 + _WARM_UP):
            for variant in order:
                await variant.around(number)

    asyncio.run(play())
    for variant in variants:
        variant.returned = [seconds / _TASKS for seconds in variant.returned]


def measure(play: Callable[[list[Variant], int], None], turns: int) -> dict[str, Variant]:
    with TemporaryDirectory() as place, ExitStack() as opened:
        variants = {
            name: Variant(name, Path(place) / f"{number}.db", opened)
            for number, name in enumerate((WITH, WITHOUT, EMPTY))
        }
        play(list(variants.values()), turns + _WARM_UP)
    return variants


def _added(more: list[float], less: list[float]) -> float:
    """The median difference in milliseconds."""
    pairs = zip(more[_WARM_UP:], less[_WARM_UP:], strict=True)
    return 1000 * median(with_ - without for with_, without in pairs)


def _figures(kind: str, variants: dict[str, Variant]) -> list[Figure]:
    ours, bare, empty = variants[WITH], variants[WITHOUT], variants[EMPTY]
    whole, plain = (1000 * median(variant.returned[_WARM_UP:]) for variant in (ours, bare))
    floor = _added(empty.returned, bare.returned)
    figures = [
        Figure(f"{kind}: a turn", whole, "ms", WITHOUT, plain, aim=1.25),
        Figure(f"{kind}: added to a turn", _added(ours.returned, bare.returned), "ms", EMPTY, floor, aim_of_ours=1),
    ]
    if kind == "async":
        written = _added(ours.written, bare.written)
        figures.append(Figure("async: added, until written", written, "ms", EMPTY, floor))
    return figures


def report(*, quick: bool, turns: int | None = None) -> None:
    turns = turns or (30 if quick else 200)
    plays = (("sync", _sync), ("async", _async), ("a long thread", _long), (f"{_TASKS} tasks", _crowd))
    figures = [figure for kind, play in plays for figure in _figures(kind, measure(play, turns))]
    show(f"Recorder: {turns} turns with a tool call (medians of paired differences)", figures, judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, turns=options.turns)


if __name__ == "__main__":
    main()
