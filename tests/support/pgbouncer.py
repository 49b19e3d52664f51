"""PgBouncer before a server: a pooler that may give each transaction of a connection to another one of the server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.postgres import Server

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server_port} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 20
"""


@contextmanager
def pooled(server: Server, folder: Path) -> Iterator[int]:
    """The port of a pooler in transaction mode, which runs as the user of the server during the block."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None and not os.environ.get("CI"):  # there these tests must run
        pytest.skip("PgBouncer is not installed: install the package pgbouncer")
    assert program is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if server.user:
        shutil.chown(folder, server.user)
    settings = folder / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(server_port=server.port, port=port))
    process = subprocess.Popen(
        [program, settings],
        user=server.user,
        extra_groups=[] if server.user else None,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()
