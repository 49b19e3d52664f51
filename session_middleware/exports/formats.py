"""The formats of exports, and the paths that they are written to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from session_middleware.errors import InvalidArgument
from session_middleware.exports.conversation import write_html, write_markdown
from session_middleware.exports.folder import write_folder
from session_middleware.storage.atomic_files import check_target, file_name, new_folder
from session_middleware.storage.types import Progress
from session_middleware.storage.validation import check_choice

if TYPE_CHECKING:
    from session_middleware.session import Session

Format: TypeAlias = Literal["jsonl", "markdown", "html", "folder"]


class _Format(NamedTuple):
    suffix: str
    write: Callable[[Session, Path], object]


FORMATS = {
    "markdown": _Format(".md", write_markdown),
    "html": _Format(".html", write_html),
    "folder": _Format("", write_folder),
}


def checked_path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip() or "\0" in str(path):
        raise InvalidArgument("path", path, wanted="the path of a file, such as 'sessions.jsonl'")
    return Path(path).expanduser().absolute()


def checked_target(path: object, format: str) -> Path:
    check_choice("format", format, get_args(Format))
    target = checked_path(path)
    if format != "folder" and not target.is_dir():
        check_target(target)
    return target


def write_all(sessions: Iterable[Session], path: Path, format: str, count: int, progress: Progress | None) -> int:
    """Write each session to a file or folder of its own in a new folder, and return how many."""
    done = 0
    with new_folder(path) as folder:
        for done, session in enumerate(sessions, 1):
            FORMATS[format].write(session, folder / f"{file_name(session.id)}{FORMATS[format].suffix}")
            if progress is not None:
                progress(done, count)
    return done
