"""The commands, SQL and Python of `docs/scale.md` are run, on a server of PostgreSQL, and their output compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from docs.generators import dictionary
from session_middleware.cli.main import cli
from session_middleware.storage.sql.tables import tables
from tests.support.postgres import Server

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_prints_what_the_page_says(
    postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    checked = 0
    with postgres_server.database() as url:
        monkeypatch.setenv("SESSION_STORAGE_URL", url)
        for (kind, text), (_, output) in itertools.pairwise(BLOCKS):
            if kind == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(text, "scale.md", "exec"), names)
                assert printed.getvalue() == output
                checked += 1
    assert checked == 2


def test_the_tables_are_created_and_granted_as_the_page_says(
    postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (grants,) = (text for kind, text in BLOCKS if kind == "sql")
    commands = [text.splitlines() for kind, text in BLOCKS if kind == "console"]
    assert len(commands) == 2
    postgres_server.execute("CREATE ROLE app LOGIN")
    for migrate, psql in commands:
        printed, _, file = migrate.removeprefix("$ session-middleware ").partition(" > ")
        done = CliRunner().invoke(cli, printed.split())
        assert done.exit_code == 0, done.output
        assert psql.endswith(f"-f {file}")
        with postgres_server.database(migrated=False) as url, psycopg.connect(url, autocommit=True) as owner:
            owner.execute(done.output.encode())
            owner.execute(grants.encode())
            with psycopg.connect(url.replace("postgres@", "app@")) as app:
                assert app.execute("SELECT count(*) FROM session_middleware.sessions").fetchone() == (0,)
    postgres_server.execute("DROP ROLE app")


def test_every_table_is_in_the_table_of_partitions_by_the_column_that_is_used(postgres_server: Server) -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    stated = {table: by for tables, by in rows for table in re.findall(r"`(\w+)`", tables)}
    assert stated.keys() == tables().keys()
    printed = CliRunner().invoke(cli, ["migrate", "--sql", "--partitions", "2"]).output
    used = dict(re.findall(r"CREATE TABLE (\w+) \([^;]*?PARTITION BY HASH \((\w+)\)", printed))
    assert used.keys() == stated.keys()
    for table, column in used.items():
        assert f"`{column}`" in stated[table] or stated[table] == "their id"


def test_every_column_has_its_meaning_on_the_server(postgres_server: Server) -> None:
    with postgres_server.database() as url, psycopg.connect(url) as connection:
        rows = connection.execute("""
            SELECT c.relname, a.attname, col_description(c.oid, a.attnum)
            FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'session_middleware'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
        """).fetchall()
    found = {(table, column): meaning for table, column, meaning in rows if table != "migrations"}
    assert found == {
        (table, name): column.meaning
        for table, columns in dictionary.schema().items()
        for name, column in columns.items()
    }
