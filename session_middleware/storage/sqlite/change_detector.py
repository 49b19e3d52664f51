"""Noticing that something was committed, by whichever process, for the price of one PRAGMA."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable


class ChangeDetector:
    """A connection that only watches: `PRAGMA data_version` tells of commits of all others, and of no own ones."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._process = os.getpid()

    def version(self) -> int:
        with self._lock:
            if os.getpid() != self._process:  # a connection must not be used across a fork
                self._process = os.getpid()
                self._inherited += [self._connection] if self._connection else []
                self._connection = None
            if self._connection is None:
                self._connection = self._connect()
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and os.getpid() == self._process:
                self._connection.close()
            self._connection = None
