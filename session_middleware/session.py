"""`Session`: the fields of one session as they were read, and the methods that read and change it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NoReturn, ParamSpec, Self, TypeVar, Unpack, cast, overload

from langchain_core.runnables import RunnableConfig

from session_middleware import lifecycle
from session_middleware.checkpoint import editing
from session_middleware.checkpoint.appending import append_messages
from session_middleware.display.html import Rows
from session_middleware.display.text import plural
from session_middleware.errors import InvalidArgument, SessionBusy
from session_middleware.exports.formats import FORMATS, Format, checked_target
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.models import (
    Branch,
    Ended,
    Event,
    Identity,
    Message,
    ModelCall,
    Pin,
    Question,
    RepairedCall,
    Run,
    SessionFields,
    SessionInfo,
    Siblings,
    Stats,
    Status,
    ToolCall,
)
from session_middleware.recording import turns
from session_middleware.recording.chat_message_history import SessionHistory
from session_middleware.recording.follow import Following, afollow, follow
from session_middleware.recording.manual import F, ManualRecorder
from session_middleware.runtime.authorized_storage import AuthorizedStorage
from session_middleware.runtime.resources import ExclusiveUse, Key, path_of
from session_middleware.runtime.run_context import identity_of, run_config
from session_middleware.settings import duration_of
from session_middleware.storage import validation
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.filters import check_filter, passes
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext, RunState, SessionHandle
from session_middleware.storage.timeline import Timeline
from session_middleware.storage.types import DeletionCounts, MessagePoint, Part, Record, SessionFilter, merged_id

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", ToolCall, ModelCall, Run, Question, Event)

if TYPE_CHECKING:
    from session_middleware.checkpoint.saver import SessionSaver
    from session_middleware.experiments.comparison import Comparison
    from session_middleware.sessions import Sessions
    from session_middleware.user_sessions import SessionAccess


def _recording(method: Callable[Concatenate[ManualRecorder, P], T]) -> Callable[Concatenate[Session, P], T]:
    """The method of `Session` that calls this method of its recorder, with the same signature."""

    @wraps(method)
    def call(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self._manual, *args, **kwargs)

    call.__qualname__ = f"Session.{method.__name__}"
    return call


@validation.suggesting
class Session(SessionFields):
    """One session: its fields as of when it was read, and methods that read and change it now.

    A frozen value. ``dict(session)`` has its fields, and sessions with equal fields are equal. Reading a session
    neither revives it nor counts as activity. Methods with the prefix ``a`` are the async twins.
    """

    _sessions: Sessions
    _identity: Identity | None  # of the caller; None: the operator
    _handle: SessionHandle
    _authorized: AuthorizedStorage
    _storage: Storage  # the same, which has all methods of `Storage` that are used here
    _offload: StorageExecutor
    _manual: ManualRecorder

    def __init__(self, info: SessionInfo, sessions: Sessions, identity: Identity | None = None) -> None:
        """The session as of now, for a caller with this identity, or for the operator. `Sessions` calls this."""
        handle, own = SessionHandle(info.incarnation), vars(self)
        authorized = AuthorizedStorage(sessions._storage, info.id, handle, identity)
        storage = cast("Storage", authorized)
        own.update(lifecycle.as_of(info, sessions.settings, sessions._clock()))
        own |= {"_sessions": sessions, "_identity": identity, "_handle": handle}
        own |= {"_storage": storage, "_authorized": authorized, "_offload": sessions._offload}
        own["_manual"] = ManualRecorder(
            sessions._storage if identity is None else storage,
            *(sessions.recorder.buffer, sessions._runs, sessions._run_queue),
            session_id=info.id,
            owner=self.acting,
            handle=handle,
        )

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in SessionInfo.model_fields)

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Session) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.id, self.incarnation))

    def __setattr__(self, name: str, value: object = None) -> NoReturn:
        raise AttributeError(f"a Session cannot be changed in place; change it with update({name}=…), which returns it")

    __delattr__ = __setattr__

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields only, as a `SessionInfo`."""
        return SessionInfo.model_validate, (dict(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the fields; the copy is for the same session of the same database."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self), **deepcopy(dict(self), memo))
        return copied

    def __repr__(self) -> str:
        parts = [self.status, f"of {self.user_id!r}" if self.user_id is not None else "no owner"]
        parts += [repr(self.title)] if self.title else []
        parts += [plural(self.message_count, "message"), plural(self.tool_call_count, "tool call")]
        return f"<Session {self.id!r}: {', '.join(parts)}>"

    @property
    def acting(self) -> Identity:
        """The identity of its runs: that of the caller, or of the owner if an operator got it."""
        return self._identity or Identity(user_id=self.user_id, group_id=self.group_id)

    def _changed(self, info: SessionInfo) -> Self:
        return type(self)(info, self._sessions, self._identity)

    # Changing

    def config(self, **configurable: Any) -> RunnableConfig:
        """The config of a run in this session, with the identity of the caller, or of the owner for an operator."""
        return run_config(self.id, self.acting, configurable)

    @validation.spelled_out(validation.SessionOptions)
    def update(self, **options: Unpack[validation.SessionOptions]) -> Self:
        """Change fields of the session. Returns it as changed.

        ``None`` leaves a field unchanged; ``""`` removes a title or purpose, ``[]`` all tags. `metadata`, `context`
        and `client` are merged at every depth, and ``None`` removes a key. A timeout of ``"never"`` means none.

        Raises:
            InvalidArgument: an argument is invalid. Nothing was changed.
            SessionNotFound: the session was deleted.
        """
        return self._changed(self._storage.update_session(self.id, validation.details_of(**options)))

    # Activity

    def ping(self) -> datetime | None:
        """Count as activity without a run. Returns when the session expires now; ``None``: never.

        Raises:
            InvalidTransition: the session has ended. A ping does not revive it.
        """
        return lifecycle.expires_at(self._storage.ping_session(self.id), self._sessions.settings)

    def pin(self, why: str | None = None, *, by: str | None = None) -> Self:
        """Exempt the session from expiry and retention until `unpin`. An event records who pinned it, and why."""
        validation.check_optional_text("why", why)
        validation.check_optional_text("by", by)
        pin = Pin(by=by, why=why, at=self._sessions._clock())
        return self._changed(self._storage.pin_session(self.id, pin))

    def unpin(self) -> Self:
        """End the exemption. The idle time begins now."""
        return self._changed(self._storage.pin_session(self.id, None))

    # Ending

    def complete(self, *, reason: str = "by_user", detail: dict[str, Any] | None = None) -> Self:
        """End the session as completed. A run reopens it, unless ``on_closed`` is ``"reject"``.

        Raises:
            InvalidTransition: the session has ended already.
        """
        return self._end("completed", reason, detail)

    def fail(
        self, error: BaseException | str | None = None, *, reason: str = "by_user", detail: dict[str, Any] | None = None
    ) -> Self:
        """End the session as failed. Raises `InvalidTransition` if it has ended already."""
        validation.check_kind("error", error, BaseException | str | None, "an exception or its text")
        validation.check_kind("detail", detail, Mapping | None, "a dict")
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        return self._end("failed", reason, {**(detail or {}), **({"error": text} if text else {})})

    def abandon(self, *, reason: str = "by_user", detail: dict[str, Any] | None = None) -> Self:
        """End the session as abandoned. Raises `InvalidTransition` if it has ended already."""
        return self._end("abandoned", reason, detail)

    def expire(self, *, reason: str = "by_user", detail: dict[str, Any] | None = None) -> Self:
        """End the session as expired, now instead of by the clock; ``on_expire`` is applied by the next sweep.

        ``on_resume`` says what a later run does. Raises `InvalidTransition` if the session has ended already.
        """
        return self._end("expired", reason, detail)

    def _end(self, status: Ended, reason: str, detail: dict[str, Any] | None) -> Self:
        validation.check_optional_text("reason", reason)
        validation.check_kind("detail", detail, Mapping | None, "a dict")
        self._sessions.recorder.drain(self.id)
        info = self._storage.end_session(self.id, status, reason=reason, detail=detail or {})
        self._sessions._resources.close([self.id])
        return self._changed(info)

    # Forks

    @validation.spelled_out(validation.SessionOptions)
    def fork(self, at: Any = None, *, id: object = None, **options: Unpack[validation.SessionOptions]) -> Self:
        """A new session of the same owner that begins as this one did: its state, messages, title, tags and metadata.

        The stored values are shared, so a fork costs a row for each message and checkpoint, and remains whole if this
        session is deleted. Runs, calls, tokens and costs of this session are not counted again.

        Args:
            at: a message or a run, or its id: the fork ends before it; or the id of a checkpoint: the fork ends with
                it. ``None``: everything is kept, with all branches. Messages that were given in one call are before
                or after the point together.
            id: the id of the fork; by default a new one.
            options: fields of the fork, as for `update`.

        Raises:
            InvalidArgument: `at` is not in this session, or the checkpoints there were deleted.
            SessionAccessDenied: the caller may only read the session.
            SessionExists: a session has the id already.
        """
        target, details = self._sessions._id_of(id), validation.details_of(**options)
        point = validation.point_of(at)
        self._sessions.recorder.drain(self.id)
        return self._changed(self._storage.fork_session(self.id, target, at=point, details=details))

    def family(self, *, limit: int | None = 100) -> Rows[Session]:
        """The session, those that it was forked from, and all their forks that the caller may read, oldest first.

        `parent_id` of each makes a tree of them. If they are more than `limit`, the latest ones are returned.
        """
        where = SessionFilter(family_of=self.id, visible_to=self._identity)
        limit = validation.checked_limit(limit)
        found = self._sessions._storage.list_sessions(where, limit=limit, order="creation")
        return Rows(map(self._changed, reversed(found)), of=SessionInfo)

    def edit(self, message_id: str, text: str) -> RunnableConfig:
        """Edit a user's message: ``graph.invoke(None, session.edit(message_id, text))`` continues from it.

        The edit begins a branch with what was said before the message, which is the current branch from now on. The
        other branches remain: see `siblings` and `switch`. Images and other content of the message remain in it, and
        other messages of the same call too. A run may also begin later, or in another process, with `config`.

        Raises:
            InvalidArgument: the message is unknown, is not a user's, or is in no state that can be edited.
            SessionBusy: a run is in progress.
        """
        validation.check_kind("text", text, str, "the new text of the message")
        message_id = validation.message_id_of(message_id)
        self._sessions.recorder.drain(self.id)
        message = self._storage.find_message(self.id, message_id)
        if message is None:
            editing.refuse(message_id, "the id of a message of this session")
        if not turns.is_from_user(message):
            editing.refuse(message_id, f"a message of a user; this one is of role {message.role!r}: regenerate() it")

        def put() -> RunnableConfig:
            point = self._storage.find_message_point(self.id, message_id) or MessagePoint()
            saver, context, said = self._saver(), self._context(), (message_id, message.text)
            return self.config(checkpoint_id=editing.put_edited(saver, self.config(), context, said, point, text))

        return self._while_idle(put)

    def regenerate(self, message_id: str | None = None) -> RunnableConfig:
        """Ask again: ``graph.invoke(None, session.regenerate())`` answers the user's message before the last answer.

        The new answer is on a branch of its own, and tools are called again. The old answer remains on its branch.

        Args:
            message_id: a message of the answer, or the user's message. By default the last answer.

        Raises:
            InvalidArgument: the message is unknown, no user's message precedes it, or its step is not stored.
        """
        message_id = None if message_id is None else validation.message_id_of(message_id)
        found, (branch, place) = self._find_turn(message_id, reading=False)
        answer, begin = found[branch][place], turns.begin_of_turn(found[branch], place)
        asked = answer if turns.is_from_user(answer) else found[branch][begin - 1] if begin else None
        if asked is None or not turns.is_from_user(asked):
            editing.refuse(answer.message_id, "a message that answers one of a user")
        point = self._storage.find_message_point(self.id, asked.message_id, branch)
        checkpoint_id = None if point is None else point.checkpoint_id
        config = self.config(checkpoint_id=checkpoint_id)
        context = RunContext(self.id, identity_of(config["configurable"]), reading=True)
        state = None if checkpoint_id is None else self._saver().load(config, context)
        if state is None or (answer is not asked and editing.contains(state, answer.message_id)):
            wanted = "an answer before which a checkpoint is stored, as durability='async' does"
            editing.refuse(answer.message_id, wanted)
        return config

    def siblings(self, message_id: str) -> Siblings:
        """The versions of a turn: of a user's message and its edits, or of the answers to it. ``str()``: "2 of 3".

        `Siblings.branches` has a branch with each version, for `switch`. The messages of the session are read.

        Raises:
            InvalidArgument: the message is unknown, or is not in the state of the outermost graph.
        """
        found, at = self._find_turn(validation.message_id_of(message_id), reading=True)
        return turns.siblings(found, *at)

    def switch(self, branch: str) -> Self:
        """Make another branch the current one, which `messages`, the state, and the next run continue from.

        Args:
            branch: one of `branches`, or ``"main"``.

        Raises:
            InvalidArgument: there is no such branch, or its checkpoints were deleted.
            SessionBusy: a run is in progress.
        """
        validation.check_kind("branch", branch, str, "the id of a branch, such as 'main'")
        self._sessions.recorder.drain(self.id)
        return self._changed(self._while_idle(lambda: self._storage.switch_branch(self.id, branch)))

    def _find_turn(self, message_id: str | None, *, reading: bool) -> tuple[turns.Conversations, tuple[str, int]]:
        """The conversation on each branch, and the branch and place of a message, by default of the last answer."""
        self._sessions.recorder.drain(self.id)
        storage, info = self._storage, self._authorized.check(reading=reading)
        messages = storage.list_messages(self.id, all_versions=True, branch="all")
        found = turns.conversations(messages, storage.list_branches(self.id), info.branch)
        at = turns.find(found, message_id)
        if at is None and message_id is None:
            raise InvalidArgument("session", self.id, wanted="one that has messages")
        if at is None:
            editing.refuse(message_id, "the id of a message of this session")
        return found, at

    def _while_idle(self, work: Callable[[], T]) -> T:
        """Change the session in one transaction. Raises `SessionBusy` if a run is in progress."""

        def checked() -> T:
            if (holder := self._sessions._storage.find_active_run(self.id)) is not None:
                raise SessionBusy(self.id, run_id=holder.run_id, process=holder.process)
            return work()

        result: T = self._authorized.in_transaction(checked)
        return result

    def _context(self) -> RunContext:
        """Of a change of the state that is no run."""
        return RunContext(self.id, identity_of(self.config()["configurable"]), is_run=False, handle=self._handle)

    def _saver(self) -> SessionSaver:
        """The saver, which restores the classes of the attached graphs."""
        saver, allowed = self._sessions.checkpointer, self._sessions._allowed_types
        return cast("SessionSaver", saver.with_allowlist(frozenset(allowed))) if allowed else saver

    def merge(
        self, secondary: Session | str, *, state: Literal["keep_primary", "append_messages"] = "keep_primary"
    ) -> Self:
        """Make another session of the same owner a part of this one. Returns this one as changed.

        The records become one in the order of time, and a message or call that both have is one. The secondary's
        current branch is a part of this session's current branch. Memories, files, tags, metadata and context are
        united; what both have is this session's. Afterwards the id of the secondary finds and runs this session.
        Forks of the secondary keep all they have. Everything is done in one transaction.

        Args:
            secondary: the other session, or its id. A fork of this session may be merged, and this one into its fork.
            state: ``"keep_primary"`` leaves the graph's state as it is. ``"append_messages"`` appends the messages of
                the secondary's conversation to the state's ``messages``, as a new checkpoint, which the next run
                starts from; and its items to the conversation of another SDK.

        Raises:
            SessionNotFound: there is no such session, or it is another user's.
            SessionAccessDenied: the caller may only read one of them.
            SessionBusy: a run is in progress in one of them.
            InvalidArgument: both are one session, or have different owners or databases; or messages cannot be
                appended, because a tool or a person has not answered, or the state has no list of messages.
        """
        validation.check_choice("state", state, ("keep_primary", "append_messages"))
        sessions, appends = self._sessions, state == "append_messages"
        if isinstance(secondary, Session) and secondary._sessions is not sessions:
            raise InvalidArgument("secondary", secondary.id, wanted="a session of the same Sessions, or its id")
        other = self._access(sessions).get(secondary)
        for each in (self, other):
            sessions.recorder.drain(each.id)

        def operation() -> None:
            other._authorized.check(reading=False)
            said = other.history().read() if appends else []
            self._storage.merge_sessions(self.id, other.id, with_items=appends)
            if appends:
                ids = {message.message_id for message in self._storage.list_messages(self.id)}
                for message in said:
                    if (new_id := merged_id(message.id, other.id)) in ids:
                        message.id = new_id
                append_messages(self._saver(), self.config(), self._context(), said)

        self._authorized.in_transaction(operation)
        sessions._forget(other.id)
        sessions._resources.close([other.id])
        return self._changed(self._authorized.check(reading=False))

    def _access(self, sessions: Sessions) -> SessionAccess:
        """The sessions that the caller of this one has access to."""
        if (by := self._identity) is None:
            return sessions
        return sessions.for_user(str(by.user_id), by.group_ids, group_id=by.group_id)

    def prune(self) -> None:
        """Delete all but the latest checkpoints. The record and the memories remain."""
        self._storage.prune_checkpoints([self.id])

    def delete(self) -> DeletionCounts:
        """Delete the session and all its data. Returns the numbers of rows deleted."""
        return self._sessions._delete(self.id, self._storage, self._identity)

    # Exporting

    def export(self, path: str | Path, format: Format = "jsonl") -> Path:
        """Write the session to a file or folder, atomically, and return its path.

        Args:
            path: of the file, or with ``"folder"`` of a folder that is missing or empty. A file is replaced, unless
                it is a database. One that ends with ``.gz`` is compressed.
            format: ``"jsonl"`` is complete, and `Sessions.import_from` reads it. ``"markdown"`` and ``"html"`` are
                the conversation for people. ``"folder"``: ``metadata.json``, ``conversation.jsonl``,
                ``tool_calls.jsonl``, and a file for each tool call.

        Raises:
            SessionNotFound: the session was deleted.
            StorageError: the file cannot be written.
        """
        target = checked_target(path, format)
        self._sessions._flush(self.id)
        self._authorized.check(reading=True)
        if format == "jsonl":
            only = self.id, self._handle.incarnation
            self._sessions._storage.export_sessions(target, SessionFilter(), only=only)
        else:
            FORMATS[format].write(self, target)
        return target

    # Resources

    def resource(
        self,
        name: str,
        *,
        open: Callable[[], Any],
        close: Callable[[Any], Any] | None = None,
        exclusive: bool = False,
        holder: str | None = None,
    ) -> Any:
        """An object of the session, created by `open` at the first call and passed to `close` when the session ends.

        All runs of this process get the same object. It is closed earlier by `close_resource`, if more than
        ``max_open_resources`` are open and it is the least recently used, and at exit.

        Args:
            exclusive: open it in one process at a time, as a server process that writes to the session's folder needs.
                When that process has ended or was killed, another one may open it; on another machine a minute later.
            holder: a text for other processes, such as an address at which they reach this one.

        Raises:
            SessionNotFound: the session was deleted.
            SessionAccessDenied: the caller may only read the session.
            InvalidTransition: the session has ended.
            ResourceHeld: it is exclusive, and another process, or another `Sessions` of this one, has it open.
        """
        key = self._resource_key(name, open, close)
        return self._sessions._resources.get(key, open, close, self._exclusive_use(key, holder) if exclusive else None)

    async def aresource(
        self,
        name: str,
        *,
        open: Callable[[], Awaitable[Any]],
        close: Callable[[Any], Awaitable[None]] | None = None,
        exclusive: bool = False,
        holder: str | None = None,
    ) -> Any:
        """`resource`, with asynchronous functions. Both are awaited in one task, on the loop of the first call."""
        key = await self._offload.run(self._resource_key, name, open, close)
        use = self._exclusive_use(key, holder) if exclusive else None
        return await self._sessions._resources.aget(key, open, close, use)

    def close_resource(self, name: str) -> None:
        """Close a resource of this process now, such as one that has failed. The next use opens a new one."""
        key = self._key_of(name)
        self._authorized.check(reading=False)
        self._sessions._resources.close_where(key.__eq__)

    async def aclose_resource(self, name: str) -> None:
        """`close_resource`, for asyncio; it waits for the resource's own task."""
        key = self._key_of(name)
        await self._offload.run(partial(self._authorized.check, reading=False))
        await self._sessions._resources.aclose_one(key)

    def _key_of(self, name: str) -> Key:
        validation.check_text("name", name, at_least=1)
        return Key(self.id, self._handle.incarnation, name)

    def _exclusive_use(self, key: Key, holder: str | None) -> ExclusiveUse:
        validation.check_optional_text("holder", holder)
        return ExclusiveUse(self._sessions._storage, self._sessions._background, key, holder)

    def _resource_key(self, name: str, open: object, close: object) -> Key:
        """The key of a resource. Raises unless the session is open, and writable for the caller."""
        key = self._key_of(name)
        validation.check_callable("open", open, "a function that returns the resource")
        if close is not None:
            validation.check_callable("close", close, "a function of the resource")
        lifecycle.check_open(self.id, self._status(self._authorized.check(reading=False)))
        self._sessions._background.start()  # which closes resources of sessions that end in another process
        return key

    def path(self, template: str) -> Path:
        """A path from a template with ``{session_id}``, ``{user_id}`` and ``{group_id}``, whose values are escaped.

        Raises:
            PathTemplateError: the session has no value for one of them.
        """
        validation.check_text("template", template)
        return path_of(template, {"session_id": self.id, "user_id": self.user_id, "group_id": self.group_id})

    # The record

    def _flush(self, after: int, limit: int | None) -> None:
        """Commit what this session has buffered, before a page is read."""
        validation.check_seq(after)
        validation.checked_limit(limit)
        self._sessions.recorder.drain(self.id)

    def _records(self, kind: type[R], after: int, limit: int | None) -> Rows[R]:
        self._flush(after, limit)
        return Rows(self._storage.list_records(kind, self.id, Part(after, limit=limit)), of=kind)

    def _part(self, after: int, before: int | None, limit: int | None, last: int | None, *, subgraphs: bool) -> Part:
        """The part of the record to read. What this session has buffered is committed first."""
        self._flush(after, limit)
        if before is not None:
            validation.check_seq(before, "before")
        validation.checked_limit(last, "last")
        if last is not None and limit is not None:
            raise InvalidArgument("last", last, wanted="limit=… for the first records, or last=… for the last ones")
        return Part(after, before, limit if last is None else last, last is not None, bool(subgraphs))

    def messages(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
        last: int | None = None,
        subgraphs: bool = True,
        all_versions: bool = False,
        branch: str | None = None,
    ) -> Rows[Message]:
        """The messages in the order of the conversation; of an edited message the latest version, at its position.

        A chat shows ``messages(last=50)``, and scrolling up ``messages(last=50, before=shown[0].seq)``.

        Args:
            after: the `seq` of the last message of the page before; it may have been edited or deleted since.
            before: the `seq` of the first message of the page after.
            limit: the maximal number of messages.
            last: the number of messages at the end, or before `before`.
            subgraphs: ``False``: only the conversation of the outermost graph, without messages that are in no state.
            all_versions: include all versions of edited messages.
            branch: one of `branches`, or ``"main"``; by default the current branch of the session.
                ``"all"``: all messages, by `seq`.
        """
        part = self._part(after, before, limit, last, subgraphs=subgraphs)
        if branch not in (None, "main", "all"):
            validation.check_choice("branch", branch, ("main", "all", *(each.id for each in self.branches())))
        return Rows(
            self._storage.list_messages(self.id, part, all_versions=bool(all_versions), branch=branch), of=Message
        )

    def delete_message(self, message_id: str) -> int:
        """Delete all versions of a message from the record. Returns their number, 0 for an unknown id.

        This deletes its files unless other messages use them, its words in the index, its vectors, the memories
        with this `message_id`, and its item of another SDK's conversation. The database's file retains none of
        them. An event records the deletion, and the message is not recorded again: it is recognised by its id,
        and in histories without ids by its position and four hexadecimal digits of a digest of its text. The
        same text later in the conversation is a new message.

        The graph's state and the arguments and results of tool calls are not changed. Remove the message from
        the state with LangGraph's ``RemoveMessage``, and older checkpoints with `prune`.
        """
        validation.message_id_of(message_id)
        self._sessions.recorder.drain(self.id)
        return self._storage.delete_message(self.id, message_id)

    def tool_calls(
        self, *, after: int = 0, before: int | None = None, limit: int | None = None, last: int | None = None
    ) -> Rows[ToolCall]:
        """The executions of tools, in order. The arguments are those of `messages`."""
        part = self._part(after, before, limit, last, subgraphs=True)
        return Rows(self._storage.list_records(ToolCall, self.id, part), of=ToolCall)

    def model_calls(self, *, after: int = 0, limit: int | None = None) -> Rows[ModelCall]:
        """The calls of models, in order, with tokens, durations and cost."""
        return self._records(ModelCall, after, limit)

    def branches(self) -> Rows[Branch]:
        """The branches of the conversation other than ``"main"``, which each conversation begins on."""
        self._sessions.recorder.drain(self.id)
        return Rows(self._storage.list_branches(self.id), of=Branch)

    def runs(
        self,
        *,
        after: int = 0,
        limit: int | None = None,
        last: int | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Rows[Run]:
        """The runs, in order; of those with labels, the runs that have all these tags and this metadata.

        A filter of metadata is as in LangGraph's stores: ``{"experiment": "b"}``, ``{"attempt": {"$gt": 1}}``.
        With a filter, all runs after `after` are read. ``runs(last=1)`` is the latest run, read alone.
        """
        wanted = set(validation.checked_tags(tags))
        validation.check_kind("metadata", metadata, Mapping | None, "a dict")
        check_filter(metadata)
        part = self._part(after, None, limit, last, subgraphs=True)
        is_filtered = bool(wanted or metadata)
        runs = self._storage.list_records(Run, self.id, part._replace(limit=None if is_filtered else part.limit))
        if is_filtered:
            runs = [run for run in runs if wanted <= set(run.tags) and passes(run.metadata, metadata)]
            runs = runs[:limit] if last is None else runs[max(0, len(runs) - last) :]
        return Rows(runs, of=Run)

    def questions(self, *, after: int = 0, limit: int | None = None) -> Rows[Question]:
        """What the graph asked at its interrupts, in order, with the answers."""
        return self._records(Question, after, limit)

    def waiting_for(self) -> Rows[Question]:
        """The open questions, which ``Command(resume=…)`` answers; empty if the graph does not wait."""
        return Rows((question for question in self.questions() if question.status == "open"), of=Question)

    def events(self, *, after: int = 0, limit: int | None = None) -> Rows[Event]:
        """The events of the session's lifecycle, with their reasons, in order."""
        return self._records(Event, after, limit)

    def timeline(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
        last: int | None = None,
        subgraphs: bool = True,
    ) -> Timeline:
        """The record ordered by `seq`; its ``tree`` groups it by run and namespace.

        The arguments are those of `messages`. The cost depends on the size of the page only.
        """
        part = self._part(after, before, limit, last, subgraphs=subgraphs)
        return Timeline(*self._storage.list_timeline(self.id, part))

    def follow(
        self,
        *,
        after: int = 0,
        timeout: Any = None,
        until: Callable[[Record], bool] | None = None,
        past_end: bool = False,
    ) -> Iterator[Record]:
        """Iterate over the record as it is committed, by this or another process: existing records, then new ones.

        A run, tool call or message that was unfinished is yielded again, with the same `seq`, when it has
        changed; `Record.is_finished` says whether it is final. The iteration ends when the session ends or is deleted.

        Args:
            after: yield records after this `seq` only. A record before it that has finished meanwhile is not
                yielded again.
            timeout: a duration, such as ``"30s"``: end when no record was committed for this long. None: never.
            until: end after the first record for which this is true.
            past_end: only end when the session was deleted: a run may reopen one that has ended.
        """
        return follow(
            self._following(after, until, past_end=past_end), timeout=duration_of("timeout", timeout), until=until
        )

    def afollow(
        self,
        *,
        after: int = 0,
        timeout: Any = None,
        until: Callable[[Record], bool] | None = None,
        past_end: bool = False,
    ) -> AsyncIterator[Record]:
        """`follow`, for asyncio."""
        following = self._following(after, until, past_end=past_end)
        return afollow(following, self._offload, timeout=duration_of("timeout", timeout), until=until)

    def _following(self, after: int, until: object, *, past_end: bool) -> Following:
        validation.check_seq(after)
        if until is not None:
            validation.check_callable("until", until, "a function of a record, which is true after the last one")
        validation.check_kind("past_end", past_end, bool, "True or False")

        def has_ended(info: SessionInfo | None) -> bool:
            return info is None or not (past_end or self._status(info) in lifecycle.OPEN)

        check = partial(self._authorized.check, reading=True)
        return Following(self._storage, self.id, after=after, has_ended=has_ended, check=check)

    def _status(self, info: SessionInfo) -> Status:
        """The status now."""
        return lifecycle.status_at(info, self._sessions.settings, self._sessions._clock())

    def stats(self) -> Stats:
        """The session in numbers, as of now."""
        self._sessions.recorder.drain(self.id)
        size, info = self._authorized.measure_session(self.id)
        stored: dict[str, Any] = {name: value for name, value in info if name in Stats.model_fields}
        return Stats(
            **stored,
            tools=dict(size.tools),
            duration=timedelta(milliseconds=size.run_ms),
            checkpoint_count=size.checkpoints,
            messages_in=size.messages.get("user", 0),
            messages_out=size.messages.get("assistant", 0),
            bytes=size.bytes,
            recorder_faults=self._sessions.recorder.faults,
            hook_faults=self._sessions.hooks.faults,
        )

    def compare(self, other: Session | str) -> Comparison:
        """Where this session and another one part: messages, tool calls, results, tokens, cost and time.

        Compares the current branches, and the totals of all branches. `other` is an id, or a session of any database,
        to which the caller of this session needs access too.

        Raises:
            SessionNotFound: there is no such session, or it is another user's.
        """
        from session_middleware.experiments.comparison import comparison_of

        found = self._access(other._sessions if isinstance(other, Session) else self._sessions).get(other)
        return comparison_of(self, found)

    def file(self, hash: str) -> bytes | None:
        """A file or image of a message, by the ``"sha256:…"`` that replaces it in the content."""
        validation.check_text("hash", hash)
        return self._storage.find_file(self.id, hash)

    # Recording without a graph

    def __enter__(self) -> Self:
        """Begin a run, which ends with the block, and fails if the block raises. The record is kept in both cases.

        A nested block is part of the same run. A block of another task or thread is a run of its own, if
        `on_busy` allows it.

        Raises:
            SessionBusy: another run is in progress, and ``on_busy`` is not ``"allow"``.
            SessionExpired: the session has expired, and ``on_resume`` is ``"reject"``. Methods that record raise
                it too.
            SessionClosed: the session has ended, and ``on_closed`` is ``"reject"``; or it was deleted.
        """
        self._manual.enter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._manual.exit(error)

    async def __aenter__(self) -> Self:
        await self._manual.aenter()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._manual.aexit(error)

    add = _recording(ManualRecorder.add)
    add_history = _recording(ManualRecorder.add_history)
    record_tool = _recording(ManualRecorder.record_tool)
    tool_execution = _recording(ManualRecorder.tool_execution)
    record_model_call = _recording(ManualRecorder.record_model_call)

    @overload
    def tool(self, function: F) -> F: ...

    @overload
    def tool(self, *, name: str | None = None) -> Callable[[F], F]: ...

    def tool(self, function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
        """A decorator that records each execution of a function, sync or async, as a tool call of this session.

        The execution of a generator function lasts while its items are read, and its result is the list of them.

        The argument ``tool_call_id=…`` names the requested call. Without it, the execution is assigned to the
        latest message's request for this tool with these arguments, if there is one.
        """
        if function is not None:
            return self._manual.tool(function, name)
        return lambda decorated: self._manual.tool(decorated, name)

    def history(self) -> SessionHistory:
        """The conversation as LangChain's `BaseChatMessageHistory`, for `RunnableWithMessageHistory`."""
        return SessionHistory(self._storage, self._sessions.recorder, self._manual)

    # Memory

    @property
    def memory(self) -> SessionMemory:
        """The memory of this session, which recalls memories of its user and its group too."""
        is_in_group = self._identity is None or self.group_id in self._identity.groups
        return SessionMemory(
            self._sessions._indexer,
            self._storage,
            RunContext(self.id, self.acting, is_run=False, state=RunState(incarnation=self.incarnation)),
            owner_id=self.user_id,
            group_id=self.group_id if is_in_group else None,
        )

    # Repair

    def repair(self, *, dry_run: bool = False) -> list[RepairedCall]:
        """Answer interrupted tool calls, so that a model accepts the history again; `dry_run` only lists them.

        New input does this by itself, unless the setting ``repair`` is ``"off"``. Nothing is repaired while the
        graph waits at an interrupt, because a person may still approve the call. A session without checkpoints,
        such as that of a hand-written loop, is repaired in its record.

        Raises:
            SessionBusy: a run is in progress, other than that of the ``with`` block around this call. That run
                may still answer the calls.
        """
        sessions, config = self._sessions, self.config()
        sessions.recorder.drain(self.id)
        self._authorized.check(reading=False)
        is_in_graph = sessions._runs.active_context(config["configurable"]) is not None
        context = None if is_in_graph else self._manual.context
        return sessions._repairs.now(self._saver(), config, context or self._context(), self.history(), dry_run=dry_run)

    # The asynchronous twins

    aupdate = async_twin(update)
    aping = async_twin(ping)
    apin = async_twin(pin)
    aunpin = async_twin(unpin)
    acomplete = async_twin(complete)
    afail = async_twin(fail)
    aabandon = async_twin(abandon)
    aexpire = async_twin(expire)
    afork = async_twin(fork)
    afamily = async_twin(family)
    aedit = async_twin(edit)
    aregenerate = async_twin(regenerate)
    asiblings = async_twin(siblings)
    aswitch = async_twin(switch)
    aprune = async_twin(prune)
    adelete = async_twin(delete)
    aexport = async_twin(export)
    amessages = async_twin(messages)
    adelete_message = async_twin(delete_message)
    atool_calls = async_twin(tool_calls)
    amodel_calls = async_twin(model_calls)
    abranches = async_twin(branches)
    aruns = async_twin(runs)
    aquestions = async_twin(questions)
    awaiting_for = async_twin(waiting_for)
    aevents = async_twin(events)
    atimeline = async_twin(timeline)
    astats = async_twin(stats)
    acompare = async_twin(compare)
    amerge = async_twin(merge)
    afile = async_twin(file)
    aadd = async_twin(add)
    aadd_history = async_twin(add_history)
    arecord_tool = async_twin(record_tool)
    arecord_model_call = async_twin(record_model_call)
    arepair = async_twin(repair)
