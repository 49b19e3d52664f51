"""Parts of LangGraph's API that this server does not have. They answer with a sentence that says what to do."""

from __future__ import annotations

from typing import Any, NoReturn

from fastapi import APIRouter, HTTPException

router = APIRouter(include_in_schema=False)

_CRONS = ("/runs/crons", "/runs/crons/{part:path}", "/threads/{thread_id}/runs/crons")
_NO_PROTOCOL = "this server has no threads.stream(); stream a run with runs.stream() instead"
_CHANGES = {
    "/assistants": "POST",
    "/assistants/{assistant_id}": "PATCH DELETE",
    "/assistants/{assistant_id}/latest": "POST",
}


async def _refuse_crons() -> NoReturn:
    raise HTTPException(501, "this server has no crons; let a scheduler, such as cron, create runs with the client")


@router.post("/threads/{thread_id}/commands")
async def _refuse_command(command: dict[str, Any]) -> dict[str, Any]:
    """An error of the protocol of the clients' threads.stream(), which show the sentence of no other one."""
    return {"type": "error", "id": command.get("id"), "error": "not_supported", "message": _NO_PROTOCOL}


@router.post("/threads/{thread_id}/stream/events", response_model=None)
async def _refuse_events() -> NoReturn:
    raise HTTPException(501, _NO_PROTOCOL)


async def _refuse_changes() -> NoReturn:
    sentence = "the assistants are the graphs that the server was started with; change them there"
    raise HTTPException(405, sentence)


for _path in _CRONS:
    router.add_api_route(_path, _refuse_crons, methods=["GET", "POST", "PATCH", "DELETE"], response_model=None)
for _path, _methods in _CHANGES.items():
    router.add_api_route(_path, _refuse_changes, methods=_methods.split(), response_model=None)
