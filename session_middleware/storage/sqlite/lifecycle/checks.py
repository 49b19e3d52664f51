"""Checks of what should hold between the rows of sessions, and how it is mended where it does not.

Each check is one statement that finds what is wrong and, where that can be, one that puts it right.
A finding that a run in progress explains is none.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from typing import NamedTuple

from session_middleware.findings import Problem
from session_middleware.model import SessionInfo, to_text
from session_middleware.storage.processes import is_gone
from session_middleware.storage.sqlite.lifecycle import ends, events, leases
from session_middleware.storage.sqlite.record import runs
from session_middleware.storage.sqlite.rows import Malformed, value_of
from session_middleware.storage.sqlite.rules import Rules
from session_middleware.storage.sqlite.state import families, pieces

ORPHANED = timedelta(minutes=10)  # writes may come before their checkpoint, but not so long before


class Counter(NamedTuple):
    """A column of `sessions` that counts rows, or sums them up."""

    name: str
    counted: str


_TOOK = "SELECT COALESCE(SUM({}), 0) FROM model_calls WHERE session_id = sessions.id"
COUNTERS = (
    Counter("run_count", "SELECT COUNT(*) FROM runs WHERE session_id = sessions.id"),
    Counter("message_count", "SELECT COUNT(*) FROM messages WHERE session_id = sessions.id AND version = 1"),
    Counter("tool_call_count", "SELECT COUNT(*) FROM tool_calls WHERE session_id = sessions.id"),
    Counter("model_call_count", "SELECT COUNT(*) FROM model_calls WHERE session_id = sessions.id"),
    Counter(
        "unpriced_count",
        "SELECT COUNT(*) FROM model_calls WHERE session_id = sessions.id AND cost IS NULL AND error IS NULL",
    ),
    Counter("cost", "SELECT SUM(cost) FROM model_calls WHERE session_id = sessions.id"),
    Counter(
        "error_count",
        "SELECT (SELECT COUNT(*) FROM runs WHERE session_id = sessions.id AND outcome = 'error')"
        " + (SELECT COUNT(*) FROM tool_calls WHERE session_id = sessions.id AND status = 'error')",
    ),
    Counter("input_tokens", _TOOK.format("input_tokens")),
    Counter("output_tokens", _TOOK.format("output_tokens")),
)
_LAST_SEQ = " UNION ALL ".join(
    f"SELECT MAX(seq) FROM {table} WHERE session_id = sessions.id"  # noqa: RUF100
    for table in ("runs", "messages", "tool_calls", "model_calls", "events")
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


def find(connection: sqlite3.Connection, rules: Rules) -> list[Problem]:
    now = rules.clock()
    live = leases.live(connection, rules)
    found = [
        Problem(
            kind="dead_lease", session_id=place.session_id, text=f"held by the process {place.process}, which is gone"
        )
        for place in leases.dead(connection, rules)
        if place.number not in rules.over  # one of this process that is about to go
    ]
    found += _damage(connection)
    # before what frees values by their family
    for session_id, (named, kept) in families.wrong(connection).items():
        text = f"its family is {named!r}, and its values are kept under {', '.join(map(repr, sorted(kept)))}"
        kind = "family" if len(kept) == 1 else "damage"  # which one of several is its own, nobody can tell
        found.append(Problem(kind=kind, session_id=session_id, text=text))
    found += _missing_archives(connection, rules)
    found += _dead_runs(connection)
    found += _counters(connection)
    for table, statement in _WITHOUT_SESSION.items():
        for (session_id,) in connection.execute(statement):
            found.append(Problem(kind="orphan", session_id=session_id, text=f"rows of {table} without their session"))
    for session_id, count in connection.execute(_ORPHANED_WRITES, (to_text(now - ORPHANED),)):
        if session_id not in live:
            text = f"{count} writes whose checkpoint never came"
            found.append(Problem(kind="orphaned_writes", session_id=session_id, text=text))
    for family_id in families.orphaned(connection):
        found.append(Problem(kind="orphan", session_id=family_id, text="stored values that no session refers to"))
    return found


_MISSING = """
    SELECT own.session_id, own.checkpoint_id FROM checkpoints AS own, json_each(own.channels) AS ref
    WHERE CASE ref.type
        WHEN 'integer' THEN NOT EXISTS (SELECT 1 FROM blobs WHERE id = ref.value)
        WHEN 'array' THEN NOT EXISTS (SELECT 1 FROM lists WHERE id = json_extract(ref.value, '$[0]'))
    END
"""

_VANISHED = """
    WITH noted (session_id, checkpoint_ns, checkpoint_id, writes) AS (
        SELECT session_id, checkpoint_ns, COALESCE(previous_id, parent_id), previous_writes FROM checkpoints
        WHERE COALESCE(previous_id, parent_id, '') != ''
        UNION ALL SELECT session_id, checkpoint_ns, checkpoint_id, write_count FROM heads
    )
    SELECT session_id, checkpoint_id FROM noted
    WHERE NOT EXISTS (SELECT 1 FROM checkpoints AS own WHERE own.session_id = noted.session_id
        AND own.checkpoint_ns = noted.checkpoint_ns AND own.checkpoint_id = noted.checkpoint_id
        AND own.place >= noted.checkpoint_id)
    OR writes != (SELECT COUNT(*) FROM writes AS own WHERE own.session_id = noted.session_id
        AND own.checkpoint_ns = noted.checkpoint_ns AND own.checkpoint_id = noted.checkpoint_id)
