"""Memory as LangChain tools: langchain-tests' own suites, and an agent that cannot name anybody else."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from session_middleware import Sessions, memory_tools
from session_middleware.errors import InvalidSessionId, SessionAccessDenied
from session_middleware.models import Scope

pytestmark = pytest.mark.sessions(":memory:")

PARAMS = {"remember": {"text": "Alice likes cherries"}, "recall": {"query": "cherries"}, "forget": {"key": "k"}}


class _Standard:
    """What both of langchain-tests' suites are given."""

    name: str

    @pytest.fixture
    def tool(self, sessions: Sessions) -> BaseTool:
        session = sessions.open("t", user_id="alice")
        session.memory.remember("cherries are in season", "k", scope="user")
        return tool_of(sessions, self.name, session=session)

    @property
    def tool_constructor(self) -> BaseTool:
        return tool_of(Sessions(":memory:"), self.name)

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return PARAMS[self.name]


class TestRememberStandard(_Standard, ToolsUnitTests):
    name = "remember"


class TestRecallStandard(_Standard, ToolsUnitTests):
    name = "recall"


class TestForgetStandard(_Standard, ToolsUnitTests):
    name = "forget"


class TestRememberInvoked(_Standard, ToolsIntegrationTests):
    name = "remember"


class TestRecallInvoked(_Standard, ToolsIntegrationTests):
    name = "recall"


class TestForgetInvoked(_Standard, ToolsIntegrationTests):
    name = "forget"


def tool_of(sessions: Sessions, name: str, **options: Any) -> BaseTool:
    return next(tool for tool in memory_tools(sessions, **options) if tool.name == name)


def agent_of(sessions: Sessions, *calls: dict[str, Any], **options: Any) -> Any:
    """An agent whose model makes these tool calls, whatever it is asked."""
    asked = [{"name": c["name"], "args": c["args"], "id": f"c{n}", "type": "tool_call"} for n, c in enumerate(calls)]
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [AIMessage("", tool_calls=asked)]})
    builder.add_node("tools", ToolNode(memory_tools(sessions, **options)))
    builder.add_edge(START, "model")
    builder.add_edge("model", "tools")
    return sessions.attach(builder.compile())


def answers(state: dict[str, Any]) -> list[str]:
    return [message.content for message in state["messages"] if message.type == "tool"]


def test_what_an_agent_remembers_is_its_users(sessions: Sessions) -> None:
    agent = agent_of(sessions, {"name": "remember", "args": {"text": "Alice likes cherries"}})
    agent.invoke({"messages": "hi"}, sessions.config("1", user_id="alice"))
    asking = agent_of(sessions, {"name": "recall", "args": {"query": "cherries"}})
    [found] = answers(asking.invoke({"messages": "hi"}, sessions.config("2", user_id="alice")))
    assert "Alice likes cherries" in found
    [found] = answers(asking.invoke({"messages": "hi"}, sessions.config("3", user_id="bob")))
    assert found == "Nothing is remembered about that."


def test_without_a_user_it_is_the_sessions(sessions: Sessions) -> None:
    agent = agent_of(sessions, {"name": "remember", "args": {"text": "cherries it is"}})
    agent.invoke({"messages": "hi"}, sessions.config("1"))
    assert [memory.text for memory in sessions.get("1").memory.list()] == ["cherries it is"]


@pytest.mark.parametrize("scope", ["session", "user", "group", "global"])
def test_the_developer_chooses_the_scope(sessions: Sessions, scope: Scope) -> None:
    agent = agent_of(sessions, {"name": "remember", "args": {"text": "cherries"}}, scope=scope)
    agent.invoke({"messages": "hi"}, sessions.config("1", user_id="alice", group_id="red"))
    assert [memory.scope for memory in sessions.get("1").memory.list(["session", "user", "group", "global"])] == [scope]


