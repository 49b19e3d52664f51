"""A slow network: a TCP proxy that adds a time to each round trip.

    python -m tests.support.proxy PORT MILLISECONDS

It prints the port that it listens on, and ends when its input is closed. It is a process of its own, so that its work
is not done on the time of what is measured.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def slowed(port: int, milliseconds: float) -> Iterator[int]:
    """The port of a proxy to `port`, which exists during the block."""
    command = [sys.executable, "-m", "tests.support.proxy", str(port), str(milliseconds)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Answers are delayed, and requests are not: together that is one round trip."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(2**16):
        if delay:
            loop.call_later(delay, writer.write, data)
        else:
            writer.write(data)
    loop.call_later(delay, writer.close)


async def _serve(port: int, delay: float) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_forward(reader, to_there, 0), _forward(there, writer, delay), return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
