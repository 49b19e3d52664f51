"""`UserSessions`: the sessions of one user; and the methods that it shares with `Sessions`.

The sessions that these return check each call by an `AuthorizedStorage`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, get_args

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.display.progress import progress_bar
from session_middleware.errors import InvalidArgument, SessionAccessDenied, SessionBusy, SessionNotFound, UserRevoked
from session_middleware.exports.formats import Format, checked_path, checked_target, write_all
from session_middleware.memory.results import SearchHit
from session_middleware.memory.store import SessionStore
from session_middleware.models import (
    CALL_STATUSES,
    Event,
    Explanation,
    Identity,
    Question,
    SessionInfo,
    SessionOrder,
    ToolCall,
    Usage,
)
from session_middleware.runtime.explain import explain, explain_absence
from session_middleware.runtime.run_context import as_config
from session_middleware.session import Session
from session_middleware.storage import validation
from session_middleware.storage.executor import StorageExecutor, async_twin
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext
from session_middleware.storage.search.tokenizer import snippet
from session_middleware.storage.types import (
    ArchivedSession,
    DeletionCounts,
    SessionDetails,
    SessionFilter,
    TombstoneInfo,
    ToolCallFilter,
    UsageBy,
    UsageFilter,
)

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.store.base import BaseStore

    from session_middleware.experiments.replay import Replay
    from session_middleware.sessions import Sessions

T = TypeVar("T")

_PAGE = 500  # sessions that are read at a time


@validation.suggesting
class SessionAccess:
    """The methods that `Sessions` has for the operator, and `UserSessions` for one user."""

    _identity: Identity | None = None  # of the user; None: the operator, who has access to all sessions
    _storage: Storage
    _offload: StorageExecutor

    @property
    def _operator(self) -> Sessions:
        raise NotImplementedError

    def _session(self, info: SessionInfo) -> Session:
        return Session(info, self._operator, self._identity)

    def _checked(self, found: T) -> T:
        """`found`, unless the user is revoked. Raises `UserRevoked`."""
        if self._identity is not None and self._storage.list_revoked([self._identity.user_id]):
            raise UserRevoked("", user_id=self._identity.user_id)
        return found

    def _find(self, session_id: str) -> SessionInfo | None:
        """The session as stored, if the user may read it."""
        self._operator._flush(session_id)
        found = self._checked(self._storage.find_session(session_id))
        is_hidden = found and self._identity and not lifecycle.is_found_by(found, self._identity)
        return None if is_hidden else found

    def _tombstone(self, session_id: str) -> TombstoneInfo | None:
        """The tombstone of a deleted session, if the user owned it."""
        found = self._storage.find_tombstone(session_id)
        is_hidden = found and self._identity and found.user_id != self._identity.user_id
        return None if is_hidden else found

    def _owner_id(self, user_id: object) -> str | None:
        """The user whose sessions a report covers: for `for_user` always the user. Raises `InvalidArgument`."""
        chosen = lifecycle.owner_id_or_none("user_id", user_id)
        if self._identity is None:
            return chosen
        if chosen not in (None, self._identity.user_id):
            raise InvalidArgument("user_id", chosen, wanted="none, as for_user() sets it")
        return self._identity.user_id

    def _open(
        self,
        session_id: str,
        identity: Identity,
        if_exists: str,
        template: str | None,
        options: validation.SessionOptions,
    ) -> Session:
        validation.check_choice("if_exists", if_exists, ("resume", "raise"))
        details, templates = validation.details_of(**options), self._operator._templates
        if template is not None and not templates:
            raise InvalidArgument("template", template, wanted="none, or register it first with sessions.template(…)")
        if template is not None:
            validation.check_choice("template", template, sorted(templates))
        defaults = SessionDetails() if template is None else templates[template]
        self._operator._background.start()
        context = RunContext(session_id, identity, must_be_new=if_exists == "raise")
        return self._session(self._storage.open_session(context, details, defaults))

    def find(self, session_id: object) -> Session | None:
        """The session, or ``None``; for a user also if it is another user's.

        The id of a session that was merged into another one finds that one.
        """
        chosen = lifecycle.session_id_of(session_id)
        found = self._find(chosen)
        if found is None and (primary := self._operator._primary_of(chosen)) != chosen:
            found = self._find(primary)
        return None if found is None else self._session(found)

    def get(self, session_id: object) -> Session:
        """The session. Raises `SessionNotFound`, whose message says whether it is archived."""
        session = self.find(session_id)
        if session is None:
            chosen = lifecycle.session_id_of(session_id)
            tombstone = self._tombstone(chosen)
            raise SessionNotFound(chosen, archived=tombstone is not None and tombstone.archive is not None)
        return session

    @validation.spelled_out(validation.SessionFilters)
    def list(
        self,
        *,
        limit: int | None = 50,
        after: Session | SessionInfo | None = None,
        order: SessionOrder = "activity",
        **filters: Unpack[validation.SessionFilters],
    ) -> Rows[Session]:
        """Sessions, latest activity first; for a user, those of the user or shared with the user's groups.

        A session whose row is damaged is left out, with a warning; `get` of it raises `StorageError`.

        Args:
            after: the last session of the page before, as that page has it; or a `SessionInfo` with its id and times.
            order: ``"activity"`` or ``"creation"``, latest first, or ``"title"``, without regard to case; sessions
                without a title come last.
            status: a status, several, or ``"open"``, which is active or idle.
            tags: all of these.
            metadata: all of these keys, with these texts, numbers or booleans.
            title: a text in the first 256 characters of the title, without regard to case.

        Raises:
            UnknownStatus: the status is unknown.
            InvalidArgument: another filter is invalid.
        """
        self._operator._flush()
        where, limit = validation.filter_of(self._identity, **filters), validation.checked_limit(limit)
        validation.check_kind("after", after, Session | SessionInfo | None, "the last session of the page before")
        validation.check_choice("order", order, get_args(SessionOrder))
        found = self._storage.list_sessions(where, limit=limit, order=order, after=after)
        return Rows(map(self._session, self._checked(found)), of=SessionInfo)

    @validation.spelled_out(validation.SessionFilters)
    def count(self, **filters: Unpack[validation.SessionFilters]) -> int:
        """The number of sessions that `list` finds without a limit."""
        self._operator._flush()
        return self._checked(self._storage.count_sessions(validation.filter_of(self._identity, **filters)))

    @validation.spelled_out(validation.SessionFilters)
    def unfinished(
        self,
        *,
        cancelled: bool = False,
        limit: int | None = None,
        **filters: Unpack[validation.SessionFilters],
    ) -> Rows[Session]:
        """Open sessions whose latest run was cut off because its process died, latest activity first.

        An app resumes them when it starts: ``graph.invoke(None, session.config())``. Sessions whose graph waits for
        an answer, in which a run is in progress, or whose run had put no checkpoint, are not among them.

        Args:
            cancelled: include sessions whose latest run was cancelled, as by Ctrl-C or a stopping server.
        """
        self._operator._flush()
        validation.check_kind("cancelled", cancelled, bool, "True or False")
        where, limit = validation.filter_of(self._identity, **filters), validation.checked_limit(limit)
        unfinished: Any = "or_cancelled" if cancelled else "cut_off"
        where = where._replace(unfinished=unfinished, status=where.status or ("open",), waiting=False)
        found = self._storage.list_sessions(where, limit=limit)
        return Rows(map(self._session, self._checked(found)), of=SessionInfo)

    def delete(self, session_id: object) -> DeletionCounts:
        """Delete a session and its archive. Returns the numbers of rows deleted.

        Raises:
            SessionNotFound: the session is another user's, or a user deletes one that does not exist.
            SessionAccessDenied: the user may only read the session.
        """
        return self._operator._delete(lifecycle.session_id_of(session_id), self._storage, self._identity)

    def _claim(self, session_id: object, user_id: str) -> Session:
        chosen = self._operator._primary_of(lifecycle.session_id_of(session_id))
        self._operator._flush(chosen)
        return self._session(self._storage.claim_session(chosen, user_id))

    def restore(self, session_id: object) -> Session:
        """Restore an archived session: id, owner, record, memories and state. Its idle time begins now.

        Raises:
            SessionNotFound: no archived session has the id, or it is another user's.
            SessionExists: a session has the id.
            SessionLimitReached: the limit of open sessions is reached, and ``on_limit`` is ``"reject"``.
            StorageError: the archive's file is missing or was changed.
        """
        chosen = lifecycle.session_id_of(session_id)
        return self._session(self._storage.restore_session(chosen, by=self._identity))

    @validation.spelled_out(validation.SessionFilters)
    def export(
        self,
        path: str | Path,
        format: Format = "jsonl",
        *,
        progress: bool = False,
        **filters: Unpack[validation.SessionFilters],
    ) -> int:
        """Write the sessions that `list` finds with these filters, and return their number; for a user: their own.

        ``"jsonl"`` is one file of one snapshot, written beside running writers; the memory does not grow with the
        number of sessions. Without filters it also has all memories that belong to no session, and for a user, or
        with `user_id` alone, the memories of the user. The other formats are a folder with a file or folder for each
        session; it must be missing or empty. See `Session.export`.

        Args:
            progress: show a progress bar on the terminal.

        Raises:
            StorageError: the file cannot be written.
        """
        target = checked_target(path, format)
        self._operator._flush()
        filters["user_id"] = self._owner_id(filters.get("user_id"))
        where = self._checked(validation.filter_of(None, **filters))
        with progress_bar("exporting sessions", wanted=progress) as report:
            if format == "jsonl":
                owned = SessionFilter(user_id=where.user_id)
                namespace = () if where == SessionFilter() else ("user", str(where.user_id)) if where == owned else None
                return self._storage.export_sessions(target, where, memories=namespace, progress=report)
            return write_all(self._each(**filters), target, format, self.count(**filters), report)

    def _each(self, **filters: Unpack[validation.SessionFilters]) -> Iterator[Session]:
        """All sessions that `list` finds, read in pages."""
        after: Session | None = None
        while page := self.list(limit=_PAGE, after=after, **filters):
            yield from page
            after = page[-1]

    def import_from(
        self, path: str | Path, *, if_exists: Literal["raise", "skip"] = "raise", progress: bool = False
    ) -> builtins.list[str]:
        """Store all sessions of a file that `export` wrote as JSON lines, or none, and return their ids.

        They keep ids, owners, times and status. The file may be of the other engine. It is verified completely before
        anything is stored; meanwhile other writers do not wait, and then they wait for one transaction. Runs that were
        in progress become ``interrupted``. Of memories under the same key, the one in this database stays.

        Args:
            if_exists: ``"skip"`` leaves a session of the same owner as it is that is here already.
            progress: show a progress bar on the terminal.

        Raises:
            StorageError: the file is missing, damaged, or not an export, or a user imports a session of another user
                or of a group of others; the message names the line and the reason.
            SessionExists: a session has the id of one in the file, or its archive has, or another owner had it.
            SessionLimitReached: a user would have too many open sessions.
        """
        validation.check_choice("if_exists", if_exists, ("raise", "skip"))
        source = checked_path(path)
        with progress_bar("importing sessions", wanted=progress) as report:
            return self._storage.import_sessions(source, by=self._identity, skips=if_exists == "skip", progress=report)

    def explain(self, session_id: object) -> Explanation:
        """Why a session has its status, and its next status if no activity follows; also of deleted ids.

        Raises `SessionNotFound` for a user and an id that was never the user's; the operator may ask for any id.
        """
        chosen, settings = lifecycle.session_id_of(session_id), self._operator.settings
        session = self._find(chosen)
        if session is not None:
            asked = self._storage.list_records(Question, chosen) if session.waiting_count else []
            events = self._storage.list_records(Event, chosen)
            return explain(session, settings, self._operator._clock(), events, asked)
        tombstone = self._tombstone(chosen)
        if tombstone is None and self._identity is not None:
            raise SessionNotFound(chosen)
        return explain_absence(chosen, tombstone, settings)

    def replay(self, session_id: object, *, on_missing: Literal["refuse", "run"] = "refuse") -> Replay:
        """The recorded answers of a session, to run its agent again: ``replay.tools(tools)``, ``replay.model()``.

        Reads the current branch of the conversation once, into memory; the session is not changed.

        Args:
            on_missing: what a call that is not on record does: it raises `NotOnRecord`, or executes the tool.

        Raises:
            SessionNotFound: there is no such session, or it is another user's.
        """
        from session_middleware.experiments.replay import replay_of

        validation.check_choice("on_missing", on_missing, ("refuse", "run"))
        return replay_of(self.get(session_id), self._operator.recorder.buffer.redaction.redacted, on_missing)

    # Over all sessions

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        session_id: object = None,
        since: datetime | None = None,
        limit: int = 20,
        offset: int = 0,
        marks: tuple[str, str] = ("", ""),
    ) -> Rows[SearchHit]:
        """Messages that contain words of `query`, best first: of a user, of a session, or of everybody.

        A last word of three letters or more also matches as a prefix, for search while typing; a space or a sign
        after it ends the word. A query of stop words ("the who") or signs (an emoji) only matches messages that
        contain it as it is written, the latest first, and so does a query that has no other results; such a search
        reads all texts in scope.

        Searched are the texts of messages by users, assistants and tools, each up to 65,536 characters. Arguments,
        and results of functions under `Session.tool`, are not messages: `tool_calls` lists them.

        With both ids, the session must be that user's. For `for_user`, a session that a group shares is searched when
        it is named. Each result has a snippet with `marks` around the words.
        """
        validation.check_given("query", query, str, "text")
        validation.check_moment("since", since)
        validation.check_count("limit", limit)
        validation.check_count("offset", offset)
        validation.check_marks(marks)
        self._operator.recorder.drain()
        chosen, owner_id = None if session_id is None else lifecycle.session_id_of(session_id), self._owner_id(user_id)
        if chosen is not None and user_id is None and self._identity is not None and (found := self._find(chosen)):
            owner_id = found.user_id
        asked = MemoryQuery(
            [],
            prefix=False,
            query=query,
            whose=[MessageScope(chosen, owner_id)],
            since=since,
            limit=limit,
            offset=offset,
            typed=True,
        )
        hits = self._checked(self._storage.search_memories(asked))
        return Rows((_hit(stored, query, marks) for stored in hits), of=SearchHit)

    @validation.spelled_out(validation.SessionFilters)
    def usage(
        self,
        by: UsageBy | None = None,
        *,
        session_id: object = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **filters: Unpack[validation.CallFilters],
    ) -> Rows[Usage]:
        """Tokens, cost and durations of model calls, by user, group, session, model or day; by tool: of tool calls.

        The default is by user, and for `for_user` by session. Counts calls that began at or after `since` and before
        `until`, in the sessions that `list` finds with the other filters. The highest cost comes first, then the most
        calls; days are in order.
        """
        self._operator.recorder.drain()
        chosen = None if session_id is None else lifecycle.session_id_of(session_id)
        user_id, group_id = filters.pop("user_id", None), filters.pop("group_id", None)
        owners = self._owner_id(user_id), lifecycle.owner_id_or_none("group_id", group_id)
        by, period = by or ("user" if self._identity is None else "session"), validation.period_of(since, until)
        of = validation.filter_of(None, **filters) if filters else None
        found = self._checked(self._storage.sum_usage(by, UsageFilter(*owners, chosen, *period, of)))
        if by == "day":
            return Rows(sorted(found, key=lambda one: one.key or ""), of=Usage)
        return Rows(sorted(found, key=lambda one: (-(one.cost or 0.0), -one.calls, one.key or "")), of=Usage)

    def tool_calls(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        user_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 50,
        after: ToolCall | None = None,
    ) -> Rows[ToolCall]:
        """Executions of tools in all sessions, latest first. The next page begins after `after`.

        Calls without a start time, which only the recorder observes, come last, and `since` excludes them.
        """
        self._operator.recorder.drain()
        if status is not None:
            validation.check_choice("status", status, CALL_STATUSES)
        validation.check_optional_text("name", name)
        validation.check_kind("after", after, ToolCall | None, "the last tool call of the page before")
        where = ToolCallFilter(name, status, self._owner_id(user_id), *validation.period_of(since, until))
        return Rows(
            self._checked(self._storage.list_tool_calls(where, limit=validation.checked_limit(limit), before=after)),
            of=ToolCall,
        )

    def list_archived(
        self, *, user_id: str | None = None, limit: int | None = 50, after: ArchivedSession | None = None
    ) -> Rows[ArchivedSession]:
        """Archived sessions, latest first. The next page begins after `after`, the last one of this page.

        `restore` restores one; `delete` deletes it with its file.
        """
        self._operator._flush()
        validation.check_kind("after", after, ArchivedSession | None, "the last archived session of the page before")
        before = None if after is None else (after.archived_at, after.session_id)
        limit, user_id = validation.checked_limit(limit), self._owner_id(user_id)
        return Rows(
            self._checked(self._storage.list_archived(user_id=user_id, limit=limit, before=before)), of=ArchivedSession
        )

    # The asynchronous twins

    afind = async_twin(find)
    aget = async_twin(get)
    alist = async_twin(list)
    acount = async_twin(count)
    aunfinished = async_twin(unfinished)
    adelete = async_twin(delete)
    arestore = async_twin(restore)
    aexport = async_twin(export)
    aimport_from = async_twin(import_from)
    aexplain = async_twin(explain)
    areplay = async_twin(replay)
    asearch = async_twin(search)
    ausage = async_twin(usage)
    atool_calls = async_twin(tool_calls)
    alist_archived = async_twin(list_archived)


@validation.suggesting
class UserSessions(SessionAccess):
    """`Sessions` for one user: each access is checked, and sessions of other users are not found.

    Sessions without an owner are not found either. Sessions shared with a group of the user
    (``visibility="group"`` or ``"group-write"``) are found. The first may only be read: its changes raise
    `SessionAccessDenied`. The second may also be changed and deleted. For a revoked user, each method that uses the
    storage raises `UserRevoked`, also those of a `Session`.
    """

    def __init__(self, sessions: Sessions, identity: Identity) -> None:
        self._sessions, self.identity, self._identity = sessions, identity, identity
        self._storage, self._offload = sessions._storage, sessions._offload

    @property
    def _operator(self) -> Sessions:
        return self._sessions

    def __repr__(self) -> str:
        return f"{self._sessions!r}.for_user({self.identity.user_id!r})"

    @property
    def store(self) -> BaseStore:
        """`Sessions.store`, of it the namespaces that begin with ``"user"`` or ``"group"`` and an id of this user's.

        All others raise `MemoryAccessDenied`, also those of the app. A search or a listing leaves them out.
        """
        ttl = self._sessions.settings.memory_ttl
        return SessionStore(self._sessions._indexer, ttl=ttl, identity=self.identity)  # type: ignore[arg-type]

    def config(self, session_id: object = None, **configurable: Any) -> RunnableConfig:
        """The config of a run of this user. Raises `TypeError` for a `user_id` and for groups."""
        if named := sorted({"user_id", "group_id", "group_ids"} & configurable.keys()):
            raise TypeError(f"config() has no argument {named[0]!r}; call for_user() for another user instead")
        return self._sessions.config(session_id, **as_config(self.identity), **configurable)

    @validation.spelled_out(validation.SessionOptions)
    def open(
        self,
        session_id: object = None,
        *,
        group_id: str | None = None,
        if_exists: Literal["resume", "raise"] = "resume",
        template: str | None = None,
        **options: Unpack[validation.SessionOptions],
    ) -> Session:
        """As `Sessions.open`, by this user, for one of the user's groups.

        Raises:
            SessionNotFound: the session is owned by another user.
            SessionAccessDenied: the user may only read the session, or is not in the group.
        """
        identity, group_id = self.identity, lifecycle.owner_id_or_none("group_id", group_id)
        chosen = self._sessions._id_of(session_id)
        if group_id is not None:
            if group_id not in identity.groups:
                raise SessionAccessDenied(chosen, user_id=identity.user_id, group_id=group_id)
            identity = identity.model_copy(update={"group_id": group_id, "group_ids": tuple(identity.groups)})
        found = self._checked(self._storage.find_session(chosen))
        if found is not None:
            lifecycle.check_theirs(found, self.identity)
        try:
            return self._open(chosen, identity, if_exists, template, options)
        except UserRevoked:
            raise
        except SessionAccessDenied:
            raise SessionNotFound(chosen) from None

    def claim(self, session_id: object) -> Session:
        """As `Sessions.claim`, for this user. Raises `SessionNotFound` if the session has another owner."""
        try:
            return self._claim(session_id, str(self.identity.user_id))
        except UserRevoked:
            raise
        except SessionAccessDenied as error:
            raise SessionNotFound(error.session_id) from None

    def check(self, session_id: object) -> Session:
        """The session, if this user may run in it now; else raise what a run would raise. Writes nothing.

        A web app calls it before it begins to stream a response. `Session.config` is the config of the run.

        Raises:
            SessionNotFound: there is no such session, it is another user's, or it is archived.
            SessionAccessDenied: the user may only read it.
            UserRevoked: `Sessions.revoke` has revoked the user.
            SessionExpired: it has expired, and ``on_resume`` is ``"reject"``.
            SessionClosed: it has ended, and ``on_closed`` is ``"reject"``.
            SessionBusy: a run is in progress, and ``on_busy`` is ``"reject"``.
        """
        session = self.get(session_id)
        info, settings = session._authorized.check(reading=False), self._sessions.settings
        lifecycle.admit(info, settings, self._sessions._clock())
        if info.is_running and settings.on_busy == "reject":
            holder = self._storage.find_active_run(info.id)
            raise SessionBusy(info.id, run_id=holder and holder.run_id, process=holder and holder.process)
        return session

    def prune(self, session_id: object) -> None:
        """Delete all but the latest checkpoints of a session of the user. Raises `SessionNotFound`."""
        self.get(session_id).prune()

    # The asynchronous twins

    aopen = async_twin(open)
    aclaim = async_twin(claim)
    acheck = async_twin(check)
    aprune = async_twin(prune)


def _hit(stored: StoredMemory, query: str, marks: tuple[str, str]) -> SearchHit:
    text = stored.text or ""
    return SearchHit(
        session_id=stored.session_id or "",
        seq=stored.seq or 0,
        message_id=stored.key,
        role=stored.value["role"],
        name=stored.value.get("name"),
        snippet=snippet(text, query, marks=marks),
        text=text,
        created_at=stored.created_at,
        score=stored.score or 0.0,
    )
