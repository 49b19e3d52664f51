"""Messages found in states, inputs and outputs, and converted to record entries. Pure functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command
from pydantic import BaseModel

from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.errors import InvalidArgument
from session_middleware.models import NewId
from session_middleware.recording.files import extract_files
from session_middleware.recording.usage import model_in, reported_call, usage_of
from session_middleware.storage.jsonable import is_a, is_nothing, plain
from session_middleware.storage.record_entries import (
    RESUME,
    Attachment,
    MessageEntry,
    ToolEnd,
    is_of_memory,
    is_recalled,
)
from session_middleware.storage.validation import check_kind

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
_EXTRA = ("additional_kwargs", "response_metadata", "usage_metadata")
_RESPONSE_METADATA = {"usage": "token_usage", "usage_metadata": "token_usage", "model": "model_name"}
_REQUESTS = ("tool_calls", "function_call")
_DEPTH = 3  # levels below a node's input or output that are searched for messages


# LangChain's messages as entries


def describe(
    messages: Iterable[BaseMessage], checkpoint_ns: str = "", *, new_id: NewId, **fields: Any
) -> list[MessageEntry]:
    """Convert messages to entries. A message without an id gets a new one; removals are skipped."""
    return [_describe(message, checkpoint_ns, new_id, fields) for message in messages if message.type != "remove"]


def _describe(message: BaseMessage, checkpoint_ns: str, new_id: NewId, fields: dict[str, Any]) -> MessageEntry:
    is_text = isinstance(message.content, str)
    content, files = (None, []) if is_text else extract_files(message.content)
    extra, more_files = _extra_of(message)
    tokens, marks = usage_of(message)
    message_id = str(message.id or new_id())
    role = role_of(message)
    if role == "user" and message.additional_kwargs.get("lc_source") == "summarization":
        role, extra = "system", {**(extra or {}), "type": message.type}  # LangChain's middleware marks summaries so
    if role is None:
        role, marks = "user", (*marks, "unknown:role")  # the message is recorded all the same
    answer = message if isinstance(message, ToolMessage) else None
    artifact = None if answer is None else answer.artifact
    if (type(artifact) is dict and is_of_memory(artifact)) or is_recalled(message.content):
        marks = (*marks, "memory")
    return MessageEntry(
        message_id=message_id,
        role=role,
        text=(str(message.content) if is_text else str(message.text)) or _alternative_text(message),
        content=content,
        name=message.name,
        tool_calls=tool_calls_of(message),
        tool_call_id=None if answer is None else str(answer.tool_call_id),
        tool_error=answer is not None and answer.status == "error",
        artifact=artifact,
        extra=extra,
        model=model_in(message.response_metadata),
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        checkpoint_ns=checkpoint_ns,
        told=bool(checkpoint_ns) and role == "user",
        minted=not message.id,
        marks=marks,
        files=[*files, *more_files],
        call=reported_call(message, tokens, message_id, checkpoint_ns),
    )._replace(**fields)


def _extra_of(message: BaseMessage) -> tuple[dict[str, Any] | None, list[Attachment]]:
    """Return the fields of a message that have no column of their own, and the files in them."""
    found = {name: fields for name in _EXTRA if (fields := getattr(message, name, None))}
    if isinstance(raw := found.get("additional_kwargs"), dict):  # `tool_calls_of` returns the requests in it
        found["additional_kwargs"] = {name: part for name, part in raw.items() if name not in _REQUESTS}
    if getattr(message, "status", None) == "error":
        found["status"] = "error"
    (extra,), files = extract_files([{name: fields for name, fields in found.items() if fields}])
    return extra or None, files


def _alternative_text(message: BaseMessage) -> str:
    """Return the refusals and audio transcripts of a message without text."""
    parts = [message.additional_kwargs, message.additional_kwargs.get("audio")]
    parts += message.content if isinstance(message.content, list) else ()
    texts = (part.get(name) for part in parts if is_a(part, dict) for name in ("refusal", "transcript"))
    return "\n".join(text for text in texts if isinstance(text, str))


def role_of(message: BaseMessage) -> str | None:
    """Return the record's role of a message, ``None`` if it is unknown."""
    role = getattr(message, "role", message.type) if message.type == "chat" else message.type
    return _ROLES.get(role.removesuffix("MessageChunk").lower())


