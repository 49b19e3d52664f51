"""The rows of sessions: found, changed, listed and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

from session_middleware import lifecycle
from session_middleware.errors import SessionNotFound
from session_middleware.models import LONGEST, Identity, SessionFields, SessionInfo, SessionOrder, to_text
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.connection import UNLIMITED, Connection, Cursor
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import branches
from session_middleware.storage.sql.row_mapping import Malformed, clean, to_json, value_of
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.sql.sessions import events, leases, tombstones, unfinished
from session_middleware.storage.titles import title_key
from session_middleware.storage.types import SessionDetails, SessionFilter

logger = logging.getLogger("session_middleware")

_MOST_PARSED = 256  # sessions
_MOST_READ = 500  # characters of a message, for its preview


# Sessions with the last message of each on its branch.
_WITH_LAST = f"""
    SELECT page.*, substr(last.text, 1, {_MOST_READ}) AS preview, last.created_at AS last_message_at
    FROM ({{page}}) AS page LEFT JOIN messages AS last ON last.session_id = page.id AND last.seq = (
        SELECT seq FROM messages WHERE session_id = page.id AND branch = page.branch AND replaced_by IS NULL
        AND role IN ('user', 'assistant') AND {branches.OUTERMOST} AND text != '' ORDER BY seq DESC LIMIT 1
    )
"""
_FIND = _WITH_LAST.format(page="SELECT * FROM sessions WHERE id = ?")


def find(connection: Connection, session_id: str) -> SessionInfo | None:
    cursor = connection.execute(_FIND, (session_id,))
    row = cursor.fetchone()
    return None if row is None else value_of(SessionInfo, cursor, row)


WITH_VERSION = "SELECT version, sessions.* FROM sessions WHERE id = ?"


def find_with_version(connection: Connection, session_id: str, rules: EngineContext) -> tuple[SessionInfo | None, int]:
    """As `find`, with the session's version. A row that is the same as at the last call is not parsed again."""
    cursor = connection.execute(WITH_VERSION, (session_id,))
    row, known = cursor.fetchone(), rules.parsed.get(session_id)
    if row is None:
        return None, 0
    if known is None or known[0] != row:
        if len(rules.parsed) >= _MOST_PARSED:
            rules.parsed.clear()
        rules.parsed[session_id] = known = (row, value_of(SessionInfo, cursor, row))
    return known[1], row[0]


class Remains(NamedTuple):
    """The facts that a deletion needs about a session."""

    id: str
    home: int
    user_id: str | None
    incarnation: int


def find_remains(connection: Connection, session_ids: Sequence[str]) -> list[Remains]:
    """The sessions that are there, also if their rows are damaged."""
    rows = connection.execute(
        "SELECT id, home, user_id, CAST(incarnation AS INTEGER) FROM sessions"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps([*session_ids]),),
    )
    return list(map(Remains._make, rows))


# Damaged rows are left out where many sessions are read, and logged once.


def readable(cursor: Cursor, rules: EngineContext) -> Iterator[SessionInfo | None]:
    """The sessions row by row; ``None`` for a damaged row."""
    for row in cursor:
        try:
            yield value_of(SessionInfo, cursor, row)
        except Malformed as error:
            leave_out(error.session_id, str(error), rules)
            yield None


def first(
    connection: Connection, select: str, values: Mapping[str, Any], limit: int | None, rules: EngineContext
) -> list[SessionInfo]:
    """The first `limit` (``None``: all) readable sessions of `select`, which ends with ``LIMIT :limit``."""
    damaged = 0
    while True:
        most = UNLIMITED if limit is None else limit + damaged
        rows = list(readable(connection.execute(select, {**values, "limit": most}), rules))
        if limit is None or rows.count(None) == damaged:
            return [session for session in rows if session is not None]
        damaged = rows.count(None)


def leave_out(session_id: str, problem: str, rules: EngineContext) -> None:
    if session_id not in rules.unreadable:
        rules.unreadable.add(session_id)
        text = "%s: session %r is left out of lists and sweeps, since its row cannot be read (%s); "
        logger.warning(text + "mend the row, or delete the session", rules.path, session_id, problem)


