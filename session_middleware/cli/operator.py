"""The operator's commands: usage, sweeps, pins, deletion, checks, and users to forget or revoke."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli import common
from session_middleware.display.text import plural, span_text
from session_middleware.errors import InvalidArgument, SessionNotFound

if TYPE_CHECKING:
    from session_middleware.session import Session
    from session_middleware.sessions import Sessions
    from session_middleware.storage.sql.engine import SqlStorage
    from session_middleware.storage.types import DeletionCounts

_dry_run_option = click.option("--dry-run", is_flag=True, help="Only report what would be deleted.")


@common.database_command
@click.option("--by", type=click.Choice(["user", "group", "session", "model", "tool", "day"]), default="user")
@common.user_option
@click.option("--since", metavar="TIME", help="A day such as 2026-01-31, or an age such as 7d.")
@common.json_option
def usage(sessions: Sessions, by: Any, user_id: str | None, since: str | None, as_json: bool) -> None:
    """Sum the calls, tokens and cost of models.

    The highest cost comes first. With --by tool, the calls of tools are summed.
    """
    from session_middleware.cli.tables import usage_table

    found = sessions.usage(by, user_id=user_id, since=_moment(since))
    common.print_result(found, usage_table(by, found), as_json=as_json)


def _moment(since: str | None) -> datetime | None:
    from session_middleware.settings import age_of

    if since is None:
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(since)
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    try:
        return datetime.now(UTC) - (age_of("--since", since) or timedelta())
    except (InvalidArgument, OverflowError) as error:
        raise InvalidArgument("--since", since, wanted="a day such as 2026-01-31, or an age such as 7d") from error


@click.command()
@common.db_option
@click.option("--dry-run", is_flag=True, help="Only report which sessions would be ended.")
@click.option("--idle-timeout", metavar="DURATION", help="Such as 30m or 7d. [default: SESSION_IDLE_TIMEOUT, or 7d]")
@click.option("--older-than", metavar="DURATION", help="Delete sessions inactive for longer than this, such as 90d.")
@common.status_option
@common.yes_option
@common.json_option
def sweep(
    db: str | None,
    dry_run: bool,
    idle_timeout: str | None,
    older_than: str | None,
    status: Any,
    yes: bool,
    as_json: bool,
) -> None:
    """End the sessions that are due.

    The settings on_expire and retention decide how. With --older-than, delete old sessions instead; --status
    applies to these only.
    """
    if status and not older_than:
        raise click.UsageError("--status applies to --older-than only; give --older-than too")
    from session_middleware.cli.tables import sweep_table
    from session_middleware.settings import age_of, duration_of

    duration_of("--idle-timeout", idle_timeout)
    age_of("--older-than", older_than)
    with common.existing(db, **({"idle_timeout": idle_timeout} if idle_timeout else {})) as sessions:
        if older_than and not dry_run and not yes:
            count = len(sessions.sweep(dry_run=True, older_than=older_than, status=status))
            if count:
                click.confirm(
                    f"Delete {plural(count, 'session')} last active more than {older_than} ago?", abort=True, err=True
                )
        ended = list(sessions.sweep(dry_run=dry_run, older_than=older_than, status=status))
        common.print_result(ended, sweep_table(ended), as_json=as_json)
        if not as_json:
            timeout = sessions.settings.idle_timeout
            rule = f"idle for {span_text(timeout)}" if timeout else "no idle timeout"
            rule = f"older than {older_than}" if older_than else rule
            common.console_of_stdout().print(
                f"{len(ended)} {'would be ended' if dry_run else 'ended'}; the rule is {rule}"
            )


@common.database_command
@common.session_argument
@common.json_option
def explain(sessions: Sessions, session_id: str, as_json: bool) -> None:
    """Explain the status and next change of a session.

    It may be a deleted or archived session.
    """
    _explain(sessions, session_id, as_json=as_json)


def _explain(sessions: Sessions, session_id: str, *, as_json: bool = False) -> None:
    from rich.console import Group

    from session_middleware.cli.health import line

    explanation = sessions.explain(session_id)
    if explanation.status == "unknown":
        raise SessionNotFound(session_id)
    common.print_result(explanation, Group(line(("", ""), explanation.text)), as_json=as_json)


@common.database_command
@common.session_argument
@_dry_run_option
@common.yes_option
@common.json_option
def delete(sessions: Sessions, session_id: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete a session or its archive. Its id stays reserved for its owner."""
    from session_middleware.cli.health import deletion_picture

    session = sessions.find(session_id)
    if session is None and sessions.explain(session_id).status != "archived":
        raise SessionNotFound(session_id)
    if not dry_run and not yes:
        noun = "session" if session is not None else "the archive of"
        running = ", in which a run is in progress" if session is not None and session.is_running else ""
        click.confirm(f"Delete {noun} {session_id!r}{running}?", abort=True, err=True)
    counts = _counts_of(session) if dry_run else sessions.delete(session_id)
    value = {**counts._asdict(), "dry_run": dry_run}
    common.print_result(value, deletion_picture(counts, dry_run=dry_run), as_json=as_json)


def _counts_of(session: Session | None) -> DeletionCounts:
    """The counts that deleting the session, or an archive (``None``), would return."""
    from session_middleware.storage.types import DeletionCounts

    if session is None:
        return DeletionCounts(1)
    stats = session.stats()
    return DeletionCounts(
        sessions=1,
        checkpoints=stats.checkpoint_count,
        messages=len(session.messages(all_versions=True, branch="all")),
        tool_calls=stats.tool_call_count,
        memories=len(session.memory.list()),
        bytes_freed=stats.bytes,
    )


