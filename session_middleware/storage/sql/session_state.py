"""What a process knows of a session, and the writes of a transaction to it.

A session's row has a `version`, which every change of the session raises. A process keeps what it knows of a session
together with the version it was read at. An operation decides by what is known and collects its rows. The operations
of a transaction share one conditional update of the session's row, at its end. If the version has moved, another
writer has changed the session: the transaction is rolled back, what was known is dropped, and the operations are
carried out again by what they read anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple, TypeAlias, TypeVar

from session_middleware.models import SessionInfo
from session_middleware.storage.sql.checkpoints.latest_checkpoint import HEAD, WRITE_COUNT, Head
from session_middleware.storage.sql.connection import Connection, Cursor, Retry
from session_middleware.storage.sql.row_mapping import Malformed
from session_middleware.storage.titles import title_key

_Target: TypeAlias = tuple[str, tuple[str, ...], str, int]  # of rows to insert: table, columns, on conflict
K = TypeVar("K")
V = TypeVar("V")

_MOST_SESSIONS = 512
_MOST_CHECKPOINTS = 8  # of a session
_FIRST_SEQS = 64  # of a session, among which its first message of a user is looked for
_ROWS = 16  # inserted by one statement, at most


class StaleState(Retry):
    """The session was changed by another writer since it was read."""


class ListConflict(Retry):
    """Another session of the family has appended to a list."""


class CheckpointPoint(NamedTuple):
    """What a put needs to know of its parent: the channels, and the position in the record."""

    channels: str
    branch: str | None
    seq: int | None


class Latest(OrderedDict[K, V]):
    """A cache of the values that were kept last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


_latest_checkpoints = partial(Latest[Any, Any], _MOST_CHECKPOINTS)


@dataclass(slots=True)
class SessionState:
    session_id: str
    home: int
    version: int
    last_seq: int
    branch: str
    last_active_at: str
    has_deletions: bool  # messages were deleted from the record
    has_own_terms: bool  # it is pinned, or has timeouts of its own
    is_waiting: bool  # its graph has open questions
    needs_title: bool  # it has no title, and no message of a user to make one from
    heads: dict[str, Head | None] = field(default_factory=dict)  # by namespace
    points: Latest[tuple[str, str], CheckpointPoint] = field(default_factory=_latest_checkpoints)  # by namespace and id
    list_ends: Latest[int, int] = field(default_factory=_latest_checkpoints)  # the lengths of lists that were extended
    message_ids: set[str] | None = None  # all of them; None: not read, or too many
    message_rows: OrderedDict[str, list[Any]] = field(default_factory=OrderedDict)  # the versions of a message, by id
    may_have_dead_runs: bool = True  # runs of other processes may be in progress, or have been
    calls_without_request: bool | None = None  # tool calls whose requesting message is not recorded; None: not read
    write: SessionWrite | None = None  # of the present transaction

    @classmethod
    def opened(cls, session_id: str, home: int, now: str) -> SessionState:
        """The state of a session whose row was just inserted. Nothing is read."""
        state = cls(
            *(session_id, home, 1, 0, "main", now),
            has_deletions=False,
            has_own_terms=False,
            is_waiting=False,
            needs_title=True,
        )
        state.heads[""], state.message_ids = None, set()
        state.may_have_dead_runs = state.calls_without_request = False
        return state


class StateCache(Latest[str, SessionState]):
    """The states of the sessions that were written to last. It is used inside write transactions only."""

    def __init__(self) -> None:
        super().__init__(_MOST_SESSIONS)

    def load(self, connection: Connection, session_id: str) -> SessionState:
        """Read the state of a session that is there, and keep it."""
        state = find(connection, session_id)
        assert state is not None
        self.keep(session_id, state)
        return state


_LOAD = f"""
    SELECT {HEAD}, home, version, last_seq, branch, last_active_at,
    EXISTS (SELECT 1 FROM events WHERE session_id = sessions.id AND kind = 'message_deleted'),
    pinned IS NOT NULL OR idle_timeout_seconds IS NOT NULL OR max_age_seconds IS NOT NULL,
    waiting_count > 0,
    title IS NULL AND NOT EXISTS (SELECT 1 FROM messages WHERE session_id = sessions.id AND seq <= {_FIRST_SEQS}
    AND role = 'user' AND checkpoint_ns = '' AND text != '')
    FROM sessions WHERE id = ?
"""
_TYPES = (int, int, int, str, str, int, int, int, int)


