"""How a function becomes a tool: its arguments, its annotations, and the types that several tools share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.types import ToolAnnotations
from pydantic import AfterValidator, Field

SessionId = Annotated[str, Field(description="The id of the session, from create_session or list_sessions.")]
PageCursor = Annotated[
    str | None, Field(description="The next_cursor of the page before, unchanged; without it the first page.")
]
PageSize = Annotated[int, Field(ge=1, le=100, description="How many at most.")]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it may not have a NUL character")
    return text


Label = Annotated[str, Field(max_length=1_024), AfterValidator(_without_nul)] | None  # a name, or an id of the client

READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
RESUMES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
ENDS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)


def tool(annotations: ToolAnnotations, title: str) -> Callable[[Callable[..., Any]], Tool]:
    """Make a tool of an asynchronous function, whose docstring is for the model. Unknown arguments are refused."""

    def made(function: Callable[..., Any]) -> Tool:
        description = " ".join((function.__doc__ or "").split())
        found = Tool.from_function(function, title=title, description=description, annotations=annotations)
        arguments = found.fn_metadata.arg_model
        arguments.model_config["extra"] = "forbid"
        arguments.model_rebuild(force=True)
        found.parameters = _short(arguments.model_json_schema())
        found.fn_metadata = _Metadata(
            arg_model=arguments,
            output_schema=_short(found.fn_metadata.output_schema),
            output_model=found.fn_metadata.output_model,
            texts=frozenset(name for name, each in found.parameters["properties"].items() if _takes_text(each)),
        )
        return found

    return made


class _Metadata(FuncMetadata):
    """Leaves a text as it is where a text is wanted, also if it is JSON, such as the body of an error."""

    texts: frozenset[str]  # the arguments that may be texts

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        return super().pre_parse_json(data) | {name: data[name] for name in data.keys() & self.texts}


def _takes_text(schema: dict[str, Any]) -> bool:
    return any(each.get("type", "string") == "string" for each in schema.get("anyOf", [schema]))


def _short(schema: Any) -> Any:
    """A schema without the titles that repeat names, and without the null of what may be left out.

    All tools together have 60,000 characters with them, and clients put them into each prompt.
    """
    if isinstance(schema, list):
        return [_short(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: value for name, value in schema.items() if name != "title" and (name, value) != ("default", None)}
    kinds = [each for each in found.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        found = {**kinds[0], **{name: value for name, value in found.items() if name != "anyOf"}}
    elif kinds:
        found["anyOf"] = kinds
    for name, value in found.items():
        named = name in ("properties", "$defs")
        found[name] = {key: _short(each) for key, each in value.items()} if named else _short(value)
    return found


_PLACE = re.compile(r"(\w+):(\d{1,18})")


def place_of(cursor: str | None, *kinds: str) -> tuple[str, int]:
    """The kind and the number of a cursor such as ``before:120``; without a cursor the first kind and 0."""
    if cursor is None:
        return kinds[0], 0
    found = _PLACE.fullmatch(cursor)
    if found is None or found[1] not in kinds:
        raise ToolError("this is no cursor of this tool; leave cursor out to get the first page")
    return found[1], int(found[2])
