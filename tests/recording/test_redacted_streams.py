"""What is kept of an answer that was cut off holds no part of what redaction would have taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.recording.redaction import RedactionPolicy
from tests.support import agents
from tests.support.agents import human

DETECTORS = ("emails", "keys", "card_numbers")
SECRETS = {
    "4111 1111 1111 1111": "4111",
    "4111-1111-1111-1111": "4111",
    "john.smith@example.com": "smith",
    "sk-" + "a1B2" * 100: "sk-a",
    "Bearer abcdefghijklmnop.qrs": "abc",
}


class CutOff(agents.Scripted):
    """Streams one piece, and fails."""

    _piece: str = ""

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(self._piece))
        raise ConnectionError("gone")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("cut_off", [True, False])
def test_wherever_a_text_is_cut_what_is_kept_ends_before_a_secret_that_is_half_there(
    secret: str, *, cut_off: bool
) -> None:
    policy = RedactionPolicy(DETECTORS)
    text = f"You wrote 7 lines: it is {secret} ok" + " and so on" * 30
    for end in range(len(text)):
        begun = policy.partial_text(text[:end], cut_off=cut_off)
        assert text.startswith(begun)
        assert SECRETS[secret] not in policy._text(begun, [])
    assert policy.partial_text(text, cut_off=True).endswith("and so ")


def test_text_in_a_script_without_spaces_is_kept_up_to_where_it_was_cut_off() -> None:
    assert RedactionPolicy(DETECTORS).partial_text("请写信到某处", cut_off=True) == "请写信到某处"
    assert RedactionPolicy(DETECTORS).partial_text("请写信到john@exa", cut_off=True) == "请写信到"


def test_without_redaction_all_that_was_said_is_kept() -> None:
    assert RedactionPolicy().partial_text("my card is 4111", cut_off=False) == "my card is 4111"


def test_a_stream_that_breaks_in_a_card_number_leaves_none_of_its_digits(tmp_path: Path) -> None:
    model = CutOff()
    with Sessions(tmp_path / "sessions.db", redact=["card_numbers"]) as sessions:
        builder = StateGraph(MessagesState)
        builder.add_node("answer", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph = sessions.attach(builder.add_edge(START, "answer").compile())
        for number, piece in enumerate(("my card is 4111 1111 1111 ", "4111 1111")):
            model._piece = piece
            with pytest.raises(ConnectionError):
                list(graph.stream(human("go"), sessions.config(f"t{number}"), stream_mode="messages"))
        assert [(m.text, m.status) for m in sessions.get("t0").messages()][1:] == [("my card is", "incomplete")]
        assert len(sessions.get("t1").messages()) == 1  # nothing is left of it
