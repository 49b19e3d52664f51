"""Blobs: serialised values, each stored once per family by its digest.

A blob's digest covers its type and bytes. Its checksum covers the digest as well, so that a row whose key was
damaged is detected without hashing the bytes again.

A reference to a value, in the JSON of `checkpoints.channels` and `writes.value`, is ``null`` for ``None``, a digest
in hexadecimal, or ``{type: base64}`` for a short value. A short value costs less where it is than as a row of its
own: `INLINE_BYTES` holds for checkpoints, each of which repeats the references of its parent, and
`INLINE_WRITE_BYTES` for writes.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from session_middleware.storage.checkpoint_types import Blob
from session_middleware.storage.sql.connection import Connection, DamagedRow

if TYPE_CHECKING:
    from session_middleware.storage.sql.session_state import SessionWrite

INLINE_BYTES = 64
INLINE_WRITE_BYTES = 512
_ROWS = 16  # written or read by one statement, at most

Reference: TypeAlias = str | dict[str, str] | None


class CorruptRow(Exception):
    """Stored data is not what was written; the message says which."""


def digest_of(blob: Blob) -> bytes:
    return hashlib.sha256(blob.type.encode() + b"\0" + blob.data).digest()[:16]


def refer(blob: Blob | None, to_store: dict[bytes, Blob], *, inline_bytes: int = INLINE_BYTES) -> Reference:
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
    home = write.state.home
    rows = [(home, digest, _checksum(digest, blob), *blob) for digest, blob in blobs.items()]
    if rows:
        write.insert("blobs", ("home", "digest", "checksum", "type", "data"), rows, _OVERWRITE_DAMAGED)


_OVERWRITE_DAMAGED = """
    ON CONFLICT (home, digest) DO UPDATE SET checksum = excluded.checksum, type = excluded.type, data = excluded.data
    WHERE blobs.checksum <> excluded.checksum OR blobs.type <> excluded.type OR blobs.data <> excluded.data
"""


def batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts that one statement can take. Few lengths occur, so the statements stay in the driver's cache."""
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]


def read_blobs(connection: Connection, home: int, digests: Collection[bytes]) -> dict[bytes, tuple[Any, ...]]:
    """The type, bytes, digest and checksum of each blob that is there, unchecked."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for some in batches(sorted(digests)):
        marks = ", ".join("?" * len(some))
        rows = connection.execute(
            f"SELECT type, data, digest, checksum FROM blobs WHERE home = ? AND digest IN ({marks})",
            (home, *some),
        )
        found.update({bytes(row[2]): row for row in rows})
    return found


@contextmanager
def reading_rows(session_id: str | None = None) -> Iterator[None]:
    """In the block rows are read that were not checked: a value of an unexpected type is reported as damage."""
    try:
        yield
    except (CorruptRow, TypeError, AttributeError) as error:
        where = "" if session_id is None else f" of session {session_id!r}"
        what = error if isinstance(error, CorruptRow) else "a value of another type than was written"
        raise DamagedRow(f"malformed row{where}: {what}") from error


def has_checksum(compute: Callable[[], Any], stored: Any) -> bool:
    """Whether a checksum is what is stored. Values of unexpected types have no checksum."""
    try:
        return bool(compute() == stored)
    except (TypeError, AttributeError, UnicodeEncodeError):
        return False


def _checksum(digest: bytes, blob: Blob) -> int:
    return zlib.crc32(blob.data, zlib.crc32(digest + blob.type.encode()))


def checked_blob(row: tuple[Any, ...], where: str) -> Blob:
    """A row of type, data, digest and checksum, which an inline value does not have. Raises `CorruptRow`."""
    kind, data, digest, checksum = row
    blob = Blob(kind, data)
    if checksum is None:
        if not has_checksum(lambda: digest_of(blob), digest):
            raise CorruptRow(where)
        return blob
    if not has_checksum(lambda: _checksum(digest, blob), checksum):
        raise CorruptRow(where)
    return blob


class BlobReader:
    """The values of references of one family. Reads each blob once, by as few statements as possible."""

    def __init__(self, connection: Connection, home: int) -> None:
        self._connection = connection
        self._home = home
        self._rows: dict[bytes, tuple[Any, ...]] = {}
        self._checked: dict[bytes, Blob] = {}

    def prefetch(self, digests: Iterable[bytes]) -> None:
        missing = {digest for digest in digests if digest not in self._rows}
        if missing:
            self._rows.update(read_blobs(self._connection, self._home, missing))

    def prefetch_references(self, references: Iterable[Any]) -> None:
        """As `prefetch`, of references of any kind: those to lists are passed over."""
        self.prefetch(bytes.fromhex(each) for each in references if isinstance(each, str) and len(each) == _HEX_LENGTH)

    def blob(self, digest: bytes) -> Blob:
        found = self._checked.get(digest)
        if found is None:
            self.prefetch([digest])
            if digest not in self._rows:
                raise CorruptRow(f"blob {digest.hex()} is missing")
            found = self._checked[digest] = checked_blob(self._rows[digest], f"blob {digest.hex()}")
        return found

    def value(self, reference: Any) -> Blob | None:
        if reference is None:
            return None
        if isinstance(reference, dict):
            return inline_value(reference)
        try:
            return self.blob(bytes.fromhex(reference))
        except (TypeError, ValueError) as error:
            raise CorruptRow(f"a reference {reference!r}") from error


_HEX_LENGTH = 32
