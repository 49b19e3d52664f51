"""Points of a conversation: where a message entered the state, and what a session contained before it.

The checkpoints of one branch of the outermost graph are a chain, in the order of their positions: a second child
begins a branch. So the first checkpoint with a message is the first one of its line whose `seq` is not before the
message's.
"""

from __future__ import annotations

from typing import NamedTuple

from session_middleware.errors import InvalidArgument
from session_middleware.storage.sql.checkpoints.rows import AT, HOME, at
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.record.branches import EVERYTHING, IS_MERGED, MAIN, WAITING, Line, line
from session_middleware.storage.types import MessagePoint

_POINT = f"""
    checkpoint_id, parent_id, COALESCE(branch, '{MAIN}'), COALESCE(seq, 0), position,
    channels LIKE '%{WAITING}%'
"""


class Point(NamedTuple):
    """A checkpoint of the outermost graph, and its place in the record."""

    checkpoint_id: str
    parent_id: str | None
    branch: str
    seq: int
    position: str
    waits: bool  # for the graph's input to be executed


class Cut(NamedTuple):
    """A session up to a point: the line of its record, and the checkpoint that its state ends with."""

    line: Line
    point: Point | None  # None: it has no state
    is_last: bool = False  # no checkpoint follows the point


def find_point(connection: Connection, session_id: str, checkpoint_id: str) -> Point | None:
    row = connection.execute(f"SELECT {_POINT} FROM checkpoints WHERE {AT}", at(session_id, "", checkpoint_id))
    found = row.fetchone()
    return None if found is None else Point(*found)


def tip(connection: Connection, session_id: str, of: Line) -> Point | None:
    """The last checkpoint of a line, of the nearest branch that has one."""
    for branch, upto in of:
        if (found := _of_branch(connection, session_id, branch, 0, upto, "DESC")) is not None:
            return found
    return None


def _of_branch(connection: Connection, session_id: str, branch: str, since: int, upto: int, order: str) -> Point | None:
    found = connection.execute(
        f"SELECT {_POINT} FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ''"
        f" AND COALESCE(branch, '{MAIN}') = ? AND COALESCE(seq, 0) BETWEEN ? AND ? ORDER BY position {order} LIMIT 1",
        (session_id, session_id, branch, since, upto),
    ).fetchone()
    return None if found is None else Point(*found)


Ancestors = dict[str, str]  # the position of a checkpoint, and of its ancestors, by id


def ancestors(connection: Connection, home: int, session_id: str, upto: Point) -> Ancestors:
    sql = "FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns = '' AND position <= ?"
    rows = connection.execute(f"SELECT checkpoint_id, parent_id, position {sql}", (home, session_id, upto.position))
    parents = {checkpoint_id: (parent_id, position) for checkpoint_id, parent_id, position in rows.fetchall()}
    found: Ancestors = {}
    nearest: str | None = upto.checkpoint_id
    while nearest is not None and nearest in parents:
        parent_id, found[nearest] = parents.pop(nearest)
        nearest = parent_id
    return found


def find_message_point(
    connection: Connection, session_id: str, message_id: str, branch: str | None = None
) -> MessagePoint | None:
    """The first checkpoint that contains a message of the outermost graph, on its line; ``None``: no such message."""
    found = _find_message(connection, session_id, message_id, branch)
    if found is None:
        return None
    seq, of = found[0], found[2]
    first = _first(connection, session_id, of, seq)
    if first is None:
        return MessagePoint()
    before = None if first.parent_id is None else find_point(connection, session_id, first.parent_id)
    is_complete = first.parent_id is None or before is not None
    return MessagePoint(first.checkpoint_id, None if before is None else before.checkpoint_id, is_complete)


def _find_message(
    connection: Connection, session_id: str, message_id: str, on: str | None = None
) -> tuple[int, str | None, Line] | None:
    """The seq and the run of a message, and its line: that of the branch `on` or the current one, or else its own."""
    rows = connection.execute(
        "SELECT seq, branch, run_id FROM messages WHERE session_id = ? AND message_id = ? ORDER BY version DESC",
        (session_id, message_id),
    ).fetchall()
    if not rows:
        return None
    (current,) = connection.execute("SELECT branch FROM sessions WHERE id = ?", (session_id,)).fetchone()
    own = line(connection, session_id, on or current)
    for seq, branch, run_id in rows:
        if any(branch == of and seq <= upto for of, upto in own):
            return seq, run_id, own
    seq, branch, run_id = rows[0]
    return seq, run_id, line(connection, session_id, branch)


