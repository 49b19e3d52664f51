"""The index of words made anew, where another version of `storage/words.py` has made it.

Its terms would be looked for in vain, and not all of them found again to be deleted. Places stay, so vectors do too.
"""

from __future__ import annotations

import sqlite3

from session_middleware.models import from_text
from session_middleware.storage.search.bm25 import LENGTHS, Statistics, length_code
from session_middleware.storage.search.tokenizer import marks_of, terms_of, version
from session_middleware.storage.sql.memory import indexing, items, posting_lists
from session_middleware.storage.sql.memory.posting_lists import PART_BITS, PostingsByRow

_ITEMS_AT_ONCE = 500


def is_current(connection: sqlite3.Connection) -> bool:
    """Whether the index, if there is any, was made of the words that a query is made of now."""
    return bool(connection.execute("SELECT words = ? FROM index_progress WHERE id = 1", (version(),)).fetchone()[0])


def rebuild(connection: sqlite3.Connection) -> None:
    """In one transaction; nothing where another process has done it meanwhile."""
    if is_current(connection):
        return
    connection.execute("DELETE FROM index_words")
    connection.execute("UPDATE index_scopes SET texts = 0, words = 0, stretches = 0")
    sessions = connection.execute("SELECT number, session_id, scope_id, positions FROM index_sessions").fetchall()
    for number, session_id, scope_id, positions in sessions:
        texts, length = _rebuild_session(connection, number, session_id, scope_id)
        connection.execute("UPDATE index_sessions SET words = ? WHERE number = ?", (length, number))
        posting_lists.count(connection, scope_id, Statistics(texts, length, indexing.stretches(positions)))
    connection.execute("UPDATE memories SET indexed = 0 WHERE indexed = 1 AND text IS NOT NULL")
    while items.index_some(connection, _ITEMS_AT_ONCE):
        pass
    connection.execute("UPDATE index_progress SET words = ? WHERE id = 1", (version(),))


def _rebuild_session(connection: sqlite3.Connection, number: int, session_id: str, scope_id: int) -> tuple[int, int]:
    """How many texts it has, and how many words."""
    texts = total = 0
    rows: PostingsByRow = {}
    for part, seqs, lengths, _ in indexing.read_parts(connection, indexing.parts_of(number)):
        known: dict[str, None] = {}
        for position, seq in enumerate(seqs):
            if not seq:
                continue
            terms, marks = _terms_at(connection, session_id, seq)
            lengths[position] = max(1, length_code(len(terms)))
            texts, total = texts + 1, total + LENGTHS[lengths[position]]
            posting_lists.merge(rows, posting_lists.postings_of(scope_id, part << PART_BITS | position, terms, marks))
            known.update(dict.fromkeys([*terms, *marks]))
        connection.execute(
            "UPDATE index_parts SET lengths = ?, terms = ? WHERE part = ?", (bytes(lengths), " ".join(known), part)
        )
    posting_lists.add(connection, rows)
    return texts, total


def _terms_at(connection: sqlite3.Connection, session_id: str, seq: int) -> tuple[list[str], list[str]]:
    """The terms and marks of a message that was indexed; none of one that is gone, and not out of the index yet."""
    row = connection.execute(
        "SELECT text, created_at, name FROM messages WHERE session_id = ? AND seq = ?", (session_id, seq)
    ).fetchone()
    return ([], []) if row is None else (terms_of(row[0]), marks_of(from_text(row[1]), row[2]))
