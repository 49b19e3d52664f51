"""Lists in SQLite, and values of either kind: each is stored once in a family, and may be referred to by many.

A list's check covers the digests of its chunks, so that a reference which leads to other elements
than it was made for is found when it is followed.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from session_middleware.storage.checkpoint_types import Blob, Chunk, ListPut, ListRef, StaleParent, StoredList
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, checked_blob, put_blob

MAX_DEPTH = 16  # of lists branched from lists, before a branch copies its references instead


# Lists


Stored = tuple[int, bytes, int]  # of a chunk: its blob's id and digest, and how many elements it is

CHAIN = """
    WITH RECURSIVE chain (id, upto) AS (
        VALUES (?, ?)
        UNION
        SELECT lists.parent_id, MIN(lists.parent_length, chain.upto)
        FROM chain JOIN lists ON lists.id = chain.id WHERE lists.parent_id IS NOT NULL
    )
"""


def put_list(connection: sqlite3.Connection, family_id: str, put: ListPut) -> ListRef:
    tail: Sequence[Stored] = [(*put_blob(connection, family_id, chunk.blob), chunk.length) for chunk in put.tail]
    base = put.base if put.base is not None and put.keep else None
    if base is None:
        return _branch(connection, family_id, None, 0, 0, tail)
    if not put.is_parents and _check_of(connection, base.list_id, base.length) != base.check:
        raise StaleParent  # it was cut or deleted since this process has seen it
    if base.length != put.keep:
        base = ListRef(base.list_id, put.keep, _check_of(connection, base.list_id, put.keep))
    base, tail, is_free = _follow(connection, base, tail)
    if not tail:
        return base
    if is_free:
        return _extend(connection, base, tail)
    return _branch(connection, family_id, base, base.length, base.check, tail)


def _follow(
    connection: sqlite3.Connection, base: ListRef, tail: Sequence[Stored]
) -> tuple[ListRef, Sequence[Stored], bool]:
    """Go along what somebody has already added after `base` for as long as it is what is to be added.

    A subgraph's list and its parent's share their elements so, and so does a step that is done again.
    Returns how far that is, what remains to be added, and whether nothing else stands there.
    """
    list_id, length, check = base
    if _ends(connection, list_id, length):
        return base, tail, True
    items = connection.execute(
        "SELECT position, blob_id, count FROM list_items WHERE list_id = ? AND position >= ? ORDER BY position",
        (list_id, length),
    ).fetchmany(len(tail) + 1)
    same = 0
    while same < min(len(items), len(tail)) and items[same] == (length, tail[same][0], tail[same][2]):
        length += tail[same][2]
        check = zlib.crc32(tail[same][1], check)
        same += 1
    return ListRef(list_id, length, check), tail[same:], same == len(items) and _ends(connection, list_id, length)


def _ends(connection: sqlite3.Connection, list_id: int, length: int) -> bool:
    """Whether the list has no element after the first `length`, nor a run that is cut there."""
    last = connection.execute(
        "SELECT position + count FROM list_items WHERE list_id = ? ORDER BY position DESC LIMIT 1", (list_id,)
    ).fetchone()
    return last is not None and last[0] == length


def _extend(connection: sqlite3.Connection, base: ListRef, tail: Sequence[Stored]) -> ListRef:
    list_id, length, check = base
    for blob_id, digest, count in tail:
        connection.execute("INSERT INTO list_items VALUES (?, ?, ?, ?)", (list_id, length, count, blob_id))
        length += count
        check = zlib.crc32(digest, check)
    return ListRef(list_id, length, check)


def _branch(
    connection: sqlite3.Connection,
    family_id: str,
    base: ListRef | None,
    keep: int,
    check: int,
    tail: Sequence[Stored],
) -> ListRef:
    """A new list: the first `keep` elements of `base`, then `tail`."""
    parent = depth = None
    if base is not None:
        depth = connection.execute("SELECT depth FROM lists WHERE id = ?", (base.list_id,)).fetchone()[0] + 1
        parent = base.list_id if depth < MAX_DEPTH else None
    cursor = connection.execute(
        "INSERT INTO lists (family_id, parent_id, parent_length, depth) VALUES (?, ?, ?, ?)",
        (family_id, parent, keep if parent else 0, depth if parent else 0),
    )
    list_id = cursor.lastrowid
    assert list_id is not None
    if base is not None and parent is None:
        connection.execute(
            f"{CHAIN} INSERT INTO list_items SELECT ?, position, MIN(count, chain.upto - position), blob_id"
            " FROM chain JOIN list_items ON list_id = chain.id AND position < chain.upto",
            (base.list_id, keep, list_id),
        )
    return _extend(connection, ListRef(list_id, keep, check), tail)


def _check_of(connection: sqlite3.Connection, list_id: int, length: int) -> int:
    rows = connection.execute(
        f"{CHAIN} SELECT digest FROM chain JOIN list_items ON list_id = chain.id AND position < chain.upto"
        " JOIN blobs ON blobs.id = blob_id ORDER BY position",
        (list_id, length),
    )
    return zlib.crc32(b"".join([digest for (digest,) in rows]))


def get_list(
    connection: sqlite3.Connection, ref: ListRef, have: Mapping[int, ListRef] = MappingProxyType({})
) -> StoredList:
    """A list; without its beginning where the reader has that and it still is what it was."""
    had = have.get(ref.list_id)
    if had is not None and had.length <= ref.length:
        chunks, check = _chunks(connection, ref, had.length, had.check)
        if check == ref.check and had.length + sum(chunk.length for chunk in chunks) == ref.length:
            return StoredList(ref, chunks, had.length)
    chunks, check = _chunks(connection, ref, 0, 0)
    if check != ref.check or sum(chunk.length for chunk in chunks) != ref.length:
        raise CorruptRow(f"list {ref.list_id}")
    return StoredList(ref, chunks)


def _chunks(connection: sqlite3.Connection, ref: ListRef, start: int, check: int) -> tuple[list[Chunk], int]:
    """The chunks of a list from an element on, and the check as it goes on over them."""
    if start == ref.length:
        return [], check
    rows = connection.execute(
        f"{CHAIN} SELECT type, data, digest, checksum, position, MIN(count, chain.upto - position)"
        " FROM chain JOIN list_items ON list_id = chain.id AND position >= ? AND position < chain.upto"
        " JOIN blobs ON blobs.id = blob_id ORDER BY position",
        (ref.list_id, ref.length, start),
    ).fetchall()
    where = f"list {ref.list_id}"
    return [Chunk(checked_blob(row[:4], where), row[5]) for row in rows], zlib.crc32(
        b"".join([r[2] for r in rows]), check
    )


def get_value(
    connection: sqlite3.Connection, ref: Any, have: Mapping[int, ListRef] = MappingProxyType({})
) -> Blob | StoredList | None:
    if ref is None:
        return None
    if isinstance(ref, list):
        return get_list(connection, ListRef(*ref), have)
    row = connection.execute("SELECT type, data, digest, checksum FROM blobs WHERE id = ?", (ref,)).fetchone()
    if row is None:
        raise CorruptRow(f"blob {ref} is missing")
    return checked_blob(row, f"blob {ref}")


def get_blob(connection: sqlite3.Connection, blob_id: int) -> Blob:
    value = get_value(connection, blob_id)
    assert isinstance(value, Blob)
    return value


# Many at once


_ITEMS = """
    WITH RECURSIVE chain (wanted, id, upto) AS (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
        UNION
        SELECT chain.wanted, lists.parent_id, MIN(lists.parent_length, chain.upto)
        FROM chain JOIN lists ON lists.id = chain.id WHERE lists.parent_id IS NOT NULL
    )
    SELECT wanted, position, MIN(count, chain.upto - position), blob_id
    FROM chain CROSS JOIN list_items ON list_id = chain.id AND position < chain.upto ORDER BY wanted, position
