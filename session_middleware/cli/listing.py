"""Listings in a terminal: a row each, and ids that are whole at any width, so that they can be copied."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_NUMBERS = frozenset({"messages", "tools", "calls", "errors", "in", "out", "cost", "median", "p95"})
_ON_ONE_LINE = _NUMBERS | {"status", "last active", "why", "expired", "action", "ended by", "archived"}
_UNBOUNDED = 1_000_000  # columns


def _table(*columns: str, caption: str | None = "times are UTC") -> Table:
    """The first column, of ids, is neither cut nor folded, so that they can be copied."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True, caption=caption)
    table.caption_justify = "right"
    for name in columns:
        number = name in _NUMBERS
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=name in _ON_ONE_LINE or name == columns[0],
        )
    return table


class Listing:
    """Rows that begin with an id. Print it with ``crop=False``.

    Where it is wider than the terminal, each id has a line of its own, and what belongs to it the next; what is
    no terminal gets lines as wide as they come.
    """

    def __init__(self, *columns: str, caption: str | None = "times are UTC") -> None:
        self._columns = columns
        self._caption = caption
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: Text) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(*self._columns, caption=self._caption)
        for row in self._rows:
            table.add_row(*row)
        width = Measurement.get(console, options.update(width=_UNBOUNDED), table).maximum
        if width <= options.max_width:
            yield table
        elif not console.is_terminal:
            yield from console.render(table, options.update(width=width))
        else:
            for first, *others in self._rows:
                yield from console.render(first, options.update(width=_UNBOUNDED, no_wrap=True))
                words = [
                    cell + f" {name.removesuffix('s') if cell.plain == '1' else name}" if name in _NUMBERS else cell
                    for name, cell in zip(self._columns[1:], others, strict=True)
                    if cell.plain
                ]
                yield Padding(Text(" · ").join(words), (0, 0, 0, 2))
