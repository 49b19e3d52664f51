"""Merging: the record, the memories and the details of a session become part of another one of the same owner.

The rows of both records get new seqs, in the order of time, and each record keeps its own order, because clocks are set
back. Successive rows of one session keep their distances, so each such segment is moved by one statement per table.
Moved rows have negative seqs until all rows are moved, so that no two rows have the same.

A row that both sessions have, such as a message that a fork was given, is one row: that of the primary. Executions of
one requested call in both are two rows, and so are two answers to one question.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from session_middleware.errors import InvalidArgument, SessionBusy
from session_middleware.models import SessionInfo, to_text
from session_middleware.storage.record_entries import MERGED as FLAG
from session_middleware.storage.sql import checks
from session_middleware.storage.sql.checkpoints import checkpoints
from session_middleware.storage.sql.checkpoints.pruning import free_unused
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import indexing, memories
from session_middleware.storage.sql.record import branches, runs
from session_middleware.storage.sql.row_mapping import to_json
from session_middleware.storage.sql.sessions import events, leases, session_rows, tombstones
from session_middleware.storage.types import MERGED, SessionDetails

_TIMES = {  # of the rows of each table that has seqs
    "messages": "created_at",
    "runs": "started_at",
    "tool_calls": "started_at",
    "model_calls": "started_at",
    "questions": "asked_at",
    "events": "created_at",
}


def merge(
    connection: Connection, primary_id: str, secondary_id: str, rules: EngineContext, *, with_items: bool
) -> SessionInfo:
    now = rules.clock()
    if primary_id == secondary_id:
        raise InvalidArgument("secondary", secondary_id, wanted="another session")
    primary, secondary = (session_rows.get_for(connection, each, None, rules) for each in (primary_id, secondary_id))
    if primary.user_id != secondary.user_id:
        raise InvalidArgument("secondary", secondary_id, wanted="a session of the same owner")
    for each in (primary_id, secondary_id):
        _check_idle(connection, each, rules)
    indexing.remove_sessions(connection, [primary_id, secondary_id])  # it refers to seqs; a search makes it again
    memories.unite(connection, secondary_id, primary_id)
    _delete_known(connection, primary_id, secondary_id)
    _join_records(connection, primary, secondary)
    _join_others(connection, primary_id, secondary_id, with_items=with_items)
    _join_details(connection, primary, secondary, rules)
    tombstones.put(connection, [secondary_id], MERGED, primary_id, now)
    checkpoints.delete(connection, [secondary_id])
    connection.execute("DELETE FROM sessions WHERE id = ?", (secondary_id,))
    free_unused(connection, {secondary.home})
    checks.recount(connection, primary_id)
    events.append(connection, primary_id, "merged", None, {"from": secondary_id}, now, is_announced=True)
    events.announce(connection, secondary_id, "merged", None, {"into": primary_id, "user_id": secondary.user_id}, now)
    session_rows.write_expiry(connection, primary_id, rules)
    return session_rows.get_for(connection, primary_id, None, rules)


def _check_idle(connection: Connection, session_id: str, rules: EngineContext) -> None:
    """Raise `SessionBusy` if a run or a tool is in progress. Those of dead processes become interrupted."""
    found = leases.of(connection, session_id)
    leases.reap(connection, [row for row in found if row.is_dead(rules)])
    for row in found:
        if not row.is_dead(rules):
            raise SessionBusy(session_id, run_id=row.run_id, process=row.process)
    runs.interrupt_dead(connection)
    outside = "SELECT process FROM tool_calls WHERE session_id = ? AND process IS NOT NULL LIMIT 1"
    if (row := connection.execute(outside, (session_id,)).fetchone()) is not None:
        raise SessionBusy(session_id, process=row[0])


# Rows that both sessions have


def _delete_known(connection: Connection, primary_id: str, secondary_id: str) -> None:
    """Delete the rows of the secondary that the primary has too.

    A version with the id of another one, such as one that was edited in a fork, gets another id: `merged_id`.
    """
    ids = {"primary": primary_id, "secondary": secondary_id}
    connection.execute(_RENAME_CALLS.format(table="tool_calls"), ids)
    connection.execute(_RENAME_CALLS.format(table="model_calls"), ids)
    connection.execute(_RENAME, ids)
    connection.execute(_COUNT_FIRST, ids)
    for statement in _KNOWN:
        connection.execute(statement, ids)


_SAME_CONTENT = """
    own.role = known.role AND own.text = known.text AND COALESCE(own.content, '') = COALESCE(known.content, '')
    AND COALESCE(own.tool_calls, '') = COALESCE(known.tool_calls, '')
