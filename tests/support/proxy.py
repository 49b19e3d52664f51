"""Proxies to a PostgreSQL server: a slow network, and one that fails.

`slowed` adds a time to each round trip. It is a process of its own, so that its work is not done on the time of what
is measured. It prints the port that it listens on, and ends when its input is closed:

    python -m tests.support.proxy PORT MILLISECONDS

`Proxy` is in the process of the test, which tells it when to fail.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit


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


class Proxy:
    """A network between this process and a server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._port = parts.port
        self._listening = socket.create_server(("127.0.0.1", 0))
        netloc = parts.netloc.replace(str(self._port), str(self._listening.getsockname()[1]))
        self.url = parts._replace(netloc=netloc, query="sslmode=disable").geturl()
        self.cuts_at = 0  # the answer to the next request but so many is lost, and its connection; 0: none is
        self.delay_seconds = 0.0  # of each answer
        self.flows = threading.Event()  # otherwise nothing arrives, and no connection ends
        self.flows.set()
        self.waits = threading.Event()  # something has not arrived
        self._open: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self.flows.set()
        for each in self._open:
            _end(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                lost = threading.Event()
                for pump in (self._requests, self._answers):
                    threading.Thread(target=pump, args=(client, server, lost), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(2**16):
                self._pass()
                if self.cuts_at and data[:1] != b"X":  # the end of a connection, which is not answered
                    self.cuts_at -= 1
                    if not self.cuts_at:
                        lost.set()
                server.sendall(data)
        _end(server)

    def _answers(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(2**16):
                self._pass()
                if lost.is_set():
                    break
                threading.Event().wait(self.delay_seconds)
                client.sendall(data)
        _end(client)

    def _pass(self) -> None:
        if not self.flows.is_set():
            self.waits.set()
            self.flows.wait()


def _end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
