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
from session_middleware.storage.search.tokenizer import (
    QueryWord,
    contains_word,
    query_words,
    shorter_stems,
    unfinished_word,
)
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import indexing, items, posting_lists, vectors
from session_middleware.storage.sql.memory.indexing import POSITION_BITS, IndexedMessage
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, IN_BLOCK, PostingSource

_FIRST = 4  # times the wanted results are sorted first; more only when the filter leaves too few
_COMPLETIONS = 64  # terms that an unfinished word may stand for
_PAGE = 200  # results; a longer page ranks all documents, however long that takes
_NEAREST = 500  # vectors that are ranked, and more when more results are wanted
VECTOR_WEIGHT = 1.5  # of the cosine, beside the score of the words as a share of the best

_FamilyMessage = tuple[str, str, str]  # a family, a message id and a text


class _Scope(NamedTuple):
    """The searched documents and their statistics."""

    messages: list[PostingSource]
    statistics: Statistics
    unindexed: dict[int, IndexedMessage]  # by document id
    postings: dict[str, tuple[Postings, Postings]]  # of unindexed messages and of items, by term


class _Ranking(NamedTuple):
    """The scores of documents."""

    total: Scores
    words: Scores
    vectors: Scores
    is_complete: bool  # it has all documents that contain a word
    unsure: set[int]  # found by a stem that a completion of the unfinished word may have


