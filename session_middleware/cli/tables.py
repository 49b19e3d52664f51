"""Tables with one row for each session, archive, sweep result or usage key.

Ids stay whole at any width, so that they can be copied: print a table with ``crop=False``. Recorded text
is untrusted: it is never parsed as markup, and line breaks and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from session_middleware.display.text import duration_text, plural, shortened, visible_line
from session_middleware.models import SessionInfo, SweepResult, Usage
from session_middleware.storage.types import ArchivedSession

_STATUS_STYLES = {"active": "green", "idle": "yellow", "expired": "red", "completed": "blue", "failed": "red"}
_TITLE_CHARACTERS = 40
_NUMBERS = frozenset({"messages", "tools", "calls", "errors", "in", "out", "cost", "median", "p95"})
_FOLDED = frozenset({"owner", "file"})  # columns that may take several lines
_UNBOUNDED = 1_000_000  # columns


class Listing:
    """Rows that begin with an id.

    A terminal that is too narrow shows each id on a line of its own and its values on the next line. Output
    that is not a terminal has lines of any width.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[Text]], *, empty: str, caption: str | None
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._empty = empty
        self._caption = caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._rows:
            yield Text(self._empty, style="dim")
            return
        table = self._table()
        width = Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum
        if width <= options.max_width:
            yield table
        elif not console.is_terminal:
            yield from console.render(table, options.update(width=width))
        else:
            for first, *others in self._rows:
                yield from console.render(first, options.update(width=_UNBOUNDED, no_wrap=True))
                values = [
                    cell + f" {name.removesuffix('s') if cell.plain == '1' else name}" if name in _NUMBERS else cell
                    for name, cell in zip(self._columns[1:], others, strict=True)
                    if cell.plain
                ]
                yield Padding(Text(" · ").join(values), (0, 0, 0, 2))

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, caption=self._caption)
        table.caption_justify = "right"
        for name in self._columns:
            table.add_column(name, overflow="fold", no_wrap=name not in _FOLDED)
            table.columns[-1].justify = "right" if name in _NUMBERS else "left"
        for row in self._rows:
            table.add_row(*row)
        return table


def _listing(empty: str, columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> Listing:
    return Listing(columns, rows, empty=empty, caption="times are UTC")


def sessions_table(sessions: Sequence[SessionInfo]) -> RenderableType:
    """One row for each session, in the given order. A title is shown under the id."""
    rows = [
        (
            _titled(session.id, session.title),
            _or_dash(session.user_id),
            status_text(session),
            _minute(session.last_active_at),
            Text(f"{session.message_count:,}"),
            Text(f"{session.tool_call_count:,}"),
        )
        for session in sessions
    ]
    return _listing("no sessions", ("session", "owner", "status", "last active", "messages", "tools"), rows)


def archives_table(archived: Sequence[ArchivedSession]) -> RenderableType:
    """One row for each archived session, with its file, in the given order."""
    rows = [
        (
            _titled(each.session_id, each.title),
            _or_dash(each.user_id),
            text_of(each.reason or ""),
            _minute(each.archived_at),
            text_of(each.path),
        )
        for each in archived
    ]
    return _listing("no archived sessions", ("session", "owner", "ended by", "archived", "file"), rows)


def sweep_table(results: Sequence[SweepResult]) -> RenderableType:
    """The sessions that a sweep ended or would end."""
    rows = [
        (
            text_of(each.session_id),
            _or_dash(each.user_id),
            Text("idle since ").append_text(_minute(each.last_active_at)),
            _minute(each.expired_at),
            text_of(each.action, "red" if each.action == "delete" else ""),
        )
        for each in results
    ]
    return _listing("nothing is due", ("session", "owner", "why", "expired", "action"), rows)


def usage_table(by: str, usage: Sequence[Usage]) -> RenderableType:
    """The usage of each key, and the total."""
    sums = ("calls", "errors", "input_tokens", "output_tokens", "unpriced")
    costs = [each.cost for each in usage if each.cost is not None]
    total = Usage(
        key=None,
        cost=sum(costs) if costs else None,
        **{name: sum(getattr(each, name) for each in usage) for name in sums},
    )
    rows = [
        (
            Text("all", "bold") if each is total else _or_dash(each.key),
            *map(Text, _amounts(each, has_cost=by != "tool")),
            *(Text("" if took is None else duration_text(took)) for took in (each.p50_ms, each.p95_ms)),
        )
        for each in ((*usage, total) if usage else ())
    ]
    columns = (by, "calls", "errors", *(("in", "out", "cost") if by != "tool" else ()), "median", "p95")
    listing = Listing(columns, rows, empty="no calls", caption=None)
    if not total.unpriced:
        return listing
    return Group(listing, Text(f"{plural(total.unpriced, 'call')} of unknown price not in the cost", style="dim"))


def _amounts(usage: Usage, *, has_cost: bool) -> list[str]:
    cost = "–" if usage.cost is None else f"${usage.cost:,.4f}"  # noqa: RUF001 - an en dash reads as "none"
    spent = [f"{usage.input_tokens:,}", f"{usage.output_tokens:,}", cost] if has_cost else []
    return [f"{usage.calls:,}", f"{usage.errors:,}", *spent]


def status_text(session: SessionInfo) -> Text:
    return text_of(session.status, _STATUS_STYLES.get(session.status, "dim"))


def text_of(text: str, style: str = "") -> Text:
    return Text(visible_line(text), style=style)


def _or_dash(text: str | None) -> Text:
    return text_of(text or "–")  # noqa: RUF001 - as above


def _titled(session_id: str, title: str | None) -> Text:
    name = text_of(session_id)
    return name if not title else name.append("\n").append_text(text_of(shortened(title, _TITLE_CHARACTERS), "dim"))


def _minute(moment: datetime) -> Text:
    return Text(f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}")
