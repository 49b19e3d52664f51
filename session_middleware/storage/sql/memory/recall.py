"""Search by words and vectors: what is in scope, ranked, read from the index and the record."""

from __future__ import annotations

import heapq
import json
import sqlite3
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from session_middleware.models import from_text
from session_middleware.storage.filters import passes
from session_middleware.storage.memory_types import MemoryQuery, MessageScope, StoredMemory
from session_middleware.storage.search import bm25
from session_middleware.storage.search.bm25 import BITS, ITEM, SPEAKER_BOOST, TOLD, Postings, Scores, Statistics, Word
from session_middleware.storage.search.tokenizer import QueryWord, begun_word, has_word, query_words, stems_within
from session_middleware.storage.sql.memory import indexing, items, posting_lists, vectors
from session_middleware.storage.sql.memory.indexing import POSITION_BITS, IndexPosition
from session_middleware.storage.sql.memory.posting_lists import PART_BITS, PostingSource

_FIRST = 4  # times what was asked for is read in order; more only when the filter leaves too few
_IN_PART = (1 << PART_BITS) - 1
_BEGUN = 64  # words that a beginning stands for
_PAGE = 200  # results; who asks for more gets all of them, however long that takes
_NEAREST = 500  # vectors that are looked at, and more where more results are wanted
VECTOR_WEIGHT = 1.5  # of the cosine, beside words as a share of the best


class _Scope(NamedTuple):
    """What may be found, and its figures."""

    items: list[PostingSource]
    messages: list[PostingSource]
    statistics: Statistics
    fresh: dict[int, IndexPosition]  # messages that are not in the index yet, by their place
    postings: dict[str, tuple[Postings, Postings]]  # of what is not in the index: messages' and items', by term


class _Ranking(NamedTuple):
    """How what may be found ranks, by place."""

    total: Scores
    words: Scores
    vectors: Scores
    is_whole: bool  # all that has a word is in it
    unsure: set[int]  # where a word may begin as the last of the query, and its stem does not say


