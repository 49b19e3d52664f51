"""Blobs: serialised values, each stored once per family by the digest of its type and bytes.

A reference to a value, in the JSON of `checkpoints.channels` and `writes.value`, is ``null`` for ``None``, a digest
in hexadecimal, or ``{type: base64}`` for a short value. A short value costs less where it is than as a row of its
own: `INLINE_BYTES` holds for checkpoints, each of which repeats the references of its parent, `INLINE_ONCE_BYTES` for
writes, and for the input of a graph, which only one checkpoint has.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias

from session_middleware.storage.checkpoint_types import Blob
from session_middleware.storage.sql.connection import Connection, DamagedRow

if TYPE_CHECKING:
    from session_middleware.storage.sql.session_state import SessionWrite

INLINE_BYTES = 64
INLINE_ONCE_BYTES = 512
_ROWS = 16  # read by one statement, at most

Reference: TypeAlias = str | dict[str, str] | None


class CorruptRow(Exception):
    """Stored data is not what was written; the message says which."""


def digest_of(blob: Blob) -> bytes:
    return sha256(blob.type.encode() + b"\0" + blob.data).digest()[:16]


def refer(blob: Blob | None, to_store: dict[bytes, Blob], inline_bytes: int) -> Reference:
    """A reference to a value. A value that is not inline is added to `to_store`, for `put_blobs`."""
    if blob is None:
        return None
    if len(blob.data) <= inline_bytes:
        return {blob.type: b64encode(blob.data).decode()}
    digest = digest_of(blob)
    to_store[digest] = blob
    return digest.hex()


def inline_value(reference: dict[str, str]) -> Blob:
    ((kind, text),) = reference.items()
    try:
        return Blob(kind, b64decode(text, validate=True))
    except ValueError as error:
        raise CorruptRow("an inline value") from error


def put_blobs(write: SessionWrite, blobs: dict[bytes, Blob]) -> None:
    """Store blobs that may be there already. A damaged row is overwritten with what it should be."""
    rows = [(write.state.home, digest, *blob) for digest, blob in blobs.items() if digest not in write.blobs]
    if rows:  # PostgreSQL rejects a statement that updates a row twice
        write.blobs.update(blobs)
        write.insert("blobs", ("home", "digest", "type", "data"), rows, _OVERWRITE_DAMAGED)


_OVERWRITE_DAMAGED = """
    ON CONFLICT (home, digest) DO UPDATE SET type = excluded.type, data = excluded.data
    WHERE blobs.type <> excluded.type OR blobs.data <> excluded.data
"""


@contextmanager
def reading_rows(session_id: str | None = None) -> Iterator[None]:
    """In the block rows are read that were not checked: a value of an unexpected type is reported as damage."""
    try:
        yield
    except (CorruptRow, TypeError, AttributeError) as error:
        where = "" if session_id is None else f" of session {session_id!r}"
        what = str(error) if isinstance(error, CorruptRow) else "a value of another type than was written"
        raise DamagedRow(f"malformed row{where}: {what}") from error


def has_checksum(compute: Callable[[], Any], stored: Any) -> bool:
    """Whether the stored values have this checksum. Values of unexpected types have none."""
    try:
        return bool(compute() == stored)
    except (TypeError, AttributeError, UnicodeEncodeError):
        return False


def checked_blob(kind: str, data: bytes, digest: bytes) -> Blob:
    """A value as it is stored. Raises `CorruptRow`."""
    blob = Blob(kind, data)
    if not has_checksum(lambda: digest_of(blob), digest):
        raise CorruptRow("a value")
    return blob


def statements(home: int, references: Iterable[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The statements that read the blobs of these references."""
    wanted = sorted({bytes.fromhex(ref) for ref in references if isinstance(ref, str) and len(ref) == _HEX_LENGTH})
    for start in range(0, len(wanted), _ROWS):
        some = wanted[start : start + _ROWS]
        marks = ", ".join("?" * len(some))
        yield f"SELECT type, data, digest FROM blobs WHERE home = ? AND digest IN ({marks})", (home, *some)


class BlobReader:
    """The blobs that references of one family lead to. Each is read once, by as few statements as possible."""

    def __init__(self, connection: Connection, home: int, references: Iterable[Any]) -> None:
        self._rows: dict[bytes, tuple[Any, ...]] = {}
        for statement in statements(home, references):
            self._rows.update({bytes(row[2]): row for row in connection.execute(*statement)})
        self._checked: dict[str, Blob] = {}

    def blob(self, reference: Any) -> Blob | None:
        """Raises `CorruptRow`."""
        if reference is None:
            return None
        if isinstance(reference, dict):
            return inline_value(reference)
        if reference not in self._checked:
            try:
                row = self._rows.get(bytes.fromhex(reference))
            except (TypeError, ValueError) as error:
                raise CorruptRow(f"a reference {reference!r}") from error
            if row is None:
                raise CorruptRow(f"blob {reference} is missing")
            try:
                self._checked[reference] = checked_blob(*row)
            except CorruptRow as error:
                raise CorruptRow(f"blob {reference}") from error
        return self._checked[reference]


_HEX_LENGTH = 32
