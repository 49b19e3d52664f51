"""Tools that do real work in a small workspace, and cannot do anything outside it.

A model chooses their arguments, so every one of them is treated as hostile: paths stay in the
folder, SQL is only ever read, and arithmetic is walked as a syntax tree, never evaluated.
"""

from __future__ import annotations

import ast
import csv
import json
import operator
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from langchain_core.tools import BaseTool, StructuredTool, ToolException

_MAX_ROWS = 50
_MAX_CHARACTERS = 20_000
_MAX_TITLE = 100
_MAX_STEPS = 1_000  # of 10,000 instructions of SQLite's machine each: about a second


def make_tools(folder: Path, database: Path) -> list[BaseTool]:
    """The agent's tools: `list_files`, `read_file`, `query_sales` and `calculate`."""
    return [
        _tool(lambda: list_files(folder), "list_files", "List the shop's text files: name, size and title."),
        _tool(_reader(folder), "read_file", "Read one of the shop's text files by its name."),
        _tool(
            _querier(database),
            "query_sales",
            "Run one read-only SQL query (SQLite) on the table sales(id, day 'YYYY-MM-DD', product, region,"
            " quantity, unit_price in euros). Returns rows as JSON.",
        ),
        _tool(calculate, "calculate", "Work out an arithmetic expression with + - * / // % ** and parentheses."),
    ]


def make_report_tool(folder: Path, database: Path, *, started: Path | None = None, seconds: float = 0.0) -> BaseTool:
    """`export_report`, which can be made slow: it writes the file `started`, then takes that long."""

    def export_report() -> str:
        if started is not None:
            started.write_text("started", encoding="utf-8")
        time.sleep(seconds)
        return write_report(folder, database)

    return _tool(export_report, "export_report", "Export revenue by region as the CSV file sales-report.csv.")


def _tool(function: Callable[..., str], name: str, description: str) -> BaseTool:
    return StructuredTool.from_function(function, name=name, description=description)


def _reader(folder: Path) -> Callable[[str], str]:
    def read(name: str) -> str:
        return read_file(folder, name)

    return read


def _querier(database: Path) -> Callable[[str], str]:
    def query(sql: str) -> str:
        return query_sales(database, sql)

    return query


# Files


def list_files(folder: Path) -> str:
    """One line a file: name, size and first line."""
    lines = []
    for path in _files(folder):
        with path.open(encoding="utf-8", errors="replace") as file:
            title = file.readline(_MAX_TITLE).strip()
        lines.append(f"{path.name}  {path.stat().st_size} bytes  {title}")
    return "\n".join(lines) or "there are no files"


def read_file(folder: Path, name: str) -> str:
    """The text of a file in `folder`, at most 20,000 characters of it."""
    known = {path.name: path for path in _files(folder)}
    if name not in known:
        raise ToolException(f"there is no file {name!r} here; there are: {', '.join(known)}")
    return known[name].read_text(encoding="utf-8", errors="replace")[:_MAX_CHARACTERS]


def _files(folder: Path) -> list[Path]:
    """The only files there are for a model: those right in the folder, no links that lead out of it.

    A name is looked up among these and never made into a path.
    """
    root = folder.resolve()
    return [path for path in sorted(root.iterdir()) if path.is_file() and path.resolve().parent == root]


# Sales

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def query_sales(database: Path, sql: str) -> str:
    """The rows of a query as a JSON list of objects, at most 50.

    The file is opened read-only, and an authorizer refuses everything but reading its tables
    (``ATTACH`` would reach other files). A query that runs for too long is stopped.
    """
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    with closing(connection):
        connection.row_factory = sqlite3.Row
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(_Steps(), 10_000)
        try:
            rows = connection.execute(sql).fetchmany(_MAX_ROWS)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ToolException(f"the query was refused: {error}") from error
    return json.dumps([dict(row) for row in rows], ensure_ascii=False, default=str)


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


class _Steps:
    """Counts the machine's steps and says stop (a true value) when there were enough."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        self.count += 1
        return self.count > _MAX_STEPS


def write_report(folder: Path, database: Path) -> str:
    """Write revenue by region to ``sales-report.csv``; what was written, in a sentence."""
    sql = "SELECT region, SUM(quantity) AS units, ROUND(SUM(quantity * unit_price), 2) AS revenue FROM sales"
    rows = json.loads(query_sales(database, f"{sql} GROUP BY region ORDER BY region"))
    path = folder / "sales-report.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["region", "units", "revenue"])
        writer.writeheader()
        writer.writerows(rows)
    return f"wrote {path.name}: {len(rows)} regions, {path.stat().st_size} bytes"


# Arithmetic

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_LARGEST = 1e15  # bounds what ** is given, so that a short text cannot ask for a gigabyte of digits
_LONGEST = 200


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, rounded to 10 decimals."""
    if len(expression) > _LONGEST:
        raise ToolException(f"an expression may have {_LONGEST} characters, not {len(expression)}")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        raise ToolException(f"cannot work out {expression!r}: {error}") from error
    return f"{round(value, 10):.15g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(float(node.value))  # type: ignore[arg-type]  # the line above has checked it
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError("only numbers, + - * / // % ** and parentheses are understood")


def _bounded(value: float) -> float:
    if isinstance(value, complex) or not abs(value) <= _LARGEST:
        raise ValueError(f"numbers may not be larger than {_LARGEST:g}")
    return value
