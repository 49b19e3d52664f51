"""Indexing of recorded messages.

A run never waits for the index. Messages are read from the record in small transactions, for each session from
its `indexed_seq` on: all messages up to that seq are in the index, or are none that a search finds. A search
reads the last few messages from the record and treats them in memory as indexing would on disk. Search results
are therefore complete at any time, also after a crash, and a write to the index covers many messages.

Each session has a number and each of its messages a position; together they are the message's document id. A new
version of a message takes over the document id of the old one. Triggers record messages that are changed or
deleted after they were indexed in `index_stale`; the next search processes them first.
Answers of our own memory tools are not indexed: an item holds the same text, or did until it was forgotten.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.memory_types import MessageScope
from session_middleware.storage.search.bm25 import LENGTHS, PASSAGE, Statistics, length_code
from session_middleware.storage.search.tokenizer import context_terms_of, terms_of
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, IN_BLOCK, PostingsByRow
from session_middleware.storage.sql.row_mapping import namespace_text

POSITION_BITS = 22  # the first four million messages of a session are indexed
IN_SESSION = (1 << POSITION_BITS) - 1
_BLOCKS_BITS = POSITION_BITS - BLOCK_BITS
_UNKNOWN_SESSION = 1 << 27  # numbers, in memory only, of sessions without indexed messages

MAX_UNINDEXED = 200  # messages, or items, that a search reads from where they are stored
BATCH = 200  # messages indexed in one transaction
EVERYBODY = MessageScope()

SEARCHABLE = (
    "m.role IN ('user', 'assistant', 'tool') AND m.text != '' AND m.replaced_by IS NULL"
    " AND COALESCE(m.marks, '') NOT LIKE '%\"memory\"%' AND COALESCE(m.marks, '') NOT LIKE '%\"resume\"%'"
)
_COLUMNS = "m.session_id, m.seq, m.message_id, m.version, m.name, m.text, m.created_at, s.user_id, s.last_seq"
_NEW = f"""
    FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id CROSS JOIN messages AS m
    WHERE {{scope}} AND s.last_seq > COALESCE(i.indexed_seq, 0)
    AND m.session_id = s.id AND m.seq > COALESCE(i.indexed_seq, 0) AND {SEARCHABLE}
"""
_NEW_OF_SESSION = _NEW.format(scope="s.id = ?")
_NEW_OF_USER = _NEW.format(scope="s.user_id = ?")
_NEW_OF_ALL = _NEW.format(scope="s.last_active_at >= ?")


class LongBacklog(Exception):  # not an error: the engine indexes the scope and searches again
    """A search found more unindexed messages of a scope, or items, than it reads."""

    def __init__(self, whose: MessageScope | None) -> None:
        self.whose = whose  # None: items


class NewMessage(NamedTuple):
    session_id: str
    seq: int
    message_id: str
    version: int
    name: str | None
    text: str
    created_at: str
    user_id: str | None
    indexed_seq: int  # of its session, once it is indexed


class IndexedMessage(NamedTuple):
    """A message as a document of the index."""

    message: NewMessage
    document: int
    terms: list[str]
    context_terms: list[str]
    is_replacement: bool  # of an earlier version

    @property
    def length_code(self) -> int:
        return max(1, length_code(len(self.terms)))  # 0 marks a removed document


class IndexedSession:
    """A row of `index_sessions`, and the documents that are about to be added to it."""

    def __init__(self, number: int, session_id: str, scope_id: int, indexed_seq: int, positions: int) -> None:
        self.number, self.session_id, self.scope_id = number, session_id, scope_id
        self.indexed_seq, self.positions = indexed_seq, positions
        self.documents: list[IndexedMessage] = []
        self._passages = passages(positions)

    def statistics(self) -> Statistics:
        """What the documents add."""
        words = sum(LENGTHS[each.length_code] for each in self.documents)
        return Statistics(len(self.documents), words, passages(self.positions) - self._passages)


def blocks_of(number: int) -> range:
    return range(number << _BLOCKS_BITS, (number + 1) << _BLOCKS_BITS)


def passages(positions: int) -> int:
    return -(-positions // PASSAGE)


def owner_name(user_id: str | None) -> str:
    """The scope of a user's messages. Messages without a user share one scope, and a session is a range of it."""
    return namespace_text(("user", user_id) if user_id is not None else ())


