"""Tool calls and model calls in SQLite: one row an execution, whoever saw it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import to_text
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
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.row_mapping import clean, marks_of, to_json
from session_middleware.storage.sql.session_state import SessionCounters, SessionWrite

_COLUMNS = (
    *("session_id", "seq", "run_id", "execution_id", "tool_call_id", "attempt", "name", "arguments", "result"),
    *("status", "error", "message_id", "checkpoint_ns", "node", "marks", "started_at"),
)


def start(connection: SessionWrite, context: RunContext, call: ToolStart, now: datetime) -> None:
    tally = connection.counters
    asked, call_id = call.message_id, call.tool_call_id and clean(call.tool_call_id)
    name, arguments = clean(call.name), to_json(call.arguments)
    if call.corrects:
        connection.execute(
            "UPDATE tool_calls SET name = ?, arguments = ?, marks = ? WHERE session_id = ? AND execution_id = ?",
            (name, arguments, marks_of(call.marks, name, arguments), context.session_id, call.execution_id),
        )
        return
    if call_id is None:
        asked, call_id = _find_request(connection, context.session_id, call) or (None, call.execution_id)
    if asked is None:
        requests = _requests(connection, context.session_id, call_id)
        same = [request for request in requests if any(to_json(one.get("args")) == arguments for one in request.calls)]
        asked = next((request.message_id for request in (*same, *requests)), None)
    asked = asked and context.aliases.get(asked, asked)
    context.executions.setdefault(call_id, set()).add(call.execution_id)
    row = (
        *(context.session_id, tally.next_seq(), context.run_id, call.execution_id, call_id, name, arguments),
        *(asked, call.checkpoint_ns, call.node, marks_of(call.marks, name, arguments), to_text(now)),
        *(this_process() if context.run_id is None else None, context.session_id, call_id, asked),
    )
    tally.tool_calls += 1
    started = connection.execute(_START, row).fetchone()
    if started is None:  # another recorder has recorded it
        tally.tool_calls, tally.changed = tally.tool_calls - 1, True
        return
    if started[0] > 1 and started[0] > _times_asked(connection, context.session_id, asked, call_id):
        connection.execute(
            "UPDATE tool_calls SET status = 'interrupted'"
            " WHERE session_id = ? AND tool_call_id = ? AND message_id IS ? AND checkpoint_ns = ?"
            " AND status = 'running' AND seq < ?",
            (context.session_id, call_id, asked, call.checkpoint_ns, tally.last_seq),
        )


_START = """
    INSERT INTO tool_calls (session_id, seq, run_id, execution_id, tool_call_id, name, arguments, status,
    message_id, checkpoint_ns, node, marks, started_at, process, attempt)
    VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?,
    (SELECT COALESCE(MAX(attempt), 0) + 1 FROM tool_calls
    WHERE session_id = ? AND tool_call_id = ? AND message_id IS ?))
    ON CONFLICT (session_id, execution_id) DO NOTHING RETURNING attempt
"""


def end(connection: SessionWrite, context: RunContext, call: ToolEnd) -> None:
    told = (to_json(call.result), to_json(call.artifact), call.error and clean(call.error))
    changed = connection.execute(
        "UPDATE tool_calls SET status = ?, result = ?, artifact = ?, error = ?, duration_ms = ?, process = NULL"
        " WHERE session_id = ? AND execution_id = ? AND status IN ('running', 'interrupted')",  # else it has ended
        (call.status, *told, call.duration_ms, context.session_id, call.execution_id),
    ).rowcount
    if changed and (marks := marks_of(call.marks, *told)) is not None:
        connection.execute(_MARK, (marks, context.session_id, call.execution_id))
    if call.status == "error" and changed:
        connection.counters.count_error()
    store_files(connection, context.session_id, call.files)


_MARK = """
    UPDATE tool_calls SET marks = (SELECT json_group_array(DISTINCT value) FROM
    (SELECT value FROM json_each(COALESCE(marks, '[]')) UNION ALL SELECT value FROM json_each(?)) AS every)
    WHERE session_id = ? AND execution_id = ?
