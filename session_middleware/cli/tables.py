"""Sessions, archives, sweep results, usage and timelines in a terminal.

Ids stay whole at any width, so that they can be copied: print a table with ``crop=False``. Recorded text
is untrusted: it is never parsed as markup, and line breaks and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from session_middleware.cli import styles
from session_middleware.cli.health import Sentence, facts_grid
from session_middleware.cli.output import SIGNS
from session_middleware.display.text import duration_text, plural, shortened, visible, visible_line
from session_middleware.experiments.comparison import Comparison
from session_middleware.memory.results import SearchHit
from session_middleware.models import (
    Event,
    Message,
    ModelCall,
    Question,
    Run,
    SessionFields,
    ToolCall,
    Usage,
    facts_of,
)
from session_middleware.storage.record_entries import ASIDE
from session_middleware.storage.timeline import kind_of
from session_middleware.storage.types import Record

_STYLES = {  # of a status, an outcome, an action and a kind of record
    "active": styles.GREEN,
    "idle": styles.ORANGE,
    "expired": styles.RED,
    "completed": styles.BLUE,
    "failed": styles.RED,
    "running": styles.ORANGE,
    "error": styles.RED,
    "refused": styles.RED,
    "interrupted": styles.PURPLE,
    "waiting": styles.ORANGE,
    "question": styles.ORANGE,
    "delete": styles.RED,
    "user": f"bold {styles.TEAL}",
    "assistant": f"bold {styles.GREEN}",
    "tool": styles.ORANGE,
}
_SESSIONS = {  # the name of a column, and the field that it shows
    "session": "id",
    "owner": "user_id",
    "status": "status",
    "last active": "last_active_at",
    "messages": "message_count",
    "tools": "tool_call_count",
}
_ARCHIVES = {
    "session": "session_id",
    "owner": "user_id",
    "ended by": "reason",
    "archived": "archived_at",
    "file": "path",
}
_SWEEP = {
    "session": "session_id",
    "owner": "user_id",
    "why": "reason",
    "last active": "last_active_at",
    "expired": "expired_at",
    "action": "action",
}
_USAGE = {
    "calls": "calls",
    "errors": "errors",
    "in": "input_tokens",
    "out": "output_tokens",
    "cost": "cost",
    "median": "p50_ms",
    "p95": "p95_ms",
}
_TITLE_CELLS = 40
_MESSAGE_CHARACTERS = 110
_FOLDED = frozenset({"user_id", "path"})  # fields that may take several lines
_UNBOUNDED = 1_000_000  # columns
_NARROW = 60  # columns, below which a timeline has the text below the kind
MARK = "\0"  # around each word that was found; no text has it
_NONE = "–"  # noqa: RUF001 - an en dash reads as "none"


class Listing:
    """Values, one row each. The first column is an id, with the title under it.

    A terminal that is too narrow shows each id on a line of its own and its values on the next line. Output
    that is not a terminal has lines of any width.
    """

    def __init__(self, values: Sequence[Any], columns: Mapping[str, str], *, empty: str) -> None:
        self._values = values
        self._columns = columns
        self._empty = empty

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._values:
            yield Text(self._empty, style="dim")
            return
        has_times = any(field.endswith("_at") for field in self._columns.values())
        rows = [[_cell(value, field) for field in self._columns.values()] for value in self._values]
        titles = [_text(getattr(value, "title", None) or "", "dim") for value in self._values]
        if options.ascii_only:  # so that ids can be told apart
            for name, *_ in rows:
                name.plain = name.plain.translate(SIGNS).encode("ascii", "backslashreplace").decode()
        table = self._table(rows)
        spare = options.max_width - _width_of(console, options, table)
        if spare >= 0 or not console.is_terminal:
            room = max(name.cell_len for name, *_ in rows) + spare if console.is_terminal else _UNBOUNDED
            for (name, *_), title in zip(rows, titles, strict=True):
                title.truncate(min(room, _TITLE_CELLS), overflow="ellipsis")
                if title:
                    name.append("\n").append_text(title)
            table.caption, table.caption_justify = "times are UTC" if has_times else None, "right"
            width = _width_of(console, options, table)
            yield from console.render(table, options.update(width=max(width, options.max_width)))
            return
        for (name, *others), title in zip(rows, titles, strict=True):
            name.stylize("bold")
            yield from console.render(name, options.update(width=_UNBOUNDED, no_wrap=True))
            named = zip(tuple(self._columns)[1:], table.columns[1:], others, strict=True)
            values = [
                cell + f" {label.removesuffix('s') if cell.plain == '1' else label}"
                if column.justify == "right"
                else cell
                for label, column, cell in named
                if cell.plain != _NONE
            ]
            title.truncate(_TITLE_CELLS, overflow="ellipsis")
            lines = [*([title] if title else ()), Text(" · ").join(values)]
            yield from (Padding(line, (0, 0, 0, 2), expand=False) for line in lines)
        if has_times:
            yield Text("times are UTC", style="dim")

    def _table(self, rows: Sequence[Sequence[Text]]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
        for name, field in self._columns.items():
            table.add_column(name, overflow="fold", no_wrap=field not in _FOLDED)
            is_number = any(isinstance(getattr(value, field), int | float) for value in self._values)
            table.columns[-1].justify = "right" if is_number else "left"
        for row in rows:
            table.add_row(*row)
        return table


def _width_of(console: Console, options: ConsoleOptions, table: Table) -> int:
    return Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum


def _cell(value: Any, field: str) -> Text:
    content = getattr(value, field)
    if isinstance(content, datetime):
        return Text(f"{content.astimezone(UTC):%Y-%m-%d %H:%M}")
    if isinstance(content, int):
        return Text(f"{content:,}")
    if isinstance(content, float):
        return Text(duration_text(content) if field.endswith("_ms") else f"${content:,.4f}")
    if field == "status" and getattr(value, "waiting_count", None):
        return _styled(content).append(", ").append_text(_styled("waiting"))
    return _styled(content) if field in ("status", "action") else _text(content)


sessions_table = partial(Listing, columns=_SESSIONS, empty="no sessions")
archives_table = partial(Listing, columns=_ARCHIVES, empty="no archived sessions")
sweep_table = partial(Listing, columns=_SWEEP, empty="nothing is due")


def usage_table(by: str, usage: Sequence[Usage]) -> RenderableType:
    """The usage of each key, and the total."""
    sums = ("calls", "errors", "input_tokens", "output_tokens", "unpriced")
    costs = [each.cost for each in usage if each.cost is not None]
    total = Usage(
        key="all",
        cost=sum(costs) if costs else None,
        **{name: sum(getattr(each, name) for each in usage) for name in sums},
    )
    shown = {name: field for name, field in _USAGE.items() if by != "tool" or name not in ("in", "out", "cost")}
    listing = Listing((*usage, total) if usage else (), {by: "key", **shown}, empty="no calls")
    if not total.unpriced:
        return listing
    return Group(listing, Text(f"{plural(total.unpriced, 'call')} of unknown price not in the cost", style="dim"))


def search_table(hits: Sequence[SearchHit]) -> RenderableType:
    """Two lines for each result: its session, and the excerpt with the words that were found."""
    if not hits:
        return Text("no messages", style="dim")
    lines: list[RenderableType] = []
    for hit in hits:
        lines.append(Text(visible_line(hit.session_id), "bold", no_wrap=True, overflow="ignore"))
        parts = visible_line(" ".join(hit.snippet.split()).replace(MARK, "\ue000")).split("\ue000")
        styled = [(part, "bold reverse" if n % 2 else "") for n, part in enumerate(parts)]
        head = _text(f"{hit.created_at.astimezone(UTC):%Y-%m-%d %H:%M}", "dim"), " ", _styled(hit.role), ": "
        lines.append(Padding(Text.assemble(*head, *styled), (0, 0, 0, 2), expand=False))
    return Group(*lines, Text("times are UTC", "dim"))


def comparison_text(found: Comparison) -> RenderableType:
    """The comparison as text, with the lines of changed steps in colours."""
    return Group(*(Sentence(Text(line, style=_CHANGES.get(line[:2], ""))) for line in str(found).splitlines()))


_CHANGES = {"~ ": styles.ORANGE, "- ": styles.RED, "+ ": styles.GREEN}


def message_line(message: Message) -> Text:
    """The role and the shortened text of a message."""
    return Text.assemble(_styled(message.role), ": ", visible_line(shortened(message.text, _MESSAGE_CHARACTERS)))


def timeline(session: SessionFields, records: Sequence[Record], *, full: bool = False) -> RenderableType:
    """The facts about a session, and one row for each record.

    Unless `full`, long text is cut, and a record that another row describes is left out: a tool message whose
    tool call has a row, a model call that did not fail, and the event with which a run resumed the session. A
    record of a subgraph begins with the subgraph's path.
    """
    chosen = [_described(record, full=full) for record in (records if full else _not_repeated(records))]
    facts = facts_of(session)
    del facts["session"]
    title = _text(session.id, "bold")
    title.no_wrap, title.overflow = True, "ignore"
    return Group(title, Panel(facts_grid(facts), border_style="dim", padding=(0, 1)), _Timeline(chosen))


class _Timeline:
    """A row for each record: its time, kind and text. In a narrow terminal the text is below the others."""

    def __init__(self, records: Sequence[tuple[datetime | None, str, Text]]) -> None:
        self._records = records

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_narrow, day = options.max_width < _NARROW, None
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
        for moment, kind, text in self._records:
            if moment and moment.date() != day:
                day = moment.date()
                shown = Text(day.isoformat(), style="dim")
                if is_narrow:
                    yield shown
                else:
                    grid.add_row("", "", shown)
            time = f"{moment:%H:%M:%S}" if moment else ""
            if is_narrow:
                yield Text.assemble((time, "dim"), " " if time else "", _styled(kind))
                yield Padding(text, (0, 0, 0, 2), expand=False)
            else:
                grid.add_row(time, _styled(kind), text)
        if not is_narrow:
            yield grid


def record_line(record: Record, *, full: bool = False) -> Text:
    """The time, kind and text of a record on one line; with `full` on as many lines as its text has."""
    moment, kind, text = _described(record, full=full)
    return Text.assemble(f"{moment:%H:%M:%S}" if moment else " " * 8, "  ", _styled(kind), "  ", text)


def _described(record: Record, *, full: bool) -> tuple[datetime | None, str, Text]:
    """The time, kind and text of a record."""
    moment = record.moment
    kind = record.role if isinstance(record, Message) else kind_of(record).removesuffix("_call")
    own_id = record.id if isinstance(record, Run) else record.message_id if isinstance(record, Message) else None
    shown_id = f"  id {own_id}" if full and own_id else ""
    text = visible(_path(record) + record.describe(full=full) + shown_id)
    return moment and moment.astimezone(UTC), kind, Text(text, style=_style_of(record))


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
    is_output = isinstance(record, Message) and (ASIDE in record.flags or record.status == "incomplete")
    if is_output or isinstance(record, ModelCall):
        names.pop()  # the node that called the model
    return f"{' › '.join(names)}: " if any(names) else ""  # noqa: RUF001


def _style_of(record: Record) -> str:
    if isinstance(record, (Message, ToolCall, Question)):
        return _STYLES.get(record.status, "")
    if isinstance(record, Run):
        return _STYLES.get(record.outcome, "dim")
    return styles.RED if isinstance(record, ModelCall) and record.error else "dim"


def _styled(word: str) -> Text:
    return _text(word, _STYLES.get(word, "dim"))


def _text(text: str | None, style: str = "") -> Text:
    return Text(visible_line(_NONE if text is None else text), style=style)
