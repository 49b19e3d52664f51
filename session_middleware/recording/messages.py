"""Finding messages in what passes by, and saying of each what the record keeps: pure functions."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command

from session_middleware.model import NewId
from session_middleware.storage.port import MessageSeen

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_DEPTH = 3  # how far below a node's input or output messages are looked for


def describe(messages: Sequence[BaseMessage], checkpoint_ns: str, *, new_id: NewId) -> list[MessageSeen]:
    """The messages as the record keeps them. One without an id gets one; removals are no messages."""
    return [_describe(message, checkpoint_ns, new_id) for message in messages if message.type != "remove"]


def _describe(message: BaseMessage, checkpoint_ns: str, new_id: NewId) -> MessageSeen:
    role = getattr(message, "role", message.type) if message.type == "chat" else message.type
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    is_text = isinstance(message.content, str)
    return MessageSeen(
        message_id=message.id or new_id(),
        role=_ROLES.get(role.removesuffix("MessageChunk").lower(), "user" if role != "assistant" else role),
        text=str(message.content) if is_text else str(message.text),
        content=None if is_text else message.content,
        name=message.name,
        tool_calls=tuple(map(dict, message.tool_calls)) if isinstance(message, AIMessage) else (),
        tool_call_id=message.tool_call_id if isinstance(message, ToolMessage) else None,
        tool_error=isinstance(message, ToolMessage) and message.status == "error",
        model=message.response_metadata.get("model_name") or message.response_metadata.get("model"),
        input_tokens=usage and usage.get("input_tokens"),
        output_tokens=usage and usage.get("output_tokens"),
        checkpoint_ns=checkpoint_ns,
    )


def unseen(value: Any, known: Container[str]) -> list[BaseMessage]:
    """The messages in a node's input or output that have an id which is not `known`, in order.

    A list is read from its end and only until a known one, so a long history costs what is new in it.
    """
    found: list[BaseMessage] = []
    for messages in _lists(value, _DEPTH):
        tail: list[BaseMessage] = []
        for message in reversed(messages):
            if not isinstance(message, BaseMessage) or message.id in known:
                break
            tail.append(message)
        found += [message for message in reversed(tail) if message.id is not None]
    return found


def _lists(value: Any, depth: int) -> Iterator[Sequence[Any]]:
    """The lists of messages in a value: a state, an update, a `Command`, or several of them."""
    if isinstance(value, BaseMessage):
        yield (value,)
    elif isinstance(value, (list, tuple)):
        if value and isinstance(value[-1], BaseMessage):
            yield value
        elif depth:
            for part in value:
                yield from _lists(part, depth - 1)
    elif depth:
        for part in _parts(value):
            yield from _lists(part, depth - 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Command):
        return (value.update,)
    if isinstance(value, Mapping):
        return value.values()
    fields = getattr(value, "__dict__", None)  # a state of pydantic or dataclass type
    return fields.values() if isinstance(fields, dict) and not isinstance(value, type) else ()
