"""Messages found in states, inputs and outputs, and converted to record entries. Pure functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command
from pydantic import BaseModel

from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.errors import InvalidArgument
from session_middleware.models import NewId, plain_text
from session_middleware.recording.files import extract_files
from session_middleware.recording.usage import Tokens, model_in, reported_call, usage_of
from session_middleware.storage.jsonable import is_nothing
from session_middleware.storage.record_entries import (
    Attachment,
    MessageEntry,
    ToolEnd,
    is_of_memory,
    is_recalled,
)

Sayable: TypeAlias = BaseMessage | Mapping[str, Any]

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "user": "user",
    "assistant": "assistant",
    "developer": "system",
}
_RESPONSE_METADATA = {"usage": "token_usage", "usage_metadata": "token_usage", "model": "model_name"}
_REQUESTS = ("tool_calls", "function_call")
_DEPTH = 3  # levels below a node's input or output that are searched for messages
_NO_MESSAGES = frozenset({type(None), str, int, float, bool, bytes})


# Messages as entries


def describe(given: Sayable, checkpoint_ns: str = "", *, new_id: NewId, **changes: Any) -> MessageEntry:
    """Convert a message to an entry. A message without an id gets a new one."""
    message = given if isinstance(given, BaseMessage) else to_message(given)
    metadata, is_text = message.response_metadata, isinstance(message.content, str)
    content, files = (None, []) if is_text else extract_files(message.content)
    extra, more_files = _extra_of(message)
    tokens, flags = usage_of(message) if isinstance(message, AIMessage) else (Tokens(), ())
    message_id = str(message.id or new_id())
    kind = getattr(message, "role", message.type) if message.type == "chat" else message.type
    role = _ROLES.get(kind.removesuffix("MessageChunk").lower())
    if role == "user" and message.additional_kwargs.get("lc_source") == "summarization":
        role, extra = "system", {**(extra or {}), "type": message.type}  # LangChain's middleware marks summaries so
    if role is None:
        role, flags = "user", (*flags, "unknown:role")  # the message is still recorded
    calls: Sequence[dict[str, Any]] = ()
    if isinstance(message, AIMessage):  # with those that LangChain could not parse
        invalid = ({**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls)
        calls = (*map(dict, message.tool_calls), *invalid)
    answer = message if isinstance(message, ToolMessage) else None
    artifact = None if answer is None else answer.artifact
    if (type(artifact) is dict and is_of_memory(artifact)) or is_recalled(message.content):
        flags = (*flags, "memory")
    entry = MessageEntry(
        message_id=message_id,
        role=role,
        text=(str(message.content) if is_text else str(message.text)) or _alternative_text(message),
        content=content,
        name=message.name,
        tool_calls=calls,
        tool_call_id=None if answer is None else str(answer.tool_call_id),
        tool_error=answer is not None and answer.status == "error",
        artifact=artifact,
        extra=extra,
        model=model_in(metadata) if metadata else None,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        checkpoint_ns=checkpoint_ns,
        told=bool(checkpoint_ns) and role == "user",
        minted=not message.id,
        flags=flags,
        files=[*files, *more_files],
        call=None if tokens == Tokens() else reported_call(message, tokens, message_id, checkpoint_ns),
    )
    return entry._replace(**changes) if changes else entry


def _extra_of(message: BaseMessage) -> tuple[dict[str, Any] | None, list[Attachment]]:
    """Return the fields of a message that have no column of their own, and the files in them."""
    extra: dict[str, Any] = {}
    if message.additional_kwargs:  # without the tool calls, which are in a column
        own = {name: part for name, part in message.additional_kwargs.items() if name not in _REQUESTS}
        extra |= {"additional_kwargs": own} if own else {}
    if message.response_metadata:
        extra["response_metadata"] = message.response_metadata
    files: list[Attachment] = []
    if extra:
        (extra,), files = extract_files([extra])
    if usage := getattr(message, "usage_metadata", None):
        extra["usage_metadata"] = usage.copy() if type(usage) is dict else usage
    if getattr(message, "status", None) == "error":
        extra["status"] = "error"
    return extra or None, files


def _alternative_text(message: BaseMessage) -> str:
    """Return the refusals, audio transcripts and texts in the format of OpenAI's Responses API, if it has no other."""
    if not message.additional_kwargs and not message.content:
        return ""
    parts = [message.additional_kwargs, message.additional_kwargs.get("audio")]
    parts += message.content if isinstance(message.content, list) else ()
    given = [part for part in parts if isinstance(part, dict)]
    texts = [part.get(name) for part in given for name in ("refusal", "transcript")]
    texts += [part.get("text") for part in given if part.get("type") in ("input_text", "output_text")]
    return "\n".join(text for text in texts if isinstance(text, str))


