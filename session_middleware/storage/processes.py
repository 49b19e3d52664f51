"""Names of processes, by which another process detects that a run's process has ended."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path


def this_process() -> str:
    """Host, process id and start time: ``web-1:4711:88123``. The start time distinguishes reused ids."""
    return _name_of(os.getpid())


@cache
def _name_of(pid: int) -> str:
    return f"{_host()}:{pid}:{_started(pid) or 0}"


@cache
def _host() -> str:
    """The host and, on Linux, its process namespace, because containers may share a host name."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> int | None:
    """The start time of a process in kernel ticks; 0 if it has ended, ``None`` if the system has no ``/proc``."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the process name before it may contain any character
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])  # a zombie has ended


def is_near(process: str) -> bool:
    """Whether the process runs or ran on this host, so that its end can be detected."""
    return sys.platform != "win32" and process.rsplit(":", 2)[0] == _host()  # on Windows `os.kill` ends the process


def is_gone(process: str | None) -> bool:
    """Whether a process has certainly ended. False for a process of another host, or without a name."""
    if process is None or not is_near(process) or process == this_process():
        return False
    number, since = process.rsplit(":", 2)[1:]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs as another user
        pass
    started = _started(int(number))
    return started is not None and since != "0" and str(started) != since
