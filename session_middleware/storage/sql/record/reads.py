"""Reading the record of a session: its messages on a branch, and the rows of all its tables in order of `seq`.

Each table has an index by session and `seq`. A page is read as the first keys of each table, merged, and then the
rows with these keys, so its cost does not depend on the length of the record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from session_middleware.models import Branch, Event, Message, ModelCall, Question, Run, ToolCall
from session_middleware.storage.jsonable import stored_id
from session_middleware.storage.processes import is_gone
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.sql.connection import UNLIMITED, Connection, Cursor, among
from session_middleware.storage.sql.record import branches, deletions, runs
from session_middleware.storage.sql.row_mapping import values_of
from session_middleware.storage.types import Page, Part, Record

R = TypeVar("R", bound=Record)

# Table, value, the condition for the timeline, and that for the outermost graph; a model call has its node's namespace.
_TABLES: tuple[tuple[str, type[Record], str, str], ...] = (
    ("runs", Run, "TRUE", "TRUE"),
    ("messages", Message, "replaced_by IS NULL", branches.OUTERMOST),
    ("tool_calls", ToolCall, "TRUE", "checkpoint_ns = ''"),
    ("model_calls", ModelCall, "TRUE", "instr(checkpoint_ns, '|') = 0"),
    ("questions", Question, "TRUE", "TRUE"),
    ("events", Event, "TRUE", "TRUE"),
)
_WHOLE = Part()
_UNFINISHED: dict[str, tuple[type[Record], str]] = {
    "runs": (Run, "outcome = 'running'"),
    "tool_calls": (ToolCall, "status = 'running'"),
    "messages": (Message, "status = 'incomplete' AND replaced_by IS NULL"),
    "questions": (Question, "status = 'open'"),
}


def list_records(connection: Connection, kind: type[R], session_id: str, part: Part = _WHOLE) -> list[R]:
    table = next(table for table, model, *_ in _TABLES if model is kind)
    by_seq, ends = "seq DESC" if part.from_end else "seq", (part.after, _end(part))
    cursor = connection.execute(
        f"SELECT * FROM {table} WHERE session_id = ? AND seq > ? AND seq < ? ORDER BY {by_seq} LIMIT ?",
        (session_id, *ends, _limit(part)),
    )
    found = values_of(kind, cursor)
    return with_interruptions(connection, found[::-1] if part.from_end else found)


def list_timeline(connection: Connection, session_id: str, part: Part = _WHOLE) -> Page:
    most, ends = _limit(part), (part.after, _end(part))
    by_seq = "ORDER BY seq DESC" if part.from_end else "ORDER BY seq"
    conditions = {
        table: shown if part.subgraphs else f"{shown} AND {outermost}" for table, _, shown, outermost in _TABLES
    }
    keys = " UNION ALL ".join(
        f"SELECT seq FROM (SELECT seq FROM {table} WHERE session_id = ? AND seq > ? AND seq < ? AND {condition}"
        f" {by_seq} LIMIT ?) AS of_{table}"
        for table, condition in conditions.items()
    )
    page = connection.execute(f"{keys} {by_seq} LIMIT ?", (*(session_id, *ends, most) * len(_TABLES), most))
    seqs = [seq for (seq,) in page]
    if not seqs:
        return Page([], [])
    bounds, records = (session_id, min(seqs), max(seqs)), list[Record]()
    statements = {
        f"SELECT * FROM {table} WHERE session_id = ? AND seq BETWEEN ? AND ? AND {conditions[table]}": model
        for table, model, *_ in _TABLES
    }
    for sql in statements:
        connection.prefetch(sql, bounds)
    runs.prefetch_left_behind(connection, session_id)
    for sql, model in statements.items():
        records += values_of(model, connection.execute(sql, bounds))
    records.sort(key=lambda record: record.seq)
    here = {record.id for record in records if isinstance(record, Run)}
    elsewhere = [
        run_id
        for run_id in dict.fromkeys(record.run_id for record in records)
        if run_id is not None and run_id not in here
    ]
    others = values_of(Run, connection.execute(_RUNS, (json.dumps(elsewhere), session_id))) if elsewhere else []
    return Page(with_interruptions(connection, records), with_interruptions(connection, others))


def list_unfinished(connection: Connection, session_id: str, *, up_to: int) -> list[Record]:
    found: list[Record] = []
    statements = {
        f"SELECT * FROM {table} WHERE session_id = ? AND seq <= ? AND {condition}": model
        for table, (model, condition) in _UNFINISHED.items()
    }
    for sql in statements:
        connection.prefetch(sql, (session_id, up_to))
    for sql, model in statements.items():
        found += values_of(model, connection.execute(sql, (session_id, up_to)))
    return sorted(found, key=lambda record: record.seq)


def with_interruptions(connection: Connection, records: Sequence[R]) -> list[R]:
    """Return the records as they are once the end of dead processes is written to them.

    A run or a tool call that is stored as running has been interrupted. Messages that the state does not contain are
    marked `ASIDE`.
    """
    messages = {record.session_id for record in records if isinstance(record, Message)}
    left_behind = {(of, seq) for of in messages for seq in runs.list_left_behind(connection, of)}
    running = {
        (record.session_id, record.seq): (getattr(record, "id", record.run_id), record.session_id, record.seq)
        for record in records
        if (column := _STATUS.get(type(record))) is not None and getattr(record, column) == "running"
    }
    for values in running.values():
        connection.prefetch(_PROCESS, values)
    found: list[R] = []
    for record in records:
        changes: dict[str, Any] = {}
        if (process_of := running.get((record.session_id, record.seq))) is not None:
            (process,) = connection.execute(_PROCESS, process_of).fetchone()
            changes = {_STATUS[type(record)]: "interrupted"} if is_gone(process) else {}
        elif left_behind and isinstance(record, Message) and (record.session_id, record.seq) in left_behind:
            changes = {"flags": (*record.flags, ASIDE)}
        found.append(record.model_copy(update=changes) if changes else record)  # type: ignore[arg-type]  # of the same class
    return found


_RUNS = "SELECT * FROM runs WHERE id IN (SELECT value FROM json_each(?)) AND session_id = ? ORDER BY seq"
_STATUS: dict[type, str] = {Run: "outcome", ToolCall: "status"}
_PROCESS = """
    SELECT COALESCE((SELECT process FROM runs WHERE id = ?1 AND session_id = ?2),
    (SELECT process FROM tool_calls WHERE session_id = ?2 AND seq = ?3))
