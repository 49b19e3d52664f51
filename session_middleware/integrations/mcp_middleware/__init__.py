"""Sessions across the tools of MCP servers: each call is recorded in the session that it names.

A call names a session by the argument ``session_id``, which the middleware adds to the schemas of the tools and
removes before the tool runs, or by ``session_id`` in its ``_meta``. The tools are not changed. Several servers, in
several processes, record into one session of one database.

`MCPSessionMiddleware` is for servers of the official SDK, `fastmcp.FastMCPSessionMiddleware` for those of FastMCP.
"""

from session_middleware.integrations.mcp_middleware.official_sdk import MCPSessionMiddleware
from session_middleware.integrations.mcp_middleware.recorded_call import Identify

__all__ = ["Identify", "MCPSessionMiddleware"]
