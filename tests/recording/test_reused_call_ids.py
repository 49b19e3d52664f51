"""Models whose tool calls have ids that are not unique over a thread: each message's calls are its own."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import tool

from session_middleware import Session, Sessions
from tests.support import agents

pytestmark = pytest.mark.usefixtures("each_engine")


class Numbering(agents.Scripted):
    """Numbers its tool calls anew in each message."""

    def _reply(self, messages: list[BaseMessage]) -> AIMessage:
        message = super()._reply(messages)
        for number, call in enumerate(message.tool_calls):
            call["id"] = f"call_{number}"
        return message


def executions(session: Session) -> list[tuple[str, int, str]]:
    return [(call.tool_call_id, call.attempt, call.status) for call in session.tool_calls()]


@pytest.mark.parametrize("recorder", [True, False])
def test_a_call_of_another_message_is_a_first_attempt(sessions: Sessions, recorder: bool) -> None:
    graph = sessions.attach(agents.tool_graph(model=Numbering()), recorder=recorder)
    for text in ("look up tea", "both milk", "look up milk"):
        graph.invoke({"messages": text}, sessions.config("t"))
    session = sessions.get("t")
    assert sorted(executions(session)) == [*[("call_0", 1, "ok")] * 3, ("call_1", 1, "ok")]
    asking = {message.message_id for message in session.messages() if message.tool_calls}
    assert {call.message_id for call in session.tool_calls()} == asking


def test_a_call_of_a_loop_is_a_first_attempt_of_the_message_that_asks_for_it(sessions: Sessions) -> None:
    session, said = sessions.open("t"), list[dict[str, Any]]()
    double = session.tool(lambda n: 2 * n, name="double")
    for number in range(3):
        function = {"name": "double", "arguments": f'{{"n": {number}}}'}
        said.append({"role": "user", "content": f"double {number}"})
        said.append({"role": "assistant", "tool_calls": [{"id": "call_0", "type": "function", "function": function}]})
        session.add_history(said)
        said.append({"role": "tool", "tool_call_id": "call_0", "content": str(double(n=number))})
        session.add_history(said)
    assert executions(session) == [("call_0", 1, "ok")] * 3
    assert [call.arguments for call in session.tool_calls()] == [{"n": number} for number in range(3)]


def test_a_tool_that_runs_an_agent_goes_on_while_that_uses_its_id(sessions: Sessions) -> None:
    inner = create_agent(Numbering(), agents.TOOLS)
    seen: list[tuple[str, int, str]] = []

    @tool
    def look_up(thing: str) -> str:
        """Asks another agent."""
        answered = inner.invoke({"messages": [HumanMessage(f"both {thing}")]})
        sessions.recorder.drain("t")
        seen.extend(executions(sessions.get("t")))
        return str(answered["messages"][-1].text)

    sessions.attach(agents.tool_graph(look_up, model=Numbering())).invoke(
        {"messages": "look up tea"}, sessions.config("t")
    )
    assert sorted(seen) == [("call_0", 1, "ok"), ("call_0", 1, "running"), ("call_1", 1, "ok")]
    assert {status for _, _, status in executions(sessions.get("t"))} == {"ok"}
