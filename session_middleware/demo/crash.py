"""A process that is killed in the middle of a tool call, for the tour to pick up after it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import session_middleware
from session_middleware.errors import SessionError

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Crash:
    """What happened: the process, how it ended, and how long its tool had been running."""

    pid: int
    returncode: int
    tool_seconds: float


class WorkerFailed(SessionError):
    """The second process ended before its tool began."""

    def __init__(self, output: str) -> None:
        super().__init__(f"the demo's second process did not get to its tool: {output}; run the demo again")


def crash(database: Path, folder: Path, *, thread: str, user_id: str) -> Crash:
    """Run a turn in another process, and kill that process while its tool is running."""
    started = folder / "started"
    started.unlink(missing_ok=True)
    command = [sys.executable, "-m", "session_middleware.demo.worker"]
    command += [str(database), str(folder), thread, user_id, str(started)]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _wait_for(started, process)
            began = time.monotonic()
            time.sleep(0.2)
        finally:
            process.kill()  # SIGKILL where there are signals: nothing in the process gets to run
        process.wait()
        return Crash(process.pid, process.returncode, time.monotonic() - began)


def _wait_for(started: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not started.exists():
        if process.poll() is not None:
            output = process.stderr.read() if process.stderr else ""
            raise WorkerFailed(output.strip().rpartition("\n")[2])
        if time.monotonic() > deadline:
            raise WorkerFailed(f"it took longer than {_PATIENCE_SECONDS:.0f} s")
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """This process's, with this very package first on the path, installed or not."""
    root = str(Path(session_middleware.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
