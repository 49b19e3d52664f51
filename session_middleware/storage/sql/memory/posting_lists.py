"""The inverted index in SQL: for each scope and term, the documents that contain the term.

A scope is the messages of one owner. Its rows are adjacent, so a search reads and a deletion rewrites rows of its own
scope only. One row holds the postings of a *block*: 1,024 consecutive document ids.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from session_middleware.storage.search.bm25 import Postings, length_code, posting
from session_middleware.storage.sql.connection import Connection

BLOCK_BITS = 10
IN_BLOCK = (1 << BLOCK_BITS) - 1


class PostingSource(NamedTuple):
    """A range of blocks of a scope."""

    scope_id: int
    first_block: int
    last_block: int


class Document(NamedTuple):
    """A message as the index has it."""

    session_id: str
    seq: int
    id: int
    terms: list[str]
    context_terms: list[str]

    @property
    def length_code(self) -> int:
        return length_code(len(self.terms))


def postings_of(document: int, terms: Sequence[str], context_terms: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """The postings of one document: its terms by frequency, and once each of its context terms."""
    for term, count in [*Counter(terms).items(), *((term, 1) for term in context_terms)]:
        yield term, posting(document, count, len(terms))


def add(connection: Connection, documents: Mapping[tuple[int, int], Iterable[Document]]) -> None:
    """Add documents, by scope and block."""
    rows: dict[tuple[int, str, int], Postings] = {}
    for (scope_id, block), some in documents.items():
        for document in some:
            for term, each in postings_of(document.id, document.terms, document.context_terms):
                rows.setdefault((scope_id, term, block), array("q")).append(each)
    connection.executemany(
        "INSERT INTO index_postings (scope_id, term, block, postings) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (scope_id, term, block)"
        " DO UPDATE SET postings = CAST(index_postings.postings || excluded.postings AS BLOB)",
        [(*row, postings.tobytes()) for row, postings in sorted(rows.items())],
    )


_OF_SOURCES = """
    FROM json_each(?) AS source CROSS JOIN index_postings AS p
    WHERE p.scope_id = CAST(json_extract(source.value, '$[0]') AS INTEGER) AND p.term >= ? AND p.term < ?
    AND p.block BETWEEN CAST(json_extract(source.value, '$[1]') AS INTEGER)
        AND CAST(json_extract(source.value, '$[2]') AS INTEGER)
"""
_OF_TERM = _OF_SOURCES.replace("p.term >= ? AND p.term < ?", "p.term = ?")


_READ, _CONTAINS = f"SELECT p.postings {_OF_TERM}", f"SELECT 1 {_OF_TERM} LIMIT 1"


def prefetch(
    connection: Connection, sources: Sequence[PostingSource], *, read: Iterable[str] = (), contains: Iterable[str] = ()
) -> None:
    """Announce the statements of `read` and `contains` for these terms."""
    for sql, terms in ((_READ, read), (_CONTAINS, contains)):
        for term in terms:
            connection.prefetch(sql, (json.dumps(sources), term))


def read(connection: Connection, sources: Sequence[PostingSource], term: str) -> Postings:
    """The postings of a term in all of these sources."""
    rows = connection.execute(_READ, (json.dumps(sources), term))
    found = array("q")
    found.frombytes(b"".join([postings for (postings,) in rows]))
    return found


def contains(connection: Connection, sources: Sequence[PostingSource], term: str) -> bool:
    """Whether any document of these sources contains the term."""
    return connection.execute(_CONTAINS, (json.dumps(sources), term)).fetchone() is not None


def terms_starting_with(connection: Connection, sources: Sequence[PostingSource], prefix: str, limit: int) -> list[str]:
    rows = connection.execute(
        f"SELECT DISTINCT p.term {_OF_SOURCES} LIMIT ?", (json.dumps(sources), prefix, prefix + "\U0010ffff", limit)
    )
    return [term for (term,) in rows]
