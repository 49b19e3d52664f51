"""What a checkpointer is asked to tell the record: who takes it down is none of its business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata

from session_middleware.checkpoint.codec import NewMessage
from session_middleware.checkpoint.known import Key
from session_middleware.storage.seen import MessageSeen
from session_middleware.storage.visit import Visit


class Witness(Protocol):
    def brought(
        self, visit: Visit, key: Key, checkpoint: Checkpoint, metadata: CheckpointMetadata, new: Sequence[NewMessage]
    ) -> list[MessageSeen]:
        """What a checkpoint says that its parent does not. Never raises."""

    def wrote(self, visit: Visit, key: Key, writes: Sequence[tuple[str, Any]]) -> None:
        """A task's writes are about to be stored. Never raises."""
