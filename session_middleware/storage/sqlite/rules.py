"""`Rules`: what every operation on sessions needs to know besides its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from session_middleware.model import Clock, NewId
from session_middleware.settings import SessionSettings


@dataclass(slots=True)
class Rules:
    settings: SessionSettings
    clock: Clock
    new_id: NewId
    path: str  # for messages to people
    over: set[int] = field(default_factory=set)  # leases of this process's ended runs, whose rows may still be there
    announced: set[str] = field(default_factory=set)  # kinds of events somebody in this process is to be told of
