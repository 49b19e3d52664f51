"""Further graphs that LangGraph's server serves in its test, beside the agent of the page on it."""

from __future__ import annotations

import asyncio
import os

from langchain_core.tools import tool

from session_middleware import Sessions
from tests.support import agents


@tool
async def waiting(thing: str) -> str:
    """Waits until it is cancelled or killed, except where ``IMPATIENT`` is set."""
    if "IMPATIENT" not in os.environ:
        await asyncio.Event().wait()
    return f"{thing} at last"


sessions = Sessions(access="host")
attached = sessions.attach(agents.agent(), checkpointer=False, store=False)
slow = sessions.attach(agents.tool_graph(waiting), checkpointer=False, store=False)
plain = agents.agent()  # with the server's checkpointer alone
