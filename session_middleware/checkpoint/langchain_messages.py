"""Recognising messages in a state's lists: LangChain's, and dicts in OpenAI's format.

A dict counts as a message only if all of its keys belong to that format: a state may hold other dicts with a role.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from session_middleware.storage.jsonable import is_a

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_KEYS = frozenset(
    {"role", "content", "id", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations"}
)


def is_message(element: Any) -> bool:
    return issubclass(type(element), BaseMessage) or (type(element) is dict and _is_in_openai_format(element))


def is_from_assistant(element: Any) -> bool:
    """Whether an element is an assistant's message."""
    if type(element) is dict:
        return is_message(element) and element["role"] == "assistant"
    return isinstance(element, AIMessage)


def is_from_user(element: Any) -> bool:
    """Whether an element is a user's message."""
    if type(element) is dict:
        return is_message(element) and element["role"] == "user"
    return isinstance(element, HumanMessage)


def id_of(element: Any) -> Any:
    """The id of a message; ``None`` if it has none, or is no message."""
    kind = type(element)
    found = element.get("id") if kind is dict else element.id if issubclass(kind, BaseMessage) else None
    return found if issubclass(type(found), (str, int)) and found else None


def _is_in_openai_format(element: dict[Any, Any]) -> bool:
    content = element.get("content", element)
    has_content = content is None or is_a(content, (str, list))
    role = element.get("role")
    return has_content and is_a(role, str) and role in _ROLES and element.keys() <= _KEYS
