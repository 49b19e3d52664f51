"""The format of exports and archives: sessions as a file of JSON lines, the same for every engine.

The first line is the header: ``{"format", "version", "library", "sessions"}``. Each further line is one row of a
table: ``{"table", "row"}``. A row is an object with one value for each column; bytes are ``{"$bytes": base64}``. The
sessions of a family come before their other rows, and these before the next family. The last line, ``{"rows",
"sha256"}``, has the number of rows and the digest of all lines before it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from session_middleware.errors import SessionError, StorageError
from session_middleware.storage.atomic_files import ADVICE, temporary_of, written
from session_middleware.storage.types import Progress

FORMAT, VERSION = "session-middleware.sessions", 1
_LONGEST_LINE = 1_500_000_000  # bytes; SQLite stores values of up to 10**9 bytes, which are base64 here
_library = cache(lambda: version("session-middleware"))  # `version` reads folders

Row = dict[str, Any]


class Line(NamedTuple):
    number: int
    table: str
    row: Row


class Refusal(Exception):
    """A line of a file is not what was exported."""

    def __init__(self, number: int, reason: str) -> None:
        self.number, self.reason = number, reason
        super().__init__(f"line {number}: {reason}")


@contextmanager
def reading(
    path: Path, *, noun: str = "file", advice: str = "nothing of it was imported; export the sessions again"
) -> Iterator[None]:
    """Map `Refusal` and errors of the operating system in the block to `StorageError`, which names the file."""
    try:
        yield
    except Refusal as error:
        raise StorageError(str(path), str(error), advice=advice) from error
    except FileNotFoundError as error:
        raise StorageError(str(path), f"the {noun} is missing", advice=advice) from error
    except OSError as error:
        if isinstance(error, SessionError):
            raise
        raise StorageError(str(path), f"it cannot be read ({error})", advice=advice) from error


def write(path: Path, sessions: int, rows: Iterable[tuple[str, Row]], *, advice: str = ADVICE) -> str:
    """Write a file atomically, readable by this user only, and return its digest.

    Raises:
        StorageError: the file cannot be written.
    """
    header = {"format": FORMAT, "version": VERSION, "library": _library(), "sessions": sessions}
    digest, count = hashlib.sha256(), -1
    with written(path, advice=advice) as file:
        lines: Iterable[Row] = chain([header], ({"table": table, "row": row} for table, row in rows))
        for count, entry in enumerate(lines):  # noqa: B007  # counts the rows
            digest.update(line := _line(entry))
            file.write(line)
        file.write(_line({"rows": count, "sha256": digest.hexdigest()}))
    return digest.hexdigest()


class Reading:
    """One pass over a file. `digest` is known at its end."""

    def __init__(self, path: Path, digest: str | None = None, *, progress: Progress | None = None) -> None:
        """`digest`: that of the first pass, which this second one must have again."""
        self._path, self._expected, self._progress = path, digest, progress
        self.digest = ""

    def __iter__(self) -> Iterator[Line]:
        """The rows in order; at the end, the file has been verified. Raises `Refusal`, and `OSError`."""
        opener: Any = gzip.open if self._path.suffix == ".gz" else open
        number = done = sessions = 0
        try:
            with opener(self._path, "rb") as file:
                for number, entry in self._entries(file):
                    if number == 1:
                        sessions = entry
                        continue
                    yield entry
                    done += entry.table == "sessions"
                    if self._progress is not None and entry.table == "sessions":
                        self._progress(done + (sessions if self._expected else 0), 2 * sessions)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Refusal(number + 1, f"the compressed file is cut off or damaged ({error})") from error

    def _entries(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """The number and the `Line` of each line; of the first the number of sessions."""
        digest, number = hashlib.sha256(), 0
        while content := file.readline(_LONGEST_LINE):
            number += 1
            try:
                entry = json.loads(content, parse_constant=_refuse_constant)
                if not isinstance(entry, dict):
                    raise ValueError("it is not a JSON object")
                if "sha256" in entry:
                    self._verify(entry, digest.hexdigest(), number - 2)
                    if file.readline(1):
                        raise ValueError("it should be the last line")
                    return
                line = _line_of(number, entry) if number > 1 else _sessions_in(entry)
            except (ValueError, RecursionError) as error:
                reason = (
                    f"it is not JSON ({error})"
                    if isinstance(error, (json.JSONDecodeError, UnicodeError))
                    else str(error)
                )
                raise Refusal(number, reason) from error
            yield number, line
            digest.update(content)
        raise Refusal(number + 1, "the end is missing: the file was cut off")

    def _verify(self, end: Row, digest: str, rows: int) -> None:
        if end.get("rows") != rows:
            raise ValueError(f"the file has {rows:,} rows instead of {end.get('rows')!r}")
        if end["sha256"] != digest or self._expected not in (None, digest):
            raise ValueError("the checksum differs: a line was changed")
        self.digest = digest


def remove(path: Path) -> int:
    """Delete a file and the remains of an interrupted `write`; returns the file's size, or 0 if it is missing.

    Raises:
        StorageError: the file cannot be deleted.
    """
    try:
        temporary_of(path).unlink(missing_ok=True)
        size = path.stat().st_size
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise StorageError(str(path), f"it cannot be deleted ({error})", advice="check its permissions") from error
    return size


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_packed).encode() + b"\n"


def _packed(value: bytes) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode()}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() != {"$bytes"} or not isinstance(value["$bytes"], str):
        raise ValueError("a value is an object other than bytes")
    return base64.b64decode(value["$bytes"], validate=True)


def _sessions_in(header: Row) -> int:
    if header.get("format") != FORMAT:
        raise ValueError(f"it is not the header of an export of session-middleware ({FORMAT})")
    if header.get("version") != VERSION:
        release = str(header.get("library"))[:20]
        raise ValueError(
            f"the version of the format is {header.get('version')!r} (session-middleware {release}), "
            f"and this release reads version {VERSION}"
        )
    return header["sessions"] if isinstance(header.get("sessions"), int) else 0


def _line_of(number: int, entry: Row) -> Line:
    if entry.keys() != {"table", "row"} or not isinstance(entry["table"], str) or not isinstance(entry["row"], dict):
        raise ValueError("it is not a row of a table")
    return Line(number, entry["table"], {name: _unpacked(value) for name, value in entry["row"].items()})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
