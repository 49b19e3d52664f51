"""Vectors in SQL: float32 blobs by scope and document, compared exactly. numpy is imported when they are used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from session_middleware.models import to_text
from session_middleware.storage.memory_types import MemoryQuery, ToEmbed, Vectors
from session_middleware.storage.search.bm25 import ITEM
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import indexing, items
from session_middleware.storage.sql.memory.indexing import IN_SESSION, POSITION_BITS, IndexedSession
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, PostingSource

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


def of_messages(connection: Connection, sources: Sequence[PostingSource]) -> Rows:
    rows: Rows = []
    for source in sources:
        rows += connection.execute(
            "SELECT document, vector FROM vectors WHERE scope_id = ? AND document BETWEEN ? AND ?",
            (source.scope_id, source.first_block << BLOCK_BITS, ((source.last_block + 1) << BLOCK_BITS) - 1),
        ).fetchall()
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
    rows = connection.execute("SELECT id, value FROM memories WHERE embedded = 0 ORDER BY id LIMIT ?", (limit,))
    found = [ToEmbed(0, ITEM | number, value, item=items.find(connection, number)) for number, value in rows.fetchall()]
    return [*found, *(_messages(connection, limit - len(found)) if messages else ())]


def _messages(connection: Connection, limit: int) -> list[ToEmbed]:
    found: list[ToEmbed] = []
    rows = connection.execute(
        "SELECT number, session_id, scope_id, indexed_seq, positions, embedded FROM index_sessions"
        " WHERE embedded < positions ORDER BY scope_id, number LIMIT ?",
        (limit,),
    )
    for *columns, embedded in rows.fetchall():
        session = IndexedSession(*columns)
        wanted = range(embedded, min(session.positions, embedded + limit - len(found)))
        found += _of_session(connection, session, wanted)
    return found


def _of_session(connection: Connection, session: IndexedSession, positions: range) -> Iterator[ToEmbed]:
    seqs = indexing.seqs(connection, session)
    texts: dict[int, str] = {}
    for position in range(max(0, positions.start - _BEFORE), positions.stop):
        row = connection.execute(
            "SELECT text FROM messages WHERE session_id = ? AND seq = ?", (session.session_id, seqs[position])
        ).fetchone()
        texts[position] = row[0] if row else ""
    for position in positions:
        with_those_before = "\n".join(filter(None, (texts.get(p) for p in range(position - _BEFORE, position + 1))))
        wanted = [text for text in (texts[position], with_those_before) if text]
        yield ToEmbed(session.scope_id, session.number << POSITION_BITS | position, seqs[position], texts=wanted)


def put(connection: Connection, found: Sequence[Vectors]) -> None:
    """Store vectors, except of documents that were changed or deleted in the meantime."""
    for source, made in found:
        vectors = [unit(vector) for vector in made]
        if source.document >= ITEM:
            connection.execute(
                "UPDATE memories SET embedded = 1, vectors = ? WHERE id = ? AND embedded IS NOT NULL AND value = ?",
                (b"".join(vector.tobytes() for vector in vectors), source.document ^ ITEM, source.version),
            )
            continue
        connection.execute(
            "DELETE FROM vectors WHERE scope_id = ? AND document = ?", (source.scope_id, source.document)
        )
        if _mark_message(connection, source) and vectors:
            connection.execute(
                "INSERT INTO vectors (scope_id, document, vector) VALUES (?, ?, ?)",
                (source.scope_id, source.document, unit(sum(vectors)).tobytes()),
            )


def _mark_message(connection: Connection, source: ToEmbed) -> bool:
    """Mark a session as embedded up to a message; ``False`` when that was changed or deleted in the meantime."""
    number, position = source.document >> POSITION_BITS, source.document & IN_SESSION
    row = connection.execute(
        "SELECT number, session_id, scope_id, indexed_seq, positions FROM index_sessions WHERE number = ?", (number,)
    ).fetchone()
    if row is None or position >= row[-1]:
        return False
    connection.execute(
        "UPDATE index_sessions SET embedded = ? WHERE number = ? AND embedded <= ?", (position + 1, number, position)
    )
    seq = indexing.seqs(connection, IndexedSession(*row))[position]
    return bool(seq) and seq == source.version


# The model


def model(connection: Connection) -> tuple[str, int] | None:
    row = connection.execute("SELECT name, dimensions FROM vector_models").fetchone()
    return None if row is None else (row[0], row[1])


def set_model(connection: Connection, name: str, dimensions: int, *, replace: bool) -> tuple[str, int]:
    if not replace and (stored := model(connection)) is not None:
        return stored
    connection.execute("DELETE FROM vectors")
    connection.execute("UPDATE memories SET embedded = 0, vectors = NULL WHERE embedded = 1")
    connection.execute("UPDATE index_sessions SET embedded = 0 WHERE embedded > 0")
    connection.execute(
        "INSERT INTO vector_models (id, name, dimensions) VALUES (1, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, dimensions = excluded.dimensions",
        (name, dimensions),
    )
    return name, dimensions
