"""The list of sessions: its filters as they are in an address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode

from session_middleware.errors import InvalidArgument
from session_middleware.models import SessionOrder, Status

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
