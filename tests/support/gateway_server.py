"""A process that serves sessions with counters, for tests: ``gateway_server.py DATABASE FOLDER [PORT]``.

It prints its address once it listens. Headers name the caller: ``x-user``, ``x-groups``, and ``x-operator``.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, Gateway, app
from tests.support.http_server import caller_of

COUNTER = str(Path(__file__).parent / "counter_mcp.py")


def gateway(folder: Path | str, **settings: object) -> Gateway:
    data_dir = f"{folder}/{{user_id}}/{{session_id}}"
    return Gateway(sys.executable, args=("-S", COUNTER, "{data_dir}"), data_dir=data_dir, **settings)  # type: ignore[arg-type]


def with_a_token(connection: HTTPConnection) -> Caller | None:
    caller = caller_of(connection)
    return caller and replace(caller, expires_at=datetime.now(UTC) + timedelta(hours=1))


def main(url: str, folder: str, port: str = "0") -> None:
    with Sessions(url) as sessions, socket.create_server(("127.0.0.1", int(port)), backlog=2048) as listening:
        asgi = app(sessions, authenticate=with_a_token, gateway=gateway(folder))
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
