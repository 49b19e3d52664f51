"""Branches: which line of a conversation a message belongs to, and what that line contains.

A session begins on ``"main"``. A branch contains its parent's messages up to a seq, and its own. A branch begins with
a checkpoint whose parent has another child (a run went back in time, or two runs were active at once), and with a
history that differs from the recorded one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.record_entries import ASIDE, MERGED, SHARED
from session_middleware.storage.sql.checkpoints.rows import AT, at
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite, StaleState

MAIN = "main"
Line = Sequence[tuple[str, int]]  # a branch and its ancestors, each with the seq up to which it counts

# A message of the outermost graph's conversation. A streamed one has the namespace of its node.
OUTERMOST = f"""
    (checkpoint_ns = '' AND COALESCE(flags, '') NOT LIKE '%"{ASIDE}"%' OR flags LIKE '%"{SHARED}"%'
    OR status = 'incomplete' AND instr(checkpoint_ns, '|') = 0)
"""
IS_MERGED = f"""(COALESCE(flags, '') LIKE '%"{MERGED}"%')"""

EVERYTHING = 2**62


def branch_of(write: SessionWrite, run: RunWrite) -> str:
    """Return the branch of a run's messages: that of its checkpoint, or else the session's."""
    branch = run.state.branch
    if branch is None:
        if (checkpoint_id := run.checkpoint_id) is not None:
            point = write.state.points.get(("", checkpoint_id))
            branch = point.branch if point else _find_branch(write, run.session_id, checkpoint_id)
        branch = branch or write.counters.branch
        run.state = run.state._replace(branch=branch)
    return branch


def _find_branch(write: SessionWrite, session_id: str, checkpoint_id: str) -> str | None:
    """Return the branch of a stored checkpoint."""
    sql = f"SELECT COALESCE(branch, '{MAIN}') FROM checkpoints WHERE {AT}"
    row = write.query(sql, at(session_id, "", checkpoint_id)).fetchone()
    return None if row is None else row[0]


def line(connection: Connection, session_id: str, branch: str) -> Line:
    """Return the branch and its ancestors, nearest first."""
    parents = {}
    if branch != MAIN:
        rows = connection.execute("SELECT id, parent_id, parent_seq FROM branches WHERE session_id = ?", (session_id,))
        parents = {child: (parent, seq) for child, parent, seq in rows}
    found, upto = [(branch, EVERYTHING)], EVERYTHING
    while branch in parents and len(found) <= len(parents):
        branch, seq = parents[branch]
        upto = min(upto, seq)
        found.append((branch, upto))
    return found


def holder(of: Line, seq: int) -> str:
    """The branch of a line that contains this place of the record."""
    return next(branch for branch, upto in reversed(of) if seq <= upto)


class BranchPoint(NamedTuple):
    """The point in the record of a checkpoint: its branch, and the seq of the last message that it contains."""

    branch: str | None = None
    seq: int | None = None


def place_put(write: SessionWrite, run: RunWrite, put: CheckpointPut, now: datetime) -> BranchPoint:
    """Return the point in the record of a checkpoint that is put; begin a branch if its parent has another child.

    A second checkpoint without a parent begins a branch too, because two runs have begun the thread at once.
    Checkpoints of subgraphs have no point.
    """
    if put.checkpoint_ns:
        return BranchPoint()
    state, session_id = write.state, run.session_id
    head, point = state.heads.get(""), state.points.get(("", put.parent_id or ""))
    is_latest = head is not None and head.latest_id == put.parent_id and head.newest_position < put.checkpoint_id
    if put.source == "input" and (point is None or WAITING in point.channels):
        before = _before_discarded(write, session_id, put.parent_id)
        if before is not None:
            return _move_to(write, run, put, _part(write, run, *before, now), before[1])
    if is_latest and point is not None:  # the parent has no child, and the checkpoint is new
        return _move_to(write, run, put, point.branch, point.seq or 0)
    if head is None and "" in state.heads:  # there is no checkpoint
        row = _NO_PARENT
    else:
        row = write.query(_PARENT, (put.checkpoint_id, *[put.parent_id or ""] * 2, session_id)).fetchone()
    if row is None:  # another process has deleted the session
        raise StaleState
    is_known, branch, seq, has_child, newest = row
    seq = seq if isinstance(seq, int) else 0  # a damaged row must not fail the put
    stored = (
        None if newest is None or put.checkpoint_id > newest else _find_branch(write, session_id, put.checkpoint_id)
    )
    others = (session_id, put.checkpoint_id)
    if put.parent_id is None and newest is not None and write.query(_OTHER_ROOT, others).fetchone():
        branch = stored or _part(write, run, MAIN, 0, now)
    elif not is_known:
        branch = branch_of(write, run)
    elif has_child:
        branch = stored or _part(write, run, branch or MAIN, seq, now)
    is_older = newest is not None and put.checkpoint_id < newest and stored is not None
    return _move_to(write, run, put, branch, seq, moves_session=not is_older)


def _move_to(
    write: SessionWrite, run: RunWrite, put: CheckpointPut, branch: str | None, seq: int, *, moves_session: bool = True
) -> BranchPoint:
    branch = branch or MAIN
    run.state = run.state._replace(branch=branch, checkpoint_id=put.checkpoint_id)
    if moves_session:  # the session is on the branch of the checkpoint that was put last
        write.counters.move_to(branch)
    return BranchPoint(branch, seq)


WAITING = '"__start__"'  # among the channels of a checkpoint: it waits for the graph's input to be executed


def _before_discarded(write: SessionWrite, session_id: str, parent_id: str | None) -> tuple[str, int] | None:
    """The branch and the seq before a copied input that was not executed, and is discarded by other input.

    Without a branch of its own, the other input would continue a conversation that its state does not contain.
    """
    if parent_id is None:
        return None
    sql = f"SELECT source, channels, parent_id FROM checkpoints WHERE {AT}"
    row = write.query(sql, at(session_id, "", parent_id)).fetchone()
    if row is None or row[0] != "fork" or WAITING not in row[1]:
        return None
    sql = f"SELECT COALESCE(branch, '{MAIN}'), COALESCE(seq, 0) FROM checkpoints WHERE {AT}"
    return write.query(sql, at(session_id, "", row[2] or "")).fetchone() or (MAIN, 0)


_NO_PARENT = (False, None, None, False, None)
# The position of a child is greater than its parent's, so for the latest checkpoint no rows are read.
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


def _part(write: SessionWrite, run: RunWrite, parent: str, seq: int, now: datetime) -> str:
    """Begin a branch for a run, and move the run's messages after `seq` to it."""
    branch = begin(write, run, parent, _with_merged(write, run.session_id, parent, seq), now)
    if run.run_id is not None:
        write.state.message_rows.clear()
        write.execute(
            "UPDATE messages SET branch = ? WHERE session_id = ? AND seq > ? AND branch IN (?, ?) AND run_id = ?",
            (branch, run.session_id, seq, parent, run.state.branch or parent, run.run_id),
        )
    return branch


