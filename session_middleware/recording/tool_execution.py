"""`ToolExecution`: one execution of a tool, recorded by a block around it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from session_middleware.errors import SessionError, SessionNotFound
from session_middleware.models import CALL_STATUSES
from session_middleware.recording.active_run import elapsed_ms
from session_middleware.recording.messages import error_text, tool_end
from session_middleware.recording.write_buffer import DENIALS
from session_middleware.storage.jsonable import is_a, text_of
from session_middleware.storage.record_entries import ToolEnd, ToolStart
from session_middleware.storage.validation import check_choice

if TYPE_CHECKING:
    from session_middleware.recording.manual import ManualRecorder

Outcome: TypeAlias = Literal["ok", "error", "refused", "interrupted"]


def ended(
    execution_id: str, name: str, duration_ms: float | None, result: Any, error: Any, status: Outcome | None
) -> ToolEnd:
    """The end of an execution as a loop reports it; the default status follows from `error` and `result`."""
    end = tool_end(execution_id, name, duration_ms, result)
    if text := error_text(error) if is_a(error, BaseException) else None if error is None else text_of(error):
        end = end._replace(status="error", error=text)
    return end if status is None else end._replace(status=status)


class ToolExecution:
    """A block, sync or async, around one execution of a tool; `Session.tool_execution` makes it.

    Its start is committed before the block begins. Set `result` in the block, and `error` or `status` if an outcome
    is not an exception. An exception that leaves the block is recorded as the error, a cancellation as
    ``interrupted``.
    """

    result: Any = None
    error: str | BaseException | None = None
    status: Outcome | None = None  # by default it follows from the error and the result

    def __init__(self, recorder: ManualRecorder, start: ToolStart, *, raises_denials: bool = True) -> None:
        self._recorder, self._start, self._raises_denials = recorder, start, raises_denials
        self._context = recorder.context or recorder.new_context()
        self._is_recorded = False
        self._began = 0.0

    def __enter__(self) -> Self:
        return self._begun(self._write_start())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._write_end(error, elapsed_ms(self._began))

    async def __aenter__(self) -> Self:
        starting = self._recorder.executor.start(self._write_start)
        try:
            denial = await asyncio.shield(asyncio.wrap_future(starting))
        except asyncio.CancelledError as error:
            self._recorder.executor.start(partial(self._end_unbegun, starting, error))
            raise
        return self._begun(denial)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        duration_ms = elapsed_ms(self._began)
        ending = self._recorder.executor.start(partial(self._write_end, error, duration_ms))
        await asyncio.shield(asyncio.wrap_future(ending))  # a cancellation does not stop the write

    def _begun(self, denial: SessionError | None) -> Self:
        if denial is not None:
            raise denial
        self._began = time.perf_counter()
        return self

    def _write_start(self) -> SessionError | None:
        """Write the start. Returns the denial, if the session admits no execution."""
        try:
            self._recorder.write([self._start], self._context)
        except Exception as error:  # noqa: BLE001  # a fault here must not keep a tool from running
            if self._raises_denials and isinstance(error, (*DENIALS, SessionNotFound)):
                return error
            self._recorder.fault(error)
        else:
            self._is_recorded = True
        return None

    def _write_end(self, error: BaseException | None, duration_ms: float) -> None:
        if not self._is_recorded:
            return
        id_, name = self._start.execution_id, self._start.name
        try:
            if self.status is not None:
                check_choice("status", self.status, CALL_STATUSES[1:])  # all but "running"
            if error is not None:
                end = tool_end(id_, name, duration_ms, error=error)
            else:
                end = ended(id_, name, duration_ms, self.result, self.error, self.status)
            self._recorder.write([end], self._context)
        except Exception as fault:  # noqa: BLE001  # the tool has run; its caller gets the result
            self._recorder.fault(fault)

    def _end_unbegun(self, starting: Future[SessionError | None], error: BaseException) -> None:
        wait([starting])
        self._write_end(error, 0.0)
