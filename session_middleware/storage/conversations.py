"""`Conversations`: the part of the storage contract that keeps what another SDK calls a conversation.

Its items are state, not record: they come back as they were given, whatever the record keeps of
them. It is a part of `Storage` in a file of its own, and holds to the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from session_middleware.storage.record_entries import Attachment, MessageEntry
from session_middleware.storage.run import RunContext


class ConversationItemPut(NamedTuple):
    item: Any  # as JSON has it, with the hashes of files in their places
    message_id: str  # of the message it is in the record
    message: Sequence[MessageEntry] = ()  # that message, or nothing if it is not to be recorded
    files: Sequence[Attachment] = ()


class StoredItem(NamedTuple):
    item: Any
    files: Mapping[str, bytes]  # those it names, by their hashes


class Conversations(Protocol):
    def append_items(self, visit: RunContext, items: Sequence[ConversationItemPut]) -> None:
        """Add items after those that are there, all or none, and what the record learns of them."""

    def get_items(self, session_id: str, *, limit: int | None = None) -> list[StoredItem]:
        """In order; the last `limit` of them. Those that were removed are not among them."""

    def remove_items(self, visit: RunContext, *, limit: int | None = None) -> list[StoredItem]:
        """Remove the last `limit` items, or all; which they were, in order. Their messages are marked ``removed``."""
