"""The command line: the commands by theme, and the errors of all of them.

A command imports heavy modules only when it runs. An error of this package is one line on stderr and exit
code 1, or 2 for an invalid argument. A command that only reads never creates a file.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from session_middleware import __version__
from session_middleware.cli import editing, moving, reading, running, sentences, serving, upkeep
from session_middleware.errors import SessionError

_THEMES = {
    "Read": reading.COMMANDS,
    "Change": editing.COMMANDS,
    "Run": running.COMMANDS,
    "Serve": serving.COMMANDS,
    "Move": moving.COMMANDS,
    "Maintain": upkeep.COMMANDS,
}

_WHOLE = 1_000  # characters of the first sentence of a command's help


class _InvalidArgument(click.ClickException):
    exit_code = 2  # as click's own usage errors


class _Commands(click.Group):
    """Lists commands by theme, and prints the errors of this package as one line on stderr."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for theme, commands in _THEMES.items():
            with formatter.section(theme):
                formatter.write_dl([(str(each.name), each.get_short_help_str(_WHOLE)) for each in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SessionError as error:
            failure = _InvalidArgument if isinstance(error, sentences.USAGE_ERRORS) else click.ClickException
            raise failure(sentences.error_text(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="session-middleware")
def cli() -> None:
    """Sessions for LangGraph agents, in one SQLite file or a PostgreSQL database.

    A command takes the id of a session, a unique beginning of it, or "last": the session that was active last.
    Exit codes: 0 done, 1 an error or problems found, 2 wrong usage.
    """


for _command in (command for commands in _THEMES.values() for command in commands):
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
