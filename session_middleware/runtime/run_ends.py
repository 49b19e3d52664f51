"""The input and the end of a LangGraph run, for a checkpointer without a recorder.

LangGraph passes a saver no information about the run. But the first read of a run is made by LangGraph's loop object,
which has the run's input and its callback manager. The manager is notified of the run's end in every case: success,
failure, interrupt, cancellation, and a stream closed by its reader. So the first read searches the call stack for the
loop, once per run, and adds a handler to its manager.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from langchain_core.callbacks import AsyncParentRunManager, BaseCallbackHandler, ParentRunManager
from langgraph._internal._constants import PREVIOUS

Manager: TypeAlias = ParentRunManager | AsyncParentRunManager
OnEnd: TypeAlias = Callable[[BaseException | None], None]

ROOT = "__root__"  # the channel of a state that is one value
_ENTERING = ("__enter__", "__aenter__")  # the loop's methods, which make a run's first read and no other


class Loop(NamedTuple):
    manager: Manager
    input: Any  # a `Command`, if a person answers an interrupt
    puts_at_end: bool  # it puts no checkpoint before the run ends
    has_one_value: bool  # the state of its graph is one value instead of named channels


class _AtEnd(BaseCallbackHandler):
    """Calls a function when one run ends, with its exception or ``None``."""

    run_inline = True

    def __init__(self, run_id: UUID, call: OnEnd) -> None:
        self._run_id = run_id
        self._call = call

    def on_chain_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        if run_id == self._run_id:
            self._call(None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if run_id == self._run_id:
            self._call(error)


def _is_langgraphs(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("langgraph.pregel")


def find_loop() -> Loop | None:
    """The loop that makes the current call, or ``None``."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in _ENTERING and _is_langgraphs(frame):
            loop = frame.f_locals.get("self")
            manager = getattr(loop, "manager", None)
            if isinstance(manager, (ParentRunManager, AsyncParentRunManager)):
                channels = getattr(loop, "specs", None) or {}
                return Loop(
                    manager,
                    getattr(loop, "input", None),
                    puts_at_end=getattr(loop, "durability", None) == "exit",
                    has_one_value=PREVIOUS in channels or ROOT in channels,
                )
            return None
        frame = frame.f_back
    return None


def call_at_end(manager: Manager, call: OnEnd) -> None:
    """Call `call` when the manager's run ends, before other handlers, since one of them may raise.

    The list is replaced and not extended, because runs with the same callback manager share it.
    """
    manager.handlers = [_AtEnd(manager.run_id, call), *manager.handlers]