def search(connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> list[StoredMemory]:
    """The page of the best documents that pass the filter; a message that forks share is found once.

    Raises `LongBacklog`, so that the caller indexes a scope first, if it `can_index`.
    """
    scope = _scope(connection, query, now, can_index)
    found, is_complete = _search(connection, scope, query, now)
    if len(found) < query.offset + query.limit and not is_complete:
        found, _ = _search(connection, scope, query._replace(filter=query.filter or {}), now)
    return found[query.offset :]


def _search(
    connection: Connection, scope: _Scope, query: MemoryQuery, now: datetime
) -> tuple[list[StoredMemory], bool]:
    """The results up to the end of the page; and whether all documents were considered."""
    ranking = _rank(connection, scope, query, now)
    wanted = query.offset + query.limit
    found: list[StoredMemory] = []
    skipped = False
    sessions: dict[_FamilyMessage, str] = {}
    for document in _best_first(ranking.total, _FIRST * wanted):
        if len(found) >= wanted:
            break
        memory = _read(connection, scope, document, query, sessions)
        if memory is None:
            continue
        is_unwanted = memory.seq is not None and query.roles is not None and memory.value["role"] not in query.roles
        if is_unwanted or (document in ranking.unsure and not contains_word(memory.searched_text, query.query or "")):
            skipped = True
        elif passes(memory.value, query.filter):
            words, vector = ranking.words.get(document), ranking.vectors.get(document)
            found.append(memory._replace(score=ranking.total[document], words=words, vector=vector))
    return found, _enough(query) is None or (ranking.is_complete and not skipped)


def nearest(connection: Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of all items that pass the filter: by cosine, then the items without a vector."""
    assert query.vector is not None
    total = vectors.cosines(vectors.of_items(connection, query, now), query.vector)
    wanted = query.offset + query.limit
    found: list[StoredMemory] = []
    for document in _best_first(total, _FIRST * wanted):
        if len(found) >= wanted:
            break
        item = items.find(connection, document ^ ITEM)
        if item is not None and passes(item.value, query.filter):
            found.append(item._replace(score=total[document], vector=total[document]))
    if len(found) < wanted:
        rest = query._replace(offset=0, limit=wanted - len(found))
        found += items.list_(connection, rest, now, without={document ^ ITEM for document in total})
    return found[query.offset :]


def list_speakers(connection: Connection, words: Sequence[str], whose: MessageScope) -> set[str]:
    """Those of these words that are part of a speaker's name."""
    scope = _scope(connection, MemoryQuery([], prefix=False, messages=whose), datetime.min, False)
    return {word for word in words for each in query_words(word) if _is_speaker(connection, scope, each)}


def _best_first(total: Scores, first: int) -> Iterator[int]:
    """Document ids by score. Only the `first` are sorted unless the caller asks for more."""

    def order(document: int) -> tuple[float, int]:
        return -total[document], document

    best = heapq.nsmallest(first, total, key=order)
    yield from best
    if len(total) > len(best):
        yield from sorted(total, key=order)[len(best) :]


def _enough(query: MemoryQuery) -> int | None:
    """How many of the best documents give the page; ``None`` when that is unknown, or the page is long."""
    wanted = query.offset + query.limit
    return None if query.filter is not None or query.since is not None or wanted > _PAGE else wanted


# The scope


def _scope(connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> _Scope:
    sources: list[PostingSource] = []
    statistics = Statistics(0, 0, 0)
    for whose in query.whose:
        more, figures = _message_sources(connection, whose)
        sources += more
        statistics += figures
    messages, figures = indexing.read_unindexed(connection, query.whose, can_index)
    statistics += figures
    postings: dict[str, tuple[Postings, Postings]] = {}
    for each in messages:
        _collect(postings, 0, each.document, each.terms, each.context_terms)
    words = [f" {word} " for word in _exact_terms(query)]
    if (prefix := _unfinished(query)) is not None:
        words.append(f" {prefix}")
    for number, terms in items.read_terms(connection, query, now, can_index=can_index).items():
        if (length := terms.count(" ") - 1) > 0:
            statistics += Statistics(1, length, 1)
        if any(word in terms for word in words):
            _collect(postings, 1, ITEM | number, terms.split()[1:], ())
    return _Scope(sources, statistics, {each.document: each for each in messages}, postings)


def _unfinished(query: MemoryQuery) -> str | None:
    return unfinished_word(query.query or "") if query.unfinished else None


def _exact_terms(query: MemoryQuery) -> set[str]:
    """The terms that a search looks up as they are."""
    unfinished = _unfinished(query)
    words = {word.term for word in query_words(query.query or "")}
    return words.union(shorter_stems(unfinished) if unfinished else ())


def _collect(
    into: dict[str, tuple[Postings, Postings]], kind: int, document: int, terms: Sequence[str], context: Iterable[str]
) -> None:
    for (_, term, _), postings in posting_lists.postings_of(0, document, terms, context).items():
        into.setdefault(term, (array("q"), array("q")))[kind].extend(postings)


def _message_sources(connection: Connection, whose: MessageScope) -> tuple[list[PostingSource], Statistics]:
    if whose.session_id is not None:
        return _session_source(connection, whose.session_id)
    where, values = ("1 = 1", []) if whose.user_id is None else ("name = ?", [indexing.owner_name(whose.user_id)])
    scopes = posting_lists.list_scopes(connection, "message", where, values)
    return [PostingSource(scope.id) for scope in scopes], _total(scope.statistics for scope in scopes)


def _total(statistics: Iterable[Statistics]) -> Statistics:
    return sum(statistics, Statistics(0, 0, 0))


def _session_source(connection: Connection, session_id: str) -> tuple[list[PostingSource], Statistics]:
    row = connection.execute(
        "SELECT number, scope_id, documents, words, positions FROM index_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        return [], Statistics(0, 0, 0)
    number, scope_id, documents, words, positions = row
    blocks = indexing.blocks_of(number)
    statistics = Statistics(documents, words, indexing.passages(positions))
    return [PostingSource(scope_id, blocks.start, blocks.stop - 1)], statistics


# Ranking


def _rank(connection: Connection, scope: _Scope, query: MemoryQuery, now: datetime) -> _Ranking:
    asked = query_words(query.query or "")
    speakers = [word for word in asked if query.neighbours and _is_speaker(connection, scope, word)]
    others = [word for word in asked if word not in speakers]
    by_words, is_complete, unsure = _rank_by_words(connection, scope, query, others or asked)
    by_vector: Scores = {}
    total = by_words
    if query.vector is not None:
        wanted = _enough(query)
        by_vector = vectors.cosines(
            vectors.of_items(connection, query, now) + vectors.of_messages(connection, scope.messages),
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
    return _Ranking(total, by_words, by_vector, is_complete, unsure)


def _rank_by_words(
    connection: Connection, scope: _Scope, query: MemoryQuery, words: Sequence[QueryWord]
) -> tuple[Scores, bool, set[int]]:
    wanted = _enough(query)
    terms = [_query_term(connection, scope, word) for word in words]
    unsure: set[int] = set()
    if (word := _unfinished(query)) is not None:
        completions = {
            *posting_lists.terms_starting_with(connection, scope.messages, word, _COMPLETIONS),
            *(term for term in scope.postings if term.startswith(word)),
        }
        certain = _any_of(connection, scope, completions)
        possible = _any_of(connection, scope, shorter_stems(word))
        unsure = _documents(possible).difference(*map(_documents, [*terms, certain]))
        terms += [certain, possible]
    found = bm25.scores(
        terms, scope.statistics, neighbours=bm25.NEIGHBOURS if query.neighbours else bm25.ALONE, wanted=wanted
    )
    contenders = found if wanted is None or query.vector is not None else bm25.contenders(found, wanted)
    return _weighted_by_length(connection, scope, contenders), len(contenders) == len(found), unsure


def _is_speaker(connection: Connection, scope: _Scope, word: QueryWord) -> bool:
    return word.speaker in scope.postings or posting_lists.contains(connection, scope.messages, word.speaker)


def _query_term(connection: Connection, scope: _Scope, word: QueryWord) -> QueryTerm:
    found = _any_of(connection, scope, [word.term])
    return found if word.date is None else found._replace(dated=_any_of(connection, scope, [word.date]).messages)


def _any_of(connection: Connection, scope: _Scope, terms: Iterable[str]) -> QueryTerm:
    """The postings of several terms as those of one."""
    found = QueryTerm(array("q"), array("q"), array("q"))
    for term in terms:
        found.messages.extend(_without_replaced(scope, posting_lists.read(connection, scope.messages, term)))
        if term in scope.postings:
            messages, items = scope.postings[term]
            found.messages.extend(messages)
            found.items.extend(items)
    return found


def _documents(term: QueryTerm) -> set[int]:
    return {posting >> BITS for postings in term for posting in postings}


def _without_replaced(scope: _Scope, postings: Postings) -> Postings:
    """Without the postings of messages that have a new version, which is not indexed yet."""
    replaced = {document for document, each in scope.unindexed.items() if each.is_replacement}
    if not replaced:
        return postings
    return array("q", [posting for posting in postings if posting >> BITS not in replaced])


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
            if position < len(block) and block[position]:
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
    blocks = {document >> BLOCK_BITS for document in among if document < ITEM}
    found: set[int] = set()
    for speaker in speakers:
        for source in scope.messages:
            postings = posting_lists.read_blocks(connection, source.scope_id, speaker.speaker, blocks)
            found.update(posting >> BITS for posting in postings)
        found.update(document for document, each in scope.unindexed.items() if speaker.speaker in each.context_terms)
    return found & among.keys()


# Reading results


def _read(
    connection: Connection,
    scope: _Scope,
    document: int,
    query: MemoryQuery,
    sessions: dict[_FamilyMessage, str],
) -> StoredMemory | None:
    """``None`` for a document that is replaced, too old, found in a fork already, or no longer in scope."""
    if document >= ITEM:
        found = items.find(connection, document ^ ITEM)
    else:
        found = _read_message(connection, scope, document, query, sessions)
    if found is None or (query.since is not None and found.created_at < query.since):
        return None
    return found


def _read_message(
    connection: Connection,
    scope: _Scope,
    document: int,
    query: MemoryQuery,
    sessions: dict[_FamilyMessage, str],
) -> StoredMemory | None:
    key = _find_message(connection, scope, document)
    row = (
        key
        and connection.execute(
            "SELECT s.family_id, s.user_id, m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at"
            " FROM messages AS m JOIN sessions AS s ON s.id = m.session_id"
            " WHERE m.session_id = ? AND m.seq = ? AND m.replaced_by IS NULL"
            " AND COALESCE(m.marks, '') NOT LIKE '%\"removed\"%'",
            key,
        ).fetchone()
    )
    if not row:
        return None
    family_id, user_id, *columns = row
    found = message_as_memory(*columns)
    if not any(
        whose.session_id in (None, found.session_id) and whose.user_id in (None, user_id) for whose in query.whose
    ):
        return None
    session_id = sessions.setdefault((family_id, found.key, found.text or ""), found.session_id or "")
    return found if session_id == found.session_id else None


def _find_message(connection: Connection, scope: _Scope, document: int) -> tuple[str, int] | None:
    """The session and seq of a document."""
    if document in scope.unindexed:
        message = scope.unindexed[document].message
        return message.session_id, message.seq
    row = connection.execute(
        "SELECT s.session_id, substr(b.seqs, ?, 4) FROM index_sessions AS s JOIN index_blocks AS b"
        " ON b.scope_id = s.scope_id WHERE s.number = ? AND b.block = ?",
        (4 * (document & IN_BLOCK) + 1, document >> POSITION_BITS, document >> BLOCK_BITS),
    ).fetchone()
    return None if row is None else (row[0], int.from_bytes(row[1], sys.byteorder))


def message_as_memory(
    session_id: str, seq: int, message_id: str, role: Any, name: str | None, text: str, created_at: str
) -> StoredMemory:
    value, time = {"text": text, "role": role} | ({"name": name} if name else {}), from_text(created_at)
    return StoredMemory(
        ("session", session_id), message_id, value, text, session_id, time, time, message_id=message_id, seq=seq
    )
