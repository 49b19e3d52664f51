"""`MemoryIndexer`: the collaborators of memory, and indexing in the background.

No run waits for the index. A search reads the words of the last few messages from the record; the others, and
vectors, are indexed on a thread of the storage.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.memory.embedding import Embedder
from session_middleware.models import Access, Clock, NewId
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext

_BATCH = 200  # messages in one transaction
_LARGE_BATCH = 1_000  # in a call that indexes all, because larger transactions write fewer pages
_RUNS = 50  # between two rounds in the background when only words are indexed
_log = logging.getLogger("session_middleware")


class Indexed(NamedTuple):
    """The number of messages whose words were indexed, and of items and messages that got vectors."""

    messages: int
    vectors: int


@dataclass(eq=False, repr=False)
class MemoryIndexer:
    """Storage, executor, clock and embedding model of one `Sessions`.

    `settle` writes what the recorder has buffered. `active_context` returns the run that a config belongs to.
    """

    storage: Storage
    offload: StorageExecutor
    _: KW_ONLY
    clock: Clock
    new_id: NewId
    access: Access = "owner"
    embedder: Embedder | None = None
    settle: Callable[[], object] = lambda: None
    active_context: Callable[[Mapping[str, Any]], RunContext | None] = lambda _: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._round: tuple[int, Future[None]] | None = None  # with its process
        self._runs = 0  # that ended
        self._indexed_at: datetime | None = None  # when the last round began
        self._closed = False

    @property
    def embeds(self) -> bool:
        return self.embedder is not None

    def embed_items(self) -> None:
        """Compute the missing vectors of items."""
        if self.embedder is not None:
            self.embedder.catch_up(messages=False)

    def index(self, *, rebuild: bool = False) -> Indexed:
        """Index everything; with `rebuild` all vectors are computed again."""
        self.settle()
        indexed = 0
        while (found := self.storage.index_messages(_LARGE_BATCH)) > 0:
            indexed += found
        if self.embedder is None:
            return Indexed(indexed, 0)
        return Indexed(indexed, self.embedder.rebuild() if rebuild else self.embedder.catch_up(messages=True))

    def wake(self) -> None:
        """Index in the background after a run: every time if vectors are missing then, else after many runs."""
        with self._lock:
            self._runs += 1
            is_due = self.embeds or self._runs % _RUNS == 0
            is_running = self._round is not None and self._round[0] == os.getpid() and not self._round[1].done()
            if is_due and not is_running and not self._closed:
                with suppress(StorageError):  # it was closed; the next search indexes what it needs
                    self._round = os.getpid(), self.offload.start(self._index_in_background)

    def _index_in_background(self) -> None:
        """Index the sessions that were active since the last round; in the first round of a process, all."""
        began_at = self.clock()
        try:
            while not self._closed and self.storage.index_messages(_BATCH, active_since=self._indexed_at):
                pass
            while not self._closed and self.embedder is not None and self.embedder.catch_up(messages=True, limit=1):
                pass
            self._indexed_at = began_at
        except StorageError as error:  # the next search indexes what it needs, or raises
            _log.debug("background indexing failed: %s", error)

    def close(self) -> None:
        """End the background indexing after its current batch."""
        self._closed = True
