"""Commands that move sessions between databases, files and archives."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli import options
from session_middleware.cli.loading import extra, import_object
from session_middleware.cli.options import command
from session_middleware.cli.output import say
from session_middleware.cli.reading import explain_session
from session_middleware.display.progress import progress_bar
from session_middleware.display.text import plural

if TYPE_CHECKING:
    from session_middleware.sessions import Sessions
    from session_middleware.storage.sql.engine import SqlStorage


@command("restore thread-7")
@options.id_argument()
def restore(sessions: Sessions, session_id: str) -> None:
    """Restore an archived session unchanged. Its idle time starts now."""
    from session_middleware.cli.opening import id_of

    explain_session(sessions, sessions.restore(id_of(sessions, session_id, deleted=True)).id)


@command(
    "export all.jsonl.gz",
    "export alice.jsonl --user alice",
    "export chat.html --session last --format html",
)
@click.argument("path", type=click.Path())
@click.option("--session", "session_id", metavar="ID", help="Only this session.", shell_complete=options.complete)
@click.option(
    "--format", "kind", type=click.Choice(["jsonl", "markdown", "html", "folder"]), default="jsonl", show_default=True
)
@options.filters
def export(sessions: Sessions, path: str, session_id: str | None, kind: Any, where: dict[str, Any]) -> None:
    """Write sessions to PATH: as JSON lines, which import reads, or for people.

    JSON lines are one file. The other formats are a file or folder for each session, in the folder PATH.
    """
    from session_middleware.cli.opening import id_of

    if session_id is None:
        count = sessions.export(path, kind, progress=True, **where)
        say(f"exported {plural(count, 'session')} to {path}")
        return
    if where:
        raise click.UsageError("--session names one session; leave out the filters")
    session = sessions.get(id_of(sessions, session_id))
    session.export(path, kind)
    say(f"exported session {session.id!r} to {path}")


@command("import all.jsonl.gz --db new.db", "import alice.jsonl --skip", name="import", db="new")
@click.argument("path", type=click.Path())
@click.option("--skip", is_flag=True, help="Leave the sessions as they are that are there already.")
def import_file(sessions: Sessions, path: str, skip: bool) -> None:
    """Store the sessions of a file that export wrote: all of them, or none."""
    ids = sessions.import_from(path, if_exists="skip" if skip else "raise", progress=True)
    say(f"imported {plural(len(ids), 'session')} into {sessions._storage.name}")


@command("backup copy.db", "backup backups --keep 7")
@click.argument("path", type=click.Path())
@click.option(
    "--keep",
    metavar="N",
    type=click.IntRange(1),
    help="Name the backup by the time, and delete all but the N latest ones.",
)
def backup(sessions: Sessions, path: str, keep: int | None) -> None:
    """Copy the database, beside running apps, and check the copy.

    PATH is a file, or a folder of backups that are named by the time; with --keep it is created.
    """
    target = sessions.backup(path, keep=keep, progress=True)
    say(f"backed up to {target}, and checked")


@command("restore-backup copy.db", db=None)
@click.argument("backup", type=click.Path())
@options.new_db_option
@options.yes_option
def restore_backup(backup: str, db: str | None, yes: bool) -> None:
    """Put a backup in the place of the database file, which may be damaged.

    Stop the app first. The old file stays beside the new one, under another name.
    """
    from session_middleware.cli.opening import confirm
    from session_middleware.settings import load_settings
    from session_middleware.storage.factory import file_path, is_postgres
    from session_middleware.storage.sqlite import backups

    settings = load_settings(**({} if db is None else {"storage_url": db}))
    if is_postgres(settings.storage_url):
        raise click.UsageError("restore a PostgreSQL database with pg_restore, or an export with import")
    path = Path(file_path(settings.storage_url))
    if path.exists():
        confirm(f"Replace {path} by {backup}?", yes=yes)
    suffix = f"replaced-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    kept = backups.restore(Path(backup), path, settings, suffix=suffix)
    say(f"restored {path}")
    if kept is not None:
        say(f"the old file is {kept}")


@command("copy sessions.db copy.db", db=None)
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy all sessions to another database.

    SOURCE and TARGET are paths of SQLite files or postgresql:// URLs. All rows and states are compared afterwards.
    An interrupted copy continues when it is run again. The target has no sessions of its own.
    """
    from session_middleware.cli.place import place_of
    from session_middleware.models import utc_now
    from session_middleware.settings import load_settings
    from session_middleware.storage.factory import open_storage
    from session_middleware.storage.sql.copying import copy_database

    def storage_of(place: str) -> SqlStorage:
        storage = open_storage(load_settings(storage_url=place), utc_now)
        opened.callback(storage.close)
        return storage

    with ExitStack() as opened:
        copied = storage_of(place_of(source))
        with progress_bar("copying rows", wanted=True) as report:
            counts = copy_database(copied, storage_of(target), progress=report)
    say(
        f"copied {plural(counts['sessions'], 'session')} in {plural(sum(counts.values()), 'row')}; "
        f"all rows and the latest states are equal"
    )


