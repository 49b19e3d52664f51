"""What calls took and cost, summed over sessions; and tool calls of all of them.

Model calls lie in the order of their sessions, so a sum reads the sessions it is about, by an index,
and then each one's calls in one stretch. A session that was not active since the beginning of the
time asked for has no call in it, and is passed over.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from session_middleware.errors import UnknownGrouping
from session_middleware.models import ToolCall, Usage, to_text
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.record import reads
from session_middleware.storage.sql.row_mapping import clean, values_of
from session_middleware.storage.types import ToolCallFilter, UsageBy, UsageFilter

_ACTIVE_WITHIN = timedelta(seconds=2)  # activity is written down once a second, so it may lag behind

_MODEL_SUMS = """
    COUNT(*), COUNT(m.error), SUM(m.input_tokens), SUM(m.output_tokens), SUM(m.cached_tokens),
    SUM(m.reasoning_tokens), SUM(m.cost), COUNT(*) FILTER (WHERE m.cost IS NULL AND m.error IS NULL),
    json_group_array(CAST(m.duration_ms AS TEXT)) FILTER (WHERE m.duration_ms IS NOT NULL)
    FROM sessions AS s CROSS JOIN model_calls AS m ON m.session_id = s.id
"""
_TOOL_SUMS = """
    SELECT t.name, COUNT(*), COUNT(*) FILTER (WHERE t.status = 'error'), 0, 0, 0, 0, NULL, 0,
    json_group_array(CAST(t.duration_ms AS TEXT)) FILTER (WHERE t.duration_ms IS NOT NULL)
    FROM tool_calls AS t INDEXED BY tool_calls_by_name CROSS JOIN sessions AS s ON s.id = t.session_id
"""
_SUMS: dict[UsageBy, tuple[str, str]] = {  # a statement up to its conditions, and what comes after them
    "user": (f"SELECT s.user_id, {_MODEL_SUMS}", "GROUP BY s.user_id"),
    "group": (f"SELECT s.group_id, {_MODEL_SUMS}", "GROUP BY s.group_id"),
    "session": (f"SELECT s.id, {_MODEL_SUMS}", "GROUP BY s.id"),
    "model": (f"SELECT m.model, {_MODEL_SUMS}", "GROUP BY m.model"),
    "day": (f"SELECT substr(m.started_at, 1, 10) AS day, {_MODEL_SUMS}", "GROUP BY day"),
    "tool": (_TOOL_SUMS, "GROUP BY t.name"),
}


def sum_usage(connection: Connection, by: UsageBy, where: UsageFilter) -> list[Usage]:
    if not isinstance(by, str) or by not in _SUMS:
        raise UnknownGrouping(by, known=list(_SUMS))
    beginning, end = _SUMS[by]
    conditions, values = _usage_conditions(where, "t" if by == "tool" else "m")
    rows = connection.execute(f"{beginning} WHERE {' AND '.join(conditions) or 'TRUE'} {end}", values)
    return [_usage(row) for row in rows]


def _usage(row: tuple[Any, ...]) -> Usage:
    key, calls, errors, given, answered, cached, reasoning, cost, unpriced, durations = row
    took = sorted(map(float, json.loads(durations)))
    percentiles = [took[-(-len(took) * percent // 100) - 1] if took else None for percent in (50, 95, 99)]
    return Usage(
        key=key,
        calls=calls,
        errors=errors,
        input_tokens=given or 0,
        output_tokens=answered or 0,
        cached_tokens=cached or 0,
        reasoning_tokens=reasoning or 0,
        cost=cost,
        unpriced=unpriced,
        p50_ms=percentiles[0],
        p95_ms=percentiles[1],
        p99_ms=percentiles[2],
    )


def _usage_conditions(where: UsageFilter, calls: str) -> tuple[list[str], list[Any]]:
    found: list[tuple[str, list[Any]]] = []
    for column, value in (("user_id", where.user_id), ("group_id", where.group_id), ("id", where.session_id)):
        if value is not None:
            found.append((f"s.{column} = ?", [value]))
    if where.since is not None:
        found.append(("s.last_active_at >= ?", [to_text(where.since - _ACTIVE_WITHIN)]))
        found.append((f"{calls}.started_at >= ?", [to_text(where.since)]))
    if where.until is not None:
        found.append((f"{calls}.started_at < ?", [to_text(where.until)]))
    return [sql for sql, _ in found], [value for _, values in found for value in values]


# Tool calls

_START = "COALESCE(started_at, '')"  # of a call whose start nobody saw: before all others


def list_tool_calls(
    connection: Connection, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
) -> list[ToolCall]:
    conditions, values = _tool_conditions(where)
    if before is not None:
        conditions.append(f"{_START} <= ? AND ({_START}, session_id, seq) < (?, ?, ?)")  # the first is for the index
        started = to_text(before.started_at) if before.started_at else ""
        values += [started, started, before.session_id, before.seq]
    cursor = connection.execute(
        f"SELECT * FROM tool_calls WHERE {' AND '.join(conditions) or 'TRUE'}"
        f" ORDER BY {_START} DESC, session_id DESC, seq DESC LIMIT ?",
        (*values, UNLIMITED if limit is None else limit),
    )
    return reads.with_interruptions(connection, values_of(ToolCall, cursor))


def _tool_conditions(where: ToolCallFilter) -> tuple[list[str], list[Any]]:
    found: list[tuple[str, Any]] = []
    if where.name is not None:
        found.append(("name = ?", clean(where.name)))
    if where.status is not None:
        found.append(("status = ?", where.status))
    if where.user_id is not None:
        found.append(("EXISTS (SELECT 1 FROM sessions WHERE id = session_id AND user_id = ?)", where.user_id))
    if where.since is not None:
        found.append((f"{_START} >= ?", to_text(where.since)))
    if where.until is not None:
        found.append((f"{_START} < ?", to_text(where.until)))
    return [sql for sql, _ in found], [value for _, value in found]
