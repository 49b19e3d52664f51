"""What is missing from a history, and where the answers go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from session_middleware.checkpoint.repair import INTERRUPTED, UNREADABLE, mend, unanswered


def asks(*ids: str, text: str = "", unreadable: Sequence[str] = ()) -> AIMessage:
    return AIMessage(
        text,
        tool_calls=[{"name": "look_up", "args": {}, "id": one} for one in ids],
        invalid_tool_calls=[{"name": "look_up", "args": "{", "id": one, "error": "cut"} for one in unreadable],
        id=f"asks-{'-'.join((*ids, *unreadable))}",
    )


def answers(id: str, text: str = "nice") -> ToolMessage:
    return ToolMessage(text, tool_call_id=id, id=f"answers-{id}")


HI = HumanMessage("hi", id="hi")


def mended(messages: Sequence[BaseMessage]) -> list[str]:
    """Each message's role, or the id of the call it answers."""
    numbers = itertools.count(1)
    found = mend(messages, unanswered(messages), new_id=lambda: f"new-{next(numbers)}")
    return [m.tool_call_id if isinstance(m, ToolMessage) else m.type for m in found.messages]


def test_a_whole_history_lacks_nothing() -> None:
    assert unanswered([HI, asks("a"), answers("a"), AIMessage("there")]) == []
    assert unanswered([]) == []


def test_the_answer_follows_the_request() -> None:
    assert mended([HI, asks("a")]) == ["human", "ai", "a"]
    assert mended([HI, asks("a"), HumanMessage("again"), AIMessage("?")]) == ["human", "ai", "a", "human", "ai"]


def test_of_parallel_calls_only_the_missing_are_answered_after_those_that_are_there() -> None:
    assert mended([HI, asks("a", "b", "c"), answers("b"), HI]) == ["human", "ai", "b", "a", "c", "human"]


def test_an_id_used_again_in_a_later_turn_needs_an_answer_of_its_own() -> None:
    assert mended([HI, asks("a"), answers("a"), HI, asks("a")]) == ["human", "ai", "a", "human", "ai", "a"]
    assert mended([HI, asks("a"), HI, asks("a"), answers("a")]) == ["human", "ai", "a", "human", "ai", "a"]


def test_answers_are_counted_as_calls_are() -> None:
    twice = [HI, asks("a", "a"), answers("a"), answers("a", "good"), AIMessage("there")]
    beside = [HI, asks("a"), asks("a"), answers("a"), answers("a", "good")]
    assert unanswered(twice) == unanswered(beside) == []
    assert mended([HI, asks("a", "a"), answers("a"), HI]) == ["human", "ai", "a", "a", "human"]
    assert mended([HI, asks("a", "a"), HI]) == ["human", "ai", "a", "a", "human"]
    assert mended([HI, asks("a"), asks("a"), answers("a")]) == ["human", "ai", "a", "ai", "a"]


def test_an_answer_before_its_call_is_moved_behind_it() -> None:
    early = [HI, answers("a"), asks("a"), HI]
    found = mend(early, unanswered(early), new_id=lambda: "x")
    assert [message.id for message in found.messages] == ["hi", "asks-a", "answers-a", "hi"]
    assert [(call.answer, call.answer_id) for call in found.calls] == [("known", "answers-a")]
    assert unanswered(found.messages) == []
    assert mended([asks("a"), answers("a"), HI, answers("a"), asks("a")]) == ["ai", "a", "human", "ai", "a"]
    assert mended([answers("a"), asks("a", "b"), answers("b")]) == ["ai", "b", "a"]
    assert mended([answers("a"), asks("a"), answers("a"), HI]) == ["a", "ai", "a", "human"]  # nothing is missing


def test_a_call_whose_arguments_could_not_be_read_is_answered_too() -> None:
    messages = [HI, asks("a", unreadable=["b"])]
    found = mend(messages, unanswered(messages), new_id=lambda: "x")
    assert [(call.tool_call_id, call.answer) for call in found.calls] == [("a", "interrupted"), ("b", "unreadable")]
    assert [message.text for message in found.messages[2:]] == [INTERRUPTED, UNREADABLE]


def test_the_answer_names_the_tool_and_has_an_id() -> None:
    messages = [HI, asks("a")]
    [answer] = mend(messages, unanswered(messages), new_id=lambda: "x").messages[2:]
    assert (answer.id, answer.name, answer.status) == ("x", "look_up", "error")


def test_an_answer_that_is_known_is_taken() -> None:
    messages = [HI, asks("a", "b")]
    first, second = unanswered(messages)
    found = mend(messages, [first, second._replace(answer=answers("b"))], new_id=lambda: "x")
    assert [message.text for message in found.messages[2:]] == [INTERRUPTED, "nice"]
    assert [call.answer for call in found.calls] == ["interrupted", "known"]


def test_what_is_no_conversation_is_left_alone() -> None:
    assert unanswered([asks("a")]) == []  # a list of what a model said, say
    assert unanswered([HI, asks("a"), "a text"]) == []
    assert unanswered([HI, AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": None}])]) == []


@st.composite
def histories(draw: st.DrawFn) -> list[BaseMessage]:
    """Turns whose calls are answered or not, in any order."""
    messages: list[BaseMessage] = [SystemMessage("be kind"), HI]
    for turn in range(draw(st.integers(0, 5))):
        ids = [f"{turn}-{place}" for place in range(draw(st.integers(0, 3)))]
        messages.append(asks(*ids))
        messages += [answers(one) for one in draw(st.permutations(ids)) if draw(st.booleans())]
        if draw(st.booleans()):
            messages.append(HumanMessage("go on"))
    return messages


@given(histories())
def test_afterwards_every_request_is_followed_by_its_answers_and_nothing_else_has_changed(
    messages: list[BaseMessage],
) -> None:
    found = mend(messages, unanswered(messages), new_id=lambda: "new")
    assert unanswered(found.messages) == []
    assert [message for message in found.messages if message.id != "new"] == messages
    for place, message in enumerate(found.messages):
        if isinstance(message, AIMessage):
            wanted = {call["id"] for call in message.tool_calls}
            following = itertools.takewhile(lambda m: m.type == "tool", found.messages[place + 1 :])
            assert {answer.tool_call_id for answer in following} == wanted
