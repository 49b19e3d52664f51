"""Streaming clients of the HTTP server: 200 at once, on two server processes of one file.

    python -m benchmarks.streaming [--quick] [--clients 200]

A model says 40 words, one each 20 ms. The peers are the same graph without a server, alone and attached to sessions, as
many runs at once in two processes. All clients come at the same moment, each with a new session. The table has the time
from a client's request to its first word, of the median client and of the slowest of a hundred, the time until the last
client has all words, and the words that did not arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.chat import process
from benchmarks.run import Figure, arguments, machine, show
from session_middleware import Sessions

_WORDS, _PAUSE_SECONDS = 40, 0.02
_PROCESSES = 2
_CLIENTS = 200


class Talker(BaseChatModel):
    """A model that takes its time."""

    @property
    def _llm_type(self) -> str:
        return "talker"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("word " * _WORDS))])

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for _ in range(_WORDS):
            await asyncio.sleep(_PAUSE_SECONDS)
            yield ChatGenerationChunk(message=AIMessageChunk("word "))


class Client(NamedTuple):
    """What one client saw."""

    first: float  # seconds until the first word
    words: int


class Round(NamedTuple):
    clients: list[Client]
    seconds: float  # until the last client had all words

    def first_ms(self) -> tuple[float, float]:
        """The median, and the slowest of a hundred."""
        found = [1000 * client.first for client in self.clients]
        return median(found), quantiles(found, n=100, method="inclusive")[-1]

    def lost(self) -> int:
        return sum(_WORDS - client.words for client in self.clients)


def _graph() -> Any:
    async def talk(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await Talker().ainvoke(state["messages"])]}

    return StateGraph(MessagesState).add_node("talk", talk).add_edge(START, "talk").compile()


_INPUT = {"messages": [{"role": "user", "content": "talk to me"}]}


async def _all(runs: list[Any]) -> list[Client]:
    return list(await asyncio.gather(*runs))


# Without a server


def _run_alone(connection: Connection, runs: int, path: str | None) -> None:
    with ExitStack() as opened:
        graph, config_of = _graph(), dict[str, Any]
        if path is not None:
            sessions = opened.enter_context(Sessions(path))
            graph, config_of = sessions.attach(graph), sessions.config
        _run_all(connection, runs, graph, config_of)


def _run_all(connection: Connection, runs: int, graph: Any, config_of: Callable[[], Any]) -> None:
    async def run() -> Client:
        start, first, words = time.perf_counter(), 0.0, 0
        async for message, _ in graph.astream(_INPUT, config_of(), stream_mode="messages"):
            first = first or time.perf_counter() - start
            words += message.text == "word "
        return Client(first, words)

    asyncio.run(_all([run()]))  # what is imported at the first run
    connection.send("ready")
    connection.recv()
    connection.send(asyncio.run(_all([run() for _ in range(runs)])))
    connection.recv()


def _alone(clients: int, *, attached: bool) -> Round:
    with TemporaryDirectory() as place, ExitStack() as opened:
        path = str(Path(place) / "bench.db") if attached else None
        workers = [opened.enter_context(process(_run_alone, clients // _PROCESSES, path)) for _ in range(_PROCESSES)]
        for worker in workers:
            worker.recv()
        start = time.perf_counter()
        for worker in workers:
            worker.send("go")
        found = [client for worker in workers for client in worker.recv()]
        return Round(found, time.perf_counter() - start)


# Served


def _serve(connection: Connection, path: str) -> None:
    from session_middleware.integrations.server import app
    from tests.support.served_app import serving

    with Sessions(path) as sessions, serving(app(sessions, {"talker": _graph()})) as url:
        connection.send(url)
        connection.recv()


async def _listen(client: httpx.AsyncClient) -> Client:
    asked = {"assistant_id": "talker", "input": _INPUT, "stream_mode": "messages-tuple", "on_completion": "keep"}
    start, first, words = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/runs/stream", json=asked) as response:
        async for line in response.aiter_lines():
            if line.startswith('data: [{"content":"word "'):
                first = first or time.perf_counter() - start
                words += 1
    return Client(first, words)


def _served(clients: int) -> tuple[Round, int]:
    """The round, and the sessions whose record has not all words."""

    async def play(urls: list[str]) -> Round:
        limits = httpx.Limits(max_connections=None)
        opened = [httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) for url in urls]
        for client in opened:
            await _listen(client)  # what is imported at the first request
        start = time.perf_counter()
        found = await _all([_listen(opened[number % len(opened)]) for number in range(clients)])
        seconds = time.perf_counter() - start
        for client in opened:
            await client.aclose()
        return Round(found, seconds)

    with TemporaryDirectory() as place:
        path = str(Path(place) / "bench.db")
        Sessions(path).close()
        with ExitStack() as opened:
            servers = [opened.enter_context(process(_serve, path)) for _ in range(_PROCESSES)]
            found = asyncio.run(play([server.recv() for server in servers]))
        with Sessions(path) as sessions:
            whole = sum(session.messages()[-1].text == "word " * _WORDS for session in sessions.list(limit=None))
    return found, clients + _PROCESSES - whole


def report(*, quick: bool, clients: int | None = None) -> None:
    clients = clients or (20 if quick else _CLIENTS)
    peers = {f"graph {name}": _alone(clients, attached=name == "attached") for name in ("alone", "attached")}
    served, incomplete = _served(clients)
    first, slow = served.first_ms()
    show(
        f"Streaming: {clients} clients at once, {_PROCESSES} server processes, {_WORDS} words each",
        [
            *(Figure("first word, median", first, "ms", name, each.first_ms()[0]) for name, each in peers.items()),
            *(Figure("first word, p99", slow, "ms", name, each.first_ms()[1]) for name, each in peers.items()),
            *(Figure("all words of all", served.seconds, "s", name, each.seconds) for name, each in peers.items()),
            Figure("words that were lost", served.lost(), "", "graph alone", 0, aim_of_ours=0),
            Figure("records that are not whole", incomplete, "", "graph attached", 0, aim_of_ours=0),
        ],
        judged=not quick,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, clients=options.clients)


if __name__ == "__main__":
    main()
