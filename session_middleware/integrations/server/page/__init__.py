"""A page to read sessions in a browser: rendered by the server, loads nothing from other hosts, changes nothing.

It is mounted at ``/ui`` of the server, and is served alone by ``session-middleware ui``.
"""

from session_middleware.integrations.server.page.application import page_of

__all__ = ["page_of"]
