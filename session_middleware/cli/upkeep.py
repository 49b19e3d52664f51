"""The operator's commands: sweeps, checks, the size of the file, and users to forget or revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli import options
from session_middleware.cli.options import command
from session_middleware.cli.output import output_options, print_result, say
from session_middleware.display.text import plural, span_text

if TYPE_CHECKING:
    from session_middleware.models import SweepResult
    from session_middleware.sessions import Sessions


@command(
    "sweep --dry-run", "sweep --yes", "sweep --older-than 90d --status completed --yes", settings=("idle_timeout",)
)
@options.dry_run_option
@options.duration_option("--idle-timeout", "Such as 30m or 7d. [default: that of the app]")
@options.duration_option("--older-than", "Delete sessions inactive for longer than this, such as 90d.")
@click.option("--status", metavar="STATUS", help="With --older-than: only with this status, such as expired.")
@options.yes_option
@output_options
def sweep(
    sessions: Sessions,
    dry_run: bool,
    older_than: str | None,
    status: Any,
    yes: bool,
    output: str | None,
) -> None:
    """End the sessions that are due.

    The app's settings on_expire and retention decide how. With --older-than, delete old sessions instead.
    """
    from session_middleware.cli.opening import confirm
    from session_middleware.cli.tables import sweep_table

    if status and not older_than:
        raise click.UsageError("--status applies to --older-than only; give --older-than too")
    if not dry_run:
        due = sessions.sweep(dry_run=True, older_than=older_than, status=status)
        if lost := [each for each in due if each.action == "delete"]:
            age = f" last active more than {older_than} ago" if older_than else ""
            confirm(f"Delete {plural(len(lost), 'session')}{age}?", yes=yes)
    ended: list[SweepResult] = list(sessions.sweep(dry_run=dry_run, older_than=older_than, status=status))
    print_result(ended, sweep_table(ended), output)
    if output is None:
        timeout = sessions.settings.idle_timeout
        rule = f"idle for {span_text(timeout)}" if timeout else "no idle timeout"
        rule = f"older than {older_than}" if older_than else rule
        say(f"{len(ended)} {'would be ended' if dry_run else 'ended'}; the rule is {rule}")


@command("check", "check --deep", "check --repair --json", db=None)
@options.db_option
@click.option("--deep", is_flag=True, help="Read every row, and compare state with its checksums.")
@click.option("--repair", is_flag=True, help="Recompute counters and indexes, and delete orphaned rows.")
@output_options
def check(db: str | None, deep: bool, repair: bool, output: str | None) -> None:
    """Check a database, which may be damaged. Exit code 1 when a problem is left."""
    from session_middleware.cli.health import problems_picture
    from session_middleware.cli.opening import app_settings, opened
    from session_middleware.cli.place import place_of
    from session_middleware.storage.factory import is_postgres

    place = place_of(db)
    if repair or is_postgres(place):
        with opened(db, quiet=True) as sessions:
            problems = list(sessions.check(repair=repair, deep=deep))
    else:
        from session_middleware.settings import load_settings
        from session_middleware.storage.sqlite.integrity import check_file

        problems = check_file(place, load_settings(**app_settings(place)), deep=deep)
    print_result(problems, problems_picture(problems), output)
    if not all(problem.repaired for problem in problems):
        raise click.exceptions.Exit(1)


@command("doctor", "doctor --json", db=None)
@options.db_option
@output_options
def doctor(db: str | None, output: str | None) -> None:
    """Report versions, sizes and problems. Exit code 1 when there is a problem."""
    from session_middleware.cli.doctor import diagnosis_picture, examine, examine_server
    from session_middleware.cli.opening import app_settings
    from session_middleware.settings import load_settings
    from session_middleware.storage.factory import file_path, is_postgres

    url = load_settings(**({} if db is None else {"storage_url": db})).storage_url
    place = url if is_postgres(url) else file_path(url)
    chosen = app_settings(place)
    settings = load_settings(storage_url=place, **chosen)
    diagnosis = examine_server(settings) if is_postgres(place) else examine(place, settings)
    diagnosis["app_settings"] = chosen
    print_result(diagnosis, diagnosis_picture(diagnosis), output)
    if diagnosis["problems"]:
        raise click.exceptions.Exit(1)


@command("compact")
def compact(sessions: Sessions) -> None:
    """Shrink the database file: rebuild it without unused pages, and empty its log.

    It needs as much free disk as the file has, and other processes cannot write meanwhile.
    """
    from rich.filesize import decimal

    freed = sessions._storage.compact()
    if freed is None:
        click.echo(
            "PostgreSQL reuses the space of deleted rows by itself; to return it to the disk, run in psql:\n"
            "VACUUM (FULL, ANALYZE);\n"
            "VACUUM FULL locks each table while it is rewritten"
        )
    else:
        say(f"{decimal(freed)} freed")


@command("forget alice --dry-run", "forget alice --yes")
@click.argument("user_id", metavar="USER")
@options.dry_run_option
@options.yes_option
@output_options
def forget(sessions: Sessions, user_id: str, dry_run: bool, yes: bool, output: str | None) -> None:
    """Delete all data of a user and print a receipt. Exit code 1 when the files still hold some of it."""
    from session_middleware.cli.health import erasure_picture, has_data
    from session_middleware.cli.opening import confirm

    receipt = sessions.forget_user(user_id, dry_run=True)
    if not dry_run:
        if has_data(receipt):
            confirm(f"Delete {plural(receipt.sessions, 'session')} and all other data of {user_id!r}?", yes=yes)
        receipt = sessions.forget_user(user_id)
    print_result(receipt, erasure_picture(receipt), output)
    if receipt.pending:
        raise click.exceptions.Exit(1)


@command("revoke mallory --reason 'leaked key'", "revoke mallory --lift")
@click.argument("user_id", metavar="USER")
@click.option("--reason", metavar="TEXT", help="Recorded with the events.")
@click.option("--lift", is_flag=True, help="Admit the user again.")
def revoke(sessions: Sessions, user_id: str, reason: str | None, lift: bool) -> None:
    """Refuse a user, and end the user's open sessions."""
    was_revoked = sessions._storage.list_revoked([user_id])
    ended = sessions.revoke(user_id, reason=reason, lift=lift)
    if lift:
        say(f"user {user_id!r} is admitted again" if was_revoked else f"user {user_id!r} was not revoked")
    else:
        say(f"user {user_id!r} is revoked; ended {plural(len(ended), 'open session')}")


COMMANDS = (sweep, check, doctor, compact, forget, revoke)
