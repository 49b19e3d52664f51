"""Vectors in SQL: float32 blobs by scope and document, compared exactly. numpy is imported when they are used."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from zlib import crc32

from session_middleware.storage.memory_types import ToEmbed, Vectors
from session_middleware.storage.search.bm25 import ITEM
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import indexing, items
from session_middleware.storage.sql.memory.indexing import IN_SESSION, POSITION_BITS, IndexedSession
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, PostingSource

_BEFORE = 2  # the vector of a message includes the texts of so many messages before it


# Comparing


def cosines(
    connection: Connection,
    sources: Sequence[PostingSource],
    query: Sequence[float],
    *,
    nearest: int | None,
    besides: Collection[int],
) -> dict[int, float]:
    """The cosine of each document and the query; of several vectors of a document, the greatest.

    Only of the `nearest` so many vectors and of the documents in `besides`; ``None``: of all.
    """
    import numpy as np

    rows: list[tuple[int, bytes]] = []
    for source in sources:
        rows += connection.execute(
            "SELECT document, vector FROM vectors WHERE scope_id = ? AND document BETWEEN ? AND ?",
            (source.scope_id, source.first_block << BLOCK_BITS, ((source.last_block + 1) << BLOCK_BITS) - 1),
        ).fetchall()
    if not rows:
        return {}
    ids, blobs = zip(*rows, strict=True)
    near = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(rows), -1) @ unit(query)
    documents = np.array(ids, dtype="<i8")
    if nearest is not None and nearest < len(rows):
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
    """Documents without vectors; only indexed items, because vectors are deleted together with words."""
    rows = connection.execute(
        "SELECT s.id, m.namespace, m.position FROM memories AS m CROSS JOIN index_scopes AS s"
        " WHERE m.embedded = 0 AND s.kind = 'item' AND s.name = m.namespace AND m.position <= s.indexed"
        " ORDER BY m.namespace, m.position LIMIT ?",
        (limit,),
    ).fetchall()
    found = []
    for scope_id, namespace, position in rows:
        item = items.find_at(connection, namespace, position, None)
        assert item is not None
        found.append(ToEmbed(scope_id, items.document_of(scope_id, position), _fingerprint(item.value), item=item))
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


def _fingerprint(value: dict[str, Any]) -> int:
    return crc32(json.dumps(value).encode())


def put(connection: Connection, found: Sequence[Vectors]) -> None:
    for source, made in found:
        connection.execute(
            "DELETE FROM vectors WHERE scope_id = ? AND document = ?", (source.scope_id, source.document)
        )
        is_item = source.document >= ITEM
        if not (_mark_item if is_item else _mark_message)(connection, source):
            continue
        vectors = [unit(vector) for vector in made]
        if not is_item and vectors:
            vectors = [unit(sum(vectors))]
        connection.executemany(
            "INSERT INTO vectors (scope_id, document, number, vector) VALUES (?, ?, ?, ?)",
            [(source.scope_id, source.document, number, vector.tobytes()) for number, vector in enumerate(vectors)],
        )


def _mark_item(connection: Connection, source: ToEmbed) -> bool:
    """Mark an item as embedded; ``False`` when it was changed or deleted in the meantime."""
    row = connection.execute(
        "SELECT m.namespace, m.position FROM index_scopes AS s JOIN memories AS m ON m.namespace = s.name"
        " WHERE s.id = ? AND s.kind = 'item' AND m.position = ? AND m.embedded IS NOT NULL AND m.position <= s.indexed",
        (source.scope_id, source.document & items.IN_NAMESPACE),
    ).fetchone()
    item = None if row is None else items.find_at(connection, row[0], row[1], None)
    if item is None or _fingerprint(item.value) != source.version:
        return False
    connection.execute("UPDATE memories SET embedded = 1 WHERE namespace = ? AND position = ?", row)
    return True


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
    connection.execute("UPDATE memories SET embedded = 0 WHERE embedded = 1")
    connection.execute("UPDATE index_sessions SET embedded = 0 WHERE embedded > 0")
    connection.execute(
        "INSERT INTO vector_models (id, name, dimensions) VALUES (1, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, dimensions = excluded.dimensions",
        (name, dimensions),
    )
    return name, dimensions
