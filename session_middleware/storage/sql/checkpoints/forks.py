"""Forks: a session that begins with the state of another one, or with a part of it, and shares its stored values."""

from __future__ import annotations

import json
from datetime import datetime

from session_middleware.errors import SessionExists
from session_middleware.models import SessionInfo, to_text
from session_middleware.storage.sql.checkpoints import checkpoints, latest_checkpoint, points
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import questions, runs
from session_middleware.storage.sql.sessions import endings, events, session_rows, tombstones
from session_middleware.storage.types import SessionDetails


def copy(
    connection: Connection,
    source_id: str,
    target_id: str,
    rules: EngineContext,
    at: str | None = None,
    details: SessionDetails | None = None,
) -> SessionInfo:
    source, now = session_rows.get(connection, source_id), rules.clock()
    cut = None if at is None else points.cut_at(connection, source_id, at)
    target = session_rows.find(connection, target_id)
    if target is None:
        _insert(connection, source, target_id, rules, now)
    elif _may_be_filled(connection, target, source):
        connection.execute(
            "UPDATE sessions SET home = ?, family_id = ?, parent_id = ?, opened_as = 'forked' WHERE id = ?",
            (source.home, source.family_id, source_id, target_id),
        )
    else:
        raise SessionExists(target_id)
    if cut is None:
        checkpoints.copy(connection, source.home, source_id, target_id)
        latest_checkpoint.copy(connection, source_id, target_id)
    elif cut.point is not None:
        _copy_line(connection, (source.home, source_id, target_id), cut.point, is_last=cut.is_last)
    connection.execute(_SHARED, (source_id,))
    runs.copy(connection, source_id, target_id, None if cut is None else cut.line)
    questions.copy(connection, source_id, target_id, asked_again=cut is not None and not cut.is_last)
    events.append(connection, target_id, "forked", None, {"from": source_id} | ({"at": at} if at else {}), now)
    return session_rows.update(connection, rules, target_id, details or SessionDetails())


# The lists are shared from now on, so the lengths that a process has cached are no longer valid.
_SHARED = "UPDATE sessions SET version = version + 1 WHERE id = ?"


def _copy_line(connection: Connection, key: tuple[int, str, str], upto: points.Point, *, is_last: bool) -> None:
    """Copy a checkpoint and its ancestors, with the checkpoints of subgraphs that ran in between.

    If checkpoints follow it (not `is_last`), its tasks are executed again: of its writes, only its questions remain.
    """
    home, source_id, target_id = key
    own = "FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns"
    kept = points.ancestors(connection, home, source_id, upto)
    finished = kept.keys() - (set() if is_last else {upto.checkpoint_id})
    places, ids = {"": [*kept.values()]}, {"": [*finished]}
    subgraphs = f"SELECT checkpoint_ns, position, checkpoint_id, enclosing {own} != ''"
    for namespace, position, checkpoint_id, enclosing in connection.execute(subgraphs, (home, source_id)).fetchall():
        if json.loads(enclosing).get("") in finished:
            places.setdefault(namespace, []).append(position)
            ids.setdefault(namespace, []).append(checkpoint_id)
    checkpoints.copy_some(connection, key, places)
    checkpoints.copy_writes(connection, key, ids)
    if not is_last:
        checkpoints.copy_writes(connection, key, {"": [upto.checkpoint_id]}, only_questions=True)
    latest_checkpoint.set_(connection, home, target_id, (upto.checkpoint_id, upto.position, len(kept)))


def _insert(connection: Connection, source: SessionInfo, target_id: str, rules: EngineContext, now: datetime) -> None:
    tombstone = tombstones.find(connection, target_id)
    if tombstone is not None:
        is_theirs, is_archived = tombstone.user_id in (None, source.user_id), tombstone.archive is not None
        if not is_theirs or is_archived or tombstone.merged_into is not None:
            # the id belongs to the owner of the deleted session, who alone is told that it is archived
            raise SessionExists(target_id, archived=is_archived and tombstone.user_id == source.user_id)
    endings.make_room(connection, source.user_id, rules, now)
    connection.execute(
        "INSERT INTO sessions (id, home, family_id, parent_id, user_id, group_id, visibility, opened_as, reason,"
        " created_at, active_since, incarnation, last_active_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'forked', 'forked', ?, ?, ?, ?)",
        (target_id, source.home, source.family_id, source.id, source.user_id, source.group_id, source.visibility)
        + (to_text(now), to_text(now), tombstones.next_incarnation(connection, target_id), to_text(now)),
    )
    session_rows.inherit_details(connection, source.id, target_id, is_fork=True)
    session_rows.touch(connection, target_id, rules, now)


def _may_be_filled(connection: Connection, target: SessionInfo, source: SessionInfo) -> bool:
    """Whether a session has been opened but has no content, and no other session belongs to its family."""
    return (
        target.id != source.id
        and not target.message_count
        and (target.user_id, target.group_id) == (source.user_id, source.group_id)
        and list(session_rows.members(connection, target.home)) == [target.id]
        and not checkpoints.count(connection, target.id)
        and not checkpoints.count(connection, target.id, "writes")
    )
