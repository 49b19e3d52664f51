"""The record's part of the SQL engine: each method is a transaction over the statements of its siblings."""

from __future__ import annotations

from collections.abc import Sequence

from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.operations import Operations, changing, reading, reading_by_rules
from session_middleware.storage.sql.record import conversations, deletions, reads, tool_call_rows, usage
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.types import ConversationItemPut, StoredItem


class RecordOperations(Operations):
    list_records = reading(reads.list_records)
    list_timeline = reading(reads.list_timeline)
    list_unfinished = reading(reads.list_unfinished)
    list_messages = reading(reads.list_messages)
    find_message = reading(reads.find_message)
    find_file = reading(reads.find_file)
    list_branches = reading(reads.list_branches)
    find_executions = reading(reads.find_executions)
    list_tool_calls = reading(usage.list_tool_calls)
    sum_usage = reading_by_rules(usage.sum_usage)
    append_repair = changing(tool_call_rows.append_repair)
    list_items = reading(conversations.list_items)

    def delete_message(self, session_id: str, message_id: str) -> int:
        deleted = self._database.write(
            lambda connection: deletions.delete_message(connection, session_id, message_id, self._now()), of=session_id
        )
        if deleted:
            self._database.erase()
        return deleted

    def append_items(self, context: RunContext, items: Sequence[ConversationItemPut]) -> None:
        def append(write: SessionWrite, run: RunWrite) -> None:
            conversations.append(write, context.session_id, items)
            self._write(write, run, [message for item in items for message in item.message])

        self._run_admitted(context, append)

    def remove_items(self, context: RunContext, *, limit: int | None = None) -> list[StoredItem]:
        removed: list[StoredItem] = self._run_admitted(
            context, lambda write, _: conversations.remove(write, context.session_id, limit)
        )
        return removed
