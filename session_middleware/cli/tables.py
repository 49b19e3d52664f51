"""Sessions, archives, sweep results, usage and timelines in a terminal.

Ids stay whole at any width, so that they can be copied: print a table with ``crop=False``. Recorded text
is untrusted: it is never parsed as markup, and line breaks and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from session_middleware.cli import styles
from session_middleware.cli.health import facts_grid, line
from session_middleware.display.text import UNKNOWN, cost_text, duration_text, plural, shortened, visible, visible_line
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
_UNBOUNDED = 1_000_000  # columns
MARK = "\ue000"  # around each word that was found: a character for private use


class Listing:
    """Values, one row each. The first column is an id, with the title under it.

    In a terminal that is too narrow each id is on a line of its own, with its values on the next line.
    """

    def __init__(self, values: Sequence[Any], columns: Mapping[str, str], *, empty: str) -> None:
        self._values = values
        self._columns = columns
        self._empty = empty

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._values:
            yield Text(self._empty, style="dim")
            return
        rows = [[_cell(value, field) for field in self._columns.values()] for value in self._values]
        titles = [_text(getattr(value, "title", None) or "", "dim") for value in self._values]
        table = self._table(rows)
        spare = options.max_width - Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum
        if spare >= 0:
            room = max(name.cell_len for name, *_ in rows) + spare
            for (name, *_), title in zip(rows, titles, strict=True):
                title.truncate(min(room, _TITLE_CELLS), overflow="ellipsis")
                if title:
                    name.append("\n").append_text(title)
            yield table
        else:
            for row, title in zip(rows, titles, strict=True):
                yield from self._lines(row, table.columns, title)
        if any(field.endswith("_at") for field in self._columns.values()):
            yield Text("times are UTC", style="dim")

    def _table(self, rows: Sequence[Sequence[Text]]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
        for name, field in self._columns.items():
            is_number = any(isinstance(getattr(value, field), int | float) for value in self._values)
            table.add_column(name, no_wrap=True, justify="right" if is_number else "left")
        for row in rows:
            table.add_row(*row)
        return table

    def _lines(self, row: Sequence[Text], columns: Sequence[Column], title: Text) -> Iterator[RenderableType]:
        name, *others = row
        name.stylize("bold")
        yield _unbroken(name)
        has_times = sum(field.endswith("_at") for field in self._columns.values()) > 1
        shown = []
        for (label, field), column, cell in zip(tuple(self._columns.items())[1:], columns[1:], others, strict=True):
            if cell.plain == UNKNOWN:
                continue
            if column.justify == "right":
                cell = cell + f" {label.removesuffix('s') if cell.plain == '1' else label}"
            elif has_times and field.endswith("_at"):
                cell = Text(f"{label} ").append_text(cell)
            shown.append(cell)
        title.truncate(_TITLE_CELLS, overflow="ellipsis")
        for text in (title, Text(" · ").join(shown)):
            if text:
                yield Padding(text, (0, 0, 0, 2), expand=False)


def _cell(value: Any, field: str) -> Text:
    content = getattr(value, field)
    if isinstance(content, datetime):
        return Text(f"{content.astimezone(UTC):%Y-%m-%d %H:%M}")
    if isinstance(content, int):
        return Text(f"{content:,}")
    if isinstance(content, float):
        return Text(duration_text(content) if field.endswith("_ms") else cost_text(content))
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
        lines.append(_unbroken(_text(hit.session_id, "bold")))
        parts = visible_line(" ".join(hit.snippet.split())).split(MARK)
        styled = [(part, "bold reverse" if n % 2 else "") for n, part in enumerate(parts)]
        head = _text(f"{hit.created_at.astimezone(UTC):%Y-%m-%d %H:%M}", "dim"), " ", _styled(hit.role), ": "
        lines.append(Padding(Text.assemble(*head, *styled), (0, 0, 0, 2), expand=False))
    return Group(*lines, Text("times are UTC", "dim"))


def comparison_text(found: Comparison) -> RenderableType:
    """The comparison as text, with the lines of changed steps in colours."""
    return Group(*(line((text, _CHANGES.get(text[:2], "")), "") for text in str(found).splitlines()))


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
    facts = facts_of(session)
    del facts["session"]
    rows: list[RenderableType] = []
    day = None
    for record in records if full else _not_repeated(records):
        if record.moment and (of_record := record.moment.astimezone(UTC).date()) != day:
            day = of_record
            rows.append(_row("", Text(), Text(day.isoformat(), style="dim")))
        rows.append(record_row(record, full=full))
    panel = Panel(facts_grid(facts), border_style="dim", padding=(0, 1), expand=False)
    return Group(_unbroken(_text(session.id, "bold")), panel, *rows)


def record_row(record: Record, *, full: bool = False) -> Table:
    """The time, kind and text of a record; unless `full` long text is cut."""
    kind = record.role if isinstance(record, Message) else kind_of(record).removesuffix("_call")
    own_id = record.id if isinstance(record, Run) else record.message_id if isinstance(record, Message) else None
    shown_id = f"  id {own_id}" if full and own_id else ""
    text = visible(_path(record) + record.describe(full=full) + shown_id)
    time = f"{record.moment.astimezone(UTC):%H:%M:%S}" if record.moment else ""
    return _row(time, _styled(kind), Text(text, style=_style_of(record)))


def _row(time: str, kind: Text, text: Text) -> Table:
    """A table of one row, so that no row is as wide as the longest text."""
    columns = Column(width=len("00:00:00"), style="dim"), Column(width=len("assistant")), Column(overflow="fold")
    row = Table.grid(*columns, padding=(0, 2, 0, 0))
    row.add_row(time, kind, text)
    return row


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


def _unbroken(name: Text) -> Text:
    """An id on one line of any length, so that it can be copied."""
    name.no_wrap, name.overflow = True, "ignore"
    return name


def _styled(word: str) -> Text:
    return _text(word, _STYLES.get(word, "dim"))


def _text(text: str | None, style: str = "") -> Text:
    return Text(visible_line(UNKNOWN if text is None else text), style=style)
