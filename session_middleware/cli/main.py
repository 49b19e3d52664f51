"""The command line: look at the sessions of a database, sweep it, move in, talk to a model.

Nothing heavy is imported until a command needs it. Errors of this package are one line and exit
code 1, and a command that only looks never makes a file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from session_middleware import __version__
from session_middleware.cli import operator
from session_middleware.cli.common import (
    STATUSES,
    console_of_stdout,
    db_option,
    existing,
    json_option,
    path_of,
    print_json,
)
from session_middleware.display.text import plural
from session_middleware.errors import SessionError, SessionNotFound

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from session_middleware.importers.langgraph import Imported
    from session_middleware.session import Session
    from session_middleware.storage.types import ArchivedSession


class _Commands(click.Group):
    """Turns the errors of this package into a line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SessionNotFound as error:
            if error.archived:
                told = f"session {error.session_id!r} is archived; `session-middleware restore` brings it back"
            else:
                told = f"there is no session {error.session_id!r}; `session-middleware list` shows what there is"
            raise click.ClickException(told) from error
        except SessionError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="session-middleware")
def cli() -> None:
    """Sessions for LangGraph agents, in one SQLite file."""


@cli.command("list")
@db_option()
@click.option("--user", "user_id", metavar="ID", help="Only sessions this user owns.")
@click.option("--status", type=click.Choice(STATUSES), help="Only sessions with this status.")
@click.option("--archived", is_flag=True, help="Those that are in their archives instead.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@json_option
def list_command(db: str | None, user_id: str | None, status: Any, archived: bool, limit: int, as_json: bool) -> None:
    """List sessions, latest activity first."""
    if archived and status:
        raise click.UsageError("--archived and --status do not go together: an archived session has no status")
    with existing(db) as sessions:
        if archived:
            _list_archived(sessions.list_archived(user_id=user_id, limit=limit), as_json)
            return
        found = sessions.list(user_id=user_id, status=status, limit=limit)
        if as_json:
            print_json([session.model_dump(mode="json") for session in found])
            return
        from session_middleware.cli.terminal import sessions_table

        console = console_of_stdout()
        console.print(sessions_table(found), crop=False)
        total = sessions.count(user_id=user_id, status=status)
        if total > len(found):
            console.print(f"{len(found)} of {total}; see more with --limit {total}")


def _list_archived(found: Sequence[ArchivedSession], as_json: bool) -> None:
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    from session_middleware.cli.terminal import archives_table

    console_of_stdout().print(archives_table(found), crop=False)


@cli.command()
@click.argument("session_id", metavar="ID")
@db_option()
@click.option("--full", is_flag=True, help="All rows, and their whole text.")
@json_option
def show(session_id: str, db: str | None, full: bool, as_json: bool) -> None:
    """Show what was said and done in a session."""
    with existing(db) as sessions:
        session = sessions.get(session_id)
        if as_json:
            print_json(_as_json(session))
            return
        from session_middleware.cli.terminal import timeline

        console_of_stdout().print(timeline(session, session.timeline(), full=full), crop=False)


@cli.command()
@db_option("The database file; made if it is not there.")
@click.option("--thread", metavar="ID", help="The session to open or resume. [default: a new one]")
@click.option("--user", "user_id", metavar="ID", help="Whose session it is.")
@click.option(
    "--model", "name", metavar="PROVIDER:NAME", help="A model of LangChain's. [default: none; the answers only recount]"
)
def chat(db: str | None, thread: str | None, user_id: str | None, name: str | None) -> None:
    """Talk to a model. The same --thread goes on where it ended."""
    model = _make_model(name)
    from session_middleware.cli.chat import converse
    from session_middleware.sessions import Sessions

    with Sessions(db) as sessions:
        converse(sessions, console_of_stdout(), thread=thread, user_id=user_id, model=model)


@cli.command("import-checkpoints")
@click.argument("source")
@db_option("The database to copy into; made if it is not there.")
@click.option(
    "--allow", "allowed", multiple=True, metavar="MODULE:CLASS", help="A class of the state; may be repeated."
)
@click.option("--user-key", metavar="KEY", help="What the runs' configs name the user by, who becomes the owner.")
def import_command(source: str, db: str | None, allowed: tuple[str, ...], user_key: str | None) -> None:
    """Move in from LangGraph's own savers.

    Copies the threads of its SqliteSaver (a path) or PostgresSaver (a postgresql:// URL).

    SOURCE is only read. Run it again to go on after an interruption; what is there already is skipped.
    """
    types = _types(allowed)
    from session_middleware.importers.langgraph import import_checkpoints
    from session_middleware.importers.langgraph_source import open_source
    from session_middleware.sessions import Sessions

    with open_source(source) as saver, Sessions(db, allowed_types=types) as sessions:
        target = sessions.settings.storage_url
        with _progress("checkpoints") as progress:
            imported = import_checkpoints(saver, sessions, user_key=user_key, progress=progress)
    _say_imported(imported)
    sizes = [f"{name} {_size(path)}" for name in (source, target) if (path := Path(name)).is_file()]
    click.echo(", ".join(sizes))
    for left in imported.not_copied:
        click.echo(f"not copied: thread {left.thread_id!r}: {left.reason}", err=True)
    if imported.not_copied:
        raise click.exceptions.Exit(1)


@cli.command()
@db_option()
@json_option
def doctor(db: str | None, as_json: bool) -> None:
    """Say how the database stands, and what is installed. Exit code 1 when something should be done."""
    from session_middleware.cli.doctor import examine
    from session_middleware.settings import load_settings

    settings = load_settings(**({"storage_url": db} if db else {}))
    found = examine(str(path_of(settings.storage_url)), settings)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        from session_middleware.cli.health import diagnosis

        console_of_stdout().print(diagnosis(found))
    if found.problems:
        raise click.exceptions.Exit(1)


def _types(allowed: Sequence[str]) -> list[tuple[str, str]]:
    for text in allowed:
        if not all(text.rpartition(":")[::2]):
            raise click.BadParameter(f"{text!r} is not MODULE:CLASS, such as myapp.state:Order", param_hint="--allow")
    if allowed and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a command, unlike `python -m`, does not find the user's own modules
    types = [(module, name) for module, _, name in (text.rpartition(":") for text in allowed)]
    for module, _ in types:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise click.BadParameter(f"{module} cannot be imported ({error})", param_hint="--allow") from error
    return types


def _say_imported(imported: Imported) -> None:
    click.echo(
        f"copied {plural(imported.checkpoints, 'checkpoint')} with {plural(imported.writes, 'write')}, and skipped "
        f"{imported.skipped:,} already there; {plural(imported.threads, 'thread')}, "
        f"{len(imported.not_copied):,} not copied"
    )
    if imported.unowned:
        click.echo(f"without a user, and so open to everybody: {plural(imported.unowned, 'thread')}")


@contextmanager
def _progress(noun: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; else a line for each tenth."""
    console = console_of_stdout()
    if not console.is_terminal:
        tenths = 0

        def say(done: int, total: int) -> None:
            nonlocal tenths
            if done * 10 // total > tenths:
                tenths = done * 10 // total
                click.echo(f"{done:,} of {total:,} {noun}")

        yield say
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(noun), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(noun, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _size(path: Path) -> str:
    """Of a database, with the part of it that is still in its log."""
    log = Path(f"{path}-wal")
    size = path.stat().st_size + (log.stat().st_size if log.exists() else 0)
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


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
    except ImportError as error:
        provider = name.partition(":")[0].replace("_", "-")
        raise click.ClickException(
            f"the package of {provider!r} is not installed ({error}); try pip install langchain-{provider}"
        ) from error
    except ValueError as error:
        raise click.ClickException(f"{name!r} cannot be used: {' '.join(str(error).split())}") from error


# Printing


def _as_json(session: Session) -> dict[str, Any]:
    from session_middleware.storage.timeline import kind_of

    rows = [{"record": kind_of(one), **one.model_dump(mode="json")} for one in session.timeline()]
    return {
        "session": session.model_dump(mode="json"),
        "stats": session.stats().model_dump(mode="json"),
        "timeline": rows,
    }


operator.add_to(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    cli(arguments, prog_name="session-middleware")


if __name__ == "__main__":
    main()
