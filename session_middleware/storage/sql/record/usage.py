"""Sums of tokens, cost and durations over sessions, and the tool calls of all sessions.

The calls of a session are stored together, so a sum selects the sessions by an index and then reads each one's calls.
Sessions without activity since the beginning of the time are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from session_middleware.errors import UnknownGrouping
from session_middleware.models import ToolCall, Usage, to_text
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import reads
from session_middleware.storage.sql.row_mapping import clean, values_of
from session_middleware.storage.sql.sessions import session_rows
from session_middleware.storage.types import ToolCallFilter, UsageBy, UsageFilter

_ACTIVE_WITHIN = timedelta(seconds=2)  # activity is written down once a second, so it may lag behind

_KEYS: dict[UsageBy, str] = {
    "user": "s.user_id",
    "group": "s.group_id",
    "session": "s.id",
    "model": "c.model",
    "day": "substr(c.started_at, 1, 10)",
    "tool": "c.name",
}
_DURATIONS = "json_group_array(CAST(c.duration_ms AS TEXT)) FILTER (WHERE c.duration_ms IS NOT NULL)"
_MODEL_SUMS = f"""
    COUNT(*), COUNT(c.error), SUM(c.input_tokens), SUM(c.output_tokens), SUM(c.cached_tokens),
    SUM(c.reasoning_tokens), SUM(c.cost), COUNT(*) FILTER (WHERE c.cost IS NULL AND c.error IS NULL), {_DURATIONS}
    FROM sessions AS s CROSS JOIN model_calls AS c ON c.session_id = s.id
"""
_TOOL_SUMS = f"""
    COUNT(*), COUNT(*) FILTER (WHERE c.status = 'error'), 0, 0, 0, 0, NULL, 0, {_DURATIONS}
    FROM tool_calls AS c INDEXED BY tool_calls_by_name CROSS JOIN sessions AS s ON s.id = c.session_id
"""


def sum_usage(connection: Connection, rules: EngineContext, by: UsageBy, where: UsageFilter) -> list[Usage]:
    if not isinstance(by, str) or by not in _KEYS:
        raise UnknownGrouping(by, known=list(_KEYS))
    given = {
        "s.user_id = :call_user": where.user_id,
        "s.group_id = :call_group": where.group_id,
        "s.id = :call_session": where.session_id,
        "s.last_active_at >= :call_active": where.since and to_text(where.since - _ACTIVE_WITHIN),
        "c.started_at >= :call_since": where.since and to_text(where.since),
        "c.started_at < :call_until": where.until and to_text(where.until),
    }
    condition, values = _where(given)
    if where.sessions is not None:
        ids, more = session_rows.ids_of(connection, rules, where.sessions)
        condition, values = f"{condition} AND s.id IN ({ids})", values | more
    return [_usage(*row) for row in connection.execute(_statement(by, condition), values)]


def _statement(by: UsageBy, condition: str) -> str:
    return f"SELECT {_KEYS[by]}, {_TOOL_SUMS if by == 'tool' else _MODEL_SUMS} WHERE {condition} GROUP BY 1"


def _usage(key: str | None, calls: int, errors: int, *sums: Any) -> Usage:
    *tokens, cost, unpriced, durations = sums
    took = sorted(map(float, json.loads(durations)))
    p50, p95, p99 = (took[-(-len(took) * percent // 100) - 1] if took else None for percent in (50, 95, 99))
    names = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    counts = {name: count or 0 for name, count in zip(names, tokens, strict=True)}
    return Usage(
        key=key, calls=calls, errors=errors, cost=cost, unpriced=unpriced, p50_ms=p50, p95_ms=p95, p99_ms=p99, **counts
    )


def _where(conditions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the conjunction of the conditions whose value is given, and these values by name."""
    given = {sql: value for sql, value in conditions.items() if value is not None}
    return " AND ".join(given) or "TRUE", {sql.rpartition(":")[2].rstrip(")"): value for sql, value in given.items()}


# Tool calls

_START = "COALESCE(started_at, '')"  # calls without a known start come before all others


def list_tool_calls(
    connection: Connection, where: ToolCallFilter, *, limit: int | None, before: ToolCall | None = None
) -> list[ToolCall]:
    condition, values = _where(
        {
            "name = :name": where.name and clean(where.name),
            "status = :status": where.status,
            f"{_START} >= :since": where.since and to_text(where.since),
            f"{_START} < :until": where.until and to_text(where.until),
            "EXISTS (SELECT 1 FROM sessions WHERE id = session_id AND user_id = :user)": where.user_id,
        }
    )
    if before is not None:
        condition += (
            f" AND {_START} <= :at AND ({_START}, session_id, seq) < (:at, :of, :seq)"  # the first is for the index
        )
        values |= {"at": to_text(before.started_at) if before.started_at else "", "of": before.session_id}
        values["seq"] = before.seq
    cursor = connection.execute(
        f"SELECT * FROM tool_calls WHERE {condition} ORDER BY {_START} DESC, session_id DESC, seq DESC LIMIT :limit",
        values | {"limit": UNLIMITED if limit is None else limit},
    )
    return reads.with_interruptions(connection, values_of(ToolCall, cursor))
