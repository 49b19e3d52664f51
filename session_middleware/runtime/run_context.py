"""Which context a call belongs to: what ties a run's first look, its writes and its callbacks together.

LangGraph tells a saver nothing of the run it saves for, and a callback handler nothing of the saver.
What they share is the thread id, the context, and the config that a run keeps from its first look to its
last write. So a `RunContext` is made when a run begins, by the recorder if it is there and else by the
saver's first look; a `RunHandle` put into that config leads back to it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware import lifecycle
from session_middleware.errors import SessionError
from session_middleware.models import Identity
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.runtime.run_ends import Manager, call_at_end, find_loop
from session_middleware.storage.run import Lease, RunContext

_REMEMBERED = 1024  # sessions whose latest context is kept in mind
_RUNTIME = "__pregel_runtime"  # LangGraph puts it into the config of a run, which what is called inside inherits
_TASK = "__pregel_task_id"  # and this into that of each task
_PRESENCE = "__pregel_session_context"  # ours; what begins so is kept out of metadata and of what is streamed

_AUTHENTICATED_ID, _AUTHENTICATED = "langgraph_auth_user_id", "langgraph_auth_user"  # LangGraph's server sets these

_NOBODY = Identity()
# Announced runs of all `Sessions` in this process, by file and run id. LangGraph's server loads the module that makes
# a `Sessions` once for the graph and once for the checkpointer, so the recorder and the saver of a run are of two.
_announced: dict[tuple[str, str], RunContext] = {}
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

    An empty id names nobody: LangGraph's server passes one for an anonymous user. A user whom that server has
    authenticated comes before the ids in the config, which its client may have written.
    """
    authenticated = _given(configurable.get(_AUTHENTICATED_ID))
    if authenticated is not None:
        user: Any = configurable.get(_AUTHENTICATED)
        return checked_identity(authenticated, *(_given(_field(user, name)) for name in ("group_id", "group_ids")))
    given = configurable.get("user_id"), configurable.get("group_id"), configurable.get("group_ids")
    return named_identity(*map(_given, given)) if given != _NOTHING_GIVEN else _acting_as.get()


_NOTHING_GIVEN = (None, None, None)


