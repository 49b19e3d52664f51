"""Checkpoint metadata: the part that is stored, and matching it with a filter. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from session_middleware.models import SessionInfo
from session_middleware.storage.checkpoint_types import Blob

IDENTITY = ("user_id", "group_id", "group_ids", "langgraph_auth_user_id")  # the last is set by LangGraph's server


def own_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """The metadata to store: as other savers store it, but without the user, whom the record can forget."""
    completed: Any = get_checkpoint_metadata(config, metadata)
    for name in IDENTITY:
        completed.pop(name, None)
    return cast("CheckpointMetadata", completed)


def split_filter(filter: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a filter into conditions on the metadata and on the owner, which other savers store there as well."""
    owner = {name: value for name, value in (filter or {}).items() if name in ("user_id", "group_id")}
    return {name: value for name, value in (filter or {}).items() if name not in owner}, owner


def is_of(session: SessionInfo | None, owner: Mapping[str, Any]) -> bool:
    return session is not None and all(getattr(session, name) == value for name, value in owner.items())


def matches(serde: SerializerProtocol, filter: Mapping[str, Any], body: Blob) -> bool:
    """Whether a checkpoint's metadata has all values of a filter, compared as in LangGraph's savers."""
    metadata = serde.loads_typed(body)["metadata"]
    return all(_is_equal(_value_at(metadata, name), wanted) for name, wanted in filter.items())


def _value_at(metadata: Mapping[str, Any], name: str) -> Any:
    """The value with a name, or at a path of names joined by dots; ``None`` if there is none."""
    if name in metadata:
        return metadata[name]
    found: Any = metadata
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_equal(found: Any, wanted: Any) -> bool:
    """A value that JSON has no type for, such as a UUID, is also compared as text."""
    if bool(found == wanted):
        return True
    return not isinstance(wanted, str | int | float | dict | list | None) and str(wanted) == found
