"""PostgreSQL, beside LangGraph's own savers for it in the same run.

    python -m benchmarks.postgres [--quick] [--turns 200]

The conversation is that of `benchmarks.chat`, and the server one that this starts, or says that it cannot. Both
savers wait until a commit is on the disk. A slow network is a proxy that adds a time to each round trip.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.chat import OURS, Chat
from benchmarks.factories import checkpointer
from benchmarks.run import Figure, arguments, machine, middle, show
from tests.support.postgres import Server, binaries, start
from tests.support.proxy import slowed

THEIRS, THEIRS_ASYNC = "PostgresSaver", "AsyncPostgresSaver"
_BLOCK = 5  # turns of one saver before it is the next one's
_CONNECTIONS = 10


class Size(NamedTuple):
    turns: int  # of one thread
    threads: int  # of the fleet
    tasks: int
    slow_turns: int


SMALL, FULL = Size(10, 10, 5, 2), Size(200, 200, 50, 20)


@contextmanager
def _opened(name: str, url: str) -> Iterator[Any]:
    if name == OURS:
        with checkpointer(url) as saver:
            yield saver
    else:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
            yield saver


@asynccontextmanager
async def _aopened(name: str, url: str) -> AsyncIterator[Any]:
    if name == OURS:
        with checkpointer(url) as saver:
            yield saver
        return
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
    options: Any = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=1, max_size=_CONNECTIONS, kwargs=options, open=False) as pool:
        yield AsyncPostgresSaver(pool)  # type: ignore[arg-type]


def _server_seconds(server: Server) -> float:
    """The CPU time of the server's processes, with those that have ended."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    ended = sum(map(int, fields[13:15]))
    alive = 0
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == postmaster:
            alive += sum(map(int, fields[11:13]))
    return (ended + alive) / os.sysconf("SC_CLK_TCK")


def _long_thread(server: Server, turns: int) -> list[Figure]:
    """Blocks of turns of one saver and of the other, in an order that is shuffled each time."""
    names, chance = [OURS, THEIRS], random.Random(1)
    taken: dict[str, list[float]] = {name: [] for name in names}
    computed = dict.fromkeys(names, 0.0)
    with ExitStack() as opened:
        urls = {name: opened.enter_context(server.database(migrated=False)) for name in names}
        chats = {name: Chat(opened.enter_context(_opened(name, urls[name]))) for name in names}
        for first in range(0, turns, _BLOCK):
            for name in chance.sample(names, len(names)):
                before = _server_seconds(server)
                taken[name] += [chats[name].turn() for _ in range(min(_BLOCK, turns - first))]
                computed[name] += _server_seconds(server) - before
        sizes = {name: _megabytes(url) for name, url in urls.items()}
    last = {name: middle(seconds[-max(1, turns // 10) :]) for name, seconds in taken.items()}
    each = {name: 1000 * seconds / turns for name, seconds in computed.items()}
    return [
        Figure("a turn, last tenth", last[OURS], "ms", THEIRS, last[THEIRS], aim=0.25),
        Figure("the server's CPU time, a turn", each[OURS], "ms", THEIRS, each[THEIRS], aim=0.25),
        Figure("the tables", sizes[OURS], "MB", THEIRS, sizes[THEIRS], aim=0.0333),
    ]


def _megabytes(url: str) -> float:
    """Of the tables with their indexes, without the catalogue, which every database has."""
    sql = "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
    with psycopg.connect(url) as connection:
        (found,) = connection.execute(sql).fetchone() or (0,)
    return float(found or 0) / 1e6


def _fleet(server: Server, size: Size) -> Figure:
    taken = {}
    for name in (OURS, THEIRS):
        with server.database(migrated=False) as url:
            taken[name] = asyncio.run(_play(name, url, size))
    return Figure(
        f"{size.threads} threads, {size.tasks} tasks: the whole, a turn",
        *(taken[OURS], "ms", THEIRS_ASYNC, taken[THEIRS]),
        aim=0.667,
    )


async def _play(name: str, url: str, size: Size) -> float:
    """Milliseconds of the whole for each turn."""
    gate, turns = asyncio.Semaphore(size.tasks), 2

    async def talk(chat: Chat) -> None:
        for _ in range(turns):
            async with gate:
                await chat.aturn()

    async with _aopened(name, url) as saver:
        chats = [Chat(saver, f"session-{number}") for number in range(size.threads)]
        began = time.perf_counter()
        await asyncio.gather(*map(talk, chats))
        return 1000 * (time.perf_counter() - began) / (size.threads * turns)


def _slow_network(server: Server, milliseconds: float, turns: int) -> Figure:
    taken: dict[str, float] = {}
    with slowed(server.port, milliseconds) as port:
        for name in (OURS, THEIRS):
            with server.database(migrated=False) as url:
                with _opened(name, url):
                    pass  # creating the tables is not what is measured
                with _opened(name, url.replace(str(server.port), str(port))) as saver:
                    chat = Chat(saver)
                    chat.turn()
                    taken[name] = middle([chat.turn() for _ in range(turns)])
    return Figure(f"a turn, with {milliseconds:g} ms a round trip", taken[OURS], "ms", THEIRS, taken[THEIRS], aim=1)


def report(*, quick: bool, turns: int | None = None) -> None:
    if binaries() is None:
        show("PostgreSQL: skipped; its server is not installed (the package postgresql)", [])
        return
    size = Size(*SMALL) if quick else FULL
    size = size._replace(turns=turns or size.turns)
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), "-c fsync=on" if not quick else "")
        try:
            figures = [
                *_long_thread(server, size.turns),
                _fleet(server, size),
                *(_slow_network(server, milliseconds, size.slow_turns) for milliseconds in (1, 2.8, 7.5)),
            ]
        finally:
            server.stop()
    show(f"PostgreSQL: one thread of {size.turns} turns, a fleet, and a slow network", figures, judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, turns=options.turns)


if __name__ == "__main__":
    main()
