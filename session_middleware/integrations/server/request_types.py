"""Types of what clients send, which the requests of several routes have."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from session_middleware.models import MAX_ID_LENGTH


def _no_bool(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("input should be a number")
    return given


_MOST_LEVELS = 100  # of lists and dicts within each other; many more are too deep for encoders of JSON


def check_depth(given: Any) -> Any:
    """Refuse what the encoders of JSON and the recorder, which are recursive, would fail on later."""
    level, levels = [given], 0
    while level:
        levels += 1
        if levels > _MOST_LEVELS + 1:
            raise ValueError(f"input is nested more than {_MOST_LEVELS} levels deep")
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]
    return given


def _encodable(given: Any) -> Any:
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("input should have no lone surrogates") from None
    return given


_Number = BeforeValidator(_no_bool)  # true and false are numbers of Python, and none of JSON

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"^[^\x00]+$")]
NewId = Annotated[Id, Field(pattern=r"^[^/\x00]+$")]  # a slash cannot be in a part of a path
Text = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")]  # a pattern refuses lone surrogates too
Document = Annotated[dict[str, Any], AfterValidator(check_depth)]
TextDocument = Annotated[Document, AfterValidator(_encodable)]  # for what is shown without an encoder of our own
Values = Annotated[dict[str, Any] | list[Any], AfterValidator(check_depth)]  # of a state
Limit = Annotated[int, Field(ge=1, le=1000), _Number] | None
Offset = Annotated[int, Field(ge=0, le=2**53), _Number] | None