"""


# Messages


def list_messages(
    connection: Connection,
    session_id: str,
    part: Part = _WHOLE,
    *,
    all_versions: bool = False,
    branch: str | None = None,
) -> list[Message]:
    runs.prefetch_left_behind(connection, session_id)
    session = connection.execute(_SHAPE, (session_id,)).fetchone()
    if session is None:
        return []
    branch = branch or session[0]
    where = "TRUE" if part.subgraphs else branches.OUTERMOST
    if branch == "all" or (branch == branches.MAIN and not session[1]):  # in the order of `seq`
        after, before = part.after, _end(part)
        if branch != "all":
            after, before = (_position(connection, session_id, seq) for seq in (after, before))
        cursor = connection.execute(
            "SELECT * FROM messages WHERE session_id = ? AND seq > ? AND seq < ? AND (? OR replaced_by IS NULL)"
            f" AND {where} ORDER BY seq {'DESC' if part.from_end else 'ASC'} LIMIT ?",
            (session_id, after, before, all_versions, _limit(part)),
        )
        messages = values_of(Message, cursor)
        return with_interruptions(connection, messages[::-1] if part.from_end else messages)
    messages = values_of(Message, rows_of(connection, "*", session_id, branch, where=where))
    if not all_versions:
        messages = list({message.message_id: message for message in messages}.values())
    messages.sort(key=lambda message: (message.position, message.seq))
    first, end = _place(connection, session_id, messages, part.after)[0], len(messages)
    if part.before is not None:
        end, is_there = _place(connection, session_id, messages, part.before)
        end -= is_there
    messages = messages[first : max(first, end)]
    if part.from_end and part.limit is not None:
        messages = messages[max(0, len(messages) - part.limit) :]
    return with_interruptions(connection, messages[: part.limit])


def _limit(part: Part) -> int:
    return UNLIMITED if part.limit is None else part.limit


def _end(part: Part) -> int:
    return UNLIMITED if part.before is None else part.before


def _position(connection: Connection, session_id: str, seq: int) -> int:
    """The place of a seq in a conversation that is in the order of `seq`, where a message may have been deleted."""
    deleted = _deleted_at(connection, session_id, seq)
    return int(deleted.position) if deleted else seq


# Whether messages were moved or there are branches; otherwise the order is that of `seq`.
_SHAPE = """
    SELECT branch, EXISTS (SELECT 1 FROM messages WHERE session_id = sessions.id AND position != seq)
    OR EXISTS (SELECT 1 FROM branches WHERE session_id = sessions.id)
    FROM sessions WHERE id = ?