def search(connection: sqlite3.Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of what fits best that passes the filter; what forks have in common once."""
    scope = _scope(connection, query)
    wanted = query.offset + query.limit
    found, is_all = _best(connection, scope, query, now)
    if len(found) < wanted and not is_all:
        found, _ = _best(connection, scope, query._replace(filter=query.filter or {}), now)
    return found[query.offset :]


def _best(
    connection: sqlite3.Connection, scope: _Scope, query: MemoryQuery, now: datetime
) -> tuple[list[StoredMemory], bool]:
    """Up to the end of the page; and whether there is no more, for nothing was left out before it was looked at."""
    ranked = _ranking(connection, scope, query)
    wanted = query.offset + query.limit
    found: list[StoredMemory] = []
    others = False
    said_in: dict[_Said, str] = {}
    for place in _in_order(ranked.total, _FIRST * wanted):
        if len(found) >= wanted:
            break
        memory = _read(connection, scope, place, query, now, said_in)
        if memory is None:
            continue
        if _is_others(memory, query) or (place in ranked.unsure and not has_word(memory.text or "", query.query or "")):
            others = True
        elif passes(memory.value, query.filter):
            said, meant = ranked.words.get(place), ranked.vectors.get(place)
            found.append(memory._replace(score=ranked.total[place], words=said, vector=meant))
    return found, _wanted(query) is None or (ranked.is_whole and not others)


def _is_others(memory: StoredMemory, query: MemoryQuery) -> bool:
    """Whether it is a message by somebody whose messages are not asked for."""
    return query.roles is not None and memory.seq is not None and memory.value["role"] not in query.roles


def nearest(connection: sqlite3.Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of all items that pass the filter: by their cosine, and after them those that have no vector."""
    assert query.vector is not None
    sources = [
        PostingSource(scope_id) for scope_id in items.scope_ids(connection, query.namespaces, prefix=query.prefix)
    ]
    total = vectors.cosines(connection, sources, query.vector, nearest=None, besides=())
    wanted = query.offset + query.limit
    found: list[StoredMemory] = []
    for place in _in_order(total, _FIRST * wanted):
        if len(found) >= wanted:
            break
        item = items.get_by_id(connection, place - ITEM, now)
        if item is not None and passes(item.value, query.filter):
            found.append(item._replace(score=total[place], vector=total[place]))
    if len(found) < wanted:
        found += items.list_others(connection, query, now, [place - ITEM for place in total], wanted - len(found))
    return found[query.offset :]


def speakers(connection: sqlite3.Connection, asked: Sequence[str], whose: MessageScope) -> set[str]:
    """Those of these words that are part of a speaker's name."""
    scope = _scope(connection, MemoryQuery([], prefix=False, messages=whose))
    return {word for word in asked for each in query_words(word) if _is_speaker(connection, scope, each)}


def _in_order(total: Scores, first: int) -> Iterator[int]:
    """The places, best first. All are put in order only if somebody asks for more than the first."""

    def best_first(place: int) -> tuple[float, int]:
        return -total[place], place

    best = heapq.nsmallest(first, total, key=best_first)
    yield from best
    if len(total) > len(best):
        yield from sorted(total, key=best_first)[len(best) :]


# The scope


def _scope(connection: sqlite3.Connection, query: MemoryQuery) -> _Scope:
    scope_ids = items.scope_ids(connection, query.namespaces, prefix=query.prefix)
    statistics = posting_lists.statistics(connection, scope_ids)
    sources: list[PostingSource] = []
    fresh: list[IndexPosition] = []
    for whose in query.whose:
        more, figures = _message_sources(connection, whose)
        sources += more
        statistics += figures
    if query.whose:
        fresh, figures = indexing.unindexed(connection, query.whose)
        statistics += figures
    items_left = items.unindexed(connection, query.namespaces, prefix=query.prefix)
    statistics = sum(map(items.figures_of, items_left.values()), statistics)
    postings: dict[str, tuple[Postings, Postings]] = {}
    for place in fresh:
        _collect(postings, 0, place.place, place.terms, place.marks)
    for at, terms in items_left.items():
        _collect(postings, 1, at, terms, ())
    by_place = {place.place: place for place in fresh}
    return _Scope([PostingSource(scope_id) for scope_id in scope_ids], sources, statistics, by_place, postings)


def _collect(
    into: dict[str, tuple[Postings, Postings]], kind: int, place: int, terms: Sequence[str], marks: Iterable[str]
) -> None:
    for (_, term, _), postings in posting_lists.postings_of(0, place, terms, marks).items():
        into.setdefault(term, (array("q"), array("q")))[kind].extend(postings)


def _message_sources(connection: sqlite3.Connection, whose: MessageScope) -> tuple[list[PostingSource], Statistics]:
    if whose.session_id is not None:
        return _one_session(connection, whose.session_id)
    if whose.user_id is not None:
        scope_id = posting_lists.find_scope(connection, "message", indexing.owner_name(whose.user_id))
        scope_ids = [] if scope_id is None else [scope_id]
    else:
        scope_ids = [row[0] for row in connection.execute("SELECT id FROM index_scopes WHERE kind = 'message'")]
    return [PostingSource(scope_id) for scope_id in scope_ids], posting_lists.statistics(connection, scope_ids)


def _one_session(connection: sqlite3.Connection, session_id: str) -> tuple[list[PostingSource], Statistics]:
    row = connection.execute(
        "SELECT number, scope_id, texts, words, positions FROM index_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        return [], Statistics(0, 0, 0)
    number, scope_id, texts, length, positions = row
    parts = indexing.parts_of(number)
    return [PostingSource(scope_id, parts.start, parts.stop - 1)], Statistics(
        texts, length, indexing.stretches(positions)
    )


# Ranking


def _ranking(connection: sqlite3.Connection, scope: _Scope, query: MemoryQuery) -> _Ranking:
    asked = query_words(query.query or "")
    speakers = [word for word in asked if query.neighbours and _is_speaker(connection, scope, word)]
    said = [word for word in asked if word not in speakers] or asked
    by_words, is_whole, unsure = _by_words(connection, scope, query, said)
    by_vector: Scores = {}
    total = by_words
    if query.vector is not None:
        wanted = _wanted(query)
        by_vector = vectors.cosines(
            connection,
            [*scope.items, *scope.messages],
            query.vector,
            nearest=None if wanted is None else _NEAREST + _FIRST * wanted,
            besides=by_words,
        )
        best = max(by_words.values(), default=1.0)
        total = {place: VECTOR_WEIGHT * cosine for place, cosine in by_vector.items()}
        for place, score in by_words.items():
            total[place] = total.get(place, 0.0) + score / best
    if said is not asked and len(said) < len(asked):
        boosted = _said_by(connection, scope, speakers, total)
        total = {place: score * SPEAKER_BOOST if place in boosted else score for place, score in total.items()}
    return _Ranking(total, by_words, by_vector, is_whole, unsure)


def _by_words(
    connection: sqlite3.Connection, scope: _Scope, query: MemoryQuery, said: Sequence[QueryWord]
) -> tuple[Scores, bool, set[int]]:
    wanted = _wanted(query)
    asked = [_word(connection, scope, word) for word in said]
    unsure: set[int] = set()
    if query.begun and (begun := begun_word(query.query or "")) is not None:
        begins, may_begin = _begun(connection, scope, begun)
        unsure = _places(may_begin).difference(*map(_places, [*asked, begins]))
        asked += [begins, may_begin]
    found = bm25.scores(
        asked,
        scope.statistics,
        neighbours=bm25.NEIGHBOURS if query.neighbours else bm25.ALONE,
        wanted=wanted,
    )
    contenders = found if wanted is None or query.vector is not None else bm25.contenders(found, wanted)
    return _told(connection, scope, contenders), len(contenders) == len(found), unsure


def _wanted(query: MemoryQuery) -> int | None:
    """How many of the best are enough; ``None``: nobody can know, or so many that all are needed."""
    most = query.offset + query.limit
    return None if query.filter is not None or query.since is not None or most > _PAGE else most


def _is_speaker(connection: sqlite3.Connection, scope: _Scope, word: QueryWord) -> bool:
    return word.speaker in scope.postings or posting_lists.has(connection, scope.messages, word.speaker)


def _word(connection: sqlite3.Connection, scope: _Scope, word: QueryWord) -> Word:
    messages = _current(scope, posting_lists.read(connection, scope.messages, word.term))
    dated = array("q")
    if word.date is not None:
        dated = _current(scope, posting_lists.read(connection, scope.messages, word.date))
    found = posting_lists.read(connection, scope.items, word.term)
    if word.term in scope.postings:
        fresh_messages, fresh_items = scope.postings[word.term]
        messages.extend(fresh_messages)
        found.extend(fresh_items)
    if word.date in scope.postings:
        dated.extend(scope.postings[word.date][0])
    return Word(messages, found, dated)


def _begun(connection: sqlite3.Connection, scope: _Scope, begun: str) -> tuple[Word, Word]:
    """All words that begin so as one, and those that may. What is said exactly so is that word too, and ranks first."""
    terms = {*posting_lists.beginning(connection, [*scope.messages, *scope.items], begun, _BEGUN)}
    terms.update(term for term in scope.postings if term.startswith(begun))
    return _any_of(connection, scope, terms), _any_of(connection, scope, stems_within(begun))


def _any_of(connection: sqlite3.Connection, scope: _Scope, terms: Iterable[str]) -> Word:
    found = Word(array("q"), array("q"), array("q"))
    for term in terms:
        messages, of_items = (
            posting_lists.read(connection, scope.messages, term),
            posting_lists.read(connection, scope.items, term),
        )
        found.messages.extend(_current(scope, messages))
        found.items.extend(of_items)
        if term in scope.postings:
            found.messages.extend(scope.postings[term][0])
            found.items.extend(scope.postings[term][1])
    return found


def _places(word: Word) -> set[int]:
    return {posting >> BITS for postings in word for posting in postings}


def _current(scope: _Scope, postings: Postings) -> Postings:
    """Without those of messages that have a new version, which is not indexed yet."""
    replaced = {place for place, fresh in scope.fresh.items() if fresh.replaces}
    if not replaced:
        return postings
    return array("q", [posting for posting in postings if posting >> BITS not in replaced])


def _told(connection: sqlite3.Connection, scope: _Scope, scores: Scores) -> Scores:
    """The scores by how much each text says, without the places where there is none."""
    lengths = _lengths(connection, {place >> PART_BITS for place in scores if place < ITEM})
    found: Scores = {}
    for place, score in scores.items():
        if place >= ITEM:
            found[place] = score
        elif place in scope.fresh:
            found[place] = score * TOLD[scope.fresh[place].length_code]
        else:
            here, position = lengths.get(place >> PART_BITS, b""), place & _IN_PART
            if position < len(here) and here[position]:
                found[place] = score * TOLD[here[position]]
    return found


def _lengths(connection: sqlite3.Connection, parts: Iterable[int]) -> dict[int, bytes]:
    rows = connection.execute(
        "SELECT part, lengths FROM index_parts WHERE part IN (SELECT value FROM json_each(?))",
        (json.dumps(sorted(parts)),),
    )
    return dict(rows)


def _said_by(connection: sqlite3.Connection, scope: _Scope, speakers: Sequence[QueryWord], among: Scores) -> set[int]:
    """Those of these places where one of these speakers speaks."""
    parts = {place >> PART_BITS for place in among if place < ITEM}
    found: set[int] = set()
    for speaker in speakers:
        for source in scope.messages:
            postings = posting_lists.read_parts(connection, source.scope_id, speaker.speaker, parts)
            found.update(posting >> BITS for posting in postings)
        found.update(place for place, fresh in scope.fresh.items() if speaker.speaker in fresh.marks)
    return found & among.keys()


# Reading what was found

_Said = tuple[str, str, str]  # a message of a family, by its id and its text: in which session it was found


def _read(
    connection: sqlite3.Connection,
    scope: _Scope,
    place: int,
    query: MemoryQuery,
    now: datetime,
    said_in: dict[_Said, str],
) -> StoredMemory | None:
    """``None`` for what is not to be found: expired, replaced, too old, found in a fork, or somebody else's by now."""
    if place >= ITEM:
        found = items.get_by_id(connection, place - ITEM, now)
    else:
        found = _message(connection, scope, place, query, said_in)
    if found is None or (query.since is not None and found.created_at < query.since):
        return None
    return found


def _message(
    connection: sqlite3.Connection, scope: _Scope, place: int, query: MemoryQuery, said_in: dict[_Said, str]
) -> StoredMemory | None:
    at = _where(connection, scope, place)
    row = (
        at
        and connection.execute(
            "SELECT m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at, s.family_id, s.user_id"
            " FROM messages AS m JOIN sessions AS s ON s.id = m.session_id"
            " WHERE m.session_id = ? AND m.seq = ? AND m.replaced_by IS NULL"
            " AND COALESCE(m.marks, '') NOT LIKE '%\"removed\"%'",
            at,
        ).fetchone()
    )
    if not row:
        return None
    session_id, seq, message_id, role, name, text, created_at, family_id, user_id = row
    if not any(whose.session_id in (None, session_id) and whose.user_id in (None, user_id) for whose in query.whose):
        return None
    if said_in.setdefault((family_id, message_id, text), session_id) != session_id:
        return None
    value = {"text": text, "role": role} | ({"name": name} if name else {})
    when = from_text(created_at)
    namespace = ("session", session_id)
    return StoredMemory(namespace, message_id, value, text, session_id, when, when, message_id=message_id, seq=seq)


def _where(connection: sqlite3.Connection, scope: _Scope, place: int) -> tuple[str, int] | None:
    """The session and seq of the message at a place."""
    if place in scope.fresh:
        message = scope.fresh[place].message
        return message.session_id, message.seq
    row = connection.execute(
        "SELECT s.session_id, substr(p.seqs, ?, 4) FROM index_parts AS p, index_sessions AS s"
        " WHERE p.part = ? AND s.number = ?",
        (4 * (place & _IN_PART) + 1, place >> PART_BITS, place >> POSITION_BITS),
    ).fetchone()
    return None if row is None else (row[0], int.from_bytes(row[1], sys.byteorder))