"""


def store_files(connection: SessionWrite, session_id: str, files: Sequence[Attachment]) -> None:
    for file in files:
        connection.execute(
            "INSERT INTO files (session_id, hash, media_type, data) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (session_id, *file),
        )


def answer(connection: SessionWrite, context: RunContext, message: MessageEntry) -> None:
    """A row for a call whose execution nobody watched, from the message that answers it.

    Models may use an id again, even in one message. So calls, executions and answers are counted.
    """
    tally = connection.counters
    call_id = str(message.tool_call_id)
    if message.refused and _refuse(connection, context.session_id, message, tally):
        return
    answers = context.answers.setdefault(call_id, set())
    answers.add(message.message_id)
    if len(context.executions.get(call_id, ())) >= len(answers) and not message.refused:
        return
    executed = {
        message_id: _Executed(*rest) for message_id, *rest in connection.query(_EXECUTED, (context.session_id, call_id))
    }
    requests = _requests(connection, context.session_id, call_id)
    known = {each.message_id for each in requests}
    said_at = tally.rows.get(message.message_id, 0)
    requests = [request for request in requests if request.seq < said_at] or requests
    request = _open_request(connection, context.session_id, requests, executed, message.checkpoint_ns)
    if request is None and (requests or executed):
        return
    if request and any(one.last > request.seq for of, one in executed.items() if of not in known):
        return  # it was asked for by a message that has another id by now
    done = executed.get(request and request.message_id, _NOT_EXECUTED)
    call: dict[str, Any] = request.calls[done.times] if request else {}
    failed = message.tool_error and not message.refused
    name = message.name or call.get("name") or "tool"
    result = to_json(message.content if message.content is not None else message.text)
    status = "refused" if message.refused else "error" if failed else "ok"
    _insert(
        connection,
        tally,
        (context.run_id, message.message_id, call_id, done.attempt + 1, clean(str(name)))
        + (to_json(call.get("args")), result, status, message.text if failed else None)
        + (request and request.message_id, message.checkpoint_ns, None, marks_of(message.marks, result), None),
    )
    if failed:
        tally.count_error()


def keep_artifact(connection: SessionWrite, context: RunContext, message: MessageEntry) -> None:
    """The artifact of a message belongs to the execution that it answers for, if nobody has seen it there."""
    result = to_json(message.content if message.content is not None else message.text)
    answered = (context.session_id, message.tool_call_id, message.message_id, result)
    connection.execute(_KEEP_ARTIFACT, (to_json(message.artifact), context.session_id, *answered))


_KEEP_ARTIFACT = """
    UPDATE tool_calls SET artifact = ? WHERE session_id = ? AND artifact IS NULL AND seq = (
        SELECT seq FROM tool_calls WHERE session_id = ? AND tool_call_id = ?
        ORDER BY execution_id = ? DESC, result IS ? DESC, seq DESC LIMIT 1
    )
"""


class _Executed(NamedTuple):
    """The executions of a tool call id that one message asked for."""

    times: int
    attempt: int
    last: int  # the seq of the latest


_NOT_EXECUTED = _Executed(0, 0, 0)
_EXECUTED = """
    SELECT message_id, COUNT(*), MAX(attempt), MAX(seq) FROM tool_calls
    WHERE session_id = ? AND tool_call_id = ? GROUP BY message_id
"""


def _refuse(connection: SessionWrite, session_id: str, answer: MessageEntry, tally: SessionCounters) -> bool:
    """What was taken for a failure was said by somebody who did not run the tool; whether it was."""
    changed = connection.execute(
        "UPDATE tool_calls SET status = 'refused', error = NULL"
        " WHERE session_id = ? AND execution_id = ? AND status = 'error'",
        (session_id, answer.message_id),
    ).rowcount
    tally.count_error(-changed)
    return bool(changed)


def _insert(connection: SessionWrite, tally: SessionCounters, values: tuple[Any, ...]) -> None:
    connection.insert("tool_calls", _COLUMNS, [(tally.session_id, tally.next_seq(), *values)])
    tally.tool_calls += 1


def asked_by(connection: SessionWrite, session_id: str, message: MessageEntry) -> None:
    """Executions that were recorded before the message which asked for them have it now."""
    ids = [clean(str(call.get("id"))) for call in message.tool_calls]
    found = connection.query(
        "SELECT seq, tool_call_id, arguments FROM tool_calls"
        f" WHERE session_id = ? AND tool_call_id IN ({', '.join('?' * len(ids))}) AND message_id IS NULL ORDER BY seq",
        (session_id, *ids),
    ).fetchall()
    asked = {(clean(str(call.get("id"))), to_json(call.get("args"))) for call in message.tool_calls}
    same = {call_id for _, call_id, arguments in found if (call_id, arguments) in asked}
    for seq, call_id, arguments in found:
        if (call_id, arguments) in asked or call_id not in same:  # another message may have used the same id
            connection.execute(_ASKED_BY, (message.message_id, message.message_id, session_id, seq))


_ASKED_BY = """
    UPDATE tool_calls SET message_id = ?, attempt = (SELECT COALESCE(MAX(attempt), 0) + 1 FROM tool_calls AS t
    WHERE t.session_id = tool_calls.session_id AND t.tool_call_id = tool_calls.tool_call_id AND t.message_id = ?)
    WHERE session_id = ? AND seq = ?