def get(connection: Connection, session_id: str) -> SessionInfo:
    session = find(connection, session_id)
    if session is None:
        raise SessionNotFound(session_id)
    return session


def seen(connection: Connection, rules: EngineContext, session_id: str) -> SessionInfo | None:
    """As `find`, and whether a run is in progress. Raises `StorageError` if only the session's row is missing."""
    leases.prefetch(connection, session_id)
    session = find(connection, session_id)
    if session is None:
        latest_checkpoint.check_new(connection, session_id, rules.path)
    elif leases.live_of(connection, session_id, rules):
        return session.model_copy(update={"is_running": True})
    return session


def get_for(connection: Connection, session_id: str, by: Identity | None, rules: EngineContext) -> SessionInfo:
    """The session, for a change by this identity (``None``: by the operator).

    Raises `SessionNotFound`, also if it is another user's; `SessionAccessDenied` for a reader; and `UserRevoked`.
    """
    if by is not None:
        tombstones.check_not_revoked(connection, session_id, by.user_id)
    session = seen(connection, rules, session_id)
    if session is None:
        raise SessionNotFound(session_id)
    if by is not None:
        lifecycle.check_theirs(session, by)
    return session


def members(connection: Connection, home: int) -> Sequence[str]:
    rows = connection.execute("SELECT id FROM sessions WHERE home = ?", (home,))
    return [session_id for (session_id,) in rows]


_END = "\U0010ffff"  # the last of all characters


def list_ids(connection: Connection, prefix: str, *, limit: int, deleted: bool = False) -> list[str]:
    """The ids of sessions, or with `deleted` of deleted and archived ones, that begin with `prefix`, in order."""
    table = "tombstones" if deleted else "sessions"
    sql = f"SELECT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    return [found for (found,) in connection.execute(sql, (prefix, prefix + _END, limit))]


# Changing

_OF_FORKS = ("title", "title_key", "purpose", "tags", "metadata")
_OF_FRESH = ["title_key", *(name for name in SessionDetails._fields if name not in ("context", "client"))]


def inherit_details(connection: Connection, source_id: str, target_id: str, *, is_fork: bool) -> None:
    """Copy what was set of a session to its fork, or to the fresh session that has taken its id."""
    columns = ", ".join(_OF_FORKS if is_fork else _OF_FRESH)
    connection.execute(
        f"UPDATE sessions SET ({columns}) = (SELECT {columns} FROM sessions WHERE id = ?) WHERE id = ?",
        (source_id, target_id),
    )


def touch(connection: Connection, session_id: str, rules: EngineContext, now: datetime) -> int:
    """Record activity: the idle time begins again. Returns the session's version."""
    timeout = rules.settings.idle_timeout
    version, *own_terms = connection.execute(
        "UPDATE sessions SET version = version + 1, last_active_at = ?, postponed_until = NULL, expires_at = ?"
        " WHERE id = ? RETURNING version, idle_timeout_seconds, max_age_seconds, pinned",
        (to_text(now), None if timeout is None else to_text(now + timeout), session_id),
    ).fetchone()
    if own_terms != [None, None, None] or rules.settings.max_age is not None:
        write_expiry(connection, session_id, rules)
    return int(version)


def touch_with(write: SessionWrite, rules: EngineContext, now: datetime) -> None:
    """As `touch`, with the session's other changes of the transaction."""
    if write.state.has_own_terms or rules.settings.max_age is not None:
        write.finish()
        write.state.version = touch(write.connection, write.state.session_id, rules, now)
        write.state.last_active_at = to_text(now)
    else:
        timeout = rules.settings.idle_timeout
        write.touch(to_text(now), None if timeout is None else to_text(now + timeout))


def expiry_without_own_terms(rules: EngineContext, now: datetime) -> str | None:
    """The expiry of a session that is opened now, as `write_expiry` stores it."""
    timeouts = [each for each in (rules.settings.idle_timeout, rules.settings.max_age) if each is not None]
    return to_text(now + min(timeouts)) if timeouts else None


