"""Commands that read sessions, and change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli import options
from session_middleware.cli.options import command
from session_middleware.cli.output import (
    jsonl_option,
    make_console,
    output_options,
    print_lines,
    print_result,
    say,
)
from session_middleware.errors import SessionNotFound

if TYPE_CHECKING:
    from session_middleware.memory.results import SearchHit
    from session_middleware.session import Session
    from session_middleware.sessions import Sessions
    from session_middleware.storage.types import Record

_NOTE = "{} of {}; see more with --limit {}"


def _limit_option(default: int, most: int) -> Callable[..., Any]:
    text = "The most rows to show."
    limits = click.IntRange(1, most)
    return click.option("--limit", metavar="N", type=limits, default=default, show_default=True, help=text)


@command(
    "list",
    "list --user alice --status idle",
    "list --tag support --since 7d --jsonl",
    "list --waiting",
)
@options.filters
@click.option("--archived", is_flag=True, help="Only archived sessions.")
@click.option(
    "--order",
    type=click.Choice(["activity", "creation", "title"]),
    default="activity",
    show_default=True,
    help="The latest first, or by title.",
)
@_limit_option(50, 1_000_000)
@output_options
def list_command(
    sessions: Sessions, where: dict[str, Any], archived: bool, order: Any, limit: int, output: str | None
) -> None:
    """List sessions, latest activity first."""
    from session_middleware.cli import tables

    if archived:
        if where.keys() - {"user_id"}:
            raise click.UsageError("archived sessions are only filtered by --user; leave out the other filters")
        files = sessions.list_archived(limit=limit, **where)
        print_result(files, tables.archives_table(files), output)
        return
    found = sessions.list(limit=limit, order=order, **where)
    print_result(found, tables.sessions_table(found), output)
    if output is None and len(found) == limit and (total := sessions.count(**where)) > limit:
        say(_NOTE.format(len(found), total, total))


@command("show last", "show thread-42 --full --last 20", "show thread-42 --json")
@options.session_argument
@click.option("--full", is_flag=True, help="All records, with their whole text.")
@click.option("--last", metavar="N", type=click.IntRange(1), help="Only the last so many records.")
@output_options
def show(session: Session, full: bool, last: int | None, output: str | None) -> None:
    """Show the timeline of a session.

    It consists of its messages, calls, runs and events.
    """
    from session_middleware.cli.tables import timeline

    records = session.timeline(last=last)
    rows = [_row(record) for record in records] if output else []
    value = {"session": session, "stats": session.stats(), "timeline": rows} if output == "json" else None
    print_result(value, timeline(session, records, full=full), output, rows=rows)


def _row(record: Record) -> dict[str, Any]:
    from session_middleware.storage.timeline import kind_of

    return {"record": kind_of(record), **record.model_dump(mode="json")}


@command("follow last", "follow thread-42 --all --timeout 10m", "follow thread-42 --jsonl")
@options.session_argument
@click.option("--all", "is_all", is_flag=True, help="Begin with the first record. [default: with the last ten]")
@options.duration_option("--timeout", "End when nothing was recorded for so long, such as 10m.")
@click.option("--full", is_flag=True, help="The whole text of each record.")
@jsonl_option
def follow(session: Session, is_all: bool, timeout: str | None, full: bool, output: str | None) -> None:
    """Print the records of a session as they are committed, until it ends or Ctrl-C."""
    from session_middleware.cli.tables import record_row

    last = [] if is_all else session.timeline(last=_SHOWN_RECORDS)
    records = session.follow(after=last[0].seq - 1 if last else 0, timeout=timeout)
    console = make_console()
    with suppress(KeyboardInterrupt):
        for record in records:
            if output:
                print_lines([_row(record)])
            else:
                console.print(record_row(record, full=full), crop=False)


_SHOWN_RECORDS = 10  # before the first new one


@command("search 'refund policy'", "search invoice --user alice --since 30d", "search refund --session thread-42 --csv")
@click.argument("query")
@click.option(
    "--session", "session_id", metavar="ID", help="Only messages of this session.", shell_complete=options.complete
)
@options.filters
@_limit_option(20, 10_000)
@output_options
def search(
    sessions: Sessions, query: str, session_id: str | None, where: dict[str, Any], limit: int, output: str | None
) -> None:
    """Search the messages of all sessions, best first.

    --since is the time of a message; the other filters are those of its session.
    """
    from session_middleware.cli.opening import id_of
    from session_middleware.cli.tables import MARK, search_table

    chosen = session_id and id_of(sessions, session_id)
    marks = ("", "") if output else (MARK, MARK)
    given = {name: where.pop(name) for name in ("user_id", "since") if name in where}
    found = list(_found(sessions, where, limit, query=query, session_id=chosen, marks=marks, **given))
    print_result(found, search_table(found), output)


def _found(sessions: Sessions, where: Mapping[str, Any], limit: int, **asked: Any) -> Iterator[SearchHit]:
    """The results in sessions that the other filters find."""
    if not where:
        yield from sessions.search(limit=limit, **asked)
        return
    ids = {session.id for session in sessions._each(**where)}
    offset = left = 0
    while left < limit and (page := sessions.search(limit=200, offset=offset, **asked)):
        offset += len(page)
        for hit in page:
            if hit.session_id in ids and left < limit:
                left += 1
                yield hit


@command("stats", "stats last", "stats --user alice --since 30d --json")
@options.id_argument(required=False)
@options.filters
@output_options
def stats(sessions: Sessions, session_id: str | None, where: dict[str, Any], output: str | None) -> None:
    """Sum up a session, or all sessions that the filters find."""
    from session_middleware.cli.health import facts_grid
    from session_middleware.cli.opening import session_of

    if session_id is not None:
        if where:
            raise click.UsageError("name a session or filters, not both")
        session = session_of(sessions, session_id)
        facts = {"session_id": session.id, **session.stats().model_dump(mode="python")}
    else:
        facts = _sums(sessions._each(**where))
    tools = ", ".join(f"{name} {count:,}" for name, count in facts.get("tools", {}).items())
    print_result(facts, facts_grid(facts | {"tools": tools or None}), output)


_SUMMED = (
    *("run_count", "message_count", "tool_call_count", "model_call_count", "error_count", "unpriced_count"),
    *("input_tokens", "output_tokens"),
)


def _sums(found: Iterator[Session]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    owners, costs, times = set(), [], []
    for session in found:
        statuses[session.status] += 1
        owners.add(session.user_id)
        sums.update({name: getattr(session, name) for name in _SUMMED})
        costs += [] if session.cost is None else [session.cost]
        times += [session.last_active_at]
    return {
        "sessions": statuses.total(),
        **{f"{status}_sessions": count for status, count in sorted(statuses.items())},
        "owners": len(owners - {None}),
        **{name: sums[name] for name in _SUMMED},
        "cost": sum(costs) if costs else None,
        "first_active_at": min(times, default=None),
        "last_active_at": max(times, default=None),
    }


@command("usage", "usage --by model --since 2026-01-31", "usage --by day --user alice --csv")
@click.option(
    "--by",
    type=click.Choice(["user", "group", "session", "model", "tool", "day"]),
    default="user",
    show_default=True,
    help="One row for each of these.",
)
@options.filters
@output_options
def usage(sessions: Sessions, by: Any, where: dict[str, Any], output: str | None) -> None:
    """Sum the calls, tokens and cost of models, the highest cost first.

    With --by tool, the calls of tools are summed. --since and --until are the times of calls.
    """
    from session_middleware.cli.tables import usage_table

    found = sessions.usage(by, **where)
    print_result(found, usage_table(by, found), output)


@command("compare thread-42 thread-43", "compare thread-42 last --csv")
@options.session_argument
@options.id_argument("other")
@output_options
def compare(session: Session, other: str, output: str | None) -> None:
    """Show where two sessions diverge: messages, tool calls, tokens, cost and time."""
    from session_middleware.cli.opening import session_of
    from session_middleware.cli.tables import comparison_text

    found = session.compare(session_of(session._sessions, other))
    print_result(found, comparison_text(found), output, rows=found.steps)


@command("explain last", "explain thread-42 --json")
@options.id_argument()
@output_options
def explain(sessions: Sessions, session_id: str, output: str | None) -> None:
    """Explain the status and next change of a session.

    It may be a deleted or archived session.
    """
    from session_middleware.cli.opening import id_of

    explain_session(sessions, id_of(sessions, session_id, deleted=True), output)


def explain_session(sessions: Sessions, session_id: str, output: str | None = None) -> None:
    from session_middleware.cli.health import line

    explanation = sessions.explain(session_id)
    if explanation.status == "unknown":
        raise SessionNotFound(session_id)
    print_result(explanation, line(("", ""), explanation.text), output)


COMMANDS = (list_command, show, follow, search, stats, usage, compare, explain)
