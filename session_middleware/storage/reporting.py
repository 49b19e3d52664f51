"""`Reporting`: the part of the storage contract that asks, of one session or of all, how things went.

It is a part of `Storage` in a file of its own, and holds to the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias

from session_middleware.models import Message, RepairedCall, Run, ToolCall, Usage
from session_middleware.storage.timeline import Entry

UsageBy: TypeAlias = Literal["user", "group", "session", "model", "tool", "day"]


class UsageFilter(NamedTuple):
    user_id: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    since: datetime | None = None  # begun at or after
    until: datetime | None = None  # begun before


class ToolCallFilter(NamedTuple):
    name: str | None = None
    status: str | None = None
    user_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Page(NamedTuple):
    """Records by `seq`, and the runs they belong to."""

    entries: list[Entry]
    runs: list[Run]


class Reporting(Protocol):
    def usage(self, by: UsageBy, where: UsageFilter) -> list[Usage]:
        """Sums of calls, in no particular order; of tool calls by ``"tool"``, else of model calls.

        Reads the sessions it is about and their calls, and no others. Raises `UnknownGrouping`.
        """

    def list_all_tool_calls(
        self, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
    ) -> list[ToolCall]:
        """Of all sessions, latest start first; those whose start nobody saw come last."""

    def list_entries(self, session_id: str, *, after: int = 0, limit: int | None = None) -> Page:
        """All of the record by `seq`, of each message its latest version. Costs what it returns."""

    def list_unfinished(self, session_id: str, *, up_to: int) -> list[Entry]:
        """Runs and tool calls in progress and messages being streamed, by `seq`."""

    def find_entry(self, session_id: str, seq: int) -> Entry | None: ...

    def version(self) -> int:
        """Differs from what it was if anything was committed meanwhile, by whichever process. Costs microseconds."""

    # Repair

    def find_executions(self, session_id: str, tool_call_ids: Sequence[str]) -> list[ToolCall]:
        """All executions of these calls, by `seq`."""

    def find_answers(self, session_id: str, tool_call_ids: Sequence[str]) -> list[Message]:
        """The messages that answer these calls, by `seq`. Reads the session's messages."""

    def note_repair(
        self,
        session_id: str,
        calls: Sequence[RepairedCall],
        *,
        run_id: str | None,
        reason: str,
        checkpoint_id: str | None,
    ) -> None:
        """An event ``repaired``; calls that were cut off, or not executed at all, say ``interrupted``."""

    def list_checkpoint_namespaces(self, session_id: str) -> list[str]: ...
