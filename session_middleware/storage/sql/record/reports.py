"""The part of the engine that reports: `Reporting`, each method as a transaction over the statements beside it."""

from __future__ import annotations

from collections.abc import Sequence

from session_middleware.models import Message, RepairedCall, ToolCall, Usage
from session_middleware.storage.reporting import Page, ToolCallFilter, UsageBy, UsageFilter
from session_middleware.storage.sql.checkpoints import checkpoints
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import timeline, tool_call_repairs, usage
from session_middleware.storage.sqlite.database import SqliteDatabase
from session_middleware.storage.timeline import Entry


class SqliteReports:
    _database: SqliteDatabase
    _rules: EngineContext

    def usage(self, by: UsageBy, where: UsageFilter) -> list[Usage]:
        return self._database.read(lambda connection: usage.usage(connection, by, where))

    def list_all_tool_calls(
        self, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
    ) -> list[ToolCall]:
        return self._database.read(
            lambda connection: usage.list_tool_calls(connection, where, limit=limit, before=before)
        )

    def list_entries(self, session_id: str, *, after: int = 0, limit: int | None = None) -> Page:
        return self._database.read(
            lambda connection: timeline.list_entries(connection, session_id, after=after, limit=limit)
        )

    def list_unfinished(self, session_id: str, *, up_to: int) -> list[Entry]:
        return self._database.read(lambda connection: timeline.list_unfinished(connection, session_id, up_to=up_to))

    def find_entry(self, session_id: str, seq: int) -> Entry | None:
        return self._database.read(lambda connection: timeline.find_entry(connection, session_id, seq))

    def version(self) -> int:
        return self._database.version()

    # Repair

    def find_executions(self, session_id: str, tool_call_ids: Sequence[str]) -> list[ToolCall]:
        return self._database.read(
            lambda connection: tool_call_repairs.find_executions(connection, session_id, tool_call_ids)
        )

    def find_answers(self, session_id: str, tool_call_ids: Sequence[str]) -> list[Message]:
        return self._database.read(
            lambda connection: tool_call_repairs.find_answers(connection, session_id, tool_call_ids)
        )

    def note_repair(
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
            lambda connection: tool_call_repairs.note(
                connection, session_id, calls, run_id=run_id, reason=reason, detail=detail, now=self._rules.clock()
            )
        )

    def list_checkpoint_namespaces(self, session_id: str) -> list[str]:
        return self._database.read(lambda connection: checkpoints.list_namespaces(connection, session_id))
