"""Writing tool calls and model calls: each execution is one row, whichever source observed it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import RepairedCall, to_text
from session_middleware.storage.jsonable import stored_id
from session_middleware.storage.processes import this_process
from session_middleware.storage.record_entries import (
    REPORTED,
    Attachment,
    MessageEntry,
    ModelCallEntry,
    ToolEnd,
    ToolStart,
    is_reported,
)
from session_middleware.storage.sql.connection import Connection, among
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.row_mapping import clean, flags_of, to_json
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.sql.sessions import events

_COLUMNS = (
    *("session_id", "seq", "run_id", "execution_id", "tool_call_id", "attempt", "name", "arguments", "result"),
    *("status", "error", "message_id", "checkpoint_ns", "flags"),
)


def start(write: SessionWrite, run: RunWrite, call: ToolStart, now: datetime) -> None:
    session_id, counters, executions = run.session_id, write.counters, run.record.executions
    request_id, call_id = (given and stored_id(given) for given in (call.message_id, call.tool_call_id))
    name, arguments = clean(call.name), to_json(call.arguments)
    flags = flags_of(call.flags, name, arguments)
    if call.corrects:
        write.execute(
            "UPDATE tool_calls SET name = ?, arguments = ?, flags = ? WHERE session_id = ? AND execution_id = ?",
            (name, arguments, flags, session_id, call.execution_id),
        )
        return
    if call_id is None:
        request_id, call_id = _find_request(write, session_id, call) or (None, call.execution_id)
    if request_id is None:
        requests = _requests(write, session_id, call_id)
        same = [request for request in requests if any(to_json(one.get("args")) == arguments for one in request.calls)]
        request_id = next((request.message_id for request in (*same, *requests)), None)
    request_id = request_id and run.record.aliases.get(request_id, request_id)
    is_first = not executions.get(call_id)  # as far as this run knows
    executions[call_id] = executions.get(call_id, frozenset()) | {call.execution_id}
    seq, process = counters.next_seq(), this_process() if run.run_id is None else None
    row = (
        *(session_id, seq, run.run_id, call.execution_id, call_id, name, arguments, request_id),
        *(call.checkpoint_ns, call.node, flags, to_text(now), process, session_id, call_id, request_id),
    )
    if is_first and write.raw.is_optimistic:
        write.execute(_START_FIRST, row)
        attempt = 1
    else:
        started = write.execute(_START, row).fetchone()
        if started is None:  # another recorder has recorded it
            return
        (attempt,) = started
    counters.tool_calls += 1
    if request_id is None:
        write.state.calls_without_request = True
    if attempt > 1:
        requests = [each for each in _requests(write, session_id, call_id) if each.message_id == request_id]
        if attempt > sum(len(request.calls) for request in requests):
            write.execute(
                "UPDATE tool_calls SET status = 'interrupted'"
                " WHERE session_id = ? AND tool_call_id = ? AND message_id IS ? AND checkpoint_ns = ?"
                " AND status = 'running' AND seq < ?",
                (session_id, call_id, request_id, call.checkpoint_ns, seq),
            )


_INSERT_START = """
    INSERT INTO tool_calls (session_id, seq, run_id, execution_id, tool_call_id, name, arguments, status,
    message_id, checkpoint_ns, node, flags, started_at, process, attempt)
    VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?,
    (SELECT {attempt} FROM tool_calls WHERE session_id = ? AND tool_call_id = ? AND message_id IS ?))
"""
_START = (
    _INSERT_START.format(attempt="COALESCE(MAX(attempt), 0) + 1")
    + " ON CONFLICT (session_id, execution_id) DO NOTHING RETURNING attempt"
)
_START_FIRST = _INSERT_START.format(attempt="CASE WHEN COUNT(*) = 0 THEN 1 END")  # NULL is an error, as is a conflict


def end(write: SessionWrite, run: RunWrite, call: ToolEnd) -> None:
    outcome = (to_json(call.result), to_json(call.artifact), call.error and clean(call.error))
    own = (run.session_id, call.execution_id)
    ended = write.execute(
        "UPDATE tool_calls SET status = ?, result = ?, artifact = ?, error = ?, duration_ms = ?, process = NULL"
        " WHERE session_id = ? AND execution_id = ? AND status IN ('running', 'interrupted')",  # else it has ended
        (call.status, *outcome, call.duration_ms, *own),
    )
    flags, failed = flags_of(call.flags, *outcome), call.status == "error"
    if (flags is not None or failed) and ended.rowcount:
        if flags is not None:
            write.execute(_ADD_FLAGS, (flags, *own))
        if failed:
            write.counters.count_error()
    store_files(write, run.session_id, call.files)


_ADD_FLAGS = """
    UPDATE tool_calls SET flags = (SELECT json_group_array(DISTINCT value) FROM
    (SELECT value FROM json_each(COALESCE(flags, '[]')) UNION ALL SELECT value FROM json_each(?)) AS every)
    WHERE session_id = ? AND execution_id = ?
