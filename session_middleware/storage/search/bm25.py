"""Which texts fit the words of a query best: pure, over what an index holds of each word.

BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) with three differences,
all for conversations:

- **A message is heard with its neighbours.** "Yes, on Friday!" answers what was asked before it. The
  words of the two messages before and after count for it too, by `NEIGHBOURS`.
- **How rare a word is** is told by the stretches of eight messages that hold it, not by messages: a
  subject that was talked about once, at length, is a rare subject.
- **What says more weighs more**, a little: a reply of one word is seldom what is looked for.

All figures are those of the texts in scope: what others have said changes neither rank nor cost.

A *posting* is one integer: where a text is (its place), how often it has the word, how long it is. The
places of a session's messages follow each other; an item stands alone (`ITEM`).
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

Postings: TypeAlias = "array[int]"
Scores: TypeAlias = dict[int, float]
Neighbours: TypeAlias = Sequence[tuple[int, float]]

NEIGHBOURS = ((0, 1.0), (1, 0.5), (2, 0.3), (-1, 0.3), (-2, 0.1))  # a word here counts there so much
ALONE = ((0, 1.0),)
K1, B = 0.5, 0.5  # how soon more of a word adds nothing; how much length matters
DATE_WEIGHT = 1.5  # a word that names the day, beside one that is said
SPEAKER_BOOST = 1.4  # the query names who said it
_TELLING = 20  # words; what is longer says no more for that
STRETCH = 8  # messages

ITEM = 1 << 50  # the place of an item is this and its id
_COUNT_BITS, _LENGTH_BITS = 4, 8
BITS = _COUNT_BITS + _LENGTH_BITS
_LOW = (1 << BITS) - 1
_LENGTH = (1 << _LENGTH_BITS) - 1
_STRETCH_BITS = BITS + 3
_EXACT = 160  # words; longer texts are kept to an eighth of a doubling

_PRUNE_FROM = 4_000  # postings; of more, only stretches that look promising are scored
_LOOK_AT = 30_000  # postings of the rarest words that are asked which stretches do
_PROMISING = 100  # stretches, or four for each result that is wanted


def posting(place: int, count: int, length: int) -> int:
    return place << BITS | min(count, 15) << _LENGTH_BITS | length_code(length)


def length_code(length: int) -> int:
    """A length in words as a byte; `LENGTHS` has the length of each."""
    return length if length < _EXACT else min(255, _EXACT + int(8 * math.log2(length / _EXACT)))


LENGTHS = tuple(code if code < _EXACT else round(_EXACT * 2 ** ((code - _EXACT) / 8)) for code in range(256))


class Statistics(NamedTuple):
    """Of all texts in scope."""

    texts: int
    words: int
    stretches: int

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


class Word(NamedTuple):
    """One word of a query: the postings of the messages and of the items with it, and of messages of a day it names."""

    messages: Postings
    items: Postings
    dated: Postings


def scores(
    words: Sequence[Word], scope: Statistics, *, neighbours: Neighbours = NEIGHBOURS, wanted: int | None
) -> Scores:
    """How well each text fits the words, by its place; greater is better.

    Of a message, without what its length counts for (`TOLD`): that is known of those with a word, but
    not of their neighbours. Some of the places may be nobody's: next to the last message of a session.
    When very many texts fit, only the most promising stretches are scored, enough of them for the
    `wanted` best; ``None`` scores every text.
    """
    words = [word for word in words if any(word)]
    stretches = [_stretches(word) for word in words]
    rarity = [_rarity(len(those), scope.stretches) for those in stretches]
    if wanted is not None and sum(len(postings) for word in words for postings in word) > _PRUNE_FROM:
        chosen = _promising(stretches, rarity, max(_PROMISING, 4 * wanted))
        words = [_only(word, chosen) for word in words]
    normal = _Normal(scope)
    found: Scores = {}
    for word, rare in zip(words, rarity, strict=True):
        for place, weight in _weights(word, normal, neighbours).items():
            found[place] = found.get(place, 0.0) + rare * weight / (K1 + weight)
    for place, told in {posting >> BITS: TOLD[posting & _LENGTH] for word in words for posting in word.items}.items():
        found[place] *= told
    return found


def contenders(found: Scores, wanted: int) -> Scores:
    """Those that can be among the `wanted` best, whatever their lengths and speakers do to their scores."""
    enough = 2 * wanted + 16  # some are nobody's places
    if len(found) <= enough:
        return found
    floor = heapq.nlargest(enough, found.values())[-1] * 1 / (max(TOLD) * SPEAKER_BOOST)
    return {place: score for place, score in found.items() if score >= floor}


TOLD = tuple((min(length, _TELLING) + 2) ** 0.2 for length in LENGTHS)  # what a text of each length weighs


def _rarity(count: int, of: int) -> float:
    of = max(of, count)
    return math.log(1 + (of - count + 0.5) / (count + 0.5))


def _stretches(word: Word) -> set[int]:
    found = {posting >> _STRETCH_BITS for posting in word.messages}
    found.update(posting >> _STRETCH_BITS for posting in word.dated)
    found.update(posting >> BITS for posting in word.items)  # each is a stretch of its own
    return found


def _promising(stretches: Sequence[set[int]], rarity: Sequence[float], wanted: int) -> set[int]:
    """The stretches that hold the most of the words that matter, and those around them."""
    looked_at: list[tuple[set[int], float]] = []
    left = _LOOK_AT
    for those, rare in sorted(zip(stretches, rarity, strict=True), key=lambda pair: len(pair[0])):
        left -= len(those)
        if looked_at and left < 0:
            break
        looked_at.append((those, rare))
    most, rare = looked_at.pop()
    worth = dict.fromkeys(most, rare)
    for those, rare in looked_at:
        for stretch in those:
            worth[stretch] = worth.get(stretch, 0.0) + rare
    best = heapq.nlargest(4 * wanted, worth, key=worth.__getitem__)
    across = heapq.nlargest(  # what is said may lie across two of them
        wanted, best, key=lambda it: worth[it] + max(worth.get(it - 1, 0.0), worth.get(it + 1, 0.0)) / 2
    )
    best = [*best[:wanted], *across]
    return {stretch + step for stretch in best for step in (-1, 0, 1)}


def _only(word: Word, chosen: Collection[int]) -> Word:
    return Word(
        array("q", [posting for posting in word.messages if posting >> _STRETCH_BITS in chosen]),
        array("q", [posting for posting in word.items if posting >> BITS in chosen]),
        array("q", [posting for posting in word.dated if posting >> _STRETCH_BITS in chosen]),
    )


class _Normal(dict[int, float]):
    """How much a posting counts for its own text, by its count and length: computed when first asked for."""

    def __init__(self, scope: Statistics) -> None:
        super().__init__()
        self._average = max(1.0, scope.words / max(1, scope.texts))

    def __missing__(self, low: int) -> float:
        count, length = low >> _LENGTH_BITS, LENGTHS[low & _LENGTH]
        self[low] = count / (1 - B + B * length / self._average)
        return self[low]


def _weights(word: Word, normal: _Normal, neighbours: Neighbours) -> Scores:
    found: Scores = {}
    for posting in word.messages:
        weight, place = normal[posting & _LOW], posting >> BITS
        for step, share in neighbours:
            there = place + step
            found[there] = found.get(there, 0.0) + share * weight
    for posting in word.items:
        found[posting >> BITS] = normal[posting & _LOW]
    for posting in word.dated:
        place = posting >> BITS
        found[place] = found.get(place, 0.0) + DATE_WEIGHT
    return found