def _given(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [each for each in value if each != ""]
    return None if isinstance(value, str) and not value else value


def _field(user: Any, name: str) -> Any:
    return user.get(name) if isinstance(user, Mapping) else getattr(user, name, None)


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
    """A config that names a checkpoint (session, namespace, id) and carries on who asked for it."""
    named = {"thread_id": key[0], "checkpoint_ns": key[1], "checkpoint_id": key[2]}
    return {"configurable": named | as_config(identity)}


def as_config(identity: Identity) -> dict[str, Any]:
    """As `identity_of` reads it."""
    found: dict[str, Any] = {}
    if identity.user_id is not None:
        found["user_id"] = identity.user_id
    if identity.group_id is not None:
        found["group_id"] = identity.group_id
    if identity.group_ids:
        found["group_ids"] = list(identity.group_ids)
    return found


class RunHandle:
    """Of a run, in its config and in those of its tasks."""

    __slots__ = ("around", "context", "of")

    def __init__(self, context: RunContext, of: RunRegistry, around: RunHandle | None) -> None:
        self.context = context
        self.of = of
        self.around = around  # of the run whose task called this one


class RunRegistry:
    """The runs in progress of one `Sessions`, and the context of the present context."""

    def __init__(self, background: BackgroundWorker, *, tracking: bool = True, path: str = "") -> None:
        self._background = background
        self._path = path  # of the database file; empty where no other `Sessions` can have it
        self._tracking = tracking  # the end of a run that was announced is written down
        self._lock = threading.Lock()
        self._unclaimed: dict[str, list[RunContext]] = {}
        self._latest: OrderedDict[str, RunContext] = (
            OrderedDict()
        )  # by session; for writes that have lost their context
        self._begun: list[Callable[[RunContext, Any], object]] = []
        self._ended: list[Callable[[], object]] = []
        self._here: ContextVar[RunContext | None] = ContextVar("session_middleware_context", default=None)
        self._entered: ContextVar[tuple[RunContext, ...]] = ContextVar("session_middleware_entered", default=())

    def begin(self, context: RunContext) -> None:
        """A run was announced; it is in progress until `end`."""
        with self._lock:
            self._unclaimed.setdefault(context.session_id, []).append(context)
        if self._path and context.run_id is not None:
            _announced[self._path, context.run_id] = context
        self.keep_alive(context)

    def keep_alive(self, context: RunContext) -> None:
        """Have a run, whose end will be told, known to live until `end`."""
        around = self._with_turn(context.session_id)
        if context.lease is not None and around is not None:
            context.lease, context.is_inside = around.lease, True
        elif context.lease is not None:
            context.lease.has_row = self._tracking
            self._background.begin(context)

    def enter(self, context: RunContext) -> None:
        """What is begun in this context from now on, until the context's run ends, is inside of that."""
        self._entered.set((*filter(_is_running, self._entered.get()), context))

    def _with_turn(self, session_id: str) -> RunContext | None:
        """The run of this session that this call is made inside of, if that has the session alone."""
        for context in (self._around({}, session_id), *self._entered.get()):
            if context is not None and context.session_id == session_id and _is_running(context):
                return context if context.lease is not None and context.lease.is_exclusive else None
        return None

    def on_begin(self, call: Callable[[RunContext, Any], object]) -> None:
        """Have `call` made with each run that no recorder announces, and what it is called with. It must not raise."""
        self._begun.append(call)

    def on_end(self, call: Callable[[], object]) -> None:
        """Have `call` made after each run; it must not wait."""
        self._ended.append(call)

    def end(self, context: RunContext) -> None:
        _announced.pop((self._path, str(context.run_id)), None)
        with self._lock:
            remaining = [v for v in self._unclaimed.pop(context.session_id, ()) if v is not context]
            if remaining:
                self._unclaimed[context.session_id] = remaining
        if context.lease is not None and not context.is_inside:
            self._background.end(context.lease)
        for call in self._ended:
            call()

    def arrive(self, configurable: dict[str, Any]) -> RunContext:
        """The context of a first look: an announced run's, else the running one's, else a new one.

        `configurable` is the run's own, and is given the run's `RunHandle`.
        """
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        around = self._around(configurable, session_id)
        if around is not None and around.identity == identity:
            return around
        loop = find_loop() if _RUNTIME in configurable else None
        manager = None if loop is None else loop.manager
        is_run = manager is not None or (_RUNTIME in configurable and _TASK not in configurable)
        run_id = configurable.get("run_id") if manager is None else manager.run_id
        claimed = self._claim(session_id, identity, run_id) if is_run else None
        context = claimed or RunContext(session_id, identity)
        context.reading = not is_run
        if is_run:
            self._attend(context, configurable, around, manager)
        if claimed is None and loop is not None:
            for call in self._begun:
                call(context, loop.input)
        self._here.set(context)
        return self._remember(context)

    def present(self, configurable: Mapping[str, Any]) -> RunContext:
        """The context this write belongs to; a new one for a write out of the blue.

        LangGraph makes some writes from threads that have lost the run's context, and a caller may have
        made a config of his own: the latest context of the same session and identity is looked for then.
        """
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        presence = configurable.get(_PRESENCE)
        if self._is_own(presence) and _is_same(presence.context, session_id, identity):
            if presence.context.lease is not None and presence.context.lease.silent_beats is not None:
                self._background.hear(presence.context)
            return presence.context
        return self._last(session_id, identity) or RunContext(session_id, identity)

    def alone(self, configurable: Mapping[str, Any], *, anew: bool) -> RunContext:
        """The context of a run that neither a checkpointer nor a recorder of ours serves."""
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        found = None if anew else self._last(session_id, identity)
        return found or self._remember(RunContext(session_id, identity))

    def inside(self, configurable: Mapping[str, Any]) -> RunContext | None:
        """The run in progress that this config is of; ``None`` outside of any, or if nothing of ours serves it."""
        session_id, identity = lifecycle.session_id_of(configurable.get("thread_id")), identity_of(configurable)
        around = self._around(configurable, session_id)
        if around is None and var_child_runnable_config.get() is not None:
            with self._lock:  # a run that has a recorder and no checkpointer
                announced = self._unclaimed.get(session_id, [])
                around = next((context for context in reversed(announced) if context.identity == identity), None)
        return around if around is not None and around.identity == identity else None

    def _remember(self, context: RunContext) -> RunContext:
        with self._lock:
            self._latest[context.session_id] = context
            self._latest.move_to_end(context.session_id)
            if len(self._latest) > _REMEMBERED:
                self._latest.popitem(last=False)
        return context

    def _last(self, session_id: str, identity: Identity) -> RunContext | None:
        with self._lock:
            latest = self._latest.get(session_id)
        for context in (self._here.get(), latest):
            if context is not None and _is_same(context, session_id, identity):
                return context
        return None

    def forget(self, session_id: str) -> None:
        """The session was deleted here: what is written to its id now, other than by a run, opens it anew."""
        with self._lock:
            context = self._latest.pop(session_id, None)
        for each in (context, self._here.get()):
            if each is not None and each.session_id == session_id and not _is_running(each):
                each.session_id = ""  # which is nobody's

    @contextmanager
    def claiming(self, context: RunContext) -> Iterator[None]:
        """A first look. If it is refused in the block, the announced run it claimed was somebody else's.

        What is asked afterwards is no part of the context that was refused.
        """
        try:
            yield
        except SessionError:
            if self._here.get() is context:
                self._here.set(None)
            with self._lock:
                if self._latest.get(context.session_id) is context:
                    del self._latest[context.session_id]
                if context.guessed and not context.admitted:
                    context.identity, context.guessed, context.checkpointed = _NOBODY, False, False
                    self._unclaimed.setdefault(context.session_id, []).append(context)
            raise

    def _is_own(self, presence: Any) -> TypeGuard[RunHandle]:
        return isinstance(presence, RunHandle) and presence.of is self

    def _around(self, configurable: Mapping[str, Any], session_id: str) -> RunContext | None:
        """The run in progress in this session that this call is made inside of."""
        presence = configurable.get(_PRESENCE)
        if self._is_own(presence) and presence.context.session_id == session_id:
            return presence.context
        presence = _of_task()
        while presence is not None:
            if self._is_own(presence) and presence.context.session_id == session_id and _is_running(presence.context):
                return presence.context
            presence = presence.around
        here = self._here.get()
        if here is None or here.session_id != session_id or not _is_running(here):
            return None
        if configurable.get("checkpoint_ns") or var_child_runnable_config.get() is not None:
            return here
        return None  # whoever reads a stream has its context, and is not inside the run

    def _attend(
        self, context: RunContext, configurable: dict[str, Any], around: RunContext | None, manager: Manager | None
    ) -> None:
        """See that the run is known to live for as long as it does."""
        configurable[_PRESENCE] = RunHandle(context, self, _of_task())
        around = around or self._with_turn(context.session_id)
        if around is not None and around.lease is not None:
            context.lease = around.lease
        elif context.lease is None:
            context.lease = lease = Lease(silent_beats=0 if manager is None else None)
            self._background.begin(context)
            if manager is not None:
                call_at_end(manager, lambda error: self._background.end(lease, error))

    def _claim(self, session_id: str, identity: Identity, run_id: object) -> RunContext | None:
        named = _announced.pop((self._path, str(run_id)), None)
        if named is not None and named.session_id == session_id and not named.admitted:
            named.identity, named.checkpointed = identity, True  # the config's; metadata may be its client's
            return named
        with self._lock:
            announced = self._unclaimed.get(session_id, [])
            for context in announced:
                if context.checkpointed:
                    continue
                is_it = identity != _NOBODY and context.run_id == str(run_id)
                if is_it or context.identity in (identity, _NOBODY):  # metadata may not say who, the config does
                    announced.remove(context)
                    context.guessed = context.identity != identity
                    context.identity = identity
                    context.checkpointed = True
                    return context
        return None


def _of_task() -> RunHandle | None:
    """That of the run in a task of which this call is made."""
    config = var_child_runnable_config.get() or {}
    presence = (config.get("configurable") or {}).get(_PRESENCE)
    return presence if isinstance(presence, RunHandle) else None


def _is_running(context: RunContext) -> bool:
    return context.lease is not None and not context.lease.is_over


def _is_same(context: RunContext, session_id: str, identity: Identity) -> bool:
    return context.session_id == session_id and context.identity == identity
