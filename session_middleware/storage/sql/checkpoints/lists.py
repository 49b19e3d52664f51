"""Lists: each element is stored once per family, and many checkpoints refer to the beginning of the same list.

A list's check is a CRC-32 over the digests of its chunks, so that a reference that leads to other elements than it
was made for is detected when it is followed.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_left
from collections.abc import Container, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from session_middleware.storage.checkpoint_types import Blob, Chunk, ListPut, ListRef, StaleParent, StoredList
from session_middleware.storage.sql.checkpoints.blobs import BlobReader, CorruptRow, checked_blob, digest_of, put_blobs
from session_middleware.storage.sql.checkpoints.blobs import statements as blob_statements
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.session_state import SessionWrite

MAX_DEPTH = 16  # of lists branched from lists, before a branch copies its references instead

INLINE_BYTES = 800  # of a chunk; SQLite stores longer rows of these tables on several pages
_MOST_INLINE = 4  # chunks of one put; a list that is changed or copied shares its blobs instead


class Stored(NamedTuple):
    """A chunk to append: the digest of its blob, how many elements it has, and its content if that is inline."""

    digest: bytes
    length: int
    type: str | None = None
    data: bytes | None = None


# The list and its ancestors, each with the length up to which it counts. Values: list id, length, home.
_CHAIN = """
    WITH RECURSIVE chain (id, upto) AS (
        SELECT CAST(? AS INTEGER), CAST(? AS INTEGER)
        UNION
        SELECT lists.parent_id, CASE WHEN lists.parent_length < chain.upto THEN lists.parent_length ELSE chain.upto END
        FROM chain JOIN lists ON lists.home = ? AND lists.id = chain.id
    )
