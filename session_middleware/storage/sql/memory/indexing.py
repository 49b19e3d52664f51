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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.memory_types import MessageScope
from session_middleware.storage.search.bm25 import LENGTHS, PASSAGE, Statistics
from session_middleware.storage.search.tokenizer import context_terms_of, terms_of, version
from session_middleware.storage.sql.connection import Connection, index_lock
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, Document, PostingSource

POSITION_BITS = 22  # the first four million messages of a session are indexed
_UNKNOWN_SESSION = 1 << 27  # numbers, in memory only, of sessions that are not in the index

MAX_UNINDEXED = 200  # messages, or items, that a search reads from where they are stored
BATCH = 200  # messages, items or sessions in one transaction

SEARCHABLE = (
    "m.role IN ('user', 'assistant', 'tool') AND m.text != '' AND m.replaced_by IS NULL"
    " AND COALESCE(m.flags, '') NOT LIKE '%\"memory\"%'"
)


class LongBacklog(Exception):  # not an error: the engine indexes them and searches again
    """A search found more unindexed messages, or items, than it reads."""

    def __init__(self, index_some: Callable[[Connection], int], locks: Collection[str] = ()) -> None:
        self.index_some = index_some  # indexes the next; less than `BATCH` are the last
        self.locks = locks  # that it needs


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


_UNINDEXED = f"""
    s.last_seq > COALESCE(i.indexed_seq, 0) AND m.session_id = s.id AND m.seq > COALESCE(i.indexed_seq, 0)
    AND m.seq < {1 << POSITION_BITS} AND {SEARCHABLE}
"""


def list_new(connection: Connection, limit: int, active_since: str) -> list[str]:
    """Sessions with new messages that were active since, the longest inactive first: as many as one lock needs."""
    rows = connection.execute(
        "SELECT s.id FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id"
        f" WHERE s.last_active_at >= ? AND EXISTS (SELECT 1 FROM messages AS m WHERE {_UNINDEXED})"
        " ORDER BY s.last_active_at, s.id LIMIT ?",
        (active_since, min(limit, BATCH)),
    )
    return [session_id for (session_id,) in rows]


def index_some(connection: Connection, limit: int, session_ids: Sequence[str]) -> int:
    """Index the next messages of sessions whose `index_lock` is held; returns how many."""
    new = _read_new(connection, "s.id IN (SELECT value FROM json_each(?))", [json.dumps(session_ids)], limit)
    _write(connection, dict(_by_session(new)), may_have_more=len(new) == limit)
    return len(new)


def _by_session(new: Iterable[NewMessage]) -> list[tuple[str, list[NewMessage]]]:
    return [(session_id, list(group)) for session_id, group in groupby(new, attrgetter("session_id"))]


