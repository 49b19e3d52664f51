"""Finding messages in what passes by, and saying of each what the record keeps: pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.types import Command

from session_middleware.checkpoint.elements import id_of, is_message
from session_middleware.errors import InvalidArgument
from session_middleware.model import NewId
from session_middleware.plain import plain
from session_middleware.recording.files import take_out
from session_middleware.recording.prices import Tokens
from session_middleware.storage.seen import OF_MEMORY, FileSeen, MessageSeen, is_recalled

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
_ASKING = ("tool_calls", "function_call")
_DEPTH = 3  # how far below a node's input or output messages are looked for


def describe(
    messages: Iterable[BaseMessage], checkpoint_ns: str = "", *, new_id: NewId, **fields: Any
) -> list[MessageSeen]:
    """The messages as the record keeps them. One without an id gets one; removals are no messages."""
    return [_describe(message, checkpoint_ns, new_id, fields) for message in messages if message.type != "remove"]


def _describe(message: BaseMessage, checkpoint_ns: str, new_id: NewId, fields: dict[str, Any]) -> MessageSeen:
    is_text = isinstance(message.content, str)
    content, files = (None, []) if is_text else take_out(message.content)
    extra, more_files = _extra_of(message)
    metadata = message.response_metadata if isinstance(message.response_metadata, dict) else {}
    tokens, marks = count_tokens(message.usage_metadata if isinstance(message, AIMessage) else None)
    role = role_of(message)
    if role is None:
        role, marks = "user", (*marks, "unknown:role")  # nothing that was said is lost
    if (isinstance(message, ToolMessage) and message.artifact == OF_MEMORY) or is_recalled(message.content):
        marks = (*marks, "memory")
    return MessageSeen(
        message_id=str(message.id or new_id()),
        role=role,
        text=(str(message.content) if is_text else str(message.text)) or _said_otherwise(message),
        content=content,
        name=message.name,
        tool_calls=tool_calls_of(message),
        tool_call_id=str(message.tool_call_id) if isinstance(message, ToolMessage) else None,
        tool_error=isinstance(message, ToolMessage) and message.status == "error",
        extra=extra,
        model=metadata.get("model_name") or metadata.get("model"),
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        checkpoint_ns=checkpoint_ns,
        minted=not message.id,
        marks=marks,
        files=[*files, *more_files],
    )._replace(**fields)


def _extra_of(message: BaseMessage) -> tuple[dict[str, Any] | None, list[FileSeen]]:
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
    texts = (part.get(name) for part in parts if isinstance(part, Mapping) for name in ("refusal", "transcript"))
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


def count_tokens(usage: Any) -> tuple[Tokens, tuple[str, ...]]:
    """The token counts of a message's or a model's usage; what cannot be a count is left out, with a mark."""
    if not isinstance(usage, Mapping):
        return Tokens(), ()
    inside, outside = (usage.get(name) or {} for name in ("input_token_details", "output_token_details"))
    given = (
        *(usage.get("input_tokens"), usage.get("output_tokens")),
        *(inside.get("cache_read"), inside.get("cache_creation"), outside.get("reasoning")),
    )
    counts = [count if isinstance(count, int) and 0 <= count < 2**53 else None for count in given]
    return Tokens(*counts), () if counts == list(given) else ("invalid:tokens",)


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
        return ToolMessage(content, tool_call_id=call_id, status=status, **fields)
    if role == "assistant":
        asked = given.get("tool_calls") or ()
        asked = list(asked) if isinstance(asked, (list, tuple)) else [asked]
        if isinstance(function := given.get("function_call"), Mapping):  # it has no id, and its answer has its name
            asked.append({"id": function.get("name"), "function": function})
        calls, invalid = parse_calls(asked)
        more = {name: given[name] for name in ("refusal", "audio") if given.get(name)}
        return AIMessage(content, tool_calls=calls, invalid_tool_calls=invalid, additional_kwargs=more, **fields)
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
        is_whole = whole or isinstance(messages[0], RemoveMessage)
        tail: list[tuple[BaseMessage, str | None]] = []
        following: str | None = None
        for message in reversed(messages):
            if not isinstance(message, BaseMessage):
                break
            if known.get(message.id or "") != mark_of(message):
                tail.append((message, following))
            elif not is_whole:
                break
            following = message.id if is_whole else None
        found += [(message, following) for message, following in reversed(tail) if message.id is not None]
    return found


def removes(value: Any) -> bool:
    return any(isinstance(messages[0], RemoveMessage) for messages in lists_in(value))


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
        found = [messages for messages in found if isinstance(messages[-1], BaseMessage)]
    return [[to_message(message) for message in messages] for messages in found]


def _is_langchains(value: Any) -> bool:
    return isinstance(value, BaseMessage)


def lists_in(
    value: Any, depth: int = _DEPTH, *, is_one: Callable[[Any], bool] = _is_langchains
) -> Iterator[Sequence[Any]]:
    """The lists of messages in a value: a state, an update, a `Command`, or several of them."""
    if is_one(value):
        yield (value,)
    elif isinstance(value, (list, tuple)):
        if value and is_one(value[-1]):
            yield value
        elif depth:
            for part in value:
                yield from lists_in(part, depth - 1, is_one=is_one)
    elif depth:
        for part in _parts(value):
            yield from lists_in(part, depth - 1, is_one=is_one)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Command):
        return (value.update,)
    if isinstance(value, Mapping):
        return value.values()
    fields = getattr(value, "__dict__", None)  # a state of pydantic or dataclass type
    return fields.values() if isinstance(fields, dict) and not isinstance(value, type) else ()


def mark_of(message: BaseMessage) -> int:
    """What changes when the words of a message do."""
    content = message.content if isinstance(message.content, str) else repr(message.content)
    return hash((content, len(getattr(message, "tool_calls", ()))))


class Outcome(NamedTuple):
    """What came of a tool's execution."""

    status: str
    result: Any
    error: str | None = None
    artifact: Any = None
    files: Sequence[FileSeen] = ()


def outcome_of(output: Any) -> Outcome:
    """Of what a tool gave back: a message, a `Command` that may hold one, or anything else."""
    if isinstance(output, Command):
        answer = next((m for messages in lists_in(output) for m in messages if isinstance(m, ToolMessage)), None)
        fields = {name: part for name in ("update", "goto", "graph", "resume") if (part := getattr(output, name))}
        told = outcome_of(answer) if answer is not None else Outcome("ok", None)
        return told._replace(result={"__type__": "Command", **fields})
    if not isinstance(output, ToolMessage):
        return Outcome("ok", output)
    content, files = take_out(output.content)
    failed = output.status == "error"
    return Outcome("error" if failed else "ok", content, str(output.text) if failed else None, output.artifact, files)


def answer_of(value: Any, message_id: str) -> MessageSeen:
    """What a person answered a graph that had stopped to ask."""
    if isinstance(value, str):
        return MessageSeen(message_id, "user", value)
    content = plain(value)
    return MessageSeen(message_id, "user", json.dumps(content, ensure_ascii=False), content=content)
