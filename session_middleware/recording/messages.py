"""Finding messages in what passes by, and saying of each what the record keeps: pure functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.types import Command
from pydantic import BaseModel

from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.errors import InvalidArgument
from session_middleware.models import NewId
from session_middleware.recording.files import take_out
from session_middleware.recording.usage import call_told_by, model_in, usage_of
from session_middleware.storage.jsonable import is_a, is_nothing, plain
from session_middleware.storage.record_entries import RESUME, Attachment, MessageEntry, is_of_memory, is_recalled

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
_OF_CALL = {"usage": "token_usage", "usage_metadata": "token_usage", "model": "model_name"}  # beside what was said
_ASKING = ("tool_calls", "function_call")
_DEPTH = 3  # how far below a node's input or output messages are looked for


def describe(
    messages: Iterable[BaseMessage], checkpoint_ns: str = "", *, new_id: NewId, **fields: Any
) -> list[MessageEntry]:
    """The messages as the record keeps them. One without an id gets one; removals are no messages."""
    return [_describe(message, checkpoint_ns, new_id, fields) for message in messages if message.type != "remove"]


def _describe(message: BaseMessage, checkpoint_ns: str, new_id: NewId, fields: dict[str, Any]) -> MessageEntry:
    is_text = isinstance(message.content, str)
    content, files = (None, []) if is_text else take_out(message.content)
    extra, more_files = _extra_of(message)
    tokens, marks = usage_of(message)
    message_id = str(message.id or new_id())
    role = role_of(message)
    if role == "user" and message.additional_kwargs.get("lc_source") == "summarization":
        role, extra = "system", {**(extra or {}), "type": message.type}  # as LangChain's middleware marks it
    if role is None:
        role, marks = "user", (*marks, "unknown:role")  # nothing that was said is lost
    artifact = message.artifact if isinstance(message, ToolMessage) else None
    if (type(artifact) is dict and is_of_memory(artifact)) or is_recalled(message.content):
        marks = (*marks, "memory")
    return MessageEntry(
        message_id=message_id,
        role=role,
        text=(str(message.content) if is_text else str(message.text)) or _said_otherwise(message),
        content=content,
        name=message.name,
        tool_calls=tool_calls_of(message),
        tool_call_id=str(message.tool_call_id) if isinstance(message, ToolMessage) else None,
        tool_error=isinstance(message, ToolMessage) and message.status == "error",
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
        call=call_told_by(message, tokens, message_id, checkpoint_ns),
    )._replace(**fields)


def _extra_of(message: BaseMessage) -> tuple[dict[str, Any] | None, list[Attachment]]:
    """The fields of a message that say something beside what the record has columns for, and the files in them."""
    found = {name: fields for name in _EXTRA if (fields := getattr(message, name, None))}
    if isinstance(raw := found.get("additional_kwargs"), dict):  # what is asked for in it is told by `tool_calls_of`
        found["additional_kwargs"] = {name: part for name, part in raw.items() if name not in _ASKING}
    if getattr(message, "status", None) == "error":
        found["status"] = "error"
    (extra,), files = take_out([{name: fields for name, fields in found.items() if fields}])
    return extra or None, files


def _said_otherwise(message: BaseMessage) -> str:
    """What a message without text says: that the model refuses, or what it said aloud."""
    parts = [message.additional_kwargs, message.additional_kwargs.get("audio")]
    parts += message.content if isinstance(message.content, list) else ()
    texts = (part.get(name) for part in parts if is_a(part, dict) for name in ("refusal", "transcript"))
    return "\n".join(text for text in texts if isinstance(text, str))


def role_of(message: BaseMessage) -> str | None:
    """The record's role of a message; ``None``: nobody knows it."""
    role = getattr(message, "role", message.type) if message.type == "chat" else message.type
    return _ROLES.get(role.removesuffix("MessageChunk").lower())


