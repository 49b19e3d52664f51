"""Checks of what should hold in a database, and the repair of what can be computed again.

Each check is one statement that finds what is wrong. A finding that a run in progress explains is none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from session_middleware.findings import Problem
from session_middleware.model import SessionInfo, to_text, utc_now
from session_middleware.settings import SessionSettings
from session_middleware.storage.sqlite.integrity import contents
from session_middleware.storage.sqlite.integrity.reading import (
    UNREADABLE,
    cannot_be_read,
    damage,
    full,
    inspect,
    quick,
    tolerant,
)
from session_middleware.storage.sqlite.lifecycle import ends, events, leases
from session_middleware.storage.sqlite.record import dead, runs
from session_middleware.storage.sqlite.rows import Malformed, value_of
from session_middleware.storage.sqlite.rules import Rules
from session_middleware.storage.sqlite.state import families, pieces

ORPHANED = timedelta(minutes=10)  # writes may come before their checkpoint, but not so long before


_TOOK = "SELECT COALESCE(SUM({}), 0) FROM model_calls WHERE session_id = sessions.id"
_COUNTERS = {  # columns of `sessions` that count rows, or sum them up
    "run_count": "SELECT COUNT(*) FROM runs WHERE session_id = sessions.id",
    "message_count": "SELECT COUNT(*) FROM messages WHERE session_id = sessions.id AND version = 1",
    "tool_call_count": "SELECT COUNT(*) FROM tool_calls WHERE session_id = sessions.id",
    "model_call_count": "SELECT COUNT(*) FROM model_calls WHERE session_id = sessions.id",
    "unpriced_count": (
        "SELECT COUNT(*) FROM model_calls WHERE session_id = sessions.id AND cost IS NULL AND error IS NULL"
    ),
    "cost": "SELECT SUM(cost) FROM model_calls WHERE session_id = sessions.id",
    "error_count": (
        "SELECT (SELECT COUNT(*) FROM runs WHERE session_id = sessions.id AND outcome = 'error')"
        " + (SELECT COUNT(*) FROM tool_calls WHERE session_id = sessions.id AND status = 'error')"
    ),
    "input_tokens": _TOOK.format("input_tokens"),
    "output_tokens": _TOOK.format("output_tokens"),
}
_LAST_SEQ = "SELECT MAX(seq) FROM ({})".format(
    " UNION ALL ".join(
        f"SELECT MAX(seq) AS seq FROM {table} WHERE session_id = sessions.id"
        for table in ("runs", "messages", "tool_calls", "model_calls", "events")
    )
)
_WITHOUT_SESSION = {
    table: f"SELECT DISTINCT session_id FROM {table} WHERE session_id NOT IN (SELECT id FROM sessions)"
    for table in (*runs.TABLES, "checkpoints", "heads", "writes")
}
_ORPHANED_WRITES = (
    "SELECT session_id, COUNT(*) FROM writes WHERE NOT EXISTS (SELECT 1 FROM checkpoints AS own"
    " WHERE own.session_id = writes.session_id AND own.checkpoint_ns = writes.checkpoint_ns"
    " AND own.checkpoint_id = writes.checkpoint_id AND own.place >= writes.checkpoint_id)"
    " AND session_id IN (SELECT id FROM sessions"
    " WHERE last_active_at < ?) GROUP BY session_id"
)


def find(connection: sqlite3.Connection, rules: Rules, *, deep: bool = False) -> list[Problem]:
    """What does not hold. `deep` reads every row and compares it with its checksum. Only reads; never raises on damage.

    Raises:
        sqlite3.OperationalError: the file cannot be opened, or is locked.
    """
    with tolerant(connection) as found:
        if len(found) > 1:
            return found[1:]  # nothing of it can be read
        for check in (*(_DEEP if deep else _SHALLOW), *_CHECKS):
            try:
                found += check(connection, rules)
            except UNREADABLE as error:
                found.append(cannot_be_read(error))
        return list(dict.fromkeys(found))


def check_file(path: str, settings: SessionSettings, *, deep: bool = False) -> list[Problem]:
    """As `find`, of a file that is only read, whatever its state. Raises `StorageError` where it cannot be opened."""
    rules = Rules(settings, utc_now, new_id=str, path=path)
    return inspect(path, lambda connection: find(connection, rules, deep=deep))


def _file(connection: sqlite3.Connection, _: Rules) -> list[Problem]:
    return quick(connection)


def _whole_file(connection: sqlite3.Connection, _: Rules) -> list[Problem]:
    return full(connection)


def _contents(connection: sqlite3.Connection, _: Rules) -> list[Problem]:
    return contents.check(connection)


def _unreadable_sessions(connection: sqlite3.Connection, _: Rules) -> Iterator[Problem]:
    cursor = connection.execute("SELECT * FROM sessions")
    for row in cursor:
        try:
            value_of(SessionInfo, cursor, row)
        except Malformed as error:
            text = f"its row cannot be read ({error}); mend the row, or delete the session"
            yield damage(text, error.session_id, table="sessions")


# State

_LACKING = """
    SELECT own.session_id, own.checkpoint_id FROM checkpoints AS own, json_each(own.channels) AS ref
    WHERE CASE ref.type
        WHEN 'integer' THEN NOT EXISTS (SELECT 1 FROM blobs WHERE id = ref.value)
        WHEN 'array' THEN NOT EXISTS (SELECT 1 FROM lists WHERE id = json_extract(ref.value, '$[0]'))
    END
