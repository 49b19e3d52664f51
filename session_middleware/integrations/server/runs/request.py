"""What a client asks of a run: the body of a request in LangGraph's API, and the graph's arguments that it means.

A client decides about the graph's own options only. Whose run it is, in which thread, and whether it waits for
another one, is decided by the server; keys with these names in a client's ``config`` are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel
from langgraph.types import Command, Send
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from session_middleware.integrations.server.request_types import Text, TextDocument, check_depth

StreamMode = Literal[
    "values", "updates", "messages", "messages-tuple", "custom", "events", "debug", "checkpoints", "tasks"
]  # fmt: skip
Strategy = Literal["reject", "enqueue", "interrupt", "rollback"]
Action = Literal["interrupt", "rollback"]

_NOT_THEIRS = frozenset({"thread_id", "run_id", "user_id", "group_id", "group_ids", "on_busy", "busy_timeout"})
_LANGGRAPHS = ("__", "langgraph_auth_")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _none_as(default: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SendTo(_Body):
    """A call of one node with an input of its own."""

    node: str
    input: Any = None


class RunCommand(_Body):
    """LangGraph's `Command`."""

    goto: str | SendTo | list[str | SendTo] | None = None
    update: dict[str, Any] | list[tuple[str, Any]] | None = None
    resume: Any = None

    def command(self) -> Command[Any]:
        """It as LangGraph's `Command`."""
        targets = self.goto if isinstance(self.goto, list) else [] if self.goto is None else [self.goto]
        goto = [Send(each.node, each.input) if isinstance(each, SendTo) else each for each in targets]
        return Command(update=self.update, goto=goto, resume=self.resume)


class CheckpointRef(_Body):
    """The checkpoint that a run begins from; without an id the latest."""

    checkpoint_id: Text | None = None
    checkpoint_ns: Text | None = None
    checkpoint_map: dict[Text, Text] | None = None


class RunConfig(_Body):
    """The part of a `RunnableConfig` that a client may give."""

    configurable: Annotated[dict[str, Any], _none_as({})] = Field(default_factory=dict)
    metadata: Annotated[dict[str, Any], _none_as({})] = Field(default_factory=dict)
    tags: Annotated[list[str], _none_as([])] = Field(default_factory=list)
    recursion_limit: int | None = Field(None, ge=1, le=100_000)
    max_concurrency: int | None = Field(None, ge=1, le=10_000)
    run_name: str | None = None


class RunCreate(_Body):
    """The body of the routes that begin a run."""

    assistant_id: str
    input: Any = None
    command: RunCommand | None = None
    config: Annotated[RunConfig, _none_as({})] = Field(default_factory=RunConfig)
    context: Annotated[dict[str, Any], _none_as({})] = Field(default_factory=dict)
    metadata: Annotated[TextDocument, _none_as({})] = Field(default_factory=dict)
    checkpoint: CheckpointRef | None = None
    checkpoint_id: Text | None = None
    interrupt_before: Literal["*"] | list[Text] | None = None
    interrupt_after: Literal["*"] | list[Text] | None = None
    stream_mode: Annotated[list[StreamMode], BeforeValidator(_as_list), _none_as(["values"])] = ["values"]
    stream_subgraphs: Annotated[bool, _none_as(False)] = False
    stream_resumable: Annotated[bool, _none_as(False)] = False
    multitask_strategy: Strategy | None = None
    if_not_exists: Annotated[Literal["create", "reject"], _none_as("reject")] = "reject"
    on_disconnect: Annotated[Literal["cancel", "continue"], _none_as("continue")] = "continue"
    on_completion: Annotated[Literal["delete", "keep"], _none_as("delete")] = "delete"  # of a run without a thread
    after_seconds: Annotated[float, Field(ge=0, le=3600), _none_as(0)] = 0
    durability: Literal["sync", "async", "exit"] | None = None
    checkpoint_during: bool | None = None  # the older name of durability
    webhook: None = None

    @model_validator(mode="before")
    @classmethod
    def _check(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            check_depth(values)
            config = values.get("config")
            if values.get("context") and isinstance(config, Mapping) and config.get("configurable"):
                raise ValueError("give context or config.configurable, and not both")
            if values.get("webhook"):
                raise ValueError("this server calls no webhooks; join the run instead")
        return values

    @property
    def modes(self) -> frozenset[str]:
        return frozenset(self.stream_mode)

    @property
    def strategy(self) -> Strategy:
        """What to do if another run of the thread is in progress."""
        return self.multitask_strategy or "enqueue"

    @property
    def cancels_others(self) -> bool:
        """Whether it ends the other runs of its thread."""
        return self.strategy in ("interrupt", "rollback")

    @property
    def is_kept(self) -> bool:
        """Whether the session of a run without a thread remains."""
        return self.on_completion == "keep"

    def graph_input(self) -> Any:
        """The input of the graph; ``None`` continues from the thread's state."""
        return self.input if self.command is None else self.command.command()

    def options(self) -> dict[str, Any]:
        """The arguments of the graph's stream methods beside input, config and stream mode."""
        durability = self.durability
        if durability is None and self.checkpoint_during is not None:
            durability = "async" if self.checkpoint_during else "exit"
        given = {
            "interrupt_before": self.interrupt_before,
            "interrupt_after": self.interrupt_after,
            "durability": durability,
        }
        return {name: value for name, value in given.items() if value is not None}

    def context_for(self, graph: Pregel[Any, Any, Any, Any]) -> dict[str, Any] | None:
        """The graph's context: what its schema has of the client's context, or of its ``configurable``."""
        given = self.context or own_keys(self.config.configurable)
        properties = (graph.get_context_jsonschema() or {}).get("properties") if given else None
        return {name: value for name, value in given.items() if not properties or name in properties} or None

    def named_checkpoint(self) -> dict[str, Any]:
        """The keys of a config that name the checkpoint to begin from."""
        named = (self.checkpoint or CheckpointRef()).model_dump()
        named["checkpoint_id"] = named["checkpoint_id"] or self.checkpoint_id
        return {name: value for name, value in named.items() if value is not None}

    def run_config(self, base: RunnableConfig, **labels: str) -> RunnableConfig:
        """The config of the run. `base` has the thread and whose run it is, and takes precedence.

        Args:
            labels: the ids of the run, of its graph and of its assistant.
        """
        config = self.config
        configurable = own_keys(config.configurable) | own_keys(self.context)
        configurable |= self.named_checkpoint()
        made: RunnableConfig = {
            **base,
            "configurable": configurable | labels | base.get("configurable", {}),
            "metadata": own_keys(config.metadata) | own_keys(self.metadata) | labels | base.get("metadata", {}),
            "tags": list(config.tags),
            "run_name": config.run_name or labels["graph_id"],
        }
        if config.recursion_limit is not None:
            made["recursion_limit"] = config.recursion_limit
        if config.max_concurrency is not None:
            made["max_concurrency"] = config.max_concurrency
        return made

    def kwargs(self) -> dict[str, Any]:
        """What the API shows as ``kwargs``: how the run was asked for, without anything that was said."""
        return {
            "stream_mode": list(self.stream_mode),
            "subgraphs": self.stream_subgraphs,
            "resumable": self.stream_resumable,
            "interrupt_before": self.interrupt_before,
            "interrupt_after": self.interrupt_after,
            "durability": self.options().get("durability", "async"),
        }


def own_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a client may decide about."""
    return {
        key: value for key, value in given.items() if key not in _NOT_THEIRS and not str(key).startswith(_LANGGRAPHS)
    }