@command(
    "import-checkpoints checkpoints.sqlite",
    "import-checkpoints checkpoints.sqlite --user-key user_id --allow myapp.state:Order",
    name="import-checkpoints",
    db=None,
)
@click.argument("source")
@options.new_db_option
@click.option(
    "--allow", "allowed", multiple=True, metavar="MODULE:CLASS", help="A class of the state; may be repeated."
)
@click.option(
    "--user-key", metavar="KEY", help="The key of the runs' configs that names the user, who becomes the owner."
)
def import_command(source: str, db: str | None, allowed: tuple[str, ...], user_key: str | None) -> None:
    """Copy the threads of LangGraph's own savers.

    SOURCE is the path of a SqliteSaver's file or the postgresql:// URL of a PostgresSaver. It is only read.
    An interrupted import continues when it is run again: checkpoints already copied are skipped.
    """
    from rich.filesize import decimal

    from session_middleware.cli.opening import opened
    from session_middleware.importers.langgraph import import_checkpoints
    from session_middleware.importers.langgraph_source import open_source

    for name in allowed:
        import_object("--allow", name)  # a class is only built if its module is imported
    types = [(module, attribute) for module, _, attribute in (name.partition(":") for name in allowed)]
    with open_source(source) as saver, opened(db, create=True, quiet=True, allowed_types=types) as sessions:
        with progress_bar("copying checkpoints", wanted=True) as report:
            done = import_checkpoints(saver, sessions, user_key=user_key, progress=report)
        target = sessions.settings.storage_url
    say(
        f"copied {plural(done.checkpoints, 'checkpoint')} with {plural(done.writes, 'write')}, skipped "
        f"{done.skipped:,} already there; {plural(done.threads, 'thread')}, {len(done.not_copied):,} not copied"
    )
    if done.unowned:
        say(f"without an owner, and so open to everyone: {plural(done.unowned, 'thread')}")
    sizes = [f"{name} {decimal(Path(name).stat().st_size)}" for name in (source, target) if Path(name).is_file()]
    say(", ".join(sizes))
    for thread in done.not_copied:
        click.echo(f"not copied: thread {thread.thread_id!r}: {thread.reason}", err=True)
    if done.not_copied:
        raise click.exceptions.Exit(1)


@command("migrate", "migrate --sql > tables.sql", "migrate --sql --partitions 16 > tables.sql", db=None)
@options.new_db_option
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL for PostgreSQL, and change nothing.")
@click.option(
    "--partitions", metavar="N", type=click.IntRange(2, 1000), help="With --sql: make each table N hash partitions."
)
def migrate(db: str | None, as_sql: bool, partitions: int | None) -> None:
    """Create the tables in a database, or print the SQL for a role that may."""
    if partitions and not as_sql:
        raise click.UsageError("--partitions changes the SQL that is printed; add --sql")
    if as_sql:
        with extra("postgres"):
            from session_middleware.storage.postgres.schema import script
        click.echo(script(partitions or 0))
        return
    from session_middleware.cli.opening import opened

    with opened(db, create=True, quiet=True) as sessions:
        say(f"the tables are in {sessions._storage.name}")


COMMANDS = (export, import_file, restore, backup, restore_backup, copy, import_command, migrate)
