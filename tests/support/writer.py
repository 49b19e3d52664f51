"""A process that writes to a session until it is killed, and says what was acknowledged.

    python writer.py DATABASE ROUND DURABILITY MODE

Each line of its output is the number of a turn whose `invoke` has returned.
"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from session_middleware import Sessions


@tool
def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


def model(state: MessagesState) -> dict[str, list[AIMessage]]:
    last = state["messages"][-1]
    if isinstance(last, HumanMessage):
        number = int(str(last.content).split()[-1])
        call = {"name": "double", "args": {"number": number}, "id": f"call-{last.id}"}
        return {"messages": [AIMessage("", tool_calls=[call], id=f"ask-{last.id}")]}
    return {"messages": [AIMessage(f"it is {last.content}", id=f"answer-{last.tool_call_id}")]}


def tools(state: MessagesState) -> dict[str, list[ToolMessage]]:
    answers = ToolNode([double]).invoke(state)["messages"]
    for answer in answers:  # else the reducer does so, while what the task wrote is being stored
        answer.id = f"tool-{answer.tool_call_id}"
    return {"messages": answers}


def graph() -> StateGraph:
    builder = StateGraph(MessagesState)
    builder.add_node("model", model)
    builder.add_node("tools", tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder


def main(path: str, round_: str, durability: str, mode: str) -> None:
    sessions = Sessions(path)
    agent = sessions.attach(graph().compile())
    config = sessions.config("t", user_id="ada")
    loop = asyncio.new_event_loop() if mode == "async" else None
    for turn in range(100_000):
        human = HumanMessage(f"double {turn}", id=f"{round_}-{turn}")
        if loop is None:
            agent.invoke({"messages": [human]}, config, durability=durability)
        else:
            loop.run_until_complete(agent.ainvoke({"messages": [human]}, config, durability=durability))
        print(turn, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