# New messages


def has_new(connection: Connection, active_since: str) -> bool:
    return connection.execute(f"SELECT 1 {_NEW_OF_ALL} LIMIT 1", (active_since,)).fetchone() is not None


def index_some(connection: Connection, limit: int, whose: MessageScope, *, active_since: str = "") -> int:
    """Index the next messages; returns how many. Of everybody only sessions that were active since."""
    new = _read_new(connection, whose, limit, active_since)
    _write(connection, _sessions_of(connection, new, create=True))
    return len(new)


def _new(whose: MessageScope, active_since: str) -> tuple[str, str]:
    if whose.session_id is not None:
        return _NEW_OF_SESSION, whose.session_id
    if whose.user_id is not None:
        return _NEW_OF_USER, whose.user_id
    return _NEW_OF_ALL, active_since


def _read_new(connection: Connection, whose: MessageScope, limit: int, active_since: str) -> list[NewMessage]:
    sql, value = _new(whose, active_since)
    rows = connection.execute(
        f"SELECT {_COLUMNS} {sql} ORDER BY s.last_active_at, s.id, m.seq LIMIT ?", (value, limit)
    ).fetchall()
    found = list(map(NewMessage._make, rows))
    if len(found) < limit:
        return found
    last = found[-1].session_id  # of which more messages may follow
    return [each._replace(indexed_seq=each.seq) if each.session_id == last else each for each in found]


def read_unindexed(
    connection: Connection, whose: Sequence[MessageScope], can_index: bool
) -> tuple[list[IndexedMessage], Statistics]:
    """The messages of these scopes that are not indexed yet, as documents, and what they add to the statistics.

    Raises `LongBacklog` for too many, unless the database is read-only.
    """
    new: list[NewMessage] = []
    for scope in whose:
        found = _read_new(connection, scope, MAX_UNINDEXED + can_index, "")
        if len(found) > MAX_UNINDEXED:
            raise LongBacklog(scope)
        new += found
    sessions = _sessions_of(connection, new, create=False)
    documents = [document for session in sessions for document in session.documents]
    return documents, sum((session.statistics() for session in sessions), Statistics(0, 0, 0))


def _sessions_of(connection: Connection, new: Iterable[NewMessage], *, create: bool) -> list[IndexedSession]:
    """The sessions of new messages, with a document for each message."""
    sessions: dict[str, IndexedSession] = {}
    for message in new:
        session = sessions.get(message.session_id) or _find_session(connection, message.session_id)
        if session is None:
            session = _new_session(connection, message, None if create else _UNKNOWN_SESSION + len(sessions))
        sessions[message.session_id] = session
        session.indexed_seq = max(session.indexed_seq, message.indexed_seq)
        position = _position_of_earlier_version(connection, session, message) if message.version > 1 else None
        is_replacement = position is not None
        if position is None:
            position = session.positions
            if position > IN_SESSION:
                continue
            session.positions += 1
        document = session.number << POSITION_BITS | position
        session.documents.append(_indexed(message, document, is_replacement=is_replacement))
    return list(sessions.values())


def _indexed(message: NewMessage, document: int, *, is_replacement: bool) -> IndexedMessage:
    context_terms = context_terms_of(from_text(message.created_at), message.name)
    return IndexedMessage(message, document, terms_of(message.text), context_terms, is_replacement)


def _find_session(connection: Connection, session_id: str) -> IndexedSession | None:
    row = connection.execute(
        "SELECT number, session_id, scope_id, indexed_seq, positions FROM index_sessions WHERE session_id = ?",
        (session_id,),
    ).fetchone()
    return None if row is None else IndexedSession(*row)


def _new_session(connection: Connection, message: NewMessage, number: int | None) -> IndexedSession:
    """A session without indexed messages: with this number, in memory only, or else as a new row."""
    name = owner_name(message.user_id)
    if number is not None:
        scope_id = posting_lists.find_scope(connection, "message", name) or 0
        return IndexedSession(number, message.session_id, scope_id, 0, 0)
    scope_id = posting_lists.get_or_create_scope(connection, "message", name)
    [(number,)] = connection.execute(
        "INSERT INTO index_sessions (session_id, scope_id) VALUES (?, ?) RETURNING number",
        (message.session_id, scope_id),
    )
    return IndexedSession(number, message.session_id, scope_id, 0, 0)


