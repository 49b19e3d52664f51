"""What was said, made findable: recorded messages enter the index of words in their own time.

A run never waits for the index. Messages are read from the record in the order they were written,
from where `index_progress` says, in small transactions. The last few are not indexed at all: a search
reads them from the record and does with them in memory what indexing would do on disk. So the index
is up to date whenever it is asked, also after a crash, and writes are many messages at a time.

Each session has a number, each of its messages a position in it; the two make its place. A new
version of a message takes the place of the old one. Messages that are changed or deleted after they
were indexed are put down in `index_stale` by triggers, and looked at again before the next search.
What our own memory tools answered is passed over: it is memory already, or was until it was forgotten.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.memory_types import MessageScope
from session_middleware.storage.search.bm25 import LENGTHS, STRETCH, Statistics, length_code
from session_middleware.storage.search.tokenizer import marks_of, terms_of
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.posting_lists import PART_BITS, PostingsByRow
from session_middleware.storage.sql.row_mapping import namespace_text

POSITION_BITS = 22  # a session's first four million messages are indexed
_PARTS = POSITION_BITS - PART_BITS
_IN_PART = (1 << PART_BITS) - 1

LEFT_UNINDEXED = 200  # messages, or items, that a search may read from where they are written
AT_ONCE = 200  # messages indexed in one transaction

_COLUMNS = "m.rowid, m.session_id, m.seq, m.message_id, m.version, m.name, m.text, m.created_at, s.user_id"
_SPOKEN = (
    "m.role IN ('user', 'assistant', 'tool') AND m.text != '' AND m.replaced_by IS NULL"
    " AND COALESCE(m.marks, '') NOT LIKE '%\"memory\"%' AND COALESCE(m.marks, '') NOT LIKE '%\"resume\"%'"
)
_NEW = (
    f"SELECT {_COLUMNS} FROM messages AS m CROSS JOIN sessions AS s ON s.id = m.session_id"
    " LEFT JOIN index_sessions AS i ON i.session_id = m.session_id"
    f" WHERE m.rowid > ? AND m.seq > COALESCE(i.last_seq, 0) AND {_SPOKEN}"
)
_NEW_OF_USER = (
    f"SELECT {_COLUMNS} FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id"
    " CROSS JOIN messages AS m ON m.session_id = s.id AND m.seq > COALESCE(i.last_seq, 0)"
    f" WHERE s.user_id = ? AND {_SPOKEN}"
)
_NEW_OF_SESSION = (
    f"SELECT {_COLUMNS} FROM sessions AS s LEFT JOIN index_sessions AS i ON i.session_id = s.id"
    " CROSS JOIN messages AS m ON m.session_id = s.id AND m.seq > COALESCE(i.last_seq, 0)"
    f" WHERE s.id = ? AND {_SPOKEN}"
)


EVERYBODY = MessageScope()


class _New(NamedTuple):
    rowid: int
    session_id: str
    seq: int
    message_id: str
    version: int
    name: str | None
    text: str
    created_at: str
    user_id: str | None


class IndexPosition(NamedTuple):
    """Where a message is in the index, and what it adds to it."""

    message: _New
    scope_id: int
    place: int
    terms: list[str]
    marks: list[str]
    replaces: bool

    @property
    def length_code(self) -> int:
        return max(1, length_code(len(self.terms)))  # 0 is a message that is gone

    @property
    def length(self) -> int:
        return LENGTHS[self.length_code]


class _Sitting:
    """A session as the index knows it."""

    def __init__(self, number: int, session_id: str, scope_id: int, last_seq: int, positions: int) -> None:
        self.number, self.session_id, self.scope_id = number, session_id, scope_id
        self.last_seq, self.positions = last_seq, positions
        self.stretches = 0  # that begin now

    @property
    def parts(self) -> range:
        return parts_of(self.number)


def parts_of(number: int) -> range:
    return range(number << _PARTS, (number + 1) << _PARTS)


def owner_name(user_id: str | None) -> str:
    """The scope of a user's messages; those of nobody share one, and are told apart by their parts."""
    return namespace_text(("user", user_id) if user_id is not None else ())


# Catching up


def backlog(connection: sqlite3.Connection) -> int:
    """About how many messages are not indexed; 0 only when none is."""
    last = connection.execute("SELECT MAX(rowid) FROM messages").fetchone()[0] or 0
    return max(0, last - mark(connection))


