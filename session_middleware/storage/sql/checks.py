"""Consistency checks of a database, and the repair of everything that can be recomputed.

An inconsistency that a run in progress explains is not a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from session_middleware.models import Problem
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.sessions import events, leases

_ROWS = "(SELECT {} FROM {} WHERE session_id = sessions.id AND {})"
_COUNTERS = {  # columns of `sessions`, and the expressions that recompute them
    "run_count": _ROWS.format("COUNT(*)", "runs", "TRUE"),
    "message_count": _ROWS.format("COUNT(*)", "messages", "version = 1"),
    "tool_call_count": _ROWS.format("COUNT(*)", "tool_calls", "TRUE"),
    "model_call_count": _ROWS.format("COUNT(*)", "model_calls", "TRUE"),
    "unpriced_count": _ROWS.format("COUNT(*)", "model_calls", "cost IS NULL AND error IS NULL"),
    "cost": _ROWS.format("SUM(cost)", "model_calls", "TRUE"),
    "waiting_count": _ROWS.format("COUNT(*)", "questions", "status = 'open'"),
    "error_count": _ROWS.format("COUNT(*)", "runs", "outcome = 'error'")
    + " + "
    + _ROWS.format("COUNT(*)", "tool_calls", "status = 'error'"),
    "input_tokens": _ROWS.format("COALESCE(SUM(input_tokens), 0)", "model_calls", "TRUE"),
    "output_tokens": _ROWS.format("COALESCE(SUM(output_tokens), 0)", "model_calls", "TRUE"),
}
_NUMBERED = ("runs", "messages", "tool_calls", "model_calls", "questions", "events")
_LAST_SEQ = f"MAX({', '.join(_ROWS.format('COALESCE(MAX(seq), 0)', table, 'TRUE') for table in _NUMBERED)})"
_LACKING = """
    SELECT own.session_id, own.checkpoint_id FROM checkpoints AS own, json_each(own.channels) AS ref
    WHERE CASE
        WHEN ref.type = 'text' AND length(ref.value) = 32
        THEN NOT EXISTS (SELECT 1 FROM blobs WHERE home = own.home AND lower(hex(digest)) = ref.value)
        WHEN ref.type = 'array' THEN CAST(json_extract(ref.value, '$[1]') AS INTEGER) > 0 AND NOT EXISTS (
            SELECT 1 FROM list_items
            WHERE home = own.home AND list_id = CAST(json_extract(ref.value, '$[0]') AS INTEGER) UNION ALL
            SELECT 1 FROM lists WHERE home = own.home AND id = CAST(json_extract(ref.value, '$[0]') AS INTEGER))
    END
"""
_LOST = """
    SELECT id, latest_checkpoint_id FROM sessions
    WHERE latest_checkpoint_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM checkpoints AS own WHERE own.home = sessions.home AND own.session_id = sessions.id
        AND own.checkpoint_ns = '' AND own.position >= sessions.latest_checkpoint_id
        AND own.checkpoint_id = sessions.latest_checkpoint_id
    )
"""
_COUNTED = """
    SELECT id, NULL, counted, checkpoint_count FROM (
        SELECT id, checkpoint_count, (
            SELECT COUNT(*) FROM checkpoints AS own
            WHERE own.home = sessions.home AND own.session_id = sessions.id AND own.checkpoint_ns = ''
        ) AS counted FROM sessions
    ) AS each_session WHERE counted != checkpoint_count
"""
_MOVED = """
    SELECT DISTINCT id, NULL, sessions.home, checkpoints.home FROM checkpoints JOIN sessions ON id = session_id
    WHERE checkpoints.home != sessions.home
"""
_WRITES = """
    SELECT id, latest_checkpoint_id FROM sessions
    WHERE latest_checkpoint_id IS NOT NULL AND write_count != (
        SELECT COUNT(*) FROM writes AS own WHERE own.home = sessions.home AND own.session_id = sessions.id
        AND own.checkpoint_ns = '' AND own.checkpoint_id = sessions.latest_checkpoint_id
    )
"""
_WRONG_COUNTER = """
    SELECT id, '{0}', noted, counted FROM (SELECT id, {0} AS noted, {1} AS counted FROM sessions) AS each_session
    WHERE (noted IS NULL) != (counted IS NULL) OR ABS(noted - counted) > 1e-6
"""
_LOW_SEQ = f"""
    SELECT id, 'last_seq', last_seq, highest FROM (SELECT id, last_seq, {_LAST_SEQ} AS highest FROM sessions)
    AS each_session WHERE last_seq < highest