def _position_of_earlier_version(connection: Connection, session: IndexedSession, message: NewMessage) -> int | None:
    rows = connection.execute(
        "SELECT seq FROM messages WHERE session_id = ? AND message_id = ? AND version < ? AND replaced_by IS NOT NULL",
        (message.session_id, message.message_id, message.version),
    )
    wanted = {seq for (seq,) in rows}
    found = (position for position, seq in enumerate(seqs(connection, session)) if seq in wanted)
    return next(found, None)


# Blocks


def seqs(connection: Connection, session: IndexedSession) -> list[int]:
    """The seq of the message at each position of a session; 0 where it was removed."""
    blocks = read_blocks(connection, session.scope_id, blocks_of(session.number))
    return [seq for _, found, _, _ in blocks for seq in found]


def read_blocks(
    connection: Connection, scope_id: int, blocks: range
) -> list[tuple[int, array[int], bytearray, list[str]]]:
    """Blocks with the seqs, the length codes and the terms of their documents."""
    rows = connection.execute(
        "SELECT block, seqs, lengths, terms FROM index_blocks WHERE scope_id = ? AND block BETWEEN ? AND ?"
        " ORDER BY block",
        (scope_id, blocks.start, blocks.stop - 1),
    )
    return [(block, array("I", seqs), bytearray(lengths), terms.split()) for block, seqs, lengths, terms in rows]


def _write(connection: Connection, sessions: Sequence[IndexedSession]) -> None:
    rows: PostingsByRow = {}
    for session in sessions:
        for each in session.documents:
            if each.is_replacement:
                _remove(connection, session, each.document)
        for block in sorted({each.document >> BLOCK_BITS for each in session.documents}):
            _write_block(
                connection, session.scope_id, block, [d for d in session.documents if d.document >> BLOCK_BITS == block]
            )
        for each in session.documents:
            posting_lists.merge(
                rows, posting_lists.postings_of(session.scope_id, each.document, each.terms, each.context_terms)
            )
        added = session.statistics()
        connection.execute(
            "UPDATE index_sessions SET indexed_seq = ?, positions = ?, documents = documents + ?, words = words + ?"
            " WHERE number = ?",
            (session.indexed_seq, session.positions, added.documents, added.words, session.number),
        )
        posting_lists.add_statistics(connection, session.scope_id, added)
    posting_lists.add(connection, rows)


def _write_block(connection: Connection, scope_id: int, block: int, documents: Sequence[IndexedMessage]) -> None:
    empty: tuple[int, array[int], bytearray, list[str]] = (block, array("I"), bytearray(), [])
    [(_, seqs, lengths, terms)] = read_blocks(connection, scope_id, range(block, block + 1)) or [empty]
    known = dict.fromkeys(terms)
    for each in documents:
        position = each.document & IN_BLOCK
        missing = position + 1 - len(seqs)
        seqs.extend([0] * missing)
        lengths.extend(b"\0" * missing)
        seqs[position] = each.message.seq
        lengths[position] = each.length_code
        known.update(dict.fromkeys([*each.terms, *each.context_terms]))
    connection.execute(
        "INSERT INTO index_blocks (scope_id, block, seqs, lengths, terms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (scope_id, block)"
        " DO UPDATE SET seqs = excluded.seqs, lengths = excluded.lengths, terms = excluded.terms",
        (scope_id, block, seqs.tobytes(), bytes(lengths), " ".join(known)),
    )


# Changed and deleted messages


def has_stale(connection: Connection) -> bool:
    """Whether messages were changed or deleted after they were indexed."""
    return connection.execute("SELECT 1 FROM index_stale LIMIT 1").fetchone() is not None


def refresh(connection: Connection) -> None:
    """Index changed messages again, under the same document ids, and remove deleted ones."""
    for session_id, seq in connection.execute("SELECT session_id, seq FROM index_stale").fetchall():
        session = _find_session(connection, session_id)
        if session is None:
            continue
        changed = _read_message(connection, session, seq)
        positions = seqs(connection, session)
        if seq not in positions:  # it had no text before
            _write(connection, _sessions_of(connection, [changed] if changed else [], create=False))
            continue
        position = positions.index(seq)
        document = session.number << POSITION_BITS | position
        _remove(connection, session, document)
        if changed is not None:
            session.documents.append(_indexed(changed, document, is_replacement=False))
            _write(connection, [session])
        connection.execute(  # the vectors of the messages after it include its text
            "UPDATE index_sessions SET embedded = ? WHERE number = ? AND embedded > ?",
            (position, session.number, position),
        )
    connection.execute("DELETE FROM index_stale")


