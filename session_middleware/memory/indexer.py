"""`MemoryIndexer`: what every kind of memory is made of, and the indexing that goes on behind it.

Nothing is indexed while a run waits. Words of the last few messages are read from the record when they
are asked for; the rest, and vectors, are made on a thread of their own after a run or a recall.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.memory.embedding import Embedder
from session_middleware.models import Access, Clock, NewId
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

_AT_ONCE = 200  # messages in one transaction
_MANY = 1_000  # as many when somebody waits for all: the same pages are written for more of them
_log = logging.getLogger("session_middleware")


class Indexed(NamedTuple):
    """How much was indexed: messages by their words, items and messages by vectors."""

    messages: int
    vectors: int


def _nothing() -> None: ...


def _nowhere(_: Mapping[str, Any]) -> None: ...


class MemoryIndexer:
    """Storage, threads, the clock and the embedding model of one `Sessions`.

    `settle` makes what the recorder has in hand readable. `inside` knows the run that a config is of.
    """

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        *,
        clock: Clock,
        new_id: NewId,
        access: Access = "owner",
        embedder: Embedder | None = None,
        settle: Callable[[], object] = _nothing,
        inside: Callable[[Mapping[str, Any]], RunContext | None] = _nowhere,
    ) -> None:
        self.storage, self.offload = storage, offload
        self.clock, self.new_id = clock, new_id
        self.access = access
        self.embedder = embedder
        self.settle, self.inside = settle, inside
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._going: Future[Any] | None = None
        self._closed = False

    @property
    def embeds(self) -> bool:
        return self.embedder is not None

    def embed_items(self) -> None:
        """Make the vectors that items wait for."""
        if self.embedder is not None:
            self.embedder.catch_up(messages=False)

    def index(self, *, rebuild: bool = False) -> Indexed:
        """Index all that is not; with `rebuild` vectors are made anew."""
        self.settle()
        indexed = 0
        while (found := self.storage.index_messages(_MANY)) > 0:
            indexed += found
        if self.embedder is None:
            return Indexed(indexed, 0)
        return Indexed(indexed, self.embedder.rebuild() if rebuild else self.embedder.catch_up(messages=True))

    def wake(self) -> None:
        """Index in the background, unless that is going on."""
        with self._lock:
            if os.getpid() != self._process:  # this is a fork, and threads do not come along
                self._process, self._thread, self._going = os.getpid(), None, None
            if self._closed or (self._going is not None and not self._going.done()):
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="session-index")
            with suppress(RuntimeError):  # the interpreter is on its way out; the next search indexes
                self._going = self._thread.submit(self._index_behind)

    def _index_behind(self) -> None:
        try:
            while not self._closed and self.storage.index_messages(_AT_ONCE, leave=0 if self.embeds else _AT_ONCE // 2):
                pass
            while not self._closed and self.embedder is not None and self.embedder.catch_up(messages=True, limit=1):
                pass
        except StorageError as error:  # the next search indexes what it needs, or says what is wrong
            _log.debug("indexing was given up: %s", error)

    def close(self) -> None:
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None and os.getpid() == self._process:
            thread.shutdown(wait=True)
