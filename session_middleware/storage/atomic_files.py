"""Files and folders that are written completely or not at all, readable by this user only."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from session_middleware.errors import SessionError, StorageError

ADVICE = "check the folder's permissions and the free disk space"


@contextmanager
def replacing(path: Path, *, advice: str = ADVICE) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move what the block has written there to `path`.

    If the block raises, `path` is unchanged. The remains of a killed process are removed by the next call.

    Raises:
        StorageError: it cannot be written, or `path` is a database or a folder with files.
    """
    temporary = temporary_of(path)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o700)  # the names of the files contain session ids
        _discard(temporary)
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if isinstance(error, SessionError):
            raise
        raise StorageError(str(path), f"it cannot be written ({error})", advice=advice) from error
    finally:
        with suppress(OSError):
            _discard(temporary)


@contextmanager
def written(path: Path, *, advice: str = ADVICE) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` after the block; compressed if the path ends with ``.gz``."""
    check_target(path)
    with replacing(path, advice=advice) as temporary, created(temporary) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
                yield cast("IO[bytes]", compressed)
        else:
            yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder, which is moved to `path` after the block; `path` must be missing or an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(str(path), "it exists already", advice="name a new folder for the export")
    with replacing(path) as temporary:
        temporary.mkdir(mode=0o700)
        yield temporary


def created(path: Path) -> IO[Any]:
    """A new file, private whatever the umask."""
    file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    path.chmod(0o600)
    return file


def check_own(file: IO[bytes], path: Path) -> None:
    """Raise `OSError` if another process has replaced the temporary file that this one writes."""
    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise FileExistsError("another process is writing it too")


def check_target(path: Path) -> None:
    """Raise `StorageError` if an export to this path would replace a database or a folder."""
    if path.is_dir():
        raise StorageError(str(path), "it is a folder", advice="name a file in it")
    if is_database(path):
        raise StorageError(str(path), "it is a database", advice="name another file for the export")


def is_database(path: Path, *, or_backup: bool = True) -> bool:
    """Whether it is an SQLite file. A backup is one that has no log."""
    real = Path(os.path.realpath(path))
    if any(real.with_name(real.name + end).exists() for end in ("-wal", "-shm")):
        return True  # it may be open here, and closing a file releases all locks of this process on it
    if not real.is_file() or not os.access(real, os.R_OK):
        return False
    with real.open("rb") as file:
        header = file.read(20)
    return header.startswith(b"SQLite format 3\0") and (or_backup or header[18:] == b"\2\2")


def file_name(text: str) -> str:
    """A name that every file system accepts, distinct for distinct texts."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)[:64]
    is_same = kept == text and text == text.lower()  # some file systems ignore case
    return kept if is_same else f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def temporary_of(path: Path) -> Path:
    return path.with_name(f"partial.{path.name}")


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
