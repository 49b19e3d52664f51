"""An MCP server for sessions: tools and resources, for any client of the Model Context Protocol.

It needs the extra ``mcp``. `server` makes a server of the official SDK, for stdio and for streamable HTTP.
"""

from session_middleware.integrations.callers import Caller
from session_middleware.integrations.mcp_server.application import SessionServer, server
from session_middleware.integrations.mcp_server.identity import IdentityOf

__all__ = ["Caller", "IdentityOf", "SessionServer", "server"]
