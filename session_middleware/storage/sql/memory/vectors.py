"""Vectors in SQLite: float32 blobs by scope and place, compared exactly. numpy is loaded when there are some."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from zlib import crc32

from session_middleware.storage.memory_types import ToEmbed, Vectors
from session_middleware.storage.search.bm25 import ITEM
from session_middleware.storage.sql.memory import indexing, items, posting_lists
from session_middleware.storage.sql.memory.indexing import POSITION_BITS
from session_middleware.storage.sql.memory.posting_lists import PART_BITS, PostingSource

BEFORE = 2  # messages that a message's vector is made with


# Comparing


def cosines(
    connection: sqlite3.Connection,
    sources: Sequence[PostingSource],
    query: Sequence[float],
    *,
    nearest: int | None,
    besides: Collection[int],
) -> dict[int, float]:
    """How near texts are to the query: of several vectors of one, the nearest.

    Of the `nearest` so many vectors, and of the places in `besides`; ``None``: of all.
    """
    import numpy as np

    rows: list[tuple[int, bytes]] = []
    for source in sources:
        rows += connection.execute(
            "SELECT place, vector FROM vectors WHERE scope_id = ? AND place BETWEEN ? AND ?",
            (source.scope_id, source.first_part << PART_BITS, ((source.last_part + 1) << PART_BITS) - 1),
        ).fetchall()
    if not rows:
        return {}
    of, found = zip(*rows, strict=True)
    near = np.frombuffer(b"".join(found), dtype="<f4").reshape(len(rows), -1) @ unit(query)
    places = np.array(of, dtype="<i8")
    if nearest is not None and nearest < len(rows):
        wanted = np.isin(places, np.fromiter(besides, dtype="<i8", count=len(besides)))
        wanted[np.argpartition(near, -nearest)[-nearest:]] = True
        places, near = places[wanted], near[wanted]
    order = np.argsort(near, kind="stable")  # of several, the nearest comes last and stays
    return dict(zip(places[order].tolist(), near[order].tolist(), strict=True))


def unit(vector: Sequence[float]) -> Any:
    """The vector as float32, of length one, however large or small its numbers are."""
    import numpy as np

    found = np.asarray(vector, dtype="<f8")
    if largest := float(np.abs(found).max(initial=0.0)):
        found = found / largest
        found = found / np.linalg.norm(found)
    return found.astype("<f4")


# Making


def to_embed(connection: sqlite3.Connection, limit: int, *, messages: bool) -> list[ToEmbed]:
    """What has no vectors yet; of items those whose words are indexed, which is what takes vectors away again."""
    found = []
    waiting = connection.execute(
        "SELECT id, namespace FROM memories WHERE embedded = 0 AND indexed = 1 ORDER BY id LIMIT ?", (limit,)
    )
    for number, namespace in waiting.fetchall():
        scope_id = posting_lists.find_scope(connection, "item", namespace)
        assert scope_id is not None
        item = items.get_any(connection, number)
        found.append(ToEmbed(scope_id, ITEM | number, _fingerprint(item.value), item=item))
    return [*found, *(_messages(connection, limit - len(found)) if messages else ())]


def _messages(connection: sqlite3.Connection, limit: int) -> list[ToEmbed]:
    found: list[ToEmbed] = []
    rows = connection.execute(
        "SELECT number, scope_id, session_id, embedded, positions FROM index_sessions WHERE embedded < positions"
        " ORDER BY number LIMIT ?",
        (limit,),
    )
    for number, scope_id, session_id, embedded, positions in rows.fetchall():
        wanted = range(embedded, min(positions, embedded + limit - len(found)))
        found += _of_session(connection, number, scope_id, session_id, wanted)
    return found


def _of_session(
    connection: sqlite3.Connection, number: int, scope_id: int, session_id: str, positions: range
) -> Iterator[ToEmbed]:
    seqs = indexing.seqs(connection, number)
    said: dict[int, str] = {}
    for position in range(max(0, positions.start - BEFORE), positions.stop):
        row = connection.execute(
            "SELECT text FROM messages WHERE session_id = ? AND seq = ?", (session_id, seqs[position])
        ).fetchone()
        said[position] = row[0] if row else ""
    for position in positions:
        with_those_before = "\n".join(filter(None, (said.get(p) for p in range(position - BEFORE, position + 1))))
        texts = [text for text in (said[position], with_those_before) if text]
        yield ToEmbed(scope_id, number << POSITION_BITS | position, seqs[position], texts=texts)


def _fingerprint(value: dict[str, Any]) -> int:
    return crc32(json.dumps(value).encode())


def put(connection: sqlite3.Connection, found: Sequence[Vectors]) -> None:
    for of, made in found:
        connection.execute("DELETE FROM vectors WHERE scope_id = ? AND place = ?", (of.scope_id, of.place))
        if of.place >= ITEM:
            if not _is_same_item(connection, of):
                continue
            connection.execute("UPDATE memories SET embedded = 1 WHERE id = ?", (of.place - ITEM,))
        elif not _is_same_message(connection, of):
            continue
        vectors = [unit(vector) for vector in made]
        if of.item is None and vectors:
            vectors = [unit(sum(vectors))]
        connection.executemany(
            "INSERT INTO vectors (scope_id, place, vector) VALUES (?, ?, ?)",
            [(of.scope_id, of.place, vector.tobytes()) for vector in vectors],
        )


def _is_same_item(connection: sqlite3.Connection, of: ToEmbed) -> bool:
    row = connection.execute(
        "SELECT namespace FROM memories WHERE id = ? AND embedded IS NOT NULL AND indexed = 1", (of.place - ITEM,)
    ).fetchone()
    if row is None or posting_lists.find_scope(connection, "item", row[0]) != of.scope_id:
        return False
    return _fingerprint(items.get_any(connection, of.place - ITEM).value) == of.version


def _is_same_message(connection: sqlite3.Connection, of: ToEmbed) -> bool:
    """Whether it is still the message at its place; if so, all up to it are embedded."""
    number, position = of.place >> POSITION_BITS, of.place & ((1 << POSITION_BITS) - 1)
    seqs = indexing.seqs(connection, number)
    if position >= len(seqs):
        return False
    connection.execute("UPDATE index_sessions SET embedded = MAX(embedded, ?) WHERE number = ?", (position + 1, number))
    return bool(seqs[position]) and seqs[position] == of.version


# The model


def model(connection: sqlite3.Connection) -> tuple[str, int] | None:
    row = connection.execute("SELECT name, dimensions FROM vector_models").fetchone()
    return None if row is None else (row[0], row[1])


def set_model(connection: sqlite3.Connection, name: str, dimensions: int, *, replace: bool) -> tuple[str, int]:
    if not replace and (stored := model(connection)) is not None:
        return stored
    connection.execute("DELETE FROM vectors")
    connection.execute("UPDATE memories SET embedded = 0 WHERE embedded = 1")
    connection.execute("UPDATE index_sessions SET embedded = 0 WHERE embedded > 0")
    connection.execute(
        "INSERT OR REPLACE INTO vector_models (id, name, dimensions) VALUES (1, ?, ?)", (name, dimensions)
    )
    return name, dimensions
