"""Indexing of recorded messages.

A run never waits for the index. Messages are read from the record in small transactions, for each session from
its `indexed_seq` on: all messages up to that seq are in the index, or are none that a search finds. A search
reads the last few messages from the record and treats them in memory as indexing would on disk. Search results
are therefore complete at any time, also after a crash, and a write to the index covers many messages.

Each session has a number and each of its messages a position; together they are the message's document id. A trigger
empties the `version` of a session whose indexed messages are changed, replaced or deleted. Such a session, and one that
another version of the tokenizer indexed, is removed from the index, and indexed again like a new one.
Answers of our own memory tools are not indexed: an item holds the same text, or did until it was forgotten.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.memory_types import MessageScope
from session_middleware.storage.search.bm25 import LENGTHS, PASSAGE, Statistics
from session_middleware.storage.search.tokenizer import context_terms_of, terms_of, version
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, Document, PostingSource

POSITION_BITS = 22  # the first four million messages of a session are indexed
_UNKNOWN_SESSION = 1 << 27  # numbers, in memory only, of sessions that are not in the index

MAX_UNINDEXED = 200  # messages, or items, that a search reads from where they are stored
BATCH = 200  # messages, items or sessions in one transaction
EVERYBODY = MessageScope()

SEARCHABLE = (
    "m.role IN ('user', 'assistant', 'tool') AND m.text != '' AND m.replaced_by IS NULL"
    " AND COALESCE(m.flags, '') NOT LIKE '%\"memory\"%'"
)


class LongBacklog(Exception):  # not an error: the engine indexes them and searches again
    """A search found more unindexed messages, or items, than it reads."""

    def __init__(self, index_some: Callable[[Connection], int]) -> None:
        self.index_some = index_some  # indexes the next; less than `BATCH` are the last


class NewMessage(NamedTuple):
    session_id: str
    seq: int
    position: float
    name: str | None
    text: str
    created_at: str
    user_id: str | None
    last_seq: int  # of its session
    number: int | None  # of its session in the index, and how many of its messages are there
    documents: int | None


def blocks_of(number: int) -> range:
    bits = POSITION_BITS - BLOCK_BITS
    return range(number << bits, (number + 1) << bits)


# New messages


def restriction(whose: MessageScope, session_id: str, user_id: str) -> tuple[str, list[str]]:
    """The condition on these two columns, and its values."""
    given = [(session_id, whose.session_id), (user_id, whose.user_id)]
    return (
        " AND ".join(f"{column} = ?" for column, value in given if value is not None) or "1 = 1",
        [value for _, value in given if value is not None],
    )


def _new(whose: MessageScope, active_since: str) -> tuple[str, list[str]]:
    where, values = restriction(whose, "s.id", "s.user_id")
    sql = f"""
        FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id CROSS JOIN messages AS m
        WHERE {where} AND s.last_active_at >= ? AND s.last_seq > COALESCE(i.indexed_seq, 0)
        AND m.session_id = s.id AND m.seq > COALESCE(i.indexed_seq, 0) AND m.seq < {1 << POSITION_BITS} AND {SEARCHABLE}
    """
    return sql, [*values, active_since]


def has_new(connection: Connection, active_since: str) -> bool:
    sql, values = _new(EVERYBODY, active_since)
    return connection.execute(f"SELECT 1 {sql} LIMIT 1", values).fetchone() is not None


def index_some(connection: Connection, limit: int, whose: MessageScope, *, active_since: str = "") -> int:
    """Index the next messages; returns how many. Of everybody only sessions that were active since."""
    new = _read_new(connection, whose, limit, active_since)
    for session_id, messages in _by_session(new):
        may_have_more = len(new) == limit and session_id == new[-1].session_id
        last = messages[-1]
        _write(connection, messages, indexed_seq=last.seq if may_have_more else last.last_seq)
    return len(new)


def _by_session(new: Iterable[NewMessage]) -> list[tuple[str, list[NewMessage]]]:
    return [(session_id, list(group)) for session_id, group in groupby(new, attrgetter("session_id"))]


def _read_new(connection: Connection, whose: MessageScope, limit: int, active_since: str) -> list[NewMessage]:
    sql, values = _new(whose, active_since)
    rows = connection.execute(
        f"SELECT m.session_id, m.seq, m.position, m.name, m.text, m.created_at, s.user_id, s.last_seq,"
        f" i.number, i.documents {sql}"
        " ORDER BY s.last_active_at, s.id, m.seq LIMIT ?",
        (*values, limit),
    )
    return list(map(NewMessage._make, rows))


def _documents(messages: Iterable[NewMessage], number: int, first: int) -> list[Document]:
    """New messages of a session as documents, in the order of the conversation, from the position `first` on."""
    return [
        Document(
            each.session_id,
            each.seq,
            number << POSITION_BITS | position,
            terms_of(each.text),
            context_terms_of(from_text(each.created_at), each.name),
        )
        for position, each in enumerate(sorted(messages, key=attrgetter("position")), first)
    ]


def _statistics(documents: Sequence[Document], first: int) -> Statistics:
    """What the documents of a session, from the position `first` on, add."""
    words = sum(LENGTHS[each.length_code] for each in documents)
    return Statistics(len(documents), words, -(-(first + len(documents)) // PASSAGE) - -(-first // PASSAGE))


def read_unindexed(
    connection: Connection, whose: Sequence[MessageScope], can_index: bool
) -> tuple[list[Document], Statistics]:
    """The messages of these scopes that are not indexed yet, as documents, and what they add to the statistics.

    Raises `LongBacklog` for too many, unless the database is read-only.
    """
    new: list[NewMessage] = []
    for scope in whose:
        found = _read_new(connection, scope, MAX_UNINDEXED + can_index, "")
        if len(found) > MAX_UNINDEXED:
            raise LongBacklog(partial(index_some, limit=BATCH, whose=scope))
        new += found
    documents: list[Document] = []
    statistics = Statistics(0, 0, 0)
    for unknown, (_, messages) in enumerate(_by_session(new), _UNKNOWN_SESSION):
        known, first = messages[0].number, messages[0].documents or 0
        number = unknown if known is None else known
        added = _documents(messages, number, first)
        documents += added
        statistics += _statistics(added, first)
    return documents, statistics


def _write(connection: Connection, messages: Sequence[NewMessage], indexed_seq: int) -> None:
    """Index new messages of a session."""
    session_id, user_id = messages[0].session_id, messages[0].user_id
    connection.execute("INSERT INTO index_sessions (session_id) VALUES (?) ON CONFLICT DO NOTHING", (session_id,))
    [(number, scope_id, first)] = connection.execute(
        "UPDATE index_sessions SET user_id = ?1, version = ?2, scope_id = COALESCE(scope_id, (SELECT scope_id"
        " FROM index_sessions WHERE user_id IS ?1 AND session_id != ?3 LIMIT 1), number)"
        " WHERE session_id = ?3 RETURNING number, scope_id, documents",
        (user_id, version(), session_id),
    )
    documents = _documents(messages, number, first)
    for block, group in groupby(documents, lambda document: document.id >> BLOCK_BITS):
        _extend_block(connection, scope_id, block, list(group))
    posting_lists.add(connection, scope_id, documents)
    added = _statistics(documents, first)
    connection.execute(
        "UPDATE index_sessions SET indexed_seq = ?, document_seq = ?, documents = documents + ?, words = words + ?"
        " WHERE number = ?",
        (indexed_seq, messages[-1].seq, added.documents, added.words, number),
    )


def _extend_block(connection: Connection, scope_id: int, block: int, documents: Sequence[Document]) -> None:
    sql = "SELECT terms FROM index_blocks WHERE scope_id = ? AND block = ?"
    row = connection.execute(sql, (scope_id, block)).fetchone()
    terms = dict.fromkeys(row[0].split() if row else ())
    terms.update(dict.fromkeys(chain.from_iterable((*each.terms, *each.context_terms) for each in documents)))
    seqs = array("I", [each.seq for each in documents])
    connection.execute(
        "INSERT INTO index_blocks (scope_id, block, seqs, lengths, terms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (scope_id, block) DO UPDATE SET seqs = CAST(index_blocks.seqs || excluded.seqs AS BLOB),"
        " lengths = CAST(index_blocks.lengths || excluded.lengths AS BLOB), terms = excluded.terms",
        (scope_id, block, seqs.tobytes(), bytes(each.length_code for each in documents), " ".join(terms)),
    )


# Sources of a search


def sources_of(connection: Connection, whose: MessageScope) -> tuple[list[PostingSource], Statistics]:
    """Where the postings of indexed messages are, and the statistics of these messages."""
    where, values = restriction(whose, "session_id", "user_id")
    rows = connection.execute(
        "SELECT scope_id, MIN(number), MAX(number), SUM(documents), SUM(words),"
        f" SUM((documents + {PASSAGE - 1}) / {PASSAGE}) FROM index_sessions WHERE {where} GROUP BY scope_id",
        values,
    ).fetchall()
    sources = [PostingSource(row[0], blocks_of(row[1]).start, blocks_of(row[2]).stop - 1) for row in rows]
    return sources, sum((Statistics(*map(int, row[3:])) for row in rows), Statistics(0, 0, 0))


# Changed and deleted messages


def has_outdated(connection: Connection) -> bool:
    sql = "SELECT 1 FROM index_sessions WHERE version < ? OR version > ? LIMIT 1"
    return connection.execute(sql, (version(), version())).fetchone() is not None


def remove_outdated(connection: Connection) -> None:
    """Remove sessions from the index whose messages changed, or that another version of the tokenizer indexed.

    The vectors of their messages before the first change remain.
    """
    rows = connection.execute(
        "SELECT number, scope_id FROM index_sessions WHERE version < ? OR version > ? LIMIT ?",
        (version(), version(), BATCH),
    )
    for number, scope_id in rows.fetchall():
        _remove_words(connection, number, scope_id)
        connection.execute(
            "DELETE FROM vectors WHERE number = ?"
            " AND seq > (SELECT embedded_seq FROM index_sessions AS i WHERE i.number = vectors.number)",
            (number,),
        )
        connection.execute(
            "UPDATE index_sessions SET version = ?, indexed_seq = 0, document_seq = 0, documents = 0, words = 0"
            " WHERE number = ?",
            (version(), number),
        )


def _remove_words(connection: Connection, number: int, scope_id: int) -> None:
    blocks = blocks_of(number)
    rows = connection.execute(
        "DELETE FROM index_blocks WHERE scope_id = ? AND block BETWEEN ? AND ? RETURNING block, terms",
        (scope_id, blocks.start, blocks.stop - 1),
    ).fetchall()
    connection.executemany(
        "DELETE FROM index_postings WHERE scope_id = ? AND term = ? AND block = ?",
        [(scope_id, term, block) for block, terms in rows for term in terms.split()],
    )


def remove_sessions(connection: Connection, session_ids: Sequence[str]) -> None:
    """Remove sessions from the index. The caller deletes their messages, or they are indexed again."""
    rows = connection.execute(
        "DELETE FROM index_sessions WHERE session_id IN (SELECT value FROM json_each(?)) RETURNING number, scope_id",
        (json.dumps([*session_ids]),),
    )
    for number, scope_id in rows.fetchall():
        _remove_words(connection, number, scope_id)
        connection.execute("DELETE FROM vectors WHERE number = ?", (number,))


def rename_session(connection: Connection, session_id: str, to: str) -> None:
    connection.execute("UPDATE index_sessions SET session_id = ? WHERE session_id = ?", (to, session_id))