"""
_SHOWN = """
    SELECT 1 FROM messages AS known WHERE known.session_id = :primary AND known.message_id = own.message_id
    AND known.replaced_by IS NULL
"""
# The versions that a branch of the secondary shows and no branch of the primary, and those that they replace.
_OTHER = f"""
    WITH RECURSIVE other (seq) AS (
        SELECT own.seq FROM messages AS own WHERE own.session_id = :secondary AND own.replaced_by IS NULL
        AND EXISTS ({_SHOWN}) AND NOT EXISTS ({_SHOWN} AND {_SAME_CONTENT})
        UNION SELECT old.seq FROM messages AS old JOIN other ON old.replaced_by = other.seq
        WHERE old.session_id = :secondary
    ) SELECT seq FROM other
"""
_NEW_ID = "message_id || '~' || CAST(:secondary AS TEXT)"
_RENAME = f"UPDATE messages SET message_id = {_NEW_ID} WHERE session_id = :secondary AND seq IN ({_OTHER})"
# The first version of each message is counted.
_COUNT_FIRST = """
    UPDATE messages SET version = 1 WHERE session_id = :secondary AND version > 1 AND NOT EXISTS (
        SELECT 1 FROM messages AS older WHERE older.session_id = :secondary
        AND older.message_id = messages.message_id AND older.version < messages.version
    )
"""
_RENAME_CALLS = f"""
    UPDATE {{table}} SET message_id = {_NEW_ID} WHERE session_id = :secondary AND message_id IN
    (SELECT message_id FROM messages WHERE session_id = :secondary AND seq IN ({_OTHER}))
"""
# A session that was only given the history of another one has the id of the tool's message instead of the execution's.
_SAME_EXECUTION = """
    SELECT 1 FROM tool_calls AS known WHERE known.session_id = :primary AND (
        known.execution_id = tool_calls.execution_id
        OR known.tool_call_id = tool_calls.tool_call_id AND known.message_id = tool_calls.message_id AND EXISTS (
            SELECT 1 FROM messages WHERE session_id = :primary AND message_id = tool_calls.execution_id
            UNION ALL SELECT 1 FROM messages WHERE session_id = :secondary AND message_id = known.execution_id
        )
    )
"""
_ATTEMPTS = """
    SELECT COALESCE(MAX(attempt), 0) FROM tool_calls AS known WHERE known.session_id = :primary
    AND known.tool_call_id = tool_calls.tool_call_id AND known.message_id = tool_calls.message_id
