"""Small HTML tables for notebooks, which ask a value for ``_repr_html_``.

The tables have no style sheet and no script, so every notebook shows them. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, NamedTuple, TypeVar

from session_middleware.display.frames import data_frame
from session_middleware.display.text import cost_text, json_text, second_text, shortened, visible

V = TypeVar("V")

MAX_ROWS = 200  # of a table
_CELL_CHARACTERS = 200
_UNBROKEN_CHARACTERS = 30  # of a cell on one line
_NO_MATH = ' class="tex2jax_ignore mathjax_ignore"'  # or "$1 to $2" would be read as a formula
_LEFT = ' style="text-align: left"'
_WRAPPED = "text-align: left; min-width: 12em; overflow-wrap: anywhere"  # no long word makes a table wider


class Rows(list[V]):
    """A list of values of one class, which a notebook shows as a table."""

    def __init__(self, values: Iterable[V] = (), of: Any = None) -> None:
        """`of`: the model whose fields the values have. By default it is that of the first value."""
        super().__init__(values)
        self._of = of

    def _repr_html_(self) -> str:
        return rows_html(self)

    def to_pandas(self) -> Any:
        """A DataFrame with a row per value and a column per field. Raises `MissingExtra` if pandas is not installed."""
        model: Any = self._of or (type(self[0]) if self else None)
        rows: Iterable[Any] = self
        return data_frame(map(dict, rows), () if model is None else model.model_fields)


def rows_html(values: Sequence[Any]) -> str:
    """Values of one class, one row each, by their `columns`, or else by their fields, without empty columns."""
    if not values:
        return paragraph_html("nothing")
    shown = values[:MAX_ROWS]
    names = _columns(shown)
    cells = [[_field(one, name) for name in names] for one in shown]
    return table_html([name.replace("_", " ") for name in names], cells, len(values) - len(shown))


def _field(one: Any, name: str) -> str:
    value = getattr(one, name)
    if name == "cost":
        return cost_text(value)
    return _cell(value)


def _columns(values: Sequence[Any]) -> Sequence[str]:
    declared: Sequence[str] = values[0].columns
    names = [name for name in declared or vars(values[0]) if any(_is_shown(one, name) for one in values)]
    several = bool(declared) and len({getattr(one, "session_id", None) for one in values}) > 1
    return ["session_id", *names] if several and "session_id" not in names else names


def _is_shown(one: Any, name: str) -> bool:
    return name == "cost" or getattr(one, name) not in (None, (), {})


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, one row each, without those that are ``None``."""
    return table_html([], [[name, _cell(value)] for name, value in facts.items() if value is not None])


def fields_html(value: Any) -> str:
    """The fields of a value that are not empty, one row each."""
    names = [name for name in vars(value) if _is_shown(value, name)]
    return table_html([], [[name.replace("_", " "), _field(value, name)] for name in names])


def paragraph_html(text: str) -> str:
    return f"<p>{safe(text)}</p>"


def table_html(columns: Sequence[str], rows: Iterable[Sequence[str]], hidden: int = 0) -> str:
    """A table of texts. `hidden` is the number of rows left out."""
    body = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in rows)
    return _table(columns, body, hidden)


def _td(cell: str) -> str:
    style = _WRAPPED if len(cell) > _UNBROKEN_CHARACTERS else "text-align: left; white-space: nowrap"
    return f'<td style="{style}">{safe(cell)}</td>'


def _table(columns: Sequence[str], body: str, hidden: int) -> str:
    head = "".join(f"<th{_LEFT}>{safe(name)}</th>" for name in columns)
    note = f"<p>and {hidden:,} more</p>" if hidden > 0 else ""
    return f"<table{_NO_MATH}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


class TreeRow(NamedTuple):
    """A line of a tree. `hidden` is shown when the line is opened; `bar` is the begin and the length of a bar."""

    cells: Sequence[str]  # before the line
    depth: int
    line: str
    hidden: str = ""
    bar: tuple[float, float] | None = None  # fractions of the width
    title: str = ""  # of the bar


def tree_html(columns: Sequence[str], rows: Iterable[TreeRow], hidden: int = 0) -> str:
    """A table of lines that open, with bars. `columns` name the cells, the line and the bars."""
    body = "".join(
        f"<tr>{''.join(map(_td, row.cells))}"
        f'<td style="{_WRAPPED}; padding-left: {0.5 + 1.5 * row.depth:g}em">{_opening(row)}</td>'
        f"<td{_LEFT}>{_bar(row)}</td></tr>"
        for row in rows
    )
    return _table(columns, body, hidden)


def _opening(row: TreeRow) -> str:
    if not row.hidden:
        return safe(row.line)
    style = (
        "white-space: pre-wrap; overflow-wrap: anywhere; word-break: normal; background: transparent; color: inherit"
    )
    return f'<details><summary>{safe(row.line)}</summary><pre style="{style}">{safe(row.hidden)}</pre></details>'


def _bar(row: TreeRow) -> str:
    if row.bar is None:
        return ""
    begin, length = (100 * min(max(part, 0), 1) for part in row.bar)
    length = max(min(length, 100 - begin), 1)
    style = f"margin-left: {min(begin, 99):.1f}%; width: {length:.1f}%; height: 0.7em; background: currentColor"
    return f'<div style="width: 12em" title="{safe(row.title)}"><div style="{style}; opacity: 0.5"></div></div>'


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{second_text(value)} UTC"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value in (None, (), {}):
        return ""
    is_json = isinstance(value, (str, int, list, tuple, dict))
    return shortened(json_text(value, full=True) if is_json else str(value), _CELL_CHARACTERS)


def safe(text: str) -> str:
    return escape(visible(text))
