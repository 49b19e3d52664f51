"""Tool calls that a process leaves running when it dies, where no run of its holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_middleware import Sessions
from tests import processes

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
from tests.integrations.agents import Scripted, human

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
def test_a_call_of_a_dead_process_is_interrupted_when_its_session_is_resumed(
    code: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.db"
    assert processes.run("-c", code, path, kind).returncode != 0
    with Sessions(path) as sessions:
        assert [call.status for call in sessions.get("t").tool_calls()] == ["running"]
        session = sessions.open("t")
        assert [call.status for call in session.tool_calls()] == ["interrupted"]


def test_a_call_of_a_living_process_goes_on_when_its_session_is_resumed(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        session = sessions.open("t")

        @session.tool
        def look_up(thing: str) -> str:
            assert [call.status for call in sessions.open("t").tool_calls()] == ["running"]
            return f"{thing} is nice"

        look_up("tea")
        assert [call.status for call in session.tool_calls()] == ["ok"]
