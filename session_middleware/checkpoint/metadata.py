"""A checkpoint's metadata: what is kept of it, and which checkpoints a filter finds by it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.models import SessionInfo
from session_middleware.storage.checkpoint_types import Blob

IDENTITY = ("user_id", "group_id", "group_ids", "langgraph_auth_user_id")  # the last: of LangGraph's own server


def own_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """As every saver completes and cleans it, but for who ran: that is in the record, where a user can be forgotten."""
    completed: Any = get_checkpoint_metadata(config, metadata)
    for name in IDENTITY:
        completed.pop(name, None)
    return cast("CheckpointMetadata", completed)


def split_filter(filter: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a filter wants of the metadata, and of whose session it is: other savers have that in the metadata too."""
    owner = {name: value for name, value in (filter or {}).items() if name in ("user_id", "group_id")}
    return {name: value for name, value in (filter or {}).items() if name not in owner}, owner


def is_of(session: SessionInfo | None, owner: Mapping[str, Any]) -> bool:
    return session is not None and all(getattr(session, name) == value for name, value in owner.items())


def matches(serde: SerializerProtocol, filter: Mapping[str, Any], body: Blob) -> bool:
    """Whether a stored checkpoint's metadata has all values of a filter, as LangGraph's savers compare them."""
    metadata = serde.loads_typed(body)["metadata"]
    return all(_is_value(_reached(metadata, name), wanted) for name, wanted in filter.items())


def _reached(metadata: Mapping[str, Any], name: str) -> Any:
    """The value of a name, or of a path of names with dots in between; ``None`` if there is none."""
    if name in metadata:
        return metadata[name]
    found: Any = metadata
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_value(found: Any, wanted: Any) -> bool:
    """What is no value of JSON, such as a UUID, is compared as text too."""
    if bool(found == wanted):
        return True
    return not isinstance(wanted, str | int | float | dict | list | None) and str(wanted) == found
