"""A session's timeline in a terminal: a panel of facts, then one row for each record.

Print it with ``crop=False``, so that the id stays whole. Recorded text is untrusted: it is never parsed as
markup, and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from session_middleware.cli.tables import STATUS_STYLES, text_of
from session_middleware.display.text import arguments_text, duration_text, json_text, plural, second_text, shortened
from session_middleware.models import Event, Message, ModelCall, Run, SessionInfo, ToolCall
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.timeline import Entry

_SHORT_CHARACTERS = 110  # two lines of the text column at 80 columns
_OUTCOME_STYLES = {"ok": "green", "running": "yellow", "error": "red", "refused": "red", "interrupted": "magenta"}
_ROLE_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "yellow", "system": "dim"}
_OPENINGS = ("opened", "resumed", "revived", "reopened", "forked")


def message_line(message: Message) -> Text:
    """The role and the shortened text of a message."""
    role = text_of(f"{message.role}: ", _ROLE_STYLES[message.role])
    return Text.assemble(role, text_of(shortened(message.text, _SHORT_CHARACTERS)))


def timeline(session: SessionInfo, records: Iterable[Entry], *, full: bool = False) -> RenderableType:
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
    status = text_of(session.status, STATUS_STYLES[session.status])
    facts.add_row("status", Text.assemble(status, (f", last {session.opened_as}", "dim")))
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
    """The rows of one timeline; what they show depends on the session's owner and on the other records."""

    def __init__(self, session: SessionInfo, records: Sequence[Entry], *, full: bool) -> None:
        self._owner = session.user_id
        self._records = records
        self._full = full
        runs = [record for record in records if isinstance(record, Run)]
        self._latest_run = max((run.seq for run in runs), default=0)
        self._run_ids = set() if full else {run.id for run in runs}
        self._opened_as = {e.run_id: e.kind for e in records if isinstance(e, Event) and self._is_in_run_row(e)}

    def visible_records(self) -> Iterator[Entry]:
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

    def row(self, record: Entry) -> tuple[Text, Text]:
        if isinstance(record, Message):
            return text_of(record.role, _ROLE_STYLES[record.role]), self._message(record)
        if isinstance(record, ToolCall):
            return Text("tool", style=_ROLE_STYLES["tool"]), self._tool_call(record)
        if isinstance(record, ModelCall):
            return Text("model", style="dim"), self._model_call(record)
        if isinstance(record, Run):
            return Text("run", style="dim"), self._run(record)
        return Text("event", style="dim"), self._event(record)

    def _cut(self, text: str) -> Text:
        return text_of(text if self._full else shortened(text, _SHORT_CHARACTERS))

    def _message(self, message: Message) -> Text:
        text = _path(message).append_text(self._cut(message.text))
        for call in message.tool_calls:
            request = f"{call.get('name')}({arguments_text(call.get('args'), full=self._full)})"
            text.append_text(text_of(f"{' ' if message.text else ''}asks for {request}", "dim"))
        if message.status == "incomplete":
            text.append(" (incomplete)", style="yellow")
        if message.replaced_by is not None:
            text.append(" (edited later)", style="dim")
        if message.branch != "main":
            text.append_text(text_of(f" ({message.branch})", "dim"))
        return text

    def _tool_call(self, call: ToolCall) -> Text:
        text = _path(call).append_text(text_of(call.name, "bold"))
        text.append_text(text_of(f"({arguments_text(call.arguments, full=self._full)})"))
        text.append(" → ").append(call.status, style=_OUTCOME_STYLES[call.status])
        if call.attempt > 1:
            text.append(f", attempt {call.attempt}")
        if call.duration_ms is not None:
            text.append(f", {duration_text(call.duration_ms)}", style="dim")
        outcome = call.error if call.error is not None else call.result
        if outcome is not None:
            text.append(":\n" if self._full else ": ")
            text.append_text(text_of(json_text(outcome, full=self._full), "red" if call.error else ""))
        return text

    def _model_call(self, call: ModelCall) -> Text:
        text = _path(call).append_text(text_of(call.model or "a model"))
        text.append(f": {call.input_tokens or 0:,} + {call.output_tokens or 0:,} tokens", style="dim")
        if call.cost is not None:
            text.append(f", ${call.cost:.4g}", style="dim")
        if call.duration_ms is not None:
            text.append(f", {duration_text(call.duration_ms)}", style="dim")
        if call.error is not None:
            text.append(": ").append_text(self._cut(call.error)).stylize("red")
        return text

    def _run(self, run: Run) -> Text:
        """A run without an end is shown as running only while it is the latest one: an earlier one was cut off."""
        is_cut_off = run.outcome == "running" and run.seq < self._latest_run
        text = Text("", style="dim")
        text.append("no end recorded" if is_cut_off else run.outcome, style=_OUTCOME_STYLES[run.outcome])
        if run.user_id is not None and run.user_id != self._owner:
            text.append_text(text_of(f", by {run.user_id}"))
        if run.duration_ms is not None:
            text.append(f", {duration_text(run.duration_ms)}")
        if run.input_tokens is not None or run.output_tokens is not None:
            text.append(f", {run.input_tokens or 0:,} + {run.output_tokens or 0:,} tokens")
        if run.error is not None:
            text.append(": ").append_text(self._cut(run.error))
        if run.id in self._opened_as:
            text.append(f" ({self._opened_as[run.id]})")
        if self._full:
            text.append_text(text_of(f"  id {run.id}"))
        return text

    def _event(self, event: Event) -> Text:
        text = Text.assemble(text_of(event.kind, "dim" if event.kind in _OPENINGS else ""))
        if event.reason is not None:
            text.append_text(text_of(f": {event.reason}", "dim"))
        if event.detail:
            text.append_text(text_of(f" {json_text(event.detail, full=self._full)}", "dim"))
        return text


def _is_in_call_rows(message: Message, calls: set[tuple[str | None, str]]) -> bool:
    """Whether the rows of tool calls show all of a message: it is a call's result, or only asks for calls."""
    if message.role == "tool":
        return any(call_id == message.tool_call_id for _, call_id in calls)
    ids = [str(call.get("id")) for call in message.tool_calls]
    has_rows = [(message.message_id, call_id) in calls or (None, call_id) in calls for call_id in ids]
    return not message.text and bool(has_rows) and all(has_rows)


def _path(record: Message | ToolCall | ModelCall) -> Text:
    """The path of the record's subgraph, such as ``team › writer``; empty for the root graph."""  # noqa: RUF002
    names = [part.partition(":")[0] for part in record.checkpoint_ns.split("|")]
    is_output = isinstance(record, Message) and (ASIDE in record.marks or record.status == "incomplete")
    if is_output or isinstance(record, ModelCall):
        names.pop()  # the node that called the model
    return text_of(f"{' › '.join(names)}: ", "dim") if any(names) else Text("")  # noqa: RUF001


def _time_of(record: Entry) -> datetime | None:
    moment = record.started_at if isinstance(record, (Run, ToolCall, ModelCall)) else record.created_at
    return moment.astimezone(UTC) if moment is not None else None
