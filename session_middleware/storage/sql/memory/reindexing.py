"""Rebuild of a scope of the index that another version of the tokenizer has made.

A query would not find its terms, and a deletion would not find all of them. Document ids, and with them vectors,
stay as they are.
"""

from __future__ import annotations

import sqlite3

from session_middleware.models import from_text
from session_middleware.storage.search.bm25 import LENGTHS, Statistics, length_code
from session_middleware.storage.search.tokenizer import context_terms_of, terms_of, version
from session_middleware.storage.sql.memory import indexing, items, posting_lists
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, PostingsByRow

_ITEMS = 500  # indexed at a time


def find_outdated(connection: sqlite3.Connection) -> int | None:
    row = connection.execute("SELECT id FROM index_scopes WHERE version != ? LIMIT 1", (version(),)).fetchone()
    return None if row is None else int(row[0])


def rebuild(connection: sqlite3.Connection, scope_id: int) -> None:
    """Rebuild a scope in one transaction, unless another process has done it in the meantime."""
    row = connection.execute(
        "SELECT kind, name FROM index_scopes WHERE id = ? AND version != ?", (scope_id, version())
    ).fetchone()
    if row is None:
        return
    connection.execute(
        "UPDATE index_scopes SET version = ?, documents = 0, words = 0, passages = 0 WHERE id = ?",
        (version(), scope_id),
    )
    connection.execute("DELETE FROM index_postings WHERE scope_id = ?", (scope_id,))
    kind, name = row
    if kind == "item":
        connection.execute(
            "UPDATE memories SET indexed = 0 WHERE namespace = ? AND indexed = 1 AND text IS NOT NULL", (name,)
        )
        while items.index_some(connection, _ITEMS):
            pass
        return
    sessions = connection.execute(
        "SELECT number, session_id, positions FROM index_sessions WHERE scope_id = ?", (scope_id,)
    )
    for number, session_id, positions in sessions.fetchall():
        documents, words = _rebuild_session(connection, number, session_id, scope_id)
        connection.execute("UPDATE index_sessions SET words = ? WHERE number = ?", (words, number))
        added = Statistics(documents, words, indexing.passages(positions))
        posting_lists.add_statistics(connection, scope_id, added)


def _rebuild_session(connection: sqlite3.Connection, number: int, session_id: str, scope_id: int) -> tuple[int, int]:
    """Returns how many documents and words it has."""
    documents = words = 0
    rows: PostingsByRow = {}
    for block, seqs, lengths, _ in indexing.read_blocks(connection, scope_id, indexing.blocks_of(number)):
        known: dict[str, None] = {}
        for position, seq in enumerate(seqs):
            if not seq:
                continue
            terms, context = _terms_of(connection, session_id, seq)
            lengths[position] = max(1, length_code(len(terms)))
            documents, words = documents + 1, words + LENGTHS[lengths[position]]
            document = block << BLOCK_BITS | position
            posting_lists.merge(rows, posting_lists.postings_of(scope_id, document, terms, context))
            known.update(dict.fromkeys([*terms, *context]))
        connection.execute(
            "UPDATE index_blocks SET lengths = ?, terms = ? WHERE scope_id = ? AND block = ?",
            (bytes(lengths), " ".join(known), scope_id, block),
        )
    posting_lists.add(connection, rows)
    return documents, words


def _terms_of(connection: sqlite3.Connection, session_id: str, seq: int) -> tuple[list[str], list[str]]:
    """The terms of an indexed message; none of a deleted one that is still in `index_stale`."""
    row = connection.execute(
        "SELECT text, created_at, name FROM messages WHERE session_id = ? AND seq = ?", (session_id, seq)
    ).fetchone()
    return ([], []) if row is None else (terms_of(row[0]), context_terms_of(from_text(row[1]), row[2]))
