"""Lists: each element is stored once per family, and many checkpoints refer to the beginning of the same list.

A list's check is a CRC-32 over the digests of its chunks, so that a reference that leads to other elements than it
was made for is detected when it is followed.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from session_middleware.storage.checkpoint_types import Blob, Chunk, ListPut, ListRef, StaleParent, StoredList
from session_middleware.storage.sql.checkpoints.blobs import (
    BlobReader,
    CorruptRow,
    checked_blob,
    digest_of,
    put_blobs,
)
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


def prepare(put: ListPut, to_store: dict[bytes, Blob]) -> list[Stored]:
    """The chunks to append; the blobs of those that are not inline are added to `to_store`."""
    tail: list[Stored] = []
    is_appended = len(put.tail) <= _MOST_INLINE and (put.base is None or put.keep == put.base.length)
    for chunk in put.tail:
        digest = digest_of(chunk.blob)
        if is_appended and len(chunk.blob.data) <= INLINE_BYTES:
            tail.append(Stored(digest, chunk.length, *chunk.blob))
        else:
            to_store[digest] = chunk.blob
            tail.append(Stored(digest, chunk.length))
    return tail


def put_list(write: SessionWrite, put: ListPut, tail: Sequence[Stored]) -> ListRef:
    """Store the list that a channel holds now, as `prepare` returned its end. Raises `StaleParent`."""
    base = put.base if put.base is not None and put.keep else None
    if base is None:
        return _branch(write, None, tail)
    home, state = write.state.home, write.state
    is_end = state.list_ends.get(base.list_id) == base.length == put.keep
    is_known = put.is_parents or is_end
    if not is_known and _check_of(write.connection, home, base.list_id, base.length) != base.check:
        raise StaleParent  # it was cut or deleted since this process has read it
    if base.length != put.keep:
        base = ListRef(base.list_id, put.keep, _check_of(write.connection, home, base.list_id, put.keep))
    if not tail:
        return base
    if not is_end:
        base, tail, is_end = _follow(write.connection, home, base, tail)
    if not tail:
        return base
    return _extend(write, base, tail) if is_end else _branch(write, base, tail)


def _extend(write: SessionWrite, base: ListRef, tail: Sequence[Stored]) -> ListRef:
    """Append to a list that ends where `base` does."""
    rows, extended = _rows_of(write.state.home, base, tail)
    write.insert("list_items", _ITEM_COLUMNS, rows)
    write.state.keep_list(extended.list_id, extended.length)
    return extended


_ITEM_COLUMNS = ("home", "list_id", "position", "count", "digest", "type", "data")


def _rows_of(home: int, base: ListRef, tail: Sequence[Stored]) -> tuple[list[tuple[Any, ...]], ListRef]:
    list_id, length, check = base
    rows: list[tuple[Any, ...]] = []
    for chunk in tail:
        rows.append((home, list_id, length, chunk.length, chunk.digest, chunk.type, chunk.data))
        length += chunk.length
        check = zlib.crc32(chunk.digest, check)
    return rows, ListRef(list_id, length, check)


def _follow(
    connection: Connection, home: int, base: ListRef, tail: Sequence[Stored]
) -> tuple[ListRef, Sequence[Stored], bool]:
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


def get_list(
    connection: Connection, home: int, ref: ListRef, have: Mapping[int, ListRef] = MappingProxyType({})
) -> StoredList:
    """A list, without the beginning that the reader has already if that is unchanged. Raises `CorruptRow`."""
    had = have.get(ref.list_id)
    if had is not None and had.length <= ref.length:
        chunks, check = _chunks(connection, home, ref, had.length, had.check)
        if check == ref.check and had.length + sum(chunk.length for chunk in chunks) == ref.length:
            return StoredList(ref, chunks, had.length)
    chunks, check = _chunks(connection, home, ref, 0, 0)
    if check != ref.check or sum(chunk.length for chunk in chunks) != ref.length:
        raise CorruptRow(f"list {ref.list_id}")
    return StoredList(ref, chunks)


def _chunks(connection: Connection, home: int, ref: ListRef, start: int, check: int) -> tuple[list[Chunk], int]:
    """The chunks of a list from the element at `start`, and the check up to its end."""
    if start == ref.length:
        return [], check
    rows = connection.execute(
        f"{_CHAIN} SELECT COALESCE(list_items.type, blobs.type), COALESCE(list_items.data, blobs.data),"
        f" list_items.digest, checksum, {_COUNT} {_ITEMS} AND position >= ? LEFT JOIN blobs ON blobs.home = ?"
        " AND blobs.digest = list_items.digest AND list_items.data IS NULL ORDER BY position",
        (ref.list_id, ref.length, home, home, start, home),
    ).fetchall()
    where = f"list {ref.list_id}"
    chunks = [Chunk(checked_blob(row[:4], where), row[4]) for row in rows]
    return chunks, zlib.crc32(b"".join([row[2] for row in rows]), check)


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


class FamilyLists:
    """The lists that many references of one family lead to: each is read once, at its greatest length.

    Damage is raised when a value is asked for, so that the message names what refers to it.
    """

    def __init__(self, connection: Connection, home: int, blobs: BlobReader, references: Sequence[Any]) -> None:
        self._blobs = blobs
        lengths: dict[int, int] = {}
        for ref in references:
            if isinstance(ref, list):
                lengths[ref[0]] = max(lengths.get(ref[0], 0), ref[1])
        self._items = {list_id: items(connection, home, list_id, length) for list_id, length in lengths.items()}
        blobs.prefetch(item.digest for items in self._items.values() for item in items if item.data is None)
        self._lists: dict[int, tuple[list[Chunk], list[int], list[int]]] = {}

    def read(self, ref: ListRef) -> StoredList:
        """Raises `CorruptRow`."""
        if ref.list_id not in self._lists:
            self._lists[ref.list_id] = self._whole(ref.list_id)
        chunks, ends, checks = self._lists[ref.list_id]
        count = bisect_left(ends, ref.length)  # whole chunks before the one in which the list ends
        length, check, found = (ends[count - 1], checks[count - 1], chunks[:count]) if count else (0, 0, [])
        if length < ref.length and count < len(chunks):
            found.append(Chunk(chunks[count].blob, ref.length - length))
            length, check = ref.length, checks[count]
        if length != ref.length or check != ref.check:
            raise CorruptRow(f"list {ref.list_id}")
        return StoredList(ref, found)

    def _whole(self, list_id: int) -> tuple[list[Chunk], list[int], list[int]]:
        """A list's chunks; and how many elements there are, and what the check is, after each."""
        chunks: list[Chunk] = []
        ends: list[int] = []
        checks: list[int] = []
        check = 0
        for item in self._items.get(list_id, ()):
            if item.position != (ends[-1] if ends else 0):
                break
            chunks.append(Chunk(self._blob_of(item, list_id), item.length))
            ends.append(item.position + item.length)
            checks.append(check := zlib.crc32(item.digest, check))
        return chunks, ends, checks

    def _blob_of(self, item: Item, list_id: int) -> Blob:
        if item.data is None:
            return self._blobs.blob(bytes(item.digest))
        return checked_blob((item.type, item.data, item.digest, None), f"list {list_id}")
