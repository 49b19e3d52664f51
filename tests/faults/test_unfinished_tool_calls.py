"""Tool calls that a process leaves running when it dies, where no run of its holds them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from session_middleware import Sessions
from session_middleware.cli.main import cli
from tests.support import agents, processes
from tests.support.agents import human

BY_HAND = """
import os, signal, sys
from session_middleware import Sessions

session = Sessions(sys.argv[1]).open("t")

@session.tool
def die(thing):
    os.kill(os.getpid(), signal.SIGKILL)

die("tea")
"""
IN_AN_AGENT = """
import os, signal, sys
from langchain.agents import create_agent
from langchain_core.tools import tool
from session_middleware import Sessions
from session_middleware.integrations.langchain_agents import SessionMiddleware
from tests.support.agents import Scripted, human

@tool
def look_up(thing: str) -> str:
    "What a thing is."
    os.kill(os.getpid(), signal.SIGKILL)

sessions = Sessions(sys.argv[1])
options = {"checkpointer": sessions.checkpointer} if sys.argv[2] == "checkpointed" else {}
agent = create_agent(Scripted(), [look_up], middleware=[SessionMiddleware(sessions)], **options)
agent.invoke(human("look up tea"), sessions.config("t"))
"""


@pytest.mark.parametrize(
    ("code", "kind"),
    [(BY_HAND, "by hand"), (IN_AN_AGENT, "alone"), (IN_AN_AGENT, "checkpointed")],
    ids=["by hand", "middleware", "middleware and checkpointer"],
)
def test_a_call_of_a_dead_process_is_interrupted_as_soon_as_somebody_looks(
    code: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.db"
    assert processes.run("-c", code, path, kind).returncode != 0
    with Sessions(path) as sessions:
        assert [call.status for call in sessions.get("t").tool_calls()] == ["interrupted"]
        assert [call.status for call in sessions.tool_calls()] == ["interrupted"]
        session = sessions.open("t")
        assert [call.status for call in session.tool_calls()] == ["interrupted"]


IN_A_RUN = """
import os, signal, sys
from langchain_core.tools import tool
from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import human

@tool
def look_up(thing: str) -> str:
    "What a thing is."
    os.kill(os.getpid(), signal.SIGKILL)

sessions = Sessions(sys.argv[1])
if sys.argv[2] == "by hand":
    with sessions.open("t") as session:
        session.tool(lambda thing: os.kill(os.getpid(), signal.SIGKILL), name="look_up")("tea")
elif sys.argv[2] == "recorder":
    agents.tool_graph(look_up).invoke(
        human("look up tea"), {**sessions.config("t"), "callbacks": [sessions.recorder]})
else:
    sessions.attach(agents.tool_graph(look_up)).invoke(human("look up tea"), sessions.config("t"))
"""


@pytest.mark.parametrize("part", ["by hand", "recorder", "attached"])
def test_a_run_of_a_dead_process_is_interrupted_for_all_who_look_and_a_sweep_writes_it_down(
    part: str, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.db"
    assert processes.run("-c", IN_A_RUN, path, part).returncode != 0
    stored = "SELECT outcome, (SELECT status FROM tool_calls) FROM runs"
    with Sessions(path) as sessions:
        session = sessions.get("t")
        assert not session.is_running
        assert [run.outcome for run in session.runs()] == ["interrupted"]
        assert [call.status for call in session.tool_calls()] == ["interrupted"]
        shown = CliRunner().invoke(cli, ["show", "t", "--db", str(path)])
        assert (shown.exit_code, "running" in shown.output) == (0, False)
        assert sqlite3.connect(path).execute(stored).fetchall() == [("running", "running")]
        sessions.sweep()
        assert sqlite3.connect(path).execute(stored).fetchall() == [("interrupted", "interrupted")]
        assert sessions.check() == []
        sessions.attach(agents.tool_graph()).invoke(human("hello"), sessions.config("t"))
        assert [run.outcome for run in session.runs()] == ["interrupted", "ok"]


def test_a_call_of_a_living_process_goes_on_when_its_session_is_resumed(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        session = sessions.open("t")

        @session.tool
        def look_up(thing: str) -> str:
            assert [call.status for call in sessions.open("t").tool_calls()] == ["running"]
            return f"{thing} is nice"

        look_up("tea")
        assert [call.status for call in session.tool_calls()] == ["ok"]