"""


def asked_by_another_id(connection: SessionWrite, session_id: str, before: str, message: MessageEntry) -> None:
    """The message that asked for some executions has another id now."""
    connection.executemany(
        "UPDATE tool_calls SET message_id = ?1 WHERE session_id = ?2 AND tool_call_id = ?3 AND message_id = ?4"
        " AND NOT EXISTS (SELECT 1 FROM tool_calls AS other WHERE other.session_id = ?2 AND other.tool_call_id = ?3"
        " AND other.message_id = ?1 AND other.attempt = tool_calls.attempt)",
        [(message.message_id, session_id, clean(str(call.get("id"))), before) for call in message.tool_calls],
    )


class _Request(NamedTuple):
    """A message that asks for a tool call, once or more often."""

    message_id: str
    calls: list[dict[str, Any]]
    seq: int
    checkpoint_ns: str


_REQUESTS = """
    SELECT message_id, tool_calls, seq, checkpoint_ns FROM (
        SELECT message_id, tool_calls, seq, checkpoint_ns FROM messages
        WHERE session_id = ? AND tool_calls IS NOT NULL ORDER BY seq DESC LIMIT 64
    ) AS latest WHERE instr(tool_calls, ?) > 0
"""


def _requests(connection: SessionWrite, session_id: str, call_id: str) -> list[_Request]:
    """The requests for a call, latest first."""
    found: dict[str, _Request] = {}
    for message_id, asked, *rest in connection.query(_REQUESTS, (session_id, to_json(call_id))):
        calls = [call for call in json.loads(asked) if call.get("id") == call_id]
        if calls and message_id not in found:  # which is its latest version
            found[message_id] = _Request(message_id, calls, *rest)
    return list(found.values())


def _times_asked(connection: SessionWrite, session_id: str, message_id: str | None, call_id: str) -> int:
    requests = _requests(connection, session_id, call_id)
    return next((len(request.calls) for request in requests if request.message_id == message_id), 0)


def _open_request(
    connection: SessionWrite,
    session_id: str,
    requests: Sequence[_Request],
    executed: Mapping[str | None, _Executed],
    namespace: str,
) -> _Request | None:
    """The request that an answer is for: of the latest ones without an execution, in one turn, the first.

    Those in the answer's own graph come before others.
    """
    mine = [request for request in requests if request.checkpoint_ns == namespace] or requests
    are_open = [len(each.calls) > executed.get(each.message_id, _NOT_EXECUTED).times for each in mine]
    latest = mine[: are_open.index(False)] if False in are_open else mine
    if len(latest) < 2:
        return latest[0] if latest else None
    (asked,) = connection.query(_LAST_QUESTION, (session_id, latest[0].seq)).fetchone()
    return [latest[0], *(each for each in latest[1:] if each.seq > asked)][-1]


_LAST_QUESTION = """
    SELECT COALESCE(MAX(seq), 0) FROM messages WHERE session_id = ? AND seq < ? AND role = 'user'
"""


def _find_request(connection: SessionWrite, session_id: str, call: ToolStart) -> tuple[str, str] | None:
    """The latest message that asked for this tool, and the id of its request for such a call that nobody executed."""
    found = connection.query(_REQUESTS, (session_id, to_json(clean(call.name)))).fetchone()
    arguments = to_json(call.arguments)
    asked = [(request, to_json(request.get("args"))) for request in json.loads(found[1])] if found else []
    for request, args in asked:
        call_id = request.get("id")
        if request.get("name") == call.name and args == arguments and call_id:
            mine = [args for each, args in asked if each.get("id") == call_id]  # one id may be several calls
            executed = [args for (args,) in connection.query(_EXECUTED_FOR, (session_id, call_id, found[0], found[0]))]
            if len(executed) < len(mine) and executed.count(arguments) < mine.count(arguments):
                return found[0], call_id
    return None


_EXECUTED_FOR = """
    SELECT arguments FROM tool_calls WHERE session_id = ? AND tool_call_id = ? AND COALESCE(message_id, ?) = ?
