"""Sessions as pictures in a terminal: a list, one session's timeline, what a sweep ended.

Everything recorded is untrusted text: it is never read as markup, and control characters, which
could move the cursor or recolour the screen, are shown as what they are. Ids are whole at any width: print
with ``crop=False``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from session_middleware.cli.listing import Listing
from session_middleware.display.text import (
    arguments_text,
    duration_text,
    json_text,
    plural,
    second_text,
    shortened,
    visible,
)
from session_middleware.findings import SweepResult
from session_middleware.models import Event, Message, ModelCall, Run, SessionInfo, ToolCall, Usage
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.types import ArchivedSession

Record: TypeAlias = Message | ToolCall | ModelCall | Run | Event

SHORT_CHARACTERS = 110  # two lines of the text column at 80 columns
_TITLE_CHARACTERS = 40
_STATUS_STYLES = {
    "active": "green",
    "idle": "yellow",
    "expired": "red",
    "completed": "blue",
    "failed": "red",
    "abandoned": "dim",
}
_OUTCOME_STYLES = {"ok": "green", "running": "yellow", "error": "red", "refused": "red", "interrupted": "magenta"}
_ROLE_STYLES = {"user": "bold cyan", "assistant": "bold green", "tool": "yellow", "system": "dim"}
_OPENINGS = ("opened", "resumed", "revived", "reopened", "forked")


def sessions_table(sessions: Sequence[SessionInfo]) -> RenderableType:
    """One line a session, in the order given; under its id its title, if it has one."""
    if not sessions:
        return Text("no sessions", style="dim")
    listing = Listing("session", "owner", "status", "last active", "messages", "tools")
    for session in sessions:
        listing.add_row(
            _named(session.id, session.title),
            _text(session.user_id or "–"),  # noqa: RUF001 - an en dash reads as "nobody"
            _text(session.status, _STATUS_STYLES[session.status]),
            _minute(session.last_active_at),
            *(Text(f"{count:,}") for count in (session.message_count, session.tool_call_count)),
        )
    return listing


def archives_table(archived: Sequence[ArchivedSession]) -> RenderableType:
    """Archived sessions, in the order given, each with its file."""
    if not archived:
        return Text("no archived sessions", style="dim")
    listing = Listing("session", "owner", "ended by", "archived", "file")
    for one in archived:
        listing.add_row(
            _named(one.session_id, one.title),
            _text(one.user_id or "–"),  # noqa: RUF001 - as above
            _text(one.reason or ""),
            _minute(one.archived_at),
            _text(one.path),
        )
    return listing


def _named(session_id: str, title: str | None) -> Text:
    """An id, and under it the title, where there is one."""
    name = _text(session_id)
    return name if not title else name.append("\n").append_text(_text(shortened(title, _TITLE_CHARACTERS), "dim"))


def message_line(message: Message) -> Text:
    """A message in a line or two: who, and what was said."""
    who = _text(f"{message.role}: ", _ROLE_STYLES[message.role])
    return Text.assemble(who, _cut(message.text, False, SHORT_CHARACTERS))


def request_text(name: str, arguments: Any) -> Text:
    """A tool call as it is asked for, shortened: ``name(key=value)``."""
    return _text(f"{name}({arguments_text(arguments)})")


def sweep_table(ended: Sequence[SweepResult]) -> RenderableType:
    """What a sweep ended, or would end."""
    if not ended:
        return Text("nothing is due", style="dim")
    listing = Listing("session", "owner", "why", "expired", "action")
    for one in ended:
        listing.add_row(
            _text(one.session_id),
            _text(one.user_id or "–"),  # noqa: RUF001 - as above
            Text("idle since ").append_text(_minute(one.last_active_at)),
            _minute(one.expired_at),
            _text(one.action, "red" if one.action == "delete" else ""),
        )
    return listing


def usage_table(by: str, used: Sequence[Usage]) -> RenderableType:
    """What calls took, a line for each key, and all together."""
    if not used:
        return Text("no calls", style="dim")
    of_models = by != "tool"
    costs = ("in", "out", "cost") if of_models else ()
    listing = Listing(by, "calls", "errors", *costs, "median", "p95", caption=None)
    for one in used:
        listing.add_row(
            _text(one.key or "–"),  # noqa: RUF001 - as above
            *map(Text, _amounts(one, of_models)),
            *(Text("" if took is None else duration_text(took)) for took in (one.p50_ms, one.p95_ms)),
        )
    sums = ("calls", "errors", "input_tokens", "output_tokens", "unpriced")
    costs_known = [one.cost for one in used if one.cost is not None]
    known_cost = sum(costs_known) if costs_known else None
    total = Usage(key=None, **{name: sum(getattr(one, name) for one in used) for name in sums}, cost=known_cost)
    listing.add_row(Text("all", "bold"), *map(Text, _amounts(total, of_models)), Text(), Text())
    if not total.unpriced:
        return listing
    return Group(listing, Text(f"{plural(total.unpriced, 'call')} of unknown price not in the cost", style="dim"))


def _amounts(used: Usage, of_models: bool) -> list[str]:
    cost = "–" if used.cost is None else f"${used.cost:,.4f}"  # noqa: RUF001 - as above
    took = [f"{used.input_tokens:,}", f"{used.output_tokens:,}", cost] if of_models else []
    return [f"{used.calls:,}", f"{used.errors:,}", *took]


def timeline(session: SessionInfo, records: Iterable[Record], *, full: bool = False) -> RenderableType:
    """A session from its first event to its last: a panel of facts, then a row for each record.

    Unless `full`, long text is cut to about two lines, a tool message is left to the row of the
    call it answers and a model call to its answer, and the event with which a run opened the session
    is told in the run's row. What was said and done in a subgraph is told with the way to it.
    """
    records = [_by_another(record, session) for record in records]
    runs = {} if full else _openings(records)
    latest = max((record.seq for record in records if isinstance(record, Run)), default=0)
    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(no_wrap=True, style="dim")
    rows.add_column(no_wrap=True)
    rows.add_column(ratio=1, overflow="fold")
    day = None
    for record in records if full else _folded(records, runs):
        moment = _time_of(record)
        if moment is not None and moment.date() != day:
            day = moment.date()
            rows.add_row(Text(""), Text(""), Text(day.isoformat(), style="dim"))
        rows.add_row(Text(f"{moment:%H:%M:%S}" if moment else ""), *_row(record, full, runs, latest))
    return Group(_header(session), rows)


def _by_another(record: Record, session: SessionInfo) -> Record:
    """A run says who ran it where that is not the owner."""
    is_owner_s = isinstance(record, Run) and record.user_id == session.user_id
    return record.model_copy(update={"user_id": None}) if is_owner_s else record


# The panel


def _header(session: SessionInfo) -> RenderableType:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if session.title:
        facts.add_row("title", _text(session.title))
    facts.add_row("owner", _text(session.user_id or "nobody: open to everyone"))
    if session.group_id:
        facts.add_row("group", _text(session.group_id))
    status = _text(session.status, _STATUS_STYLES[session.status])
    facts.add_row("status", Text.assemble(status, (f", last {session.opened_as}", "dim")))
    facts.add_row("opened", _moment(session.created_at))
    facts.add_row("last active", _moment(session.last_active_at))
    if session.expires_at is not None:
        word = "expired" if session.status == "expired" else "expires"
        facts.add_row(word, _moment(session.expires_at).append("  (all times are UTC)", style="dim"))
    if session.pinned is not None:
        why = ", by ".join(filter(None, (session.pinned.why, session.pinned.by)))
        facts.add_row("pinned", _text(why or "yes"))
    facts.add_row("holds", Text(_counts(session)))
    name = _text(session.id, "bold")
    name.no_wrap, name.overflow = True, "ignore"
    return Group(name, Panel(facts, border_style="dim", padding=(0, 1)))


def _counts(session: SessionInfo) -> str:
    parts = [
        plural(session.run_count, "run"),
        plural(session.message_count, "message"),
        plural(session.tool_call_count, "tool call"),
        plural(session.error_count, "error"),
        f"{session.input_tokens:,} + {session.output_tokens:,} tokens",
    ]
    return ", ".join(parts)


# The rows


def _openings(records: Sequence[Record]) -> dict[str, str]:
    """How each run found its session, where that is all its first event has to say: run id to kind."""
    runs = {record.id for record in records if isinstance(record, Run)}
    events = [record for record in records if isinstance(record, Event)]
    return {event.run_id: event.kind for event in events if event.run_id in runs and _says_only_how(event)}


def _says_only_how(event: Event) -> bool:
    return event.kind in ("opened", "resumed") and event.reason is None and not event.detail


def _folded(records: Sequence[Record], runs: dict[str, str]) -> Iterator[Record]:
    """The records without those that another row tells."""
    called = {(record.message_id, record.tool_call_id) for record in records if isinstance(record, ToolCall)}
    for record in records:
        if isinstance(record, Message) and _told_by_calls(record, called):
            continue
        if isinstance(record, Event) and record.run_id in runs and _says_only_how(record):
            continue
        if isinstance(record, ModelCall) and record.error is None:
            continue
        yield record


def _told_by_calls(message: Message, called: set[tuple[str | None, str]]) -> bool:
    if message.role == "tool":
        return any(call_id == message.tool_call_id for _, call_id in called)
    ids = [str(call.get("id")) for call in message.tool_calls]
    asked = [(message.message_id, call_id) in called or (None, call_id) in called for call_id in ids]
    return not message.text and bool(asked) and all(asked)


def _row(record: Record, full: bool, runs: dict[str, str], latest_run: int) -> tuple[Text, Text]:
    if isinstance(record, Message):
        return _message_row(record, full)
    if isinstance(record, ToolCall):
        return Text("tool", style=_ROLE_STYLES["tool"]), _way(record).append_text(_tool_text(record, full))
    if isinstance(record, ModelCall):
        return Text("model", style="dim"), _way(record).append_text(_model_text(record, full))
    if isinstance(record, Run):
        return Text("run", style="dim"), _run_text(record, full, runs.get(record.id), record.seq < latest_run)
    return Text("event", style="dim"), _event_text(record, full)


def _message_row(message: Message, full: bool) -> tuple[Text, Text]:
    text = _way(message).append_text(_cut(message.text, full, SHORT_CHARACTERS))
    for call in message.tool_calls:
        asked = f"{call.get('name')}({arguments_text(call.get('args'), full=full)})"
        text.append_text(_text(f"{' ' if message.text else ''}asks for {asked}", "dim"))
    if message.status == "incomplete":
        text.append(" (incomplete)", style="yellow")
    if message.replaced_by is not None:
        text.append(" (edited later)", style="dim")
    if message.branch != "main":
        text.append_text(_text(f" ({message.branch})", "dim"))
    return _text(message.role, _ROLE_STYLES[message.role]), text


def _tool_text(call: ToolCall, full: bool) -> Text:
    text = Text.assemble(_text(call.name, "bold"), _text(f"({arguments_text(call.arguments, full=full)})"))
    text.append(" → ").append(call.status, style=_OUTCOME_STYLES[call.status])
    if call.attempt > 1:
        text.append(f", attempt {call.attempt}")
    if call.duration_ms is not None:
        text.append(f", {duration_text(call.duration_ms)}", style="dim")
    outcome = call.error if call.error is not None else call.result
    if outcome is not None:
        text.append(":\n" if full else ": ").append_text(
            _text(json_text(outcome, full=full), "red" if call.error else "")
        )
    return text


def _model_text(call: ModelCall, full: bool) -> Text:
    text = Text.assemble(_text(call.model or "a model"), (f": {call.input_tokens or 0:,}", "dim"))
    text.append(f" + {call.output_tokens or 0:,} tokens", style="dim")
    if call.cost is not None:
        text.append(f", ${call.cost:.4g}", style="dim")
    if call.duration_ms is not None:
        text.append(f", {duration_text(call.duration_ms)}", style="dim")
    if call.error is not None:
        text.append(": ").append_text(_cut(call.error, full, SHORT_CHARACTERS)).stylize("red")
    return text


def _way(record: Message | ToolCall | ModelCall) -> Text:
    """The way to the subgraph it happened in, such as ``team › writer``; nothing in the graph itself."""  # noqa: RUF002
    names = [part.partition(":")[0] for part in record.checkpoint_ns.split("|")]
    is_heard = isinstance(record, Message) and (ASIDE in record.marks or record.status == "incomplete")
    is_models = isinstance(record, ModelCall) or is_heard
    way = " › ".join(names[:-1] if is_models else names)  # noqa: RUF001 - a model's own node says nothing
    return Text(f"{visible(way)}: ", style="dim") if way else Text("")


def _run_text(run: Run, full: bool, opening: str | None, overtaken: bool) -> Text:
    """A run that still says "running" after another began was most likely killed: that much is not said."""
    outcome = "no end recorded" if run.outcome == "running" and overtaken else run.outcome
    text = Text("", style="dim").append(outcome, style=_OUTCOME_STYLES[run.outcome])
    if run.user_id is not None:
        text.append_text(_text(f", by {run.user_id}"))
    if run.duration_ms is not None:
        text.append(f", {duration_text(run.duration_ms)}")
    if run.input_tokens is not None or run.output_tokens is not None:
        text.append(f", {run.input_tokens or 0:,} + {run.output_tokens or 0:,} tokens")
    if run.error is not None:
        text.append(": ").append_text(_cut(run.error, full, SHORT_CHARACTERS))
    if opening is not None:
        text.append(f" ({opening})")
    if full:
        text.append_text(_text(f"  id {run.id}"))
    return text


def _event_text(event: Event, full: bool) -> Text:
    text = Text.assemble(_text(event.kind, "dim" if event.kind in _OPENINGS else ""))
    if event.reason is not None:
        text.append_text(_text(f": {event.reason}", "dim"))
    if event.detail:
        text.append_text(_text(f" {json_text(event.detail, full=full)}", "dim"))
    return text


def _time_of(record: Record) -> datetime | None:
    moment = record.started_at if isinstance(record, (Run, ToolCall, ModelCall)) else record.created_at
    return moment.astimezone(UTC) if moment is not None else None


# Words


def _text(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style)


def _cut(text: str, full: bool, limit: int) -> Text:
    return _text(text if full else shortened(text, limit))


def _moment(moment: datetime) -> Text:
    return Text(second_text(moment))


def _minute(moment: datetime) -> Text:
    return Text(f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}")
