"""What a notebook shows: sessions and rows of the record as small tables of HTML, with nothing but text in them.

A notebook asks a value for ``_repr_html_``. The tables carry no style sheet and no script, so that they are
shown wherever notebooks are; everything recorded is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any, TypeAlias, TypeVar

from session_middleware.display.text import (
    arguments_text,
    duration_text,
    json_text,
    plural,
    second_text,
    shortened,
    visible,
)
from session_middleware.findings import SweepResult
from session_middleware.models import Event, Message, ModelCall, Run, SessionInfo, ToolCall, Usage, Value

Record: TypeAlias = Message | ToolCall | ModelCall | Run | Event
V = TypeVar("V")

MOST_ROWS = 200  # shown of a longer list
_CELL_CHARACTERS = 200

_COLUMNS: dict[type, tuple[str, ...]] = {  # others name theirs in `columns`, or show all that says something
    SessionInfo: ("id", "user_id", "title", "status", "last_active_at", "message_count", "tool_call_count", "cost"),
    Message: ("seq", "role", "text", "model", "output_tokens", "created_at"),
    ToolCall: ("seq", "name", "arguments", "status", "result", "error", "attempt", "duration_ms", "started_at"),
    ModelCall: ("seq", "model", "input_tokens", "output_tokens", "cost", "duration_ms", "error", "started_at"),
    Run: ("seq", "user_id", "outcome", "error", "duration_ms", "input_tokens", "output_tokens", "cost", "started_at"),
    Event: ("seq", "kind", "reason", "detail", "created_at"),
    Usage: ("key", "calls", "errors", "input_tokens", "output_tokens", "cost", "p50_ms", "p95_ms", "p99_ms"),
    SweepResult: ("session_id", "user_id", "reason", "action", "last_active_at", "expired_at", "bytes"),
}


class Rows(list[V]):
    """A list of values that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return rows_html(self)


def rows_html(values: Sequence[Any]) -> str:
    """Values of one kind, a row each."""
    if not values:
        return "<p>nothing</p>"
    shown, left = values[:MOST_ROWS], len(values) - MOST_ROWS
    names = _columns(shown)
    cells = [[_field(one, name) for name in names] for one in shown]
    return _table([name.replace("_", " ") for name in names], cells, f"and {left:,} more" if left > 0 else "")


def _columns(values: Sequence[Any]) -> Sequence[str]:
    first = values[0]
    names = next(
        (names for kind, names in _COLUMNS.items() if isinstance(first, kind)), getattr(first, "columns", None)
    )
    if names is None:
        fields = type(first).model_fields if isinstance(first, Value) else ()
        return [name for name in fields if any(getattr(one, name) not in (None, (), {}) for one in values)]
    several = "session_id" not in names and len({getattr(one, "session_id", None) for one in values}) > 1
    return ("session_id", *names) if several else names


def session_html(session: SessionInfo) -> str:
    """What a session is, and what it holds."""
    counts = (
        (session.run_count, "run"),
        (session.message_count, "message"),
        (session.tool_call_count, "tool call"),
        (session.error_count, "error"),
    )
    holds = ", ".join(plural(count, noun) for count, noun in counts)
    cost = "" if session.cost is None else f", ${session.cost:.4g}"
    facts: dict[str, Any] = {
        "session": session.id,
        "title": session.title,
        "owner": session.user_id or "nobody: open to everyone",
        "group": session.group_id,
        "status": f"{session.status} ({session.reason})" if session.reason else session.status,
        "holds": f"{holds}, {session.input_tokens:,} + {session.output_tokens:,} tokens{cost}",
        "last active": session.last_active_at,
        "expired" if session.status == "expired" else "expires": session.expires_at,
        "pinned": None if session.pinned is None else session.pinned.why or "yes",
    }
    return _table([], [[name, _cell(value)] for name, value in facts.items() if value is not None])


def tree_html(nodes: Iterable[tuple[int, str, Record | None]]) -> str:
    """A timeline: each record, or part of a graph, at its depth."""
    shown = list(nodes)
    rows = []
    for depth, name, record in shown[:MOST_ROWS]:
        inset = "\N{EM SPACE}" * depth
        if record is None:
            rows.append(["", "", f"{inset}{name}"])
        else:
            kind = record.role if isinstance(record, Message) else name.replace("_", " ")
            rows.append([str(record.seq), _cell(_time_of(record)), f"{inset}{kind}: {line_of(record)}"])
    left = len(shown) - MOST_ROWS
    return _table(["seq", "time (UTC)", "what"], rows, f"and {left:,} more" if left > 0 else "")


def line_of(record: Record) -> str:
    """A record in a line of plain text, without its kind and its time."""
    if isinstance(record, Message):
        asks = (f"{call.get('name')}({arguments_text(call.get('args'))})" for call in record.tool_calls)
        notes = {"incomplete": record.status == "incomplete", "edited later": record.replaced_by is not None}
        notes[record.branch] = record.branch != "main"
        marks = "".join(f" ({note})" for note, holds in notes.items() if holds)
        said = shortened(record.text, _CELL_CHARACTERS)
        return " ".join(filter(None, [said, *(f"asks for {asked}" for asked in asks)])) + marks
    if isinstance(record, ToolCall):
        outcome = record.error if record.error is not None else record.result
        told = [f"{record.name}({arguments_text(record.arguments)}) → {record.status}", _took(record.duration_ms)]
        return ", ".join(filter(None, told)) + (f": {json_text(outcome)}" if outcome is not None else "")
    if isinstance(record, ModelCall):
        tokens = f"{record.input_tokens or 0:,} + {record.output_tokens or 0:,} tokens"
        cost = None if record.cost is None else f"${record.cost:.4g}"
        told = [record.model or "a model", tokens, cost, _took(record.duration_ms), record.error]
        return ", ".join(filter(None, told))
    if isinstance(record, Run):
        by = record.user_id and f"by {record.user_id}"
        return ", ".join(filter(None, [record.outcome, by, _took(record.duration_ms), record.error]))
    return " ".join(
        filter(None, [record.kind, record.reason and f"({record.reason})", json_text(record.detail or None)])
    )


def _took(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else duration_text(milliseconds)


def _time_of(record: Record) -> datetime | None:
    return record.started_at if isinstance(record, (Run, ToolCall, ModelCall)) else record.created_at


# HTML


def _field(value: Any, name: str) -> str:
    if name == "text" and isinstance(value, Message):
        return line_of(value)  # with the tools it asks for
    return _cell(getattr(value, name))


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return second_text(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Value):
        return shortened(repr(value), _CELL_CHARACTERS)
    return shortened(json_text(None if value in ((), {}) else value, full=True), _CELL_CHARACTERS)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    head = "".join(f"<th{_LEFT}>{_safe(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td{_LEFT}>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<p>{_safe(note)}</p>" if note else ""
    )


_LEFT = ' style="text-align: left"'


def _safe(text: str) -> str:
    return escape(visible(text))
