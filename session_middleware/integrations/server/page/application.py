"""The app of the page: its templates, its headers, and its pages for errors.

It is an app of its own, mounted into the server, so that its errors are pages and not JSON. Its content security policy
allows only its own files, and no script or style in the text of a page: text that a template failed to escape could not
run. Nothing of a page is cached, because it shows what a user said.
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_middleware import __version__
from session_middleware.errors import SessionError
from session_middleware.integrations.fastapi_errors import status_of
from session_middleware.integrations.server.page import formatting, routes
from session_middleware.integrations.server.page.rendering import Page
from session_middleware.integrations.server.server_state import Server

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ERRORS = {
    401: ("Not signed in", "Sign in to the app that serves this page, and open it again."),
    403: ("No access", "You may not see this."),
    404: ("Not found", "There is no such session or page, or it is not yours."),
    410: ("Gone", "This session is not here any more."),
    422: ("Not understood", "The address has a value that is not valid. Go back, or start from the list."),
    429: ("Too many requests", "Wait a moment, and reload the page."),
    503: ("The database cannot be read", "The server's log says why. Reload the page when it is there again."),
}
_OTHER = ("Something went wrong", "The server's log says what.")


class _SecureHeaders:
    """Adds the headers to each response, also to those of errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_secured)


def page_of(server: Server) -> FastAPI:
    """The page over the sessions of a `Server`, which identifies its callers too. Mount it, or serve it alone."""
    made = FastAPI(title="session-middleware", version=__version__, openapi_url=None)
    made.state.server = server
    made.state.templates = _templates()
    made.add_middleware(_SecureHeaders)
    made.include_router(routes.router)
    made.mount("/static", StaticFiles(packages=[(__package__, "static")]), name="static")
    for kind in (HTTPException, SessionError, RequestValidationError):
        made.add_exception_handler(kind, _error_page)
    return made


@cache
def _templates() -> Environment:
    """The compiled templates, which all apps of a process share: compiling takes a tenth of a second."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formatting.shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= formatting.FILTERS
    environment.globals["version"] = __version__
    for name in environment.list_templates(extensions=["html"]):
        environment.get_template(name)  # now, because a request must not wait for a file
    return environment


async def _error_page(request: Request, error: Exception) -> HTMLResponse:
    if isinstance(error, SessionError):
        status, detail = status_of(error), None
        if status >= 500:
            routes.logger.error("%s failed", request.url.path, exc_info=error)
    elif isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    else:
        status, detail = 422, None
    title, advice = _ERRORS.get(status, _OTHER)
    is_plain = detail is None or detail == HTTPStatus(status).phrase  # Starlette's own, which says nothing more
    page = Page(request, None)
    return page.response(
        "error.html", status=status, number=status, title=title, advice=advice if is_plain else f"{detail}."
    )
