"""The commands of an operator: what it costs; sweeping, explaining, pinning, deleting; users to forget and refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli.common import (
    STATUSES,
    console_of_stdout,
    db_option,
    existing,
    file_of,
    json_option,
    print_json,
)
from session_middleware.display.text import plural, span_text
from session_middleware.errors import SessionNotFound

if TYPE_CHECKING:
    from session_middleware.session import Session
    from session_middleware.storage.types import DeletionCounts


@click.command()
@db_option()
@click.option("--by", type=click.Choice(["user", "group", "session", "model", "tool", "day"]), default="user")
@click.option("--user", "user_id", metavar="ID", help="Only sessions this user owns.")
@click.option("--since", metavar="TIME", help="A day such as 2026-01-31, or how long ago, such as 7d.")
@json_option
def usage(db: str | None, by: Any, user_id: str | None, since: str | None, as_json: bool) -> None:
    """Say what models took and cost, dearest first. With --by tool: what tools took."""
    moment = _moment(since)
    with existing(db) as sessions:
        found = sessions.usage(by, user_id=user_id, since=moment)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    from session_middleware.cli.terminal import usage_table

    console_of_stdout().print(usage_table(by, found), crop=False)


def _moment(since: str | None) -> datetime | None:
    from session_middleware.settings import age_of

    try:
        moment = None if since is None else datetime.fromisoformat(since)
    except ValueError:
        age = age_of("--since", since)
        return None if age is None else datetime.now(UTC) - age
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment is not None else None


@click.command()
@db_option()
@click.option("--dry-run", is_flag=True, help="Only say what would be ended.")
@click.option("--idle-timeout", metavar="DURATION", help="Such as 30m or 7d. [default: SESSION_IDLE_TIMEOUT, or 7d]")
@click.option("--older-than", metavar="DURATION", help="Delete what was last active so long ago instead, such as 90d.")
@click.option("--status", type=click.Choice(STATUSES), help="With --older-than: only sessions with this status.")
@click.option("--yes", is_flag=True, help="Do not ask before --older-than deletes.")
@json_option
def sweep(
    db: str | None,
    dry_run: bool,
    idle_timeout: str | None,
    older_than: str | None,
    status: Any,
    yes: bool,
    as_json: bool,
) -> None:
    """End the sessions that are due, or delete old ones. As on_expire and retention say."""
    from session_middleware.settings import age_of, duration_of

    duration_of("--idle-timeout", idle_timeout)
    age_of("--older-than", older_than)
    with existing(db, **({"idle_timeout": idle_timeout} if idle_timeout else {})) as sessions:
        if older_than and not dry_run and not yes:
            count = len(sessions.sweep(dry_run=True, older_than=older_than, status=status))
            if count:
                what = f"{plural(count, 'session')} last active more than {older_than} ago"
                click.confirm(f"Delete {what}?", abort=True, err=True)
        ended = sessions.sweep(dry_run=dry_run, older_than=older_than, status=status)
        if as_json:
            print_json([one.model_dump(mode="json") for one in ended])
            return
        from session_middleware.cli.terminal import sweep_table

        console = console_of_stdout()
        console.print(sweep_table(ended), crop=False)
        word = "would be ended" if dry_run else "ended"
        rule = sessions.settings.idle_timeout
        told = f"idle for {span_text(rule)}" if rule else "that none expires"
        console.print(f"{len(ended)} {word}; the rule is " + (f"older than {older_than}" if older_than else told))


@click.command()
@click.argument("session_id", metavar="ID")
@db_option()
@json_option
def explain(session_id: str, db: str | None, as_json: bool) -> None:
    """Say why a session is as it is, and what comes next. Also of a deleted one."""
    with existing(db) as sessions:
        found = sessions.explain(session_id)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            click.echo(str(found))


@click.command()
@click.argument("session_id", metavar="ID")
@db_option()
@click.option("--dry-run", is_flag=True, help="Only say how much there is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(session_id: str, db: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete all of a session, or its archive. Its id stays its owner's."""
    with existing(db) as sessions:
        session = sessions.find(session_id)
        if session is None and sessions.explain(session_id).status != "archived":
            raise SessionNotFound(session_id)
        if not dry_run and not yes:
            what = f"Delete session {session_id!r}" if session is not None else f"Delete the archive of {session_id!r}"
            running = ", in which a run is in progress" if session is not None and session.is_running else ""
            click.confirm(f"{what}{running}?", abort=True, err=True)
        deleted = _holdings(session) if dry_run else sessions.delete(session_id)
        if as_json:
            print_json({**deleted._asdict(), "dry_run": dry_run})
        else:
            from session_middleware.cli.health import deletion

            console_of_stdout().print(deletion(deleted, dry_run=dry_run))


