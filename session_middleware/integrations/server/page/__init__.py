"""A page to look at sessions: server-rendered, without anything from another host, and for looking only.

It is mounted at ``/ui`` of the server, and is served alone by ``session-middleware ui``.
"""

from session_middleware.integrations.server.page.application import page_of

__all__ = ["page_of"]