"""


def store_files(write: SessionWrite, session_id: str, files: Sequence[Attachment]) -> None:
    if files:
        columns = ("session_id", "hash", "media_type", "data")
        write.insert("files", columns, [(session_id, *file) for file in files], " ON CONFLICT DO NOTHING")


# Answers: tool messages whose execution was not observed


class _Executed(NamedTuple):
    """The executions of a tool call id for one requesting message."""

    times: int
    attempt: int
    last_seq: int


class _Request(NamedTuple):
    """A message that requests a tool call id, once or more often."""

    message_id: str
    calls: list[dict[str, Any]]
    seq: int
    checkpoint_ns: str


_NOT_EXECUTED = _Executed(0, 0, 0)
_REQUESTS = """
    SELECT message_id, tool_calls, seq, checkpoint_ns FROM (
        SELECT message_id, tool_calls, seq, checkpoint_ns FROM messages
        WHERE session_id = ? AND tool_calls IS NOT NULL ORDER BY seq DESC LIMIT 64
    ) AS latest WHERE instr(tool_calls, ?) > 0
"""
_EXECUTED_AND_REQUESTS = f"""
    SELECT message_id, CAST(NULL AS TEXT), COUNT(*), MAX(attempt), MAX(seq), '' FROM tool_calls
    WHERE session_id = ? AND tool_call_id = ? GROUP BY message_id
    UNION ALL SELECT message_id, tool_calls, 0, 0, seq, checkpoint_ns FROM ({_REQUESTS}) AS requests
