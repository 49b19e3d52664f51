"""Recorded tool calls as answers: the values that a tool returned, or the error that it raised. Pure functions.

The record is JSON, so an answer is built again from it: messages and `Command` from their fields, an exception from its
name and text. A value that was recorded as its `repr` only cannot be built again. An artifact is answered as its JSON.
"""

from __future__ import annotations

import builtins
import json
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.types import Command

from session_middleware.models import ToolCall

_MESSAGES: dict[str, type[BaseMessage]] = {
    "ai": AIMessage,
    "human": HumanMessage,
    "remove": RemoveMessage,
    "system": SystemMessage,
    "tool": ToolMessage,
}


class RecordedError(RuntimeError):
    """A recorded error of a tool whose class is not one of Python's. It has the name of that class."""


def is_withheld(call: ToolCall, part: str) -> bool:
    """Whether the setting ``record`` excluded the ``"arguments"`` or the ``"result"``."""
    return f"withheld:{part}" in call.flags


def problem_of(call: ToolCall) -> str | None:
    """Why the call cannot be answered from the record; ``None`` if it can."""
    if call.status == "refused":
        return "it was refused, and not executed"
    if call.status not in ("ok", "error"):
        return f"it is {call.status}, and has no result"
    if is_withheld(call, "result") and call.status == "ok":
        return "the setting record= withheld its result"
    unknown = _unknown_in(call.result, is_command=is_command(call))
    return f"the record has only the repr of {unknown} in its result" if unknown else None


def is_command(call: ToolCall) -> bool:
    return isinstance(call.result, dict) and call.result.get("__type__") == "Command"


def _unknown_in(value: Any, *, is_command: bool = False) -> str | None:
    """The type of a part that was recorded as its `repr`, or, in a `Command`, as its fields without its class."""
    if isinstance(value, dict):
        kind = value.get("__type__")
        if "__repr__" in value or (is_command and kind not in (None, "Command")):
            return f"a {kind}"
        value = list(value.values())
    found = (_unknown_in(part, is_command=is_command) for part in value) if isinstance(value, list) else ()
    return next((kind for kind in found if kind), None)


def result_of(call: ToolCall, tool_call_id: str | None) -> Any:
    """What the tool returned, for the call with this id. Raises the recorded error of a tool that raised."""
    if call.status == "error" and call.result is None:
        raise error_of(call.error or "")
    result = _built(call.result, tool_call_id)
    is_plain = call.status == "ok" and call.artifact is None
    if is_plain or tool_call_id is None or not isinstance(result, (str, list, dict)):
        return result
    content: Any = json.dumps(result, ensure_ascii=False) if isinstance(result, dict) else result
    status: Any = "error" if call.status == "error" else "success"
    return ToolMessage(content, tool_call_id=tool_call_id, name=call.name, artifact=call.artifact, status=status)


def _built(value: Any, tool_call_id: str | None) -> Any:
    """The value with its messages and `Command` built again."""
    if isinstance(value, list):
        return [_built(part, tool_call_id) for part in value]
    if not isinstance(value, dict):
        return value
    parts = {name: _built(part, tool_call_id) for name, part in value.items()}
    if parts.get("__type__") == "Command":
        update = parts.get("update")
        if isinstance(update, list) and all(isinstance(part, list) and len(part) == 2 for part in update):
            parts["update"] = [tuple(part) for part in update]  # of channels and values
        return Command(**{name: part for name, part in parts.items() if name != "__type__"})
    kind = _MESSAGES.get(parts["type"]) if isinstance(parts.get("type"), str) else None
    if kind is None or "content" not in parts or not parts.keys() <= kind.model_fields.keys():
        return parts
    if kind is ToolMessage and tool_call_id is not None:
        parts["tool_call_id"] = tool_call_id
    return kind(**parts)


def error_of(text: str) -> Exception:
    """The exception that was recorded as ``"ValueError: text"``, with the same name and text."""
    name, _, said = text.partition(": ")
    if not name.isidentifier():
        name, said = "RecordedError", text
    found = ToolException if name == "ToolException" else getattr(builtins, name, None)
    base = found if isinstance(found, type) and issubclass(found, Exception) else RecordedError
    arguments = (said,) if said else ()
    try:
        error = base(*arguments)
    except TypeError:  # its constructor takes more than a text
        base = RecordedError
    else:
        if base is found and str(error) == said:
            return error
    named = cast("type[Exception]", type(name, (base,), {"__str__": lambda _: said}))
    return named(*arguments)
