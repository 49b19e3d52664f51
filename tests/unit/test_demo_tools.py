"""The demo's tools do what they say, and nothing else whatever a model asks for."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import ToolException

from session_middleware.demo.tools import (
    calculate,
    list_files,
    make_report_tool,
    make_tools,
    query_sales,
    read_file,
)
from session_middleware.demo.workspace import FILES, ORDERS, Workspace, make_workspace


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "work")


def test_workspace_is_the_same_every_time(tmp_path: Path) -> None:
    sql = "SELECT COUNT(*) AS n, SUM(quantity * unit_price * id) AS s FROM sales"
    first, second = (query_sales(make_workspace(tmp_path / name).database, sql) for name in "ab")
    assert first == second == query_sales(make_workspace(tmp_path / "a").database, sql)
    assert json.loads(first)[0]["n"] == ORDERS


def test_files_are_listed_and_read(place: Workspace) -> None:
    assert [line.split()[0] for line in list_files(place.files).splitlines()] == sorted(FILES)
    assert read_file(place.files, "shipping.txt") == FILES["shipping.txt"]


@pytest.mark.parametrize("name", ["../sales.db", "/etc/passwd", "a\0b", "x" * 5000, "", ".", "~", "..", "nothing.txt"])
def test_no_name_leads_out_of_the_folder(place: Workspace, name: str) -> None:
    with pytest.raises(ToolException, match="there is no file"):
        read_file(place.files, name)


def test_no_link_leads_out_of_the_folder(place: Workspace, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    try:
        (place.files / "link.txt").symlink_to(tmp_path / "secret.txt")
    except OSError:
        pytest.skip("no links here")
    assert "link" not in list_files(place.files)
    with pytest.raises(ToolException):
        read_file(place.files, "link.txt")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM sales",
        "DROP TABLE sales",
        "UPDATE sales SET quantity = 0",
        "CREATE TABLE other (x)",
        "CREATE TEMP TABLE other (x)",
        "ATTACH DATABASE 'other.db' AS other",
        "ATTACH DATABASE 'file:other.db?mode=rwc' AS other",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO 'other.db'",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM sales",
        "SELECT * FROM nothing",
        "nonsense",
    ],
)
def test_only_reading_queries_are_allowed(place: Workspace, sql: str) -> None:
    before = place.database.read_bytes()
    with pytest.raises(ToolException, match="the query was refused"):
        query_sales(place.database, sql)
    assert place.database.read_bytes() == before
    assert not Path("other.db").exists()


def test_query_that_never_ends_is_stopped(place: Workspace) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    with pytest.raises(ToolException, match="interrupted"):
        query_sales(place.database, endless)


def test_rows_are_json_and_limited(place: Workspace) -> None:
    rows = json.loads(query_sales(place.database, "SELECT id, product FROM sales ORDER BY id"))
    assert len(rows) == 50
    assert rows[0].keys() == {"id", "product"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1 + 2 * 3", "7"), ("-(2 ** 10) / 4", "-256"), ("7 // 2", "3"), ("7 % 4", "3"), ("0.1 + 0.2", "0.3")],
)
def test_arithmetic_is_worked_out(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "().__class__", "9 ** 9 ** 9", "1 / 0", "(-8) ** 0.5", "'a' * 9", "True + 1", "a", "", "1 +"]
    + ["x" * 500, "(" * 150, "1e999", "1j"],
)
def test_all_else_is_refused(expression: str) -> None:
    with pytest.raises(ToolException):
        calculate(expression)


def test_report_is_a_real_file_with_the_totals(place: Workspace, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    said = make_report_tool(place.files, place.database, started=marker).invoke({})
    assert said.startswith("wrote sales-report.csv: 4 regions")
    assert marker.exists()
    with closing(sqlite3.connect(place.database)) as connection:
        [units] = connection.execute("SELECT SUM(quantity) FROM sales").fetchone()
    rows = (place.files / "sales-report.csv").read_text().splitlines()[1:]
    assert sum(int(row.split(",")[1]) for row in rows) == units


def test_tools_carry_names_and_schemas_for_a_model(place: Workspace) -> None:
    tools: dict[str, Any] = {tool.name: tool.args for tool in make_tools(place.files, place.database)}
    assert {name: list(args) for name, args in tools.items()} == {
        "list_files": [],
        "read_file": ["name"],
        "query_sales": ["sql"],
        "calculate": ["expression"],
    }