"""


def add_answered(write: SessionWrite, run: RunWrite, message: MessageEntry) -> None:
    """Add the execution that a tool message answers, unless it is recorded.

    Models may use a tool call id again, even in one message. So requests, executions and answers are counted.
    """
    session_id, counters, call_id = run.session_id, write.counters, str(message.tool_call_id)
    answers = run.record.answers.get(call_id, frozenset()) | {message.message_id}
    executions, run.record.answers[call_id] = run.record.executions.get(call_id, ()), answers
    is_refused = message.refused and len(executions) < len(answers)
    if is_refused:
        refused = write.execute(
            "UPDATE tool_calls SET status = 'refused', error = NULL"
            " WHERE session_id = ? AND execution_id = ? AND status = 'error'",
            (session_id, message.message_id),
        ).rowcount
        if refused:  # it was counted as a failure
            counters.count_error(-refused)
            return
    elif len(executions) >= len(answers):
        return
    executed: dict[str | None, _Executed] = {}
    request = None if message.refused else _expected_request(write, session_id, call_id, message)
    if request is None:
        rows = write.query(_EXECUTED_AND_REQUESTS, (session_id, call_id, session_id, to_json(call_id))).fetchall()
        executed = {request_id: _Executed(*rest) for request_id, asked, *rest, _ in rows if asked is None}
        requests = _parsed(((*row[:2], *row[4:]) for row in rows if row[1] is not None), call_id)
        known = {request.message_id for request in requests}
        answered_at = counters.rows.get(message.message_id, 0)
        requests = [request for request in requests if request.seq < answered_at] or requests
        request = _open_request(write, session_id, requests, executed, message.checkpoint_ns)
        if request is None and (requests or executed):
            return
        if request and any(each.last_seq > request.seq for of, each in executed.items() if of not in known):
            return  # the requesting message has got another id since
    done = executed.get(request and request.message_id, _NOT_EXECUTED)
    call: dict[str, Any] = request.calls[done.times] if request else {}
    failed = message.tool_error and not is_refused
    result = _result_of(message)
    row = (
        *(session_id, counters.next_seq(), run.run_id, message.message_id, call_id, done.attempt + 1),
        *(clean(str(message.name or call.get("name") or "tool")), to_json(call.get("args")), result),
        *("refused" if is_refused else "error" if failed else "ok", message.text if failed else None),
        *(request and request.message_id, message.checkpoint_ns, flags_of(message.flags, result)),
    )
    write.insert("tool_calls", _COLUMNS, [row])
    counters.tool_calls += 1
    if request is None:
        write.state.calls_without_request = True
    if failed:
        counters.count_error()


def _expected_request(write: SessionWrite, session_id: str, call_id: str, message: MessageEntry) -> _Request | None:
    """The only request of a call that was not executed, from the cache. The statements fail if the cache is stale."""
    if not write.raw.is_optimistic:
        return None
    id_text, found = to_json(call_id) or "", list[_Request]()
    for row in (rows[-1] for rows in write.state.message_rows.values() if rows):
        if row.tool_calls is not None and id_text in row.tool_calls:
            calls = [call for call in json.loads(row.tool_calls) if call.get("id") == call_id]
            found += [_Request(row.message_id, calls, row.seq, row.checkpoint_ns)] if calls else []
    if len(found) != 1 or len(found[0].calls) > 1 or found[0].seq >= write.counters.rows.get(message.message_id, 0):
        return None
    write.query(_EXPECT_NOT_EXECUTED, (session_id, call_id))
    write.query(_EXPECT_NO_OTHER_REQUEST, (session_id, id_text, found[0].message_id))
    return found[0]


_EXPECT_NOT_EXECUTED = "SELECT expect_no_row(COUNT(*)) FROM tool_calls WHERE session_id = ? AND tool_call_id = ?"
_EXPECT_NO_OTHER_REQUEST = f"SELECT expect_no_row(COUNT(*)) FROM ({_REQUESTS}) AS others WHERE message_id <> ?"


def set_artifact(write: SessionWrite, run: RunWrite, message: MessageEntry) -> None:
    """Store the artifact of a tool message with the execution that it answers, unless that has one."""
    write.execute(
        "UPDATE tool_calls SET artifact = ? WHERE session_id = ? AND artifact IS NULL AND seq = ("
        "SELECT seq FROM tool_calls WHERE session_id = ? AND tool_call_id = ?"
        " ORDER BY execution_id = ? DESC, result IS ? DESC, seq DESC LIMIT 1)",
        (to_json(message.artifact), run.session_id, run.session_id, message.tool_call_id, message.message_id)
        + (_result_of(message),),
    )


def _result_of(message: MessageEntry) -> str | None:
    return to_json(message.content if message.content is not None else message.text)


def set_request(write: SessionWrite, session_id: str, message: MessageEntry) -> None:
    """Set the requesting message of executions that were recorded before it."""
    state = write.state
    if state.calls_without_request is None:
        sql = "SELECT 1 FROM tool_calls WHERE session_id = ? AND message_id IS NULL LIMIT 1"
        state.calls_without_request = write.query(sql, (session_id,)).fetchone() is not None
    if not state.calls_without_request:
        return
    requested = {(str(call.get("id")), to_json(call.get("args"))) for call in message.tool_calls}
    those, ids = among("tool_call_id", [call_id for call_id, _ in requested])
    sql = f"SELECT seq, tool_call_id, arguments FROM tool_calls WHERE session_id = ? AND message_id IS NULL AND {those}"
    found = write.query(f"{sql} ORDER BY seq", (session_id, *ids)).fetchall()
    same = {call_id for _, call_id, arguments in found if (call_id, arguments) in requested}
    for seq, call_id, arguments in found:
        if (call_id, arguments) in requested or call_id not in same:  # another message may have used the same id
            write.execute(
                "UPDATE tool_calls SET message_id = ?1, attempt = (SELECT COALESCE(MAX(attempt), 0) + 1"
                " FROM tool_calls AS other WHERE other.session_id = ?2"
                " AND other.tool_call_id = tool_calls.tool_call_id AND other.message_id = ?1)"
                " WHERE session_id = ?2 AND seq = ?3",
                (message.message_id, session_id, seq),
            )


def rename_request(write: SessionWrite, session_id: str, before: str, message: MessageEntry) -> None:
    """Set the new id of a requesting message in its executions."""
    write.executemany(
        "UPDATE tool_calls SET message_id = ?1 WHERE session_id = ?2 AND tool_call_id = ?3 AND message_id = ?4"
        " AND NOT EXISTS (SELECT 1 FROM tool_calls AS other WHERE other.session_id = ?2 AND other.tool_call_id = ?3"
        " AND other.message_id = ?1 AND other.attempt = tool_calls.attempt)",
        [(message.message_id, session_id, str(call.get("id")), before) for call in message.tool_calls],
    )


def _requests(write: SessionWrite, session_id: str, call_id: str) -> list[_Request]:
    """Return the messages that request a call, latest first, each as its latest version."""
    return _parsed(write.query(_REQUESTS, (session_id, to_json(call_id))), call_id)


def _parsed(rows: Iterable[Any], call_id: str) -> list[_Request]:
    found: dict[str, _Request] = {}
    for message_id, asked, *rest in rows:
        calls = [call for call in json.loads(asked) if call.get("id") == call_id]
        if calls:
            found.setdefault(message_id, _Request(message_id, calls, *rest))
    return list(found.values())


def _open_request(
    write: SessionWrite,
    session_id: str,
    requests: Sequence[_Request],
    executed: Mapping[str | None, _Executed],
    namespace: str,
) -> _Request | None:
    """Return the request that an answer is for: of the latest ones without an execution, in one turn, the first.

    Those in the answer's own graph come before others.
    """
    mine = [request for request in requests if request.checkpoint_ns == namespace] or requests
    are_open = [len(each.calls) > executed.get(each.message_id, _NOT_EXECUTED).times for each in mine]
    latest = mine[: are_open.index(False)] if False in are_open else mine
    if len(latest) < 2:
        return latest[0] if latest else None
    sql = "SELECT COALESCE(MAX(seq), 0) FROM messages WHERE session_id = ? AND seq < ? AND role = 'user'"
    (turn,) = write.query(sql, (session_id, latest[0].seq)).fetchone()
    return [latest[0], *(each for each in latest[1:] if each.seq > turn)][-1]


def _find_request(write: SessionWrite, session_id: str, call: ToolStart) -> tuple[str, str] | None:
    """Return the latest message that requests this tool with these arguments, and its call id, unless executed."""
    found = write.query(_REQUESTS, (session_id, to_json(clean(call.name)))).fetchone()
    arguments = to_json(call.arguments)
    requested = [(request, to_json(request.get("args"))) for request in json.loads(found[1])] if found else []
    for request, args in requested:
        call_id = request.get("id")
        if request.get("name") == call.name and args == arguments and call_id:
            mine = [args for each, args in requested if each.get("id") == call_id]  # one id may be several calls
            executed = write.query(
                "SELECT arguments FROM tool_calls"
                " WHERE session_id = ?1 AND tool_call_id = ?2 AND COALESCE(message_id, ?3) = ?3",
                (session_id, call_id, found[0]),
            ).fetchall()
            if len(executed) < len(mine) and executed.count((arguments,)) < mine.count(arguments):
                return found[0], call_id
    return None


# Repairs of histories with unanswered calls


def append_repair(
    connection: Connection,
    rules: EngineContext,
    session_id: str,
    calls: Sequence[RepairedCall],
    *,
    run_id: str | None,
    reason: str,
    checkpoint_id: str | None,
) -> None:
    for call in calls:
        if call.answer == "interrupted":  # neither the row that only the answer made nor an execution has finished
            made = connection.execute(
                "UPDATE tool_calls SET status = 'interrupted', result = NULL, error = NULL"
                " WHERE session_id = ? AND execution_id = ? AND status = 'error'",
                (session_id, call.answer_id),
            ).rowcount
            if made:  # it counted as a failure
                sql = "UPDATE sessions SET error_count = error_count - ? WHERE id = ?"
                connection.execute(sql, (made, session_id))
            connection.execute(
                "UPDATE tool_calls SET status = 'interrupted'"
                " WHERE session_id = ? AND tool_call_id = ? AND status = 'running'",
                (session_id, stored_id(call.tool_call_id)),
            )
    detail: dict[str, Any] = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
    detail["tool_calls"] = [{"id": call.tool_call_id, "name": call.name, "answer": call.answer} for call in calls]
    events.append(connection, session_id, "repaired", reason, detail, rules.clock(), run_id=run_id)


# Model calls

_MODEL_COLUMNS = (
    *("session_id", "seq", "run_id", "id", "model", "provider", "input_tokens", "output_tokens", "cached_tokens"),
    *("reasoning_tokens", "cost", "first_token_ms", "duration_ms", "error", "message_id", "checkpoint_ns", "node"),
    *("flags", "started_at"),
)
_MOST_COUNTS = 256  # of the latest model calls
_NEARBY = 256  # a call and the message that it returned are at most so many rows apart


def add_model_call(write: SessionWrite, run: RunWrite, call: ModelCallEntry, now: datetime) -> None:
    if call.by_hand:
        call = _replace_implied(write, run, call)
    else:
        counts = (call.message_id, call.input_tokens, call.output_tokens)
        run.record.token_counts = (*run.record.token_counts[1 - _MOST_COUNTS :], counts)
    _insert_model_call(write, run, call, now)


def add_implied_model_call(write: SessionWrite, run: RunWrite, call: ModelCallEntry, now: datetime) -> None:
    """Add the model call that a message implies, unless it was observed or the message is a copy of its answer."""
    tokens = (call.input_tokens, call.output_tokens)
    if any(call.message_id == answer for answer, *_ in run.record.token_counts):
        return
    if "cached" not in call.flags and is_reported(tokens, [counts for _, *counts in run.record.token_counts]):
        return
    recent = max(0, write.counters.last_seq - _NEARBY)
    values = (call.message_id, run.session_id, recent, *tokens)
    if write.raw.is_optimistic:
        write.query(_EXPECT_NO_CALL, values)  # a row is an error, after which the operation is repeated
    elif write.execute(_SET_ANSWER, values).rowcount:
        return
    _insert_model_call(write, run, call._replace(flags=(*call.flags, REPORTED)), now)


_ANSWERED = """
    model_calls WHERE session_id = ?2 AND seq > ?3 AND (message_id = ?1
    OR (message_id IS NULL AND error IS NULL AND input_tokens IS ?4 AND output_tokens IS ?5))
