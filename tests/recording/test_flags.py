"""What a row's flags tell: that it holds less than there was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import Sessions
from tests.support import agents

HALF = "cut \ud83d"  # half of an emoji


@pytest.mark.parametrize(
    "said",
    [
        {"role": "user", "content": HALF},
        {"role": "user", "content": [{"type": "text", "text": HALF}]},
        {"role": "user", "content": "hi", "name": HALF},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "f", "args": {HALF: 1}}]},
    ],
)
def test_text_that_is_no_text_is_replaced_and_marked(sessions: Sessions, said: dict[str, Any]) -> None:
    session = sessions.open("t")
    message = session.add(said)
    assert message.flags == ("invalid:unicode",)
    assert "cut \ufffd" in repr(message)
    assert session.add({"role": "user", "content": "whole 😀"}).flags == ()


def test_it_is_marked_in_a_graph_and_stays_one_message(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    for _ in range(2):
        graph.invoke({"messages": [HumanMessage(HALF, id="m")]}, sessions.config("t"))
    found = [(m.text, m.flags, m.version) for m in sessions.get("t").messages(all_versions=True) if m.message_id == "m"]
    assert found == [("cut \ufffd", ("invalid:unicode",), 1)]


def test_arguments_results_and_errors_are_marked_as_well(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.record_tool("f", {"a": HALF}, 1)
    session.record_tool("f", {}, {HALF: 1})
    session.record_tool("f", {}, None, error=HALF)
    session.record_tool("f", {}, "whole 😀")
    assert [call.flags for call in session.tool_calls()] == [*[("invalid:unicode",)] * 3, ()]


def test_the_end_of_a_call_keeps_the_marks_of_its_start(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", record=["tool_results"], redact=["emails"]) as sessions:
        session = sessions.open("t")
        session.record_tool("f", {"a": 1}, "from a@b.com")
        assert set(session.tool_calls()[0].flags) == {"withheld:arguments", "redacted:emails"}