def with_author(message: MessageEntry, users_words: frozenset[str] | None, agents: Container[str]) -> MessageEntry:
    """Set `told` on a user message that an agent may have made: one in a subgraph, or one named after a node.

    The texts of a run's input are the user's. If they are unknown, every user message is.
    """
    may_be_told = message.told or message.name in agents
    return message._replace(told=may_be_told and users_words is not None and message.text not in users_words)


def to_message(given: Sayable) -> BaseMessage:
    """Return a LangChain message, converting a dict in OpenAI's format.

    Unlike LangChain's `convert_to_messages`, it accepts tool calls that cannot be parsed, and content of any type.
    Raises `InvalidArgument` for any other type, for an unknown role, and for a dict without a role, or without a
    content and tool calls: a misspelt key would otherwise give an empty message, or one of the user.
    """
    if isinstance(given, BaseMessage):
        return given
    if not isinstance(given, Mapping):
        raise InvalidArgument("message", given, wanted="a message of LangChain's, or a dict with a role and a content")
    given_role = given.get("role") or given.get("type")
    if not given_role:
        raise InvalidArgument("message", given, wanted="a dict with a 'role' and a 'content'")
    if not any(name in given for name in ("content", *_REQUESTS, "refusal", "audio")):
        raise InvalidArgument("message", given, wanted="a dict with a 'content', or with an assistant's 'tool_calls'")
    role = _ROLES.get(plain_text(given_role).lower())
    if role is None:
        raise InvalidArgument("role", given_role, wanted=f"one of: {', '.join(map(repr, _ROLES))}")
    named = {name: plain_text(given[name]) for name in ("id", "name") if given.get(name) is not None}
    content: Any = given.get("content")
    is_parts = isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content)
    content = "" if content is None else content if is_parts else plain_text(content)
    if role == "tool":
        call_id = plain_text(given.get("tool_call_id") or given.get("name") or "")
        status: Any = "error" if given.get("status") == "error" else "success"
        return ToolMessage(content, tool_call_id=call_id, status=status, artifact=given.get("artifact"), **named)
    if role != "assistant":
        return (SystemMessage if role == "system" else HumanMessage)(content, **named)
    requested = given.get("tool_calls")
    requested = list(requested) if isinstance(requested, (list, tuple)) else [] if requested is None else [requested]
    if isinstance(function := given.get("function_call"), Mapping):  # it has no id; its answer has its name
        requested.append({"id": function.get("name"), "function": function})
    calls: list[Any] = [_parse_call(call) for call in requested]
    return AIMessage(
        content,
        tool_calls=[call for call in calls if "error" not in call],
        invalid_tool_calls=[call for call in calls if "error" in call],
        additional_kwargs={name: given[name] for name in ("refusal", "audio") if given.get(name)},
        response_metadata={own: given[name] for name, own in _RESPONSE_METADATA.items() if given.get(name)},
        **named,
    )


def _parse_call(call: Any) -> dict[str, Any]:
    """Convert a tool call in OpenAI's or LangChain's format to LangChain's. An invalid one has an "error"."""
    if not isinstance(call, Mapping):
        return {"name": None, "args": str(call), "id": None, "error": "not a tool call"}
    function, call_id = call.get("function") or {}, call.get("id") and plain_text(call["id"])
    name, arguments = function.get("name") or call.get("name"), function.get("arguments", call.get("args"))
    try:
        parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else dict(arguments or {})
    except (TypeError, ValueError) as error:
        return {"name": name, "args": plain_text(arguments), "id": call_id, "error": str(error)}
    parsed = parsed if isinstance(parsed, dict) else {"value": parsed}
    return {"name": plain_text(name), "args": parsed, "id": call_id, "type": "tool_call"}


# Messages in values


def lists_in(value: Any, depth: int = _DEPTH) -> list[Sequence[Any]]:
    """Return the non-empty lists of messages in a value: a state, an update, a `Command`, or a list of these.

    Their elements are LangChain's messages and dicts in OpenAI's format. Only the last one of each was checked.
    """
    kind = type(value)
    if kind in _NO_MESSAGES:
        return []
    if issubclass(kind, BaseMessage) or (kind is dict and "role" in value and is_message(value)):
        return [(value,)]
    parts: Iterable[Any] = ()
    if issubclass(kind, (list, tuple)):
        if len(value) and (issubclass(type(last := value[-1]), BaseMessage) or is_message(last)):
            return [value]  # `len`, because the truth value of a user's list subclass may raise
        parts = value
    elif depth:
        parts = value.values() if kind is dict else _parts(value)
    found: list[Sequence[Any]] = []
    for part in parts if depth else ():
        if type(part) is list and part and issubclass(type(part[-1]), BaseMessage):
            found.append(part)
        elif type(part) not in _NO_MESSAGES:
            found += lists_in(part, depth - 1)
    return found