def find(connection: Connection, session_id: str) -> SessionState | None:
    """The state as it is stored. Raises `Malformed` if a value has another type than we write."""
    found = connection.execute(_LOAD, (session_id,)).fetchone()
    if found is None:
        return None
    head, row = found[:4], found[4:]
    if tuple(map(type, row)) != _TYPES or (head[0] is not None and tuple(map(type, head)) != (str, str, int, int)):
        raise Malformed(SessionInfo, session_id, column="counters", problem=f"{found!r}")
    state = SessionState(session_id, *row)
    state.heads[""] = None if head[0] is None else Head(*head)
    return state


@dataclass(slots=True)
class SessionCounters:
    """What a transaction adds to a session's counters, and the seqs it assigns."""

    last_seq: int
    branch: str  # the branch the session is on
    messages: int = 0
    tool_calls: int = 0
    model_calls: int = 0
    unpriced: int = 0
    errors: int = 0
    runs: int = 0
    opened_as: str | None = None  # how a run has entered the session
    title: str | None = None  # made from the first message of a user
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None  # what is known of it
    replaced: bool = False  # a model call took another one's place: the cost is summed anew
    changed: bool = False
    rows: dict[str, int] = field(default_factory=dict)  # the seq of each message that was seen

    def next_seq(self) -> int:
        self.changed = True
        self.last_seq += 1
        return self.last_seq

    def move_to(self, branch: str) -> None:
        if branch != self.branch:
            self.branch, self.changed = branch, True

    def count_error(self, by: int = 1) -> None:
        self.errors, self.changed = self.errors + by, True

    def count_model_call(
        self,
        input_tokens: int | None,
        output_tokens: int | None,
        cost: float | None,
        *,
        failed: bool = False,
        by: int = 1,
    ) -> None:
        self.model_calls += by
        self.input_tokens += input_tokens or 0
        self.output_tokens += output_tokens or 0
        self.unpriced += by * (cost is None and not failed)
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        self.changed = True

    def take(self) -> tuple[Any, ...]:
        """What is to be written, in the order of `_UPDATE`; from then on it counts as written."""
        taken: tuple[Any, ...]
        taken = (self.last_seq, self.branch, self.messages, self.tool_calls, self.model_calls, self.unpriced)
        taken += (self.errors, self.input_tokens, self.output_tokens, self.cost, self.cost, self.runs, self.opened_as)
        self.messages = self.tool_calls = self.model_calls = self.unpriced = self.errors = self.runs = 0
        self.input_tokens = self.output_tokens = 0
        self.cost, self.opened_as, self.changed = None, None, False
        return taken


@lru_cache(maxsize=256)
def _insertion(table: str, columns: tuple[str, ...], on_conflict: str, count: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * count)}{on_conflict}"