"""
_ITEMS = "FROM chain JOIN list_items ON list_items.home = ? AND list_id = chain.id AND position < chain.upto"
_COUNT = "CASE WHEN count < chain.upto - position THEN count ELSE chain.upto - position END"


def put_list(write: SessionWrite, put: ListPut, blobs: dict[bytes, Blob]) -> ListRef:
    """Store a list; chunks that are not inline are added to `blobs`, for `put_blobs`. Raises `StaleParent`."""
    base = put.base if put.base is not None and put.keep else None
    is_appended = len(put.tail) <= _MOST_INLINE and (base is None or put.keep == base.length)
    tail: list[Stored] = []
    for chunk in put.tail:
        digest = digest_of(chunk.blob)
        if is_appended and len(chunk.blob.data) <= INLINE_BYTES:
            tail.append(Stored(digest, chunk.length, *chunk.blob))
        else:
            blobs[digest] = chunk.blob
            tail.append(Stored(digest, chunk.length))
    if base is None:
        return _branch(write, None, tail)
    home, state = write.state.home, write.state
    is_end = state.list_ends.get(base.list_id) == base.length == put.keep
    is_known = put.is_parents or is_end
    if not is_known and _check_of(write.connection, home, base.list_id, base.length) != base.check:
        raise StaleParent  # it was cut or deleted since this process has read it
    if base.length != put.keep:
        base = ListRef(base.list_id, put.keep, _check_of(write.connection, home, base.list_id, put.keep))
    if tail and not is_end:
        base, tail, is_end = _follow(write.connection, home, base, tail)
    if not tail:
        return base
    return _extend(write, base, tail) if is_end else _branch(write, base, tail)


def _extend(write: SessionWrite, base: ListRef, tail: Sequence[Stored]) -> ListRef:
    """Append to a list that ends where `base` does."""
    list_id, length, check = base
    rows: list[tuple[Any, ...]] = []
    for digest, count, *data in tail:
        rows.append((write.state.home, list_id, length, count, digest, *data))
        length, check = length + count, zlib.crc32(digest, check)
    write.insert("list_items", _ITEM_COLUMNS, rows)
    write.state.list_ends.keep(list_id, length)
    return ListRef(list_id, length, check)


_ITEM_COLUMNS = ("home", "list_id", "position", "count", "digest", "type", "data")


def _follow(connection: Connection, home: int, base: ListRef, tail: list[Stored]) -> tuple[ListRef, list[Stored], bool]:
    """Skip what was appended after `base` already, as far as it equals `tail`.

    A subgraph's list and its parent's share their elements this way, and so does a step that is executed again.
    Returns the list up to there, what remains to be appended, and whether the list ends there.
    """
    list_id, length, check = base
    there = connection.execute(  # with the chunk that `base` ends in or at
        "SELECT position, digest, count FROM list_items WHERE home = ? AND list_id = ? AND position >= COALESCE(("
        "SELECT MAX(position) FROM list_items WHERE home = ? AND list_id = ? AND position < ?), 0) ORDER BY position",
        (home, list_id, home, list_id, length),
    ).fetchmany(len(tail) + 2)
    if there and there[0][0] < length:
        is_cut = there[0][0] + there[0][2] != length
        there = there[1:]
    else:
        is_cut = False  # the list begins here, after what it has of its parent
    same = 0
    while not is_cut and same < min(len(there), len(tail)) and there[same] == (length, *tail[same][:2]):
        length += tail[same].length
        check = zlib.crc32(tail[same].digest, check)
        same += 1
    return ListRef(list_id, length, check), tail[same:], not is_cut and same == len(there)


def new_id() -> int:
    """A list id. Ids of 52 bits are exact in JSON, and 52 random bits do not repeat within a family."""
    return random.getrandbits(52) + 1


def _branch(write: SessionWrite, base: ListRef | None, tail: Sequence[Stored]) -> ListRef:
    """A new list: the elements of `base`, then `tail`."""
    home, list_id = write.state.home, new_id()
    length = check = 0
    if base is not None:
        _, length, check = base
        found = write.query("SELECT depth FROM lists WHERE home = ? AND id = ?", (home, base.list_id)).fetchone()
        depth = 1 + (found[0] if found else 0)
        if depth < MAX_DEPTH:
            row = (home, list_id, base.list_id, length, depth)
            write.insert("lists", ("home", "id", "parent_id", "parent_length", "depth"), [row])
        else:
            copied = items(write.connection, home, base.list_id, length)
            inline = {bytes(item.digest): Blob(item.type or "", item.data) for item in copied if item.data is not None}
            put_blobs(write, inline)
            rows = [(home, list_id, item.position, item.length, item.digest, None, None) for item in copied]
            write.insert("list_items", _ITEM_COLUMNS, rows)
    return _extend(write, ListRef(list_id, length, check), tail)


def _check_of(connection: Connection, home: int, list_id: int, length: int) -> int:
    rows = connection.execute(
        f"{_CHAIN} SELECT digest {_ITEMS} ORDER BY position", (list_id, length, home, home)
    ).fetchall()
    return zlib.crc32(b"".join([digest for (digest,) in rows]))


# Reading


class Item(NamedTuple):
    """A stored chunk. `type` and `data` are ``None`` if a blob has them."""

    position: int
    length: int
    digest: bytes
    type: str | None
    data: bytes | None


def items(connection: Connection, home: int, list_id: int, length: int) -> list[Item]:
    """The chunks of the first `length` elements of a list, in order."""
    rows = connection.execute(
        f"{_CHAIN} SELECT position, {_COUNT}, digest, type, data {_ITEMS} ORDER BY position",
        (list_id, length, home, home),
    )
    return [Item(*row) for row in rows]


class ValueReader(BlobReader):
    """The values that references of one family lead to. Reads each list once, at its greatest length.

    Damage is raised when a value is asked for, so that the message names what refers to it.

    Args:
        references: To values and lists.
        written: To values, in writes.
        have: Lists that are not read.
    """

    def __init__(
        self,
        connection: Connection,
        home: int,
        references: Sequence[Any],
        written: Sequence[Any],
        have: Container[ListRef] = (),
    ) -> None:
        super().__init__(connection, home, [*references, *written])
        self._have = have
        lengths = _lengths(references, have)
        self._lists = {list_id: _read(connection, home, list_id, length) for list_id, length in lengths.items()}

    def value(self, reference: Any) -> Blob | StoredList | None:
        """Raises `CorruptRow`."""
        if not isinstance(reference, list):
            return self.blob(reference)
        ref = ListRef(*reference)
        if ref in self._have:
            return StoredList(ref, None)
        chunks, ends, checks = self._lists[ref.list_id]
        last = bisect_left(ends, ref.length)
        if last == len(ends) or checks[last] != ref.check:
            raise CorruptRow(f"list {ref.list_id}")
        found = chunks[:last]
        if ends[last] != ref.length:
            found[-1] = Chunk(found[-1].blob, ref.length - ends[last - 1])
        return StoredList(ref, found)


def prefetch(connection: Connection, home: int, references: Sequence[Any], written: Sequence[Any]) -> None:
    """Announce the statements of a `ValueReader`."""
    for statement in blob_statements(home, [*references, *written]):
        connection.prefetch(*statement)
    for list_id, length in _lengths(references, ()).items():
        connection.prefetch(_CHUNKS, (list_id, length, home, home, home))


def _lengths(references: Sequence[Any], have: Container[ListRef]) -> dict[int, int]:
    """The greatest length of each list that is read."""
    lengths: dict[int, int] = {}
    for ref in references:
        if isinstance(ref, list) and tuple(ref) not in have:
            lengths[ref[0]] = max(lengths.get(ref[0], 0), ref[1])
    return lengths


_CHUNKS = (
    f"{_CHAIN} SELECT position, {_COUNT}, COALESCE(list_items.type, blobs.type),"
    f" COALESCE(list_items.data, blobs.data), list_items.digest {_ITEMS}"
    " LEFT JOIN blobs ON blobs.home = ? AND blobs.digest = list_items.digest AND list_items.data IS NULL"
    " ORDER BY position"
)


def _read(connection: Connection, home: int, list_id: int, length: int) -> tuple[list[Chunk], list[int], list[int]]:
    """The chunks of a list before the first damaged one; the number of elements and the check up to each."""
    rows = connection.execute(_CHUNKS, (list_id, length, home, home, home)).fetchall()
    chunks: list[Chunk] = []
    ends, checks, end, check = [0], [0], 0, 0
    with suppress(CorruptRow, TypeError):
        for position, count, kind, data, digest in rows:
            if position != end:
                break
            chunks.append(Chunk(checked_blob(kind, data, digest), count))
            end, check = end + count, zlib.crc32(digest, check)
            ends.append(end)
            checks.append(check)
    return chunks, ends, checks
