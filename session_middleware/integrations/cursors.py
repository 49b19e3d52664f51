"""Cursors: the place in a list of sessions after which its next page begins, as a text for a client.

A cursor has what the list is ordered by, so it holds if the session changes or is deleted.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter

from session_middleware.errors import InvalidArgument
from session_middleware.models import Moment, SessionInfo, SessionOrder, to_text, utc_now
from session_middleware.session import Session

_moment: TypeAdapter[datetime] = TypeAdapter(Annotated[Moment, Field(ge=datetime(1000, 1, 1, tzinfo=UTC))])


def cursor_of(session: Session, order: SessionOrder = "activity") -> str:
    """The place after a session in this order."""
    at = session.created_at if order == "creation" else session.last_active_at
    place = [order, session.id, session.title if order == "title" else to_text(at)]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(cursor: str | None, order: SessionOrder = "activity") -> SessionInfo | None:
    """The place that a cursor names, for ``list(after=…)``. Raises `InvalidArgument`."""
    if not cursor:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        named, session_id, key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if named != order:
            raise ValueError(named)
        at, title = (utc_now(), key) if order == "title" else (_moment.validate_python(key), None)
        fields = {"id": session_id, "family_id": session_id, "title": title, "created_at": at, "last_active_at": at}
        return SessionInfo.model_validate(fields)
    except (ValueError, TypeError, RecursionError) as error:  # of base64, of JSON or of pydantic
        raise InvalidArgument("after", cursor, wanted="the cursor of a page of the same list") from error