def _parts(value: Any) -> Iterable[Any]:
    kind: Any = type(value)
    if issubclass(kind, dict):
        return cast("Iterable[Any]", value.values())
    if issubclass(kind, Command):
        return (value.update,)
    if (saved := saved_state(value)) is not None:
        return (saved, value.value)  # the returned value is mostly a part of the saved conversation
    if issubclass(kind, BaseModel):
        return cast("Iterable[Any]", vars(value).values())
    return [getattr(value, field.name, None) for field in fields(kind)] if is_dataclass(kind) else ()


def saved_state(output: Any) -> Any:
    """Return the state that an entry point saves apart from the value that it returns, ``None`` if it saves none."""
    functional = sys.modules.get("langgraph.func")  # importing it here would import LangGraph's engine
    is_final = functional is not None and issubclass(type(output), functional.entrypoint.final)
    return output.save if is_final else None


def texts_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the texts of a run's input or resume value: the user's words."""
    kind = type(value)
    if issubclass(kind, str):
        yield value
    elif issubclass(kind, BaseMessage):
        yield str(value.text)
    elif issubclass(kind, Command):
        yield from texts_in((value.resume, value.update), depth)
    elif depth:
        for part in value if issubclass(kind, (list, tuple)) else _parts(value):
            yield from texts_in(part, depth - 1)


def unseen(
    lists: Iterable[Sequence[Any]], known: Mapping[str, int], *, whole: bool = False
) -> list[tuple[BaseMessage, str | None]]:
    """Return the messages that have an id and are not `known` with the same content, in order.

    Each list is read backwards up to the first known message, so the cost is that of the new messages. A list
    that begins with a removal, and a `whole` state after one, may have new messages before known ones. Such a
    list is read completely, and each message comes with the id of its successor.
    """
    found: list[tuple[BaseMessage, str | None]] = []
    for messages in lists:
        is_whole = whole or isinstance(messages[0], RemoveMessage)
        tail: list[tuple[BaseMessage, str | None]] = []
        following: str | None = None
        for message in reversed(messages):
            if not issubclass(type(message), BaseMessage):
                continue
            if known.get(message.id or "") != content_hash(message):
                tail += [(message, following)] if message.id else ()
            elif not is_whole:
                break
            following = message.id if is_whole else None
        found += reversed(tail)
    return found


def without_ids(lists: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Return the conversations of a state whose latest message has no id.

    A list of dicts in OpenAI's format counts only if it is the state's only conversation. A second list may hold
    examples, for instance, and nothing distinguishes the two.
    """
    found = [messages for messages in lists if id_of(messages[-1]) is None and all(map(is_message, messages))]
    if len(found) != 1 or type(found[0]) is tuple:
        found = [messages for messages in found if isinstance(messages[-1], BaseMessage)]
    return found


def content_hash(message: BaseMessage) -> int:
    content = message.content if isinstance(message.content, str) else repr(message.content)
    return hash((content, len(getattr(message, "tool_calls", ()))))


# Outcomes of tools


def tool_end(
    execution_id: str,
    name: str,
    duration_ms: float | None,
    output: Any = None,
    *,
    error: BaseException | None = None,
) -> ToolEnd:
    """Return the end of an execution, by its output or by the exception that it raised.

    The output is a message, a `Command` that may contain one, or any value. An interrupt of the graph, or a
    cancellation, is no failure.
    """
    end = ToolEnd(execution_id, "ok", duration_ms=duration_ms, name=name)
    if error is not None:
        if isinstance(error, Exception) and not isinstance(error, GraphBubbleUp):
            return end._replace(status="error", error=error_text(error))
        return end._replace(status="interrupted")
    if issubclass(type(output), Command):
        given = {name: getattr(output, name) for name in ("update", "goto", "graph", "resume")}
        command = {"__type__": "Command", **{name: part for name, part in given.items() if not is_nothing(part)}}
        answer = next((m for messages in lists_in(output) for m in messages if isinstance(m, ToolMessage)), None)
        return tool_end(execution_id, name, duration_ms, answer)._replace(result=command)
    if not issubclass(type(output), ToolMessage):
        return end._replace(result=output)
    content, files = extract_files(output.content)
    if output.status == "error":
        end = end._replace(status="error", error=str(output.text))
    return end._replace(result=content, artifact=output.artifact, files=files)


def error_text(error: BaseException) -> str:
    """Return the type and text of an exception. Never raises, whatever the exception's ``__str__`` does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a user's own exception class may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
