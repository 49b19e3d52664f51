"""Edited messages: a checkpoint beside the one that first contained the message, from which the conversation goes on.

The copy has the parent of the original and no pending writes, so the tasks after the message are executed with the
edited text. If the message came with the graph's input, the checkpoint that waits for this input is copied, with the
message edited in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from langchain_core.messages import BaseMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, CheckpointTuple
from langgraph.constants import START

from session_middleware.checkpoint.langchain_messages import id_of, is_from_user
from session_middleware.checkpoint.repair import with_values
from session_middleware.errors import InvalidArgument
from session_middleware.storage.jsonable import stored_id
from session_middleware.storage.types import MessagePoint

if TYPE_CHECKING:
    from session_middleware.checkpoint.saver import SessionSaver
    from session_middleware.storage.run import RunContext

_KEPT = ("parents", "counters_since_delta_snapshot")  # of the original's metadata


def put_edited(
    saver: SessionSaver,
    config: RunnableConfig,
    context: RunContext,
    message: tuple[str, str],
    point: MessagePoint,
    text: str,
) -> str:
    """Put the checkpoint with the edited message, within a transaction. Returns its id. Raises `InvalidArgument`.

    Args:
        message: the id and the text of the message.
        point: where it entered the state.
    """
    original = None if point.checkpoint_id is None else saver.load(_at(config, point.checkpoint_id), context)
    before = None if point.parent_id is None else saver.load(_at(config, point.parent_id), context)
    if original is None:
        refuse(message[0], "a message in the state of a graph; this one is only in the record, or has expired")
    if not point.is_complete or _step(original) - _step(before) > 1:
        refuse(message[0], "a message whose own step is stored; it was pruned, or the run had durability='exit'")
    base, changed, also_new = _edited(original, before, message, text)
    context.has_one_value = base.config["configurable"]["checkpoint_id"] == point.checkpoint_id and START in changed
    return _put_beside(saver, config, context, base, changed, also_new)


def refuse(message_id: str | None, wanted: str) -> NoReturn:
    raise InvalidArgument("message_id", message_id, wanted=wanted)


def _at(config: RunnableConfig, checkpoint_id: str) -> RunnableConfig:
    return {**config, "configurable": config["configurable"] | {"checkpoint_ns": "", "checkpoint_id": checkpoint_id}}


def _step(found: CheckpointTuple | None) -> int:
    return -1 if found is None else int(found.metadata.get("step", -1))


def _put_beside(
    saver: SessionSaver,
    config: RunnableConfig,
    context: RunContext,
    original: CheckpointTuple,
    changed: dict[str, Any],
    also_new: Sequence[BaseMessage],
) -> str:
    stored, parent, step = original.checkpoint, original.parent_config, _step(original)
    while START in changed and parent is not None and (before := saver.load(parent, context)) is not None:
        if START not in before.checkpoint["channel_values"]:
            break
        parent, step = before.parent_config, _step(before)  # it waits for an input that was discarded
    version = saver.get_next_version(max(stored["channel_versions"].values()), None)
    checkpoint, new_versions = with_values(stored, changed, version=version, step=step)
    checkpoint["updated_channels"] = sorted({*(stored.get("updated_channels") or ()), *changed})
    kept = {name: value for name, value in original.metadata.items() if name in _KEPT}
    metadata = cast("CheckpointMetadata", {"source": "fork", **kept, "step": step})
    parent_id = None if parent is None else parent["configurable"]["checkpoint_id"]
    beside = {**config["configurable"], "checkpoint_ns": ""} | ({"checkpoint_id": parent_id} if parent_id else {})
    saver.store({**config, "configurable": beside}, context, checkpoint, metadata, new_versions, also_new=also_new)
    return checkpoint["id"]


# Replacing the text: pure functions


def contains(found: CheckpointTuple, message_id: str) -> bool:
    """Whether a list of the state has a message with this id."""
    lists = (value for value in found.checkpoint["channel_values"].values() if type(value) is list)
    return any(stored_id(str(id_of(one))) == message_id for value in lists for one in value)


def _edited(
    original: CheckpointTuple, before: CheckpointTuple | None, message: tuple[str, str], text: str
) -> tuple[CheckpointTuple, dict[str, Any], Sequence[BaseMessage]]:
    """The checkpoint to put another one beside, its changed channels, and the new messages of its input.

    If the message came with the graph's input, the input is edited, because the graph may choose its first node by it.
    """
    values = original.checkpoint["channel_values"]
    lists = {name: value for name, value in values.items() if type(value) is list and name != START}
    lists = {name: value for name, value in lists.items() if any(id_of(one) == message[0] for one in value)}
    changed = {
        name: [_with_text(one, text) if id_of(one) == message[0] else one for one in value]
        for name, value in lists.items()
    }
    waiting = original if START in values else before
    given = None if waiting is None else waiting.checkpoint["channel_values"].get(START)
    if waiting is None or given is None:
        if not changed:
            refuse(message[0], "a message with an id in a list of the state, or one of the graph's input")
        return original, changed, ()
    if len(changed) == 1 and isinstance(given, Mapping):
        [(name, value)] = changed.items()
        known = {id_of(one) for one in waiting.checkpoint["channel_values"].get(name, ())}
        new = [one for one in value if id_of(one) not in known]
        if name in given and len(new) == _count(given[name]) and all(isinstance(one, BaseMessage) for one in new):
            return waiting, {START: {**given, name: new}}, new
    if changed:
        return original, changed, ()
    edited: list[BaseMessage] = []
    if (value := _edited_input(given, message, text, edited)) is None:
        refuse(message[0], "a message with an id in a list of the state, or one of the graph's input")
    is_whole = waiting is original and isinstance(value, list)  # the state is one value, and has no list of its own
    return waiting, {START: value}, [one for one in value if isinstance(one, BaseMessage)] if is_whole else edited


def _count(given: Any) -> int:
    """The number of messages that an input adds; -1 if it removes some."""
    messages = given if isinstance(given, list) else [given]
    return -1 if any(isinstance(one, RemoveMessage) for one in messages) else len(messages)


def _edited_input(value: Any, message: tuple[str, str], text: str, edited: list[BaseMessage]) -> Any:
    """An input with the message edited, by its id or else by its text; ``None`` if it is not found."""
    message_id, said = message
    if is_from_user(value):
        if id_of(value) != message_id and (id_of(value) is not None or _text_of(value) != said):
            return None
        changed = _with_text(value, text)
        if isinstance(changed, BaseMessage):
            changed.id = message_id
            edited.append(changed)
        return changed
    if isinstance(value, str):
        return text if value == said else None
    if isinstance(value, tuple) and len(value) == 2 and value[0] in ("user", "human"):
        return (value[0], text) if value[1] == said else None
    if isinstance(value, Mapping):
        for name, one in value.items():
            if (found := _edited_input(one, message, text, edited)) is not None:
                return {**value, name: found}
    if isinstance(value, list):
        for place in range(len(value) - 1, -1, -1):
            if (found := _edited_input(value[place], message, text, edited)) is not None:
                return [*value[:place], found, *value[place + 1 :]]
    return None


def _with_text(message: Any, text: str) -> Any:
    if isinstance(message, BaseMessage):
        return message.model_copy(update={"content": with_text(message.content, text)})
    return {**message, "content": with_text(message.get("content"), text)}


def _text_of(message: Any) -> str:
    return message.text if isinstance(message, BaseMessage) else str(message.get("content"))


def with_text(content: Any, text: str) -> Any:
    """A message's content with another text; images and other parts stay, in their order."""
    if not isinstance(content, list):
        return text
    found: list[Any] = []
    is_due = True
    for part in content:
        if isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text"):
            if is_due:
                found.append(text if isinstance(part, str) else {**part, "text": text})
            is_due = False
        else:
            found.append(part)
    return [{"type": "text", "text": text}, *found] if is_due else found
