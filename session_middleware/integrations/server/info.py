"""What clients ask of the server itself."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import BaseModel

from session_middleware import __version__
from session_middleware.integrations.server.identity import CurrentCaller
from session_middleware.integrations.server.problems import problems

router = APIRouter(tags=["server"])


class Ok(BaseModel):
    """The server answers."""

    ok: bool = True


class Info(BaseModel):
    """The versions, and the parts of LangGraph's API that the server has."""

    version: str
    langgraph_py_version: str
    flags: dict[str, bool]


@router.get("/ok")
async def ok() -> Ok:
    """Whether the server answers. Everybody may ask."""
    return Ok()


@router.get("/info", responses=problems())
async def info(_: CurrentCaller) -> Info:
    """The server, for its callers."""
    flags = {"assistants": True, "crons": False, "langsmith": False}
    return Info(version=__version__, langgraph_py_version=version("langgraph"), flags=flags)
