"""Sessions, archives, sweep results, usage and timelines in a terminal.

Ids stay whole at any width, so that they can be copied: print a table with ``crop=False``. Recorded text
is untrusted: it is never parsed as markup, and line breaks and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from session_middleware.cli.health import facts_grid
from session_middleware.display.text import duration_text, plural, shortened, visible, visible_line
from session_middleware.models import (
    Event,
    Message,
    ModelCall,
    Run,
    SessionInfo,
    SweepResult,
    ToolCall,
    Usage,
    facts_of,
)
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.timeline import kind_of
from session_middleware.storage.types import ArchivedSession, Record

_STYLES = {  # of a status, an outcome, an action and a kind of record
    "active": "green",
    "idle": "yellow",
    "expired": "red",
    "completed": "blue",
    "failed": "red",
    "running": "yellow",
    "error": "red",
    "refused": "red",
    "interrupted": "magenta",
    "delete": "red",
    "user": "bold cyan",
    "assistant": "bold green",
    "tool": "yellow",
}
_TITLE_CHARACTERS = 40
_MESSAGE_CHARACTERS = 110
_NUMBERS = frozenset({"messages", "tools", "calls", "errors", "in", "out", "cost", "median", "p95"})
_FOLDED = frozenset({"owner", "file"})  # columns that may take several lines
_UNBOUNDED = 1_000_000  # columns
_NONE = "–"  # noqa: RUF001 - an en dash reads as "none"


class Listing:
    """Rows that begin with an id.

    A terminal that is too narrow shows each id on a line of its own and its values on the next line. Output
    that is not a terminal has lines of any width.
    """

    def __init__(
        self, empty: str, values: Iterable[Any], columns: Mapping[str, Callable[[Any], Text]], caption: str = ""
    ) -> None:
        self._empty = empty
        self._columns = tuple(columns)
        self._rows = [[cell(value) for cell in columns.values()] for value in values]
        self._caption = caption or None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._rows:
            yield Text(self._empty, style="dim")
            return
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, caption=self._caption)
        table.caption_justify = "right"
        for name in self._columns:
            table.add_column(name, overflow="fold", no_wrap=name not in _FOLDED)
            table.columns[-1].justify = "right" if name in _NUMBERS else "left"
        for row in self._rows:
            table.add_row(*row)
        width = Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum
        if width <= options.max_width or not console.is_terminal:
            yield from console.render(table, options.update(width=max(width, options.max_width)))
            return
        for first, *others in self._rows:
            yield from console.render(first, options.update(width=_UNBOUNDED, no_wrap=True))
            values = [
                cell + f" {name.removesuffix('s') if cell.plain == '1' else name}" if name in _NUMBERS else cell
                for name, cell in zip(self._columns[1:], others, strict=True)
                if cell.plain
            ]
            yield Padding(Text(" · ").join(values), (0, 0, 0, 2))


def sessions_table(sessions: Sequence[SessionInfo]) -> RenderableType:
    """One row for each session, in the given order. A title is shown under the id."""
    columns: dict[str, Callable[[SessionInfo], Text]] = {
        "session": lambda session: _titled(session.id, session.title),
        "owner": lambda session: _text(session.user_id),
        "status": lambda session: _styled(session.status),
        "last active": lambda session: _minute(session.last_active_at),
        "messages": lambda session: Text(f"{session.message_count:,}"),
        "tools": lambda session: Text(f"{session.tool_call_count:,}"),
    }
    return Listing("no sessions", sessions, columns, "times are UTC")


def archives_table(archived: Sequence[ArchivedSession]) -> RenderableType:
    """One row for each archived session, with its file, in the given order."""
    columns: dict[str, Callable[[ArchivedSession], Text]] = {
        "session": lambda each: _titled(each.session_id, each.title),
        "owner": lambda each: _text(each.user_id),
        "ended by": lambda each: _text(each.reason),
        "archived": lambda each: _minute(each.archived_at),
        "file": lambda each: _text(each.path),
    }
    return Listing("no archived sessions", archived, columns, "times are UTC")


def sweep_table(results: Sequence[SweepResult]) -> RenderableType:
    """The sessions that a sweep ended or would end."""
    columns: dict[str, Callable[[SweepResult], Text]] = {
        "session": lambda each: _text(each.session_id),
        "owner": lambda each: _text(each.user_id),
        "why": lambda each: Text("idle since ").append_text(_minute(each.last_active_at)),
        "expired": lambda each: _minute(each.expired_at),
        "action": lambda each: _styled(each.action),
    }
    return Listing("nothing is due", results, columns, "times are UTC")


def usage_table(by: str, usage: Sequence[Usage]) -> RenderableType:
    """The usage of each key, and the total."""
    sums = ("calls", "errors", "input_tokens", "output_tokens", "unpriced")
    costs = [each.cost for each in usage if each.cost is not None]
    total = Usage(
        key="all",
        cost=sum(costs) if costs else None,
        **{name: sum(getattr(each, name) for each in usage) for name in sums},
    )
    columns: dict[str, Callable[[Usage], Text]] = {
        by: lambda each: _text(each.key, "bold" if each is total else ""),
        "calls": lambda each: Text(f"{each.calls:,}"),
        "errors": lambda each: Text(f"{each.errors:,}"),
        "in": lambda each: Text(f"{each.input_tokens:,}"),
        "out": lambda each: Text(f"{each.output_tokens:,}"),
        "cost": lambda each: Text(_NONE if each.cost is None else f"${each.cost:,.4f}"),
        "median": lambda each: Text("" if each.p50_ms is None else duration_text(each.p50_ms)),
        "p95": lambda each: Text("" if each.p95_ms is None else duration_text(each.p95_ms)),
    }
    if by == "tool":
        del columns["in"], columns["out"], columns["cost"]
    listing = Listing("no calls", (*usage, total) if usage else (), columns)
    if not total.unpriced:
        return listing
    return Group(listing, Text(f"{plural(total.unpriced, 'call')} of unknown price not in the cost", style="dim"))


def message_line(message: Message) -> Text:
    """The role and the shortened text of a message."""
    return Text.assemble(_styled(message.role), ": ", visible_line(shortened(message.text, _MESSAGE_CHARACTERS)))


def timeline(session: SessionInfo, records: Sequence[Record], *, full: bool = False) -> RenderableType:
    """The facts about a session, and one row for each record.

    Unless `full`, long text is cut, and a record that another row describes is left out: a tool message whose
    tool call has a row, a model call that did not fail, and the event with which a run resumed the session. A
    record of a subgraph begins with the subgraph's path.
    """
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    day = None
    for record in records if full else _not_repeated(records):
        moment = record.created_at if isinstance(record, (Message, Event)) else record.started_at
        moment = moment and moment.astimezone(UTC)
        if moment and moment.date() != day:
            day = moment.date()
            grid.add_row("", "", Text(day.isoformat(), style="dim"))
        kind = record.role if isinstance(record, Message) else kind_of(record).removesuffix("_call")
        text = (
            _path(record)
            + record.describe(full=full)
            + (f"  id {record.id}" if full and isinstance(record, Run) else "")
        )
        grid.add_row(
            f"{moment:%H:%M:%S}" if moment else "", _styled(kind), Text(visible(text), style=_style_of(record))
        )
    facts = facts_of(session)
    del facts["session"]
    title = _text(session.id, "bold")
    title.no_wrap, title.overflow = True, "ignore"
    return Group(title, Panel(facts_grid(facts), border_style="dim", padding=(0, 1)), grid)


def _not_repeated(records: Sequence[Record]) -> Iterable[Record]:
    calls = {record.tool_call_id for record in records if isinstance(record, ToolCall)}
    for record in records:
        if isinstance(record, Message):
            ids = {str(call.get("id")) for call in record.tool_calls}
            is_request = not record.text and bool(ids) and ids <= calls
            is_repeated = is_request or (record.role == "tool" and record.tool_call_id in calls)
        elif isinstance(record, Event):
            is_repeated = record.kind == "resumed" and record.reason is None and not record.detail
        else:
            is_repeated = isinstance(record, ModelCall) and record.error is None
        if not is_repeated:
            yield record


def _path(record: Record) -> str:
    """The path of the record's subgraph, such as ``team › writer``; empty for the root graph."""  # noqa: RUF002
    names = [part.partition(":")[0] for part in getattr(record, "checkpoint_ns", "").split("|")]
    is_output = isinstance(record, Message) and (ASIDE in record.marks or record.status == "incomplete")
    if is_output or isinstance(record, ModelCall):
        names.pop()  # the node that called the model
    return f"{' › '.join(names)}: " if any(names) else ""  # noqa: RUF001


def _style_of(record: Record) -> str:
    if isinstance(record, (Message, ToolCall)):
        return _STYLES.get(record.status, "")
    if isinstance(record, Run):
        return _STYLES.get(record.outcome, "dim")
    return "red" if isinstance(record, ModelCall) and record.error else "dim"


def _styled(word: str) -> Text:
    return _text(word, _STYLES.get(word, "dim"))


def _text(text: str | None, style: str = "") -> Text:
    return Text(visible_line(text or _NONE), style=style)


def _titled(session_id: str, title: str | None) -> Text:
    name = _text(session_id)
    return name if not title else name.append("\n").append_text(_text(shortened(title, _TITLE_CHARACTERS), "dim"))


def _minute(moment: datetime) -> Text:
    return Text(f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}")
