"""Whether a row is sound by itself: what was written, or at least something that can be read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from session_middleware.findings import Damage
from session_middleware.model import Branch, Event, Message, ModelCall, Run, SessionInfo, ToolCall, Value, from_text
from session_middleware.storage.sqlite.damage.reading import is_text
from session_middleware.storage.sqlite.rows import value_of
from session_middleware.storage.sqlite.state.blobs import Damaged
from session_middleware.storage.sqlite.state.sealed import Row, WriteRow

RECORDS: Mapping[str, type[Value]] = {
    "sessions": SessionInfo,
    "runs": Run,
    "messages": Message,
    "branches": Branch,
    "tool_calls": ToolCall,
    "model_calls": ModelCall,
    "events": Event,
}
STATE = ("checkpoints", "heads", "writes", "lists", "list_items", "blobs")
UPKEEP = ("leases", "tombstones", "revoked")  # not of a session that is there

WRONG_TYPE = (TypeError, AttributeError, ValueError)  # what a value that is no text, or no bytes, leads to


def problem_of(table: str, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> str | None:
    """What is wrong with a row of ``SELECT *``, if anything is."""
    try:
        if not is_text(row):
            return "its text is not valid UTF-8"
        if table in ("checkpoints", "writes"):
            return problem_of_row(Row(*row) if table == "checkpoints" else WriteRow(*row))
        if table in ("lists", "list_items"):
            _check_integers(table, row)
        elif table in RECORDS:
            value_of(RECORDS[table], cursor, row)
        elif table == "memories":
            _check_memory(dict(zip((c[0] for c in cursor.description), row, strict=True)))
    except Damaged:
        return "it is not what was written"
    except (*WRONG_TYPE, sqlite3.DatabaseError) as error:
        return f"it cannot be read ({first_line(error)})"
    return None


def problem_of_row(row: Row | WriteRow) -> str | None:
    try:
        row.check()
    except (Damaged, *WRONG_TYPE):
        return "it is not what was written"
    return None


def _check_integers(table: str, row: tuple[Any, ...]) -> None:
    texts = (1,) if table == "lists" else ()
    if any(not isinstance(value, str if place in texts else int | None) for place, value in enumerate(row)):
        raise Damaged


def _check_memory(row: dict[str, Any]) -> None:
    if not isinstance(json.loads(row["namespace"]), list) or not isinstance(json.loads(row["value"]), dict):
        raise ValueError("its namespace or value is no JSON of the right kind")
    from_text(row["created_at"])
    from_text(row["updated_at"])


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def damage(table: str, problem: str, *key: Any) -> Damage:
    """Damage in a table, at as much of a key as is known: whatever that has become, it can be printed."""
    texts = [None if part is None else str(part).encode("utf-8", "replace").decode() for part in (problem, *key)]
    names = ("problem", "session_id", "checkpoint_ns", "checkpoint_id")
    return Damage(table=table, **dict(zip(names, texts, strict=False)))