def tool_calls_of(message: BaseMessage) -> tuple[dict[str, Any], ...]:
    """Return the tool calls that a message requests, including those that LangChain could not parse."""
    if not isinstance(message, AIMessage):
        return ()
    invalid = [{**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls]
    return *(dict(call) for call in message.tool_calls), *invalid


def resume_answer(value: Any, message_id: str) -> MessageEntry:
    """Return the answer with which a person resumed an interrupted graph."""
    if isinstance(value, str):
        return MessageEntry(message_id, "user", value, marks=(RESUME,))
    content = plain(value)
    return MessageEntry(message_id, "user", json.dumps(content, ensure_ascii=False), content=content, marks=(RESUME,))


def with_author(message: MessageEntry, users_words: frozenset[str] | None, agents: Container[str]) -> MessageEntry:
    """Set `told` on a user message that an agent may have made: one in a subgraph, or one named after a node.

    The texts of a run's input are the user's. If they are unknown, every user message is.
    """
    may_be_told = message.told or (message.role == "user" and message.name in agents)
    return message._replace(told=may_be_told and users_words is not None and message.text not in users_words)


# Messages in OpenAI's format


def to_message(given: BaseMessage | Mapping[str, Any]) -> BaseMessage:
    """Return a LangChain message, converting a dict in OpenAI's format.

    Unlike LangChain's `convert_to_messages`, it accepts tool calls that cannot be parsed, and content of any type.
    Raises `InvalidArgument` for any other type and for an unknown role.
    """
    if isinstance(given, BaseMessage):
        return given
    if not isinstance(given, Mapping):
        raise InvalidArgument("message", given, wanted="a message of LangChain's, or a dict with a role and a content")
    given_role = given.get("role") or given.get("type") or "user"
    role = _ROLES.get(str(given_role).lower())
    if role is None:
        raise InvalidArgument("role", given_role, wanted=f"one of: {', '.join(map(repr, _ROLES))}")
    fields = {name: str(given[name]) for name in ("id", "name") if given.get(name) is not None}
    content: Any = given.get("content")
    is_parts = isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content)
    content = "" if content is None else content if is_parts else str(content)
    if role == "tool":
        call_id = str(given.get("tool_call_id") or given.get("name") or "")
        status: Any = "error" if given.get("status") == "error" else "success"
        return ToolMessage(content, tool_call_id=call_id, status=status, artifact=given.get("artifact"), **fields)
    if role == "assistant":
        requested = given.get("tool_calls")
        requested = (
            list(requested) if isinstance(requested, (list, tuple)) else [] if requested is None else [requested]
        )
        if isinstance(function := given.get("function_call"), Mapping):  # it has no id; its answer has its name
            requested.append({"id": function.get("name"), "function": function})
        calls, invalid = _parse_calls(requested)
        return AIMessage(
            content,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            additional_kwargs={name: given[name] for name in ("refusal", "audio") if given.get(name)},
            response_metadata={own: given[name] for name, own in _RESPONSE_METADATA.items() if given.get(name)},
            **fields,
        )
    return (SystemMessage if role == "system" else HumanMessage)(content, **fields)


def check_message(given: Any) -> None:
    """Raise `InvalidArgument` for a dict without a role, or without a content and tool calls, and for an id of no text.

    A misspelt key would otherwise give an empty message, or one of the user.
    """
    if not isinstance(given, Mapping):
        return
    if not any(given.get(name) for name in ("role", "type")):
        raise InvalidArgument("message", given, wanted="a dict with a 'role' and a 'content'")
    if not any(name in given for name in ("content", *_REQUESTS, "refusal", "audio")):
        raise InvalidArgument("message", given, wanted="a dict with a 'content', or with an assistant's 'tool_calls'")
    for name in ("id", "name", "tool_call_id"):
        check_kind(name, given.get(name), str | int | None, "a text")


