"""What `recall` and `search` hand out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from session_middleware.models import Message, Role, Scope, Value


class Memory(Value):
    """Something remembered, as `recall` returns it: an item put on purpose, or a recorded message."""

    columns: ClassVar = ("text", "scope", "kind", "key", "session_id", "created_at", "score")

    text: str
    value: dict[str, Any]
    key: str  # of a message: its message_id
    kind: Literal["item", "message"] = "item"
    always: bool = False  # of an item: it belongs into every prompt
    scope: Scope
    session_id: str | None = None  # where it was remembered or said
    message_id: str | None = None  # the message it is, or came from
    seq: int | None = None  # of a message: its place in its session
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    score: float | None = None
    parts: dict[str, float] | None = None  # of the score: "words", "vector", "recency"; with explain=True
    around: tuple[Message, ...] = ()  # a message among its neighbours; with window=n


class SearchHit(Value):
    """A recorded message that a search found."""

    columns: ClassVar = ("session_id", "seq", "role", "snippet", "created_at", "score")

    session_id: str
    seq: int
    message_id: str
    role: Role
    name: str | None = None
    snippet: str  # where the words are
    text: str
    created_at: datetime
    score: float
