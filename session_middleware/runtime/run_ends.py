"""What a run of LangGraph's was called with and when it ends, where no recorder sees it.

LangGraph tells a saver nothing of the run it saves for. But the first look of a run is made by the loop that
carries it out, and that loop holds the input of this run and its callback manager, which hears the run's end in every
case: when it is done, fails, is interrupted or cancelled, and when the reader of a stream closes it. So the loop is
looked for on the stack of the first look, once per run, and its manager is given one more handler.
A run that is cancelled again while its loop cleans up is reported before its tasks have ended; the loop that its error
has come through knows them.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from langchain_core.callbacks import AsyncParentRunManager, BaseCallbackHandler, ParentRunManager

Manager: TypeAlias = ParentRunManager | AsyncParentRunManager
OnEnd: TypeAlias = Callable[[BaseException | None], None]

_ENTERING = ("__enter__", "__aenter__")  # of a loop, which makes the first look and nothing else that looks
_RUNNING = ("stream", "astream")


class Loop(NamedTuple):
    manager: Manager
    input: Any  # a `Command`, where a person answers


class _AtEnd(BaseCallbackHandler):
    """Calls a function when one run ends, with the exception that ended it."""

    run_inline = True

    def __init__(self, run_id: UUID, call: OnEnd) -> None:
        self._run_id = run_id
        self._call = call

    def on_chain_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        if run_id == self._run_id:
            self._call(None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if run_id == self._run_id:
            call_when_over(error, lambda: self._call(error))


def call_when_over(error: BaseException, call: Callable[[], None]) -> None:
    """Call at once, or when the tasks have ended that a run ended by `error` has left running."""
    task = None if isinstance(error, Exception) else next(_left_running(error), None)
    if task is None:
        call()
    else:
        task.add_done_callback(lambda _: call_when_over(error, call))


def _left_running(error: BaseException) -> Iterator[Any]:
    """The unfinished tasks of the loops that the error has come through."""
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_name in _RUNNING and _is_langgraphs(frame):
                submit = getattr(frame.f_locals.get("loop"), "submit", None)
                yield from (
                    task for task in list(getattr(getattr(submit, "__self__", None), "tasks", ())) if not task.done()
                )
        cause = cause.__context__


def _is_langgraphs(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("langgraph.pregel")


def find_loop() -> Loop | None:
    """The loop that makes the present call; ``None`` when no loop does."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in _ENTERING and _is_langgraphs(frame):
            loop = frame.f_locals.get("self")
            manager = getattr(loop, "manager", None)
            if isinstance(manager, (ParentRunManager, AsyncParentRunManager)):
                return Loop(manager, getattr(loop, "input", None))
            return None
        frame = frame.f_back
    return None


def call_at_end(manager: Manager, call: OnEnd) -> None:
    """Have `call` made when the manager's run ends: before other handlers, since one of them may raise.

    The list is replaced, not added to, because runs that were given one callback manager have it in common.
    """
    manager.handlers = [_AtEnd(manager.run_id, call), *manager.handlers]
