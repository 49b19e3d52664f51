"""The index of words in SQLite: for each scope and term, who has it.

A scope is one namespace of items, or one owner's messages: its words lie together, so what a search
reads, and what a deletion rewrites, is its own scope and nothing else. A row holds the postings of
1,024 neighbouring places, a *part*.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from session_middleware.storage.search.bm25 import BITS, Postings, Statistics, posting

Kind: TypeAlias = Literal["item", "message"]
PostingsByRow: TypeAlias = dict[tuple[int, str, int], Postings]  # by scope, term and part

PART_BITS = 10
LAST_PART = 1 << 50
_FEW = 8  # scopes that are asked one by one


class PostingSource(NamedTuple):
    """Where to look: a scope, and the parts of it."""

    scope_id: int
    first_part: int = 0
    last_part: int = LAST_PART


def find_scope(connection: sqlite3.Connection, kind: Kind, name: str) -> int | None:
    row = connection.execute("SELECT id FROM index_scopes WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return None if row is None else int(row[0])


def make_scope(connection: sqlite3.Connection, kind: Kind, name: str) -> int:
    """The id of a scope, which is made if it is not there."""
    found = find_scope(connection, kind, name)
    if found is None:
        cursor = connection.execute("INSERT INTO index_scopes (kind, name) VALUES (?, ?)", (kind, name))
        found = int(cursor.lastrowid or 0)
    return found


def count(connection: sqlite3.Connection, scope_id: int, change: Statistics) -> None:
    """Change what a scope holds."""
    connection.execute(
        "UPDATE index_scopes SET texts = texts + ?, words = words + ?, stretches = stretches + ? WHERE id = ?",
        (*change, scope_id),
    )


def drop_empty(connection: sqlite3.Connection, scope_id: int) -> None:
    """Delete a scope that holds nothing any more: its name tells whose it was."""
    connection.execute(
        "DELETE FROM index_scopes WHERE id = ? AND texts <= 0"
        " AND NOT EXISTS (SELECT 1 FROM index_sessions WHERE scope_id = index_scopes.id)",
        (scope_id,),
    )


def statistics(connection: sqlite3.Connection, scope_ids: Collection[int]) -> Statistics:
    if not scope_ids:
        return Statistics(0, 0, 0)
    row = connection.execute(
        "SELECT SUM(texts), SUM(words), SUM(stretches) FROM index_scopes WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(scope_ids)),),
    ).fetchone()
    return Statistics(*(value or 0 for value in row))


def postings_of(scope_id: int, place: int, terms: Sequence[str], marks: Iterable[str] = ()) -> PostingsByRow:
    """What one text adds: its terms by how often it has them, and marks such as its date's."""
    found = {}
    for term, times in [*Counter(terms).items(), *((mark, 1) for mark in marks)]:
        found[scope_id, term, place >> PART_BITS] = array("q", [posting(place, times, len(terms))])
    return found


def merge(into: PostingsByRow, more: PostingsByRow) -> None:
    for row, postings in more.items():
        if row in into:
            into[row].extend(postings)
        else:
            into[row] = postings


def add(connection: sqlite3.Connection, rows: Mapping[tuple[int, str, int], Postings]) -> None:
    connection.executemany(
        "INSERT INTO index_words (scope_id, term, part, postings) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (scope_id, term, part) DO UPDATE SET postings = CAST(postings || excluded.postings AS BLOB)",
        [(*row, postings.tobytes()) for row, postings in sorted(rows.items())],
    )


def remove(
    connection: sqlite3.Connection, scope_id: int, part: int, terms: Iterable[str], places: Collection[int]
) -> set[str]:
    """Take what these places have of these terms out of a part; the terms that nobody in it has any more."""
    gone = set()
    for term in set(terms):
        key = (scope_id, term, part)
        row = connection.execute(
            "SELECT postings FROM index_words WHERE scope_id = ? AND term = ? AND part = ?", key
        ).fetchone()
        if row is None:
            continue
        left = array("q", [posting for posting in _array(row[0]) if posting >> BITS not in places])
        if left:
            connection.execute(
                "UPDATE index_words SET postings = ? WHERE scope_id = ? AND term = ? AND part = ?",
                (left.tobytes(), *key),
            )
        else:
            connection.execute("DELETE FROM index_words WHERE scope_id = ? AND term = ? AND part = ?", key)
            gone.add(term)
    return gone


def drop(connection: sqlite3.Connection, scope_id: int, part: int, terms: Iterable[str]) -> None:
    """Delete a part of a scope, whose terms these are."""
    connection.executemany(
        "DELETE FROM index_words WHERE scope_id = ? AND term = ? AND part = ?",
        [(scope_id, term, part) for term in terms],
    )


def read(connection: sqlite3.Connection, sources: Sequence[PostingSource], term: str) -> Postings:
    """The postings of a term in all of these sources."""
    if len(sources) > _FEW:
        return _read_many(connection, sources, term)
    found = array("q")
    for scope_id, first, last in sources:
        rows = connection.execute(
            "SELECT postings FROM index_words WHERE scope_id = ? AND term = ? AND part BETWEEN ? AND ?",
            (scope_id, term, first, last),
        ).fetchall()
        found.frombytes(b"".join([postings for (postings,) in rows]))
    return found


def _read_many(connection: sqlite3.Connection, sources: Sequence[PostingSource], term: str) -> Postings:
    """Of whole scopes only: there are never many of a part."""
    rows = connection.execute(
        "SELECT postings FROM json_each(?) AS source CROSS JOIN index_words ON scope_id = source.value AND term = ?",
        (json.dumps([source.scope_id for source in sources]), term),
    ).fetchall()
    return _array(b"".join([postings for (postings,) in rows]))


def beginning(connection: sqlite3.Connection, sources: Sequence[PostingSource], begun: str, most: int) -> list[str]:
    """The terms in these sources that begin so, at most so many."""
    rows = connection.execute(
        "SELECT DISTINCT term FROM json_each(?) AS source CROSS JOIN index_words"
        " ON scope_id = json_extract(source.value, '$[0]') AND term >= ? AND term < ?"
        " AND part BETWEEN json_extract(source.value, '$[1]') AND json_extract(source.value, '$[2]') LIMIT ?",
        (json.dumps(sources), begun, begun + "\U0010ffff", most),
    )
    return [term for (term,) in rows]


def read_parts(connection: sqlite3.Connection, scope_id: int, term: str, parts: Collection[int]) -> Postings:
    """The postings of a term in some parts of a scope."""
    rows = connection.execute(
        "SELECT postings FROM json_each(?) AS wanted CROSS JOIN index_words"
        " ON scope_id = ? AND term = ? AND part = wanted.value",
        (json.dumps(sorted(parts)), scope_id, term),
    ).fetchall()
    return _array(b"".join([postings for (postings,) in rows]))


def has(connection: sqlite3.Connection, sources: Sequence[PostingSource], term: str) -> bool:
    """Whether anybody in these sources has the term."""
    for scope_id, first, last in sources:
        if connection.execute(
            "SELECT 1 FROM index_words WHERE scope_id = ? AND term = ? AND part BETWEEN ? AND ? LIMIT 1",
            (scope_id, term, first, last),
        ).fetchone():
            return True
    return False


def _array(data: bytes) -> Postings:
    found = array("q")
    found.frombytes(data)
    return found
