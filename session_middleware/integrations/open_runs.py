"""`OpenRuns`: the runs that LangChain's callbacks have reported the start of and not the end, as a tree."""

from __future__ import annotations

import threading
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

T = TypeVar("T")


class _Open(NamedTuple, Generic[T]):
    value: T
    parent_id: UUID | None
    inner: set[UUID]  # the open runs directly inside of it


class OpenRuns(Generic[T]):
    """A value for each open run. Handlers are called on several threads."""

    def __init__(self) -> None:
        self._open: dict[UUID, _Open[T]] = {}
        self._lock = threading.Lock()

    def find(self, run_id: UUID | None) -> T | None:
        found = None if run_id is None else self._open.get(run_id)
        return None if found is None else found.value

    def values(self) -> list[T]:
        with self._lock:
            return [each.value for each in self._open.values()]

    def begin(self, run_id: UUID, parent_id: UUID | None, value: T) -> None:
        with self._lock:
            self._open[run_id] = _Open(value, parent_id, set())
            if parent_id is not None and (parent := self._open.get(parent_id)) is not None:
                parent.inner.add(run_id)

    def end(self, run_id: UUID) -> list[T]:
        """Remove a run, and those still open inside of it, such as a cancelled model call, whose end is not reported.

        The run itself is the last of the result, which is empty for one that is not open.
        """
        with self._lock:
            if (found := self._open.get(run_id)) is not None and found.parent_id in self._open:
                self._open[found.parent_id].inner.discard(run_id)
            return self._removed(run_id)

    def _removed(self, run_id: UUID) -> list[T]:
        if (found := self._open.pop(run_id, None)) is None:
            return []
        return [*(value for inner in found.inner for value in self._removed(inner)), found.value]
