"""A process that serves a graph whose steps a test lets go on: ``gated_server.py DATABASE FOLDER``.

The graph answers as the last human message says. ``hold NAME`` counts in the stream mode ``custom`` until the folder
has a file of this name. The process prints its address once it listens. The header ``x-user`` names the caller.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from starlette.requests import HTTPConnection

from session_middleware.integrations.server import Caller


def caller_of(connection: HTTPConnection) -> Caller | None:
    user = connection.headers.get("x-user", "alice")
    return Caller(user, is_operator=user == "root")


def gated(folder: Path) -> Any:
    """The graph: the node ``answer``, then a subgraph with the node ``sign``."""

    async def answer(state: MessagesState) -> dict[str, Any]:
        said = state["messages"][-1].text
        write = get_stream_writer()
        if said.startswith("hold "):
            count = 0
            while not (folder / said.split()[1]).exists():
                write({"count": (count := count + 1)})
                await asyncio.sleep(0.01)
        if said == "fail":
            raise ValueError("it failed")
        if said == "leak":
            raise OSError("/home/bob/secrets cannot be read")
        if said == "ask":
            return {"messages": [AIMessage(f"you like {interrupt('Which colour?')}")]}
        model = GenericFakeChatModel(messages=iter([AIMessage(f"you said {said}")]))
        return {"messages": [await model.ainvoke(state["messages"])]}

    def sign(_: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [AIMessage("yours")]}

    child = StateGraph(MessagesState).add_node("sign", sign).add_edge(START, "sign").compile()
    builder = StateGraph(MessagesState).add_node("answer", answer).add_node("child", child)
    return builder.add_edge(START, "answer").add_edge("answer", "child").compile()


def main(url: str, folder: str) -> None:
    from session_middleware import Sessions
    from session_middleware.integrations.server import app
    from tests.support.served_app import serving

    with (
        Sessions(url) as sessions,
        serving(app(sessions, {"gated": gated(Path(folder))}, authenticate=caller_of)) as address,
    ):
        print(address, flush=True)
        sys.stdin.read()  # until it is closed


if __name__ == "__main__":
    main(*sys.argv[1:])
