"""The inverted index in SQL: for each scope and term, the documents that contain the term.

A scope is the messages of one owner. Its rows are adjacent, so a search reads and a
deletion rewrites rows of its own scope only. One row holds the postings of a *block*: 1,024 consecutive
document ids.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from session_middleware.storage.search.bm25 import BITS, Postings, Statistics, posting
from session_middleware.storage.search.tokenizer import version
from session_middleware.storage.sql.connection import Connection

Kind: TypeAlias = Literal["item", "message"]
PostingsByRow: TypeAlias = dict[tuple[int, str, int], Postings]  # by scope, term and block

BLOCK_BITS = 10
IN_BLOCK = (1 << BLOCK_BITS) - 1
_LAST_BLOCK = 1 << 50


class PostingSource(NamedTuple):
    """A range of blocks of a scope; by default all of them."""

    scope_id: int
    first_block: int = 0
    last_block: int = _LAST_BLOCK


# Scopes


class IndexScope(NamedTuple):
    """The messages of one owner."""

    id: int
    name: str
    indexed: int  # of items: the positions after it are not indexed yet
    positions: int
    statistics: Statistics


def list_scopes(connection: Connection, kind: Kind, where: str, values: Sequence[Any]) -> list[IndexScope]:
    rows = connection.execute(
        "SELECT id, name, indexed, positions, documents, words, passages FROM index_scopes"
        f" WHERE kind = ? AND ({where})",
        (kind, *values),
    )
    return [
        IndexScope(scope_id, name, indexed, positions, Statistics(*figures))
        for scope_id, name, indexed, positions, *figures in rows
    ]


def find_scope(connection: Connection, kind: Kind, name: str) -> int | None:
    row = connection.execute("SELECT id FROM index_scopes WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return None if row is None else int(row[0])


def get_or_create_scope(connection: Connection, kind: Kind, name: str) -> int:
    found = find_scope(connection, kind, name)
    if found is None:
        [(found,)] = connection.execute(
            "INSERT INTO index_scopes (kind, name, version) VALUES (?, ?, ?) RETURNING id", (kind, name, version())
        )
    return found


def add_statistics(connection: Connection, scope_id: int, change: Statistics) -> None:
    connection.execute(
        "UPDATE index_scopes SET documents = documents + ?, words = words + ?, passages = passages + ? WHERE id = ?",
        (*change, scope_id),
    )


def delete_if_empty(connection: Connection, scope_id: int) -> None:
    """Delete a scope without items or sessions, because its name identifies its owner."""
    connection.execute(
        "DELETE FROM index_scopes WHERE id = ?"
        " AND NOT EXISTS (SELECT 1 FROM index_sessions WHERE scope_id = index_scopes.id)"
        " AND NOT EXISTS (SELECT 1 FROM memories WHERE kind = 'item' AND namespace = name)",
        (scope_id,),
    )


# Writing


def postings_of(scope_id: int, document: int, terms: Sequence[str], context_terms: Iterable[str] = ()) -> PostingsByRow:
    """The postings of one document: its terms by frequency, and once each of its context terms."""
    found = {}
    for term, count in [*Counter(terms).items(), *((term, 1) for term in context_terms)]:
        found[scope_id, term, document >> BLOCK_BITS] = array("q", [posting(document, count, len(terms))])
    return found


def merge(into: PostingsByRow, more: PostingsByRow) -> None:
    for row, postings in more.items():
        if row in into:
            into[row].extend(postings)
        else:
            into[row] = postings


def add(connection: Connection, rows: Mapping[tuple[int, str, int], Postings]) -> None:
    connection.executemany(
        "INSERT INTO index_postings (scope_id, term, block, postings) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (scope_id, term, block)"
        " DO UPDATE SET postings = CAST(index_postings.postings || excluded.postings AS BLOB)",
        [(*row, postings.tobytes()) for row, postings in sorted(rows.items())],
    )


def remove(
    connection: Connection, scope_id: int, block: int, terms: Iterable[str], documents: Collection[int]
) -> set[str]:
    """Remove the postings of these documents from these terms of a block; returns the terms without postings left."""
    rows = connection.execute(
        "SELECT p.term, p.postings FROM json_each(?) AS wanted CROSS JOIN index_postings AS p"
        " WHERE p.scope_id = ? AND p.term = wanted.value AND p.block = ?",
        (json.dumps(list(set(terms))), scope_id, block),
    ).fetchall()
    left = {
        term: array("q", [posting for posting in _array([(postings,)]) if posting >> BITS not in documents])
        for term, postings in rows
    }
    gone = {term for term, postings in left.items() if not postings}
    delete_block(connection, scope_id, block, gone)
    connection.executemany(
        "UPDATE index_postings SET postings = ? WHERE scope_id = ? AND term = ? AND block = ?",
        [(postings.tobytes(), scope_id, term, block) for term, postings in left.items() if postings],
    )
    return gone


def delete_block(connection: Connection, scope_id: int, block: int, terms: Iterable[str]) -> None:
    """Delete the postings of a block that contains these terms."""
    connection.executemany(
        "DELETE FROM index_postings WHERE scope_id = ? AND term = ? AND block = ?",
        [(scope_id, term, block) for term in terms],
    )


# Reading

_OF_SOURCES = """
    FROM json_each(?) AS source CROSS JOIN index_postings AS p
    WHERE p.scope_id = CAST(json_extract(source.value, '$[0]') AS INTEGER) AND p.term >= ? AND p.term < ?
    AND p.block BETWEEN CAST(json_extract(source.value, '$[1]') AS INTEGER)
        AND CAST(json_extract(source.value, '$[2]') AS INTEGER)
"""
_OF_TERM = _OF_SOURCES.replace("p.term >= ? AND p.term < ?", "p.term = ?")


def read(connection: Connection, sources: Sequence[PostingSource], term: str) -> Postings:
    """The postings of a term in all of these sources."""
    return _array(connection.execute(f"SELECT p.postings {_OF_TERM}", (json.dumps(sources), term)))


def contains(connection: Connection, sources: Sequence[PostingSource], term: str) -> bool:
    """Whether any document of these sources contains the term."""
    found = connection.execute(f"SELECT 1 {_OF_TERM} LIMIT 1", (json.dumps(sources), term))
    return found.fetchone() is not None


def terms_starting_with(connection: Connection, sources: Sequence[PostingSource], prefix: str, limit: int) -> list[str]:
    rows = connection.execute(
        f"SELECT DISTINCT p.term {_OF_SOURCES} LIMIT ?", (json.dumps(sources), prefix, prefix + "\U0010ffff", limit)
    )
    return [term for (term,) in rows]


def read_blocks(connection: Connection, scope_id: int, term: str, blocks: Iterable[int]) -> Postings:
    """The postings of a term in some blocks of a scope."""
    return read(connection, [PostingSource(scope_id, block, block) for block in sorted(blocks)], term)


def _array(rows: Iterable[tuple[bytes]]) -> Postings:
    found = array("q")
    found.frombytes(b"".join([postings for (postings,) in rows]))
    return found
