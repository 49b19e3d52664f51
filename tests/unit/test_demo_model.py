"""The scripted model decides by the history alone, and is a chat model in every way that counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage

from session_middleware.demo.agent import build_agent
from session_middleware.demo.model import NAME, ScriptedModel
from session_middleware.demo.script import INTRODUCTION, arithmetic_in
from session_middleware.demo.tools import make_report_tool, make_tools
from session_middleware.demo.workspace import make_workspace


@pytest.fixture
def agent(tmp_path: Path) -> Any:
    place = make_workspace(tmp_path)
    tools = [*make_tools(place.files, place.database), make_report_tool(place.files, place.database)]
    return build_agent(tools, ScriptedModel())


def ask(agent: Any, *questions: str) -> list[BaseMessage]:
    """The messages after the last of these questions was asked in one conversation."""
    history: list[Any] = []
    for question in questions:
        before = len(history)
        history = agent.invoke({"messages": [*history, ("user", question)]})["messages"]
    return history[before + 1 :]


def tools_of(messages: list[BaseMessage]) -> list[str]:
    return [call["name"] for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]


@pytest.mark.parametrize(
    ("question", "tools", "answer"),
    [
        ("What files are there?", ["list_files"], "There are 4 files"),
        ("What is our refund policy?", ["list_files", "read_file"], "refund-policy.txt says: .*full refund"),
        ("Are you open on Sunday?", ["list_files", "read_file"], "On Sunday .* closed"),
        ("Please read shipping.txt", ["read_file"], "shipping.txt says"),
        ("How many headlamps were sold in the North?", ["query_sales"], r"units sold \(Headlamp, North\): \d+"),
        ("Which product has the highest revenue?", ["query_sales"], "highest revenue by product: Rain Jacket, .*euros"),
        ("Show me the revenue by month", ["query_sales"], "January.*December"),
        ("How many orders were there in March?", ["query_sales"], r"number of orders \(March\): \d+"),
        ("What is 15% of 1,250?", ["calculate"], "= 187.5"),
        ("17 * (2 + 3)", ["calculate"], r"17 \* \(2 \+ 3\) = 85"),
        ("What is 1 / 0?", ["calculate"], "did not work: .*division by zero"),
        ("Please export the sales report.", ["export_report"], "wrote sales-report.csv: 4 regions"),
        ("Tell me a joke", [], "scripted model"),
    ],
)
def test_question_is_answered_with_the_tools_it_needs(agent: Any, question: str, tools: list[str], answer: str) -> None:
    messages = ask(agent, question)
    assert tools_of(messages) == tools
    assert re.search(answer, messages[-1].text)


def test_it_reads_on_when_a_file_does_not_answer(agent: Any) -> None:
    messages = ask(agent, "What does the sleeping mat weigh?")
    assert tools_of(messages).count("read_file") > 1
    assert "weighs 480 grams" in messages[-1].text


def test_it_knows_a_name_from_the_history_and_only_from_there(agent: Any) -> None:
    assert "Ada" in ask(agent, "my name is Ada", "1 + 1", "what is my name?")[-1].text
    assert "not told me" in ask(agent, "what is my name?")[-1].text


def test_it_recounts_what_was_asked(agent: Any) -> None:
    assert "1. 1 + 1" in ask(agent, "1 + 1", "what did I ask you?")[-1].text


def test_without_tools_it_says_what_it_would_call() -> None:
    assert "given no such tool" in ScriptedModel().invoke("1 + 1").text
    assert ScriptedModel().invoke("hello").text == INTRODUCTION


def test_same_history_gives_the_same_answer_and_call_ids() -> None:
    model = ScriptedModel().bind_tools(make_tools(Path(), Path()))
    [first], [second] = (model.invoke([HumanMessage("1 + 1", id="a")]).tool_calls for _ in range(2))
    assert first == second
    [third] = model.invoke([HumanMessage("1 + 1", id="b")]).tool_calls
    assert third["id"] != first["id"]


def test_it_names_itself_and_counts_tokens() -> None:
    message = ScriptedModel().invoke("hello")
    assert message.response_metadata["model_name"] == NAME
    usage = message.usage_metadata
    assert usage is not None
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


async def test_streamed_invoked_and_async_answers_are_the_same() -> None:
    model = ScriptedModel()
    whole = model.invoke("hello")
    chunks = list(model.stream("hello"))
    assert len(chunks) > 10
    assert joined(chunks) == joined([chunk async for chunk in model.astream("hello")]) == facts(whole)
    assert facts(await model.ainvoke("hello")) == facts(whole)


def joined(chunks: list[AIMessageChunk]) -> tuple[Any, ...]:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return facts(total)


def facts(message: AIMessage) -> tuple[Any, ...]:
    return message.content, message.tool_calls, message.usage_metadata, message.response_metadata["model_name"]


def test_tool_calls_are_streamed_whole() -> None:
    model = ScriptedModel().bind_tools(make_tools(Path(), Path()))
    assert joined(list(model.stream("1 + 1"))) == facts(model.invoke("1 + 1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("What is 2 x 3?", "2 * 3"),
        ("2^10", "2**10"),
        ("what is 10% of 50", "10 / 100 * 50"),
        ("it was on 2025-03-01", None),
        ("room 12", None),
        ("9 - 17", "9 - 17"),
    ],
)
def test_arithmetic_is_told_from_other_numbers(question: str, expression: str | None) -> None:
    assert arithmetic_in(question) == expression


def test_unknown_tools_answer_is_passed_on() -> None:
    turn = [
        HumanMessage("hello"),
        AIMessage("", tool_calls=[{"name": "other", "args": {}, "id": "c1"}]),
        ToolMessage("42", tool_call_id="c1"),
    ]
    assert ScriptedModel().invoke(turn).text == "The answer is: 42"
