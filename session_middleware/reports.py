"""The part of `Sessions` that asks how things went in all sessions together."""

from __future__ import annotations

from datetime import datetime

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.models import CALL_STATUSES, ToolCall, Usage
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.protocol import Storage
from session_middleware.storage.types import ToolCallFilter, UsageBy, UsageFilter
from session_middleware.storage.validation import check_after, check_choice, checked_limit, checked_moment


class Reports:
    _storage: Storage
    _offload: StorageExecutor
    recorder: SessionRecorder

    def usage(
        self,
        by: UsageBy = "user",
        *,
        user_id: str | None = None,
        group_id: str | None = None,
        session_id: object = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Usage]:
        """What model calls took and cost, summed by user, group, session, model or day; by tool: what tool calls took.

        Calls that began at or after `since` and before `until`. Dearest first, then most calls; days in order.
        """
        self.recorder.drain()
        chosen = None if session_id is None else lifecycle.session_id_of(session_id)
        found = self._storage.sum_usage(by, UsageFilter(user_id, group_id, chosen, *_within(since, until)))
        if by == "day":
            return Rows(sorted(found, key=lambda one: one.key or ""))
        return Rows(sorted(found, key=lambda one: (-(one.cost or 0.0), -one.calls, one.key or "")))

    ausage = async_twin(usage)

    def tool_calls(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        user_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 50,
        after: ToolCall | None = None,
    ) -> list[ToolCall]:
        """Executions of tools in all sessions, latest first. The next page is what follows `after`, the last one had.

        Those whose start nobody saw, as without the recorder, come last, and `since` leaves them out.
        """
        self.recorder.drain()
        if status is not None:
            check_choice("status", status, CALL_STATUSES)
        check_after(after, ToolCall, "the last tool call of the page before")
        where = ToolCallFilter(name, status, user_id, *_within(since, until))
        return Rows(self._storage.list_tool_calls(where, limit=checked_limit(limit), before=after))

    atool_calls = async_twin(tool_calls)


def _within(since: datetime | None, until: datetime | None) -> tuple[datetime | None, datetime | None]:
    return checked_moment("since", since), checked_moment("until", until)
