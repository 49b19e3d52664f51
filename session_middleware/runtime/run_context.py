"""The contexts of runs: which `RunContext` a read, a write or a callback belongs to.

LangGraph tells a saver nothing about the run that it saves for, and a callback handler nothing about the saver. Both
know the thread id, the context variables, and the config, which a run keeps from its first read to its last write. So
a `RunContext` is created when a run begins, by the recorder or else by the saver's first read. A `RunHandle` in the
run's config leads back to it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeGuard
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware import lifecycle
from session_middleware.models import Identity
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.run_ends import Loop, Manager, call_at_end, find_loop
from session_middleware.settings import duration_of
from session_middleware.storage import validation
from session_middleware.storage.run import BusyRule, Lease, RunContext

_MINUTE = timedelta(minutes=1)
_REMEMBERED = 1024  # sessions whose latest context is cached
_RUNTIME, _TASK = "__pregel_runtime", "__pregel_task_id"  # LangGraph's, in the configs of a run and of its tasks
_HANDLE = "__pregel_session_context"  # ours; LangGraph keeps this prefix out of metadata and streams

_AUTHENTICATED_ID, _AUTHENTICATED = "langgraph_auth_user_id", "langgraph_auth_user"  # LangGraph's server sets these

_NOBODY = Identity()
# Announced runs until their first read, by file and session, of all `Sessions` in this process. LangGraph's server
# loads the module that creates a `Sessions` once for the graph and once for the checkpointer, so the recorder and the
# saver of a run may belong to two. The contexts of such a run are marked, and each engine looks for the other's rows.
_announced: dict[tuple[str, str], list[tuple[RunRegistry, RunContext]]] = {}
_announced_lock = threading.RLock()  # a garbage collector may end a run while this thread holds it
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
    """The caller's identity, by a config's ``configurable`` or a callback's metadata, else by `acting_as`.

    An empty id counts as none: LangGraph's server passes one for an anonymous user. A user whom that server has
    authenticated has precedence over the ids in the config, which its client may have written.
    """
    authenticated = _given(configurable.get(_AUTHENTICATED_ID))
    if authenticated is not None:
        user: Any = configurable.get(_AUTHENTICATED)
        fields = user if isinstance(user, Mapping) else {name: getattr(user, name, None) for name in _GROUPS}
        return checked_identity(authenticated, *(_given(fields.get(name)) for name in _GROUPS))
    if configurable.get("user_id") is configurable.get("group_id") is configurable.get("group_ids") is None:
        return _acting_as.get()
    return named_identity(*(_given(configurable.get(name)) for name in ("user_id", *_GROUPS)))


_GROUPS = ("group_id", "group_ids")
ON_BUSY = ("allow", "wait", "reject")


def _given(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [each for each in value if each != ""]
    return None if value == "" else value


def named_identity(user_id: Any, group_id: Any, group_ids: Any = ()) -> Identity:
    """The identity that arguments name, else that of `acting_as`. Raises `InvalidIdentity`, for an empty id too."""
    if user_id is None and group_id is None and group_ids in (None, (), []):
        return _acting_as.get()
    return checked_identity(user_id, group_id, group_ids)


def checked_identity(user_id: Any, group_id: Any, group_ids: Any) -> Identity:
    """Raises `InvalidIdentity`."""
    return Identity(
        user_id=lifecycle.owner_id_or_none("user_id", user_id),
        group_id=lifecycle.owner_id_or_none("group_id", group_id),
        group_ids=lifecycle.owner_ids_of("group_ids", group_ids),
    )


def config_of(identity: Identity, key: tuple[str, str, str | None]) -> RunnableConfig:
    """A config that names a checkpoint (session, namespace, id), with the identity of the caller."""
    named: dict[str, Any] = {"thread_id": key[0], "checkpoint_ns": key[1], "checkpoint_id": key[2]}
    return {"configurable": named if identity is _NOBODY else named | as_config(identity)}


def run_config(session_id: str, identity: Identity, configurable: Mapping[str, Any]) -> RunnableConfig:
    """The config of a run in a session by this caller."""
    named = {"thread_id": session_id, **as_config(identity)}
    return {"configurable": {**configurable, **named}, "metadata": named}


def as_config(identity: Identity) -> dict[str, Any]:
    """The identity as `identity_of` reads it."""
    found: dict[str, Any] = {}
    if identity.user_id is not None:
        found["user_id"] = identity.user_id
    if identity.group_id is not None:
        found["group_id"] = identity.group_id
    if identity.group_ids:
        found["group_ids"] = list(identity.group_ids)
    return found


def _named(configurable: Mapping[str, Any]) -> tuple[str, Identity]:
    return lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)


_NAMES = ("thread_id", "user_id", *_GROUPS, _AUTHENTICATED_ID)


@dataclass(slots=True, eq=False)
class RunHandle:
    """Leads from the config of a run, and from those of its tasks, to the run's context."""

    context: RunContext
    registry: RunRegistry
    enclosing: RunHandle | None  # of the run whose task called this run
    identity: Identity
    names: tuple[Any, ...]  # what the config and `acting_as` named when the run began


