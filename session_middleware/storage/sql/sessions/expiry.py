"""Which sessions are due in SQLite: found by an index, and kept as rows until somebody looks at one.

Being due is decided as `lifecycle.expiry_of` has it; the statements here only find the candidates.
Where a hundred thousand are due, making a value of each takes ten times as long as finding them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, overload

from session_middleware import lifecycle
from session_middleware.display.html import rows_html
from session_middleware.models import OnExpire, Status, SweepResult, from_text, to_text
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import leases, session_rows
from session_middleware.storage.sql.sessions.endings import STRATEGIES

Row: TypeAlias = tuple[Any, ...]  # id, user_id, on_expire, last_active_at, and last what its time counts from
Measure: TypeAlias = Callable[[Sequence[str]], dict[str, int]]

_PAGE = 1000  # values made, and measured, at a time
_SHOWN = 20  # by `repr`


class DueSessions(Sequence[SweepResult]):
    """What is due, in order. Its length is known; values are made, and measured, when they are asked for."""

    def __init__(self, rows: Sequence[Row], make: Callable[[Row], SweepResult], measure: Measure | None = None) -> None:
        self._rows, self._make, self._measure = rows, make, measure

    def measured(self, measure: Measure) -> DueSessions:
        return DueSessions(self._rows, self._make, measure)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> SweepResult: ...
    @overload
    def __getitem__(self, place: slice) -> list[SweepResult]: ...
    def __getitem__(self, place: int | slice) -> SweepResult | list[SweepResult]:
        if isinstance(place, int):
            return self._made([self._rows[place]])[0]
        return self._made(self._rows[place])

    def __iter__(self) -> Iterator[SweepResult]:
        for first in range(0, len(self), _PAGE):
            yield from self[first : first + _PAGE]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[list[SweepResult]], tuple[list[SweepResult]]]:
        return list, (self[:],)  # a copy is a list of its values

    def __repr__(self) -> str:
        return repr(self[:]) if len(self) <= _SHOWN else f"<{len(self):,} sessions that are due>"

    def _repr_html_(self) -> str:
        return rows_html(self)

    def _made(self, rows: Sequence[Row]) -> list[SweepResult]:
        made = [self._make(row) for row in rows]
        if self._measure is None:
            return made
        bytes_of = self._measure([each.session_id for each in made])
        return [each.model_copy(update={"bytes": bytes_of[each.session_id]}) for each in made]


class _DueGroup(NamedTuple):
    """Sessions that are due for one reason, after the same time. In order."""

    reason: str
    duration: timedelta
    action: OnExpire  # of those that say nothing else
    rows: list[Row]

    def at(self, row: Row) -> datetime:
        return from_text(row[-1]) + self.duration

    def ended(self, row: Row) -> SweepResult:
        session_id, user_id, on_expire, last_active_at = row[:4]
        return SweepResult.model_construct(
            session_id=session_id,
            user_id=user_id,
            reason=self.reason,
            action="delete" if self.reason == "retention" else on_expire or self.action,
            last_active_at=from_text(last_active_at),
            expired_at=self.at(row),
            bytes=None,
        )


_FREE = "pinned IS NULL AND (postponed_until IS NULL OR postponed_until <= :now)"
_IDLE = f"SELECT id, user_id, on_expire, last_active_at FROM sessions WHERE {_FREE} AND last_active_at <= :since AND"
_AGED = (
    "SELECT id, user_id, on_expire, last_active_at, began_at FROM sessions"
    f" WHERE +status = 'active' AND ended_at IS NULL AND {_FREE} AND began_at <= :since AND"
)
_OVER = (
    "SELECT id, user_id, on_expire, last_active_at, ended_at FROM sessions"
    f" WHERE ended_at IS NOT NULL AND {_FREE} AND ended_at <= :since AND"
)
# The signs keep SQLite from reading all that are active, where few of these are due.
# By reason: whom the settings are for; what durations sessions have of their own; and whose is one of these.
_DUE = {
    "idle_timeout": (
        f"{_IDLE} status = 'active' AND idle_timeout_seconds IS NULL ORDER BY last_active_at, id",
        "SELECT DISTINCT idle_timeout_seconds FROM sessions WHERE idle_timeout_seconds IS NOT NULL",
        f"{_IDLE} +status = 'active' AND idle_timeout_seconds = :seconds ORDER BY last_active_at, id",
    ),
    "max_age": (
        f"{_AGED} max_age_seconds IS NULL ORDER BY began_at, id",
        "SELECT DISTINCT max_age_seconds FROM sessions WHERE max_age_seconds IS NOT NULL",
        f"{_AGED} max_age_seconds = :seconds ORDER BY began_at, id",
    ),
    "retention": (
        f"{_OVER} retention_seconds IS NULL ORDER BY ended_at, id",
        "SELECT DISTINCT retention_seconds FROM sessions WHERE retention_seconds IS NOT NULL",
        f"{_OVER} retention_seconds = :seconds ORDER BY ended_at, id",
    ),
}


# Those that had expired before they were to be pruned, archived or deleted, and of which that is still to be done.
_UNDONE = (
    "SELECT id, user_id, on_expire, last_active_at, ended_at FROM sessions"
    f" WHERE status = 'expired' AND on_expire IS :own AND pruned = :pruned AND {_FREE} ORDER BY ended_at, id"
)


def list_due(connection: Connection, rules: EngineContext, now: datetime) -> DueSessions:
    """What is due at `now`: sessions to expire, or expired ones to do more with, and ended ones whose retention
    is over. Oldest first."""
    found = [alike for alike in _by_reason(connection, rules, now) if alike.rows]
    if len(found) == 1:
        return DueSessions(found[0].rows, found[0].ended)
    first: dict[str, tuple[datetime, str, _DueGroup, Row]] = {}
    for alike in found:
        for row in alike.rows:
            at = alike.at(row)
            if row[0] not in first or at < first[row[0]][0]:  # of two reasons, the first to come
                first[row[0]] = at, row[0], alike, row
    return DueSessions(sorted(first.values(), key=itemgetter(0, 1)), lambda entry: entry[2].ended(entry[3]))


def _by_reason(connection: Connection, rules: EngineContext, now: datetime) -> Iterator[_DueGroup]:
    settings, live, values = rules.settings, leases.live(connection, rules), {"now": to_text(now)}

    def rows(statement: str, **more: Any) -> list[Row]:
        found = connection.execute(statement, values | more).fetchall()
        found = [row for row in found if row[0] not in live] if live else found
        return found if _can_be_read(found) else [row for row in found if _is_readable(row, rules)]

    for reason, (by_settings, durations, of_own) in _DUE.items():
        timeout: timedelta | None = getattr(settings, reason)
        if timeout is not None:
            yield _DueGroup(reason, timeout, settings.on_expire, rows(by_settings, since=to_text(now - timeout)))
        for (seconds,) in connection.execute(durations).fetchall():
            own = session_rows.duration_of(seconds)
            if own is not None:
                found = rows(of_own, since=to_text(now - own), seconds=seconds)
                yield _DueGroup(reason, own, settings.on_expire, found)
    for own_action in (None, *STRATEGIES):
        action: OnExpire = own_action or settings.on_expire
        for pruned in STRATEGIES[action].applies_to:
            yield _DueGroup("on_expire", timedelta(0), action, rows(_UNDONE, own=own_action, pruned=pruned))


def _can_be_read(rows: Sequence[Row]) -> bool:
    """Whether the times of all are such. As fast as can be, since there may be very many."""
    places = {3, len(rows[0]) - 1} if rows else ()
    try:
        return all(None not in {moment.tzinfo for moment in _moments(rows, place)} for place in places)
    except (TypeError, ValueError):
        return False


def _moments(rows: Sequence[Row], place: int) -> Iterator[datetime]:
    return map(datetime.fromisoformat, map(itemgetter(place), rows))  # as `from_text`, in half the time


def _is_readable(row: Row, rules: EngineContext) -> bool:
    is_readable = _can_be_read([row])
    if not is_readable:
        session_rows.leave_out(row[0], f"malformed times: {row[3]!r}, {row[-1]!r}", rules)
    return is_readable


def list_older(connection: Connection, before: datetime, status: Status | None, rules: EngineContext) -> DueSessions:
    """Sessions that were last active before a moment, but for those pinned and those a run is in progress in."""
    now = rules.clock()
    live = leases.live(connection, rules)
    cursor = connection.execute(
        "SELECT * FROM sessions WHERE last_active_at < ? AND pinned IS NULL ORDER BY last_active_at, id",
        (to_text(before),),
    )
    rows = [
        (session.id, session.user_id, None, to_text(session.last_active_at), to_text(before))
        for session in session_rows.readable(cursor, rules)
        if session is not None
        and session.id not in live
        and status in (None, lifecycle.status_at(session, rules.settings, now))
    ]
    return DueSessions(rows, _DueGroup("older_than", timedelta(0), "delete", rows).ended)


_MEMBERS = "(SELECT COUNT(*) FROM sessions AS one WHERE one.home = sessions.home)"
_SIZES = (
    "SUM(LENGTH(body) + LENGTH(channels)) FROM sessions JOIN checkpoints AS own"
    " ON own.home = sessions.home AND session_id = id",
    "SUM(LENGTH(value)) FROM sessions JOIN writes AS own ON own.home = sessions.home AND session_id = id",
    "SUM(LENGTH(text) + COALESCE(LENGTH(content), 0)) FROM sessions JOIN messages ON session_id = id",
    "SUM(COALESCE(LENGTH(arguments), 0) + COALESCE(LENGTH(result), 0))"
    " FROM sessions JOIN tool_calls ON session_id = id",
    f"SUM(LENGTH(data)) / {_MEMBERS} FROM sessions JOIN blobs ON blobs.home = sessions.home",
    f"SUM(LENGTH(data)) / {_MEMBERS} FROM sessions JOIN list_items ON list_items.home = sessions.home",
)


def sizes(connection: Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """About how many bytes sessions hold, their share of what their family has in common included. Reads no blob."""
    wanted = json.dumps(list(session_ids))
    found = dict.fromkeys(session_ids, 0)
    for select in _SIZES:
        sql = f"SELECT sessions.id, {select} WHERE sessions.id IN (SELECT value FROM json_each(?)) GROUP BY sessions.id"
        for session_id, count in connection.execute(sql, (wanted,)):
            found[session_id] += int(count or 0)
    return found