"""
_NOTED = """
    WITH noted (session_id, checkpoint_ns, checkpoint_id, writes) AS (
        SELECT session_id, checkpoint_ns, COALESCE(previous_id, parent_id), previous_writes FROM checkpoints
        WHERE COALESCE(previous_id, parent_id, '') != ''
        UNION ALL SELECT session_id, checkpoint_ns, checkpoint_id, write_count FROM heads
    )
"""
_VANISHED = f"""
    {_NOTED} SELECT session_id, checkpoint_id FROM noted
    WHERE NOT EXISTS (SELECT 1 FROM checkpoints AS own WHERE own.session_id = noted.session_id
        AND own.checkpoint_ns = noted.checkpoint_ns AND own.checkpoint_id = noted.checkpoint_id
        AND own.place >= noted.checkpoint_id)
    OR writes != (SELECT COUNT(*) FROM writes AS own WHERE own.session_id = noted.session_id
        AND own.checkpoint_ns = noted.checkpoint_ns AND own.checkpoint_id = noted.checkpoint_id)
"""
_NOT_NOTED = f"""
    {_NOTED} SELECT session_id, checkpoint_id FROM (
        SELECT session_id, checkpoint_ns, checkpoint_id FROM checkpoints
        EXCEPT SELECT session_id, checkpoint_ns, checkpoint_id FROM noted
    )