def _first(connection: Connection, session_id: str, of: Line, seq: int) -> Point | None:
    found = [_of_branch(connection, session_id, branch, seq, upto, "ASC") for branch, upto in of if upto >= seq]
    return min((each for each in found if each is not None), key=lambda point: point.position, default=None)


# Cutting


def cut_at(connection: Connection, session_id: str, at: str) -> Cut:
    """The session before a message or a run, or with a checkpoint. Raises `InvalidArgument`."""
    if (message := _find_message(connection, session_id, at)) is not None:
        return _before_message(connection, session_id, at, *message)
    sql = "SELECT seq, started_from FROM runs WHERE session_id = ? AND id = ?"
    if (run := connection.execute(sql, (session_id, at)).fetchone()) is not None:
        return _before_run(connection, session_id, at, *run)
    point = find_point(connection, session_id, at)
    if point is None:
        raise InvalidArgument("at", at, wanted="a message, run or checkpoint of this session, or its id")
    sql = f"SELECT 1 FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = '' AND parent_id = ? LIMIT 1"
    is_last = connection.execute(sql, (session_id, session_id, at)).fetchone() is None
    return Cut(_upto(connection, session_id, point.branch, EVERYTHING if is_last else point.seq), point, is_last)


def _before_message(connection: Connection, session_id: str, at: str, seq: int, run_id: str | None, of: Line) -> Cut:
    first = _first(connection, session_id, of, seq)
    if first is None:  # it is in no state
        of = [(branch, min(upto, seq - 1)) for branch, upto in of]
        return Cut(of, tip(connection, session_id, of))
    point = _parent(connection, session_id, at, first)
    while point is not None and point.waits:  # for the message, or for input that was discarded
        point = _parent(connection, session_id, at, point)
    since = 0 if point is None else point.seq
    sql = (
        "SELECT MIN(seq) FROM messages WHERE session_id = ? AND seq > ? AND seq <= ? AND run_id IS ?"
        f" AND NOT {IS_MERGED}"
    )
    (brought,) = connection.execute(sql, (session_id, since, seq, run_id)).fetchone()
    branches = [branch for branch, _ in of]
    if point is not None and point.branch in branches:
        of = of[branches.index(point.branch) :]
    of = [(branch, min(upto, (brought or seq) - 1)) for branch, upto in of]
    while point is None and of[1:] and not _has_messages(connection, session_id, *of[0]):
        of = of[1:]
    return Cut(of, point)


def _has_messages(connection: Connection, session_id: str, branch: str, upto: int) -> bool:
    sql = "SELECT 1 FROM messages WHERE session_id = ? AND branch = ? AND seq <= ? LIMIT 1"
    return connection.execute(sql, (session_id, branch, upto)).fetchone() is not None


def _before_run(connection: Connection, session_id: str, at: str, seq: int, started_from: str | None) -> Cut:
    point = None if started_from is None else find_point(connection, session_id, started_from)
    if started_from is not None and point is None:
        raise _pruned(at)
    sql = "SELECT branch FROM messages WHERE session_id = ? AND run_id = ? ORDER BY seq LIMIT 1"
    said = connection.execute(sql, (session_id, at)).fetchone()
    branch = said[0] if said else MAIN
    if point is None:
        return Cut(_upto(connection, session_id, branch, seq - 1), None)
    return Cut(_upto(connection, session_id, point.branch, seq - 1 if branch == point.branch else point.seq), point)


def _parent(connection: Connection, session_id: str, at: str, point: Point) -> Point | None:
    if point.parent_id is None:
        return None
    found = find_point(connection, session_id, point.parent_id)
    if found is None:
        raise _pruned(at)
    return found


def _pruned(at: str) -> InvalidArgument:
    return InvalidArgument("at", at, wanted="a point whose checkpoints were not deleted, for example by prune()")


def _upto(connection: Connection, session_id: str, branch: str, seq: int) -> Line:
    return [(of, min(upto, seq)) for of, upto in line(connection, session_id, branch)]
