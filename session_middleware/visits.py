"""Which visit a call belongs to: what ties a run's first look, its writes and its callbacks together.

LangGraph tells a saver nothing of the run it saves for, and a callback handler nothing of the saver.
What they share is the thread id and the context: a variable that is set while the run reads its
first state is seen by everything the run does later. So a `Visit` is made when a run begins, by the
recorder if it is there and else by the saver's first look, and all that follows finds it here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.runnables import RunnableConfig

from session_middleware import lifecycle
from session_middleware.model import Identity
from session_middleware.storage.port import Visit

_REMEMBERED = 1024  # sessions whose latest visit is kept in mind


_NOBODY = Identity()
_acting_as: ContextVar[Identity] = ContextVar("session_middleware_identity", default=_NOBODY)


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Give this identity to all calls in the block whose config has none."""
    token = _acting_as.set(identity)
    try:
        yield
    finally:
        _acting_as.reset(token)


def identity_of(configurable: Mapping[str, Any]) -> Identity:
    """Who asks, by a config's ``configurable`` or a callback's metadata, else by `acting_as`."""
    user_id, group_id = configurable.get("user_id"), configurable.get("group_id")
    if user_id is None and group_id is None:
        return _acting_as.get()
    return Identity(
        user_id=None if user_id is None else lifecycle.owner_id_of("user_id", user_id),
        group_id=None if group_id is None else lifecycle.owner_id_of("group_id", group_id),
    )


def config_of(identity: Identity, key: tuple[str, str, str | None]) -> RunnableConfig:
    """A config that names a checkpoint (session, namespace, id) and carries on who asked for it."""
    who = identity.model_dump(exclude_none=True)
    return {"configurable": {"thread_id": key[0], "checkpoint_ns": key[1], "checkpoint_id": key[2], **who}}


class Visits:
    """The runs in progress of one `Sessions`, and the visit of the present context."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, list[Visit]] = {}
        self._unclaimed: dict[str, list[Visit]] = {}
        self._latest: OrderedDict[str, Visit] = OrderedDict()  # by session; for writes that have lost their context
        self._ended: list[Callable[[], object]] = []
        self._here: ContextVar[Visit | None] = ContextVar("session_middleware_visit", default=None)

    def begin(self, visit: Visit) -> None:
        """A run was announced; it is in progress until `end`."""
        with self._lock:
            self._runs.setdefault(visit.session_id, []).append(visit)
            self._unclaimed.setdefault(visit.session_id, []).append(visit)

    def on_end(self, call: Callable[[], object]) -> None:
        """Have `call` made after each run; it must not wait."""
        self._ended.append(call)

    def end(self, visit: Visit) -> None:
        with self._lock:
            for visits in (self._runs, self._unclaimed):
                remaining = [v for v in visits.get(visit.session_id, ()) if v is not visit]
                visits[visit.session_id] = remaining
                if not remaining:
                    del visits[visit.session_id]
        for call in self._ended:
            call()

    def live(self) -> frozenset[str]:
        """The ids of the sessions with a run in progress."""
        with self._lock:
            return frozenset(self._runs)

    def arrive(self, configurable: Mapping[str, Any]) -> Visit:
        """The visit of a first look: an announced run's, else the running one's, else a new one."""
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        here = self._matching(session_id, identity)
        if here is not None and (configurable.get("checkpoint_ns") or self._is_running(here)):
            return here
        visit = self._claim(session_id, identity) or Visit(session_id, identity)
        self._here.set(visit)
        return self._remember(visit)

    def present(self, configurable: Mapping[str, Any]) -> Visit:
        """The visit this write belongs to; a new one for a write out of the blue.

        LangGraph makes some writes from threads that have lost the run's context, so the latest visit
        of the same session and identity is looked for as well.
        """
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        found = self._matching(session_id, identity) or self._last(session_id, identity)
        return found or Visit(session_id, identity)

    def alone(self, configurable: Mapping[str, Any], *, anew: bool) -> Visit:
        """The visit of a run that neither a checkpointer nor a recorder of ours serves."""
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        found = None if anew else self._last(session_id, identity)
        return found or self._remember(Visit(session_id, identity))

    def _remember(self, visit: Visit) -> Visit:
        with self._lock:
            self._latest[visit.session_id] = visit
            self._latest.move_to_end(visit.session_id)
            if len(self._latest) > _REMEMBERED:
                self._latest.popitem(last=False)
        return visit

    def _matching(self, session_id: str, identity: Identity) -> Visit | None:
        here = self._here.get()
        return here if here is not None and here.session_id == session_id and here.identity == identity else None

    def _is_running(self, visit: Visit) -> bool:
        with self._lock:
            return any(running is visit for running in self._runs.get(visit.session_id, ()))

    def _last(self, session_id: str, identity: Identity) -> Visit | None:
        with self._lock:
            latest = self._latest.get(session_id)
        return latest if latest is not None and latest.identity == identity else None

    def give_back(self, visit: Visit) -> None:
        """The first look was refused: the announced run it claimed was somebody else's."""
        with self._lock:
            if visit.guessed and not visit.admitted:
                visit.identity, visit.guessed, visit.checkpointed = _NOBODY, False, False
                self._unclaimed.setdefault(visit.session_id, []).append(visit)

    def _claim(self, session_id: str, identity: Identity) -> Visit | None:
        with self._lock:
            announced = self._unclaimed.get(session_id, [])
            for visit in announced:
                if visit.identity in (identity, _NOBODY):  # metadata may not say who, the config does
                    announced.remove(visit)
                    visit.guessed = visit.identity != identity
                    visit.identity = identity
                    visit.checkpointed = True
                    return visit
        return None
