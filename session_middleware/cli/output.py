"""The output of commands: a picture for people; JSON, JSON lines or CSV for programs."""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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


SIGNS = str.maketrans("–…→·›", "-~>|>")  # noqa: RUF001 - signs of our own, and those that ASCII has instead


def _replace(error: UnicodeError) -> tuple[str, int]:
    """A sign of ASCII, or a question mark, for each character that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(SIGNS)
    return lacking.encode("ascii", "replace").decode(), error.end


codecs.register_error("session_middleware", _replace)


def console_of_stdout() -> Console:
    """A console on the current stdout, which replaces the characters that its encoding lacks."""
    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="session_middleware")
    return Console(highlight=False)


def print_result(value: Any, picture: RenderableType, output: str | None, *, rows: Iterable[Any] | None = None) -> None:
    """Print values of this package, or lists and dicts of them, in a format, or as their picture.

    `rows` are those of JSON lines and CSV; by default the elements of a list, or the value.
    """
    if output is None:
        console_of_stdout().print(picture, crop=False)
    elif output == "json":
        click.echo(json.dumps(_plain(value), indent=2))
    else:
        own = value if isinstance(value, list) else [value]
        chosen = own if rows is None else rows
        if output == "jsonl":
            print_lines(chosen)
        else:
            _print_csv(chosen)


def say(sentence: str) -> None:
    """Print a sentence, which a terminal wraps between words."""
    from rich.text import Text

    from session_middleware.cli.health import Sentence

    console_of_stdout().print(Sentence(Text(sentence)), crop=False)


def print_lines(rows: Iterable[Any]) -> None:
    for row in rows:
        click.echo(json.dumps(_plain(row)))


def _plain(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=dict)


def _print_csv(rows: Iterable[Any]) -> None:
    plain = [_plain(row) for row in rows]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if not plain:
        return
    names = list(dict.fromkeys(name for row in plain for name in row))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in plain)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else value
