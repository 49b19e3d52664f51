"""Sums that the sessions table stores, and the same sums by counting rows."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


def counters(path: Path) -> list[Any]:
    return query(
        path,
        "SELECT id, run_count, message_count, tool_call_count, model_call_count, unpriced_count, error_count,"
        " input_tokens, output_tokens FROM sessions ORDER BY id",
    )


def rows(path: Path) -> list[Any]:
    return query(
        path,
        """
        SELECT id, (SELECT COUNT(*) FROM runs WHERE session_id = s.id),
        (SELECT COUNT(DISTINCT message_id) FROM messages WHERE session_id = s.id),
        (SELECT COUNT(*) FROM tool_calls WHERE session_id = s.id),
        (SELECT COUNT(*) FROM model_calls WHERE session_id = s.id),
        (SELECT COUNT(*) FROM model_calls WHERE session_id = s.id AND cost IS NULL AND error IS NULL),
        (SELECT COUNT(*) FROM runs WHERE session_id = s.id AND outcome = 'error')
        + (SELECT COUNT(*) FROM tool_calls WHERE session_id = s.id AND status = 'error'),
        (SELECT COALESCE(SUM(input_tokens), 0) FROM model_calls WHERE session_id = s.id),
        (SELECT COALESCE(SUM(output_tokens), 0) FROM model_calls WHERE session_id = s.id)
        FROM sessions AS s ORDER BY id
        """,
    )


def query(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
