"""Two sessions are compared step by step, and in their totals."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any

import pytest

from session_middleware import MissingExtra, SessionNotFound, Sessions
from session_middleware.experiments.comparison import Comparison
from tests.support.agents import tool_graph


def changes(comparison: Comparison) -> list[tuple[str, str]]:
    return [(step.change, step.line) for step in comparison.steps if step.change != "same"]


def test_two_conversations_part_where_messages_arguments_and_results_differ(
    each_engine: str, sessions: Sessions
) -> None:
    graph = sessions.attach(tool_graph())
    for name, texts in {"a": ["hello", "look up tea", "bye"], "b": ["hello", "look up milk", "bye", "more"]}.items():
        for text in texts:
            graph.invoke({"messages": text}, sessions.config(name, user_id="ann"))
    found = asyncio.run(sessions.for_user("ann").get("a").acompare("b"))
    assert changes(found) == [
        ("changed", "user: look up tea"),
        ("changed", 'look_up(thing="tea") → ok: tea is nice'),
        ("changed", "assistant: it said tea is nice"),
        ("only_b", "user: more"),
        ("only_b", "assistant: you said more"),
    ]
    call = found.steps[4]
    assert call.differences == ('arguments.thing="tea" → "milk"', 'result="tea is nice" → "milk is nice"')
    assert call.a is not None
    assert call.a.duration_ms is not None
    assert found.first_difference is found.steps[2]
    totals = {total.name: (total.a, total.b, total.difference) for total in found.totals}
    assert totals["messages"] == (8, 10, 2)
    assert totals["input tokens"] == (12, 15, 3)
    assert totals["cost"] == (None, None, None)
    assert str(found).splitlines()[0] == "a = 'a', b = 'b': 10 steps, 5 the same, 3 changed, 2 only in b"
    assert {'~ look_up(thing="tea") → ok: tea is nice', "+ user: more"} <= set(str(found).splitlines())


def test_a_fork_is_the_same_up_to_where_it_leaves(sessions: Sessions) -> None:
    graph = sessions.attach(tool_graph())
    for text in ("look up tea", "fail milk"):
        graph.invoke({"messages": text}, sessions.config("t"))
    fork = sessions.get("t").fork()
    assert sessions.get("t").compare(fork).is_same
    graph.invoke({"messages": "hello"}, sessions.config(fork.id))
    found = sessions.get("t").compare(fork)
    assert changes(found) == [("only_b", "user: hello"), ("only_b", "assistant: you said hello")]
    assert "  … 8 same steps" in str(found).splitlines()


def test_calls_of_a_loop_costs_and_requests_without_an_answer_are_compared(sessions: Sessions) -> None:
    for name, price, cost in (("a", 4, 0.5), ("b", 5, 0.25)):
        with sessions.open(name) as session:
            session.record_tool("price", {"of": {"thing": "tea"}}, price, duration=timedelta(seconds=price))
            asks = {"id": "c", "function": {"name": "buy", "arguments": f'{{"for": {price}}}'}}
            session.add({"role": "assistant", "content": "", "id": "m", "tool_calls": [asks]})
            session.record_model_call("m", input_tokens=1, cost=cost, message_id="m", duration=timedelta(seconds=1))
    found = sessions.get("a").compare("b")
    assert [step.differences for step in found.steps] == [("result=4 → 5",), ('arguments=[{"for": 4}] → [{"for": 5}]',)]
    asked = found.steps[1].b
    assert asked is not None
    assert (asked.cost, asked.duration_ms, asked.line) == (0.25, 1000, "assistant: (asks for buy)")
    assert "cost                $0.50       $0.25  -$0.25" in str(found)


def test_the_views_escape_what_was_said(sessions: Sessions) -> None:
    for name, text in {"a": "<script>\x1b[31m", "b": "fine"}.items():
        sessions.open(name).add({"role": "user", "content": text})
    found = sessions.get("a").compare("b")
    html = found._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html + str(found)


def test_another_users_session_is_not_found(sessions: Sessions, open_sessions: Any) -> None:
    mine = sessions.open("mine", user_id="ann")
    theirs, other_file = sessions.open("theirs", user_id="bob"), open_sessions(":memory:")
    elsewhere = [other_file.open(name, user_id=name) for name in ("ann", "bob")]
    own = sessions.for_user("ann").get("mine")
    for other in ("theirs", theirs, "absent", elsewhere[1]):
        with pytest.raises(SessionNotFound):
            own.compare(other)
    assert own.compare(elsewhere[0]).is_same
    assert mine.compare(theirs).is_same


def test_a_row_of_the_data_frame_is_a_step(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.open("a").add({"role": "user", "content": "hi"})
    found = sessions.get("a").compare(sessions.open("b"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingExtra, match=r"pip install 'session-middleware\[pandas\]'"):
            found.to_pandas()
    pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert frame[["change", "a_kind", "a_text"]].to_dict("records") == [
        {"change": "only_a", "a_kind": "user", "a_text": "hi"}
    ]
    assert "b_cost" in sessions.get("b").compare("b").to_pandas().columns