"""


_MODEL_COLUMNS = (
    *("session_id", "seq", "run_id", "id", "model", "provider", "input_tokens", "output_tokens", "cached_tokens"),
    *("reasoning_tokens", "cost", "first_token_ms", "duration_ms", "error", "message_id", "checkpoint_ns", "node"),
    *("marks", "started_at"),
)


def add_model_call(connection: SessionWrite, context: RunContext, call: ModelCallEntry, now: datetime) -> None:
    tally = connection.counters
    if call.by_hand:
        call = _settle(connection, context, call, tally)
    else:
        context.asked.append((call.message_id, call.input_tokens, call.output_tokens))
    _insert_model_call(connection, context, call, tally, now)


def add_told_call(connection: SessionWrite, context: RunContext, call: ModelCallEntry, now: datetime) -> None:
    """A model call that a message tells of, unless somebody has seen it, or it is another copy of what it answered."""
    tally = connection.counters
    taken = (call.input_tokens, call.output_tokens)
    if any(call.message_id == answer for answer, *_ in context.asked):
        return
    if "cached" not in call.marks and is_reported(taken, [counts for _, *counts in context.asked]):
        return
    recent = max(0, tally.last_seq - _NEARBY)
    seen = (call.message_id, context.session_id, context.session_id, recent, call.message_id, *taken, call.message_id)
    if not connection.execute(_ANSWERED, seen).rowcount:
        _insert_model_call(connection, context, call._replace(marks=(*call.marks, REPORTED)), tally, now)


_NEARBY = 256  # places in a session's order; so near are a call and what it answered
_ANSWERED = """
    UPDATE model_calls SET message_id = ? WHERE session_id = ? AND seq = (
        SELECT seq FROM model_calls WHERE session_id = ? AND seq > ? AND (message_id = ?
        OR (message_id IS NULL AND error IS NULL AND input_tokens IS ? AND output_tokens IS ?))
        ORDER BY message_id = ? DESC, seq LIMIT 1
    )
"""
_TOLD_BEFORE = """
    DELETE FROM model_calls WHERE session_id = ? AND seq = (
        SELECT seq FROM model_calls WHERE session_id = ? AND seq > ? AND marks LIKE '%"told"%'
        AND CASE WHEN CAST(? AS TEXT) IS NULL THEN input_tokens IS ? AND output_tokens IS ? ELSE message_id = ? END
        ORDER BY seq LIMIT 1
    ) RETURNING model, provider, message_id, input_tokens, output_tokens, cost
"""


def _settle(
    connection: SessionWrite, context: RunContext, call: ModelCallEntry, tally: SessionCounters
) -> ModelCallEntry:
    """The call takes the place of one that a message told of before."""
    recent = max(0, tally.last_seq - _NEARBY)
    row = (context.session_id, context.session_id, recent, call.message_id, call.input_tokens, call.output_tokens)
    told = connection.execute(_TOLD_BEFORE, (*row, call.message_id)).fetchone()
    if told is None:
        return call
    model, provider, message_id, given, answered, cost = told
    tally.count_model_call(-(given or 0), -(answered or 0), cost, by=-1)
    tally.replaced = True
    return call._replace(model=call.model or model, provider=call.provider or provider, message_id=message_id)


def _insert_model_call(
    connection: SessionWrite, context: RunContext, call: ModelCallEntry, tally: SessionCounters, now: datetime
) -> None:
    cost = call.cost() if call.cost is not None else None
    values = call._replace(error=call.error and clean(call.error), model=call.model and clean(call.model))
    row = (
        *(context.session_id, tally.next_seq(), context.run_id, call.id, values.model, call.provider),
        *(call.input_tokens, call.output_tokens, call.cached_tokens, call.reasoning_tokens, cost),
        *(call.first_token_ms, call.duration_ms, values.error, call.message_id, call.checkpoint_ns, call.node),
        *(marks_of(call.marks, values.error, values.model), to_text(call.started_at or now)),
    )
    failed = call.error is not None
    tally.count_model_call(call.input_tokens, call.output_tokens, cost, failed=failed)

    def uncount() -> None:  # another recorder has recorded it
        given, answered = -(call.input_tokens or 0), -(call.output_tokens or 0)
        tally.count_model_call(given, answered, None if cost is None else -cost, failed=failed, by=-1)

    connection.insert("model_calls", _MODEL_COLUMNS, [row], _UNLESS_RECORDED, if_there=uncount)


_UNLESS_RECORDED = " ON CONFLICT (session_id, id) DO NOTHING"
