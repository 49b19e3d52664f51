"""The export format: one session as a file of JSON lines, the same for every engine.

The first line is the header: ``{"format", "version", "library", "session"}``. Each further line is one row of a
table: ``{"table", "row"}``. A row is an object with one value for each column; bytes are ``{"$bytes": base64}``.
The last line, ``{"rows", "sha256"}``, holds the number of rows and the digest of all lines before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from session_middleware.errors import StorageError

FORMAT, VERSION = "session-middleware.session", 1
_library = cache(lambda: version("session-middleware"))  # `version` reads folders

Row = dict[str, Any]


def write(path: Path, session: Mapping[str, Any], rows: Iterable[tuple[str, Row]]) -> str:
    """Write a file atomically, readable by this user only, and return its digest.

    Raises:
        StorageError: the file cannot be written.
    """
    header = {"format": FORMAT, "version": VERSION, "library": _library(), "session": session}
    temporary, digest, count = _temporary(path), hashlib.sha256(), -1
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o700)  # the names of the files contain session ids
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            temporary.chmod(0o600)  # independent of the umask
            lines: Iterable[Row] = chain([header], ({"table": table, "row": row} for table, row in rows))
            for count, entry in enumerate(lines):  # noqa: B007  # counts the rows
                digest.update(line := _line(entry))
                file.write(line)
            file.write(_line({"rows": count, "sha256": digest.hexdigest()}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name != "nt":
            _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        advice = "check the folder's permissions and the free disk space; nothing was deleted"
        raise StorageError(str(path), f"it cannot be written ({error})", advice=advice) from error
    return digest.hexdigest()


def read(path: Path, digest: str | None = None) -> dict[str, list[Row]]:
    """Verify a file, also against a known digest, and return its rows by table.

    Raises:
        StorageError: the file is missing, was changed or replaced, or has a newer version.
    """
    try:
        body, _, end = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        found = hashlib.sha256(body + b"\n").hexdigest()
        if json.loads(end)["sha256"] != found or digest not in (None, found):
            raise ValueError("its digest differs")
        header, *entries = map(json.loads, body.split(b"\n"))
        if header["format"] != FORMAT or header["version"] > VERSION:
            raise ValueError(f"its format is {header['format']} {header['version']}, of release {header['library']}")
        rows: dict[str, list[Row]] = {}
        for entry in entries:
            rows.setdefault(entry["table"], []).append(_unpacked(entry["row"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "the archive is missing" if is_missing else f"it is not a valid export file ({error})"
        raise StorageError(
            str(path), problem, advice="put back the file from a backup, or delete the session"
        ) from error
    return rows


def remove(path: Path) -> int:
    """Delete a file and the remains of an interrupted `write`; returns the file's size, or 0 if it is missing.

    Raises:
        StorageError: the file cannot be deleted.
    """
    try:
        _temporary(path).unlink(missing_ok=True)
        size = path.stat().st_size
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise StorageError(str(path), f"it cannot be deleted ({error})", advice="check its permissions") from error
    return size


def file_name(text: str) -> str:
    """A name that every file system accepts, distinct for distinct texts."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)[:64]
    is_same = kept == text and text == text.lower()  # some file systems ignore case
    return kept if is_same else f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_packed).encode() + b"\n"


def _packed(value: bytes) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode()}


def _unpacked(row: Row) -> Row:
    return {
        name: base64.b64decode(value["$bytes"]) if isinstance(value, dict) else value for name, value in row.items()
    }


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