def write_expiry(connection: Connection, session_id: str, rules: EngineContext) -> None:
    """Update the column ``expires_at``, which is for readers of the table: expiry is computed at each read."""
    end = lifecycle.expires_at(get(connection, session_id), rules.settings)
    connection.execute(
        "UPDATE sessions SET expires_at = ? WHERE id = ?", (None if end is None else to_text(end), session_id)
    )


def ping(connection: Connection, rules: EngineContext, session_id: str) -> SessionInfo:
    now = rules.clock()
    session = get_for(connection, session_id, None, rules)
    lifecycle.check_open(session_id, lifecycle.status_at(session, rules.settings, now))
    touch(connection, session_id, rules, now)
    return get(connection, session_id)


def update(connection: Connection, rules: EngineContext, session_id: str, details: SessionDetails) -> SessionInfo:
    session = get_for(connection, session_id, None, rules)
    lifecycle.check_visibility(session, details.visibility)
    changes = _changes(session, details)
    if changes:
        columns = ", ".join(f"{name} = ?" for name in changes)
        connection.execute(f"UPDATE sessions SET {columns} WHERE id = ?", (*changes.values(), session_id))
    if any(getattr(details, name) is not None for name in ("idle_timeout_seconds", "max_age_seconds")):
        write_expiry(connection, session_id, rules)
    if details.client is not None and details.client != session.client:
        events.append(connection, session_id, "connected", None, details.client, rules.clock())
    return get_for(connection, session_id, None, rules)


def _changes(session: SessionInfo, details: SessionDetails) -> dict[str, Any]:
    given: dict[str, Any] = {name: value for name, value in details._asdict().items() if value is not None}
    for name in given.keys() & {"title", "purpose"}:
        given[name] = clean(given[name]) or None  # an empty one is none
    if "title" in given:
        given["title_key"] = title_key(given["title"])
    for name in given.keys() & {"metadata", "context", "client"}:
        given[name] = to_json(merged(getattr(session, name), given[name]))
    if "tags" in given:
        given["tags"] = to_json(list(given["tags"]))
    return given


def with_template(details: SessionDetails, template: SessionDetails) -> SessionDetails:
    """The details, and those of the template where they have none; dicts are merged."""
    found: dict[str, Any] = template._asdict()
    for name, value in details._asdict().items():
        if value is not None:
            found[name] = merged(found[name] or {}, value) if isinstance(value, dict) else value
    return SessionDetails(**found)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """As JSON merge patch (RFC 7396): dicts merge at every depth, and ``None`` deletes a key."""
    found = dict(old)
    for key, value in new.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            under = found.get(key)
            found[key] = merged(under if isinstance(under, dict) else {}, value)
        else:
            found[key] = value
    return found


# Listing


