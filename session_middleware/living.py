"""`LivingSession`: how a session in hand is kept alive, changed and ended; and what belongs to it while it lives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any, Self, Unpack, cast

from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, PrivateAttr

from session_middleware import lifecycle
from session_middleware.display.text import plural
from session_middleware.models import Closed, Identity, NewId, Pin, SessionInfo
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.runtime.resources import Key, path_of
from session_middleware.runtime.run_context import as_config
from session_middleware.services import Services
from session_middleware.session_storage import SessionStorage
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import SessionHandle
from session_middleware.storage.upkeep import DeletionCounts
from session_middleware.storage.validation import SessionOptions, check_text, details_of, spelled_out


class LivingSession(SessionInfo):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, defer_build=True)

    _parts: Services = PrivateAttr()
    _storage: Storage = PrivateAttr()  # a `SessionStorage`: each call finds this session, or raises
    _offload: StorageExecutor = PrivateAttr()
    _recorder: SessionRecorder = PrivateAttr()
    _new_id: NewId = PrivateAttr()
    _hand: SessionHandle = PrivateAttr()
    _check: Callable[..., SessionInfo] = PrivateAttr()  # that it is still there, and the caller's

    @classmethod
    def of(cls, info: SessionInfo, parts: Services) -> Self:
        """A session in hand, seen as of now."""
        seen = lifecycle.as_of(info, parts.settings, parts.clock())
        session = cast("Self", cls.model_construct(**dict(seen)))
        session._parts = parts
        session._offload = parts.offload
        session._recorder, session._new_id = parts.recorder, parts.new_id
        session._hand = parts.hand or SessionHandle(info.incarnation)
        storage: Any = parts.storage
        if parts.hand is None:
            storage = SessionStorage(storage, info.id, session._hand, None)
        session._storage, session._check = storage, storage.check
        return session

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is its fields: a `SessionInfo`. Its record is where its database is."""
        return SessionInfo.model_validate, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy of its fields, for the same session of the same database."""
        copied = self.__copy__()
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def __repr__(self) -> str:
        told = [self.status, f"of {self.user_id!r}" if self.user_id is not None else "nobody's"]
        told += [repr(self.title)] if self.title else []
        told += [plural(self.message_count, "message"), plural(self.tool_call_count, "tool call")]
        return f"<Session {self.id!r}: {', '.join(told)}>"

    @property
    def acting(self) -> Identity:
        """Who acts in it: its owner, or whoever it was got for."""
        return self._parts.by or Identity(user_id=self.user_id, group_id=self.group_id)

    def _again(self, info: SessionInfo) -> Self:
        self._parts.hooks.wake()
        return type(self).of(info, self._parts)

    # Changing

    def config(self, **configurable: Any) -> RunnableConfig:
        """The config of a run in this session, as its owner, or as whoever it was got for."""
        given = {"thread_id": self.id, **as_config(self.acting)}
        return {"configurable": {**configurable, **given}, "metadata": given}

    @spelled_out(SessionOptions)
    def update(self, **options: Unpack[SessionOptions]) -> Self:
        """The session with what is given replaced.

        ``None`` leaves what is there; ``""`` takes a title or purpose away, ``[]`` all tags.
        `metadata`, `context` and `client` merge at every depth, and ``None`` takes a key away. A timeout
        of ``"never"`` is none, whatever the settings say.

        Raises:
            InvalidArgument: what is given cannot be used; nothing was changed.
            SessionNotFound: it was deleted meanwhile.
        """
        info = self._storage.update_session(self.id, details_of(**options), by=self._parts.by)
        return self._again(info)

    aupdate = async_twin(update)

    def connect(self, /, **client: Any) -> Self:
        """Say which client is there now: ``name``, ``version``, ``capabilities`` … An event."""
        info = self._storage.update_session(self.id, details_of(client=client), by=self._parts.by)
        return self._again(info)

    aconnect = async_twin(connect)

    def disconnect(self, reason: str | None = None) -> None:
        """Say that the client has gone. An event; the session goes on."""
        self._storage.append_event(self.id, "disconnected", reason=reason, detail=self.client)

    adisconnect = async_twin(disconnect)

    # Staying alive

    def ping(self) -> datetime | None:
        """Keep it alive without a run; when it expires now if nothing more happens, ``None``: never.

        Raises:
            InvalidTransition: it has ended. A ping revives nothing.
        """
        info = self._storage.ping_session(self.id, by=self._parts.by)
        return lifecycle.expires_at(info, self._parts.settings)

    aping = async_twin(ping)

    def pin(self, why: str | None = None, *, by: str | None = None) -> Self:
        """Exempt it from expiry, retention and cleaning until `unpin`; an event says on whose word, and why."""
        for name, text in (("why", why), ("by", by)):
            if text is not None:
                check_text(name, text)
        pin = Pin(by=by, why=why, at=self._parts.clock())
        return self._again(self._storage.pin_session(self.id, pin, by=self._parts.by))

    apin = async_twin(pin)

    def unpin(self) -> Self:
        """No longer exempt; its idle time begins now."""
        return self._again(self._storage.pin_session(self.id, None, by=self._parts.by))

    aunpin = async_twin(unpin)

    # Ending

    def complete(self, *, reason: str = "by_user", detail: dict[str, Any] | None = None) -> Self:
        """End it as done. Running it again reopens it, unless ``on_closed`` is ``"reject"``.

        Raises:
            InvalidTransition: it has ended already.
        """
        return self._end("completed", reason, detail or {})

    acomplete = async_twin(complete)

    def fail(
        self, error: BaseException | str | None = None, *, reason: str = "by_user", detail: dict[str, Any] | None = None
    ) -> Self:
        """End it as failed. Raises `InvalidTransition` when it has ended already."""
        told = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        return self._end("failed", reason, {**(detail or {}), **({"error": told} if told else {})})

    afail = async_twin(fail)

    def abandon(self, *, reason: str = "by_user", detail: dict[str, Any] | None = None) -> Self:
        """End it as given up. Raises `InvalidTransition` when it has ended already."""
        return self._end("abandoned", reason, detail or {})

    aabandon = async_twin(abandon)

    def _end(self, status: Closed, reason: str, detail: dict[str, Any]) -> Self:
        self._recorder.drain(self.id)
        info = self._storage.end_session(self.id, status, reason=reason, detail=detail, by=self._parts.by)
        self._parts.resources.close([self.id])
        return self._again(info)

    def delete(self) -> DeletionCounts:
        """Delete everything of it, and say how much that was."""
        return delete(self.id, self._parts, self._storage)

    adelete = async_twin(delete)

    # What belongs to it

    def resource(self, name: str, *, open: Callable[[], Any], close: Callable[[Any], Any] | None = None) -> Any:
        """What `open` returned when it was first asked for, until the session ends; then `close` is called with it.

        The same object in all runs of this process. It is closed as well when more than
        ``max_open_resources`` are open and this is the one not asked for the longest, and at exit.

        Raises:
            SessionNotFound: it was deleted, or may only be read.
            InvalidTransition: it has ended.
        """
        self._check_lives()
        return self._parts.resources.get(self._key(name), open, close)

    async def aresource(
        self, name: str, *, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None = None
    ) -> Any:
        """`resource`, of asynchronous functions. Both are awaited in one task, on the loop that asked first."""
        await self._offload.run(self._check_lives)
        return await self._parts.resources.aget(self._key(name), open, close)

    def _key(self, name: str) -> Key:
        self._parts.pulse.start()  # it closes what belongs to sessions that have ended elsewhere
        return Key(self.id, self._hand.incarnation, name)

    def _check_lives(self) -> None:
        """It is still the one it was, open, and theirs to change: nothing of another's is handed out."""
        info = self._check(reading=False)
        lifecycle.check_open(self.id, lifecycle.status_at(info, self._parts.settings, self._parts.clock()))

    def path(self, template: str) -> Path:
        """A path from a template over ``{session_id}``, ``{user_id}`` and ``{group_id}``, safe whatever these hold.

        Raises:
            PathTemplateError: the session has no value for one of them.
        """
        return path_of(template, {"session_id": self.id, "user_id": self.user_id, "group_id": self.group_id})


def delete(session_id: str, parts: Services, storage: Storage | None = None) -> DeletionCounts:
    """Everything of a session, also of one that cannot be read; `storage`: a session handle's own."""
    parts.recorder.drain(session_id)
    deleted = (storage or parts.storage).delete_session(session_id, by=parts.by)
    parts.recorder.forget(session_id)
    parts.visits.forget(session_id)
    parts.resources.close([session_id])
    parts.hooks.wake()
    return deleted
