"""Search by words and vectors: documents in scope, ranked, read from the index and the record."""

from __future__ import annotations

import heapq
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from session_middleware.models import from_text, to_text
from session_middleware.storage.filters import passes
from session_middleware.storage.jsonable import clean
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
from session_middleware.storage.search.tokenizer import QueryWord, phrase, phrase_parts, query_words, unfinished_word
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import indexing, items, posting_lists, vectors
from session_middleware.storage.sql.memory.indexing import POSITION_BITS, SEARCHABLE, restriction
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, IN_BLOCK, PostingSource

_FIRST = 4  # times the wanted results are sorted first; more only when the filter leaves too few
_COMPLETIONS = 64  # terms that an unfinished word may stand for
_PAGE = 200  # results; a longer page ranks all documents, however long that takes
_NEAREST = 500  # vectors that are ranked, and more when more results are wanted
_MOST_READ = 1_000  # documents that one statement reads
_SPARE = 4  # documents that are read at once beyond the wanted ones, because some may have been removed
_LONGEST = 64  # characters of a word in SQL, because SQLite limits a LIKE pattern to 50,000 bytes; `phrase` has all
VECTOR_WEIGHT = 1.5  # of the cosine, beside the score of the words as a share of the best


Stored: TypeAlias = dict[int, StoredMemory]  # by document


class _Ranking(NamedTuple):
    """The scores of documents."""

    total: Scores
    words: Scores
    vectors: Scores