def _remove(connection: Connection, session: IndexedSession, document: int) -> None:
    """Remove a message from the index; the other messages keep their document ids."""
    scope_id, block, position = session.scope_id, document >> BLOCK_BITS, document & IN_BLOCK
    [(_, seqs, lengths, terms)] = read_blocks(connection, scope_id, range(block, block + 1))
    words = LENGTHS[lengths[position]]
    seqs[position] = lengths[position] = 0
    gone = posting_lists.remove(connection, scope_id, block, terms, {document})
    connection.execute(
        "UPDATE index_blocks SET seqs = ?, lengths = ?, terms = ? WHERE scope_id = ? AND block = ?",
        (seqs.tobytes(), bytes(lengths), " ".join(term for term in terms if term not in gone), scope_id, block),
    )
    connection.execute(
        "UPDATE index_sessions SET documents = documents - 1, words = words - ? WHERE number = ?",
        (words, session.number),
    )
    posting_lists.add_statistics(connection, scope_id, Statistics(-1, -words, 0))
    connection.execute("DELETE FROM vectors WHERE scope_id = ? AND document = ?", (scope_id, document))


def rebuild(connection: Connection, scope_id: int) -> None:
    """Index the messages of a scope again, under the same document ids. The scope has no postings, and 0 documents."""
    rows = connection.execute(
        "SELECT number, session_id, scope_id, indexed_seq, positions FROM index_sessions WHERE scope_id = ?",
        (scope_id,),
    ).fetchall()
    connection.execute("UPDATE index_blocks SET terms = '' WHERE scope_id = ?", (scope_id,))
    connection.execute("UPDATE index_sessions SET documents = 0, words = 0 WHERE scope_id = ?", (scope_id,))
    for row in rows:
        session = IndexedSession(*row)
        for position, seq in enumerate(seqs(connection, session)):
            message = _read_message(connection, session, seq, "1 = 1") if seq else None
            if message is not None:
                document = session.number << POSITION_BITS | position
                session.documents.append(_indexed(message, document, is_replacement=False))
        _write(connection, [session])
        added = Statistics(0, 0, passages(session.positions))
        posting_lists.add_statistics(connection, scope_id, added)


def _read_message(
    connection: Connection, session: IndexedSession, seq: int, condition: str = SEARCHABLE
) -> NewMessage | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM messages AS m JOIN sessions AS s ON s.id = m.session_id"
        f" WHERE m.session_id = ? AND m.seq = ? AND {condition}",
        (session.session_id, seq),
    ).fetchone()
    return None if row is None else NewMessage._make(row)._replace(indexed_seq=session.indexed_seq)


def remove_session(connection: Connection, session_id: str) -> None:
    """Remove a session from the index. The caller deletes its messages, or they are indexed again."""
    row = connection.execute(
        "SELECT number, scope_id, documents, words, positions FROM index_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        return
    number, scope_id, documents, words, positions = row
    blocks = blocks_of(number)
    for block, _, _, terms in read_blocks(connection, scope_id, blocks):
        posting_lists.delete_block(connection, scope_id, block, terms)
    connection.execute(
        "DELETE FROM index_blocks WHERE scope_id = ? AND block BETWEEN ? AND ?",
        (scope_id, blocks.start, blocks.stop - 1),
    )
    connection.execute(
        "DELETE FROM vectors WHERE scope_id = ? AND document BETWEEN ? AND ?",
        (scope_id, number << POSITION_BITS, number << POSITION_BITS | IN_SESSION),
    )
    connection.execute("DELETE FROM index_sessions WHERE number = ?", (number,))
    connection.execute("DELETE FROM index_stale WHERE session_id = ?", (session_id,))
    posting_lists.add_statistics(connection, scope_id, Statistics(-documents, -words, -passages(positions)))
    posting_lists.delete_if_empty(connection, scope_id)


def rename_session(connection: Connection, session_id: str, to: str) -> None:
    for table in ("index_sessions", "index_stale"):
        connection.execute(f"UPDATE {table} SET session_id = ? WHERE session_id = ?", (to, session_id))
