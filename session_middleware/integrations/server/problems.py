"""Responses to requests that fail: each says in a sentence why, as ``{"detail": "…"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from session_middleware.integrations.fastapi_errors import STATUSES

_MOST_SHOWN = 3  # of the faults of one request
_LONGEST = 300  # characters of one of them, which may repeat what the request says


class Problem(BaseModel):
    """Why a request failed."""

    detail: str
    error: str | None = None  # the name of the exception, where it is one of this package


_REASONS = {
    400: "The request cannot be read.",
    401: "The caller is not authenticated.",
    403: "The caller may not do this.",
    404: "There is no such thing, or it is another user's.",
    409: "It exists already, or a run is in progress.",
    410: "It has expired.",
    422: "The request is not valid.",
    429: "There are too many.",
    503: "The database does not answer.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route beside that of success, for the API's description."""
    return {status: {"model": Problem, "description": _REASONS[status]} for status in (400, 401, 403, *statuses, 503)}


def add_validation_handler(app: FastAPI) -> None:
    """Answer a request that is not valid by 422 and a sentence about what it says."""
    app.add_exception_handler(RequestValidationError, _respond)
    for kind, status in STATUSES.items():
        if status == 422:  # the sentences of the others may name what only the host may know
            app.add_exception_handler(kind, _respond_to_argument)

    app.add_exception_handler(405, _respond_to_method)


async def _respond_to_method(request: Request, error: Exception) -> JSONResponse:
    """Name the methods of all routes of the path, of which Starlette knows those of the first only."""
    assert isinstance(error, HTTPException)
    path, paths = request.scope["path"].removeprefix(request.scope["root_path"]), request.app.openapi()["paths"]
    found = [path] if path in paths else [each for each in paths if compile_path(each)[0].match(path)]
    allowed = sorted({method.upper() for each in found for method in paths[each]})
    return JSONResponse({"detail": error.detail}, 405, headers={"Allow": ", ".join(allowed)})


async def _respond_to_argument(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": type(error).__name__, "detail": _shortened(str(error))}, 422)


async def _respond(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [_sentence(each) for each in error.errors()[:_MOST_SHOWN]]
    return JSONResponse({"error": "InvalidRequest", "detail": "; ".join(found)}, 422)


def _sentence(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "json_invalid":
        return "the body is not JSON"
    place = ".".join(str(part) for part in fault["loc"][1:]) or f"the {fault['loc'][0]}"
    text = fault["msg"].removeprefix("Value error, ")
    return _shortened(f"{place}: {text[:1].lower()}{text[1:]}")


def _shortened(text: str) -> str:
    return text[:_LONGEST].encode(errors="replace").decode()
