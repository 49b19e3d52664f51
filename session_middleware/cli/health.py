"""The output of `doctor`, `check`, `delete` and `forget`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from session_middleware.cli.common import bytes_text
from session_middleware.cli.doctor import Diagnosis
from session_middleware.display.text import plural, visible, visible_line
from session_middleware.models import ErasureReceipt, Problem
from session_middleware.storage.sql.checks import repairable
from session_middleware.storage.types import DeletionCounts

_MAX_SESSIONS = 3  # named for one problem; the others are counted
_MAX_LINES = 20
_COUNTS = ("sessions", "checkpoints", "messages", "tool_calls", "memories")
_ERASED = (*_COUNTS, "archives", "traces")


def diagnosis_picture(found: Diagnosis) -> RenderableType:
    """Versions, facts about the file, and a verdict."""
    facts = [*found.versions.items(), ("database", found.path)]
    if found.file_bytes is not None:
        facts.append(("size", f"{bytes_text(found.file_bytes)}, write-ahead log {bytes_text(found.log_bytes)}"))
    if found.pages is not None:
        facts.append(("pages", f"{found.pages:,} of {found.page_bytes:,} bytes, {found.unused_pages or 0:,} unused"))
        facts.append(("journal", f"{found.journal_mode}, synchronous {found.synchronous}"))
        facts.append(("sessions", f"{found.sessions:,}"))
    facts.append(("writable", "yes" if found.is_writable else "no"))
    if found.free_bytes is not None:
        facts.append(("free on disk", bytes_text(found.free_bytes)))
    verdict = plural(len(found.problems), "problem") if found.problems else "no problems"
    return Group(
        _grid(facts),
        Text(),
        *(_line(("note  ", "yellow"), note) for note in found.notes),
        *(_line(("problem  ", "red"), problem) for problem in found.problems),
        _result(verdict, is_good=not found.problems),
    )


def problems_picture(problems: Sequence[Problem]) -> RenderableType:
    """One line for each kind of problem, with the sessions that have it."""
    if not problems:
        return _result("no problems", is_good=True)
    groups: dict[tuple[bool, str | None, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.repaired, problem.table, problem.text), []).append(problem)
    lines = []
    for (repaired, table, text), group in groups.items():
        label = ("repaired  ", "green") if repaired else ("problem  ", "red")
        text = text.partition("; ")[0] if repaired else text  # without the action
        lines.append(_line(label, f"{_sessions_of(group)}{f'{table}: ' if table else ''}{text}"))
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [Text(f"and {len(lines) - _MAX_LINES:,} more; see all with --json", style="dim")]
    return Group(*lines, _verdict(problems))


def _verdict(problems: Sequence[Problem]) -> Text:
    left = [problem for problem in problems if not problem.repaired]
    done, due = len(problems) - len(left), len(repairable(left))
    if not left:
        return _result(f"{plural(done, 'problem')} repaired, none left", is_good=True)
    counted = f"{plural(done, 'problem')} repaired, {len(left):,} left" if done else plural(len(left), "problem")
    which = "all" if due == len(left) else f"{due:,} of them"
    advice = f"repair {which} with session-middleware check --repair" if due else "see the action of each above"
    return _result(f"{counted}; {advice}", is_good=False)


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
    facts = _grid(_counts(receipt, *_ERASED))
    if receipt.dry_run:
        return Group(facts, Text("nothing was deleted"))
    if receipt.pending:
        problem = "a reader still uses an older snapshot of the file; run this again when the reader has ended"
        return Group(facts, _result(problem, is_good=False))
    return Group(facts, _result("all of it is gone from the files", is_good=True))


def deletion_picture(deleted: DeletionCounts, *, dry_run: bool) -> RenderableType:
    """The numbers of rows of a session that were or would be deleted."""
    size = ("about" if dry_run else "freed", bytes_text(deleted.bytes_freed))
    facts = _grid([*_counts(deleted, *_COUNTS), size])
    return Group(facts, Text("nothing was deleted" if dry_run else "deleted"))


def _counts(value: Any, *names: str) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"{getattr(value, name):,}") for name in names]


def _grid(facts: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(visible(value)))
    return grid


def _line(label: tuple[str, str], text: str) -> Text:
    """One line at any width, so that a pipe receives whole sentences; a terminal wraps it."""
    return Text.assemble(label, visible_line(text), no_wrap=True, overflow="ignore")


def _result(text: str, *, is_good: bool) -> Text:
    return _line((text, "bold green" if is_good else "bold red"), "")
