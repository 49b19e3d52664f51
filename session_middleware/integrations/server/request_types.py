"""Types of what clients send, which the requests of several routes have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from session_middleware.models import MAX_ID_LENGTH


def _no_bool(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("input should be a number")
    return given


_Number = BeforeValidator(_no_bool)  # true and false are numbers of Python, and none of JSON

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"^[^\x00]+$")]
Metadata = dict[str, Any]
Limit = Annotated[int, Field(ge=1, le=1000), _Number] | None
Offset = Annotated[int, Field(ge=0), _Number] | None