"""


def _state(connection: sqlite3.Connection, _: Rules) -> Iterator[Problem]:
    for sql, what in (
        (_LACKING, "lacks a part of its state"),
        (_VANISHED, "or a write of it, cannot be found"),
        (_NOT_NOTED, "is not in the list of its namespace"),
    ):
        for session_id, checkpoint_id in connection.execute(sql):
            text = f"checkpoint {checkpoint_id!r} {what}; resume from another one"
            yield damage(text, session_id, table="checkpoints", key=checkpoint_id)


def _families(connection: sqlite3.Connection, _: Rules) -> Iterator[Problem]:
    for session_id, (named, kept) in families.wrong(connection).items():
        where = ", ".join(map(repr, sorted(kept)))
        advice = f"set it to {where}" if len(kept) == 1 else "restore a backup"
        text = f"its family_id is {named!r}, and its values are stored for {where}; {advice}"
        kind = "family" if len(kept) == 1 else "damage"
        yield Problem(kind=kind, table="sessions", session_id=session_id, text=text)


# Sessions


def _archives(connection: sqlite3.Connection, rules: Rules) -> Iterator[Problem]:
    rows = connection.execute("SELECT id, archive FROM tombstones WHERE archive IS NOT NULL ORDER BY id").fetchall()
    for session_id, path in rows:
        if not Path(rules.archive_at(path)).is_file():
            text = f"{path} is missing; restore the file, or delete the id"
            yield Problem(kind="archive", table="tombstones", session_id=session_id, text=text)


def _left_running(connection: sqlite3.Connection, rules: Rules) -> Iterator[Problem]:
    """What processes that were killed have left."""
    live = leases.live(connection, rules)
    for place in leases.dead(connection, rules):
        if place.number not in rules.over:  # one of this process that is about to go
            text = f"held by the process {place.process}, which is gone"
            yield Problem(kind="dead_lease", table="leases", session_id=place.session_id, text=text)
    for session_id, _, run_id in dead.find(connection)[0]:
        text = f"run {run_id} was cut off: its process is gone"
        yield Problem(kind="dead_run", table="runs", session_id=session_id, key=run_id, text=text)
    for session_id, status in connection.execute(
        "SELECT id, status FROM sessions WHERE status IN ('opening', 'closing')"
    ):
        if session_id not in live:
            yield Problem(kind="stuck", table="sessions", session_id=session_id, text=f"it is {status}")
    for session_id, count in connection.execute(_ORPHANED_WRITES, (to_text(rules.clock() - ORPHANED),)):
        if session_id not in live:
            text = f"{count} writes whose checkpoint never came"
            yield Problem(kind="orphaned_writes", table="writes", session_id=session_id, text=text)


def _orphans(connection: sqlite3.Connection, _: Rules) -> Iterator[Problem]:
    for table, statement in _WITHOUT_SESSION.items():
        for (session_id,) in connection.execute(statement):
            text = f"rows of {table} without their session"
            yield Problem(kind="orphan", table=table, session_id=session_id, text=text)
    for family_id in families.orphaned(connection):
        text = "stored values that no session refers to"
        yield Problem(kind="orphan", table="blobs", session_id=family_id, text=text)


def _counters(connection: sqlite3.Connection, _: Rules) -> Iterator[Problem]:
    for name, counted in _COUNTERS.items():
        rows = connection.execute(
            f"SELECT id, {name}, ({counted}) AS counted FROM sessions"
            f" WHERE {name} IS NOT counted AND COALESCE(ABS({name} - counted) > 1e-6, 1)"
        )
        for session_id, kept, found in rows:
            text = f"{name} is {kept} and there are {found}"
            yield Problem(kind="counter", table="sessions", session_id=session_id, key=name, text=text)
    sql = f"SELECT id, last_seq, ({_LAST_SEQ}) AS highest FROM sessions WHERE last_seq < highest"
    for session_id, kept, found in connection.execute(sql):
        text = f"last_seq is {kept}, and {found} is used"
        yield Problem(kind="counter", table="sessions", session_id=session_id, key="last_seq", text=text)


Check = Callable[[sqlite3.Connection, Rules], Iterable[Problem]]
_SHALLOW: tuple[Check, ...] = (_file, _unreadable_sessions)
_DEEP: tuple[Check, ...] = (_whole_file, _contents)
_CHECKS: tuple[Check, ...] = (_state, _families, _archives, _left_running, _counters, _orphans)


# Repair


def is_repairable(problems: Sequence[Problem]) -> bool:
    """A file is left alone when a page or the schema of it is damaged: rows that seem to be orphaned may not be."""
    return not any(problem.kind == "file" for problem in problems)


def repair(connection: sqlite3.Connection, problem: Problem, rules: Rules) -> Problem:
    """Compute again what was found wrong, as it is now, and say so. What cannot be is returned as it is."""
    if problem.kind not in REPAIRABLE:
        return problem
    REPAIRABLE[problem.kind](connection, problem, rules)
    if problem.session_id is not None:
        events.append(connection, problem.session_id, "repaired", problem.kind, {"was": problem.text}, rules.clock())
    return problem.model_copy(update={"repaired": True})


def _count(connection: sqlite3.Connection, problem: Problem, _: Rules) -> None:
    columns = [f"{name} = ({counted})" for name, counted in _COUNTERS.items()]
    columns.append(f"last_seq = MAX(last_seq, COALESCE(({_LAST_SEQ}), 0))")
    connection.execute(f"UPDATE sessions SET {', '.join(columns)} WHERE id = ?", (problem.session_id,))


def _unstick(connection: sqlite3.Connection, problem: Problem, _: Rules) -> None:
    connection.execute(
        "UPDATE sessions SET status = CASE status WHEN 'opening' THEN 'active' ELSE 'expired' END"
        " WHERE id = ? AND status IN ('opening', 'closing')",
        (problem.session_id,),
    )


def _delete_orphans(connection: sqlite3.Connection, problem: Problem, _: Rules) -> None:
    if problem.table in _WITHOUT_SESSION:
        connection.execute(
            f"DELETE FROM {problem.table} WHERE session_id = ?1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE id = ?1)",
            (problem.session_id,),
        )
    elif problem.session_id in families.orphaned(connection):  # still: a session may refer to it by now
        pieces.free_unused(connection, problem.session_id, ())


Repair = Callable[[sqlite3.Connection, Problem, Rules], object]
REPAIRABLE: dict[str, Repair] = {
    "counter": _count,
    "index": lambda connection, problem, _: connection.execute(f'REINDEX "{problem.key}"'),
    "orphan": _delete_orphans,
    "orphaned_writes": lambda connection, problem, rules: ends.free_orphans(connection, str(problem.session_id), rules),
    "stuck": _unstick,
    "dead_lease": lambda connection, _, rules: leases.bury(connection, leases.dead(connection, rules)),
    "dead_run": lambda connection, *_: dead.interrupt(connection),
}
