"""Pictures of a database's health: what `verify`, `salvage`, `doctor` and `check` found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from session_middleware.doctor import Diagnosis
from session_middleware.findings import Damage, Forgotten, Problem, Salvaged, Verified
from session_middleware.storage.upkeep import Deleted
from session_middleware.wording import plural, visible

_IDS = 3  # of sessions with the same damage, before the rest is only counted
_LINES = 20  # of damage, before the rest is only counted


def verified(found: Verified) -> RenderableType:
    """One line when all is well, else what is damaged, by session."""
    name, counts = visible(found.path), _counts(found)
    if found.is_clean:
        return Text.assemble((name, "bold"), " is ", ("whole", "green"), f": {counts}")
    head = Text.assemble((name, "bold"), " is ", ("damaged", "red"), f"; looked at {counts}")
    return Group(head, _damage(found.structure, found.damage), _advice(found.path))


def _advice(path: str) -> Text:
    return Text(f"save what is whole with: session-middleware salvage NEW_FILE --db {visible(path)}", style="dim")


def salvaged(saved: Salvaged) -> RenderableType:
    """What is in the new file, and what is not."""
    head = Text.assemble("saved ", _counts(saved), " in ", (visible(saved.path), "bold"), ", which is whole")
    lines: list[RenderableType] = [head]
    if saved.rebuilt:
        ids = _few(saved.rebuilt)
        lines.append(Text(f"made anew, without title: the row of {plural(len(saved.rebuilt), 'session')}: {ids}"))
    if saved.is_all:
        lines.append(Text("nothing was lost", style="green"))
    else:
        lines += [Text("lost, or maybe incomplete:", style="red"), _damage(saved.structure, saved.lost)]
    return Group(*lines)


def _counts(found: Verified | Salvaged) -> str:
    return (
        f"{plural(found.sessions, 'session')}, {plural(found.checkpoints, 'checkpoint')}, "
        f"{plural(found.writes, 'write')}, {plural(found.records, 'row')} of record and memory"
    )


def _damage(structure: Sequence[str], damage: Iterable[Damage]) -> RenderableType:
    """The same finding in many places is one line."""
    sessions: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in damage:
        sessions[one.table, one.problem][one.session_id or ""] += 1
    rows = [
        (_few([*filter(None, ids)]), _in(table, ids.total()), problem) for (table, problem), ids in sessions.items()
    ]
    rows += [("", "the file", line) for line in structure]
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("session", "where", "what is wrong"):
        table.add_column(name, overflow="fold")
    for ids, where, problem in rows[:_LINES]:
        table.add_row(Text(ids or "–"), Text(where), Text(visible(problem)))  # noqa: RUF001 - as in render
    if len(rows) <= _LINES:
        return table
    return Group(table, Text(f"and {len(rows) - _LINES:,} more; see all with --json", style="dim"))


def _few(ids: Sequence[str]) -> str:
    """The first of some ids, each whole."""
    more = f" and {len(ids) - _IDS:,} more" if len(ids) > _IDS else ""
    return visible(", ".join(ids[:_IDS])) + more


def _in(table: str, count: int) -> str:
    return table if count == 1 else f"{table} ({count:,})"


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
    """What does not hold, a line each, and what was done about it."""
    if not problems:
        return Text("all that should hold does", style="bold green")
    lines = []
    for problem in problems:
        word, style = ("mended  ", "green") if problem.repaired else ("problem  ", "red")
        where = "" if problem.session_id is None else f"session {problem.session_id!r}: "
        lines.append(Text.assemble((word, style), visible(f"{where}{problem.text}")))
    if not all(problem.repaired for problem in problems):
        lines.append(Text("session-middleware check --repair mends what can be mended"))
    return Group(*lines)


def forgotten(receipt: Forgotten) -> RenderableType:
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


def deletion(deleted: Deleted, *, dry_run: bool) -> RenderableType:
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
