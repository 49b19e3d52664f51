"""An HTTP server for sessions: LangGraph's thread API, a gateway to MCP servers, live updates, metrics and a page.

It needs the extra ``server``. `app` makes an app of FastAPI, alone or to be mounted into another one.
"""

from session_middleware.integrations.callers import Caller
from session_middleware.integrations.server.application import app, ui
from session_middleware.integrations.server.gateway.settings import Gateway
from session_middleware.integrations.server.identity import Authenticate, LoopbackUser
from session_middleware.integrations.server.limits import Limits
from session_middleware.integrations.server.tokens import JwtVerifier

__all__ = ["Authenticate", "Caller", "Gateway", "JwtVerifier", "Limits", "LoopbackUser", "app", "ui"]