def _read_new(connection: Connection, where: str, values: Sequence[str], limit: int) -> list[NewMessage]:
    rows = connection.execute(
        "SELECT m.session_id, m.seq, m.position, m.name, m.text, m.created_at, s.user_id, s.last_seq, i.number,"
        " i.documents FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id"
        f" CROSS JOIN messages AS m WHERE {where} AND {_UNINDEXED} ORDER BY s.last_active_at, s.id, m.seq LIMIT ?",
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
        found = _read_new(connection, *restriction(scope, "s.id", "s.user_id"), MAX_UNINDEXED + can_index)
        if len(found) > MAX_UNINDEXED:
            session_ids = [*dict.fromkeys(each.session_id for each in found)]
            some = partial(index_some, limit=BATCH, session_ids=session_ids)
            raise LongBacklog(some, [*map(index_lock, session_ids)])
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


def _write(connection: Connection, new: Mapping[str, Sequence[NewMessage]], *, may_have_more: bool) -> None:
    """Index new messages by session; of the last session there `may_have_more`.

    PostgreSQL takes one round trip for the numbers and scopes of all sessions, and one for their blocks.
    """
    connection.executemany(
        "INSERT INTO index_sessions (session_id) VALUES (?) ON CONFLICT DO NOTHING", [(each,) for each in new]
    )
    owners = {messages[0].user_id for messages in new.values()}
    for statement in (*((_NUMBER, (each,)) for each in new), *map(_scope_of, owners)):
        connection.prefetch(*statement)
    numbers = {each: connection.execute(_NUMBER, (each,)).fetchone() for each in new}
    scopes = {owner: connection.execute(*_scope_of(owner)).fetchone() for owner in owners}
    documents: dict[tuple[int, int], list[Document]] = {}  # by scope and block
    rows: list[tuple[Any, ...]] = []
    for session_id, messages in new.items():
        (number, scope_id, first), last, user_id = numbers[session_id], messages[-1], messages[0].user_id
        if scope_id is None:
            (scope_id,) = scopes[user_id] = scopes[user_id] or (number,)
        own = _documents(messages, number, first)
        for block, group in groupby(own, lambda document: document.id >> BLOCK_BITS):
            documents[scope_id, block] = [*group]
        added = _statistics(own, first)
        indexed_seq = last.seq if may_have_more and len(rows) == len(new) - 1 else last.last_seq
        rows.append((user_id, version(), scope_id, indexed_seq, last.seq, added.documents, added.words, session_id))
    _extend_blocks(connection, documents)
    posting_lists.add(connection, documents)
    connection.executemany(
        "UPDATE index_sessions SET user_id = ?, version = ?, scope_id = ?, indexed_seq = ?, document_seq = ?,"
        " documents = documents + ?, words = words + ? WHERE session_id = ?",
        rows,
    )


_NUMBER = "SELECT number, scope_id, documents FROM index_sessions WHERE session_id = ?"


def _scope_of(user_id: str | None) -> tuple[str, tuple[str, ...]]:
    """The statement that finds the scope of a user's other sessions."""
    of_user, values = ("user_id IS NULL", ()) if user_id is None else ("user_id = ?", (user_id,))
    return f"SELECT scope_id FROM index_sessions WHERE {of_user} AND scope_id IS NOT NULL LIMIT 1", values


def _extend_blocks(connection: Connection, documents: Mapping[tuple[int, int], Sequence[Document]]) -> None:
    for key in documents:
        connection.prefetch(_TERMS, key)
    rows = {key: connection.execute(_TERMS, key).fetchone() for key in documents}
    for key, some in documents.items():
        terms = dict.fromkeys(rows[key][0].split() if rows[key] else ())
        terms.update(dict.fromkeys(chain.from_iterable((*each.terms, *each.context_terms) for each in some)))
        seqs, lengths = array("I", [each.seq for each in some]), bytes(each.length_code for each in some)
        connection.execute(_EXTEND, (*key, seqs.tobytes(), lengths, " ".join(terms)))


_TERMS = "SELECT terms FROM index_blocks WHERE scope_id = ? AND block = ?"
_EXTEND = """
    INSERT INTO index_blocks (scope_id, block, seqs, lengths, terms) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (scope_id, block) DO UPDATE SET seqs = CAST(index_blocks.seqs || excluded.seqs AS BLOB),
    lengths = CAST(index_blocks.lengths || excluded.lengths AS BLOB), terms = excluded.terms
"""


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


_OUTDATED = "(version < ? OR version > ?)"


def list_outdated(connection: Connection) -> list[str]:
    """Some of the sessions whose messages changed, or that another version of the tokenizer indexed."""
    sql = f"SELECT session_id FROM index_sessions WHERE {_OUTDATED} LIMIT ?"
    return [session_id for (session_id,) in connection.execute(sql, (version(), version(), BATCH))]


def remove_outdated(connection: Connection, session_ids: Sequence[str]) -> None:
    """Remove those of these sessions, whose `index_lock` is held, from the index that are outdated.

    The vectors of their messages before the first change remain.
    """
    ids = json.dumps(session_ids)
    rows = connection.execute(
        f"SELECT number, session_id FROM index_sessions WHERE {_THEIRS} AND {_OUTDATED}", (ids, version(), version())
    ).fetchall()
    _remove_words(connection, [session_id for _, session_id in rows])
    for number, _ in rows:
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


_BITS = POSITION_BITS - BLOCK_BITS
_THEIRS = "session_id IN (SELECT value FROM json_each(?))"
_WORDS = f"""
    SELECT b.scope_id, b.block, b.terms FROM index_sessions AS s CROSS JOIN index_blocks AS b
    WHERE s.{_THEIRS} AND b.scope_id = s.scope_id
    AND b.block BETWEEN s.number << {_BITS} AND ((s.number + 1) << {_BITS}) - 1
"""


def _remove_words(connection: Connection, session_ids: Sequence[str]) -> None:
    """Remove sessions from the blocks and the posting lists."""
    blocks = connection.execute(_WORDS, (json.dumps(session_ids),)).fetchall()
    connection.executemany(
        "DELETE FROM index_postings WHERE scope_id = ? AND term = ? AND block = ?",
        [(scope_id, term, block) for scope_id, block, terms in blocks for term in terms.split()],
    )
    connection.executemany("DELETE FROM index_blocks WHERE scope_id = ? AND block = ?", [row[:2] for row in blocks])


def remove_sessions(connection: Connection, session_ids: Sequence[str]) -> None:
    """Remove sessions from the index. The caller deletes their messages, or they are indexed again."""
    connection.lock([*map(index_lock, session_ids)])
    _remove_words(connection, session_ids)
    ids = (json.dumps(session_ids),)
    numbers = f"SELECT number FROM index_sessions WHERE {_THEIRS}"
    connection.execute(f"DELETE FROM vectors WHERE number IN ({numbers})", ids)
    connection.execute(f"DELETE FROM index_sessions WHERE {_THEIRS}", ids)


def move_sessions(connection: Connection, session_ids: Sequence[str], user_id: str) -> None:
    """Move sessions to the scope of a user. Their words are indexed again, and their vectors remain."""
    connection.lock([*map(index_lock, session_ids)])
    rows = connection.execute(
        "SELECT number, scope_id FROM index_sessions WHERE session_id IN (SELECT value FROM json_each(?))",
        (json.dumps([*session_ids]),),
    ).fetchall()
    _remove_words(connection, rows)
    for number, _ in rows:
        connection.execute(_MOVE, (user_id, number))


_MOVE = """
    UPDATE index_sessions SET user_id = ?1, scope_id = COALESCE((SELECT scope_id FROM index_sessions WHERE user_id = ?1
    AND scope_id IS NOT NULL LIMIT 1), number), indexed_seq = 0, document_seq = 0, documents = 0, words = 0
    WHERE number = ?2
"""


def rename_session(connection: Connection, session_id: str, to: str) -> None:
    connection.lock([index_lock(session_id)])
    connection.execute("UPDATE index_sessions SET session_id = ? WHERE session_id = ?", (to, session_id))
