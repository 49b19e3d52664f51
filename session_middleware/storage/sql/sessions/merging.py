"""Merging: the record, the memories and the details of a session become part of another one of the same owner.

The rows of both records get new seqs, in the order of time, and each record keeps its own order, because clocks are set
back. Moved rows have negative seqs until all rows are moved, so that no two rows have the same.

A row that both sessions have, such as a message that a fork was given, is one row: that of the primary. Executions of
one requested call in both are two rows, and so are two answers to one question.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import NamedTuple

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
from session_middleware.storage.types import MERGED, SessionDetails, merged_id

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
    others = connection.execute(_OTHER, ids).fetchall()
    renamed = [(merged_id(own, secondary_id), secondary_id, own, seq) for seq, own in others]
    for table in ("tool_calls", "model_calls"):
        sql = f"UPDATE {table} SET message_id = ? WHERE session_id = ? AND message_id = ?"
        connection.executemany(sql, dict.fromkeys(row[:3] for row in renamed))
    connection.executemany(
        "UPDATE messages SET message_id = ? WHERE session_id = ? AND message_id = ? AND seq = ?", renamed
    )
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
    ) SELECT seq, message_id FROM messages WHERE session_id = :secondary AND seq IN (SELECT seq FROM other)
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
    # The first version of each message is counted.
    "UPDATE messages SET version = 1 WHERE session_id = :secondary AND version > 1 AND NOT EXISTS"
    " (SELECT 1 FROM messages AS older WHERE older.session_id = :secondary"
    " AND older.message_id = messages.message_id AND older.version < messages.version)",
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


class Place(NamedTuple):
    """One row of a record."""

    seq: int
    at: str | None
    is_message: bool


Moves = Sequence[tuple[int, int]]  # the old and the new seq of each row of a record, in order


def interleaved(records: Sequence[Sequence[Place]]) -> list[Moves]:
    """The new seqs of each record, whose rows are given in order."""
    rows = sorted(
        (time, origin, place.seq)
        for origin, record in enumerate(records)
        for time, place in zip(_times(record), record, strict=True)
    )
    found: list[list[tuple[int, int]]] = [[] for _ in records]
    for new, (_, origin, seq) in enumerate(rows, 1):
        found[origin].append((seq, new))
    return [*found]


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


def moved(moves: Moves, place: float) -> float:
    """The new place of a seq, or of a position between two seqs."""
    at = bisect_right(moves, place, key=itemgetter(0)) - 1
    if at < 0:
        return moves[0][1] - 1 if moves else place
    after = place - moves[at][0]
    return moves[at][1] + after / (after + 1) if after else moves[at][1]


class _Message(NamedTuple):
    seq: int
    position: float
    replaced_by: int | None
    branch: str
    flags: str | None


def _join_records(connection: Connection, primary: SessionInfo, secondary: SessionInfo) -> None:
    ids = primary.id, secondary.id
    records = [[Place(*row) for row in connection.execute(_SEQS, {"own": each}).fetchall()] for each in ids]
    messages = [[_Message(*row) for row in connection.execute(_MESSAGES, (each,)).fetchall()] for each in ids]
    moves = interleaved(records)
    line = _extended(connection, primary, moves[0], messages[0])
    own_line = dict(branches.line(connection, secondary.id, secondary.branch))
    names = _join_branches(connection, primary, secondary, moves[1], messages[1], line, own_line)

    def placed(message: _Message) -> _Message:
        """A message of the secondary, marked as merged, with its branch in the primary."""
        is_said = message.seq <= own_line.get(message.branch, -1)
        branch = branches.holder(line, int(moved(moves[1], message.seq))) if is_said else names[message.branch]
        flags = to_json([*dict.fromkeys((*json.loads(message.flags or "[]"), FLAG))])
        return message._replace(branch=branch, flags=flags)

    _move(connection, primary.id, primary.id, moves[0], messages[0], {})
    _move(connection, primary.id, secondary.id, moves[1], [*map(placed, messages[1])], names)
    for table in _TIMES:
        connection.execute(f"UPDATE {table} SET seq = -seq WHERE session_id = ? AND seq < 0", (primary.id,))
    seqs = connection.execute(f"SELECT DISTINCT seq {_CHECKPOINTS}", (primary.home, primary.id)).fetchall()
    new = json.dumps({seq: int(moved(moves[0], seq)) for (seq,) in seqs})
    connection.execute(_MOVE_CHECKPOINTS, (primary.home, primary.id, new))


def _move(
    connection: Connection,
    primary_id: str,
    session_id: str,
    moves: Moves,
    messages: Sequence[_Message],
    names: Mapping[str, str],
) -> None:
    """Move the rows of a session, for now to negative seqs. `names`: the new names of its branches."""
    rows, details = [], []
    for seq, *places, branch, flags in messages:
        new_seq, position, replaced_by = (None if place is None else moved(moves, place) for place in (seq, *places))
        rows.append((primary_id, -int(new_seq or 0), position, replaced_by, branch, flags, session_id, seq))
    connection.executemany(_MOVE_MESSAGE, rows)
    for seq, text in connection.execute(_DELETIONS, (session_id,)).fetchall():
        detail = json.loads(text)
        detail["position"] = moved(moves, detail["position"])
        detail["seqs"] = [moved(moves, each) for each in detail.get("seqs", ())]
        detail["branch"] = names.get(detail["branch"], detail["branch"])
        details.append((to_json(detail), session_id, seq))
    connection.executemany("UPDATE events SET detail = ? WHERE session_id = ? AND seq = ?", details)
    for table in _TIMES.keys() - {"messages"}:
        connection.execute(_MOVE.format(table=table), (primary_id, session_id, json.dumps(dict(moves))))


_SEQS = " UNION ALL ".join(
    f"SELECT seq, {at}, {int(table == 'messages')} FROM {table} WHERE session_id = :own" for table, at in _TIMES.items()
)
_SEQS += " ORDER BY 1"
_MESSAGES = "SELECT seq, position, replaced_by, branch, flags FROM messages WHERE session_id = ? ORDER BY seq"
_DELETIONS = "SELECT seq, detail FROM events WHERE session_id = ? AND kind = 'message_deleted'"
_MOVE = """
    UPDATE {table} SET session_id = ?1, seq = -CAST(new.value AS INTEGER) FROM json_each(?3) AS new
    WHERE session_id = ?2 AND seq = CAST(new.key AS INTEGER)
