"""Branches in SQLite: which line of a conversation something belongs to, and what that line holds.

A session begins on ``"main"``. A branch has what its parent had up to a seq, and then its own. It is
begun by a checkpoint that is put beside another child of its parent, which is how LangGraph goes back
in time and how two runs at once part; and by a history that leaves what is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.checkpoints.latest_checkpoint import Head
from session_middleware.storage.sql.checkpoints.rows import AT, at
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.session_state import SessionWrite

MAIN = "main"
Line = Sequence[tuple[str, int]]  # a branch and its ancestors, each with the seq up to which it counts

_EVERYTHING = 2**62


def branch_of(write: SessionWrite, context: RunContext) -> str:
    """The branch that a run's messages are on: that of its checkpoint, or else the session's."""
    if context.record.branch is None:
        branch = None
        if context.checkpoint_id is not None:
            point = write.state.points.get(("", context.checkpoint_id))
            branch = point.branch if point else _branch_at(write, context.session_id, context.checkpoint_id)
        context.record.branch = branch or write.counters.branch
    return context.record.branch


def _branch_at(write: SessionWrite, session_id: str, checkpoint_id: str) -> str | None:
    row = write.query(f"SELECT branch FROM checkpoints WHERE {AT}", at(session_id, "", checkpoint_id)).fetchone()
    return None if row is None else row[0]


def line(connection: Connection, session_id: str, branch: str) -> Line:
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


def place_put(write: SessionWrite, put: CheckpointPut, now: datetime) -> BranchPoint:
    """Where in the record a checkpoint is that is being put, beginning a new branch where its parent has another child.

    A second checkpoint without a parent begins a branch too: two runs at once have both begun the thread. A
    subgraph's checkpoint is where its graph is.
    """
    if put.checkpoint_ns:
        return BranchPoint()
    context, counters, state = put.context, write.counters, write.state
    head, point = state.heads.get(""), state.points.get(("", put.parent_id or ""))
    if head is not None and point is not None and head.latest_id == put.parent_id and not _is_put_again(head, put):
        branch, seq = point.branch, point.seq or 0  # the latest checkpoint has no child
        context.record.branch, context.checkpoint_id = branch or MAIN, put.checkpoint_id
        counters.move_to(context.record.branch)
        return BranchPoint(context.record.branch, seq)
    row = write.query(_PARENT, (put.checkpoint_id, *[put.parent_id or ""] * 2, context.session_id)).fetchone()
    is_known, branch, seq, has_child, newest = row
    seq = seq if isinstance(seq, int) else 0  # else it is damage, and the record must not break a put
    others = (context.session_id, put.checkpoint_id)
    if put.parent_id is None and newest is not None and write.query(_OTHER_ROOT, others).fetchone():
        branch = _put_before(write, put) or _part(write, context, MAIN, 0, now)
    elif not is_known:
        branch = branch_of(write, context)
    elif has_child:
        branch = _put_before(write, put) or _part(write, context, branch or MAIN, seq, now)
    context.record.branch, context.checkpoint_id = branch or MAIN, put.checkpoint_id
    if newest is None or put.checkpoint_id >= newest or _put_before(write, put) is None:
        counters.move_to(context.record.branch)  # the thread is where the checkpoint is that was put last
    return BranchPoint(context.record.branch, seq)


def _is_put_again(head: Head, put: CheckpointPut) -> bool:
    """Whether the checkpoint may be there already."""
    return head.newest_position >= put.checkpoint_id


# A child stands after its parent, so for a thread's latest checkpoint nothing is looked through.
_PARENT = """
    SELECT parent.checkpoint_id IS NOT NULL, parent.branch, parent.seq, EXISTS (
        SELECT 1 FROM checkpoints AS child
        WHERE child.home = sessions.home AND child.session_id = sessions.id AND child.checkpoint_ns = ''
        AND child.position > parent.position AND child.parent_id = parent.checkpoint_id
        AND child.checkpoint_id != ?
    ), newest_position
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


def _put_before(write: SessionWrite, put: CheckpointPut) -> str | None:
    """The branch of a checkpoint that is put again."""
    row = write.query(
        f"SELECT branch FROM checkpoints WHERE {AT}", at(put.context.session_id, "", put.checkpoint_id)
    ).fetchone()
    return row and (row[0] or MAIN)


def _part(write: SessionWrite, context: RunContext, parent: str, seq: int, now: datetime) -> str:
    """A new branch for a run, with what it has said since it began: on the parent, or where it took itself to be."""
    branch = begin(write, context, parent, seq, now)
    if context.run_id is not None:
        write.state.message_rows.clear()
        write.execute(
            "UPDATE messages SET branch = ? WHERE session_id = ? AND seq > ? AND branch IN (?, ?) AND run_id = ?",
            (branch, context.session_id, seq, parent, context.record.branch or parent, context.run_id),
        )
    return branch


def begin(write: SessionWrite, context: RunContext, parent: str, seq: int, now: datetime) -> str:
    """A new branch, which has what its parent had up to `seq`."""
    row = write.query("SELECT COUNT(*) FROM branches WHERE session_id = ?", (context.session_id,)).fetchone()
    branch = f"branch-{row[0] + 2}"
    write.execute(
        "INSERT INTO branches (session_id, id, parent_id, parent_seq, run_id, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (context.session_id, branch, parent, seq, context.run_id, to_text(now)),
    )
    return branch


def follow_parent(write: SessionWrite, session_id: str, branch: str, seq: int, message_id: str) -> bool:
    """Let a branch that has said nothing of its own share its parent's next message too, if this is it.

    So what is replayed the same stays one row.
    """
    found = write.query(
        "SELECT parent_id, parent_seq FROM branches WHERE session_id = ? AND id = ? AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE session_id = branches.session_id AND seq > parent_seq AND branch = id)",
        (session_id, branch),
    ).fetchone()
    if found is None:
        return False
    following = write.query(
        "SELECT seq, message_id FROM messages WHERE session_id = ? AND seq > ? AND branch = ?"
        " AND status = 'complete' ORDER BY seq LIMIT 1",
        (session_id, found[1], found[0]),
    ).fetchone()
    if following != (seq, message_id):
        return False
    write.execute("UPDATE branches SET parent_seq = ? WHERE session_id = ? AND id = ?", (seq, session_id, branch))
    return True