"""
_KNOWN = (
    "UPDATE questions SET status = 'dropped' WHERE session_id = :secondary AND status = 'open'",  # its state is deleted
    "DELETE FROM questions WHERE session_id = :secondary AND EXISTS (SELECT 1 FROM questions AS known"
    " WHERE known.session_id = :primary AND known.interrupt_id = questions.interrupt_id"
    " AND (questions.status != 'answered' OR known.answered_at = questions.answered_at"
    " AND COALESCE(known.answer, '') = COALESCE(questions.answer, '')))",  # else it has another answer
    "UPDATE questions SET checkpoint_id = NULL WHERE session_id = :secondary",  # it was deleted
    f"DELETE FROM tool_calls WHERE session_id = :secondary AND EXISTS ({_SAME_EXECUTION})",
    f"UPDATE tool_calls SET attempt = -(attempt + ({_ATTEMPTS})) WHERE session_id = :secondary",
    "UPDATE tool_calls SET attempt = -attempt WHERE session_id = :secondary",
    "DELETE FROM messages WHERE session_id = :secondary"
    " AND message_id IN (SELECT message_id FROM messages WHERE session_id = :primary)",
    "DELETE FROM model_calls WHERE session_id = :secondary"
    " AND id IN (SELECT id FROM model_calls WHERE session_id = :primary)",
    "DELETE FROM runs WHERE session_id = :secondary AND id IN (SELECT id FROM runs WHERE session_id = :primary)",
)


# Records


class Segment(NamedTuple):
    """Rows of a session between which the other one has none."""

    first: int
    last: int
    shift: int  # from their seqs to the new ones


class Place(NamedTuple):
    """One row of a record."""

    seq: int
    at: str | None
    is_message: bool


def interleaved(records: Sequence[Sequence[Place]]) -> list[list[Segment]]:
    """The segments of each record, whose rows are given in order."""
    rows = sorted(
        (time, origin, place.seq)
        for origin, record in enumerate(records)
        for time, place in zip(_times(record), record, strict=True)
    )
    found: list[list[Segment]] = [[] for _ in records]
    last, previous = 0, None
    for _, origin, seq in rows:
        own = found[origin]
        if origin != previous:
            own.append(Segment(seq, seq, last + 1 - seq))
        own[-1] = own[-1]._replace(last=seq)
        last, previous = seq + own[-1].shift, origin
    return found


def _times(record: Sequence[Place]) -> list[str]:
    """A time for each row, none before the time of an earlier row.

    Messages may be older than the run that recorded them, as imported ones are. They determine the order, so no other
    row is later than the next message.
    """
    messages = list(accumulate((str(place.at) if place.is_message else "" for place in record), max))
    found, following = [], _LAST
    for place, latest in zip(reversed(record), reversed(messages), strict=True):
        following = latest if place.is_message else following
        found.append(min(latest if place.is_message else place.at or "", following))
    return list(accumulate(reversed(found), max))


_LAST = "~"  # after each time


def moved(segments: Sequence[Segment], place: Any) -> Any:
    """The new place of a seq, or of a position between two seqs."""
    if not segments or place is None:
        return place
    _, last, shift = segments[max(bisect_right(segments, place, key=itemgetter(0)) - 1, 0)]
    return min(place, last if place == int(place) else last + 0.999) + shift


def _join_records(connection: Connection, primary: SessionInfo, secondary: SessionInfo) -> None:
    ids = primary.id, secondary.id
    records = [connection.execute(_SEQS, {"own": each}).fetchall() for each in ids]
    segments = interleaved([[Place(*row) for row in record] for record in records])
    line = _extended(connection, primary, segments[0])
    names = _join_branches(connection, primary, secondary, segments[1], line)
    changes = [_changes(connection, *each) for each in zip(ids, segments, ({}, names), strict=True)]
    for session_id, own in zip(ids, segments, strict=True):
        for segment in own:
            values = segment._asdict() | {"own": session_id, "primary": primary.id}
            for statement in _MOVE:
                connection.execute(statement, values)
    for segment in segments[0]:
        connection.execute(_MOVE_CHECKPOINTS, segment._asdict() | {"primary": primary.id, "home": primary.home})
    for statement in _FLIP:
        connection.execute(statement, {"primary": primary.id, "home": primary.home})
    for branch, upto in reversed(line):
        connection.execute(_PLACE, (branch, primary.id, upto))
    for update, rows in (each for own in changes for each in own):
        connection.executemany(update, [(*row, primary.id, seq) for seq, *row in rows])


def _extended(connection: Connection, primary: SessionInfo, segments: Sequence[Segment]) -> branches.Line:
    """Move the places where the primary's branches begin. Returns its line.

    Those of the line begin before the next message of the primary, so the messages of the secondary in between are on
    the farthest branch, which most of the others share.
    """
    line = branches.line(connection, primary.id, primary.branch)
    rows = connection.execute("SELECT id, parent_seq FROM branches WHERE session_id = ?", (primary.id,)).fetchall()
    old, new = dict(rows), {branch: moved(segments, seq) for branch, seq in rows}
    found, names = [line[0]], json.dumps([branch for branch, _ in line])
    for (child, _), (branch, upto) in pairwise(line):
        (following,) = connection.execute(_FOLLOWING, (primary.id, upto, names)).fetchone()
        extended = moved(segments, upto) if following is None else moved(segments, following) - 1
        found.append((branch, extended))
        if old[child] == upto:
            new[child] = extended
    connection.executemany(
        "UPDATE branches SET parent_seq = ? WHERE session_id = ? AND id = ?",
        [(seq, primary.id, branch) for branch, seq in new.items()],
    )
    return found


_FOLLOWING = """
    SELECT MIN(seq) FROM messages WHERE session_id = ? AND seq > ? AND branch IN (SELECT value FROM json_each(?))
