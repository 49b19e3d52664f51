"""Small HTML tables for notebooks, which ask a value for ``_repr_html_``.

The tables have no style sheet and no script, so every notebook shows them. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, TypeVar

from session_middleware.display.text import json_text, second_text, shortened, visible

V = TypeVar("V")

MAX_ROWS = 200  # of a table
_CELL_CHARACTERS = 200
_LEFT = ' style="text-align: left"'


class Rows(list[V]):
    """A list of values that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return rows_html(self)


def rows_html(values: Sequence[Any]) -> str:
    """Values of one class, one row each, by their `columns`, or else by their fields that are not empty."""
    if not values:
        return paragraph_html("nothing")
    shown = values[:MAX_ROWS]
    names = _columns(shown)
    cells = [[_cell(getattr(one, name)) for name in names] for one in shown]
    return table_html([name.replace("_", " ") for name in names], cells, len(values) - len(shown))


def _columns(values: Sequence[Any]) -> Sequence[str]:
    names: Sequence[str] = values[0].columns
    if not names:
        return [name for name in vars(values[0]) if any(getattr(one, name) not in (None, (), {}) for one in values)]
    several = "session_id" not in names and len({getattr(one, "session_id", None) for one in values}) > 1
    return ("session_id", *names) if several else names


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, one row each, without those that are ``None``."""
    return table_html([], [[name, _cell(value)] for name, value in facts.items() if value is not None])


def paragraph_html(text: str) -> str:
    return f"<p>{safe(text)}</p>"


def table_html(columns: Sequence[str], rows: Iterable[Sequence[str]], hidden: int = 0) -> str:
    """A table of texts. `hidden` is the number of rows left out."""
    head = "".join(f"<th{_LEFT}>{safe(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td{_LEFT}>{safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    note = f"<p>and {hidden:,} more</p>" if hidden > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return second_text(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if value in (None, (), {}):
        return ""
    is_json = isinstance(value, (str, int, list, tuple, dict))
    return shortened(json_text(value, full=True) if is_json else str(value), _CELL_CHARACTERS)


def safe(text: str) -> str:
    return escape(visible(text))
