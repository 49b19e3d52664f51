"""A `--db` that is not a database of sessions: each command prints one sentence with an action, and changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from session_middleware import Sessions
from session_middleware.cli.main import cli

COMMANDS = (
    "list",
    "show a",
    "usage",
    "sweep",
    "explain a",
    "pin a",
    "unpin a",
    "delete a --yes",
    "restore a",
    "check",
    "check --repair",
    "forget ada --yes",
    "revoke ada",
)


def call(command: str, path: Path) -> Result:
    return CliRunner().invoke(cli, [*command.split(), "--db", str(path)], catch_exceptions=False)


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE things (x)")


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a folder": (Path.mkdir, "it is a folder", "name a file in it"),
    "a missing file": (lambda path: None, "there is no such database", "name one with --db FILE"),
    "an empty file": (Path.touch, "the database is empty", "name another one with --db FILE"),
    "a text": (lambda path: path.write_text("dear friend " * 99), "it is not an SQLite database", "name another file"),
    "zeros": (lambda path: path.write_bytes(bytes(9000)), "its first page is damaged", "restore a backup"),
    "another program's database": (make_foreign, "another program's tables (things)", "choose a separate file"),
}


@pytest.fixture(params=FAULTS, ids=lambda name: name.replace(" ", "-"))
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    make, problem, advice = FAULTS[request.param]
    make(path := tmp_path / "some.db")
    return path, problem, advice


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_the_problem_and_an_action_in_one_line(command: str, fault: tuple[Path, str, str]) -> None:
    path, problem, advice = fault
    result = call(command, path)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"Error: {path}: ")
    assert problem in line
    assert advice in line


def test_doctor_has_the_same_sentence_as_its_only_problem(fault: tuple[Path, str, str]) -> None:
    path, problem, advice = fault
    result = call("doctor --json", path)
    [sentence] = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1
    assert problem in sentence
    assert advice in sentence


def test_nothing_is_created_in_a_folder_that_is_missing(tmp_path: Path) -> None:
    for command in (*COMMANDS, "doctor"):
        assert call(command, tmp_path / "missing" / "some.db").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_asks_for_read_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sessions(path := tmp_path / "some.db").close()
    monkeypatch.setattr(os, "access", lambda name, mode, **_: mode != os.R_OK)
    for command in ("list", "check", "doctor"):
        assert "it may not be read by this process; grant read access" in " ".join(call(command, path).output.split())


def test_a_cut_file_is_damaged_and_leads_to_a_check(tmp_path: Path) -> None:
    Sessions(path := tmp_path / "some.db").close()
    os.truncate(path, 8000)
    assert "list the damage with session-middleware check --deep" in " ".join(call("doctor", path).output.split())
    assert "restore a backup" in call("list", path).stderr
    assert {problem["kind"] for problem in json.loads(call("check --json", path).stdout)} == {"file"}
