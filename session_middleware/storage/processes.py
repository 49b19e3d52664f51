"""Naming the process a run belongs to, so that another can tell whether it is still there."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path


def this_process() -> str:
    """The host, the process id and what tells it from an earlier one of that id: ``web-1:4711:88123``."""
    return _named(os.getpid())


@cache
def _named(pid: int) -> str:
    return f"{_here()}:{pid}:{_started(pid) or 0}"


@cache
def _here() -> str:
    """The host; in a container also which one, since several may share a name and not their processes."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> int | None:
    """When the process was started, by the kernel's count; 0 when it has ended, ``None`` where that is not told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])  # its parent may not have asked for it yet


def is_near(process: str) -> bool:
    """Whether the process is, or was, where this one can see it."""
    return sys.platform != "win32" and process.rsplit(":", 2)[0] == _here()  # there, asking would end it


def is_gone(process: str | None) -> bool:
    """Whether a process has certainly ended; of another host's, or of an unnamed one, nobody knows."""
    if process is None or not is_near(process) or process == this_process():
        return False
    number, since = process.rsplit(":", 2)[1:]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is there, and another user's
        pass
    started = _started(int(number))
    return started is not None and since != "0" and str(started) != since
