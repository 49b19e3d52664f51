"""The command line in processes of its own, as a person starts it in the current folder."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.processes import Process

MAIN = "from session_middleware.cli.main import main; main()"


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, str]]:
    """A command that serves on a free port: the line that it prints, and the address in it."""
    with Process("-c", MAIN, *arguments, "--port", "0") as process:
        line = process.stdout.readline()
        address = re.search(r"http://[\d.:]+", line)
        assert address is not None, process.stderr.read()
        yield line, address[0]
        process.send_signal(signal.SIGTERM)
        process.wait(30)
