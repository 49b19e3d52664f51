"""The command line: list and show sessions, chat, import, and the operator's commands.

A command imports heavy modules only when it runs. An error of this package is one line on stderr and exit
code 1, or 2 for an invalid argument. A command that only reads never creates a file.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware import __version__
from session_middleware.cli import common, operator
from session_middleware.display.text import plural
from session_middleware.errors import SessionError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from session_middleware.sessions import Sessions


class _InvalidArgument(click.ClickException):
    exit_code = 2  # as click's own usage errors


class _Commands(click.Group):
    """Prints the errors of this package as one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SessionError as error:
            failure = _InvalidArgument if isinstance(error, common.USAGE_ERRORS) else click.ClickException
            raise failure(common.error_text(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="session-middleware")
def cli() -> None:
    """Sessions for LangGraph agents, in one SQLite file."""


@common.database_command
@common.user_option
@common.status_option
@click.option("--archived", is_flag=True, help="Only archived sessions.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="The most rows to show."
)
@common.json_option
def list_command(
    sessions: Sessions, user_id: str | None, status: Any, archived: bool, limit: int, as_json: bool
) -> None:
    """List sessions, latest activity first."""
    if archived and status:
        raise click.UsageError("an archived session has no status; leave out --archived or --status")
    from session_middleware.cli import tables

    if archived:
        files = sessions.list_archived(user_id=user_id, limit=limit)
        common.print_result(files, tables.archives_table(files), as_json=as_json)
        return
    found = sessions.list(user_id=user_id, status=status, limit=limit)
    common.print_result(found, tables.sessions_table(found), as_json=as_json)
    total = 0 if as_json else sessions.count(user_id=user_id, status=status)
    if total > len(found):
        click.echo(f"{len(found)} of {total}; see more with --limit {total}")


@common.database_command
@common.session_argument
@click.option("--full", is_flag=True, help="All records, with their whole text.")
@common.json_option
def show(sessions: Sessions, session_id: str, full: bool, as_json: bool) -> None:
    """Show the timeline of a session.

    It consists of its messages, calls, runs and events.
    """
    from session_middleware.cli.tables import timeline
    from session_middleware.storage.timeline import kind_of

    session = sessions.get(session_id)
    records = session.timeline()
    rows = [{"record": kind_of(each), **each.model_dump(mode="json")} for each in records]
    value = {"session": session, "stats": session.stats(), "timeline": rows} if as_json else None
    common.print_result(value, timeline(session, records, full=full), as_json=as_json)


@cli.command()
@common.new_db_option
@click.option("--thread", metavar="ID", help="The session to open or resume. [default: a new one]")
@click.option("--user", "user_id", metavar="ID", help="The owner of the session.")
@click.option(
    "--model",
    "name",
    metavar="PROVIDER:NAME",
    help="A LangChain model. [default: none; each answer repeats your first]",
)
def chat(db: str | None, thread: str | None, user_id: str | None, name: str | None) -> None:
    """Chat with a model. The same --thread resumes the conversation."""
    model = _make_model(name)
    from session_middleware.cli.chat import converse
    from session_middleware.sessions import Sessions

    with Sessions(db) as sessions:
        converse(sessions, common.console_of_stdout(), thread=thread, user_id=user_id, model=model)


def _make_model(name: str | None) -> BaseChatModel | None:
    if name is None:
        return None
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise click.ClickException(
            "--model needs LangChain; install it with pip install 'session-middleware[chat]'"
        ) from error
    try:
        return init_chat_model(name)
    except Exception as error:  # the providers' own errors too; their sentences name a package to install, or a key
        raise click.ClickException(f"{name!r} cannot be used: {' '.join(str(error).split())}") from error


@cli.command("import-checkpoints")
@click.argument("source")
@common.new_db_option
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
    types = _import_types(allowed)
    from rich.filesize import decimal

    from session_middleware.importers.langgraph import import_checkpoints
    from session_middleware.importers.langgraph_source import open_source
    from session_middleware.sessions import Sessions

    def advance(handled: int, total: int) -> None:
        bar.length = total
        bar.update(handled - bar.pos)

    with open_source(source) as saver, Sessions(db, allowed_types=types) as sessions:
        with click.progressbar(length=1, label="copying checkpoints") as bar:
            done = import_checkpoints(saver, sessions, user_key=user_key, progress=advance)
        target = sessions.settings.storage_url
    click.echo(
        f"copied {plural(done.checkpoints, 'checkpoint')} with {plural(done.writes, 'write')}, skipped "
        f"{done.skipped:,} already there; {plural(done.threads, 'thread')}, {len(done.not_copied):,} not copied"
    )
    if done.unowned:
        click.echo(f"without an owner, and so open to everyone: {plural(done.unowned, 'thread')}")
    sizes = [f"{name} {decimal(Path(name).stat().st_size)}" for name in (source, target) if Path(name).is_file()]
    click.echo(", ".join(sizes))
    for thread in done.not_copied:
        click.echo(f"not copied: thread {thread.thread_id!r}: {thread.reason}", err=True)
    if done.not_copied:
        raise click.exceptions.Exit(1)


def _import_types(allowed: Sequence[str]) -> list[tuple[str, str]]:
    if allowed and (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # an installed command, unlike `python -m`, does not search the current folder
    types = []
    for text in allowed:
        module, _, name = text.rpartition(":")
        if not module or not name:
            raise click.BadParameter(f"{text!r} is not MODULE:CLASS, such as myapp.state:Order", param_hint="--allow")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise click.BadParameter(f"{module} cannot be imported ({error})", param_hint="--allow") from error
        types.append((module, name))
    return types


@cli.command()
@common.db_option
@common.json_option
def doctor(db: str | None, as_json: bool) -> None:
    """Report versions, sizes and problems. Exit code 1 when there is a problem."""
    from session_middleware.cli.doctor import diagnosis_picture, examine
    from session_middleware.storage.factory import file_path, is_postgres

    settings = common.settings_of(db)
    if is_postgres(settings.storage_url):
        raise click.UsageError("doctor examines a file; validate a PostgreSQL database with check --db URL")
    diagnosis = examine(file_path(settings.storage_url), settings)
    common.print_result(diagnosis, diagnosis_picture(diagnosis), as_json=as_json)
    if diagnosis["problems"]:
        raise click.exceptions.Exit(1)


for _command in (list_command, show, *operator.COMMANDS):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. If the output cannot be written, print one line, or nothing if its reader has ended."""
    try:
        try:
            cli(arguments, prog_name="session-middleware")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout once more
        if error.errno != errno.EPIPE:
            click.echo(f"Error: the output cannot be written ({error.strerror}); write it elsewhere", err=True)
        sys.exit(1)
