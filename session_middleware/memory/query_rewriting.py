"""Query rewriting without a model: completes a query from the texts before it. Pure functions.

"And how much is that one?" has no word to search for. A query that refers to earlier texts, or has no words of its
own, gets the words that were frequent in the last turns, names and numbers first. Any other query is unchanged,
however short, because words of other subjects would change what it asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from session_middleware.storage.search.tokenizer import is_telling, query_words, stem, terms_of, words_in

_POINTERS = """
    it its they them their theirs he him his she her hers this these those one ones both either neither
    same others another else former latter above previous
"""
_POINTERS_AT_THE_END = "that there other more such"
_AUXILIARIES = """
    am is are was were be been do does did done have has had can could will would shall should may might must
"""
_JOINING = "about after at before by for from in like of on than to under with without"
_DETERMINERS = "a an the my your our which"
_REFERS, _REFERS_AT_THE_END = frozenset(_POINTERS.split()), frozenset(_POINTERS_AT_THE_END.split())
_VERBS, _PREPOSITIONS = frozenset(_AUXILIARIES.split()), frozenset(_JOINING.split())
_BEGIN_A_FRAGMENT = _PREPOSITIONS | frozenset(_DETERMINERS.split())  # "The price?", "In brass?"
_BEGINS = ("and", "or", "but", "also", "then", "so", "what about", "how about")
_FRAGMENT = 4  # words, at most
_FILLERS = """
    yes yeah yep ok okay well sure thanks thank please hello hi hey sorry great good nice fine cool wow oh like love
    hope want need know think say tell look see get go come make take give thing things lot really maybe today help
    much many long often far
"""
_TURNS = 6  # messages before the query that it may refer to
_FADES = 0.7  # the weight of a word of the exchange before, relative to the next
_STANDS_OUT = 1.5


@lru_cache(maxsize=1)
def filler_terms() -> frozenset[str]:
    """Terms that occur in many answers and do not tell their subject."""
    return frozenset(terms_of(_FILLERS))


def complete(query: str, before: Sequence[str], *, most: int = 5) -> str:
    """The query, with words of the texts `before` it, oldest first, if it depends on them.

    At most `most` words, and one less for each word of the query that is no filler, so that its own words count
    more.
    """
    before = [text for text in before if text.strip()]
    if before and before[-1].strip() == query.strip():  # the query has already been recorded
        before = before[:-1]
    if not before or not depends_on_context(query):
        return query
    own = {word.term for word in query_words(query)}
    left_out = filler_terms() | own
    weights: dict[str, float] = defaultdict(float)
    spelled: dict[str, str] = {}
    for age, text in enumerate(reversed(before[-_TURNS:])):
        for word in filter(is_telling, dict.fromkeys(words_in(text))):
            if (term := stem(word)) not in left_out:
                spelled.setdefault(term, word)
                stress = _STANDS_OUT if _stands_out(word, text) else 1.0
                weights[term] += stress * _FADES ** (age // 2)
    best = sorted(weights, key=lambda term: (-weights[term], -len(term), term))[
        : max(0, most - len(own - filler_terms()))
    ]
    return " ".join([query, *(spelled[term] for term in best)])


def depends_on_context(query: str) -> bool:
    """Whether a query has only fillers, is a fragment, or has a word that refers to earlier texts."""
    words = words_in(query)
    if all(term in filler_terms() for term in terms_of(query)):
        return True
    if words[0] in _BEGINS or " ".join(words[:2]) in _BEGINS:
        return True
    if words[0] in _BEGIN_A_FRAGMENT and len(words) <= _FRAGMENT and _VERBS.isdisjoint(words):
        return True
    if any(word in _REFERS for word in words) or words[-1] in _REFERS_AT_THE_END:
        return True
    place = words.index("that") if "that" in words else -1  # a reference, or a conjunction: "a stove that burns wood"
    return place == 0 or (place > 0 and words[place - 1] in _VERBS | _PREPOSITIONS)


def _stands_out(word: str, text: str) -> bool:
    """Whether a word is a name or a number: it has a capital within a sentence, or a digit."""
    if any(sign.isdigit() for sign in word):
        return True
    place = text.lower().find(word)
    return place > 0 and text[place].isupper() and text[:place].rstrip()[-1:] not in (".", "!", "?", "")
