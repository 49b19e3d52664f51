"""The record's part of the SQL engine: each method is a transaction over the statements of its siblings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from session_middleware.models import Branch, Message, RepairedCall, ToolCall, Usage
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.operations import Operations
from session_middleware.storage.sql.record import (
    conversations,
    deletions,
    message_rows,
    pages,
    runs,
    timeline,
    tool_call_repairs,
    usage,
)
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.sql.sessions import events
from session_middleware.storage.types import (
    ConversationItemPut,
    Page,
    Record,
    StoredItem,
    ToolCallFilter,
    UsageBy,
    UsageFilter,
)

R = TypeVar("R", bound=Record)


class RecordOperations(Operations):
    def data_version(self) -> int:
        return self._database.version()

    def append_event(
        self, session_id: str, kind: str, *, reason: str | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        self._database.write(
            lambda connection: events.append(connection, session_id, kind, reason, detail or {}, self._now()),
            of=session_id,
        )

    def append_repair(
        self,
        session_id: str,
        calls: Sequence[RepairedCall],
        *,
        run_id: str | None,
        reason: str,
        checkpoint_id: str | None,
    ) -> None:
        detail = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
        self._database.write(
            lambda connection: tool_call_repairs.append(
                connection, session_id, calls, run_id=run_id, reason=reason, detail=detail, now=self._now()
            ),
            of=session_id,
        )

    def list_records(self, kind: type[R], session_id: str, *, after: int = 0, limit: int | None = None) -> list[R]:
        return self._database.read(
            lambda connection: timeline.list_records(connection, kind, session_id, after=after, limit=limit)
        )

    def list_timeline(self, session_id: str, *, after: int = 0, limit: int | None = None) -> Page:
        return self._database.read(
            lambda connection: timeline.list_timeline(connection, session_id, after=after, limit=limit)
        )

    def list_unfinished(self, session_id: str, *, up_to: int) -> list[Record]:
        return self._database.read(lambda connection: timeline.list_unfinished(connection, session_id, up_to=up_to))

    def list_messages(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int | None = None,
        all_versions: bool = False,
        branch: str | None = None,
    ) -> list[Message]:
        return self._database.read(
            lambda connection: pages.list_messages(
                connection, session_id, after=after, limit=limit, all_versions=all_versions, branch=branch
            )
        )

    def find_message(self, session_id: str, message_id: str) -> Message | None:
        return self._database.read(lambda connection: message_rows.get_message(connection, session_id, message_id))

    def delete_message(self, session_id: str, message_id: str) -> int:
        deleted = self._database.write(
            lambda connection: deletions.delete_message(connection, session_id, message_id, self._now())
        )
        if deleted:
            self._database.erase()
        return deleted

    def find_file(self, session_id: str, hash: str) -> bytes | None:
        return self._database.read(lambda connection: message_rows.get_file(connection, session_id, hash))

    def list_branches(self, session_id: str) -> list[Branch]:
        return self._database.read(lambda connection: runs.list_branches(connection, session_id))

    def list_tool_calls(
        self, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
    ) -> list[ToolCall]:
        return self._database.read(
            lambda connection: usage.list_tool_calls(connection, where, limit=limit, before=before)
        )

    def find_executions(self, session_id: str, tool_call_ids: Sequence[str]) -> tuple[list[ToolCall], list[Message]]:
        return self._database.read(
            lambda connection: tool_call_repairs.find_executions(connection, session_id, tool_call_ids)
        )

    def sum_usage(self, by: UsageBy, where: UsageFilter) -> list[Usage]:
        return self._database.read(lambda connection: usage.usage(connection, by, where))

    # Items of conversations

    def append_items(self, context: RunContext, items: Sequence[ConversationItemPut]) -> None:
        def append(write: SessionWrite, write_down: Callable[..., Any]) -> None:
            conversations.append(write, context.session_id, items)
            write_down([message for item in items for message in item.message])

        self._run_admitted(context, append)

    def list_items(self, session_id: str, *, limit: int | None = None) -> list[StoredItem]:
        return self._database.read(lambda connection: conversations.list_last(connection, session_id, limit))

    def remove_items(self, context: RunContext, *, limit: int | None = None) -> list[StoredItem]:
        removed: list[StoredItem] = self._run_admitted(
            context, lambda write, _: conversations.remove(write, context.session_id, limit)
        )
        return removed
