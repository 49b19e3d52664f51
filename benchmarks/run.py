"""All benchmarks, or those named: each figure beside its peer's from the same run, and what is aimed at.

    python -m benchmarks.run [--quick] [checkpoint_cost] [fleet] [crowd] …

This file also holds what the benchmarks share: the figure, the table, the line about the machine.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from os import cpu_count
from statistics import median
from typing import NamedTuple

NAMES = (
    "checkpoint_cost",
    "fleet",
    "crowd",
    "loop_lag",
    "recorder_cost",
    "import_time",
    "replay",
    "reports",
    "memory_speed",
    "follow_ups",
    "lifecycle",
    "sidebar",
    "postgres",
    "streaming",
)
_LIBRARIES = ("langgraph", "langchain-core", "langgraph-checkpoint-sqlite", "pydantic")


class Figure(NamedTuple):
    """What was measured, and the same of a peer. A ratio's aim is an upper bound; ``None``: for orientation."""

    what: str
    ours: float
    unit: str
    peer: str
    theirs: float
    aim: float | None = None  # of the ratio
    aim_of_ours: float | None = None  # in `unit`

    @property
    def ratio(self) -> float | None:
        """``None`` where it says nothing: a difference lost in the noise."""
        return self.ours / self.theirs if self.theirs > 0 and self.ours > 0 else None

    def row(self, *, judged: bool) -> tuple[str, ...]:
        bounds = (("ratio ", self.ratio, self.aim, ""), ("", self.ours, self.aim_of_ours, f" {self.unit}"))
        aims = [(f"{name}<= {aim:g}{unit}", value, aim) for name, value, aim, unit in bounds if aim is not None]
        missed = judged and any(value is not None and value > aim for _, value, aim in aims)
        return (
            self.what,
            f"{_number(self.ours)} {self.unit}",
            f"{_number(self.theirs)} {self.unit}",
            "-" if self.ratio is None else f"{self.ratio:.3g}",
            self.peer,
            " and ".join(text for text, _, _ in aims) + ("  MISSED" if missed else ""),
        )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def machine() -> str:
    """The machine and the versions, in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return (
        f"{platform.system()} {platform.machine()}, {cpu_count()} CPUs, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {libraries}"
    )


def show(title: str, figures: Iterable[Figure], *, judged: bool = True) -> None:
    """A plain table; nothing but the title when there are no figures. The aims are those of a full run."""
    rows = [figure.row(judged=judged) for figure in figures]
    print(f"\n{title}")
    if not rows:
        return
    table = [("", "ours", "peer's", "ratio", "peer", "aim" if judged else "aim of a full run"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    right = {1, 2, 3}
    for row in table:
        cells = [
            text.rjust(widths[column]) if column in right else text.ljust(widths[column])
            for column, text in enumerate(row)
        ]
        print("  " + "  ".join(cells).rstrip(), flush=True)


def middle(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * median(seconds)


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it runs")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(NAMES)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    print(machine())
    for name in options.names or NAMES:
        gc.collect()
        import_module(f"benchmarks.{name}").report(quick=options.quick)


if __name__ == "__main__":
    main()
