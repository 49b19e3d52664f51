"""The commands of `docs/command_line.md` are run, and their output compared; every command and example is there."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from session_middleware.cli.main import cli
from session_middleware.models import utc_now

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CONSOLES = [
    (text, errors if kind == "text" else "")
    for (name, text), (kind, errors) in itertools.pairwise([*BLOCKS, ("", "")])
    if name == "console"
]
PROMPT = "$ session-middleware "
ENDLESS = {"follow": ["--timeout", "1ms"]}  # a command that a person ends

pytest.importorskip("langgraph.checkpoint.sqlite")


def examples_of(command: click.Command) -> list[str]:
    return [line.strip() for line in (command.epilog or "").splitlines() if "session-middleware" in line]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of the page, an archived session, and a file of LangGraph's saver."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    folder, names = tmp_path_factory.mktemp("page"), dict[str, Any]()
    (program,) = (text for kind, text in BLOCKS if kind == "python")
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(program, "command_line.md", "exec"), names)
        with names["Sessions"]("sessions.db", idle_timeout="30m") as sessions:
            sessions.open("thread-7", user_id="alice", idle_timeout="1s", on_expire="archive")
            sessions.sweep(utc_now() + timedelta(minutes=1))
        with SqliteSaver.from_conn_string("checkpoints.sqlite") as saver:
            agent = names["graph"].copy(update={"checkpointer": saver})
            agent.invoke({"messages": "hello"}, {"configurable": {"thread_id": "old"}})
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Run a line of a shell in a copy of that folder."""
    folder = shutil.copytree(prepared, tmp_path / "folder")
    monkeypatch.chdir(folder)

    def run(line: str) -> Result:
        arguments = shlex.split(line.removeprefix(PROMPT).partition(" | ")[0].partition(" > ")[0], comments=True)
        return CliRunner().invoke(cli, arguments + ENDLESS.get(arguments[0], []), catch_exceptions=False)

    return run


def without_times(text: str) -> str:
    return re.sub(r" +$", "", re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-01-01 12:00", text), flags=re.MULTILINE)


@pytest.mark.parametrize(("text", "errors"), CONSOLES, ids=[text.splitlines()[0] for text, _ in CONSOLES])
def test_the_commands_of_the_page_are_run(run: Callable[[str], Result], text: str, errors: str) -> None:
    for entry in re.split(r"^(?=\$ )", text, flags=re.MULTILINE)[1:]:
        line, _, printed = entry.partition("\n")
        assert line.startswith(PROMPT)
        result = run(line)
        assert result.exit_code == int((re.findall("# exit code (.)", line) or "0")[0]), result.output
        if printed:
            assert without_times(result.stdout) == without_times(printed)
        if errors and line == text.splitlines()[-1 - printed.count("\n")]:
            assert result.stderr.splitlines()[0] == errors.strip()


def test_every_command_has_examples_which_are_on_the_page() -> None:
    lines = {line.removeprefix("$ ") for text, _ in CONSOLES for line in text.splitlines()}
    for name, command in cli.commands.items():
        examples = examples_of(command)
        assert examples, name
        for example in examples:
            words = example.split()
            assert words[:2] == ["session-middleware", name]
            assert example in lines or example in UNRUN, example


UNRUN = {  # which ask a person, need a key or an id of another database, or serve until they are ended
    "session-middleware serve --app my_agent:graph",
    "session-middleware serve --app support=my_app.agents:build --port 9000 --user alice",
    "session-middleware serve --app my_agent:graph --host 0.0.0.0 --auth my_app.auth:caller",
    "session-middleware mcp --user alice",
    "session-middleware mcp --http --port 9000",
    "session-middleware mcp --http --host 0.0.0.0 --auth my_app.auth:verifier",
    "session-middleware ui",
    "session-middleware ui --db sessions.db --user alice",
    "session-middleware ui --db postgresql://localhost/app --port 9000",
    "session-middleware fork thread-42 --at 3f9a1c2e",
    "session-middleware restore-backup copy.db",
    "session-middleware merge last thread-44 --state append_messages",
    "session-middleware delete last",
    "session-middleware close thread-42 thread-43 --as abandoned --reason 'no answer'",
    "session-middleware chat --user alice --model openai:gpt-5-mini",
    "session-middleware import-checkpoints checkpoints.sqlite --user-key user_id --allow myapp.state:Order",
}


def test_the_options_of_the_page_exist() -> None:
    known = {flag for command in cli.commands.values() for each in command.params for flag in each.opts}
    known |= {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE)) <= known