def mark(connection: sqlite3.Connection) -> int:
    """The row of the last message indexed; 0, to look through all, when it is not the message it was.

    Rows of messages have no number of their own: after a VACUUM, or once the last of them are deleted,
    another message may have that of the last one indexed.
    """
    row = connection.execute(
        "SELECT p.message FROM index_progress AS p JOIN messages AS m"
        " ON m.rowid = p.message AND m.session_id = p.session_id AND m.seq = p.seq"
    ).fetchone()
    return 0 if row is None else int(row[0])


def index_some(connection: sqlite3.Connection, limit: int = AT_ONCE, *, of: MessageScope = EVERYBODY) -> int:
    """Index the next messages, at most `limit`; how many that was."""
    found = _next(connection, of, limit)
    _write(connection, _places(connection, found, making=True))
    if of == EVERYBODY:
        set_mark(connection, found[-1].rowid if len(found) == limit else None)
    return len(found)


def _next(connection: sqlite3.Connection, of: MessageScope, limit: int) -> list[_New]:
    if of.session_id is not None:
        rows = connection.execute(f"{_NEW_OF_SESSION} ORDER BY m.rowid LIMIT ?", (of.session_id, limit))
    elif of.user_id is not None:
        rows = connection.execute(f"{_NEW_OF_USER} ORDER BY m.rowid LIMIT ?", (of.user_id, limit))
    else:
        rows = connection.execute(f"{_NEW} ORDER BY m.rowid LIMIT ?", (mark(connection), limit))
    return list(map(_New._make, rows))


def set_mark(connection: sqlite3.Connection, last: int | None) -> None:
    """All messages up to this row of the record are indexed; ``None``: all there are."""
    row = connection.execute(
        "SELECT rowid, session_id, seq FROM messages WHERE ? IS NULL OR rowid <= ? ORDER BY rowid DESC LIMIT 1",
        (last, last),
    ).fetchone()
    connection.execute("UPDATE index_progress SET message = ?, session_id = ?, seq = ?", row or (0, None, None))


def unindexed(connection: sqlite3.Connection, whose: Sequence[MessageScope]) -> tuple[list[IndexPosition], Statistics]:
    """The messages of these scopes that are not indexed yet, and what they add to their figures."""
    new = [message for of in whose for message in _unindexed(connection, of)]
    found = _places(connection, new, making=False)
    figures = [_added(sitting, places) for sitting, places in found]
    return [place for _, places in found for place in places], sum(figures, Statistics(0, 0, 0))


def _unindexed(connection: sqlite3.Connection, whose: MessageScope) -> list[_New]:
    if backlog(connection) > LEFT_UNINDEXED:  # the scope's own were indexed before those of others
        return _next(connection, whose, LEFT_UNINDEXED)
    rows = connection.execute(
        f"{_NEW} AND (? IS NULL OR s.user_id = ?) AND (? IS NULL OR s.id = ?) ORDER BY m.rowid",
        (mark(connection), *(whose.user_id,) * 2, *(whose.session_id,) * 2),
    )
    return list(map(_New._make, rows))


def _added(sitting: _Sitting, places: Sequence[IndexPosition]) -> Statistics:
    return Statistics(len(places), sum(place.length for place in places), sitting.stretches)


def _places(
    connection: sqlite3.Connection, new: Iterable[_New], *, making: bool
) -> list[tuple[_Sitting, list[IndexPosition]]]:
    """Where each new message goes, by session."""
    found: dict[str, tuple[_Sitting, list[IndexPosition]]] = {}
    for message in new:
        if message.session_id not in found:
            found[message.session_id] = _sitting(connection, message, making, len(found)), []
        sitting, places = found[message.session_id]
        position = _position_of_earlier(connection, sitting, message) if message.version > 1 else None
        replaces = position is not None
        if position is None:
            position = sitting.positions
            if position >> POSITION_BITS:
                continue
            sitting.positions += 1
            sitting.stretches += position % STRETCH == 0
        sitting.last_seq = message.seq
        at = sitting.number << POSITION_BITS | position
        places.append(_place(message, sitting.scope_id, at, replaces=replaces))
    return list(found.values())


def _place(message: _New, scope_id: int, at: int, *, replaces: bool) -> IndexPosition:
    marks = marks_of(from_text(message.created_at), message.name)
    return IndexPosition(message, scope_id, at, terms_of(message.text), marks, replaces)


