"""What a benchmark of checkpointers opens: the checkpointer alone, on a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from session_middleware import Sessions
from session_middleware.checkpoint.saver import SessionSaver


@contextmanager
def checkpointer(path: str) -> Iterator[SessionSaver]:
    """With everything on: sessions, messages and tool results are recorded from the checkpoints."""
    with Sessions(path) as sessions:
        yield sessions.checkpointer


@contextmanager
def checkpointer_untracked(path: str) -> Iterator[SessionSaver]:
    """With ``tracking=False``: checkpoints only."""
    with Sessions(path, tracking=False) as sessions:
        yield sessions.checkpointer
