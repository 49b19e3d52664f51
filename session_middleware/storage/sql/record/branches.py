"""Branches in SQLite: which line of a conversation something belongs to, and what that line holds.

A session begins on ``"main"``. A branch has what its parent had up to a seq, and then its own. It is
begun by a checkpoint that is put beside another child of its parent, which is how LangGraph goes back
in time and how two runs at once part; and by a history that leaves what is recorded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.checkpoints.rows import AT, at
from session_middleware.storage.sql.record import counters as tallies
from session_middleware.storage.sql.record.counters import SessionCounters

MAIN = "main"
Line = Sequence[tuple[str, int]]  # a branch and its ancestors, each with the seq up to which it counts

_EVERYTHING = 2**62


def branch_of(connection: sqlite3.Connection, visit: RunContext, tally: SessionCounters) -> str:
    """The branch that a visit's words go to: where its checkpoint is, or else where the session is."""
    if visit.branch is None:
        row = None
        if visit.checkpoint_id is not None:
            row = connection.execute(
                f"SELECT branch FROM checkpoints WHERE {AT}", at(visit.session_id, "", visit.checkpoint_id)
            ).fetchone()
        visit.branch = (row and row[0]) or tally.branch
    return visit.branch


def line(connection: sqlite3.Connection, session_id: str, branch: str) -> Line:
    """The branch, then what it came from, nearest first."""
    parents = {}
    if branch != MAIN:
        rows = connection.execute("SELECT id, parent_id, parent_seq FROM branches WHERE session_id = ?", (session_id,))
        parents = {child: (parent, seq) for child, parent, seq in rows}
    found, upto = [(branch, _EVERYTHING)], _EVERYTHING
    while branch in parents and len(found) <= len(parents):
        branch, seq = parents[branch]
        upto = min(upto, seq)
        found.append((branch, upto))
    return found


class BranchPoint(NamedTuple):
    """Where in the record a checkpoint is: its branch, and the seq of the last message it knows."""

    branch: str | None = None
    seq: int | None = None


def place_put(
    connection: sqlite3.Connection, put: CheckpointPut, now: datetime
) -> tuple[SessionCounters, BranchPoint] | None:
    """Where a checkpoint goes that is being put: a new branch, where its parent has another child; its parent's seq.

    A second one without a parent begins a branch too: two runs at once have both begun the thread.
    A subgraph's goes where its graph does. ``None``: there is no such session.
    """
    visit = put.visit
    if put.checkpoint_ns:
        counted = tallies.read(connection, visit.session_id)
        return None if counted is None else (counted, BranchPoint())
    parent = (put.checkpoint_id, *[put.parent_id or ""] * 2, visit.session_id)
    row = connection.execute(_SESSION_AND_PARENT, parent).fetchone()
    if row is None:
        return None
    tally = SessionCounters(visit.session_id, *row[:2])
    is_known, branch, seq, has_child, newest = row[2:]
    seq = seq if isinstance(seq, int) else 0  # else it is damage, and the record must not break a put
    if put.parent_id is None and connection.execute(_OTHER_ROOT, (visit.session_id, put.checkpoint_id)).fetchone():
        branch = _put_before(connection, put) or _part(connection, visit, MAIN, 0, now)
    elif not is_known:
        branch = branch_of(connection, visit, tally)
    elif has_child:
        branch = _put_before(connection, put) or _part(connection, visit, branch or MAIN, seq, now)
    visit.branch, visit.checkpoint_id = branch or MAIN, put.checkpoint_id
    if newest is None or put.checkpoint_id >= newest or _put_before(connection, put) is None:
        tally.move_to(visit.branch)  # where a thread is, the checkpoint says that was put last
    return tally, BranchPoint(visit.branch, seq)


# A child stands after its parent, so for a thread's latest checkpoint nothing is looked through.
_SESSION_AND_PARENT = """
    SELECT last_seq, sessions.branch, parent.checkpoint_id IS NOT NULL, parent.branch, parent.seq, EXISTS (
        SELECT 1 FROM checkpoints AS child
        WHERE child.home = sessions.home AND child.session_id = sessions.id AND child.checkpoint_ns = ''
        AND child.position > parent.position AND child.parent_id = parent.checkpoint_id
        AND child.checkpoint_id != ?
    ), (
        SELECT newest_position FROM heads
        WHERE home = sessions.home AND session_id = sessions.id AND checkpoint_ns = ''
    )
    FROM sessions LEFT JOIN checkpoints AS parent
    ON parent.home = sessions.home AND parent.session_id = sessions.id AND parent.checkpoint_ns = ''
    AND parent.position = (
        SELECT position FROM checkpoints AS own
        WHERE own.home = sessions.home AND own.session_id = sessions.id AND own.checkpoint_ns = ''
        AND own.position >= ? AND own.checkpoint_id = ? LIMIT 1
    )
    WHERE sessions.id = ?
"""


_OTHER_ROOT = """
    SELECT 1 FROM checkpoints
    WHERE home = (SELECT home FROM sessions WHERE id = ?1) AND session_id = ?1 AND checkpoint_ns = ''
    AND parent_id IS NULL AND checkpoint_id != ?2 LIMIT 1
"""


def _put_before(connection: sqlite3.Connection, put: CheckpointPut) -> str | None:
    """The branch of a checkpoint that is put again."""
    row = connection.execute(
        f"SELECT branch FROM checkpoints WHERE {AT}", at(put.visit.session_id, "", put.checkpoint_id)
    ).fetchone()
    return row and (row[0] or MAIN)


def _part(connection: sqlite3.Connection, visit: RunContext, parent: str, seq: int, now: datetime) -> str:
    """A new branch for a run, with what it has said since it began: on the parent, or where it took itself to be."""
    branch = begin(connection, visit, parent, seq, now)
    if visit.run_id is not None:
        connection.execute(
            "UPDATE messages SET branch = ? WHERE session_id = ? AND seq > ? AND branch IN (?, ?) AND run_id = ?",
            (branch, visit.session_id, seq, parent, visit.branch or parent, visit.run_id),
        )
    return branch


def begin(connection: sqlite3.Connection, visit: RunContext, parent: str, seq: int, now: datetime) -> str:
    """A new branch, which has what its parent had up to `seq`."""
    row = connection.execute("SELECT COUNT(*) FROM branches WHERE session_id = ?", (visit.session_id,)).fetchone()
    branch = f"branch-{row[0] + 2}"
    connection.execute(
        "INSERT INTO branches (session_id, id, parent_id, parent_seq, run_id, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (visit.session_id, branch, parent, seq, visit.run_id, to_text(now)),
    )
    return branch


def follow_parent(connection: sqlite3.Connection, session_id: str, branch: str, seq: int, message_id: str) -> bool:
    """Let a branch that has said nothing of its own share its parent's next message too, if this is it.

    So what is replayed the same stays one row.
    """
    found = connection.execute(
        "SELECT parent_id, parent_seq FROM branches WHERE session_id = ? AND id = ? AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE session_id = branches.session_id AND seq > parent_seq AND branch = id)",
        (session_id, branch),
    ).fetchone()
    if found is None:
        return False
    following = connection.execute(
        "SELECT seq, message_id FROM messages WHERE session_id = ? AND seq > ? AND branch = ?"
        " AND status = 'complete' ORDER BY seq LIMIT 1",
        (session_id, found[1], found[0]),
    ).fetchone()
    if following != (seq, message_id):
        return False
    connection.execute("UPDATE branches SET parent_seq = ? WHERE session_id = ? AND id = ?", (seq, session_id, branch))
    return True
