"""The output of `check`, `delete` and `forget`, and of lists of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from session_middleware.cli import styles
from session_middleware.display.text import cost_text, duration_text, plural, second_text, visible_line
from session_middleware.models import ErasureReceipt, Problem
from session_middleware.storage.sql.checks import repairable
from session_middleware.storage.types import DeletionCounts

_MAX_SESSIONS = 3  # named for one problem; the others are counted
_MAX_LINES = 20
_ERASED = ("sessions", "checkpoints", "messages", "tool_calls", "memories", "archives", "traces")


def problems_picture(problems: Sequence[Problem]) -> RenderableType:
    """One line for each kind of problem, with the sessions that have it, and a verdict."""
    if not problems:
        return verdict("no problems", is_good=True)
    groups: dict[tuple[bool, str | None, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.repaired, problem.table, problem.text), []).append(problem)
    lines: list[RenderableType] = []
    for (repaired, table, text), group in groups.items():
        label = ("repaired  ", styles.GREEN) if repaired else ("problem  ", styles.RED)
        text = text.partition("; ")[0] if repaired else text  # without the action
        lines.append(line(label, f"{_sessions_of(group)}{f'{table}: ' if table else ''}{text}"))
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [Text(f"and {len(lines) - _MAX_LINES:,} more; see all with --json", style="dim")]
    left = [problem for problem in problems if not problem.repaired]
    done, due = len(problems) - len(left), len(repairable(left))
    if not left:
        return Group(*lines, verdict(f"{plural(done, 'problem')} repaired, none left", is_good=True))
    counted = f"{plural(done, 'problem')} repaired, {len(left):,} left" if done else plural(len(left), "problem")
    which = "all" if due == len(left) else f"{due:,} of them"
    advice = f"repair {which} with session-middleware check --repair" if due else "see the action of each above"
    return Group(*lines, verdict(f"{counted}; {advice}", is_good=False))


def _sessions_of(problems: Sequence[Problem]) -> str:
    named = [problem for problem in problems if problem.session_id is not None]
    names = [f"session {each.session_id!r}" + ("" if each.key is None else f" ({each.key})") for each in named]
    more = f" and {len(names) - _MAX_SESSIONS:,} more" if len(names) > _MAX_SESSIONS else ""
    return f"{', '.join(names[:_MAX_SESSIONS])}{more}: " if names else ""


def has_data(receipt: ErasureReceipt) -> bool:
    return any(getattr(receipt, name) for name in _ERASED)


def erasure_picture(receipt: ErasureReceipt) -> RenderableType:
    """The numbers of rows of a user that were or would be deleted."""
    if not has_data(receipt) and not receipt.pending:
        return Text("there is no data of this user in the files")
    if receipt.dry_run:
        result: RenderableType = Text("nothing was deleted")
    elif receipt.pending:
        problem = "the rows are deleted; their bytes remain until PostgreSQL vacuums the tables, or in a file until a"
        problem += " reader of an older snapshot has ended and this is run again"
        result = verdict(problem, is_good=False)
    else:
        result = verdict("all of it is gone from the files", is_good=True)
    return Group(facts_grid(dict(receipt)), result)


def deletion_picture(deleted: DeletionCounts, *, dry_run: bool) -> RenderableType:
    """The numbers of rows of a session that were or would be deleted."""
    return Group(facts_grid(deleted._asdict()), Text("nothing was deleted" if dry_run else "deleted"))


def facts_grid(facts: Mapping[str, Any]) -> Table:
    """Names and values, one row each, without those that are empty or composed. An unknown cost is a dash."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if name == "cost":
            value = cost_text(value)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = decimal(value) if "bytes" in name else f"{value:,}"
        elif isinstance(value, datetime):
            value = f"{second_text(value)} UTC"
        elif isinstance(value, timedelta):
            value = duration_text(value / timedelta(milliseconds=1))
        if isinstance(value, str):
            grid.add_row(name.replace("_", " "), Text(visible_line(value)))
    return grid


def line(label: tuple[str, str], text: str) -> Text:
    """A sentence, which is wrapped between words, so that ids can be copied."""
    return Text.assemble(label, visible_line(text), overflow="ignore")


def verdict(text: str, *, is_good: bool) -> Text:
    return line((text, f"bold {styles.GREEN if is_good else styles.RED}"), "")