def search(connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> list[StoredMemory]:
    """The page of the best documents that pass the filter; a message that forks share is found once.

    Raises `LongBacklog`, so that the caller indexes a scope first, if it `can_index`.
    """
    scope = _Scope(connection, query, now, can_index)
    wanted = query.offset + query.limit
    enough = None if query.filter is not None or query.since is not None or wanted > _PAGE else wanted
    ranking = scope.rank(enough)
    found = _best(query, ranking, scope.reader())
    if len(found) < min(wanted, len(ranking.total)) and enough is not None:  # some of the best were left out
        found = _best(query, scope.rank(None), scope.reader())
    return found[query.offset :]


def nearest(connection: Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of all items that pass the filter: by cosine, then the items without a vector."""
    assert query.vector is not None
    total = vectors.cosines(vectors.of_items(connection, query, now), query.vector)
    found = _best(query, _Ranking(total, {}, total), lambda some: _items(connection, some))
    missing = query.offset + query.limit - len(found)
    if missing > 0:
        rest = query._replace(offset=0, limit=missing)
        found += items.list_(connection, rest, now, without={document ^ ITEM for document in total})
    return found[query.offset :]


def search_as_written(connection: Connection, query: MemoryQuery) -> list[StoredMemory]:
    """The messages that contain the query as it is written, the latest first; one that forks share is found once.

    The index leaves out stop words and signs, so it finds neither "to be or not to be" nor an emoji. The cost grows
    with the text in scope.
    """
    text, [whose] = clean(query.query or ""), query.whose
    parts = [
        part[:_LONGEST].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") for part in phrase_parts(text)
    ]
    if not parts:
        return []
    where, values = restriction(whose, "s.id", "s.user_id")
    rows = connection.execute(
        "SELECT s.family_id, m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at"
        f" FROM sessions AS s CROSS JOIN messages AS m WHERE {where} AND m.session_id = s.id"
        f" AND m.text LIKE ? ESCAPE '\\' AND {SEARCHABLE} AND COALESCE(m.flags, '') NOT LIKE '%\"removed\"%'"
        " AND m.created_at >= ? ORDER BY m.created_at DESC, s.last_active_at DESC, m.session_id, m.seq DESC",
        (*values, f"%{'%'.join(parts)}%", "" if query.since is None else to_text(query.since)),
    )
    pattern = phrase(text, unfinished=unfinished_word(text) is not None)
    found: dict[tuple[str, str, str], StoredMemory] = {}
    for family_id, *columns in rows:
        if len(found) >= query.offset + query.limit:
            break
        memory = message_as_memory(*columns)
        if pattern.search(memory.text or "") is not None:
            found.setdefault((family_id, memory.key, memory.text or ""), memory._replace(score=1.0))
    return list(found.values())[query.offset :]


def find_speakers(connection: Connection, words: Sequence[str], whose: MessageScope) -> set[str]:
    """Those of these words that are part of a speaker's name."""
    scope = _Scope(connection, MemoryQuery([], prefix=False, whose=[whose]), datetime.min, False)
    return {word for word in words for each in query_words(word) if scope.has_speaker(each)}


def _best(query: MemoryQuery, ranking: _Ranking, read: Callable[[Sequence[int]], Stored]) -> list[StoredMemory]:
    """The results up to the end of the page."""
    found: list[StoredMemory] = []
    wanted = query.offset + query.limit
    documents, size = _best_first(ranking.total, _FIRST * wanted), wanted + _SPARE
    while len(found) < wanted and (some := list(islice(documents, min(size, _MOST_READ)))):
        stored, size = read(some), 2 * size
        for document in some:
            memory = stored.get(document)
            if memory is None or (query.since is not None and memory.created_at < query.since):
                continue
            is_wanted = memory.seq is None or query.roles is None or memory.value["role"] in query.roles
            if is_wanted and passes(memory.value, query.filter):
                words, vector = ranking.words.get(document), ranking.vectors.get(document)
                found.append(memory._replace(score=ranking.total[document], words=words, vector=vector))
    return found[:wanted]


def _best_first(total: Scores, first: int) -> Iterator[int]:
    """Document ids by score. Only the `first` are sorted unless the caller asks for more."""

    def order(document: int) -> tuple[float, int]:
        return -total[document], document

    best = heapq.nsmallest(first, total, key=order)
    yield from best
    if len(total) > len(best):
        yield from sorted(total, key=order)[len(best) :]


class _Scope:
    """The documents that a query searches, and their statistics."""

    def __init__(self, connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> None:
        self._connection, self._query, self._now = connection, query, now
        self._words = query_words(query.query or "")
        self._unfinished = unfinished_word(query.query or "") if query.typed else None
        messages, self._statistics = indexing.read_unindexed(connection, query.whose, can_index)
        self._unindexed = {each.id: each for each in messages}
        self._sources: list[PostingSource] = []  # of the indexed messages
        for whose in query.whose:
            sources, statistics = indexing.sources_of(connection, whose)
            self._sources += sources
            self._statistics += statistics
        self._postings: dict[str, tuple[Postings, Postings]] = {}  # of unindexed messages and of items, by term
        for each in messages:
            self._add_postings(0, each.id, each.terms, each.context_terms)
        wanted = [f" {word.term} " for word in self._words]
        if self._unfinished is not None:
            wanted.append(f" {self._unfinished}")
        for number, terms in items.read_terms(connection, query, now, can_index=can_index).items():
            if (length := terms.count(" ") - 1) > 0:
                self._statistics += Statistics(1, length, 1)
            if any(word in terms for word in wanted):
                self._add_postings(1, ITEM | number, terms.split()[1:])

    def _add_postings(self, kind: int, document: int, terms: Sequence[str], context: Sequence[str] = ()) -> None:
        for term, posting in posting_lists.postings_of(document, terms, context):
            self._postings.setdefault(term, (array("q"), array("q")))[kind].append(posting)

    # Ranking

    def rank(self, wanted: int | None) -> _Ranking:
        """The scores of the documents, at least of the best `wanted`; ``None`` scores all."""
        query = self._query
        if not query.typed:
            self._prefetch(contains=[word.speaker for word in self._words])
        speakers = [word for word in self._words if not query.typed and self.has_speaker(word)]
        others = [word for word in self._words if word not in speakers]
        self._prefetch(read=[each for word in others or self._words for each in (word.term, word.date) if each])
        terms = [self._query_term(word) for word in others or self._words]
        if (prefix := self._unfinished) is not None:
            completions = {
                *posting_lists.terms_starting_with(self._connection, self._sources, prefix, _COMPLETIONS),
                *(term for term in self._postings if term.startswith(prefix)),
            }
            self._prefetch(read=completions)
            terms.append(self._any_of(completions))
        neighbours = bm25.ALONE if query.typed else bm25.NEIGHBOURS
        total = by_words = self._weighted_by_length(bm25.scores(terms, self._statistics, neighbours, wanted=wanted))
        by_vector: Scores = {}
        if query.vector is not None:
            by_vector = vectors.cosines(
                vectors.of_items(self._connection, query, self._now)
                + vectors.of_messages(self._connection, self._sources, self._unindexed.values()),
                query.vector,
                nearest=None if wanted is None else _NEAREST + _FIRST * wanted,
                besides=by_words,
            )
            best = max(by_words.values(), default=1.0)
            total = {document: VECTOR_WEIGHT * cosine for document, cosine in by_vector.items()}
            for document, score in by_words.items():
                total[document] = total.get(document, 0.0) + score / best
        if speakers and others:
            spoken = self._spoken_by(speakers, total)
            total = {each: score * SPEAKER_BOOST if each in spoken else score for each, score in total.items()}
        return _Ranking(total, by_words, by_vector)

    def _prefetch(self, *, read: Iterable[str] = (), contains: Iterable[str] = ()) -> None:
        posting_lists.prefetch(self._connection, self._sources, read=read, contains=contains)

    def has_speaker(self, word: QueryWord) -> bool:
        return word.speaker in self._postings or posting_lists.contains(self._connection, self._sources, word.speaker)

    def _query_term(self, word: QueryWord) -> QueryTerm:
        found = self._any_of([word.term])
        return found if word.date is None else found._replace(dated=self._any_of([word.date]).messages)

    def _any_of(self, terms: Iterable[str]) -> QueryTerm:
        """The postings of several terms as those of one."""
        found = QueryTerm(array("q"), array("q"), array("q"))
        for term in terms:
            messages, of_items = self._postings.get(term, ((), ()))
            found.messages.extend(posting_lists.read(self._connection, self._sources, term))
            found.messages.extend(messages)
            found.items.extend(of_items)
        return found

    def _weighted_by_length(self, scores: Scores) -> Scores:
        """The scores of messages weighted by their lengths, without document ids that no message has."""
        blocks = {document >> BLOCK_BITS for document in scores if document < ITEM}
        lengths: dict[int, bytes] = dict(_read_blocks(self._connection, "b.block, b.lengths", blocks))
        found: Scores = {}
        for document, score in scores.items():
            if document >= ITEM:
                found[document] = score
            elif document in self._unindexed:
                found[document] = score * LENGTH_WEIGHTS[self._unindexed[document].length_code]
            else:
                block, position = lengths.get(document >> BLOCK_BITS, b""), document & IN_BLOCK
                if position < len(block):
                    found[document] = score * LENGTH_WEIGHTS[block[position]]
        return found

    def _spoken_by(self, speakers: Sequence[QueryWord], among: Scores) -> set[int]:
        """Those of these messages that one of these speakers wrote."""
        blocks = sorted({document >> BLOCK_BITS for document in among if document < ITEM})
        sources = [PostingSource(source.scope_id, block, block) for source in self._sources for block in blocks]
        found: set[int] = set()
        for speaker in speakers:
            postings = posting_lists.read(self._connection, sources, speaker.speaker)
            postings.extend(self._postings.get(speaker.speaker, ((), ()))[0])
            found.update(posting >> BITS for posting in postings)
        return found & among.keys()

    # Reading results

    def reader(self) -> Callable[[Sequence[int]], Stored]:
        """Reads documents, the best first, without replaced and removed messages, and those read in another session."""
        seen: dict[tuple[str, str, str], str] = {}  # the session of each message of a family

        def read(documents: Sequence[int]) -> Stored:
            stored = _items(self._connection, documents)
            places = self._find_messages([document for document in documents if document < ITEM])
            for place in places.values():
                self._connection.prefetch(_MESSAGE, place)
            for document, place in places.items():
                row = self._connection.execute(_MESSAGE, place).fetchone()
                if row is None or not any(
                    whose.session_id in (None, row[2]) and whose.user_id in (None, row[1])
                    for whose in self._query.whose
                ):
                    continue
                memory = message_as_memory(*row[2:])
                if seen.setdefault((row[0], memory.key, memory.text or ""), row[2]) == row[2]:
                    stored[document] = memory
            return stored

        return read

    def _find_messages(self, documents: Sequence[int]) -> dict[int, tuple[str, int]]:
        """The session and seq of each message."""
        blocks = {each >> BLOCK_BITS for each in documents if each not in self._unindexed}
        indexed: dict[int, tuple[str, array[int]]] = {}
        for block, session_id, seqs in _read_blocks(self._connection, "b.block, s.session_id, b.seqs", blocks):
            indexed[block] = session_id, array("I", seqs)
        found: dict[int, tuple[str, int]] = {}
        for each in documents:
            if each in self._unindexed:
                found[each] = self._unindexed[each].session_id, self._unindexed[each].seq
            else:
                session_id, of_block = indexed[each >> BLOCK_BITS]
                found[each] = session_id, of_block[each & IN_BLOCK]
        return found


_BITS = POSITION_BITS - BLOCK_BITS
# With ``IS TRUE`` the engines hash the blocks, and do not look for each of them in each session.
_BLOCKS = f"""
    FROM index_sessions AS s CROSS JOIN index_blocks AS b
    WHERE s.number IN (SELECT CAST(value AS INTEGER) FROM json_each(?)) AND b.scope_id = s.scope_id
    AND b.block BETWEEN s.number << {_BITS} AND ((s.number + 1) << {_BITS}) - 1
    AND (b.block IN (SELECT CAST(wanted.value AS INTEGER) FROM json_each(?) AS wanted)) IS TRUE
"""


def _read_blocks(connection: Connection, columns: str, blocks: Collection[int]) -> list[Any]:
    if not blocks:
        return []
    numbers = {block >> _BITS for block in blocks}
    values = json.dumps(sorted(numbers)), json.dumps(sorted(blocks))
    return connection.execute(f"SELECT {columns} {_BLOCKS}", values).fetchall()


_MESSAGE = """
    SELECT s.family_id, s.user_id, m.session_id, m.seq, m.message_id, m.role, m.name, m.text, m.created_at
    FROM messages AS m JOIN sessions AS s ON s.id = m.session_id
    WHERE m.session_id = ? AND m.seq = ? AND m.replaced_by IS NULL AND COALESCE(m.flags, '') NOT LIKE '%"removed"%'
"""


def _items(connection: Connection, documents: Iterable[int]) -> Stored:
    found = items.find(connection, [document ^ ITEM for document in documents if document >= ITEM])
    return {number ^ ITEM: memory for number, memory in found.items()}


def message_as_memory(
    session_id: str, seq: int, message_id: str, role: Any, name: str | None, text: str, created_at: str
) -> StoredMemory:
    value, time = {"text": text, "role": role} | ({"name": name} if name else {}), from_text(created_at)
    return StoredMemory(
        ("session", session_id), message_id, value, text, session_id, time, time, message_id=message_id, seq=seq
    )
