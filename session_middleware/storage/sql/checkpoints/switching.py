"""Switching a session to another branch: of the record, of the outermost graph, and of subgraphs with own state."""

from __future__ import annotations

import json

from session_middleware.errors import InvalidArgument
from session_middleware.models import SessionInfo
from session_middleware.storage.sql.checkpoints import latest_checkpoint, points
from session_middleware.storage.sql.checkpoints.rows import Row, resealed
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.record import questions
from session_middleware.storage.sql.record.branches import EVERYTHING, MAIN
from session_middleware.storage.sql.sessions import session_rows


def switch(connection: Connection, session_id: str, branch: str) -> SessionInfo:
    home = session_rows.get(connection, session_id).home
    rows = connection.execute("SELECT id FROM branches WHERE session_id = ? ORDER BY created_at, id", (session_id,))
    known = [MAIN, *(found for (found,) in rows.fetchall())]
    if branch not in known:
        raise InvalidArgument("branch", branch, wanted=f"one of: {', '.join(map(repr, known))}")
    changed = "UPDATE sessions SET version = version + 1, branch = ? WHERE id = ?"
    connection.execute(changed, (branch, session_id))
    tip = points.tip(connection, session_id, [(branch, EVERYTHING)])
    if tip is None and latest_checkpoint.find(connection, session_id, "") is not None:
        raise InvalidArgument("branch", branch, wanted="a branch whose checkpoints were not deleted, as by prune()")
    if tip is not None:
        latest_checkpoint.move(connection, home, session_id, tip.checkpoint_id)
        questions.move(connection, session_id, tip.checkpoint_id)
        _move_subgraphs(connection, home, session_id, points.ancestors(connection, home, session_id, tip))
    return session_rows.get(connection, session_id)


def _move_subgraphs(connection: Connection, home: int, session_id: str, outer: points.Ancestors) -> None:
    """Give the branch's latest checkpoint of each subgraph the greatest position, which a run reads the state from.

    Subgraphs whose namespace has a task's id have no state that outlives the task.
    """
    own = "FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns"
    sql = (
        f"SELECT checkpoint_ns, position, enclosing {own} != '' AND checkpoint_ns NOT LIKE '%:%' ORDER BY position DESC"
    )
    newest: dict[str, str] = {}
    moved: set[str] = set()
    for namespace, position, enclosing in connection.execute(sql, (home, session_id)).fetchall():
        newest.setdefault(namespace, position)
        if namespace not in moved and json.loads(enclosing).get("") in outer:
            moved.add(namespace)
            if position != newest[namespace]:
                key = (home, session_id, namespace, position)
                row = Row(*connection.execute(f"SELECT * {own} = ? AND position = ?", key).fetchone())
                row = resealed(row, position=latest_checkpoint.after(newest[namespace]))
                connection.execute(
                    "UPDATE checkpoints SET position = ?, checksum = ? WHERE home = ? AND session_id = ?"
                    " AND checkpoint_ns = ? AND position = ?",
                    (row.position, row.checksum, *key),
                )