@click.command()
@click.argument("session_id", metavar="ID")
@db_option()
def restore(session_id: str, db: str | None) -> None:
    """Bring an archived session back, as it was; its idle time begins now."""
    with existing(db) as sessions:
        sessions.restore(session_id)
        click.echo(str(sessions.explain(session_id)))


def _holdings(session: Session | None) -> DeletionCounts:
    """What deleting it would say; of an archive, that it is one."""
    from session_middleware.storage.types import DeletionCounts

    if session is None:
        return DeletionCounts(1)
    stats, said = session.stats(), session.messages(all_versions=True, branch="all")
    return DeletionCounts(
        sessions=1,
        checkpoints=stats.checkpoint_count,
        messages=len(said),
        tool_calls=stats.tool_call_count,
        memories=len(session.memory.list()),
        bytes_freed=stats.bytes,
    )


@click.command()
@click.argument("session_id", metavar="ID")
@db_option()
@click.option("--why", metavar="TEXT", help="Kept with it, and with the event.")
@click.option("--by", metavar="NAME", help="On whose word.")
def pin(session_id: str, db: str | None, why: str | None, by: str | None) -> None:
    """Exempt a session from expiry and from sweeps."""
    with existing(db) as sessions:
        sessions.get(session_id).pin(why, by=by)
        click.echo(str(sessions.explain(session_id)))


@click.command()
@click.argument("session_id", metavar="ID")
@db_option()
def unpin(session_id: str, db: str | None) -> None:
    """Exempt it no longer; its idle time begins now."""
    with existing(db) as sessions:
        sessions.get(session_id).unpin()
        click.echo(str(sessions.explain(session_id)))


@click.command()
@db_option()
@click.option("--deep", is_flag=True, help="Read every row, and compare it with its checksum.")
@click.option("--repair", is_flag=True, help="Compute again what can be: counters, indexes, orphans.")
@json_option
def check(db: str | None, deep: bool, repair: bool, as_json: bool) -> None:
    """Check a database, which may be damaged. Exit code 1 when a problem is found that is not repaired."""
    if repair:
        with existing(db, sweep_interval=None) as sessions:
            problems = sessions.check(repair=True, deep=deep)
    else:
        from session_middleware.settings import load_settings
        from session_middleware.storage.sqlite.integrity.checks import check_file

        problems = check_file(str(file_of(db)), load_settings(), deep=deep)
    if as_json:
        print_json([problem.model_dump(mode="json") for problem in problems])
    else:
        from session_middleware.cli.health import checked

        console_of_stdout().print(checked(problems))
    if not all(problem.repaired for problem in problems):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("user_id", metavar="USER")
@db_option()
@click.option("--dry-run", is_flag=True, help="Only say how much there is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def forget(user_id: str, db: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete all that is kept of a user, and give a receipt. Exit code 1 when some of it is still in the files."""
    with existing(db) as sessions:
        receipt = sessions.forget_user(user_id, dry_run=True)
        if not dry_run:
            if not yes:
                count = plural(receipt.sessions, "session")
                click.confirm(f"Delete {count} and all else of {user_id!r}?", abort=True, err=True)
            receipt = sessions.forget_user(user_id)
        if as_json:
            print_json(receipt.model_dump(mode="json"))
        else:
            from session_middleware.cli.health import forgotten

            console_of_stdout().print(forgotten(receipt))
    if receipt.pending:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("user_id", metavar="USER")
@db_option()
@click.option("--reason", metavar="TEXT", help="Kept with the events.")
@click.option("--lift", is_flag=True, help="Take it back.")
def revoke(user_id: str, db: str | None, reason: str | None, lift: bool) -> None:
    """Refuse a user from now on. Their open sessions are ended."""
    with existing(db) as sessions:
        ended = sessions.revoke(user_id, reason=reason, lift=lift)
    click.echo("lifted" if lift else f"revoked; ended {plural(len(ended), 'open session')}")


def add_to(group: click.Group) -> None:
    for command in (usage, sweep, explain, pin, unpin, delete, restore, check, forget, revoke):
        group.add_command(command)