"""


class ListLoader:
    """What many references lead to: each list, at its greatest length, and each blob is read once.

    Damage is raised when a value is asked for, so that it is told of whoever refers to it.
    """

    def __init__(self, connection: sqlite3.Connection, values: Iterable[Any], writes: Iterable[Any]) -> None:
        lengths: dict[int, int] = {}
        blob_ids: set[int] = set()
        for ref in values:
            if isinstance(ref, list):
                lengths[ref[0]] = max(lengths.get(ref[0], 0), ref[1])
            elif isinstance(ref, int):
                blob_ids.add(ref)
        for ref in writes:
            blob_ids.update([blob_id for blob_id, _ in ref] if isinstance(ref, list) else [ref] if ref else [])
        self._items: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for wanted, *item in connection.execute(_ITEMS, (json.dumps(list(lengths.items())),)) if lengths else ():
            self._items[wanted].append((item[0], item[1], item[2]))
            blob_ids.add(item[2])
        rows = connection.execute(
            "SELECT id, type, data, digest, checksum FROM blobs WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted(blob_ids)),),
        )
        self._rows = {row[0]: row[1:] for row in rows}
        self._checked: dict[int, Blob] = {}
        self._lists: dict[int, tuple[list[Chunk], list[int], list[int]]] = {}

    def value(self, ref: Any) -> Blob | StoredList | None:
        """What a checkpoint's channel refers to."""
        if ref is None:
            return None
        return self._list(ListRef(*ref)) if isinstance(ref, list) else self._blob(ref)

    def written(self, ref: Any) -> Blob | list[Chunk] | None:
        """What a write refers to."""
        if isinstance(ref, list):
            return [Chunk(self._blob(blob_id), count) for blob_id, count in ref]
        return None if ref is None else self._blob(ref)

    def _blob(self, blob_id: int) -> Blob:
        found = self._checked.get(blob_id)
        if found is None:
            if blob_id not in self._rows:
                raise CorruptRow(f"blob {blob_id} is missing")
            found = self._checked[blob_id] = checked_blob(self._rows[blob_id], f"blob {blob_id}")
        return found

    def _list(self, ref: ListRef) -> StoredList:
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
        for position, count, blob_id in self._items.get(list_id, ()):
            if position != (ends[-1] if ends else 0):
                break
            chunks.append(Chunk(self._blob(blob_id), count))
            ends.append(position + count)
            checks.append(check := zlib.crc32(self._rows[blob_id][2], check))
        return chunks, ends, checks