"""
_SEQS = " UNION ALL ".join(
    f"SELECT seq, {at}, {int(table == 'messages')} FROM {table} WHERE session_id = :own" for table, at in _TIMES.items()
)
_SEQS += " ORDER BY 1"
_OF_SEGMENT = "WHERE session_id = :own AND seq BETWEEN :first AND :last"
_MOVE = (
    "UPDATE messages SET session_id = :primary, seq = -(seq + :shift),"
    f" position = CASE WHEN position = seq THEN seq + :shift ELSE position END {_OF_SEGMENT}",
    *(
        f"UPDATE {table} SET session_id = :primary, seq = -(seq + :shift) {_OF_SEGMENT}"
        for table in _TIMES
        if table != "messages"
    ),
)
_MOVE_CHECKPOINTS = """
    UPDATE checkpoints SET seq = -(seq + :shift)
    WHERE home = :home AND session_id = :primary AND seq BETWEEN :first AND :last
"""
_FLAG = f"""
    UPDATE messages SET flags = COALESCE(substr(flags, 1, length(flags) - 1) || ', ', '[') || '"{FLAG}"]'
    WHERE session_id = ? AND NOT {branches.IS_MERGED}
"""
_PLACE = "UPDATE messages SET branch = ? WHERE session_id = ? AND branch = '~' AND seq <= ?"
_FLIP = (
    *(f"UPDATE {table} SET seq = -seq WHERE session_id = :primary AND seq < 0" for table in _TIMES),
    "UPDATE checkpoints SET seq = -seq WHERE home = :home AND session_id = :primary AND seq < 0",
)


def _changes(
    connection: Connection, session_id: str, segments: Sequence[Segment], names: Mapping[str, str]
) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """The other columns that refer to seqs: a statement, and for the rows their new seqs and the new values."""
    messages = connection.execute(
        "SELECT seq, position, replaced_by FROM messages"
        " WHERE session_id = ? AND (position != seq OR replaced_by IS NOT NULL)",
        (session_id,),
    ).fetchall()
    deletions = connection.execute(
        "SELECT seq, detail FROM events WHERE session_id = ? AND kind = 'message_deleted'", (session_id,)
    ).fetchall()
    details = []
    for seq, text in deletions:
        detail = json.loads(text)
        detail["position"] = moved(segments, detail["position"])
        detail["seqs"] = [moved(segments, each) for each in detail.get("seqs", ())]
        detail["branch"] = names.get(detail["branch"], detail["branch"])
        details.append((moved(segments, seq), to_json(detail)))
    return [
        (
            "UPDATE messages SET position = ?, replaced_by = ? WHERE session_id = ? AND seq = ?",
            [tuple(moved(segments, each) for each in row) for row in messages],
        ),
        ("UPDATE events SET detail = ? WHERE session_id = ? AND seq = ?", details),
    ]


# Branches


def _join_branches(
    connection: Connection,
    primary: SessionInfo,
    secondary: SessionInfo,
    segments: Sequence[Segment],
    place: branches.Line,
) -> dict[str, str]:
    """Let the current branch of the secondary be a part of the primary's line `place`, and its others begin there.

    Returns the new names of the secondary's branches, as far as their messages have left the conversation.
    """
    rows = "SELECT id, parent_id, parent_seq, run_id, created_at FROM branches WHERE session_id = ?"
    known = {row[0] for row in connection.execute(rows, (primary.id,)).fetchall()}
    own = {row[0]: row[1:] for row in connection.execute(rows, (secondary.id,)).fetchall()}
    line = dict(branches.line(connection, secondary.id, secondary.branch))
    connection.execute("DELETE FROM branches WHERE session_id = ?", (secondary.id,))
    used = set()  # branches with messages that are not of the conversation, and those that these continue
    for branch, last in connection.execute(_LAST_OF_BRANCHES, (secondary.id,)).fetchall():
        at = last
        while branch not in used and not (branch in line and at <= line[branch]):
            used.add(branch)
            if branch not in own:
                break
            branch, at = own[branch][:2]
    free = branches.new_names(known)
    names = {branch: next(free) for branch in [branches.MAIN, *own] if branch in used}
    for branch, name in names.items():
        parent, at, run_id, created_at = own.get(branch, (None, 0, None, to_text(secondary.created_at)))
        if branch in line:  # its messages after this one are not of the conversation
            parent, at = None, line[branch]
        elif parent in line and at <= line[parent]:
            parent = None
        at = moved(segments, at)
        connection.execute(
            "INSERT INTO branches (session_id, id, parent_id, parent_seq, run_id, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (primary.id, name, branches.holder(place, at) if parent is None else names[parent], at, run_id, created_at),
        )
    _rename_branches(connection, secondary.id, line, names)
    return names


_LAST_OF_BRANCHES = "SELECT branch, MAX(seq) FROM messages WHERE session_id = ? GROUP BY branch"


def _rename_branches(
    connection: Connection, session_id: str, line: Mapping[str, int], names: Mapping[str, str]
) -> None:
    """Rename the branches of messages; those of the conversation get ``"~"``, until their places are known.

    A new name has a prefix until all are renamed, because it may be an old one.
    """
    connection.execute(_FLAG, (session_id,))
    for branch, upto in line.items():
        connection.execute(
            "UPDATE messages SET branch = '~' WHERE session_id = ? AND branch = ? AND seq <= ?",
            (session_id, branch, upto),
        )
    connection.executemany(
        "UPDATE messages SET branch = ? WHERE session_id = ? AND branch = ?",
        [(f"~{name}", session_id, branch) for branch, name in names.items()],
    )
    connection.execute(
        "UPDATE messages SET branch = substr(branch, 2) WHERE session_id = ? AND branch != '~'", (session_id,)
    )


# All else


def _join_others(connection: Connection, primary_id: str, secondary_id: str, *, with_items: bool) -> None:
    """Files, and with `with_items` the items of another SDK's conversation, which are its state."""
    ids = {"primary": primary_id, "secondary": secondary_id}
    if with_items:
        connection.execute(_MOVE_ITEMS, ids)
    connection.execute(_COPY_FILES, ids)
    for table in ("files", "conversation_items"):
        connection.execute(f"DELETE FROM {table} WHERE session_id = :secondary", ids)