def tool_calls_of(message: BaseMessage) -> tuple[dict[str, Any], ...]:
    """What a message asks for; what a model asked for and nobody could parse as well."""
    if not isinstance(message, AIMessage):
        return ()
    asked = [dict(call) for call in message.tool_calls]
    asked += [{**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls]
    return tuple(asked)


def to_message(given: BaseMessage | Mapping[str, Any]) -> BaseMessage:
    """A message of LangChain's, from one or from a dict in OpenAI's format.

    Raises `InvalidArgument` for anything else, and for a role that is not known in any case of its letters.
    """
    if isinstance(given, BaseMessage):
        return given
    if not isinstance(given, Mapping):
        raise InvalidArgument("message", given, wanted="a message of LangChain's, or a dict with a role and a content")
    said_by = given.get("role") or given.get("type") or "user"
    role = _ROLES.get(str(said_by).lower())
    if role is None:
        raise InvalidArgument("role", said_by, wanted=f"one of: {', '.join(map(repr, _ROLES))}")
    fields = {name: str(given[name]) for name in ("id", "name") if given.get(name) is not None}
    content: Any = given.get("content")
    is_parts = isinstance(content, list) and all(isinstance(part, (str, dict)) for part in content)
    content = "" if content is None else content if is_parts else str(content)
    if role == "tool":
        call_id = str(given.get("tool_call_id") or given.get("name") or "")
        status: Any = "error" if given.get("status") == "error" else "success"
        return ToolMessage(content, tool_call_id=call_id, status=status, artifact=given.get("artifact"), **fields)
    if role == "assistant":
        asked = given.get("tool_calls")
        asked = list(asked) if isinstance(asked, (list, tuple)) else [] if asked is None else [asked]
        if isinstance(function := given.get("function_call"), Mapping):  # it has no id, and its answer has its name
            asked.append({"id": function.get("name"), "function": function})
        calls, invalid = parse_calls(asked)
        more = {name: given[name] for name in ("refusal", "audio") if given.get(name)}
        told = {own: given[name] for name, own in _OF_CALL.items() if given.get(name)}
        return AIMessage(
            content,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            additional_kwargs=more,
            response_metadata=told,
            **fields,
        )
    return (SystemMessage if role == "system" else HumanMessage)(content, **fields)


def parse_calls(given: Iterable[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Tool calls in OpenAI's format or LangChain's, as LangChain has them: those it can parse, and the others."""
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


def unseen(value: Any, known: Mapping[str, int], *, whole: bool = False) -> list[tuple[BaseMessage, str | None]]:
    """The messages in a node's input or output that have an id and are not `known` with the same words, in order.

    A list is read from its end and only until a known one, so a long history costs what is new in it.
    One that removes messages may put others in front of known ones: it is read `whole`, as a state is that
    comes of it, and with each message is the id of the one that follows.
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
    return any(is_a(messages[0], RemoveMessage) for messages in lists_in(value))


def without_ids(value: Any) -> list[Sequence[BaseMessage]]:
    """The conversations in a node's input whose latest message has no id: only their order tells what is new.

    Dicts in OpenAI's format are messages there as well, if they are a list, and the only one: else which of
    them is what was said, and which are examples, say, nobody knows.
    """
    found = [
        messages
        for messages in lists_in(value, is_one=is_message)
        if id_of(messages[-1]) is None and all(map(is_message, messages))
    ]
    if len(found) != 1 or type(found[0]) is tuple:
        found = [messages for messages in found if is_a(messages[-1], BaseMessage)]
    return [[to_message(message) for message in messages] for messages in found]


def _is_langchains(value: Any) -> bool:
    return is_a(value, BaseMessage)


def lists_in(
    value: Any, depth: int = _DEPTH, *, is_one: Callable[[Any], bool] = _is_langchains
) -> Iterator[Sequence[Any]]:
    """The lists of messages in a value: a state, an update, a `Command`, or several of them."""
    if is_one(value):
        yield (value,)
    elif is_a(value, (list, tuple)):
        if len(value) and is_one(value[-1]):  # a list of the user's may refuse to say whether it is true
            yield value
        elif depth:
            for part in value:
                yield from lists_in(part, depth - 1, is_one=is_one)
    elif depth:
        for part in _parts(value):
            yield from lists_in(part, depth - 1, is_one=is_one)


def _parts(value: Any) -> Iterable[Any]:
    if is_a(value, Command):
        return (value.update,)
    functional = sys.modules.get("langgraph.func")  # not imported here: it brings all of LangGraph's engine with it
    if functional is not None and is_a(value, functional.entrypoint.final):
        return (value.save, value.value)  # what is given back is mostly a part of the conversation that is saved
    if is_a(value, dict):
        return value.values()
    if is_a(value, BaseModel):
        return value.__dict__.values()
    if is_dataclass(type(value)):
        return [getattr(value, field.name, None) for field in fields(type(value))]
    return ()


def content_hash(message: BaseMessage) -> int:
    """What changes when the words of a message do."""
    content = message.content if isinstance(message.content, str) else repr(message.content)
    return hash((content, len(getattr(message, "tool_calls", ()))))


class Outcome(NamedTuple):
    """What came of a tool's execution."""

    status: str
    result: Any
    error: str | None = None
    artifact: Any = None
    files: Sequence[Attachment] = ()


def outcome_of(output: Any) -> Outcome:
    """Of what a tool gave back: a message, a `Command` that may hold one, or anything else."""
    if is_a(output, Command):
        answer = next((m for messages in lists_in(output) for m in messages if is_a(m, ToolMessage)), None)
        given = {name: getattr(output, name) for name in ("update", "goto", "graph", "resume")}
        said = {name: part for name, part in given.items() if not is_nothing(part)}
        told = outcome_of(answer) if answer is not None else Outcome("ok", None)
        return told._replace(result={"__type__": "Command", **said})
    if not is_a(output, ToolMessage):
        return Outcome("ok", output)
    content, files = take_out(output.content)
    failed = output.status == "error"
    return Outcome("error" if failed else "ok", content, str(output.text) if failed else None, output.artifact, files)


def answer_of(value: Any, message_id: str) -> MessageEntry:
    """What a person answered a graph that had stopped to ask."""
    if isinstance(value, str):
        return MessageEntry(message_id, "user", value, marks=(RESUME,))
    content = plain(value)
    return MessageEntry(message_id, "user", json.dumps(content, ensure_ascii=False), content=content, marks=(RESUME,))


def by_whom(message: MessageEntry, users_words: frozenset[str] | None, agents: Container[str]) -> MessageEntry:
    """Whether a message in its user's name may be an agent's: one inside a subgraph, or that has the name of a node.

    What a run was called with is its user's, and so is everything where that is not known.
    """
    may_be_told = message.told or (message.role == "user" and message.name in agents)
    return message._replace(told=may_be_told and users_words is not None and message.text not in users_words)


def texts_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The texts that a run was given, as its input or as an answer: its user's words, wherever they are repeated."""
    if is_a(value, str):
        yield value
    elif is_a(value, BaseMessage):
        yield str(value.text)
    elif is_a(value, Command):
        yield from texts_in((value.resume, value.update), depth)
    elif depth:
        for part in value if is_a(value, (list, tuple)) else _parts(value):
            yield from texts_in(part, depth - 1)
