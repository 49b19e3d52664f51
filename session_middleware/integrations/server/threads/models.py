"""What clients send to the routes of threads, and what these answer, as LangGraph's clients have it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from langgraph.types import StateUpdate
from pydantic import BaseModel, Field, StrictBool, field_validator

from session_middleware.integrations.server.request_types import Document, Id, Limit, NewId, Offset, Text, Values
from session_middleware.integrations.server.runs.request import RunCommand
from session_middleware.integrations.server.threads.fields import ThreadStatus

Minutes = Annotated[float, Field(ge=1 / 60, le=36_525 * 24 * 60)]  # a second to 100 years

Alias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Path = Annotated[  # such as "values.messages[-1].content"
    str, Field(pattern=r"^(values|metadata|config|interrupts)(\.[^.\[\]]+|\[-?[0-9]{1,9}\])*$")
]

ThreadField = Literal[
    "thread_id", "created_at", "updated_at", "state_updated_at", "metadata", "config", "status", "values", "interrupts",
]  # fmt: skip


# What clients send


class TimeToLive(BaseModel):
    """How long a thread lives without activity, and what a sweep then does with it."""

    ttl: Minutes  # without activity
    strategy: Literal["delete", "keep_latest"] = "delete"  # what the sweep after that does


class HasTimeToLive(BaseModel):
    """A body with a time to live; a number alone is minutes."""

    ttl: TimeToLive | Minutes | None = None

    @property
    def time_options(self) -> dict[str, Any]:
        """The options of a session for it."""
        if self.ttl is None:
            return {}
        given = self.ttl if isinstance(self.ttl, TimeToLive) else TimeToLive(ttl=self.ttl)
        return {"idle_timeout": given.ttl * 60, "on_expire": "delete" if given.strategy == "delete" else "prune"}


class GivenUpdate(BaseModel):
    """An update of the state in the name of a node."""

    values: Values | None = None
    command: RunCommand | None = None
    as_node: Text

    def update(self) -> StateUpdate:
        """It as LangGraph's `StateUpdate`."""
        values: Any = self.values if self.command is None else self.command.command()
        return StateUpdate(values, self.as_node)


class Superstep(BaseModel):
    """The updates that make one checkpoint."""

    updates: list[GivenUpdate]


class ThreadCreate(HasTimeToLive):
    """A new thread; `supersteps` make its first checkpoints."""

    thread_id: NewId | None = None
    metadata: Document | None = None
    if_exists: Literal["raise", "do_nothing"] | None = None
    supersteps: list[Superstep] | None = None


class ThreadPatch(HasTimeToLive):
    """A change of a thread: each key of `metadata` replaces that key, and null removes it."""

    metadata: Document | None = None


class ThreadFilter(BaseModel):
    """The threads that have all of this metadata, and whose state has all of these values."""

    metadata: Document | None = None
    values: Document | None = None
    status: ThreadStatus | None = None


class ThreadSearch(ThreadFilter):
    """The threads to find, their order and page, and the fields to respond with."""

    ids: Annotated[list[Id], Field(max_length=1000)] | None = None
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["thread_id", "status", "created_at", "updated_at", "state_updated_at"] | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[ThreadField] | None = None
    extract: Annotated[dict[Alias, Path], Field(max_length=10)] | None = None

    @field_validator("sort_order", mode="before")
    @classmethod
    def _lower(cls, given: Any) -> Any:
        return given.lower() if isinstance(given, str) else given


class ThreadPrune(BaseModel):
    """Threads to delete, or to reduce to their latest checkpoints."""

    thread_ids: Annotated[list[Id], Field(max_length=1000)]
    strategy: Literal["delete", "keep_latest"] = "delete"


class CheckpointNamed(BaseModel):
    """A checkpoint as a thread's state names it; other keys are not read."""

    thread_id: Text | None = None
    checkpoint_ns: Text | None = None
    checkpoint_id: Text | None = None
    checkpoint_map: Document | None = None


class StateAtCheckpoint(BaseModel):
    """The checkpoint whose state is read."""

    checkpoint: CheckpointNamed
    subgraphs: StrictBool = False
    select: list[str] | None = None


class StateChange(BaseModel):
    """An update of the state in the name of a node, from a checkpoint or the latest one."""

    values: Values | None = None
    as_node: Text | None = None
    checkpoint: CheckpointNamed | None = None
    checkpoint_id: Text | None = None


class ConfigNamed(BaseModel):
    """A checkpoint as the config of a graph names it, which the JavaScript client sends."""

    configurable: CheckpointNamed


class HistorySearch(BaseModel):
    """The checkpoints to find, the latest first."""

    limit: Limit = 10
    before: Text | ConfigNamed | CheckpointNamed | None = None
    metadata: Document | None = None
    checkpoint: CheckpointNamed | None = None
    select: list[str] | None = None


# What they get


class Interrupt(BaseModel):
    """A question that the graph asks, and the schema of its answer."""

    id: str
    value: Any = None
    response_schema: dict[str, Any] | None = None


class ThreadTtl(BaseModel):
    """When a thread expires, and what a sweep then does with it."""

    strategy: Literal["delete", "keep_latest"]
    ttl_minutes: float
    expires_at: datetime | None


class Thread(BaseModel):
    """A session as a thread of the API."""

    thread_id: str
    created_at: datetime
    updated_at: datetime
    state_updated_at: datetime
    metadata: dict[str, Any]
    config: dict[str, Any]
    status: ThreadStatus
    values: Any
    interrupts: dict[str, list[Interrupt]]
    error: dict[str, str] | None


class ThreadWithTtl(Thread):
    """A thread with its own time to live, if it has one."""

    ttl: ThreadTtl | None = None


class ThreadPart(BaseModel):
    """A thread, of which only the selected fields are there."""

    thread_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    state_updated_at: datetime | None = None
    metadata: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    status: ThreadStatus | None = None
    values: Any = None
    interrupts: dict[str, list[Interrupt]] | None = None
    extracted: dict[str, Any] | None = None


class Checkpoint(BaseModel):
    """A checkpoint by its ids."""

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    checkpoint_map: dict[str, Any] | None = None


class ThreadTask(BaseModel):
    """A step that the graph executes next, or has executed, at a checkpoint."""

    id: str
    name: str
    path: list[Any]
    error: Any
    interrupts: list[Interrupt]
    checkpoint: Checkpoint | None
    state: ThreadState | None
    result: Any


class ThreadState(BaseModel):
    """The state of a thread; with `select` only some fields."""

    values: Any = None
    next: list[str] = []
    tasks: list[ThreadTask] = []
    metadata: dict[str, Any] | None = None
    created_at: str | None = None
    checkpoint: Checkpoint | None = None
    parent_checkpoint: Checkpoint | None = None
    interrupts: list[Interrupt] = []
    checkpoint_id: str | None = None
    parent_checkpoint_id: str | None = None


class Pruned(BaseModel):
    """The number of threads that were pruned."""

    pruned_count: int


class StateChanged(BaseModel):
    """The checkpoint that an update has made, in the three forms that clients read."""

    checkpoint: Checkpoint
    configurable: Checkpoint
    checkpoint_id: str
