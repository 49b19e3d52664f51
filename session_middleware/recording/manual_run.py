"""The blocks of ``with session:``, each of which is a run.

A block inside a block of the same session, in the same task or in one begun in it, is part of that run.
Blocks that other tasks and threads enter beside it are runs of their own, and take their turns as
``on_busy`` says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from session_middleware.recording.active_run import sentence, since
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import RunEnd
from session_middleware.storage.run import RunContext


@dataclass(slots=True, eq=False)
class Block:
    visit: RunContext
    storage: Storage
    started: float = field(default_factory=time.perf_counter)
    is_over: bool = False


_entered: ContextVar[tuple[Block, ...]] = ContextVar("session_middleware_blocks", default=())  # once for each entry


class Blocks:
    """Those of one session in hand."""

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        journal: RecordBuffer,
        visits: RunRegistry,
        turns: RunQueue,
        *,
        outside: RunContext,
        new_visit: Callable[[], RunContext],
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._journal = journal
        self._visits = visits
        self._turns = turns
        self._outside = outside  # of any run
        self._new_visit = new_visit
        self._open: list[Block] = []

    @property
    def visit(self) -> RunContext | None:
        """That of the run which goes on here: the one around, or for a thread that has none the only one."""
        block = self._around() or (self._open[0] if len(self._open) == 1 else None)
        return None if block is None else block.visit

    def enter(self) -> None:
        block = self._around() or self._begin()
        _entered.set((*_entered.get(), block))

    async def aenter(self) -> None:
        block = self._around() or await self._abegin()
        _entered.set((*_entered.get(), block))

    def leave(self, error: BaseException | None) -> None:
        if (block := self._left()) is not None:
            self._end(block, error)

    async def aleave(self, error: BaseException | None) -> None:
        if (block := self._left()) is not None:
            await asyncio.shield(self._offload.run(self._end, block, error))

    def _around(self) -> Block | None:
        return next((block for block in reversed(_entered.get()) if self._is_ours(block) and not block.is_over), None)

    def _is_ours(self, block: Block) -> bool:
        of, own = block.visit, self._outside
        incarnation = None if own.hand is None else own.hand.incarnation
        return block.storage is self._storage and (of.session_id, of.identity, of.incarnation) == (
            *(own.session_id, own.identity, incarnation),
        )

    def _begin(self) -> Block:
        visit = self._new_visit()
        self._visits.keep_alive(visit)
        try:
            self._turns.take(visit)
            self._storage.append(visit)
        except BaseException:
            self._visits.end(visit)
            raise
        return self._opened(visit)

    async def _abegin(self) -> Block:
        visit = self._new_visit()
        self._visits.keep_alive(visit)
        try:
            await self._turns.atake(visit)
        except BaseException:
            self._visits.end(visit)
            raise
        try:
            await self._offload.run(self._storage.append, visit)
        except BaseException as error:
            self._visits.end(visit)
            if isinstance(error, asyncio.CancelledError):  # it may be begun all the same
                self._journal.keep(visit, [RunEnd("interrupted", None, 0.0)])
                self._journal.flush(visit)
            raise
        return self._opened(visit)

    def _opened(self, visit: RunContext) -> Block:
        block = Block(visit, self._storage)
        self._open.append(block)
        self._visits.enter(visit)
        return block

    def _left(self) -> Block | None:
        """The block whose run ends here; ``None`` if it goes on around this.

        Some frameworks leave a block in another context than they entered it in.
        """
        entered = list(_entered.get())
        place = next((n for n in reversed(range(len(entered))) if self._is_ours(entered[n])), None)
        block = entered.pop(place) if place is not None else self._open[-1] if self._open else None
        _entered.set(tuple(entered))
        if block is None or block.is_over or block in entered:
            return None
        block.is_over = True
        self._open = [each for each in self._open if not each.is_over]
        return block

    def _end(self, block: Block, error: BaseException | None) -> None:
        """A run that ends with an exception has failed; what was recorded in it stays."""
        self._visits.end(block.visit)
        outcome = "ok" if error is None else "error" if isinstance(error, Exception) else "interrupted"
        told = sentence(error) if error is not None and outcome == "error" else None
        end = RunEnd(outcome, told, since(block.started))
        self._storage.append(block.visit, self._journal.keeping.entries([end]))