def _parse_calls(given: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Convert tool calls in OpenAI's or LangChain's format. Returns LangChain's valid and invalid tool calls."""
    calls: list[Any] = []
    invalid: list[Any] = []
    for call in given:
        if not isinstance(call, Mapping):
            invalid.append({"name": None, "args": str(call), "id": None, "error": "not a tool call"})
            continue
        function, call_id = call.get("function") or {}, call.get("id") and str(call["id"])
        name, arguments = function.get("name") or call.get("name"), function.get("arguments", call.get("args"))
        try:
            parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else dict(arguments or {})
        except (TypeError, ValueError) as error:
            invalid.append({"name": name, "args": str(arguments), "id": call_id, "error": str(error)})
            continue
        if not isinstance(parsed, dict):
            parsed = {"value": parsed}
        calls.append({"name": str(name), "args": parsed, "id": call_id, "type": "tool_call"})
    return calls, invalid


# Messages in values


def unseen(value: Any, known: Mapping[str, int], *, whole: bool = False) -> list[tuple[BaseMessage, str | None]]:
    """Return the messages of a value that have an id and are not `known` with the same content, in order.

    Each list is read backwards up to the first known message, so the cost is that of the new messages. A list
    that begins with a removal, and a `whole` state after one, may have new messages before known ones. Such a
    list is read completely, and each message comes with the id of its successor.
    """
    found: list[tuple[BaseMessage, str | None]] = []
    for messages in lists_in(value):
        is_whole = whole or is_a(messages[0], RemoveMessage)
        tail: list[tuple[BaseMessage, str | None]] = []
        following: str | None = None
        for message in reversed(messages):
            if not is_a(message, BaseMessage):
                break
            if known.get(message.id or "") != content_hash(message):
                tail.append((message, following))
            elif not is_whole:
                break
            following = message.id if is_whole else None
        found += [(message, following) for message, following in reversed(tail) if message.id is not None]
    return found


def removes(value: Any) -> bool:
    """True if an update removes messages."""
    return any(is_a(messages[0], RemoveMessage) for messages in lists_in(value))


def without_ids(value: Any) -> list[Sequence[BaseMessage]]:
    """Return the conversations of a state whose latest message has no id.

    A list of dicts in OpenAI's format counts only if it is the state's only conversation. A second list may hold
    examples, for instance, and nothing distinguishes the two.
    """
    found = [
        messages
        for messages in lists_in(value, is_one=is_message)
        if id_of(messages[-1]) is None and all(map(is_message, messages))
    ]
    if len(found) != 1 or type(found[0]) is tuple:
        found = [messages for messages in found if is_a(messages[-1], BaseMessage)]
    return [[to_message(message) for message in messages] for messages in found]


def _is_langchain_message(value: Any) -> bool:
    return is_a(value, BaseMessage)


def lists_in(
    value: Any, depth: int = _DEPTH, *, is_one: Callable[[Any], bool] = _is_langchain_message
) -> Iterator[Sequence[Any]]:
    """Yield the non-empty message lists in a value: a state, an update, a `Command`, or a list of these."""
    if is_one(value):
        yield (value,)
    elif is_a(value, (list, tuple)):
        if len(value) and is_one(value[-1]):  # the truth value of a user's list subclass may raise
            yield value
        elif depth:
            for part in value:
                yield from lists_in(part, depth - 1, is_one=is_one)
    elif depth:
        for part in _parts(value):
            yield from lists_in(part, depth - 1, is_one=is_one)


def texts_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the texts of a run's input or resume value: the user's words."""
    if is_a(value, str):
        yield value
    elif is_a(value, BaseMessage):
        yield str(value.text)
    elif is_a(value, Command):
        yield from texts_in((value.resume, value.update), depth)
    elif depth:
        for part in value if is_a(value, (list, tuple)) else _parts(value):
            yield from texts_in(part, depth - 1)


def _parts(value: Any) -> Iterable[Any]:
    if is_a(value, Command):
        return (value.update,)
    functional = sys.modules.get("langgraph.func")  # importing it here would import LangGraph's engine
    if functional is not None and is_a(value, functional.entrypoint.final):
        return (value.save, value.value)  # the returned value is mostly a part of the saved conversation
    if is_a(value, dict):
        return value.values()
    if is_a(value, BaseModel):
        return value.__dict__.values()
    if is_dataclass(type(value)):
        return [getattr(value, field.name, None) for field in fields(type(value))]
    return ()


def content_hash(message: BaseMessage) -> int:
    content = message.content if isinstance(message.content, str) else repr(message.content)
    return hash((content, len(getattr(message, "tool_calls", ()))))


# Outcomes of tools


class Outcome(NamedTuple):
    """The result of a tool's execution."""

    status: str
    result: Any
    error: str | None = None
    artifact: Any = None
    files: Sequence[Attachment] = ()

    def tool_end(self, execution_id: str, name: str, duration_ms: float | None) -> ToolEnd:
        return ToolEnd(execution_id, duration_ms=duration_ms, name=name, **self._asdict())


def outcome_of(output: Any) -> Outcome:
    """Return the outcome for a tool's return value: a message, a `Command` that may contain one, or any value."""
    if is_a(output, Command):
        answer = next((m for messages in lists_in(output) for m in messages if is_a(m, ToolMessage)), None)
        given = {name: getattr(output, name) for name in ("update", "goto", "graph", "resume")}
        command = {"__type__": "Command", **{name: part for name, part in given.items() if not is_nothing(part)}}
        return (Outcome("ok", None) if answer is None else outcome_of(answer))._replace(result=command)
    if not is_a(output, ToolMessage):
        return Outcome("ok", output)
    content, files = extract_files(output.content)
    failed = output.status == "error"
    return Outcome("error" if failed else "ok", content, str(output.text) if failed else None, output.artifact, files)


def outcome_of_error(error: BaseException) -> Outcome:
    """Return the outcome for an exception. An interrupt of the graph, or a cancellation, is no failure."""
    if isinstance(error, Exception) and not isinstance(error, GraphBubbleUp):
        return Outcome("error", None, error_text(error))
    return Outcome("interrupted", None)


def error_text(error: BaseException) -> str:
    """Return the type and text of an exception. Never raises, whatever the exception's ``__str__`` does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a user's own exception class may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
