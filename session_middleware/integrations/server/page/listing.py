"""The list of sessions: its filters as they are in an address, and the place where a page of it ends."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args
from urllib.parse import urlencode

from session_middleware.errors import InvalidArgument
from session_middleware.models import SessionInfo, SessionOrder, Status, utc_now
from session_middleware.session import Session

STATUSES: tuple[str, ...] = ("open", *get_args(Status))
ORDERS: Mapping[SessionOrder, str] = {
    "activity": "Latest activity",
    "creation": "Latest created",
    "title": "Title",
}
PAGE = 50


@dataclass(frozen=True)
class ListQuery:
    """What the address of the list asks for. A text that is empty asks for nothing."""

    q: str = ""  # in titles, and in messages
    status: str = ""
    user: str = ""
    group: str = ""
    tag: str = ""  # several, separated by commas
    label: str = ""  # of the metadata: key=value
    waiting: bool = False
    order: SessionOrder = "activity"
    after: str = ""  # a cursor

    @property
    def filters(self) -> dict[str, Any]:
        """The arguments for `Sessions.list`. Raises `InvalidArgument`."""
        given = {
            "title": self.q.strip(),
            "status": self.status,
            "user_id": self.user.strip(),
            "group_id": self.group.strip(),
            "tags": [tag.strip() for tag in self.tag.split(",") if tag.strip()],
            "metadata": _label(self.label.strip()),
            "waiting": self.waiting,
        }
        return {name: value for name, value in given.items() if value}

    @property
    def is_filtered(self) -> bool:
        return bool(self.filters)

    @property
    def has_more_filters(self) -> bool:
        return bool(self.group or self.tag or self.label)

    @property
    def searches_messages(self) -> bool:
        """Whether messages are searched too. Their search has no filter but the user."""
        return bool(self.q.strip()) and not self.after and self.filters.keys() <= {"title", "user_id"}

    def address(self, **changes: Any) -> str:
        """The query of an address that asks for the same, with changes, from the first page."""
        fields = vars(self) | {"after": ""} | changes
        asked = {name: "1" if value is True else value for name, value in fields.items() if value}
        if asked.get("order") == "activity":
            del asked["order"]
        return f"?{urlencode(asked)}" if asked else "?"


def _label(text: str) -> dict[str, Any]:
    """``plan=pro`` as a condition; numbers and booleans as JSON writes them."""
    if not text:
        return {}
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InvalidArgument("label", text, wanted="a key and a value of the metadata, such as plan=pro")
    value = value.strip()
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value
    return {key.strip(): parsed if isinstance(parsed, str | int | float) else value}


def cursor_of(session: Session, order: SessionOrder) -> str:
    """The place after a session in this order, as text in an address. It holds if the session changes or is deleted."""
    key = {"title": session.title, "creation": session.created_at, "activity": session.last_active_at}[order]
    place = [order, session.id, key.isoformat() if isinstance(key, datetime) else key]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(cursor: str, order: SessionOrder) -> SessionInfo | None:
    """The place that a cursor names, for ``list(after=…)``. Raises `InvalidArgument`."""
    if not cursor:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        named, session_id, key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        at = utc_now() if order == "title" else datetime.fromisoformat(key)
        if named != order or at.tzinfo is None:
            raise ValueError(named)
        title = key if order == "title" else None
        fields = {"id": session_id, "family_id": session_id, "title": title, "created_at": at, "last_active_at": at}
        return SessionInfo.model_validate(fields)
    except (ValueError, TypeError, RecursionError) as error:  # of base64, of JSON, of a moment or of pydantic
        raise InvalidArgument("after", cursor, wanted="the cursor of a page of the same list") from error