def _sitting(connection: sqlite3.Connection, message: _New, making: bool, unknown: int) -> _Sitting:
    name = owner_name(message.user_id)
    row = connection.execute(
        "SELECT number, session_id, scope_id, last_seq, positions FROM index_sessions WHERE session_id = ?",
        (message.session_id,),
    ).fetchone()
    if row is not None:
        return _Sitting(*row)
    if not making:
        scope_id = posting_lists.find_scope(connection, "message", name)
        nobodys = (1 << 27) + unknown
        return _Sitting(nobodys, message.session_id, scope_id or 0, 0, 0)
    scope_id = posting_lists.make_scope(connection, "message", name)
    cursor = connection.execute(
        "INSERT INTO index_sessions (session_id, scope_id) VALUES (?, ?)", (message.session_id, scope_id)
    )
    return _Sitting(int(cursor.lastrowid or 0), message.session_id, scope_id, 0, 0)


def _position_of_earlier(connection: sqlite3.Connection, sitting: _Sitting, message: _New) -> int | None:
    """Where an earlier version of this message was put."""
    earlier = connection.execute(
        "SELECT seq FROM messages WHERE session_id = ? AND message_id = ? AND version < ? AND replaced_by IS NOT NULL",
        (message.session_id, message.message_id, message.version),
    )
    wanted = {seq for (seq,) in earlier}
    for part, seqs, _, _ in read_parts(connection, sitting.parts):
        for place, seq in enumerate(seqs):
            if seq in wanted:
                return (part - sitting.parts.start) << PART_BITS | place
    return None


# Writing


def seqs(connection: sqlite3.Connection, number: int) -> list[int]:
    """The seq of the message at each position of a session; 0 where it is gone."""
    return [seq for part in read_parts(connection, parts_of(number)) for seq in part[1].tolist()]


def read_parts(connection: sqlite3.Connection, parts: range) -> list[tuple[int, array[int], bytearray, list[str]]]:
    rows = connection.execute(
        "SELECT part, seqs, lengths, terms FROM index_parts WHERE part BETWEEN ? AND ?", (parts.start, parts.stop - 1)
    )
    return [(part, array("I", seqs), bytearray(lengths), terms.split()) for part, seqs, lengths, terms in rows]


def _write(connection: sqlite3.Connection, found: Sequence[tuple[_Sitting, list[IndexPosition]]]) -> None:
    rows: PostingsByRow = {}
    for sitting, places in found:
        for place in places:
            if place.replaces:
                forget_places(connection, sitting.number, [place.place])
        for part in sorted({place.place >> PART_BITS for place in places}):
            _write_part(connection, part, [place for place in places if place.place >> PART_BITS == part])
        for place in places:
            posting_lists.merge(
                rows, posting_lists.postings_of(sitting.scope_id, place.place, place.terms, place.marks)
            )
        added = _added(sitting, places)
        connection.execute(
            "UPDATE index_sessions SET last_seq = ?, positions = ?, texts = texts + ?, words = words + ?"
            " WHERE number = ?",
            (sitting.last_seq, sitting.positions, added.texts, added.words, sitting.number),
        )
        posting_lists.count(connection, sitting.scope_id, added)
    posting_lists.add(connection, rows)


def _write_part(connection: sqlite3.Connection, part: int, places: Sequence[IndexPosition]) -> None:
    row = connection.execute("SELECT seqs, lengths, terms FROM index_parts WHERE part = ?", (part,)).fetchone()
    seqs, lengths, terms = (
        (array("I", row[0]), bytearray(row[1]), row[2].split()) if row else (array("I"), bytearray(), [])
    )
    for place in places:
        position = place.place & _IN_PART
        missing = position + 1 - len(seqs)
        seqs.extend([0] * missing)
        lengths.extend(b"\0" * missing)
        seqs[position] = place.message.seq
        lengths[position] = place.length_code
    known = dict.fromkeys(terms)
    for place in places:
        known.update(dict.fromkeys([*place.terms, *place.marks]))
    connection.execute(
        "INSERT OR REPLACE INTO index_parts (part, seqs, lengths, terms) VALUES (?, ?, ?, ?)",
        (part, seqs.tobytes(), bytes(lengths), " ".join(known)),
    )


def is_stale(connection: sqlite3.Connection) -> bool:
    """Whether messages were changed or deleted after they were indexed."""
    return connection.execute("SELECT 1 FROM index_stale LIMIT 1").fetchone() is not None


