"""The demo's agent: a plain LangGraph loop of model and tools, with nothing of sessions in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import SystemMessage
from langchain_core.tools import BaseTool, ToolException
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition

INSTRUCTIONS = SystemMessage(
    "You help the staff of a small outdoor shop. Look things up with your tools before you answer,"
    " and answer in a sentence or two."
)


def build_agent(tools: Sequence[BaseTool], model: BaseChatModel) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A compiled graph without a checkpointer: `Sessions.attach` puts one in place."""
    bound = model.bind_tools(tools)

    def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound.invoke([INSTRUCTIONS, *state["messages"]])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    builder.add_node("tools", ToolNode(tools, handle_tool_errors=_answer_refusal))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile()


def _answer_refusal(error: ToolException) -> str:
    """What a tool refuses, or arguments that do not fit it, is told to the model; a fault is raised."""
    return str(error)
