"""Tokens, cost and calls, as the charts of the page show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from session_middleware import Sessions
from session_middleware.models import ModelCall, Run, Stats, Usage
from session_middleware.session import Session
from session_middleware.storage.types import UsageBy
from session_middleware.user_sessions import UserSessions

GROUPINGS: Mapping[UsageBy, str] = {
    "model": "Model",
    "user": "User",
    "group": "Group",
    "session": "Session",
    "tool": "Tool",
    "day": "Day",
}
PERIODS = {"7": "7 days", "30": "30 days", "90": "90 days", "all": "All time"}
_MOST_ROWS = 100
_MOST_BARS = 60  # runs of a chart


class Bar(NamedTuple):
    """A bar of a chart, of two parts."""

    label: str
    lower: float
    upper: float
    cost: float | None

    @property
    def total(self) -> float:
        return self.lower + self.upper


class UsageReport(NamedTuple):
    """What the view of usage shows."""

    rows: Sequence[Usage]  # the first ones
    hidden: int
    days: list[Bar]

    @property
    def highest_cost(self) -> float:
        return max((row.cost or 0.0 for row in self.rows), default=0.0)

    @property
    def most_calls(self) -> int:
        return max((row.calls for row in self.rows), default=0)


class SessionUsage(NamedTuple):
    """The same of one session."""

    stats: Stats
    models: list[Usage]
    runs: list[Bar]
    run_count: int


async def usage_report(access: Sessions | UserSessions, by: UsageBy, period: str, now: datetime) -> UsageReport:
    since = None if period == "all" else now - timedelta(days=int(period))
    rows = await access.ausage(by, since=since)
    days = rows if by == "day" else await access.ausage("day", since=since)
    bars = [Bar(day.key or "unknown", day.input_tokens, day.output_tokens, day.cost) for day in days[-_MOST_BARS:]]
    shown = rows[::-1][:_MOST_ROWS] if by == "day" else rows[:_MOST_ROWS]
    return UsageReport(shown, max(len(rows) - _MOST_ROWS, 0), bars)


async def session_usage(session: Session) -> SessionUsage:
    stats = await session.astats()
    calls = await session.amodel_calls()
    runs = await session.aruns(after=0)
    return SessionUsage(stats, _by_model(calls), [_bar(run) for run in runs[-_MOST_BARS:]], len(runs))


def _bar(run: Run) -> Bar:
    label = f"{run.started_at:%Y-%m-%d %H:%M:%S}"
    return Bar(label, run.input_tokens or 0, run.output_tokens or 0, run.cost)


def _by_model(calls: Sequence[ModelCall]) -> list[Usage]:
    """The sums by model, also of a session that another user shares, of which `usage` has nothing."""
    found: dict[str | None, list[ModelCall]] = {}
    for call in calls:
        found.setdefault(call.model, []).append(call)
    sums = [_sum(model, of_model) for model, of_model in found.items()]
    return sorted(sums, key=lambda one: (-(one.cost or 0.0), -one.calls))


def _sum(model: str | None, calls: Sequence[ModelCall]) -> Usage:
    costs = [call.cost for call in calls if call.cost is not None]
    return Usage(
        key=model,
        calls=len(calls),
        errors=sum(call.error is not None for call in calls),
        input_tokens=sum(call.input_tokens or 0 for call in calls),
        output_tokens=sum(call.output_tokens or 0 for call in calls),
        cost=sum(costs) if costs else None,
        unpriced=len(calls) - len(costs),
    )
