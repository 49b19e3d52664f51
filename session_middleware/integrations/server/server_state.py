"""What all routes of the app share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Request
from langgraph.pregel import Pregel

from session_middleware import Sessions
from session_middleware.integrations.server.identity import Authentication
from session_middleware.integrations.server.streams import OpenStreams
from session_middleware.models import utc_now


@dataclass(frozen=True)
class Server:
    """What all routes share, as ``request.app.state.server``."""

    sessions: Sessions
    graphs: Mapping[str, Pregel[Any, Any, Any, Any]]  # attached, by assistant id
    authentication: Authentication
    streams: OpenStreams
    started_at: datetime = field(default_factory=utc_now)


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


CurrentServer = Annotated[Server, Depends(_server)]