def _with_merged(write: SessionWrite, session_id: str, branch: str, seq: int) -> int:
    """The seq of the last message of merged sessions that follows this one directly, or else this seq.

    Such messages are in no checkpoint, so the one that a branch begins with does not count them.
    """
    row = write.query(_MERGED_NEXT, {"session": session_id, "branch": branch, "seq": seq}).fetchone()
    return seq if row is None or row[0] is None else int(row[0])


_MERGED_NEXT = f"""
    SELECT MAX(seq) FROM messages WHERE session_id = :session AND branch = :branch AND seq > :seq
    AND {IS_MERGED} AND seq < COALESCE((
        SELECT MIN(seq) FROM messages
        WHERE session_id = :session AND branch = :branch AND seq > :seq AND NOT {IS_MERGED}
    ), {EVERYTHING})
"""


def begin(write: SessionWrite, run: RunWrite, parent: str, seq: int, now: datetime) -> str:
    """Begin a branch that contains its parent's messages up to `seq`."""
    rows = write.query("SELECT id FROM branches WHERE session_id = ?", (run.session_id,)).fetchall()
    branch = next(new_names({found for (found,) in rows}))
    write.execute(
        "INSERT INTO branches (session_id, id, parent_id, parent_seq, run_id, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (run.session_id, branch, parent, seq, run.run_id, to_text(now)),
    )
    return branch


def new_names(taken: Collection[str]) -> Iterator[str]:
    """Names for new branches. A fork has some of its parent's branches, so their number is not the highest one."""
    names = (f"branch-{number}" for number in itertools.count(len(taken) + 2))
    return (name for name in names if name not in taken)


def follow_parent(
    write: SessionWrite, session_id: str, branch: str, seq: int, message_id: str, later: Sequence[int]
) -> bool:
    """Let a branch share its parent's next message too, if it is this one; returns whether it is.

    So a message that is repeated in a replay stays one row. The branch has no own messages, except `later` ones.
    """
    found = write.query(
        "SELECT parent_id, parent_seq FROM branches WHERE session_id = ? AND id = ? AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE session_id = branches.session_id AND seq > parent_seq AND branch = id"
        " AND seq NOT IN (SELECT CAST(value AS INTEGER) FROM json_each(?)))",
        (session_id, branch, json.dumps(later)),
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
