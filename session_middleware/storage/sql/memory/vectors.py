"""Vectors in SQL: float32 blobs by scope and document, compared exactly. numpy is imported when they are used."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from session_middleware.models import to_text
from session_middleware.storage.memory_types import MemoryQuery, ToEmbed, Vectors
from session_middleware.storage.search.bm25 import ITEM
from session_middleware.storage.sql.connection import Connection, index_lock
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.memory.indexing import POSITION_BITS, SEARCHABLE
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, Document, PostingSource

Rows: TypeAlias = list[tuple[int, bytes]]  # documents and their vectors

_BEFORE = 2  # the vector of a message includes the texts of so many messages before it


# Comparing


def of_items(connection: Connection, query: MemoryQuery, now: datetime) -> Rows:
    """The vectors of items, by document id; an item may have several."""
    where, values = items.visible(query)
    return connection.execute(
        f"SELECT id + {ITEM}, vectors FROM memories WHERE ({where}) AND {items.LIVE} AND vectors != ?",
        (*values, to_text(now), b""),
    ).fetchall()


def of_messages(connection: Connection, sources: Sequence[PostingSource], unindexed: Iterable[Document]) -> Rows:
    """The vectors of messages, by document id; those of unindexed messages too, which were indexed before."""
    ids = {each.id >> POSITION_BITS << POSITION_BITS | each.seq: each.id for each in unindexed}
    rows: Rows = []
    for scope_id, first, last in sources:
        blocks = connection.execute(
            "SELECT block, seqs FROM index_blocks WHERE scope_id = ? AND block BETWEEN ? AND ?", (scope_id, first, last)
        )
        for block, seqs in blocks.fetchall():
            session = block << BLOCK_BITS >> POSITION_BITS << POSITION_BITS
            ids.update((session | seq, document) for document, seq in enumerate(array("I", seqs), block << BLOCK_BITS))
        found = connection.execute(
            f"SELECT s.number << {POSITION_BITS} | v.seq, v.vector FROM index_sessions AS s CROSS JOIN vectors AS v"
            " WHERE s.scope_id = ? AND s.number BETWEEN ? AND ? AND v.number = s.number",
            (scope_id, first >> POSITION_BITS - BLOCK_BITS, last >> POSITION_BITS - BLOCK_BITS),
        )
        rows += [(ids[key], vector) for key, vector in found if key in ids]
    return rows


def cosines(
    rows: Rows, query: Sequence[float], *, nearest: int | None = None, besides: Collection[int] = ()
) -> dict[int, float]:
    """The cosine of each document and the query; of several vectors of a document, the greatest.

    Only of the `nearest` so many vectors and of the documents in `besides`; ``None``: of all.
    """
    import numpy as np

    if not rows:
        return {}
    ids, blobs = zip(*rows, strict=True)
    near = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, len(query)) @ unit(query)
    documents = np.repeat(np.array(ids, dtype="<i8"), [len(blob) // (4 * len(query)) for blob in blobs])
    if nearest is not None and nearest < len(documents):
        wanted = np.isin(documents, np.fromiter(besides, dtype="<i8", count=len(besides)))
        wanted[np.argpartition(near, -nearest)[-nearest:]] = True
        documents, near = documents[wanted], near[wanted]
    order = np.argsort(near, kind="stable")  # of several vectors of a document the last, and greatest, is kept
    return dict(zip(documents[order].tolist(), near[order].tolist(), strict=True))


def unit(vector: Sequence[float]) -> Any:
    """The vector as float32 with length one; very large and very small numbers neither overflow nor vanish."""
    import numpy as np

    found = np.asarray(vector, dtype="<f8")
    if largest := float(np.abs(found).max(initial=0.0)):
        found = found / largest
        found = found / np.linalg.norm(found)
    return found.astype("<f4")


# Making


def list_to_embed(connection: Connection, limit: int, *, messages: bool) -> list[ToEmbed]:
    """Items and indexed messages without vectors."""
    sql = "SELECT id, value FROM memories WHERE embedded = 0 ORDER BY id LIMIT ?"
    rows = connection.execute(sql, (limit,)).fetchall()
    stored = items.find(connection, [number for number, _ in rows])
    found = [ToEmbed(row, stored[row[0]]) for row in rows]
    if messages:
        sessions = connection.execute(
            "SELECT number, session_id, embedded_seq, document_seq FROM index_sessions"
            " WHERE embedded_seq < document_seq ORDER BY number LIMIT ?",
            (limit,),
        )
        for number, session_id, embedded, last in sessions.fetchall():
            found += _of_session(connection, number, session_id, range(embedded, last), limit - len(found))
    return found


def _of_session(connection: Connection, number: int, session_id: str, seqs: range, limit: int) -> Iterator[ToEmbed]:
    """The messages of a session after the first of these seqs, each with the texts before it."""
    embedded = seqs.start
    texts = f"SELECT m.seq, m.text FROM messages AS m WHERE m.session_id = ? AND {SEARCHABLE} AND m.seq"
    before = connection.execute(f"{texts} <= ? ORDER BY m.seq DESC LIMIT ?", (session_id, embedded, _BEFORE))
    said = [text for _, text in before][::-1]
    new = connection.execute(
        f"{texts} BETWEEN ? AND ? ORDER BY m.seq LIMIT ?", (session_id, embedded + 1, seqs.stop, limit)
    )
    for seq, text in new.fetchall():
        said = [*said[-_BEFORE:], text]
        yield ToEmbed((number, embedded, seq, text), texts=(text, "\n".join(said)))
        embedded = seq


def put(connection: Connection, found: Sequence[Vectors]) -> None:
    """Store vectors, except of documents that were changed or deleted in the meantime."""
    numbers = json.dumps([source.ref[0] for source, _ in found if source.item is None])
    connection.lock([index_lock(session_id) for (session_id,) in connection.execute(_SESSIONS, (numbers,))])
    for source, made in found:
        vectors = [unit(vector) for vector in made]
        if source.item is not None:
            connection.execute(
                "UPDATE memories SET embedded = 1, vectors = ? WHERE id = ? AND value = ? AND embedded IS NOT NULL",
                (b"".join(vector.tobytes() for vector in vectors), *source.ref),
            )
        else:
            _put_of_message(connection, source, unit(sum(vectors)).tobytes())


_SESSIONS = """
    SELECT DISTINCT session_id FROM index_sessions
    WHERE number IN (SELECT CAST(value AS INTEGER) FROM json_each(?))
