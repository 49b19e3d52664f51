"""Pictures of a database's health: what `doctor` and `check` found."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from session_middleware.cli.doctor import Diagnosis
from session_middleware.display.text import visible
from session_middleware.findings import ErasureReceipt, Problem
from session_middleware.storage.types import DeletionCounts

_IDS = 3  # of sessions with the same problem, before the rest is only counted
_LINES = 20  # of problems, before the rest is only counted


def diagnosis(found: Diagnosis) -> RenderableType:
    """Versions, the file, and a verdict."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in (*found.versions.items(), *_facts(found)):
        facts.add_row(name, Text(visible(value)))
    lines: list[RenderableType] = [facts, Text()]
    lines += [Text.assemble(("note  ", "yellow"), visible(note)) for note in found.notes]
    lines += [Text.assemble(("problem  ", "red"), visible(problem)) for problem in found.problems]
    lines.append(Text(_verdict(found), style="bold red" if found.problems else "bold green"))
    return Group(*lines)


def checked(problems: Sequence[Problem]) -> RenderableType:
    """What does not hold, a line for the same in many places, and what was done about it."""
    if not problems:
        return Text("all that should hold does", style="bold green")
    alike: dict[tuple[bool, str | None, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.repaired, problem.table, problem.text), []).append(problem)
    lines = []
    for (repaired, table, text), those in alike.items():
        word, style = ("repaired  ", "green") if repaired else ("problem  ", "red")
        where = f"{table}: " if table else ""
        lines.append(Text.assemble((word, style), visible(f"{_places(those)}{where}{text}")))
    if len(lines) > _LINES:
        lines[_LINES:] = [Text(f"and {len(lines) - _LINES:,} more; see all with --json", style="dim")]
    if not all(problem.repaired for problem in problems):
        lines.append(Text("session-middleware check --repair computes again what can be computed"))
    return Group(*lines)


def _places(problems: Sequence[Problem]) -> str:
    """The sessions and keys of the same problem, the first of them whole."""
    names = [
        f"session {one.session_id!r}" + ("" if one.key is None else f" ({one.key})")
        for one in problems
        if one.session_id is not None
    ]
    more = f" and {len(names) - _IDS:,} more" if len(names) > _IDS else ""
    return f"{', '.join(names[:_IDS])}{more}: " if names else ""


def forgotten(receipt: ErasureReceipt) -> RenderableType:
    """How much of a user went, or would go."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name in ("sessions", "checkpoints", "messages", "tool_calls", "memories", "archives", "traces"):
        facts.add_row(name.replace("_", " "), f"{getattr(receipt, name):,}")
    if receipt.dry_run:
        return Group(facts, Text("nothing was deleted"))
    said = "all of it is gone from the files"
    if receipt.pending:
        said = "a reader still holds an older snapshot of the file: run this again when it has ended"
    return Group(facts, Text(said, style="bold red" if receipt.pending else "bold green"))


def deletion(deleted: DeletionCounts, *, dry_run: bool) -> RenderableType:
    """How much of a session went, or would go."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name in ("sessions", "checkpoints", "messages", "tool_calls", "memories"):
        facts.add_row(name.replace("_", " "), f"{getattr(deleted, name):,}")
    facts.add_row("about" if dry_run else "freed", _megabytes(deleted.bytes_freed))
    return Group(facts, Text("nothing was deleted" if dry_run else "deleted"))


def _facts(found: Diagnosis) -> list[tuple[str, str]]:
    facts = [("database", found.path if found.file_bytes is not None else f"{found.path} (made when it is first used)")]
    if found.file_bytes is not None:
        facts.append(("size", f"{_megabytes(found.file_bytes)}, write-ahead log {_megabytes(found.log_bytes)}"))
    if found.pages is not None:
        facts.append(("pages", f"{found.pages:,} of {found.page_bytes:,} bytes, {found.unused_pages or 0:,} unused"))
    if found.journal_mode is not None:
        facts.append(("journal", f"{found.journal_mode}, synchronous {found.synchronous}"))
    if found.sessions is not None:
        facts.append(("sessions", f"{found.sessions:,}"))
    facts.append(("writable", "yes" if found.is_writable else "no"))
    if found.free_bytes is not None:
        facts.append(("free on disk", _megabytes(found.free_bytes)))
    return facts


def _verdict(found: Diagnosis) -> str:
    if not found.problems:
        return "all is well"
    return "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"


def _megabytes(size: int) -> str:
    return (
        f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
    )