_MOVE_ITEMS = """
    UPDATE conversation_items SET session_id = :primary, position = position
    + (SELECT COALESCE(MAX(position), 0) FROM conversation_items WHERE session_id = :primary)
    WHERE session_id = :secondary
"""
_COPY_FILES = """
    INSERT INTO files (session_id, hash, media_type, data)
    SELECT :primary, hash, media_type, data FROM files WHERE session_id = :secondary
    ON CONFLICT (session_id, hash) DO NOTHING
"""


def _join_details(connection: Connection, primary: SessionInfo, secondary: SessionInfo, rules: EngineContext) -> None:
    """What both have is the primary's. A pin of either one holds, such as a legal hold."""
    details = SessionDetails(
        title=primary.title or secondary.title,
        purpose=primary.purpose or secondary.purpose,
        tags=list(dict.fromkeys((*primary.tags, *secondary.tags))),
        metadata=session_rows.merged(secondary.metadata, primary.metadata),
        context=session_rows.merged(secondary.context, primary.context),
    )
    session_rows.update(connection, primary.id, details, rules)
    pin = primary.pinned or secondary.pinned
    connection.execute(
        "UPDATE sessions SET version = version + 1, pinned = ?, last_active_at = ?, parent_id = ? WHERE id = ?",
        (
            None if pin is None else to_json(pin.model_dump(mode="json")),
            to_text(max(primary.last_active_at, secondary.last_active_at)),
            secondary.parent_id if primary.parent_id == secondary.id else primary.parent_id,
            primary.id,
        ),
    )
