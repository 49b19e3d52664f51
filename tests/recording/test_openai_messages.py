"""Dicts in OpenAI's chat format: what an assistant says beside its content is recorded as what it says."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage

from session_middleware import Sessions

pytestmark = pytest.mark.usefixtures("each_engine")


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **fields}


@pytest.mark.parametrize(
    "given",
    [
        assistant(refusal="I cannot"),
        assistant(content=[{"type": "refusal", "refusal": "I cannot"}]),
        assistant(audio={"id": "a1", "transcript": "I cannot"}),
        assistant(content=[{"type": "output_text", "text": "I cannot"}]),
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": "x"}, {"type": "input_text", "text": "I cannot"}],
        },
        AIMessage("", additional_kwargs={"refusal": "I cannot"}),
    ],
)
def test_what_has_no_text_of_its_own_has_its_refusal_transcript_or_parts_as_text(
    sessions: Sessions, given: Any
) -> None:
    session = sessions.open("t")
    assert session.add(given).text == "I cannot"
    assert session.history().messages[0].text in ("I cannot", "")
    session.add(assistant(refusal="fuchsia"))
    assert [found.text for found in sessions.search("fuchsia")] == ["fuchsia"]


def test_another_refusal_is_another_message(sessions: Sessions) -> None:
    session = sessions.open("t")
    history = [{"role": "user", "content": "do it"}, assistant(refusal="I cannot")]
    session.add_history(history)
    session.add_history(history)
    history[1] = assistant(refusal="I will not")
    session.add_history(history)
    assert [m.text for m in session.messages()] == ["do it", "I will not"]
    assert [m.text for m in session.messages(all_versions=True)] == ["do it", "I cannot", "I will not"]


def test_a_function_call_is_a_tool_call_and_its_answer_is_its_result(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add(assistant(function_call={"name": "add", "arguments": '{"x": 1}'}))
    session.add({"role": "function", "name": "add", "content": "2"})
    (call,) = session.tool_calls()
    assert (call.name, call.arguments, call.result, call.status) == ("add", {"x": 1}, "2", "ok")
    assert session.messages()[0].tool_calls[0]["name"] == "add"


@pytest.mark.parametrize("odd", ["add", 3, ["add"], {}, {"name": None, "arguments": 5}])
def test_a_function_call_in_no_known_format_breaks_nothing(sessions: Sessions, odd: Any) -> None:
    assert sessions.open("t").add(assistant(content="x", function_call=odd, refusal=odd, audio=odd)).text == "x"
    assert len(sessions.get("t").history().messages) == 1