"""


def _damage(connection: sqlite3.Connection) -> list[Problem]:
    """What SQLite's own check says of the file, and checkpoints with pieces missing, and sessions that
    cannot be read. `verify` looks at every byte."""
    says = [text for (text,) in connection.execute("PRAGMA quick_check(20)") if text != "ok"]
    found = [Problem(kind="damage", text=text) for text in says]
    for session_id, checkpoint_id in connection.execute(_MISSING):
        text = f"checkpoint {checkpoint_id!r} lacks a part of its state; resume from an earlier one"
        found.append(Problem(kind="damage", session_id=session_id, text=text))
    for session_id, checkpoint_id in connection.execute(_VANISHED):
        text = f"checkpoint {checkpoint_id!r}, or a write of it, cannot be found; resume from another one"
        found.append(Problem(kind="damage", session_id=session_id, text=text))
    return found + _unreadable(connection)


def _unreadable(connection: sqlite3.Connection) -> list[Problem]:
    cursor, found = connection.execute("SELECT * FROM sessions"), []
    for row in cursor:
        try:
            value_of(SessionInfo, cursor, row)
        except Malformed as error:
            text = f"its row cannot be read ({error}); mend the row, or delete the session"
            found.append(Problem(kind="damage", session_id=error.session_id, text=text))
    return found


def _missing_archives(connection: sqlite3.Connection, rules: Rules) -> list[Problem]:
    rows = connection.execute("SELECT id, archive FROM tombstones WHERE archive IS NOT NULL ORDER BY id").fetchall()
    return [
        Problem(
            kind="archive",
            session_id=session_id,
            text=f"{path} is missing; put back the file from a backup, or delete the id",
        )
        for session_id, path in rows
        if not rules.archive_at(path).is_file()
    ]


def _dead_runs(connection: sqlite3.Connection) -> list[Problem]:
    rows = connection.execute("SELECT session_id, id, process FROM runs WHERE outcome = 'running'")
    return [
        Problem(kind="dead_run", session_id=session_id, text=f"run {run_id} was cut off: its process is gone")
        for session_id, run_id, process in rows
        if is_gone(process)
    ]


def _counters(connection: sqlite3.Connection) -> list[Problem]:
    found = []
    for counter in COUNTERS:
        rows = connection.execute(
            f"SELECT id, {counter.name}, ({counter.counted}) AS counted FROM sessions"
            f" WHERE {counter.name} IS NOT counted AND COALESCE(ABS({counter.name} - counted) > 1e-6, 1)"
        )
        for session_id, kept, counted in rows:
            text = f"{counter.name} is {kept} and there are {counted}"
            found.append(Problem(kind="counter", session_id=session_id, text=text))
    for session_id, kept, highest in connection.execute(
        f"SELECT id, last_seq, (SELECT MAX(seq) FROM ({_LAST_SEQ.replace('MAX(seq)', 'MAX(seq) AS seq')})) AS highest"
        " FROM sessions WHERE last_seq < highest"
    ):
        found.append(Problem(kind="counter", session_id=session_id, text=f"last_seq is {kept}, and {highest} is used"))
    return found


def mend(connection: sqlite3.Connection, problem: Problem, rules: Rules) -> Problem:
    """Mend what was found, as it is now; the problem, which says that it was. What cannot be mended is given back."""
    if problem.kind not in _MENDABLE:
        return problem
    _mend(connection, problem, rules)
    if problem.session_id is not None and not problem.session_id.startswith("\0"):
        events.append(connection, problem.session_id, "repaired", problem.kind, {"was": problem.text}, rules.clock())
    return problem.model_copy(update={"repaired": True})


_MENDABLE = frozenset({"counter", "dead_run", "dead_lease", "orphan", "orphaned_writes", "family"})


def _mend(connection: sqlite3.Connection, problem: Problem, rules: Rules) -> None:
    session_id = problem.session_id
    if problem.kind == "dead_lease":
        leases.bury(connection, leases.dead(connection, rules))
    elif problem.kind == "counter":
        for counter in COUNTERS:
            connection.execute(f"UPDATE sessions SET {counter.name} = ({counter.counted}) WHERE id = ?", (session_id,))
        connection.execute(
            "UPDATE sessions SET last_seq = MAX(last_seq, COALESCE((SELECT MAX(seq) FROM"
            f" ({_LAST_SEQ.replace('MAX(seq)', 'MAX(seq) AS seq')})), 0)) WHERE id = ?",
            (session_id,),
        )
    elif problem.kind == "dead_run":
        connection.execute(
            "UPDATE runs SET outcome = 'interrupted' WHERE session_id = ? AND outcome = 'running' AND id = ?",
            (session_id, problem.text.split()[1]),
        )
        connection.execute(
            "UPDATE tool_calls SET status = 'interrupted' WHERE session_id = ? AND run_id = ? AND status = 'running'",
            (session_id, problem.text.split()[1]),
        )
    elif problem.kind == "orphan" and problem.text.startswith("rows of "):
        table = problem.text.split()[2]
        assert table in _WITHOUT_SESSION
        connection.execute(
            f"DELETE FROM {table} WHERE session_id = ?1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE id = ?1)",
            (session_id,),
        )
    elif problem.kind == "orphan":
        assert session_id is not None
        if session_id in families.orphaned(connection):  # still: somebody may refer to it by now
            pieces.free_unused(connection, session_id, ())
    elif problem.kind == "family":
        _, kept = families.wrong(connection).get(str(session_id), ("", set()))
        if len(kept) == 1:
            connection.execute("UPDATE sessions SET family_id = ? WHERE id = ?", (*kept, session_id))
    elif problem.kind == "orphaned_writes":
        assert session_id is not None
        ends.free_orphans(connection, session_id, rules)