# With their family


def rename_family(connection: sqlite3.Connection, family_id: str, to: str) -> None:
    connection.execute("UPDATE lists SET family_id = ? WHERE family_id = ?", (to, family_id))
    connection.execute("UPDATE blobs SET family_id = ? WHERE family_id = ?", (to, family_id))


_USED = """
    WITH RECURSIVE
    direct (id, upto) AS (
        SELECT json_extract(value, '$[0]'), MAX(json_extract(value, '$[1]')) FROM checkpoints, json_each(channels)
        WHERE {which} AND json_each.type = 'array' GROUP BY 1
    ),
    inherited (id, upto) AS (
        SELECT id, upto FROM direct
        UNION
        SELECT parent_id, MIN(parent_length, upto) FROM inherited JOIN lists USING (id) WHERE parent_id IS NOT NULL
    ),
    used_lists (id, upto) AS (SELECT id, MAX(upto) FROM inherited GROUP BY id),
    used_values (id) AS (
        SELECT value FROM checkpoints, json_each(channels) WHERE {which} AND json_each.type = 'integer'
        UNION
        SELECT COALESCE(atom, json_extract(json_each.value, '$[0]')) FROM writes, json_each(writes.value)
        WHERE {which} AND json_each.type != 'null'
    )
"""
USED_BY_SESSION = _USED.format(which="session_id = :id")  # what its checkpoints and writes refer to
_USED_BY_FAMILY = _USED.format(which="session_id IN (SELECT id FROM sessions WHERE family_id = :family)")


def free_unused(connection: sqlite3.Connection, family_id: str, members: Sequence[str]) -> None:
    """Delete what none of the `members` of a family refers to any more: lists, their ends, and blobs.

    To cut the end off a list is safe: nobody refers to it, and whoever comes to append finds the
    list as long as the reference he holds, or branches.
    """
    if not members:
        connection.execute(
            "DELETE FROM list_items WHERE list_id IN (SELECT id FROM lists WHERE family_id = ?)", (family_id,)
        )
        connection.execute("DELETE FROM lists WHERE family_id = ?", (family_id,))
        connection.execute("DELETE FROM blobs WHERE family_id = ?", (family_id,))
        return
    values = {"family": family_id}
    connection.execute("CREATE TEMP TABLE all_used_lists (id INTEGER PRIMARY KEY, upto INTEGER NOT NULL)")
    connection.execute(f"{_USED_BY_FAMILY} INSERT INTO all_used_lists SELECT * FROM used_lists", values)
    connection.execute(
        "DELETE FROM list_items WHERE list_id IN (SELECT id FROM lists WHERE family_id = ?)"
        " AND position >= COALESCE((SELECT upto FROM all_used_lists WHERE id = list_id), 0)",
        (family_id,),
    )
    connection.execute(
        "DELETE FROM lists WHERE family_id = ? AND id NOT IN (SELECT id FROM all_used_lists)", (family_id,)
    )
    connection.execute("DROP TABLE all_used_lists")
    connection.execute(
        f"{_USED_BY_FAMILY} DELETE FROM blobs WHERE family_id = :family AND id NOT IN (SELECT blob_id FROM list_items"
        " JOIN lists ON lists.id = list_id WHERE family_id = :family UNION SELECT id FROM used_values)",
        values,
    )