class RunRegistry:
    """The active runs of one `Sessions`, and the run context of each call."""

    def __init__(
        self, background: BackgroundWorker, *, tracking: bool = True, path: str = "", busy_timeout: timedelta = _MINUTE
    ) -> None:
        self._background, self._busy_timeout = background, busy_timeout
        self._path = path or f"\0{uuid4()}"  # of the database file, if another `Sessions` can open it
        self._tracking = tracking  # the end of an announced run is recorded
        # Called with each run that no recorder announces, and its input; must not raise.
        self.on_begin: Callable[[RunContext, Any], object] = lambda *_: None
        # Called at the first read of a graph that was called in a chain or a run, with its context; must not raise.
        self.on_first_read: Callable[[Loop, RunContext], object] = lambda *_: None
        self.on_end: Callable[[], object] = lambda: None  # called after each run; must not wait
        self._lock = threading.Lock()
        self._latest: OrderedDict[str, RunContext] = OrderedDict()  # by session
        self._current: ContextVar[RunContext | None] = ContextVar("session_middleware_context", default=None)
        self._blocks: ContextVar[tuple[RunContext, ...]] = ContextVar("session_middleware_blocks", default=())

    # The lifetime of runs

    def announce(self, context: RunContext) -> None:
        """Register a run that a callback reports. Its first read may follow."""
        self._add_announced(context)
        if (outer := self._run_of_another(context.session_id)) is not None:
            _share(context, outer)
            context.state = context.state._replace(announced=True)  # as a part of the enclosing run
        self.register(context)

    def register(self, context: RunContext) -> None:
        """Renew the run's lease until `end`. A run inside an exclusive run of its session shares that run's lease."""
        exclusive = self._exclusive_run(context.session_id)
        if context.lease is not None and exclusive is not None:
            context.lease, context.is_inside = exclusive.lease, True
        elif context.lease is not None:
            context.lease.has_row = self._tracking
            self._background.begin(context)

    def enter_block(self, context: RunContext) -> None:
        """Runs that begin in this context from now on are inside this run."""
        self._blocks.set((*filter(_is_active, self._blocks.get()), context))

    def end(self, context: RunContext) -> None:
        with _announced_lock:
            announced = _announced.pop((self._path, context.named_id), ())
            if remaining := [each for each in announced if each[1] is not context]:
                _announced[self._path, context.named_id] = remaining
        if context.lease is not None and not context.is_inside:
            self._background.end(context.lease)
        self.on_end()

    def _track(
        self, context: RunContext, configurable: dict[str, Any], enclosing: RunContext | None, manager: Manager | None
    ) -> None:
        """Put a `RunHandle` into the run's config, and hold a lease until the run ends."""
        names = _acting_as.get(), *map(configurable.get, _NAMES)
        configurable[_HANDLE] = RunHandle(context, self, next(_handles_of_task(), None), context.identity, names)
        enclosing = enclosing or self._exclusive_run(context.session_id)
        if enclosing is not None and enclosing.lease is not None:
            context.lease = enclosing.lease
        elif context.lease is None:
            context.lease = lease = Lease(silent_beats=0 if manager is None else None)
            self._background.begin(context)
            if manager is not None:
                call_at_end(manager, lambda error: self._background.end(lease, error))

    def _busy_rule(self, configurable: Mapping[str, Any]) -> BusyRule | None:
        """The `on_busy` of this run's config, and its `busy_timeout`. Raises `InvalidArgument`."""
        if (on_busy := configurable.get("on_busy")) is None:
            return None
        validation.check_choice("on_busy", on_busy, ON_BUSY)
        given = configurable.get("busy_timeout")
        limit = self._busy_timeout if given is None else duration_of("busy_timeout", given)
        return BusyRule(on_busy, None if limit is None else limit.total_seconds())

    # The context of a call

    def context_for_read(self, configurable: dict[str, Any]) -> RunContext:
        """The context of a first read: that of the enclosing run, of an announced run, or a new one.

        `configurable` is the run's own, and gets the run's `RunHandle`.
        """
        session_id, identity = _named(configurable)
        enclosing = self._enclosing_run(configurable, session_id)
        whole = enclosing if enclosing is not None and enclosing.identity == identity else None
        # a subgraph has the task of its caller, and a later read of the same graph the handle
        is_known = whole is not None and (_TASK in configurable or _HANDLE in configurable)
        loop = find_loop() if _RUNTIME in configurable and not is_known else None
        if loop is not None and loop.manager.parent_run_id is not None:
            self.on_first_read(loop, whole or RunContext(session_id, identity))
        if whole is not None:
            return whole
        manager = None if loop is None else loop.manager
        is_run = manager is not None or (_RUNTIME in configurable and _TASK not in configurable)
        run_id = configurable.get("run_id") if manager is None else manager.run_id
        announced = self._match_announced(session_id, identity, run_id) if is_run else None
        context = announced or RunContext(session_id, identity, reading=not is_run)
        if is_run:
            context.busy = context.busy or self._busy_rule(configurable)
            self._track(context, configurable, enclosing, manager)
            if loop is not None:
                context.puts_at_end, context.has_one_value = loop.puts_at_end, loop.has_one_value
                context.whole_input = loop.input if loop.has_one_value else None
        if announced is None and loop is not None:
            self.on_begin(context, loop.input)
        self._current.set(context)
        return self._remember(context)

    def context_for_write(self, configurable: Mapping[str, Any]) -> RunContext:
        """The context that a write belongs to; a new one for a write outside of runs.

        LangGraph makes some writes on threads without the run's context variables, and a caller may have built the
        config. Such a write belongs to the latest context of the same session and identity.
        """
        handle: Any = configurable.get(_HANDLE)
        context = handle.context if type(handle) is RunHandle and handle.registry is self else None
        names = _acting_as.get(), *map(configurable.get, _NAMES)
        if context is None or not context.session_id or (names, context.identity) != (handle.names, handle.identity):
            session_id, identity = _named(configurable)
            if context is None or not context.is_of(session_id) or context.identity != identity:
                return self._last(session_id, identity) or RunContext(session_id, identity)
        if context.lease is not None and context.lease.silent_beats is not None:
            self._background.note_activity(context)
        return context

    def standalone_context(self, configurable: Mapping[str, Any], *, anew: bool) -> RunContext:
        """The context of a run that has neither a checkpointer nor a recorder of ours."""
        session_id, identity = _named(configurable)
        found = None if anew else self._last(session_id, identity)
        return found or self._remember(RunContext(session_id, identity))

    def active_context(self, configurable: Mapping[str, Any]) -> RunContext | None:
        """The active run that this config belongs to, if it has a checkpointer or a recorder of ours."""
        session_id, identity = _named(configurable)
        found = self._enclosing_run(configurable, session_id)
        if found is None and var_child_runnable_config.get() is not None:
            with _announced_lock:  # a run that has a recorder and no checkpointer
                found = self._own_first(
                    [each for each in self._announced_in(session_id)[::-1] if each[1].identity == identity]
                )
        if found is None and (outer := self._run_of_another(session_id)) is not None:
            found = _lent(outer)
        return found if found is not None and found.identity == identity else None

    def forget(self, session_id: str) -> None:
        """Detach a deleted session's contexts, other than active runs. A later write to the id opens it anew."""
        with self._lock:
            context = self._latest.pop(session_id, None)
        for each in (context, self._current.get()):
            if each is not None and each.session_id == session_id and not _is_active(each):
                each.session_id = ""  # no session has this id

    def discard(self, context: RunContext) -> None:
        """The first read was refused: the context is not used again by calls of this caller.

        An announced run that was matched by the session alone belongs to another caller then, and is unmatched again.
        """
        if self._current.get() is context:
            self._current.set(None)
        with self._lock:
            if self._latest.get(context.named_id) is context:
                del self._latest[context.named_id]
        if context.is_identity_assumed and not context.state.admitted:
            context.identity, context.is_identity_assumed, context.checkpointed = _NOBODY, False, False
            self._add_announced(context)

    def _remember(self, context: RunContext) -> RunContext:
        with self._lock:
            self._latest[context.named_id] = context
            self._latest.move_to_end(context.named_id)
            if len(self._latest) > _REMEMBERED:
                self._latest.popitem(last=False)
        return context

    def _last(self, session_id: str, identity: Identity) -> RunContext | None:
        with self._lock:
            latest = self._latest.get(session_id)
        for context in (self._current.get(), latest):
            if context is not None and context.is_of(session_id) and context.identity == identity:
                return context
        return None

    def _is_own(self, handle: Any) -> TypeGuard[RunHandle]:
        return isinstance(handle, RunHandle) and handle.registry is self

    def _enclosing_run(self, configurable: Mapping[str, Any], session_id: str) -> RunContext | None:
        """The active run of this session that this call is made in."""
        handle = configurable.get(_HANDLE)
        if self._is_own(handle) and handle.context.is_of(session_id):
            return handle.context
        for handle in _handles_of_task():
            if self._is_own(handle) and handle.context.is_of(session_id) and _is_active(handle.context):
                return handle.context
        current = self._current.get()
        if current is None or not current.is_of(session_id) or not _is_active(current):
            return None
        # A reader of a stream has the run's context variables too, and is not in the run.
        is_in_run = configurable.get("checkpoint_ns") or var_child_runnable_config.get() is not None
        return current if is_in_run else None

    def _exclusive_run(self, session_id: str) -> RunContext | None:
        """The run of this session that this call is made in, if it has the session exclusively."""
        for context in (self._enclosing_run({}, session_id), *self._blocks.get()):
            if context is not None and context.is_of(session_id) and _is_active(context):
                return context if context.lease is not None and context.lease.is_exclusive else None
        return None

    def _run_of_another(self, session_id: str) -> RunContext | None:
        """The active run of this session, by another `Sessions` on the same database, that this call is made in."""
        for handle in _handles_of_task():
            is_theirs = handle.registry is not self and handle.registry._path == self._path
            if is_theirs and handle.context.is_of(session_id) and _is_active(handle.context):
                return handle.context
        return None

    def _add_announced(self, context: RunContext) -> None:
        with _announced_lock:
            for _, other in self._announced_in(context.named_id):
                if other.run_id == context.run_id and other is not context:
                    _share(other, context)
            _announced.setdefault((self._path, context.named_id), []).append((self, context))

    def _announced_in(self, session_id: str) -> list[tuple[RunRegistry, RunContext]]:
        return _announced.get((self._path, session_id), [])

    def _own_first(self, found: Sequence[tuple[RunRegistry, RunContext]]) -> RunContext | None:
        """The first context of this registry, else the first of another one, which is marked."""
        for registry, context in found:
            if registry is self:
                return context
        return next((_lent(context) for _, context in found), None)

    def _match_announced(self, session_id: str, identity: Identity, run_id: object) -> RunContext | None:
        """The announced run that makes this first read: by its run id, else by session and identity."""
        with _announced_lock:
            announced = self._announced_in(session_id)
            has_id = [each for each in announced if each[1].run_id == str(run_id)]
            by_id = [each for each in has_id if identity != _NOBODY or not each[1].state.admitted]
            # the metadata may have no identity where the config has one
            context = self._own_first(by_id or [each for each in announced if each[1].identity in (identity, _NOBODY)])
            if context is None:
                return None
            context.is_identity_assumed = not by_id and context.identity != identity
            announced[:] = [each for each in announced if each[1] is not context]
            context.identity, context.checkpointed = identity, True  # the config's; metadata may be its client's
            return context


def _handles_of_task() -> Iterator[RunHandle]:
    """The handles of the run whose task makes this call, and of the runs that enclose it."""
    config = var_child_runnable_config.get() or {}
    handle = (config.get("configurable") or {}).get(_HANDLE)
    while isinstance(handle, RunHandle):
        yield handle
        handle = handle.enclosing


def _share(*contexts: RunContext) -> None:
    """Mark contexts of runs that several `Sessions` serve."""
    runs = frozenset(context.run_id for context in contexts if context.run_id is not None)
    for context in contexts:
        context.shared_with |= runs


def _lent(context: RunContext) -> RunContext:
    """A context of another `Sessions`, marked as used by this one too."""
    _share(context)
    if context.lease is not None:
        context.lease.is_shared = True
    return context


def _is_active(context: RunContext) -> bool:
    return context.lease is not None and not context.lease.is_over