# Whether a session stored as active has expired, as `lifecycle.expiry_of` has it, to the millisecond: by the idle
# timeout of the settings, or otherwise. Each term names what an index has. What is not true may be NULL.
_IDLE_TOO_LONG = "idle_timeout_seconds IS NULL AND last_active_at <= :gone"
_OTHERWISE = """(
    (ended_at IS NULL AND max_age_seconds IS NULL AND active_since <= :born)
    OR (idle_timeout_seconds > 0
        AND ROUND((julianday(:now) - julianday(last_active_at)) * 86400.0, 3) >= idle_timeout_seconds)
    OR (max_age_seconds > 0 AND ROUND((julianday(:now) - julianday(active_since)) * 86400.0, 3) >= max_age_seconds)
)"""
_FREE = (
    "pinned IS NULL AND (postponed_until IS NULL OR postponed_until <= :now)"
    " AND id NOT IN (SELECT value FROM json_each(:live))"
)
NOT_DUE = f"({_FREE} AND ({_IDLE_TOO_LONG} OR {_OTHERWISE})) IS NOT TRUE"
_BY_STATUS: dict[str, Sequence[str]] = {  # disjoint conditions
    "active": [
        "+status = 'active' AND id IN (SELECT value FROM json_each(:live) UNION ALL"
        f" SELECT id FROM sessions WHERE status = 'active' AND last_active_at > :idle AND {NOT_DUE})"
    ],
    "idle": [
        f"status = 'active' AND last_active_at <= :idle AND {NOT_DUE}"
        " AND id NOT IN (SELECT value FROM json_each(:live))"
    ],
    "expired": [
        "status = 'expired'",
        f"status = 'active' AND {_IDLE_TOO_LONG} AND {_FREE}",
        f"+status = 'active' AND NOT ({_IDLE_TOO_LONG}) AND {_FREE}"
        f" AND id IN (SELECT id FROM sessions WHERE {_OTHERWISE})",
    ],
    "open": [f"+status = 'active' AND {NOT_DUE}"],
}
# The members of a JSON text, with each NUL of a member replaced: there a text of SQLite's `json_each` ends.
_MEMBERS = r"json_each(replace(replace({}, '\u0001', '\u0001\u0002'), '\u0000', '\u0001\u0001'))"
_OWN = "CASE WHEN json_valid(sessions.{0}) THEN sessions.{0} END"
_CONDITIONS: dict[str, Any] = {
    "user_id": "user_id = :user_id",
    "group_id": "group_id = :group_id",
    "since": "last_active_at >= :since",
    "until": "last_active_at < :until",
    "waiting": {True: "waiting_count > 0", False: "waiting_count = 0"},
    "tags": f"NOT EXISTS (SELECT 1 FROM {_MEMBERS.format(':tags')} AS wanted"
    f" WHERE NOT EXISTS (SELECT 1 FROM {_MEMBERS.format(_OWN.format('tags'))} AS own WHERE own.value = wanted.value))",
    "metadata": f"NOT EXISTS (SELECT 1 FROM {_MEMBERS.format(':metadata')} AS wanted"
    f" WHERE NOT EXISTS (SELECT 1 FROM {_MEMBERS.format(_OWN.format('metadata'))} AS own"
    " WHERE own.key = wanted.key AND own.type = wanted.type AND own.value = wanted.value))",
    "title": "instr(title_key, :title) > 0",
    "family_of": "home = (SELECT home FROM sessions WHERE id = :family_of)",
}
_SHARED = "visibility != 'private' AND group_id = :{} AND user_id != :viewer"
_ORDERS: Mapping[SessionOrder, tuple[str, str, str]] = {  # the column, and how it and the id go on
    "activity": ("last_active_at", "<", "DESC"),
    "creation": ("created_at", "<", "DESC"),
    "title": ("title_key", ">", "ASC"),
}


def moments(rules: EngineContext, now: datetime) -> dict[str, Any]:
    """The bounds that `NOT_DUE` compares with."""
    settings = rules.settings
    return {
        "now": to_text(now),
        "idle": to_text(now - settings.idle_after),
        "gone": "" if settings.idle_timeout is None else to_text(now - settings.idle_timeout),
        "born": "" if settings.max_age is None else to_text(now - settings.max_age),
    }


def duration_of(seconds: Any) -> timedelta | None:
    """A session's own duration as stored; ``None`` for never, and for a damaged value."""
    is_one = isinstance(seconds, float) and 0 < seconds <= LONGEST.total_seconds()
    return timedelta(seconds=seconds) if is_one else None


