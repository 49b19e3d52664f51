"""Appending messages to the state of a session, as a new checkpoint, which the next run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint

from session_middleware.checkpoint.langchain_messages import id_of
from session_middleware.checkpoint.repair import child_of, is_open
from session_middleware.errors import InvalidArgument
from session_middleware.storage.run import RunContext

if TYPE_CHECKING:
    from session_middleware.checkpoint.saver import SessionSaver

_CHANNEL = "messages"


def append_messages(
    saver: SessionSaver, config: RunnableConfig, context: RunContext, messages: Sequence[BaseMessage]
) -> None:
    """Append messages to the channel ``messages``, without those whose id it has. Without a state, begin one.

    Raises `InvalidArgument` if the state has no such list, or waits for the answers of tools or of a person.
    """
    found = saver.load(config, context)
    if found is None:
        found = CheckpointTuple({"configurable": {"checkpoint_ns": ""}}, empty_checkpoint(), {})
    values = found.checkpoint["channel_values"]
    said = values.get(_CHANNEL, [] if not values else None)
    if not isinstance(said, list) or found.metadata.get("counters_since_delta_snapshot"):
        raise _refusal("the primary's state has no list of messages")
    if is_open(found):
        raise _refusal("the primary waits for the answer of a tool or of a person")
    known = {id_of(message) for message in said}
    new: list[Any] = [message for message in messages if message.id is None or message.id not in known]
    if not new:
        return
    if said and isinstance(said[-1], dict):
        new = convert_to_openai_messages(new, include_id=True)
    versions = found.checkpoint["channel_versions"]
    version = saver.get_next_version(max(versions.values(), default=None), None)
    checkpoint, metadata, new_versions = child_of(found, {_CHANNEL: [*said, *new]}, version=version)
    at: RunnableConfig = {**config, "configurable": config["configurable"] | found.config["configurable"]}
    saver.store(at, context, checkpoint, metadata, new_versions)


def _refusal(reason: str) -> InvalidArgument:
    return InvalidArgument("state", "append_messages", wanted=f"'keep_primary', because {reason}")
