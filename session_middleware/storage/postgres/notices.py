"""Notices of changed sessions between processes, so that followers wait without reading.

A NOTIFY in each commit would cost most of the throughput, because it locks the server's queue of notices until the
commit is on the disk. Instead, a thread sends one notice for the commits of an interval, in its own transaction. A
process receives notices over one connection, from its first follower on. It sends a notice to itself to test whether
they arrive: a transaction pooler accepts LISTEN, and delivers nothing.
"""

from __future__ import annotations

import selectors
import socket
import threading
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import psycopg

from session_middleware.errors import StorageError
from session_middleware.storage.types import Watch

CHANNEL = "session_middleware"
_INTERVAL_SECONDS = 0.05  # between two notices of a process
_RETRY_SECONDS = 1.0  # between two attempts to listen
_NAMES = 500  # in a notice, which has at most 8,000 bytes
_ANY = "any"  # in place of names: any session may have changed


class Notices:
    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], send: Callable[[str], object]) -> None:
        self._connect, self._send = connect, send
        self._lock = threading.Lock()
        self._changed: set[str] = set()  # names of sessions, to be sent
        self._sender: threading.Thread | None = None
        self._listener: threading.Thread | None = None
        self._watches: set[_Watch] = set()
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self.is_live = False  # notices arrive

    def watch(self, session_id: str, on_change: Callable[[], object]) -> Watch:
        watch = _Watch(self, _name(session_id), on_change)
        with self._lock:
            self._watches.add(watch)
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="session-notices", daemon=True)
                self._listener.start()
        return watch

    def unwatch(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def changed(self, session_ids: Collection[str] | None) -> None:
        """Report that these sessions have changed; ``None``: any may have. Does not wait."""
        names = {_ANY} if session_ids is None else {_name(session_id) for session_id in session_ids}
        self._report(names)
        self._enqueue(names)

    def close(self) -> None:
        """Send the pending notice, and stop listening."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.send(b"\0")
        for thread in (self._sender, self._listener):
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        self._wake.close()
        self._woken.close()

    # Sending

    def _enqueue(self, names: Collection[str]) -> None:
        with self._lock:
            self._changed.update(names)
            if self._sender is not None or self._closing.is_set():
                return
            # Not a daemon: at the end of the program the last notice is sent.
            self._sender = threading.Thread(target=self._send_all, name="session-notifier")
            try:
                self._sender.start()
            except RuntimeError:  # the program is ending
                self._sender = None

    def _send_all(self) -> None:
        while True:
            self._closing.wait(_INTERVAL_SECONDS)
            with self._lock:
                names, self._changed = self._changed, set()
                if not names:
                    self._sender = None
                    return
            notice = ",".join(names) if len(names) <= _NAMES else _ANY
            with suppress(StorageError, psycopg.Error):  # a follower that gets no notice reads again after a while
                self._send(notice)

    # Receiving

    def _report(self, names: Collection[str]) -> None:
        if self._watches:
            with self._lock:
                concerned = [each for each in self._watches if each.name in names or _ANY in names]
            for watch in concerned:
                watch.on_change()

    def _listen(self) -> None:
        while not self._closing.is_set():
            with suppress(psycopg.Error, OSError), self._connect() as connection:
                connection.execute(f"LISTEN {CHANNEL}".encode())
                self._enqueue([_name("")])  # no session has this id
                self._receive(connection)
            self.is_live = False
            self._closing.wait(_RETRY_SECONDS)

    def _receive(self, connection: psycopg.Connection[Any]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                connection.pgconn.consume_input()
                while (notice := connection.pgconn.notifies()) is not None:
                    names = notice.extra.decode().split(",")
                    # The changes before the first notice were not reported.
                    was_live, self.is_live = self.is_live, True
                    self._report(names if was_live else [_ANY])


class _Watch(Watch):
    def __init__(self, notices: Notices, name: str, on_change: Callable[[], object]) -> None:
        self._notices, self.name, self.on_change = notices, name, on_change

    @property
    def is_live(self) -> bool:
        return self._notices.is_live

    def close(self) -> None:
        self._notices.unwatch(self)


def _name(session_id: str) -> str:
    """A short name. If two sessions have the same name, a follower reads without finding anything."""
    return f"{zlib.crc32(session_id.encode('utf-8', 'surrogatepass')):x}"
