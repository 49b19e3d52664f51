"""The storage as one session handle may use it: of that session only, as long as it is there and the caller's.

A write is checked in its own transaction. A read is made, then the session is checked, and only then is the
result returned. So a session that is deleted and opened again by another caller between two calls is not shown
to the holder of the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from session_middleware import lifecycle
from session_middleware.errors import SessionAccessDenied, SessionNotFound, UserRevoked
from session_middleware.model import Identity, SessionInfo
from session_middleware.storage.memory_port import MemoryPut
from session_middleware.storage.port import Storage
from session_middleware.storage.seen import Entry, RunEnd
from session_middleware.storage.visit import Hand, Visit

_WRITES = frozenset(
    {
        *("append_event", "begin_run", "copy_session", "delete_message", "delete_session", "end_session"),
        *("pin_session", "ping_session", "prune_checkpoints", "update_session"),
    }
)
_READS = frozenset({"find_entry", "find_session", "measure_session", "version"})


class SessionStorage:
    """`Storage` for the session that `hand` holds, and for one user where there is an `identity`.

    Raises `SessionNotFound` once the session was deleted, also where its id was opened again, and for a session
    that is not the user's; `UserRevoked` for a user who was revoked.
    """

    def __init__(self, storage: Storage, session_id: str, hand: Hand, identity: Identity | None) -> None:
        self._storage = storage
        self._session_id = session_id
        self._hand = hand
        self._identity = identity

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found
        if name in _WRITES:
            return partial(self._write, found)
        if name in _READS or name.startswith(("list_", "count_", "get_", "search_")):
            return partial(self._read, found)
        raise AttributeError(f"{name} is not for a session handle; use the operator's storage")

    def append(self, visit: Visit, entries: Sequence[Entry] = ()) -> None:
        """The end of a run that was let in is no access: the door writes it down, also where it refuses the rest."""
        if self._identity is not None and not any(isinstance(entry, RunEnd) for entry in entries):
            self._write(self._storage.append, visit, entries)
            return
        try:
            self._storage.append(visit, entries)
        except SessionAccessDenied:
            self.check(reading=False)
            raise

    def put_memories(self, puts: Sequence[MemoryPut], *, visit: Visit | None = None) -> None:
        """What is put for the session itself changes the session."""
        reading = all(put.namespace[:1] != ("session",) for put in puts)
        self._together(partial(self._storage.put_memories, puts, visit=visit), reading=reading)

    def _read(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        self.check(reading=True)
        return result

    def _write(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._together(partial(call, *args, **options), reading=False)

    def _together(self, call: Callable[[], Any], *, reading: bool) -> Any:
        def checked() -> Any:
            self.check(reading=reading)
            return call()

        (outcome,) = self._storage.together([checked], durable=True)
        return outcome()

    def check(self, *, reading: bool) -> SessionInfo:
        """The session, as of now."""
        identity = self._identity
        if identity is not None and self._storage.is_revoked(identity.user_id):
            raise UserRevoked(self._session_id, user_id=identity.user_id)
        session = self._storage.find_session(self._session_id)
        if session is None or session.incarnation != self._hand.incarnation:
            raise SessionNotFound(self._session_id, deleted=True)
        if identity is not None and not lifecycle.is_theirs(session, identity, reading=reading):
            raise SessionNotFound(self._session_id)
        return session
