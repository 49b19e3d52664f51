"""One session across the tools of two MCP servers, each a process of its own.

    pip install 'session-middleware[mcp]'
    python examples/mcp_tools.py

The host starts the servers over stdio, and calls their tools with the id of one session. Each server records its calls
in this session; its tools know nothing of it. A call that kills its server is on record too.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp import Client, MCPError, StdioServerParameters
from mcp.server.mcpserver import MCPServer

from session_middleware import Sessions
from session_middleware.integrations.mcp_middleware import MCPSessionMiddleware

USER = "alice"  # over stdio one user starts the server; over HTTP the verified token names the user

# The servers


def weather(sessions: Sessions) -> MCPServer[Any]:
    server = MCPServer("weather", middleware=[MCPSessionMiddleware(sessions, identity=USER)])

    @server.tool()
    def forecast(city: str) -> str:
        """The weather of a city."""
        return f"sun in {city}"

    return server


def trains(sessions: Sessions) -> MCPServer[Any]:
    server = MCPServer("trains", middleware=[MCPSessionMiddleware(sessions, identity=USER)])

    @server.tool()
    def book(train: str) -> str:
        """Book a train."""
        if train == "ghost train":
            os._exit(1)  # as kill -9 does
        return f"booked {train}"

    return server


# The host


async def travel(sessions: Sessions, database: str) -> None:
    session = await sessions.aopen("trip", user_id=USER, title="A trip to Rome")
    by_id: Any = {"session_id": session.id}
    async with Client(_process("weather", database)) as client:
        await client.call_tool("forecast", {"city": "Rome"}, meta=by_id)
    async with Client(_process("trains", database)) as client:
        await client.call_tool("book", {"train": "night train"}, meta=by_id)
        try:
            await client.call_tool("book", {"train": "ghost train"}, meta=by_id)
        except MCPError as error:
            print(f"the server of trains is gone: {error}")
    for call in await session.atool_calls():
        print(f"{call.name}({call.arguments}) → {call.status}: {call.result}")


def _process(name: str, database: str) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=[__file__, name, database], env=dict(os.environ))


def main(database: str = "trip.db") -> None:
    with Sessions(database) as sessions:
        asyncio.run(travel(sessions, database))


if __name__ == "__main__":
    if sys.argv[1:2] in (["weather"], ["trains"]):
        servers = {"weather": weather, "trains": trains}
        servers[sys.argv[1]](Sessions(sys.argv[2])).run("stdio")
    else:
        main(*sys.argv[1:2])
