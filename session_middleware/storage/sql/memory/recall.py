"""Search by words and vectors: documents in scope, ranked, read from the index and the record."""

from __future__ import annotations

import heapq
import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.filters import passes
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.search import bm25
from session_middleware.storage.search.bm25 import (
    BITS,
    ITEM,
    LENGTH_WEIGHTS,
    SPEAKER_BOOST,
    Postings,
    QueryTerm,
    Scores,
    Statistics,
)
from session_middleware.storage.search.tokenizer import QueryWord, query_words, unfinished_word
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import indexing, items, posting_lists, vectors
from session_middleware.storage.sql.memory.indexing import POSITION_BITS, Document
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, IN_BLOCK, PostingSource

_FIRST = 4  # times the wanted results are sorted first; more only when the filter leaves too few
_COMPLETIONS = 64  # terms that an unfinished word may stand for
_PAGE = 200  # results; a longer page ranks all documents, however long that takes
_NEAREST = 500  # vectors that are ranked, and more when more results are wanted
VECTOR_WEIGHT = 1.5  # of the cosine, beside the score of the words as a share of the best


class _Scope(NamedTuple):
    """The searched documents and their statistics."""

    messages: list[PostingSource]
    statistics: Statistics
    unindexed: dict[int, Document]  # messages, by document id
    postings: dict[str, tuple[Postings, Postings]]  # of unindexed messages and of items, by term


class _Ranking(NamedTuple):
    """The scores of documents."""

    total: Scores
    words: Scores
    vectors: Scores