"""
_EXPECT_NO_CALL = f"SELECT expect_no_row(COUNT(*)) FROM {_ANSWERED}"
_SET_ANSWER = f"""
    UPDATE model_calls SET message_id = ?1 WHERE session_id = ?2 AND seq = (
        SELECT seq FROM {_ANSWERED} ORDER BY message_id = ?1 DESC, seq LIMIT 1
    )
"""
_DELETE_IMPLIED = """
    DELETE FROM model_calls WHERE session_id = ?1 AND seq = (
        SELECT seq FROM model_calls WHERE session_id = ?1 AND seq > ?2 AND flags LIKE '%"told"%'
        AND CASE WHEN CAST(?3 AS TEXT) IS NULL THEN input_tokens IS ?4 AND output_tokens IS ?5 ELSE message_id = ?3 END
        ORDER BY seq LIMIT 1
    ) RETURNING model, provider, message_id, input_tokens, output_tokens, cost
"""


def _replace_implied(write: SessionWrite, run: RunWrite, call: ModelCallEntry) -> ModelCallEntry:
    """Delete the call that a message implied; returns the reported call with the values that only the message had."""
    counters = write.counters
    recent = max(0, counters.last_seq - _NEARBY)
    values = (run.session_id, recent, call.message_id, call.input_tokens, call.output_tokens)
    implied = write.execute(_DELETE_IMPLIED, values).fetchone()
    if implied is None:
        return call
    model, provider, message_id, input_tokens, output_tokens, cost = implied
    counters.count_model_call(-(input_tokens or 0), -(output_tokens or 0), cost, by=-1)
    counters.replaced = True
    return call._replace(model=call.model or model, provider=call.provider or provider, message_id=message_id)


def _insert_model_call(write: SessionWrite, run: RunWrite, call: ModelCallEntry, now: datetime) -> None:
    cost, counters = call.cost() if call.cost is not None else None, write.counters
    error, model, failed = call.error and clean(call.error), call.model and clean(call.model), call.error is not None
    row = (
        *(run.session_id, counters.next_seq(), run.run_id, call.id, model, call.provider),
        *(call.input_tokens, call.output_tokens, call.cached_tokens, call.reasoning_tokens, cost),
        *(call.first_token_ms, call.duration_ms, error, call.message_id, call.checkpoint_ns, call.node),
        *(flags_of(call.flags, error, model), to_text(call.started_at or now)),
    )
    counters.count_model_call(call.input_tokens, call.output_tokens, cost, failed=failed)

    def uncount() -> None:  # another recorder has recorded it
        given, answered = -(call.input_tokens or 0), -(call.output_tokens or 0)
        counters.count_model_call(given, answered, None if cost is None else -cost, failed=failed, by=-1)

    write.insert("model_calls", _MODEL_COLUMNS, [row], " ON CONFLICT (session_id, id) DO NOTHING", if_there=uncount)