def test_a_model_cannot_say_whose_memory_it_is(sessions: Sessions) -> None:
    sessions.open("b", user_id="bob").memory.remember("bob hides cherries", "k", scope="user")
    forged = {"user_id": "bob", "config": {"configurable": {"thread_id": "b", "user_id": "bob"}}, "scope": "global"}
    agent = agent_of(
        sessions,
        {"name": "recall", "args": {"query": "cherries", **forged}},
        {"name": "forget", "args": {"key": "k", **forged}},
        {"name": "remember", "args": {"text": "cherries of alice", **forged}},
    )
    recalled, forgotten, _ = answers(agent.invoke({"messages": "hi"}, sessions.config("a", user_id="alice")))
    assert "bob" not in recalled
    assert forgotten.startswith("There is nothing")
    assert [m.text for m in sessions.get("b").memory.list(["user", "global"])] == ["bob hides cherries"]


def test_a_key_that_recall_shows_can_be_forgotten(sessions: Sessions) -> None:
    session = sessions.open("a", user_id="alice")
    session.memory.remember("cherries", "the-key", scope="user")
    config = sessions.config("a", user_id="alice")
    assert ", key: the-key]" in tool_of(sessions, "recall").invoke({"query": "cherries"}, config)
    assert tool_of(sessions, "forget").invoke({"key": "the-key"}, config) == "Forgotten."
    assert session.memory.list(["user"]) == []


async def test_the_async_tools_do_the_same(sessions: Sessions) -> None:
    config = sessions.config("a", user_id="alice")
    await tool_of(sessions, "remember").ainvoke({"text": "cherries"}, config)
    assert "cherries" in await tool_of(sessions, "recall").ainvoke({"query": "cherries"}, config)


def test_a_call_that_names_no_session_or_anothers_is_refused(sessions: Sessions) -> None:
    sessions.open("a", user_id="alice")
    recall = tool_of(sessions, "recall")
    with pytest.raises(InvalidSessionId):
        recall.invoke({"query": "cherries"})
    with pytest.raises(SessionAccessDenied):
        recall.invoke({"query": "cherries"}, sessions.config("a", user_id="bob"))


def test_what_was_forgotten_is_not_recalled_from_what_the_tools_answered(sessions: Sessions) -> None:
    config = sessions.config("t", user_id="alice")
    memory = sessions.open("t", user_id="alice").memory
    memory.remember("Alice is allergic to peanuts", "k", scope="user")
    recall = {"name": "recall", "args": {"query": "allergic peanuts"}}
    for _ in range(2):  # the second could find the answer of the first
        said = agent_of(sessions, recall).invoke({"messages": []}, config)
        assert answers(said)[-1].count("peanuts") == 1
    agent_of(sessions, {"name": "forget", "args": {"key": "k"}}).invoke({"messages": []}, config)
    sessions.index_memory()
    assert memory.recall("allergic peanuts") == []
    assert sessions.search("peanuts") == []
    answered = [m for m in sessions.get("t").messages() if m.role == "tool"]
    assert "peanuts" in answered[0].text  # the record has it all the same
    assert answered[0].flags == ("memory",)


def test_in_a_loop_of_ones_own_the_answers_of_the_tools_are_not_indexed_either(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.memory.remember("The code word is heliotrope", "k")
    call = {"name": "recall", "args": {"query": "heliotrope"}, "id": "c1", "type": "tool_call"}
    session.add(tool_of(sessions, "recall", session=session).invoke(call))
    session.memory.forget("k")
    assert session.memory.recall("heliotrope") == []


def test_the_answer_of_another_tool_of_that_name_is_found(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.add(ToolMessage("Model X was called back for its brakes", tool_call_id="c1", name="recall"))
    assert session.memory.recall("brakes") == []  # what tools say may be anybody's words
    assert session.memory.recall("brakes", roles=["tool"])
    assert "called back" in tool_of(sessions, "recall", session=session, roles=["tool"]).invoke({"query": "brakes"})