def search(connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> list[StoredMemory]:
    """The page of the best documents that pass the filter; a message that forks share is found once.

    Raises `LongBacklog`, so that the caller indexes a scope first, if it `can_index`.
    """
    words = query_words(query.query or "")
    unfinished = unfinished_word(query.query or "") if query.typed else None
    scope = _scope(connection, query, words, unfinished, now, can_index)
    wanted = query.offset + query.limit
    enough = None if query.filter is not None or query.since is not None or wanted > _PAGE else wanted
    ranking = _rank(connection, scope, query, words, unfinished, now, enough)
    found = _best(connection, scope, query, ranking)
    if len(found) < min(wanted, len(ranking.total)) and enough is not None:  # some of the best were left out
        found = _best(connection, scope, query, _rank(connection, scope, query, words, unfinished, now, None))
    return found[query.offset :]


def _best(connection: Connection, scope: _Scope, query: MemoryQuery, ranking: _Ranking) -> list[StoredMemory]:
    """The results up to the end of the page."""
    found: list[StoredMemory] = []
    seen: dict[tuple[str, str, str], str] = {}  # the session of each message of a family
    wanted = query.offset + query.limit
    for document in _best_first(ranking.total, _FIRST * wanted):
        if len(found) >= wanted:
            break
        if document >= ITEM:
            memory = items.find(connection, document ^ ITEM)
        else:
            memory = _read_message(connection, scope, document, query, seen)
        if memory is None or (query.since is not None and memory.created_at < query.since):
            continue
        is_wanted = memory.seq is None or query.roles is None or memory.value["role"] in query.roles
        if is_wanted and passes(memory.value, query.filter):
            words, vector = ranking.words.get(document), ranking.vectors.get(document)
            found.append(memory._replace(score=ranking.total[document], words=words, vector=vector))
    return found


def nearest(connection: Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of all items that pass the filter: by cosine, then the items without a vector."""
    assert query.vector is not None
    total = vectors.cosines(vectors.of_items(connection, query, now), query.vector)
    found = _best(connection, _NOTHING, query, _Ranking(total, {}, total))
    missing = query.offset + query.limit - len(found)
    if missing > 0:
        rest = query._replace(offset=0, limit=missing)
        found += items.list_(connection, rest, now, without={document ^ ITEM for document in total})
    return found[query.offset :]


def list_speakers(connection: Connection, words: Sequence[str], whose: MessageScope) -> set[str]:
    """Those of these words that are part of a speaker's name."""
    scope = _scope(connection, MemoryQuery([], prefix=False, whose=[whose]), [], None, datetime.min, False)
    return {word for word in words for each in query_words(word) if _is_speaker(connection, scope, each)}


def _best_first(total: Scores, first: int) -> Iterator[int]:
    """Document ids by score. Only the `first` are sorted unless the caller asks for more."""

    def order(document: int) -> tuple[float, int]:
        return -total[document], document

    best = heapq.nsmallest(first, total, key=order)
    yield from best
    if len(total) > len(best):
        yield from sorted(total, key=order)[len(best) :]


# The scope

_NOTHING = _Scope([], Statistics(0, 0, 0), {}, {})


def _scope(
    connection: Connection,
    query: MemoryQuery,
    words: Sequence[QueryWord],
    unfinished: str | None,
    now: datetime,
    can_index: bool,
) -> _Scope:
    messages, statistics = indexing.read_unindexed(connection, query.whose, can_index)
    sources: list[PostingSource] = []
    for whose in query.whose:
        more, figures = indexing.sources_of(connection, whose)
        sources += more
        statistics += figures
    postings: dict[str, tuple[Postings, Postings]] = {}
    for each in messages:
        _collect(postings, 0, each.id, each.terms, each.context_terms)
    wanted = [f" {word.term} " for word in words] + ([] if unfinished is None else [f" {unfinished}"])
    count = length = 0
    for number, terms in items.read_terms(connection, query, now, can_index=can_index).items():
        if (size := terms.count(" ") - 1) > 0:
            count, length = count + 1, length + size
        if any(word in terms for word in wanted):
            _collect(postings, 1, ITEM | number, terms.split()[1:], ())
    return _Scope(
        sources, statistics + Statistics(count, length, count), {each.id: each for each in messages}, postings
    )


def _collect(
    into: dict[str, tuple[Postings, Postings]], kind: int, document: int, terms: Sequence[str], context: Iterable[str]
) -> None:
    for term, posting in posting_lists.postings_of(document, terms, context):
        into.setdefault(term, (array("q"), array("q")))[kind].append(posting)


# Ranking


def _rank(
    connection: Connection,
    scope: _Scope,
    query: MemoryQuery,
    asked: Sequence[QueryWord],
    unfinished: str | None,
    now: datetime,
    wanted: int | None,
) -> _Ranking:
    """The scores of the documents, at least of the best `wanted`; ``None`` scores all."""
    speakers = [word for word in asked if not query.typed and _is_speaker(connection, scope, word)]
    others = [word for word in asked if word not in speakers]
    terms = [_query_term(connection, scope, word) for word in others or asked]
    if unfinished is not None:
        completions = posting_lists.terms_starting_with(connection, scope.messages, unfinished, _COMPLETIONS)
        unindexed = [term for term in scope.postings if term.startswith(unfinished)]
        terms.append(_any_of(connection, scope, {*completions, *unindexed}))
    found = bm25.scores(
        terms, scope.statistics, neighbours=bm25.ALONE if query.typed else bm25.NEIGHBOURS, wanted=wanted
    )
    total = by_words = _weighted_by_length(connection, scope, found)
    by_vector: Scores = {}
    if query.vector is not None:
        by_vector = vectors.cosines(
            vectors.of_items(connection, query, now)
            + vectors.of_messages(connection, scope.messages, scope.unindexed.values()),
            query.vector,
            nearest=None if wanted is None else _NEAREST + _FIRST * wanted,
            besides=by_words,
        )
        best = max(by_words.values(), default=1.0)
        total = {document: VECTOR_WEIGHT * cosine for document, cosine in by_vector.items()}
        for document, score in by_words.items():
            total[document] = total.get(document, 0.0) + score / best
    if speakers and others:
        boosted = _spoken_by(connection, scope, speakers, total)
        total = {document: score * SPEAKER_BOOST if document in boosted else score for document, score in total.items()}
    return _Ranking(total, by_words, by_vector)


def _is_speaker(connection: Connection, scope: _Scope, word: QueryWord) -> bool:
    return word.speaker in scope.postings or posting_lists.contains(connection, scope.messages, word.speaker)


def _query_term(connection: Connection, scope: _Scope, word: QueryWord) -> QueryTerm:
    found = _any_of(connection, scope, [word.term])
    return found if word.date is None else found._replace(dated=_any_of(connection, scope, [word.date]).messages)


def _any_of(connection: Connection, scope: _Scope, terms: Iterable[str]) -> QueryTerm:
    """The postings of several terms as those of one."""
    found = QueryTerm(array("q"), array("q"), array("q"))
    for term in terms:
        messages, items = scope.postings.get(term, ((), ()))
        found.messages.extend(posting_lists.read(connection, scope.messages, term))
        found.messages.extend(messages)
        found.items.extend(items)
    return found


def _weighted_by_length(connection: Connection, scope: _Scope, scores: Scores) -> Scores:
    """The scores of messages weighted by their lengths, without document ids that no message has."""
    lengths = _lengths(connection, {document >> BLOCK_BITS for document in scores if document < ITEM})
    found: Scores = {}
    for document, score in scores.items():
        if document >= ITEM:
            found[document] = score
        elif document in scope.unindexed:
            found[document] = score * LENGTH_WEIGHTS[scope.unindexed[document].length_code]
        else:
            block, position = lengths.get(document >> BLOCK_BITS, b""), document & IN_BLOCK
            if position < len(block):
                found[document] = score * LENGTH_WEIGHTS[block[position]]
    return found


def _lengths(connection: Connection, blocks: Iterable[int]) -> dict[int, bytes]:
    return dict(
        connection.execute(
            "SELECT b.block, b.lengths FROM json_each(?) AS wanted CROSS JOIN index_sessions AS s"
            " CROSS JOIN index_blocks AS b"
            f" WHERE s.number = CAST(wanted.value AS INTEGER) >> {POSITION_BITS - BLOCK_BITS}"
            " AND b.scope_id = s.scope_id AND b.block = CAST(wanted.value AS INTEGER)",
            (json.dumps(sorted(blocks)),),
        )
    )


def _spoken_by(connection: Connection, scope: _Scope, speakers: Sequence[QueryWord], among: Scores) -> set[int]:
    """Those of these messages that one of these speakers wrote."""
    blocks = sorted({document >> BLOCK_BITS for document in among if document < ITEM})
    sources = [PostingSource(source.scope_id, block, block) for source in scope.messages for block in blocks]
    names = [speaker.speaker for speaker in speakers]
    found = {posting >> BITS for name in names for posting in posting_lists.read(connection, sources, name)}
    found.update(
        document for document, each in scope.unindexed.items() if not set(names).isdisjoint(each.context_terms)
    )
    return found & among.keys()


# Reading results


def _read_message(
    connection: Connection,
    scope: _Scope,
    document: int,
    query: MemoryQuery,
    seen: dict[tuple[str, str, str], str],
) -> StoredMemory | None:
    """``None`` for a message that is replaced or removed, was found in a fork, or is no longer in scope."""
    row = connection.execute(
        "SELECT s.family_id, s.user_id, m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at"
        " FROM messages AS m JOIN sessions AS s ON s.id = m.session_id"
        " WHERE m.session_id = ? AND m.seq = ? AND m.replaced_by IS NULL"
        " AND COALESCE(m.marks, '') NOT LIKE '%\"removed\"%'",
        _find_message(connection, scope, document),
    ).fetchone()
    if row is None:
        return None
    family_id, user_id, *columns = row
    found = message_as_memory(*columns)
    if not any(
        whose.session_id in (None, found.session_id) and whose.user_id in (None, user_id) for whose in query.whose
    ):
        return None
    session_id = seen.setdefault((family_id, found.key, found.text or ""), found.session_id or "")
    return found if session_id == found.session_id else None


def _find_message(connection: Connection, scope: _Scope, document: int) -> tuple[str, int]:
    """The session and seq of a document."""
    if document in scope.unindexed:
        return scope.unindexed[document].session_id, scope.unindexed[document].seq
    session_id, seq = connection.execute(
        "SELECT s.session_id, substr(b.seqs, ?, 4) FROM index_sessions AS s JOIN index_blocks AS b"
        " ON b.scope_id = s.scope_id WHERE s.number = ? AND b.block = ?",
        (4 * (document & IN_BLOCK) + 1, document >> POSITION_BITS, document >> BLOCK_BITS),
    ).fetchone()
    return session_id, int.from_bytes(seq, sys.byteorder)


def message_as_memory(
    session_id: str, seq: int, message_id: str, role: Any, name: str | None, text: str, created_at: str
) -> StoredMemory:
    value, time = {"text": text, "role": role} | ({"name": name} if name else {}), from_text(created_at)
    return StoredMemory(
        ("session", session_id), message_id, value, text, session_id, time, time, message_id=message_id, seq=seq
    )
