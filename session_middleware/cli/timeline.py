"""A session's timeline in a terminal: a panel of facts, then one row for each record.

Print it with ``crop=False``, so that the id stays whole. Recorded text is untrusted: it is never parsed as
markup, and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from session_middleware.cli.tables import status_text, text_of
from session_middleware.display.text import (
    arguments_text,
    detail_text,
    duration_text,
    json_text,
    plural,
    second_text,
    shortened,
    visible,
)
from session_middleware.models import Event, Message, ModelCall, Run, SessionInfo, ToolCall
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.types import Record

_SHORT_CHARACTERS = 110  # two lines of the text column at 80 columns
_OUTCOME_STYLES = {"running": "yellow", "error": "red", "refused": "red", "interrupted": "magenta"}
_KIND_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "yellow", "system": "dim"}


def message_line(message: Message) -> Text:
    """The role and the shortened text of a message."""
    role = text_of(f"{message.role}: ", _KIND_STYLES[message.role])
    return Text.assemble(role, text_of(shortened(message.text, _SHORT_CHARACTERS)))


def timeline(session: SessionInfo, records: Iterable[Record], *, full: bool = False) -> RenderableType:
    """A session from its first event to its last.

    Unless `full`, long text is cut to about two lines, and a record that another row describes is left out: a
    tool message whose tool call has a row, a model call that did not fail, and the event with which a run
    opened the session. A record of a subgraph begins with the subgraph's path.
    """
    rows = _Rows(session, list(records), full=full)
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    day = None
    for record in rows.visible_records():
        moment = _time_of(record)
        if moment is not None and moment.date() != day:
            day = moment.date()
            grid.add_row(Text(""), Text(""), Text(day.isoformat(), style="dim"))
        grid.add_row(Text(f"{moment:%H:%M:%S}" if moment else ""), *rows.row(record))
    return Group(_header(session), grid)


def _header(session: SessionInfo) -> RenderableType:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if session.title:
        facts.add_row("title", text_of(session.title))
    facts.add_row("owner", text_of(session.user_id or "none: open to everyone"))
    if session.group_id:
        facts.add_row("group", text_of(session.group_id))
    facts.add_row("status", Text.assemble(status_text(session), (f", last {session.opened_as}", "dim")))
    facts.add_row("opened", second_text(session.created_at))
    facts.add_row("last active", second_text(session.last_active_at))
    if session.expires_at is not None:
        word = "expired" if session.status == "expired" else "expires"
        facts.add_row(word, Text.assemble(second_text(session.expires_at), ("  (all times are UTC)", "dim")))
    if session.pinned is not None:
        facts.add_row("pinned", text_of(", by ".join(filter(None, (session.pinned.why, session.pinned.by))) or "yes"))
    counts = ((session.run_count, "run"), (session.message_count, "message"), (session.tool_call_count, "tool call"))
    counted = [plural(count, noun) for count, noun in (*counts, (session.error_count, "error"))]
    facts.add_row("holds", ", ".join([*counted, f"{session.input_tokens:,} + {session.output_tokens:,} tokens"]))
    name = text_of(session.id, "bold")
    name.no_wrap, name.overflow = True, "ignore"
    return Group(name, Panel(facts, border_style="dim", padding=(0, 1)))


class _Rows:
    """The rows of one timeline. Their text depends on the session's owner and on the other records."""

    def __init__(self, session: SessionInfo, records: Sequence[Record], *, full: bool) -> None:
        self._owner = session.user_id
        self._records = records
        self._full = full
        runs = [record for record in records if isinstance(record, Run)]
        self._latest_run = max((run.seq for run in runs), default=0)
        self._run_ids = set() if full else {run.id for run in runs}
        self._opened_as = {e.run_id: e.kind for e in records if isinstance(e, Event) and self._is_in_run_row(e)}

    def visible_records(self) -> Iterator[Record]:
        calls = {(record.message_id, record.tool_call_id) for record in self._records if isinstance(record, ToolCall)}
        for record in self._records:
            is_repeated = (
                (isinstance(record, Message) and _is_in_call_rows(record, calls))
                or (isinstance(record, Event) and self._is_in_run_row(record))
                or (isinstance(record, ModelCall) and record.error is None)
            )
            if self._full or not is_repeated:
                yield record

    def _is_in_run_row(self, event: Event) -> bool:
        is_plain = event.kind in ("opened", "resumed") and event.reason is None and not event.detail
        return is_plain and event.run_id in self._run_ids

    def row(self, record: Record) -> tuple[Text, Text]:
        """The kind of the record, and its content in words."""
        if isinstance(record, Message):
            return text_of(record.role, _KIND_STYLES[record.role]), _lines_of(self._message(record))
        if isinstance(record, ToolCall):
            return Text("tool", "yellow"), _lines_of(self._tool_call(record), _OUTCOME_STYLES.get(record.status, ""))
        if isinstance(record, ModelCall):
            return Text("model", "dim"), _lines_of(self._model_call(record), "red" if record.error else "dim")
        if isinstance(record, Run):
            return Text("run", "dim"), _lines_of(self._run(record), _OUTCOME_STYLES.get(record.outcome, "dim"))
        parts = [record.kind, record.reason, detail_text(record.detail, full=self._full)]
        return Text("event", "dim"), _lines_of(": ".join(filter(None, parts)), "dim")

    def _cut(self, text: str | None) -> str:
        return (text or "") if self._full else shortened(text or "", _SHORT_CHARACTERS)

    def _call(self, name: str | None, arguments: Any) -> str:
        return f"{name}({arguments_text(arguments, full=self._full)})"

    def _message(self, message: Message) -> str:
        requests = [f"asks for {self._call(call.get('name'), call.get('args'))}" for call in message.tool_calls]
        text = _path(message) + " ".join(filter(None, [self._cut(message.text), *requests]))
        text += " (incomplete)" if message.status == "incomplete" else ""
        text += " (edited later)" if message.replaced_by is not None else ""
        return text + (f" ({message.branch})" if message.branch != "main" else "")

    def _tool_call(self, call: ToolCall) -> str:
        attempt = f"attempt {call.attempt}" if call.attempt > 1 else None
        outcome = json_text(call.error if call.error is not None else call.result, full=self._full)
        text = f"{_path(call)}{self._call(call.name, call.arguments)} → {call.status}"
        return _joined(text, attempt, _took(call.duration_ms), outcome=outcome, on_new_line=self._full)

    def _model_call(self, call: ModelCall) -> str:
        text = (
            f"{_path(call)}{call.model or 'a model'}: {call.input_tokens or 0:,} + {call.output_tokens or 0:,} tokens"
        )
        cost = None if call.cost is None else f"${call.cost:.4g}"
        return _joined(text, cost, _took(call.duration_ms), outcome=self._cut(call.error))

    def _run(self, run: Run) -> str:
        """A run without an end is shown as running only while it is the latest one: an earlier one was cut off."""
        is_cut_off = run.outcome == "running" and run.seq < self._latest_run
        user = f"by {run.user_id}" if run.user_id is not None and run.user_id != self._owner else None
        has_tokens = run.input_tokens is not None or run.output_tokens is not None
        tokens = f"{run.input_tokens or 0:,} + {run.output_tokens or 0:,} tokens" if has_tokens else None
        outcome = "no end recorded" if is_cut_off else run.outcome
        text = _joined(outcome, user, _took(run.duration_ms), tokens, outcome=self._cut(run.error))
        opened = f" ({self._opened_as[run.id]})" if run.id in self._opened_as else ""
        return text + opened + (f"  id {run.id}" if self._full else "")


