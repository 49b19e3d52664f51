"""State as JSON, in the shapes of LangGraph's own server: values and messages, snapshots, tasks and interrupts.

A graph's state may hold any Python object. Messages and pydantic models become their fields, common types their usual
text, and an object that has no JSON becomes ``null``. Nothing here raises because of a value.
"""

from __future__ import annotations

from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import PurePath
from re import Pattern
from typing import Any

import orjson
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import INTERRUPT
from langgraph.errors import EmptyInputError, GraphBubbleUp, InvalidUpdateError, TaskNotFound
from langgraph.types import Interrupt, PregelTask, Send, StateSnapshot
from starlette.responses import JSONResponse

from session_middleware.storage.jsonable import to_json

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

_SHOWN_ERRORS = (  # their messages are the graph's own; those of other exceptions may name a host, a path or a key
    *(AttributeError, KeyError, RecursionError, RuntimeError, TimeoutError, TypeError, ValueError),
    *(EmptyInputError, GraphBubbleUp, InvalidUpdateError, TaskNotFound),
)

_HIDDEN = "An internal error occurred"
_INTERNAL = ("__", "branch:", "join:", "start:")  # prefixes of the channels that are none of the state's values


def json_bytes(value: Any) -> bytes:
    """Any value as JSON. A lone surrogate becomes the replacement character, a number that JSON has not ``null``."""
    try:
        return orjson.dumps(value, default=_convert, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):  # a lone surrogate, a huge number, a cycle
        return (to_json(value) or "null").encode()


def _convert(value: Any) -> Any:
    """A value that `orjson` does not know, one level of it."""
    if isinstance(value, Send):
        return {"node": value.node, "args": value.arg}
    if not isinstance(value, type):
        for name in ("model_dump", "dict", "_asdict"):  # pydantic's, those of its first version, and named tuples'
            if callable(dump := getattr(value, name, None)):
                return dump()
    if isinstance(value, BaseException):
        return error_json(value)
    if isinstance(value, set | frozenset | deque):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, Pattern):
        return value.pattern
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(bytes(value)).decode()
    is_address = type(value).__module__ in ("ipaddress", "zoneinfo")
    return str(value) if is_address or isinstance(value, PurePath) else None


def error_json(error: BaseException) -> dict[str, str]:
    """An exception, as the ``error`` of a run or of a task's result."""
    message = str(error) if isinstance(error, _SHOWN_ERRORS) else _HIDDEN
    return {"error": type(error).__name__, "message": message}


def recorded_error_json(text: str | None) -> dict[str, str]:
    """`error_json` of the exception that a run's record has as text."""
    name, _, message = (text or "Error").partition(": ")
    return {"error": name, "message": message if name in {kind.__name__ for kind in _SHOWN_ERRORS} else _HIDDEN}


class StateResponse(JSONResponse):
    """A response whose content may hold any value of a state."""

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


# Snapshots


def state_json(state: StateSnapshot) -> dict[str, Any]:
    """A thread's state. The names of the checkpoint's ids are there twice, as older clients read them."""
    own, parent = _configurable(state.config), _configurable(state.parent_config)
    return {
        "values": state.values,
        "next": list(state.next),
        "tasks": [_task_json(task) for task in state.tasks],
        "metadata": state.metadata,
        "created_at": state.created_at,
        "checkpoint": checkpoint_json(state.config),
        "parent_checkpoint": checkpoint_json(state.parent_config),
        "interrupts": [interrupt_json(interrupt) for interrupt in state.interrupts],
        "checkpoint_id": own.get("checkpoint_id"),
        "parent_checkpoint_id": parent.get("checkpoint_id"),
    }


NO_STATE = StateSnapshot({}, (), {"configurable": {}}, None, None, None, (), ())  # of a thread without a checkpoint


def snapshot_of(saved: CheckpointTuple) -> StateSnapshot:
    """A checkpoint as far as it can be read without its graph: the values and interrupts, but not what is next."""
    checkpoint, writes = saved.checkpoint, saved.pending_writes or ()
    asked = tuple(each for _, channel, value in writes if channel == INTERRUPT for each in value)
    values = {name: value for name, value in checkpoint["channel_values"].items() if not name.startswith(_INTERNAL)}
    made = checkpoint["ts"]
    return StateSnapshot(values, (), saved.config, saved.metadata, made, saved.parent_config, (), asked)


def _task_json(task: PregelTask) -> dict[str, Any]:
    nested = task.state
    return {
        "id": task.id,
        "name": task.name,
        "path": task.path,
        "error": task.error,
        "interrupts": [interrupt_json(interrupt) for interrupt in task.interrupts],
        "checkpoint": checkpoint_json(nested, with_id=False) if isinstance(nested, dict) else None,
        "state": state_json(nested) if isinstance(nested, StateSnapshot) else None,
        "result": task.result,
    }


def interrupt_json(interrupt: Interrupt) -> dict[str, Any]:
    schema = getattr(interrupt, "response_schema", None)  # newer releases of LangGraph have it
    return {"id": interrupt.id, "value": interrupt.value} | ({} if schema is None else {"response_schema": schema})


_CHECKPOINT = ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map")


def checkpoint_json(config: RunnableConfig | None, *, with_id: bool = True) -> dict[str, Any] | None:
    """The checkpoint that a config names, which never has the identity that the config has too."""
    found = {name: value for name, value in _configurable(config).items() if name in _CHECKPOINT}
    return None if with_id and not found.get("checkpoint_id") else found


def _configurable(config: RunnableConfig | None) -> Mapping[str, Any]:
    return (config or {}).get("configurable") or {}