@common.database_command
@common.session_argument
def restore(sessions: Sessions, session_id: str) -> None:
    """Restore an archived session unchanged. Its idle time starts now."""
    sessions.restore(session_id)
    _explain(sessions, session_id)


@common.database_command
@common.session_argument
@click.option("--why", metavar="TEXT", help="The reason, recorded with the pin and the event.")
@click.option("--by", metavar="NAME", help="The person who asked for it.")
def pin(sessions: Sessions, session_id: str, why: str | None, by: str | None) -> None:
    """Exempt a session from expiry and from sweeps."""
    sessions.get(session_id).pin(why, by=by)
    _explain(sessions, session_id)


@common.database_command
@common.session_argument
def unpin(sessions: Sessions, session_id: str) -> None:
    """End the exemption of a pinned session. Its idle time starts now."""
    sessions.get(session_id).unpin()
    _explain(sessions, session_id)


@click.command()
@common.db_option
@click.option("--deep", is_flag=True, help="Read every row, and compare state with its checksums.")
@click.option("--repair", is_flag=True, help="Recompute counters and indexes, and delete orphaned rows.")
@common.json_option
def check(db: str | None, deep: bool, repair: bool, as_json: bool) -> None:
    """Check a database, which may be damaged. Exit code 1 when a problem is left."""
    from session_middleware.cli.health import problems_picture
    from session_middleware.storage.factory import is_postgres

    if repair or is_postgres(common.settings_of(db).storage_url):
        with common.existing(db, sweep_interval=None) as sessions:
            problems = sessions.check(repair=repair, deep=deep)
    else:
        from session_middleware.settings import load_settings
        from session_middleware.storage.sqlite.integrity import check_file

        problems = check_file(common.existing_file(db), load_settings(), deep=deep)
    common.print_result(problems, problems_picture(problems), as_json=as_json)
    if not all(problem.repaired for problem in problems):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy all sessions to another database.

    SOURCE and TARGET are paths of SQLite files or postgresql:// URLs. All rows and states are compared afterwards.
    An interrupted copy continues when it is run again. The target has no sessions of its own.
    """
    from session_middleware.models import utc_now
    from session_middleware.storage.factory import is_postgres, open_storage
    from session_middleware.storage.sql.copying import copy_database

    def advance(done: int, total: int) -> None:
        bar.length = total
        bar.update(done - bar.pos)

    def storage_of(place: str) -> SqlStorage:
        storage = open_storage(common.settings_of(place), utc_now)
        opened.callback(storage.close)
        return storage

    with ExitStack() as opened:
        copied = storage_of(source if is_postgres(source) else common.existing_file(source))
        with click.progressbar(length=1, label="copying rows", file=sys.stderr) as bar:
            counts = copy_database(copied, storage_of(target), progress=advance)
    click.echo(
        f"copied {plural(counts['sessions'], 'session')} in {plural(sum(counts.values()), 'row')}; "
        f"all rows and the latest states are equal"
    )


@click.command()
@common.new_db_option
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL for PostgreSQL, and change nothing.")
@click.option(
    "--partitions", type=click.IntRange(2, 1000), help="With --sql: make each table this many hash partitions."
)
def migrate(db: str | None, as_sql: bool, partitions: int | None) -> None:
    """Create the tables in a database, or print the SQL for a role that may."""
    if partitions and not as_sql:
        raise click.UsageError("--partitions changes the SQL that is printed; add --sql")
    if as_sql:
        try:
            from session_middleware.storage.postgres.schema import script
        except ImportError as error:
            raise click.ClickException(f"{error}; run: pip install 'session-middleware[postgres]'") from error

        click.echo(script(partitions or 0))
        return
    from session_middleware.sessions import Sessions

    with Sessions(db, sweep_interval=None) as sessions:
        click.echo(f"the tables are in {sessions._storage.name}")


@common.database_command
@click.argument("user_id", metavar="USER")
@_dry_run_option
@common.yes_option
@common.json_option
def forget(sessions: Sessions, user_id: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete all data of a user and print a receipt. Exit code 1 when the files still hold some of it."""
    from session_middleware.cli.health import erasure_picture, has_data

    receipt = sessions.forget_user(user_id, dry_run=True)
    if not dry_run:
        if not yes and has_data(receipt):
            question = f"Delete {plural(receipt.sessions, 'session')} and all other data of {user_id!r}?"
            click.confirm(question, abort=True, err=True)
        receipt = sessions.forget_user(user_id)
    common.print_result(receipt, erasure_picture(receipt), as_json=as_json)
    if receipt.pending:
        raise click.exceptions.Exit(1)


@common.database_command
@click.argument("user_id", metavar="USER")
@click.option("--reason", metavar="TEXT", help="Recorded with the events.")
@click.option("--lift", is_flag=True, help="Admit the user again.")
def revoke(sessions: Sessions, user_id: str, reason: str | None, lift: bool) -> None:
    """Refuse a user, and end the user's open sessions."""
    was_revoked = sessions._storage.is_revoked(user_id)
    ended = sessions.revoke(user_id, reason=reason, lift=lift)
    if lift:
        click.echo(f"user {user_id!r} is admitted again" if was_revoked else f"user {user_id!r} was not revoked")
    else:
        click.echo(f"user {user_id!r} is revoked; ended {plural(len(ended), 'open session')}")


COMMANDS = (usage, sweep, explain, pin, unpin, delete, restore, check, copy, migrate, forget, revoke)