def _lines_of(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style)


def _joined(*parts: str | None, outcome: str, on_new_line: bool = False) -> str:
    separator = ":\n" if on_new_line else ": "
    return ", ".join(filter(None, parts)) + (f"{separator}{outcome}" if outcome else "")


def _took(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else duration_text(milliseconds)


def _is_in_call_rows(message: Message, calls: set[tuple[str | None, str]]) -> bool:
    """Whether the rows of tool calls show all of a message: it is a call's result, or only asks for calls."""
    if message.role == "tool":
        return any(call_id == message.tool_call_id for _, call_id in calls)
    ids = [str(call.get("id")) for call in message.tool_calls]
    has_rows = [(message.message_id, call_id) in calls or (None, call_id) in calls for call_id in ids]
    return not message.text and bool(has_rows) and all(has_rows)


def _path(record: Message | ToolCall | ModelCall) -> str:
    """The path of the record's subgraph, such as ``team › writer``; empty for the root graph."""  # noqa: RUF002
    names = [part.partition(":")[0] for part in record.checkpoint_ns.split("|")]
    is_output = isinstance(record, Message) and (ASIDE in record.marks or record.status == "incomplete")
    if is_output or isinstance(record, ModelCall):
        names.pop()  # the node that called the model
    return f"{' › '.join(names)}: " if any(names) else ""  # noqa: RUF001


def _time_of(record: Record) -> datetime | None:
    moment = record.started_at if isinstance(record, (Run, ToolCall, ModelCall)) else record.created_at
    return moment.astimezone(UTC) if moment is not None else None
