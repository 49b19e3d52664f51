"""The words of a text, as they are indexed and looked for: pure functions, the same for every engine.

Lower case, without accents, without the words that say nothing, and by their stems. Scripts that are
written without spaces give pairs of characters. A *term* is what the index keeps: a word's stem, or
one of three kinds of mark that no word can be: a date's parts, a speaker's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime

from session_middleware.storage.stemming import stem

MAX_WORDS = 20_000  # of one text that are indexed; of a query, 64
MAX_TERMS = 64
MAX_CHARACTERS = 65_536  # of one text that are looked at
_BEGUN = 3  # characters that a word begins with, at least, to be found by them
_LONGEST = 64  # characters of a word; what is longer is no word anybody looks for

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_SAY_NOTHING = """
    a about above after again against ain all also am an and any are aren as at be because been before being below
    between both but by can cannot could couldn d did didn do does doesn doing don down during each few for from
    further had hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it
    its itself just ll m me mightn more most mustn my myself needn no nor not now of off on once only or other ought
    our ours ourselves out over own re s same shall shan she should shouldn so some such t than that the their
    theirs them themselves then there these they this those through to too under until up ve very was wasn we were
    weren what when where which while who whom whose why will with would wouldn you your yours yourself yourselves
"""
_STOP = frozenset(_SAY_NOTHING.split())
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_DATE, _SPEAKER = "@", "@@"


def words_in(text: str) -> list[str]:
    """The words of a text in lower case and without accents, in order; the empty ones among them too."""
    plain = text[:MAX_CHARACTERS].lower().replace("won't", "will not")
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    found = _WORD.findall(plain)
    if not plain.isascii():
        found = [part for word in found for part in _split(word)]
    return [word for word in found[:MAX_WORDS] if len(word) <= _LONGEST]


def _split(word: str) -> Iterable[str]:
    """A run of a script without spaces as pairs of its characters; other words as they are."""
    place = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > place:
            yield word[place : run.start()]
        signs = run[0]
        yield from (signs[i : i + 2] for i in range(max(1, len(signs) - 1)))
        place = run.end()
    if place < len(word):
        yield word[place:]


def terms_of(text: str) -> list[str]:
    """The stems of the words that say something, in order."""
    return [stem(word) for word in words_in(text) if word not in _STOP]


def date_terms(moment: datetime) -> list[str]:
    """What a question may name a day by: its month, year and number."""
    return [f"{_DATE}{_MONTHS[moment.month - 1]}", f"{_DATE}{moment.year}", f"{_DATE}{moment.day}"]


def speaker_terms(name: str | None) -> list[str]:
    return [f"{_SPEAKER}{word}" for word in dict.fromkeys(words_in(name))] if name else []


class QueryWord:
    """A word of a query: how the index may have it, as a word, a date's part or a speaker."""

    __slots__ = ("date", "speaker", "term")

    def __init__(self, word: str) -> None:
        self.term = stem(word)
        self.date = f"{_DATE}{word}" if word in _MONTHS or (word.isdecimal() and len(word) <= 4) else None
        self.speaker = f"{_SPEAKER}{word}"


def query_words(query: str) -> list[QueryWord]:
    """The words of a query that say something, each once."""
    telling = [word for word in dict.fromkeys(words_in(query)) if word not in _STOP]
    found = {word.term: word for word in map(QueryWord, telling[: 4 * MAX_TERMS])}
    return list(found.values())[:MAX_TERMS]


def begun_word(query: str) -> str | None:
    """The last word of a query, which may be the beginning of a longer one; ``None`` when it is too short for that."""
    words = words_in(query)
    if not words or not query[-1].isalnum() or len(words[-1]) < _BEGUN or words[-1] in _STOP:
        return None
    return words[-1]


def phrase_parts(query: str) -> list[str]:
    """The words of a query as they are written, or else its signs."""
    return _WORD.findall(query)[:MAX_TERMS] or [signs for signs in [query.strip()[:MAX_TERMS]] if signs]


def phrase(query: str) -> re.Pattern[str]:
    """What finds a query as it is written, in any case of its letters and whatever stands between its words."""
    written = r"[\W_]+".join(map(re.escape, phrase_parts(query)))
    return re.compile(rf"(?<![^\W_]){written}(?![^\W_])" if _WORD.search(query) else written, re.IGNORECASE)


def snippet(text: str, query: str, *, length: int = 160, marks: tuple[str, str] = ("", "")) -> str:
    """The stretch of a text that holds the most of the query's words, about `length` characters, words marked.

    Where the query has none that say something: the stretch that holds it as it is written.
    """
    wanted, begun = {word.term for word in query_words(query)}, begun_word(query)
    text = text[:MAX_CHARACTERS]
    if wanted or begun:
        hits = [match for match in _WORD.finditer(text) if _is_hit(_term(match[0]), wanted, begun)]
    else:
        hits = list(phrase(query).finditer(text)) if phrase_parts(query) else []
    start = _best_start(hits, length)
    start = start and text.rfind(" ", 0, start) + 1
    end = len(text) if len(text) - start <= length else max(text.rfind(" ", start, start + length), start + 1)
    shown, place = ["…" if start else ""], start
    for match in hits:
        if start <= match.start() and match.end() <= end:
            shown += [text[place : match.start()], marks[0], match[0], marks[1]]
            place = match.end()
    return "".join([*shown, text[place:end], "…" if end < len(text) else ""])


def _is_hit(term: str, wanted: set[str], begun: str | None) -> bool:
    return term in wanted or (begun is not None and term.startswith(begun))


def _term(word: str) -> str:
    return next(iter(map(stem, words_in(word))), "")


def _best_start(hits: list[re.Match[str]], length: int) -> int:
    """Where a window of this length begins that sees the most different words."""
    best, start = 0, 0
    for number, match in enumerate(hits):
        window = [m for m in hits[number : number + 64] if m.end() <= match.start() + length]
        seen = len({_term(m[0]) for m in window})
        if seen > best:
            best, start = seen, max(0, match.start() - length // 6)
    return start
