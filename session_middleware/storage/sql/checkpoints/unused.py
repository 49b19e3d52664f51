"""The values that a family or a session refers to, found by reachability, and deleting those that nothing refers to."""

from __future__ import annotations

from typing import NamedTuple

from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, references_in
from session_middleware.storage.sql.connection import Connection


class Reachable(NamedTuple):
    lengths: dict[int, int]  # of lists, by id: how many elements are referred to
    digests: set[bytes]  # of blobs that checkpoints and writes refer to directly


def find_reachable(connection: Connection, home: int, session_id: str | None = None) -> Reachable:
    """What the checkpoints and writes of a family, or of one of its sessions, refer to. Reads all their references."""
    lengths: dict[int, int] = {}
    digests: set[bytes] = set()
    for reference in _references(connection, home, session_id):
        if isinstance(reference, list):
            lengths[reference[0]] = max(lengths.get(reference[0], 0), reference[1])
        elif isinstance(reference, str):
            digests.add(bytes.fromhex(reference))
    parents: dict[int, tuple[int, int]] = {
        list_id: (parent, length)
        for list_id, parent, length in connection.execute(
            "SELECT id, parent_id, parent_length FROM lists WHERE home = ?", (home,)
        )
    }
    for child, length in list(lengths.items()):
        list_id = child
        while list_id in parents:
            list_id, upto = parents[list_id]
            length = min(length, upto)
            if lengths.get(list_id, -1) >= length:
                break
            lengths[list_id] = length
    return Reachable(lengths, digests)


def _references(connection: Connection, home: int, session_id: str | None) -> list[object]:
    found: list[object] = []
    for kind, table in ((Row, "checkpoints"), (WriteRow, "writes")):
        columns = ", ".join(name if name != "body" else "NULL" for name in kind._fields)
        sql = f"SELECT {columns} FROM {table} WHERE home = ?1 AND (CAST(?2 AS TEXT) IS NULL OR session_id = ?2)"
        for values in connection.execute(sql, (home, session_id)):
            found += references_in(kind(*values))
    return found


def free_unused(connection: Connection, home: int) -> None:
    """Delete the unused lists of a family, the unused ends of lists, and its unused blobs.

    Cutting off the end of a list is safe: nothing refers to it, and a writer that appends finds the list as long
    as its reference says, or branches.
    """
    lengths, digests = find_reachable(connection, home)
    if not lengths and not digests:
        for table in ("list_items", "lists", "blobs"):
            connection.execute(f"DELETE FROM {table} WHERE home = ?", (home,))
        return
    unused = []
    items = connection.execute("SELECT list_id, position, digest, type FROM list_items WHERE home = ?", (home,))
    for list_id, position, digest, kind in items.fetchall():
        if position < lengths.get(list_id, 0):
            if kind is None:  # not inline
                digests.add(bytes(digest))
        else:
            unused.append((home, list_id, position))
    connection.executemany("DELETE FROM list_items WHERE home = ? AND list_id = ? AND position = ?", unused)
    lists = connection.execute("SELECT id FROM lists WHERE home = ?", (home,)).fetchall()
    gone = [(home, list_id) for (list_id,) in lists if list_id not in lengths]
    connection.executemany("DELETE FROM lists WHERE home = ? AND id = ?", gone)
    stored = connection.execute("SELECT digest FROM blobs WHERE home = ?", (home,)).fetchall()
    connection.executemany(
        "DELETE FROM blobs WHERE home = ? AND digest = ?",
        [(home, digest) for (digest,) in stored if bytes(digest) not in digests],
    )
