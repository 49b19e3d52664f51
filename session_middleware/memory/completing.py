"""Completing a question from what was said before it, without a model. Pure.

"And how much is that one?" holds no word to look for. A question that is short, or leans on what came
before, gets the words that the last turns were about: those said often of late and seldom before,
names and numbers first. Any other question stays as it is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from session_middleware.storage.words import query_words, terms_of, words_in

_POINTERS = """
    it its they them their theirs he him his she her hers this that these those there one ones both either neither
    same other others another else more such former latter above previous last
"""
_LEANS = frozenset(_POINTERS.split())
_BEGINS = ("and", "or", "but", "also", "then", "so", "why", "what about", "how about")
_FILLERS = """
    yes yeah yep ok okay well sure thanks thank please hello hi hey sorry great good nice fine cool wow oh like love
    hope want need know think say tell look see get go come make take give thing things lot really maybe today help
"""
_SAY_LITTLE = frozenset(term for word in _FILLERS.split() for term in terms_of(word))
_SHORT = 3  # words that say something; of fewer, the question is short
_TURNS = 6  # messages before the question that it may lean on
_FADES = 0.7  # what a word counts for, of the exchange before
_STANDS_OUT = 1.5


def complete(query: str, before: Sequence[str], *, most: int = 5) -> str:
    """The question, with at most `most` words of what was said `before`, oldest first, where it leans on it."""
    before = [text for text in before if text.strip()]
    if before and before[-1].strip() == query.strip():  # the question itself has been recorded already
        before = before[:-1]
    if not before or not leans(query):
        return query
    earlier = Counter(term for text in before[:-_TURNS] for term in set(terms_of(text)))
    left_out = _SAY_LITTLE | {word.term for word in query_words(query)}
    weights: dict[str, float] = defaultdict(float)
    spelled: dict[str, str] = {}
    for age, text in enumerate(reversed(before[-_TURNS:])):
        for word in dict.fromkeys(words_in(text)):
            for term in terms_of(word):
                if term not in left_out:
                    spelled.setdefault(term, word)
                    stress = _STANDS_OUT if _stands_out(word, text) else 1.0
                    weights[term] += stress * _FADES ** (age // 2) / (1 + math.log1p(earlier[term]))
    best = sorted(weights, key=lambda term: (-weights[term], -len(term), term))[:most]
    return " ".join([query, *(spelled[term] for term in best)])


def leans(query: str) -> bool:
    """Whether a question cannot be understood alone: it is short, or points at what came before."""
    words = words_in(query)
    if len(terms_of(query)) < _SHORT:
        return True
    if words[0] in _BEGINS or " ".join(words[:2]) in _BEGINS:
        return True
    return any(word in _LEANS for word in words)


def _stands_out(word: str, text: str) -> bool:
    """A name or a number: written with a capital within a sentence, or with a digit."""
    if any(sign.isdigit() for sign in word):
        return True
    place = text.lower().find(word)
    return place > 0 and text[place].isupper() and text[:place].rstrip()[-1:] not in (".", "!", "?", "")