"""
_MOVE_MESSAGE = """
    UPDATE messages SET session_id = ?, seq = ?, position = ?, replaced_by = ?, branch = ?, flags = ?
    WHERE session_id = ? AND seq = ?
"""
_CHECKPOINTS = "FROM checkpoints WHERE home = ? AND session_id = ? AND seq IS NOT NULL"
_MOVE_CHECKPOINTS = """
    UPDATE checkpoints SET seq = CAST(new.value AS INTEGER) FROM json_each(?3) AS new
    WHERE home = ?1 AND session_id = ?2 AND seq = CAST(new.key AS INTEGER)
"""


# Branches


def _extended(
    connection: Connection, primary: SessionInfo, moves: Moves, messages: Sequence[_Message]
) -> branches.Line:
    """Move the places where the primary's branches begin. Returns its line.

    Those of the line begin before the next message of the primary, so the messages of the secondary in between are on
    the farthest branch, which most of the others share.
    """
    line = branches.line(connection, primary.id, primary.branch)
    names = [branch for branch, _ in line]
    old = {branch: seq for branch, _, seq, *_ in connection.execute(_BRANCHES, (primary.id,)).fetchall()}
    new = {branch: int(moved(moves, seq)) for branch, seq in old.items()}
    found = [line[0]]
    for (child, _), (branch, upto) in pairwise(line):
        following = next((m.seq for m in messages if m.seq > upto and m.branch in names), None)
        extended = int(moved(moves, upto) if following is None else moved(moves, following) - 1)
        found.append((branch, extended))
        if old[child] == upto:
            new[child] = extended
    connection.executemany(
        "UPDATE branches SET parent_seq = ? WHERE session_id = ? AND id = ?",
        [(seq, primary.id, branch) for branch, seq in new.items()],
    )
    return found


def _join_branches(
    connection: Connection,
    primary: SessionInfo,
    secondary: SessionInfo,
    moves: Moves,
    messages: Sequence[_Message],
    place: branches.Line,
    line: Mapping[str, int],
) -> dict[str, str]:
    """Let the line of the secondary be a part of the primary's line `place`, and its other branches begin there.

    Returns the new names of the secondary's branches, as far as their messages have left the conversation.
    """
    known = {row[0] for row in connection.execute(_BRANCHES, (primary.id,)).fetchall()}
    own = {row[0]: row[1:] for row in connection.execute(_BRANCHES, (secondary.id,)).fetchall()}
    connection.execute("DELETE FROM branches WHERE session_id = ?", (secondary.id,))
    used = set()  # branches with messages that are not of the conversation, and those that these continue
    for branch, last in {message.branch: message.seq for message in messages}.items():
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
        at = int(moved(moves, at))
        connection.execute(
            "INSERT INTO branches (session_id, id, parent_id, parent_seq, run_id, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (primary.id, name, branches.holder(place, at) if parent is None else names[parent], at, run_id, created_at),
        )
    return names


_BRANCHES = "SELECT id, parent_id, parent_seq, run_id, created_at FROM branches WHERE session_id = ?"


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
    session_rows.update(connection, rules, primary.id, details)
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