def refresh(connection: sqlite3.Connection) -> None:
    """Bring what is stale up to date: what was changed stays in its place, what was deleted leaves it."""
    for session_id, seq in connection.execute("SELECT session_id, seq FROM index_stale").fetchall():
        row = connection.execute(
            "SELECT number, session_id, scope_id, last_seq, positions FROM index_sessions WHERE session_id = ?",
            (session_id,),
        ).fetchone()
        at = None if row is None else _place_of(connection, row[0], seq)
        if at is None:
            continue
        forget_places(connection, row[0], [at])
        new = connection.execute(
            f"SELECT {_COLUMNS} FROM messages AS m JOIN sessions AS s ON s.id = m.session_id"
            f" WHERE m.session_id = ? AND m.seq = ? AND {_SPOKEN}",
            (session_id, seq),
        ).fetchone()
        if new is not None:
            _write(connection, [(_Sitting(*row), [_place(_New(*new), row[2], at, replaces=False)])])
        connection.execute(  # the vectors of those after it are made with it
            "UPDATE index_sessions SET embedded = MIN(embedded, ?) WHERE number = ?",
            (at & ((1 << POSITION_BITS) - 1), row[0]),
        )
    connection.execute("DELETE FROM index_stale")


def _place_of(connection: sqlite3.Connection, number: int, seq: int) -> int | None:
    for part, found, _, _ in read_parts(connection, parts_of(number)):
        if seq in found:
            return part << PART_BITS | found.index(seq)
    return None


# Forgetting


def forget_places(connection: sqlite3.Connection, number: int, places: Collection[int]) -> None:
    """Take messages out of the index; those around them keep their places."""
    scope_id = int(connection.execute("SELECT scope_id FROM index_sessions WHERE number = ?", (number,)).fetchone()[0])
    for part in {place >> PART_BITS for place in places}:
        for _, seqs, lengths, terms in read_parts(connection, range(part, part + 1)):
            here = {place & _IN_PART for place in places if place >> PART_BITS == part}
            here = {position for position in here if position < len(seqs) and seqs[position]}
            length = sum(LENGTHS[lengths[position]] for position in here)
            for position in here:
                seqs[position] = lengths[position] = 0
            gone = posting_lists.remove(
                connection, scope_id, part, terms, {part << PART_BITS | position for position in here}
            )
            left = " ".join(term for term in terms if term not in gone)
            connection.execute(
                "UPDATE index_parts SET seqs = ?, lengths = ?, terms = ? WHERE part = ?",
                (seqs.tobytes(), bytes(lengths), left, part),
            )
            connection.execute(
                "UPDATE index_sessions SET texts = texts - ?, words = words - ? WHERE number = ?",
                (len(here), length, number),
            )
            posting_lists.count(connection, scope_id, Statistics(-len(here), -length, 0))
    connection.executemany(
        "DELETE FROM vectors WHERE scope_id = ? AND place = ?", [(scope_id, place) for place in places]
    )


def forget_session(connection: sqlite3.Connection, session_id: str) -> None:
    """Take a session out of the index. Its messages are deleted before it, or indexed again after it."""
    row = connection.execute(
        "SELECT number, scope_id, texts, words, positions FROM index_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        return
    number, scope_id, texts, length, positions = row
    parts = parts_of(number)
    for part, _, _, terms in read_parts(connection, parts):
        posting_lists.drop(connection, scope_id, part, terms)
    connection.execute("DELETE FROM index_parts WHERE part BETWEEN ? AND ?", (parts.start, parts.stop - 1))
    connection.execute(
        "DELETE FROM vectors WHERE scope_id = ? AND place BETWEEN ? AND ?",
        (scope_id, number << POSITION_BITS, ((number + 1) << POSITION_BITS) - 1),
    )
    connection.execute("DELETE FROM index_sessions WHERE number = ?", (number,))
    connection.execute("DELETE FROM index_stale WHERE session_id = ?", (session_id,))
    posting_lists.count(connection, scope_id, Statistics(-texts, -length, -stretches(positions)))
    posting_lists.drop_empty(connection, scope_id)
    marked = connection.execute("SELECT message FROM index_progress WHERE session_id = ?", (session_id,)).fetchone()
    if marked is not None:
        set_mark(connection, marked[0])


def rename_session(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    connection.execute("UPDATE index_sessions SET session_id = ? WHERE session_id = ?", (to, session_id))
    connection.execute("UPDATE index_progress SET session_id = ? WHERE session_id = ?", (to, session_id))
    connection.execute("UPDATE index_stale SET session_id = ? WHERE session_id = ?", (to, session_id))


def stretches(positions: int) -> int:
    return -(-positions // STRETCH)
