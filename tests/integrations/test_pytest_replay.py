"""The pytest fixture `session_replay` fails a test whose run leaves the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_middleware import Sessions
from tests.support.agents import tool_graph

pytest_plugins = ["pytester"]

PLUGIN = "session_middleware.integrations.pytest_replay"
LOOPS = ("-o", "asyncio_default_fixture_loop_scope=function")
TEST = """
from langchain_core.tools import tool

@tool
def look_up(thing: str) -> str:
    "What a thing is."
    raise AssertionError("executed")

def test_it_follows(session_replay):
    replay = session_replay({path!r})
    replay.tools([look_up])[0].invoke({{"thing": "tea"}})

async def test_it_leaves(session_replay):
    replay = session_replay({path!r}, "t", on_missing="refuse")

def test_it_raises(session_replay):
    session_replay({path!r})
    assert 1 == 2

def test_it_leaves_and_may(session_replay):
    session_replay({export!r}, check=False)
"""


def test_the_fixture_replays_a_file_unchanged_and_fails_a_test_that_leaves_the_record(
    pytester: pytest.Pytester, sessions: Sessions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # or the installed plugin is loaded twice
    sessions.attach(tool_graph()).invoke({"messages": "look up tea"}, sessions.config("t"))
    sessions.settle()
    export = path.with_name("t.jsonl")
    sessions.get("t").export(export)
    before = {each.name: each.read_bytes() for each in path.parent.glob(f"{path.name}*")}
    pytester.makepyfile(TEST.format(path=str(path), export=str(export)))
    result = pytester.runpytest("-p", PLUGIN, "-p", "asyncio", "-o", "asyncio_mode=auto", *LOOPS)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "replay of session 't': 0 of 1 recorded tool call answered; the run departed from it in 1 place",
            "*not made: look_up(*",
        ]
    )
    result.stdout.fnmatch_lines(["*session replay*", "replay of session 't'*"])
    assert {each.name: each.read_bytes() for each in path.parent.glob(f"{path.name}*")} == before
