"""Ranking of texts by the words of a query: pure functions of the posting lists of each word.

BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) with three differences for
conversations:

- **The words of a message count for its neighbours.** "Yes, on Friday!" answers the question before it. The words
  of the two messages before and after a message count for it too, by `NEIGHBOURS`.
- **A word's rarity** is the number of passages of eight messages that contain it, not of messages: a subject that
  was discussed once, at length, is a rare subject.
- **A longer text ranks higher**, a little: a query seldom looks for a reply of one word.

All statistics are those of the texts in scope: other texts change neither rank nor cost.

A *posting* is one integer: a document id, how often the document contains the word, and the document's length. The
messages of a session have consecutive document ids; an item has no neighbours (`ITEM`).
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

Postings: TypeAlias = "array[int]"
Scores: TypeAlias = dict[int, float]  # by document id
Neighbours: TypeAlias = Sequence[tuple[int, float]]

NEIGHBOURS = ((0, 1.0), (1, 0.5), (2, 0.3), (-1, 0.3), (-2, 0.1))  # the weight of a word for the message at a distance
ALONE = ((0, 1.0),)
K1, B = 0.5, 0.5  # saturation of the term frequency; influence of the document length
DATE_WEIGHT = 1.5  # of a word that names the day of a message, beside a word in its text
SPEAKER_BOOST = 1.4  # for messages of a speaker whom the query names
PASSAGE = 8  # messages

ITEM = 1 << 50  # set in the document ids of items
_COUNT_BITS, _LENGTH_BITS = 4, 8
BITS = _COUNT_BITS + _LENGTH_BITS
_LOW = (1 << BITS) - 1
_LENGTH = (1 << _LENGTH_BITS) - 1
_PASSAGE_BITS = BITS + 3
_EXACT = 160  # words; longer lengths are rounded to an eighth of a doubling

_PRUNE_FROM = 4_000  # postings; of more, only promising passages are scored
_LOOK_AT = 30_000  # postings of the rarest words that choose these passages
_PROMISING = 100  # passages, or four for each wanted result


def posting(document: int, count: int, length: int) -> int:
    return document << BITS | min(count, 15) << _LENGTH_BITS | length_code(length)


def length_code(length: int) -> int:
    """A length in words as a byte; `LENGTHS` has the length of each code."""
    return length if length < _EXACT else min(255, _EXACT + int(8 * math.log2(length / _EXACT)))


LENGTHS = tuple(code if code < _EXACT else round(_EXACT * 2 ** ((code - _EXACT) / 8)) for code in range(256))
LENGTH_WEIGHTS = tuple((min(length, 20) + 2) ** 0.2 for length in LENGTHS)  # by length code


class Statistics(NamedTuple):
    """Of all texts in scope."""

    documents: int
    words: int
    passages: int

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


class QueryTerm(NamedTuple):
    """The postings of a word: of messages and items that contain it, and of messages of a day that it names."""

    messages: Postings
    items: Postings
    dated: Postings


def scores(
    terms: Sequence[QueryTerm], scope: Statistics, neighbours: Neighbours = NEIGHBOURS, *, wanted: int | None
) -> Scores:
    """The score of each text; greater is better.

    Scores of messages are not weighted by length (`LENGTH_WEIGHTS`), because the lengths of neighbours are not
    known. The result may have ids without a document: next to the last message of a session. When very many texts
    match, only the most promising passages are scored, enough of them for the `wanted` best; ``None`` scores every
    text.
    """
    terms = [term for term in terms if any(term)]
    passages = [_passages(term) for term in terms]
    rarity = [_rarity(len(those), scope.passages) for those in passages]
    if wanted is not None and sum(len(postings) for term in terms for postings in term) > _PRUNE_FROM:
        chosen = _promising(passages, rarity, max(_PROMISING, 4 * wanted))
        terms = [_only(term, chosen) for term in terms]
    frequencies = _Frequencies(scope)
    found: Scores = {}
    for term, rare in zip(terms, rarity, strict=True):
        for document, weight in _weights(term, frequencies, neighbours).items():
            found[document] = found.get(document, 0.0) + rare * weight / (K1 + weight)
    for document, code in {posting >> BITS: posting & _LENGTH for term in terms for posting in term.items}.items():
        found[document] *= LENGTH_WEIGHTS[code]
    return found


def _rarity(count: int, total: int) -> float:
    total = max(total, count)
    return math.log(1 + (total - count + 0.5) / (count + 0.5))


def _passages(term: QueryTerm) -> set[int]:
    found = {posting >> _PASSAGE_BITS for posting in term.messages}
    found.update(posting >> _PASSAGE_BITS for posting in term.dated)
    found.update(posting >> BITS for posting in term.items)  # each item is a passage of its own
    return found


def _promising(passages: Sequence[set[int]], rarity: Sequence[float], wanted: int) -> set[int]:
    """The passages with the most of the rare words, and their neighbours."""
    worth: dict[int, float] = {}
    left = _LOOK_AT
    for those, rare in sorted(zip(passages, rarity, strict=True), key=lambda pair: len(pair[0])):
        left -= len(those)
        if worth and left < 0:
            break
        for passage in those:
            worth[passage] = worth.get(passage, 0.0) + rare
    best = heapq.nlargest(4 * wanted, worth, key=worth.__getitem__)
    best = heapq.nlargest(  # a match may lie across two passages
        2 * wanted, best, key=lambda it: worth[it] + max(worth.get(it - 1, 0.0), worth.get(it + 1, 0.0)) / 2
    )
    return {passage + step for passage in best for step in (-1, 0, 1)}


def _only(term: QueryTerm, chosen: Collection[int]) -> QueryTerm:
    return QueryTerm(
        array("q", [posting for posting in term.messages if posting >> _PASSAGE_BITS in chosen]),
        array("q", [posting for posting in term.items if posting >> BITS in chosen]),
        array("q", [posting for posting in term.dated if posting >> _PASSAGE_BITS in chosen]),
    )


class _Frequencies(dict[int, float]):
    """The term frequency of a posting, normalised by length, by its count and length; computed at first use."""

    def __init__(self, scope: Statistics) -> None:
        super().__init__()
        self._average = max(1.0, scope.words / max(1, scope.documents))

    def __missing__(self, low: int) -> float:
        count, length = low >> _LENGTH_BITS, LENGTHS[low & _LENGTH]
        self[low] = count / (1 - B + B * length / self._average)
        return self[low]


def _weights(term: QueryTerm, frequencies: _Frequencies, neighbours: Neighbours) -> Scores:
    found: Scores = {}
    for posting in term.messages:
        weight, document = frequencies[posting & _LOW], posting >> BITS
        for step, share in neighbours:
            there = document + step
            found[there] = found.get(there, 0.0) + share * weight
    for posting in term.items:
        found[posting >> BITS] = frequencies[posting & _LOW]
    for posting in term.dated:
        document = posting >> BITS
        found[document] = found.get(document, 0.0) + DATE_WEIGHT
    return found
