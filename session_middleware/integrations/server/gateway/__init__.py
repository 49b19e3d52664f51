"""The session gateway: the routes, the processes of MCP servers, and calls to other server processes."""