def _conditions(connection: Connection, rules: EngineContext, where: SessionFilter) -> tuple[list[str], dict[str, Any]]:
    """`where` as disjoint conditions, each of which an index may have in order; and their parameters."""
    values = moments(rules, rules.clock())
    live = () if _BY_STATUS.keys().isdisjoint(where.status) else leases.live(connection, rules)
    values["live"] = json.dumps(sorted(live))
    values |= {f"status_{number}": status for number, status in enumerate(where.status)}
    by_status = (_BY_STATUS.get(each, [f"status = :status_{number}"]) for number, each in enumerate(where.status))
    statuses = [*chain.from_iterable(by_status)]
    if where.user_id or where.group_id or where.visible_to:  # theirs is the better index
        statuses = [f"+{each.lstrip('+')}" for each in statuses]
    owners = ["TRUE"]
    if (viewer := where.visible_to) is not None:
        groups = {f"group_{number}": group for number, group in enumerate(sorted(viewer.groups))}
        values |= {"viewer": viewer.user_id} | groups
        owners = ["user_id = :viewer", *(_SHARED.format(group) for group in groups)]
    others = []
    for name, condition in _CONDITIONS.items():
        given = getattr(where, name)
        if isinstance(condition, dict):
            others += [condition[given]] if given is not None else []
        elif given:
            others.append(condition)
            given = to_text(given) if isinstance(given, datetime) else given
            values[name] = given if isinstance(given, str) else to_json(given)
    if where.unfinished is not None:
        others.append("id IN (SELECT value FROM json_each(:unfinished))")
        values["unfinished"] = json.dumps(
            unfinished.ids(connection, rules, cancelled=where.unfinished == "or_cancelled")
        )
    each_status = [[status] for status in statuses] or [[]]
    found = [" AND ".join([owner, *status, *others]) for owner in owners for status in each_status]
    return found, values


# The page of one condition, read from an index if that has the columns; and that of all.
_OF_ONE = "SELECT * FROM (SELECT id, {key} FROM sessions WHERE {where} ORDER BY {order} LIMIT :limit) AS of_{number}"
_OF_ALL = _WITH_LAST.format(
    page="SELECT sessions.* FROM ({pages} ORDER BY {order} LIMIT :limit) AS chosen"
    " CROSS JOIN sessions ON sessions.id = chosen.id"
)
_OF_ALL += " ORDER BY {order}"


def list_(
    connection: Connection,
    rules: EngineContext,
    where: SessionFilter,
    *,
    limit: int | None,
    order: SessionOrder = "activity",
    after: SessionFields | None = None,
) -> list[SessionInfo]:
    conditions, values = _conditions(connection, rules, where)
    column, beyond, direction = _ORDERS[order]
    later = ""
    if after is not None:
        later = f" AND ({column}, id) {beyond} (:after_key, :after_id)"
        values |= {"after_key": _key_of(after, column), "after_id": after.id}
    order_by = f"{column} {direction}, id {direction}"
    pages = [
        _OF_ONE.format(key=column, where=each + later, order=order_by, number=number)
        for number, each in enumerate(conditions)
    ]
    select = _OF_ALL.format(pages=" UNION ALL ".join(pages), order=order_by)
    found, live = first(connection, select, values, limit, rules), leases.live(connection, rules)
    return [session.model_copy(update={"is_running": True}) if session.id in live else session for session in found]


def _key_of(session: SessionFields, column: str) -> str:
    """The value by which a session is sorted."""
    return title_key(session.title) if column == "title_key" else to_text(getattr(session, column))


def count(connection: Connection, rules: EngineContext, where: SessionFilter) -> int:
    conditions, values = _conditions(connection, rules, where)
    counts = (f"(SELECT COUNT(*) FROM sessions WHERE {each})" for each in conditions)
    sql = f"SELECT {' + '.join(counts)}"
    return int(connection.execute(sql, values).fetchone()[0])


def ids_of(connection: Connection, rules: EngineContext, where: SessionFilter) -> tuple[str, dict[str, Any]]:
    """A query for the ids of these sessions, and its parameters."""
    conditions, values = _conditions(connection, rules, where)
    return f"SELECT id FROM sessions WHERE {' OR '.join(conditions)}", values


def list_by_home(
    connection: Connection, where: SessionFilter, rules: EngineContext, *, limit: int
) -> Iterator[tuple[int, str]]:
    """The home and the id of each session, in this order, read `limit` at a time."""
    conditions, values = _conditions(connection, rules, where)
    values |= {"home": -1, "id": "", "limit": limit}
    while True:
        rows = connection.execute(
            f"SELECT home, id FROM sessions WHERE ({' OR '.join(conditions)}) AND (home, id) > (:home, :id)"
            " ORDER BY home, id LIMIT :limit",
            values,
        ).fetchall()
        yield from rows
        if len(rows) < limit:
            return
        values |= {"home": rows[-1][0], "id": rows[-1][1]}
