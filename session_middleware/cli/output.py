"""The output of commands: a picture for people; JSON, JSON lines or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_UNBOUNDED = 1_000_000  # columns
_FORMATS = {
    "json": "Print JSON.",
    "jsonl": "Print JSON lines: one object for each row.",
    "csv": "Print CSV; lists and objects in it are JSON.",
}


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the output's format, which give `output`: a name of `_FORMATS`, or ``None`` for people."""
    for name, text in reversed(_FORMATS.items()):
        function = click.option(f"--{name}", "output", flag_value=name, default=None, help=text)(function)
    return function


jsonl_option = click.option("--jsonl", "output", flag_value="jsonl", default=None, help=_FORMATS["jsonl"])


def make_console(*, stderr: bool = False) -> Console:
    """A console on the current stdout or stderr. Characters that its encoding lacks are escaped.

    Only a terminal has a width: other output has lines of any length.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    return console


def print_result(value: Any, picture: RenderableType, output: str | None, *, rows: Iterable[Any] | None = None) -> None:
    """Print values of this package, or lists and dicts of them, in a format, or as their picture.

    `rows` are those of JSON lines and CSV; by default the elements of a list, or the value.
    """
    if output is None:
        make_console().print(picture, crop=False)
    elif output == "json":
        click.echo(json.dumps(_plain(value), indent=2))
    else:
        chosen = rows if rows is not None else value if isinstance(value, list) else [value]
        (print_lines if output == "jsonl" else _print_csv)(chosen)


def say(sentence: str, style: str = "", *, stderr: bool = False) -> None:
    """Print a sentence, which a terminal wraps between words, so that ids can be copied."""
    from rich.text import Text

    make_console(stderr=stderr).print(Text(sentence, style, overflow="ignore"), crop=False)


def print_lines(rows: Iterable[Any]) -> None:
    for row in rows:
        click.echo(json.dumps(_plain(row)))


def _plain(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=dict)


def _print_csv(rows: Iterable[Any]) -> None:
    plain = [_plain(row) for row in rows]
    if not plain:
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    names = list(dict.fromkeys(name for row in plain for name in row))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in plain)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else value