class SessionWrite:
    """The writes of a transaction to one session. It stands in for the connection where the record is written.

    `insert` collects; `execute` and `query` first write what was collected. `finish` updates the session's row, which
    raises `StaleState` if the session is not as it was known.
    """

    def __init__(self, connection: Connection, state: SessionState) -> None:
        self._connection = connection
        self.rejections = connection.rejections  # the driver's errors for a statement or a value
        self._is_verified = False
        self._has_written = False
        self.changes_head = False  # another checkpoint is the latest, or the latest has more writes
        self.blobs: set[bytes] = set()  # the digests of those stored
        self._deferred: dict[_Target, tuple[list[Sequence[Any]], Callable[[], object] | None]] = {}
        self._activity: tuple[str, str | None] | None = None
        self.state = state
        state.write = self
        self.counters = SessionCounters(state.last_seq, state.branch)

    def touch(self, last_active_at: str, expires_at: str | None) -> None:
        """Record activity, with the session's row."""
        self._activity, self.state.last_active_at = (last_active_at, expires_at), last_active_at

    def insert(
        self,
        table: str,
        columns: tuple[str, ...],
        rows: Iterable[Sequence[Any]],
        on_conflict: str = "",
        *,
        if_there: Callable[[], object] | None = None,
    ) -> None:
        """Insert rows, by one statement for all that are inserted into the table before something else is read.

        Args:
            if_there: called if a row is there already, and `on_conflict` leaves it; for a single row.
        """
        target = (table, columns, on_conflict, 0 if if_there is None else 1 + len(self._deferred))
        self._deferred.setdefault(target, ([], if_there))[0].extend(rows)

    @property
    def raw(self) -> Connection:
        """The connection, for what neither reads nor writes."""
        return self._connection

    @property
    def connection(self) -> Connection:
        """The connection, to read from: what was collected is written first."""
        if self._deferred:
            self.flush()
        return self._connection

    def query(self, sql: str, values: Any = ()) -> Cursor:
        return self.connection.execute(sql, values)

    def execute(self, sql: str, values: Any = ()) -> Cursor:
        self._has_written = True
        return self.connection.execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Any]) -> None:
        self._has_written = True
        self.connection.executemany(sql, rows)

    def flush(self) -> None:
        """Write what was collected."""
        self._has_written |= bool(self._deferred)
        deferred, self._deferred = self._deferred, {}
        for (table, columns, on_conflict, _), (rows, if_there) in deferred.items():
            if if_there is not None and self._connection.is_optimistic:
                on_conflict, if_there = "", None
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                values = some[0] if len(some) == 1 else [value for row in some for value in row]
                try:
                    inserted = self._connection.execute(_insertion(table, columns, on_conflict, len(some)), values)
                except self._connection.conflict as error:
                    if not self._is_verified and not self._is_current():
                        raise StaleState from error
                    if "list_items" in str(error):
                        raise ListConflict from error
                    raise
                if if_there is not None and not inserted.rowcount:
                    if_there()

    @contextmanager
    def savepoint(self, faults: tuple[type[Exception], ...]) -> Iterator[None]:
        """Undo what the block wrote if it raises one of `faults`."""
        self.flush()
        counters, version = replace(self.counters), self.state.version
        is_verified = self._is_verified
        self._connection.execute("SAVEPOINT entry")
        try:
            yield
            self.flush()
        except faults:
            self._connection.execute("ROLLBACK TO entry")
            self._deferred.clear()
            self.counters, self.state.version, self._is_verified = counters, version, is_verified
            self.state.last_seq, self.state.branch = counters.last_seq, counters.branch
            self.state.message_rows.clear()
            self.state.message_ids = None
            self.state.is_waiting = True  # as far as is known
            self._connection.execute("RELEASE entry")
            raise
        self._connection.execute("RELEASE entry")

    def finish(self) -> Connection:
        """Write what was collected and counted. Returns the connection, to change the session's row by."""
        if self._deferred:
            self.flush()
        state, counters = self.state, self.counters
        if not (self._has_written or self.changes_head or counters.changed or self._activity):
            return self._connection
        head = state.heads.get("") if self.changes_head else None
        values = list(counters.take())
        if head is not None:
            values += (*head[:3], state.home, state.session_id, head.latest_id)
        values += self._activity or ()
        if (title := counters.title) is not None:
            values += (title, title_key(title))
            counters.title, state.needs_title = None, False
        values += (state.session_id, state.home) if self._is_verified else (state.session_id, state.home, state.version)
        sql = _UPDATES[head is not None, self._activity is not None, title is not None, self._is_verified]
        self._connection.update_row(sql, values)
        self._is_verified, self._has_written, self.changes_head, self._activity = True, False, False, None
        state.version, state.last_seq, state.branch = state.version + 1, counters.last_seq, counters.branch
        return self._connection

    def _is_current(self) -> bool:
        row = self._connection.execute("SELECT home, version FROM sessions WHERE id = ?", (self.state.session_id,))
        return bool(row.fetchone() == (self.state.home, self.state.version))


def finish_writes(connection: Connection) -> None:
    """Finish the writes of the transaction to all sessions, so that their rows can be read."""
    for write in dict.fromkeys(connection.unfinished):  # those of several operations on one session are one
        write.finish()


def end_writes(connection: Connection) -> None:
    """Finish the writes of the transaction, before the sessions' rows are changed by other means."""
    finish_writes(connection)
    close_writes(connection)


def close_writes(connection: Connection) -> None:
    """The next operation on a session begins another `SessionWrite`, which compares the version."""
    for write in connection.unfinished:
        write.state.write = None
    connection.unfinished.clear()


_UPDATE = """
    UPDATE sessions SET version = version + 1,
    last_seq = ?, branch = ?, message_count = message_count + ?, tool_call_count = tool_call_count + ?,
    model_call_count = model_call_count + ?, unpriced_count = unpriced_count + ?, error_count = error_count + ?,
    input_tokens = input_tokens + ?, output_tokens = output_tokens + ?, cost = COALESCE(cost + ?, cost, ?),
    run_count = run_count + ?, opened_as = COALESCE(?, opened_as)
"""
_HEAD = f", latest_checkpoint_id = ?, newest_position = ?, checkpoint_count = ?, write_count = {WRITE_COUNT}"
_ACTIVITY = ", last_active_at = ?, postponed_until = NULL, expires_at = ?"
_TITLE = ", title = COALESCE(title, ?), title_key = CASE WHEN title IS NULL THEN ? ELSE title_key END"
_UPDATES = {  # by whether head, activity and title have changed, and whether the version was compared before
    (head, activity, title, verified): _UPDATE
    + _HEAD * head
    + _ACTIVITY * activity
    + _TITLE * title
    + " WHERE id = ? AND home = ?"
    + " AND version = ?" * (not verified)
    for head, activity, title, verified in product((False, True), repeat=4)
}
