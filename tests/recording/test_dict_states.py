"""States whose messages are dicts in OpenAI's format, in a list that the app adds to itself."""

from __future__ import annotations

import operator
import threading
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.checkpoint.langchain_messages import is_message
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.recording.messages import lists_in, without_ids
from tests.support import agents

Talk = list[dict[str, Any]]


class State(TypedDict):
    talk: Annotated[Talk, operator.add]


def graph(*, asks: bool) -> Any:
    """A node that answers ``ok``, or asks a model, which says something."""
    model = agents.Scripted(has_tools=False)

    def answer(state: State) -> dict[str, Any]:
        said = model.invoke(state["talk"]).text if asks else "ok"
        return {"talk": [{"role": "assistant", "content": said}]}

    return StateGraph(State).add_node("answer", answer).add_edge(START, "answer").compile()


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("parts", ["all", "checkpointer", "recorder"])
def test_dicts_that_are_messages_are_recorded_once_each(sessions: Sessions, parts: str, asks: bool) -> None:
    app, config = graph(asks=asks), sessions.config("t")
    if parts == "recorder":
        app.checkpointer = InMemorySaver()
        config = config | {"callbacks": [sessions.recorder]}
    else:
        app = sessions.attach(app, recorder=parts == "all")
    for text in ("yes", "no", "yes"):
        state = app.invoke({"talk": [{"role": "user", "content": text}]}, config)
    recorded = [(message.role, message.text) for message in sessions.get("t").messages()]
    assert recorded == [(message["role"], message["content"]) for message in state["talk"]]


class Late(StrictSerializer):
    """Serialises nothing of a run before its models have answered."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = threading.Event()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        assert self.answered.wait(60)
        return super().dumps_typed(obj)


def test_what_is_asked_stays_before_its_answer_when_its_checkpoint_comes_late(tmp_path: Path) -> None:
    serde, model = Late(), agents.Scripted(has_tools=False)

    def answer(state: State) -> dict[str, Any]:
        return {"talk": [{"role": "assistant", "content": model.invoke(state["talk"]).text}]}

    def afterwards(state: State) -> dict[str, Any]:
        serde.answered.set()
        return {"talk": []}

    builder = StateGraph(State).add_node("answer", answer).add_node("afterwards", afterwards)
    builder.add_edge(START, "answer").add_edge("answer", "afterwards")
    with Sessions(tmp_path / "late.db", serde=serde) as sessions:
        app, config = sessions.attach(builder.compile()), sessions.config("t")
        for text in ("yes", "no", "yes"):
            serde.answered.clear()
            app.invoke({"talk": [{"role": "user", "content": text}]}, config)
        state = app.get_state(config).values
        recorded = [(message.role, message.text) for message in sessions.get("t").messages()]
        assert recorded == [(message["role"], message["content"]) for message in state["talk"]]
        assert sessions.recorder.faults == 0


def test_of_several_lists_of_dicts_the_recorder_alone_takes_none_for_the_conversation() -> None:
    said = {"role": "user", "content": "hi"}
    assert len(without_ids(lists_in({"talk": [said]}))) == 1
    assert without_ids(lists_in({"talk": [said], "examples": [said, said]})) == []
    assert without_ids(lists_in({"latest": said})) == []


@pytest.mark.parametrize(
    ("element", "is_one"),
    [
        ({"role": "user", "content": "hi"}, True),
        ({"role": "assistant", "content": None, "tool_calls": []}, True),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, True),
        ({"role": "admin", "content": "hi"}, False),
        ({"role": ["user"], "content": "hi"}, False),
        ({"role": "user"}, False),
        ({"role": "user", "content": {"a": 1}}, False),
        ({"role": "user", "content": "hi", "email": "a@example.com"}, False),
        ({1: 2}, False),
    ],
)
def test_a_dict_is_a_message_only_if_all_of_it_is_as_the_format_has_it(element: Any, is_one: bool) -> None:
    assert is_message(element) is is_one
