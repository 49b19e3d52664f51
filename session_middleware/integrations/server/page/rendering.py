"""A response that a template makes, with links that hold wherever the page is mounted."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from starlette.responses import HTMLResponse

from session_middleware.integrations.callers import Caller
from session_middleware.models import utc_now


class Page:
    """The response to a request of a caller; ``None``: of one who is not known."""

    def __init__(self, request: Request, caller: Caller | None) -> None:
        self._root = request.scope.get("root_path", "").rstrip("/")
        self._templates = request.app.state.templates
        self._caller = caller
        self.now = utc_now()

    def link(self, path: str, **query: Any) -> str:
        asked = {name: value for name, value in query.items() if value not in (None, "", False)}
        return f"{self._root}{path}" + (f"?{urlencode(asked)}" if asked else "")

    def response(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        shown = {"link": self.link, "now": self.now, "caller": self._caller, **values}
        return HTMLResponse(self._templates.get_template(template).render(shown), status)
