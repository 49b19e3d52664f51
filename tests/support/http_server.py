"""A process that serves graphs over HTTP, for tests: ``http_server.py DATABASE``. It ends when its input is closed.

It prints its address once it listens. Headers name the caller: ``x-user``, ``x-groups``, and ``x-operator``.
"""

from __future__ import annotations

import socket
import sys
import threading

import uvicorn
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, app
from tests.support import agents


def caller_of(connection: HTTPConnection) -> Caller | None:
    headers = connection.headers
    if "x-user" not in headers:
        return None
    groups = tuple(filter(None, headers.get("x-groups", "").split(",")))
    return Caller(headers["x-user"], groups, is_operator="x-operator" in headers)


def main(url: str) -> None:
    with Sessions(url) as sessions, socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        graphs = {"agent": agents.agent(), "chat": agents.chat()}
        asgi = app(sessions, graphs, authenticate=caller_of)
        server = uvicorn.Server(uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=3))

        def end_with_the_input() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=end_with_the_input, daemon=True).start()
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        server.run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1])