"""
_ANOTHER = "; resume from another one"
_DELETED = "; a repair deletes them, unless the session's row is added first"
_OF_SESSIONS = (*runs.TABLES, "checkpoints", "writes")
_WITHOUT_SESSION = "SELECT DISTINCT session_id, NULL FROM {} WHERE session_id NOT IN (SELECT id FROM sessions)"
_OF_FAMILIES = ("lists", "list_items", "blobs")
_NO_FAMILY = "NOT EXISTS (SELECT 1 FROM sessions WHERE home = ?1 UNION ALL SELECT 1 FROM checkpoints WHERE home = ?1)"
_WITHOUT_FAMILY = (
    "SELECT DISTINCT NULL, home FROM {}"
    " WHERE home NOT IN (SELECT home FROM sessions UNION SELECT home FROM checkpoints)"
)
_STATEMENTS = (  # kind, table, a statement that selects session and key of each problem, and the sentence
    ("damage", "checkpoints", _LACKING, "checkpoint {1!r} lacks a part of its state" + _ANOTHER),
    ("damage", "checkpoints", _LOST, "checkpoint {1!r}, the latest, cannot be found" + _ANOTHER),
    ("family", "sessions", _MOVED, "its home is {2}, and its checkpoints are stored for {3}; set it to {3}"),
    ("damage", "checkpoints", _COUNTED, "there are {2} checkpoints instead of {3}" + _ANOTHER),
    ("damage", "writes", _WRITES, "a write of checkpoint {1!r} cannot be found" + _ANOTHER),
    *(
        ("counter", "sessions", _WRONG_COUNTER.format(*counter), "{1} is {2} and there are {3}")
        for counter in _COUNTERS.items()
    ),
    ("counter", "sessions", _LOW_SEQ, "last_seq is {2}, and {3} is used"),
    *(
        ("orphan", table, _WITHOUT_FAMILY.format(table), f"rows of {table} without a session" + _DELETED)
        for table in _OF_FAMILIES
    ),
    *(
        ("orphan", table, _WITHOUT_SESSION.format(table), f"rows of {table} without their session" + _DELETED)
        for table in _OF_SESSIONS
    ),
)


def describe(kind: str, text: str, session_id: Any = None, *, table: str | None = None, key: Any = None) -> Problem:
    """A problem with as much of its location as is known, converted to printable text."""
    texts = (
        None if part is None else str(part).encode("utf-8", "replace").decode() for part in (session_id, key, text)
    )
    return Problem(kind=kind, table=table, **dict(zip(("session_id", "key", "text"), texts, strict=True)))


def find(connection: Connection, rules: EngineContext) -> list[Problem]:
    """The problems that every engine finds."""
    return without_moved(problem for check in checks(connection, rules) for problem in check())


def checks(connection: Connection, rules: EngineContext) -> list[Callable[[], Iterable[Problem]]]:
    selects = (partial(_select, connection, *what) for what in _STATEMENTS)
    return [lambda: _remains(connection, rules), *selects]


def without_moved(found: Iterable[Problem]) -> list[Problem]:
    """Without the damage of sessions whose state is stored in another family."""
    problems = list(dict.fromkeys(found))
    moved = {each.session_id for each in problems if each.kind == "family"}
    return [each for each in problems if not (each.kind == "damage" and each.session_id in moved)]


def _select(connection: Connection, kind: str, table: str, sql: str, text: str) -> Iterator[Problem]:
    for row in connection.execute(sql):
        yield describe(kind, text.format(*row), row[0], table=table, key=row[1])


def _remains(connection: Connection, rules: EngineContext) -> Iterator[Problem]:
    """Leases and runs of killed processes, and missing archives."""
    for row in leases.dead(connection, rules):
        if row.number not in rules.over:  # this process is about to release it
            text = f"held by the process {row.process}, which has ended"
            yield describe("dead_lease", text, row.session_id, table="leases", key=row.number)
    for session_id, _, run_id in runs.find_dead(connection)[0]:
        yield describe(
            "dead_run", f"run {run_id} was cut off: its process has ended", session_id, table="runs", key=run_id
        )
    for session_id, path in connection.execute("SELECT id, archive FROM tombstones WHERE archive IS NOT NULL"):
        if not rules.archive_at(path).is_file():
            text = f"{path} is missing; restore the file from a backup, or delete the session"
            yield describe("archive", text, session_id, table="tombstones")


# Repair


def repairable(problems: Sequence[Problem]) -> list[Problem]:
    """Nothing in a file with damaged pages or a damaged schema: rows may only seem to be orphaned."""
    is_damaged = any(problem.kind == "file" for problem in problems)
    return [] if is_damaged else [problem for problem in problems if problem.kind in REPAIRS]


def repair(connection: Connection, problem: Problem, rules: EngineContext) -> Problem:
    """Recompute from the current rows, and record an event."""
    REPAIRS[problem.kind](connection, problem, rules)
    if problem.session_id is not None:
        events.append(connection, problem.session_id, "repaired", problem.kind, {"was": problem.text}, rules.clock())
    return problem.model_copy(update={"repaired": True})


def recount(connection: Connection, session_id: str | None) -> None:
    """Recompute the counters of a session from its rows."""
    columns = [f"{name} = {counted}" for name, counted in _COUNTERS.items()]
    columns.append(f"last_seq = MAX(last_seq, {_LAST_SEQ})")
    connection.execute(f"UPDATE sessions SET {', '.join(columns)} WHERE id = ?", (session_id,))


def _delete_orphans(connection: Connection, problem: Problem, _: EngineContext) -> None:
    if problem.table in _OF_SESSIONS:
        sql = f"DELETE FROM {problem.table} WHERE session_id = ?1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE id = ?1)"
        connection.execute(sql, (problem.session_id,))
    elif problem.key is not None:
        connection.execute(f"DELETE FROM {problem.table} WHERE home = ?1 AND {_NO_FAMILY}", (int(problem.key),))


REPAIRS: dict[str, Callable[[Connection, Problem, EngineContext], object]] = {
    "counter": lambda connection, problem, _: recount(connection, problem.session_id),
    "orphan": _delete_orphans,
    "index": lambda connection, problem, _: connection.execute(f'REINDEX "{problem.key}"'),
    "dead_lease": lambda connection, _, rules: leases.reap_dead(connection, rules),
    "dead_run": lambda connection, *_: runs.interrupt_dead(connection),
}
