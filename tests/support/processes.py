"""Processes of Python that begin warm: each is forked from one that has imported what most of them need.

Most of what a small program takes is importing LangGraph; a server imports as much again. A process made here is one
of its own in all that matters to these tests: its memory, threads, files and locks, how it is killed and how it ends.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

ROOT = Path(__file__).parents[2]
_WARM = (
    "langchain_core.language_models",
    "langchain_core.tools",
    "langgraph.checkpoint.memory",
    "langgraph.graph",
    "langgraph.prebuilt",
    "psycopg",
    "session_middleware.cli.main",
    "session_middleware.integrations.mcp_server",
    "session_middleware.integrations.server",
    "session_middleware.recording.attach",
    "session_middleware.sessions",
    "tests.support.agents",
    "uvicorn",
)
_SHARED = "TESTS_NURSERY"


# In the tests


class Process:
    """As `subprocess.Popen`, as far as the tests need it; all of its streams are texts."""

    def __init__(self, *command: object, env: Mapping[str, str] | None = None, stdin: bool = False) -> None:
        """`command`: a file, or ``-c`` and a text, and the arguments. `env` is added to this process's own."""
        ours, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
        reading, self.stdin = os.open(os.devnull, os.O_RDONLY), None
        if stdin:
            os.close(reading)
            reading, writing = os.pipe()
            self.stdin = os.fdopen(writing, "w")
        self.stdout: IO[str] = os.fdopen(ours[0])
        self.stderr: IO[str] = os.fdopen(ours[1])
        self.returncode: int | None = None
        self._to_it = socket.socket(socket.AF_UNIX)
        self._to_it.connect(os.environ.get(_SHARED) or _nursery())
        asked = json.dumps([[str(part) for part in command], {**os.environ, **(env or {})}, str(Path.cwd())]).encode()
        socket.send_fds(self._to_it, [len(asked).to_bytes(8, "big")], [reading, *theirs])
        self._to_it.sendall(asked)
        for descriptor in (reading, *theirs):
            os.close(descriptor)
        self.pid = int.from_bytes(self._to_it.recv(8), "big")

    def poll(self) -> int | None:
        self._to_it.setblocking(False)
        try:
            return self._ended()
        except BlockingIOError:
            return None
        finally:
            self._to_it.setblocking(True)

    def wait(self, timeout: float | None = None) -> int:
        self._to_it.settimeout(timeout)
        return self._ended()

    def _ended(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(self._to_it.recv(8), "big"))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def say(self, line: str) -> None:
        assert self.stdin is not None
        print(line, file=self.stdin, flush=True)

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Only what is short is in the second: it is read when the first has ended."""
        if self.stdin is not None:
            self.stdin.write(text)
            self.stdin.close()
        told = (self.stdout.read(), self.stderr.read())
        self.wait(timeout)
        self.close()
        return told

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr, self._to_it):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self.close()


def run(
    *command: object, env: Mapping[str, str] | None = None, timeout: float | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, with its output."""
    process = Process(*command, env=env)
    stdout, stderr = process.communicate(timeout=timeout)
    assert process.returncode is not None
    if check and process.returncode:
        raise AssertionError(f"ended with {process.returncode}: {stderr}")
    return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)


def share_nursery() -> None:
    """Let the processes of this one, which are pytest's workers, fork from one nursery."""
    os.environ[_SHARED] = _nursery()


@cache
def _nursery() -> str:
    """The address of the process they are forked from, which ends with this one, however this one ends.

    It imports nothing until the first process is asked for.
    """
    folder = tempfile.mkdtemp(prefix="nursery-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(Path(folder) / "s")
    nursery = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert nursery.stdout is not None
    atexit.register(nursery.kill)
    assert nursery.stdout.readline() == b"ready\n"
    return address


# In the nursery


def _serve(address: str) -> list[str]:
    """Returns in each of the new processes only, with what it is to run."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those in between
    while listening in select.select([listening, sys.stdin], [], [])[0]:  # its input ends with the process of the tests
        asking, _ = listening.accept()
        _warm()
        if os.fork() == 0:
            listening.close()
            return _bear(asking)
        asking.close()
    os._exit(0)


@cache
def _warm() -> None:
    for name in _WARM:
        with suppress(ModuleNotFoundError):  # not every environment has every extra
            import_module(name)
    assert threading.active_count() == 1
    gc.freeze()  # what is there already is looked through by none of them


def _bear(asking: socket.socket) -> list[str]:
    """In between: make the process, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(asking, 8, 3)
    left, parts = int.from_bytes(length, "big"), []
    while left:
        parts.append(asking.recv(left))
        left -= len(parts[-1])
    command, environment, folder = json.loads(b"".join(parts))
    if (child := os.fork()) == 0:
        asking.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return [str(part) for part in command]
    asking.sendall(child.to_bytes(8, "big"))
    for stream in (0, 1, *streams):
        os.close(stream)
    _, status = os.waitpid(child, 0)
    try:
        asking.sendall(status.to_bytes(8, "big"))
    finally:
        os._exit(0)


def _main(command: list[str]) -> None:
    """Run it as Python would, by its own name, and end as it would, except that what was imported is not freed."""
    main: Any = ModuleType("__main__")
    sys.modules["__main__"] = main
    if command[0] == "-c":
        sys.argv, code, name = ["-c", *command[2:]], command[1], "<string>"
    else:
        sys.argv, code, name = command, Path(command[0]).read_text(), command[0]
        sys.path.insert(0, str(Path(name).parent))
        main.__file__ = name
    exec(compile(code, name, "exec"), vars(main))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0)  # a tenth of a second is what freeing all modules takes; an exit with a status or an error does so


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    _main(_serve(sys.argv[1]))