"""


def _put_of_message(connection: Connection, source: ToEmbed, vector: bytes) -> None:
    """Store the vector of a message, if the messages before it have theirs and its text is the same."""
    number, embedded, seq, text = source.ref
    changed = connection.execute(
        "UPDATE index_sessions SET embedded_seq = ? WHERE number = ? AND embedded_seq = ? AND EXISTS (SELECT 1"
        " FROM messages AS m WHERE m.session_id = index_sessions.session_id AND m.seq = ? AND m.text = ?)",
        (seq, number, embedded, seq, text),
    )
    if changed.rowcount:
        connection.execute(
            "INSERT INTO vectors (number, seq, vector) VALUES (?, ?, ?)"
            " ON CONFLICT (number, seq) DO UPDATE SET vector = excluded.vector",
            (number, seq, vector),
        )


# The model


def model(connection: Connection) -> tuple[str, int] | None:
    row = connection.execute("SELECT name, dimensions FROM vector_models").fetchone()
    return None if row is None else (row[0], row[1])


def set_model(connection: Connection, name: str, dimensions: int, *, replace: bool) -> tuple[str, int]:
    if not replace and (stored := model(connection)) is not None:
        return stored
    connection.execute("DELETE FROM vectors")
    connection.execute("UPDATE memories SET embedded = 0, vectors = NULL WHERE embedded = 1")
    connection.execute("UPDATE index_sessions SET embedded_seq = 0 WHERE embedded_seq > 0")
    connection.execute(
        "INSERT INTO vector_models (id, name, dimensions) VALUES (1, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, dimensions = excluded.dimensions",
        (name, dimensions),
    )
    return name, dimensions
