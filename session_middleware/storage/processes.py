"""Naming the process a run belongs to, so that another can tell whether it is still there."""

from __future__ import annotations

import os
import socket


def this_process() -> str:
    """The host and the process id, such as ``web-1:4711``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(process: str | None) -> bool:
    """Whether a process has certainly ended; of another host's, or of an unnamed one, nobody knows."""
    host, _, number = (process or "").rpartition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is there, and another user's
        return False
    return False
