"""Responses to requests that fail: each says in a sentence why, as ``{"detail": "…"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

_MOST_SHOWN = 3  # of the faults of one request
_LONGEST = 200  # characters of one of them, which may repeat what the request says


class Problem(BaseModel):
    """Why a request failed."""

    detail: str
    error: str | None = None  # the name of the exception, where it is one of this package


_REASONS = {
    400: "The request cannot be read.",
    401: "Nobody is authenticated.",
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
    """Answer a request that is not as its route declares by 422 and a sentence."""
    app.add_exception_handler(RequestValidationError, _respond)


async def _respond(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [_sentence(each) for each in error.errors()[:_MOST_SHOWN]]
    return JSONResponse({"error": "InvalidRequest", "detail": "; ".join(found)}, 422)


def _sentence(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path", "header"))
    text = fault["msg"][:1].lower() + fault["msg"][1:]
    return (f"{place}: {text}" if place else text)[:_LONGEST].encode(errors="replace").decode()
