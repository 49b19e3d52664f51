"""`AuthorizedStorage`: the storage for one incarnation of a session and for one caller.

A write is checked in its own transaction. A read is checked after it and before its result is returned. So
if a session is deleted and its id is opened by another user, handles of the old session do not access the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from session_middleware import lifecycle
from session_middleware.errors import SessionAccessDenied, SessionNotFound, UserRevoked
from session_middleware.models import Identity, SessionInfo
from session_middleware.storage.memory_types import MemoryPut
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import Entry, RunEnd
from session_middleware.storage.run import RunContext, SessionHandle
from session_middleware.storage.types import SessionSize, Watch

P = ParamSpec("P")
R = TypeVar("R")


def _checked(
    method: Callable[Concatenate[Storage, P], R], *, reading: bool
) -> Callable[Concatenate[AuthorizedStorage, P], R]:
    @wraps(method)
    def call(self: AuthorizedStorage, /, *args: P.args, **kwargs: P.kwargs) -> R:
        operation = partial(getattr(self._storage, method.__name__), *args, **kwargs)
        if not reading:
            result: R = self.in_transaction(operation)
            return result
        result = operation()
        self.check(reading=True)
        return result

    return call


_reading, _writing = partial(_checked, reading=True), partial(_checked, reading=False)


class AuthorizedStorage:
    """The operations of `Storage` that a `Session` uses. Each one checks that the caller has access.

    Without an `identity` the caller is the operator. Raises `SessionNotFound` if the session was deleted, also if
    its id was opened again, or if the identity has no access; `SessionAccessDenied` for a change by an identity that
    may only read; `UserRevoked` for a revoked user.
    """

    def __init__(self, storage: Storage, session_id: str, handle: SessionHandle, identity: Identity | None) -> None:
        self._storage, self._session_id, self._handle, self._identity = storage, session_id, handle, identity

    @property
    def name(self) -> str:
        return self._storage.name

    find_file = _reading(Storage.find_file)
    find_message = _reading(Storage.find_message)
    find_message_point = _reading(Storage.find_message_point)
    find_session = _reading(Storage.find_session)
    find_speakers = _reading(Storage.find_speakers)
    get_memories = _reading(Storage.get_memories)
    list_branches = _reading(Storage.list_branches)
    list_messages = _reading(Storage.list_messages)
    list_messages_around = _reading(Storage.list_messages_around)
    list_records = _reading(Storage.list_records)
    list_timeline = _reading(Storage.list_timeline)
    list_unfinished = _reading(Storage.list_unfinished)
    search_memories = _reading(Storage.search_memories)

    fork_session = _writing(Storage.fork_session)
    delete_message = _writing(Storage.delete_message)
    delete_session = _writing(Storage.delete_session)
    end_session = _writing(Storage.end_session)
    merge_sessions = _writing(Storage.merge_sessions)
    pin_session = _writing(Storage.pin_session)
    ping_session = _writing(Storage.ping_session)
    prune_checkpoints = _writing(Storage.prune_checkpoints)
    switch_branch = _writing(Storage.switch_branch)
    update_session = _writing(Storage.update_session)

    def measure_session(self, session_id: str) -> tuple[SessionSize, SessionInfo]:
        """The size of the session, and the session as stored after that."""
        return self._storage.measure_session(session_id), self.check(reading=True)

    def watch_session(self, session_id: str, on_change: Callable[[], object]) -> Watch:
        return self._storage.watch_session(session_id, on_change)  # the reads that follow a change are checked

    def append(self, context: RunContext, entries: Sequence[Entry] = ()) -> None:
        """Append entries. The end of an admitted run needs no access; the storage's own admission decides on it."""
        call = partial(self._storage.append, context, entries)
        is_end = any(isinstance(entry, RunEnd) for entry in entries)
        if not entries or (self._identity is not None and not is_end):
            self.in_transaction(call)
            return
        try:
            call()
        except SessionAccessDenied:
            self.check(reading=False)
            raise

    def put_memories(self, puts: Sequence[MemoryPut], *, context: RunContext | None = None) -> None:
        """Put memories. Those of the session's own scope need write access."""
        reading = all(put.namespace[:1] != ("session",) for put in puts)
        self.in_transaction(partial(self._storage.put_memories, puts, context=context), reading=reading)

    def in_transaction(self, call: Callable[[], Any], *, reading: bool = False) -> Any:
        def checked() -> Any:
            self.check(reading=reading)
            return call()

        (outcome,) = self._storage.run_batch([checked], durable=True, of=self._session_id)
        return outcome()

    def check(self, *, reading: bool) -> SessionInfo:
        """The session as stored now. Raises unless the caller has access."""
        identity = self._identity
        if identity is not None and self._storage.list_revoked([identity.user_id]):
            raise UserRevoked(self._session_id, user_id=identity.user_id)
        session = self._storage.find_session(self._session_id)
        if session is None or session.incarnation != self._handle.incarnation:
            raise SessionNotFound(self._session_id, deleted=True)
        if identity is not None:
            lifecycle.check_theirs(session, identity, reading=reading)
        return session