"""


def count_messages(connection: Connection, session_id: str) -> Counter[str]:
    """The number of messages of each role that `list_messages` returns, without reading their content."""
    session = connection.execute(_SHAPE, (session_id,)).fetchone()
    if session is None:
        return Counter()
    if session == (branches.MAIN, 0):
        sql = "SELECT role, COUNT(*) FROM messages WHERE session_id = ? AND replaced_by IS NULL GROUP BY role"
        return Counter(dict(connection.execute(sql, (session_id,)).fetchall()))
    return Counter(dict(rows_of(connection, "message_id, role", session_id, session[0]).fetchall()).values())


def rows_of(connection: Connection, fields: str, session_id: str, branch: str, *, where: str = "TRUE") -> Cursor:
    """Select the messages of a branch and of its ancestors, all versions, in order of `seq`."""
    line = branches.line(connection, session_id, branch)
    ours = " OR ".join(["branch = ? AND seq <= ?"] * len(line))
    return connection.execute(
        f"SELECT {fields} FROM messages WHERE session_id = ? AND ({ours}) AND {where} ORDER BY seq",
        (session_id, *(value for part in line for value in part)),
    )


def _place(connection: Connection, session_id: str, messages: Sequence[Message], seq: int) -> tuple[int, bool]:
    """Return the number of messages up to the one at `seq`, and whether that is the last of them.

    That message may be an older version, deleted, or of another branch, whose common part with this one counts.
    """
    if not seq:
        return 0, False
    if count := _count_to(messages, lambda message: message.seq == seq):
        return count, True
    sql = "SELECT message_id, position, branch FROM messages WHERE session_id = ? AND seq = ?"
    row = connection.execute(sql, (session_id, seq)).fetchone()
    if row is None:
        deleted = _deleted_at(connection, session_id, seq)
        row = deleted[:3] if deleted else ("", seq, branches.MAIN)
    message_id, position, branch = row
    if count := _count_to(messages, lambda message: message.message_id == message_id):
        return count, True
    line = branches.line(connection, session_id, branch)
    is_before = _count_to(
        messages,
        lambda message: (
            message.position <= position and any(message.branch == of and message.seq <= upto for of, upto in line)
        ),
    )
    return is_before, False


def _count_to(messages: Sequence[Message], is_it: Callable[[Message], bool]) -> int:
    """Return the number of messages up to the last one that `is_it` accepts; 0 if there is none."""
    return next((number for number in range(len(messages), 0, -1) if is_it(messages[number - 1])), 0)


def _deleted_at(connection: Connection, session_id: str, seq: int) -> deletions.DeletedMessage | None:
    deleted = deletions.deleted(connection, session_id) if seq else ()
    return next((message for message in deleted if seq in message.seqs), None)


def find_message(connection: Connection, session_id: str, message_id: str) -> Message | None:
    cursor = connection.execute(
        "SELECT * FROM messages WHERE session_id = ? AND message_id = ? ORDER BY version DESC LIMIT 1",
        (session_id, stored_id(message_id)),
    )
    return next(iter(values_of(Message, cursor)), None)


def find_file(connection: Connection, session_id: str, hash: str) -> bytes | None:
    row = connection.execute("SELECT data FROM files WHERE session_id = ? AND hash = ?", (session_id, hash)).fetchone()
    return row and bytes(row[0])


def list_branches(connection: Connection, session_id: str) -> list[Branch]:
    cursor = connection.execute("SELECT * FROM branches WHERE session_id = ? ORDER BY created_at, id", (session_id,))
    return values_of(Branch, cursor)


def find_executions(
    connection: Connection, session_id: str, tool_call_ids: Sequence[str]
) -> tuple[list[ToolCall], list[Message]]:
    those, ids = among("tool_call_id", map(stored_id, tool_call_ids))
    sql = f"SELECT * FROM tool_calls WHERE session_id = ? AND {those} ORDER BY seq"
    found = values_of(ToolCall, connection.execute(sql, (session_id, *ids)))
    finished = {call.tool_call_id for call in found if call.status in ("ok", "error")}
    if not finished:
        return found, []
    those, ids = among("tool_call_id", finished)
    sql = f"SELECT * FROM messages WHERE session_id = ? AND {those} AND replaced_by IS NULL ORDER BY seq"
    return found, values_of(Message, connection.execute(sql, (session_id, *ids)))
