"""What a checkpointer is asked to tell the record: who takes it down is none of its business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata

from session_middleware.checkpoint.codec import NewMessage
from session_middleware.checkpoint.parent_cache import Key
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext


class CheckpointListener(Protocol):
    def brought(
        self,
        visit: RunContext,
        key: Key,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new: Sequence[NewMessage],
    ) -> list[MessageEntry]:
        """What a checkpoint says that its parent does not. Never raises."""

    def wrote(self, visit: RunContext, key: Key, writes: Sequence[tuple[str, Any]]) -> None:
        """A task's writes are about to be stored. Never raises."""
