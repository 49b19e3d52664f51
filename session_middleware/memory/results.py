"""The results of `recall` and `search`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from session_middleware.models import Message, Role, Scope, Value


class Memory(Value):
    """A result of `recall`: an item, or a recorded message."""

    columns: ClassVar = ("text", "scope", "kind", "key", "session_id", "created_at", "score")

    text: str
    value: dict[str, Any]
    key: str  # of a message: its message_id
    kind: Literal["item", "message"] = "item"
    always: bool = False  # of an item: it belongs to every prompt
    scope: Scope
    session_id: str | None = None  # in which it was stored or recorded
    message_id: str | None = None  # of the message that it is, or came from
    seq: int | None = None  # of a message
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    score: float | None = None
    parts: dict[str, float] | None = None  # of the score, with explain=True: "words", "vector", "recency"
    around: tuple[Message, ...] = ()  # of a message, with window=n: its neighbours and itself


class SearchHit(Value):
    """A result of `search`: a recorded message."""

    columns: ClassVar = ("session_id", "seq", "role", "snippet", "created_at", "score")

    session_id: str
    seq: int
    message_id: str
    role: Role
    name: str | None = None
    snippet: str  # an excerpt with the words
    text: str
    created_at: datetime
    score: float
