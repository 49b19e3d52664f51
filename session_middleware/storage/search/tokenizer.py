"""The tokenizer: pure functions from a text to the terms of the index, the same for every engine.

A word is lower case and without accents; stop words are left out, and the others are reduced to their stems. Vowel
signs belong to their word. Scripts without spaces, and Korean, which attaches particles to nouns, yield single signs
and pairs of signs. Dates yield the same words in every notation: "Mar 5th, 2026" and "2026-03-05" are both
"march 5 2026". A *term* is an entry of the index: the stem of a word or, with a prefix that no word has, a part of
a message's date or of its speaker's name.

`regex` provides character properties and `snowballstemmer` stems. Both are imported at first use.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

from session_middleware.storage.search.dates import MONTHS, dates_in, with_dates

MAX_WORDS = 20_000  # of a text
MAX_TERMS = 64  # of a query
MAX_CHARACTERS = 65_536  # of a text
_SHORTEST_PREFIX = 3  # characters
_LONGEST = 64  # characters of a word; a longer one is not indexed

_STOP_WORDS = """
    a about above after again against ain all also am an and any are aren as at be because been before being below
    between both but by can cannot could couldn d did didn do does doesn doing don down during each few for from
    further had hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it
    its itself just ll m me mightn more most mustn my myself needn no nor not now of off on once only or other ought
    our ours ourselves out over own re s same shall shan she should shouldn so some such t than that the their
    theirs them themselves then there these they this those through to too under until up ve very was wasn we were
    weren what when where which while who whom whose why will with would wouldn you your yours yourself yourselves
"""
_STOP = frozenset(_STOP_WORDS.split())
_DATE, _SPEAKER = "@", "@@"


# Stems of English words, so that "painted" finds "painting". A table comes first for irregular verbs and plurals, which
# no stemmer handles. Words with other than English letters are unchanged.

_FORMS = """
    become became|begin began begun|bring brought|build built|buy bought|catch caught|choose chose chosen|come came|
    draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feel felt|fight fought|
    find found|fly flew flown|forget forgot forgotten|get got gotten|give gave given|go went gone|grow grew grown|
    hear heard|hold held|keep kept|know knew known|lead led|leave left|lose lost|make made|mean meant|meet met|
    pay paid|ride rode ridden|ring rang rung|run ran|say said|see saw seen|sell sold|send sent|shoot shot|
    sing sang sung|sit sat|sleep slept|speak spoke spoken|spend spent|stand stood|steal stole stolen|swim swam swum|
    take took taken|teach taught|tell told|think thought|throw threw thrown|understand understood|wear wore worn|
    win won|write wrote written|child children|man men|woman women|person people|foot feet|tooth teeth|mouse mice|
    wife wives|life lives|knife knives|leaf leaves
"""
_IRREGULAR = {form: group.split()[0] for group in _FORMS.split("|") for form in group.split()[1:]}
_stemmer_lock = threading.Lock()  # a stemmer is not thread-safe: it holds the current word


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    word = _IRREGULAR.get(word, word)
    if len(word) <= 2 or not (word.isascii() and word.isalpha()):
        return word
    with _stemmer_lock:
        return str(_english().stemWord(word))


@lru_cache(maxsize=1)
def _english() -> Any:
    from snowballstemmer.english_stemmer import EnglishStemmer  # type: ignore[import-untyped]

    return EnglishStemmer()


# Characters

_WORD = re.compile(r"[^\W_]+")  # in ASCII
_EAST_ASIAN = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_SOUTH_EAST_ASIAN = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


class _Unicode(NamedTuple):
    """Patterns for text that is not ASCII. `re` would end a word at a vowel sign."""

    word: Any
    hidden: Any  # invisible signs
    ignored: Any  # invisible signs, accents and points
    foreign: Any  # letters and digits with a plainer form
    run: Any  # signs of one script without spaces
    sign: Any  # a sign of such a run with its marks and, in Thai and Lao, the vowels before and after it
    alone: Any  # a sign that may be a word
    part: Any  # of a word, in one kind of script


@lru_cache(maxsize=1)
def _unicode() -> _Unicode:
    import regex  # type: ignore[import-untyped]

    hidden = r"[\p{Cf}--\u200b]"  # zero-width space is one
    return _Unicode(
        word=regex.compile(rf"(?V1)[\p{{L}}\p{{N}}](?:[\p{{L}}\p{{N}}\p{{M}}]|{hidden})*"),
        hidden=regex.compile(rf"(?V1){hidden}"),
        ignored=regex.compile(
            rf"(?V1)[[\p{{M}}&&[\p{{Inherited}}\p{{Hebrew}}\p{{Arabic}}\p{{Syriac}}]]--[\u0306\u3099\u309a]]"
            rf"|(?<![иу])\u0306|\u0640|{hidden}"
        ),
        foreign=regex.compile(r"(?V1)[[\p{Latin}\p{Nd}]--[\x00-\x7f]]"),
        run=regex.compile(
            r"\p{Han}+|\p{Hiragana}[\p{Hiragana}ー]*|[\p{Katakana}ー]+|\p{Hangul}+"
            + "".join(rf"|\p{{{name}}}[\p{{{name}}}\p{{M}}]*" for name in ("Thai", "Lao", "Khmer", "Myanmar"))
        ),
        sign=regex.compile(r"[\u0e40-\u0e44\u0ec0-\u0ec4]?\X[\u0e30-\u0e33\u0e45\u0eb0-\u0eb3]*"),
        alone=regex.compile(r"[\p{Han}\p{Hangul}]|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{M}]{2,}"),
        part=regex.compile(
            rf"(?V1)(?P<unspaced>[{_EAST_ASIAN}][{_EAST_ASIAN}\p{{M}}]*)|(?P<korean>\p{{Hangul}}+)"
            rf"|(?P<phrase>[{_SOUTH_EAST_ASIAN}][{_SOUTH_EAST_ASIAN}\p{{M}}]*)"
            rf"|[[\p{{L}}\p{{N}}\p{{M}}]--[{_EAST_ASIAN}{_SOUTH_EAST_ASIAN}\p{{Hangul}}]]+"
            r"(?:(?:\+\+|\#)(?![\p{L}\p{N}]))?"  # C++ and C# are other words than C
        ),
    )


def _plain(text: str) -> str:
    """The text in lower case, without accents, with each letter in its plainest form."""
    text = text.lower() if text.isascii() else _folded(text)
    return text.replace("won't", "will not")


def _folded(text: str) -> str:
    patterns = _unicode()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).replace("\u2019", "'")
    text = patterns.foreign.sub(lambda found: _plainer(found[0]), patterns.ignored.sub("", text))
    return unicodedata.normalize("NFC", text)


_LATIN = {"æ": "ae", "œ": "oe", "þ": "th"} | dict(zip("øłđðıħŋəŧɗɓƙɖɛɔƴ", "olddihnetdbkdeoy", strict=True))


def _plainer(sign: str) -> str:
    """An ASCII digit for a digit of any script; plain letters for a Latin letter that has no decomposition."""
    digit = unicodedata.decimal(sign, None)
    return _LATIN.get(sign, sign) if digit is None else str(digit)


# Words


def words_in(text: str) -> list[str]:
    """The words of a text in lower case and without accents, in order, with stop words."""
    return _words(text, signs=False)[:MAX_WORDS]


def _words(text: str, *, signs: bool) -> list[str]:
    plain = with_dates(_plain(text[:MAX_CHARACTERS]))
    if plain.isascii():
        found: list[str] = _WORD.findall(plain)
    else:
        written = _unicode().word.findall(plain)
        found = [word[start:end] for word in written for start, end in _pieces(word, signs=signs)]
    return [word for word in found if len(word) <= _LONGEST]


def _pieces(word: str, *, signs: bool) -> Iterator[tuple[int, int]]:
    """The places of words in a word: runs of scripts without spaces are split into pairs of signs.

    With `signs` also into signs that may be words.
    """
    if word.isascii():
        yield 0, len(word)
        return
    patterns, place = _unicode(), 0
    for run in patterns.run.finditer(word):
        if run.start() > place:
            yield place, run.start()
        found = [sign.span() for sign in patterns.sign.finditer(word, *run.span())]
        if len(found) == 1:
            yield from found
        elif signs:
            yield from ((start, end) for start, end in found if patterns.alone.match(word[start:end]))
        yield from ((start, end) for (start, _), (_, end) in pairwise(found))
        place = run.end()
    if place < len(word):
        yield place, len(word)


def is_telling(word: str) -> bool:
    """False for stop words, and for a single hiragana, which is mostly a particle."""
    return word not in _STOP and not (len(word) == 1 and "\u3041" <= word <= "\u309f")


def terms_of(text: str) -> list[str]:
    """The stems of the words of a text, without stop words, in order."""
    return [stem(word) for word in _words(text, signs=True) if is_telling(word)][:MAX_WORDS]


def context_terms_of(moment: datetime, name: str | None) -> list[str]:
    """The terms of a message that are not in its text: month, year and day of its date, and its speaker's name."""
    speakers = dict.fromkeys(words_in(name)) if name else ()
    day = (MONTHS[moment.month - 1], moment.year, moment.day)
    return [*(f"{_DATE}{each}" for each in day), *(f"{_SPEAKER}{word}" for word in speakers)]


class QueryWord:
    """A word of a query as a term, and as the term of a part of a date and of a speaker."""

    __slots__ = ("date", "speaker", "term")

    def __init__(self, word: str) -> None:
        self.term = stem(word)
        self.speaker = f"{_SPEAKER}{word}"
        is_number = word.isascii() and word.isdecimal() and len(word) <= 4
        self.date = f"{_DATE}{int(word) if is_number else word}" if is_number or word in MONTHS else None


def query_words(query: str) -> list[QueryWord]:
    """The words of a query without stop words, each once."""
    telling = [word for word in dict.fromkeys(words_in(query)) if is_telling(word)]
    found = {word.term: word for word in map(QueryWord, telling[: 4 * MAX_TERMS])}
    return list(found.values())[:MAX_TERMS]


def unfinished_word(query: str) -> str | None:
    """The last word of a query, when it may be the prefix of a longer word."""
    words = words_in(query)
    if not words or not _is_of_word(query[-1]) or len(words[-1]) < _SHORTEST_PREFIX or not is_telling(words[-1]):
        return None
    return words[-1]


def _is_of_word(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


# Words as they are written


def contains_all(text: str, query: str) -> bool:
    """Whether a text contains every word of a query as it is written, ignoring case.

    Stems and accents are significant, and so are stop words. A Korean noun may have its particles. A Chinese or
    Japanese word matches anywhere in a run of signs. Words of Thai, Lao, Khmer and Burmese cannot be told apart without
    a dictionary, so a run of their letters matches as a whole only. A query of stop words only matches no text.
    """
    wanted, there = set(_parts(query)), set(_parts(text))
    if not query_words(query):
        return False
    return all(part in there or any(_contains(part, other) for other in there) for part in wanted)


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The words of a text, each with its kind of script."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    patterns = _unicode()
    for found in patterns.part.finditer(patterns.hidden.sub("", plain)):
        yield found.lastgroup or "", found[0]


def _contains(part: tuple[str, str], other: tuple[str, str]) -> bool:
    (kind, word), (other_kind, text) = part, other
    if kind != other_kind:
        return False
    if kind == "unspaced":
        signs, among = (_unicode().sign.findall(each) for each in (word, text))
        return any(among[n : n + len(signs)] == signs for n in range(len(among) - len(signs) + 1))
    return (
        kind == "korean" and len(word) > 1 and text.startswith(word) and bool(_PARTICLES.fullmatch(text[len(word) :]))
    )


_PARTICLES = re.compile(  # that are seldom the end of another noun
    "(?:은|는|가|을|를|의|에|에서|에게|에게서|께|께서|한테|한테서|도|만|과|와|로|으로|까지|부터|처럼|보다|마다|밖에|조차|마저|랑|이랑|하고)"
    "(?:은|는|도|만)?"
)


def phrase_parts(query: str) -> list[str]:
    """The words of a query as they are written; if it has none, its signs."""
    found = [found[0] for found in _words_as_written(query)]
    return found[:MAX_TERMS] or [signs for signs in [query.strip()[:MAX_TERMS]] if signs]


def phrase(query: str, *, unfinished: bool = False) -> re.Pattern[str]:
    """A pattern for the query as it is written, in any case and with any signs between its words.

    Its last word may be the prefix of another if it is `unfinished`.
    """
    parts = phrase_parts(query)
    written = r"[\W_]+".join(map(re.escape, parts))
    before, after = (
        edge if _is_of_word(sign) and not _is_unspaced(sign) else ""
        for sign, edge in ((parts[0][0], r"(?<![^\W_])"), (parts[-1][-1], r"(?![^\W_])"))
    )
    return re.compile(before + written + ("" if unfinished else after), re.IGNORECASE)


def _is_unspaced(sign: str) -> bool:
    return not sign.isascii() and _unicode().run.fullmatch(sign) is not None


def _words_as_written(text: str) -> Iterator[re.Match[str]]:
    """The words of a text, with their places."""
    return (_WORD if text.isascii() else _unicode().word).finditer(text)


def snippet(text: str, query: str, *, length: int = 160, marks: tuple[str, str] = ("", "")) -> str:
    """An excerpt of about `length` characters with the most words of the query, each between the two `marks`.

    For a query of stop words or signs only, the excerpt contains it as it is written.
    """
    wanted, prefix = {word.term for word in query_words(query)}, unfinished_word(query)
    text = text[:MAX_CHARACTERS]
    if wanted or prefix:
        hits = _hits(text, wanted, prefix)
    else:
        hits = [_Hit(*found.span(), found[0]) for found in phrase(query).finditer(text)] if phrase_parts(query) else []
    start = _best_window(hits, length)
    start = start and text.rfind(" ", 0, start) + 1
    end = len(text) if len(text) - start <= length else max(text.rfind(" ", start, start + length), start + 1)
    shown, place = ["…" if start else ""], start
    for hit in hits:
        if start <= hit.start and hit.end <= end:
            shown += [text[place : hit.start], marks[0], text[hit.start : hit.end], marks[1]]
            place = hit.end
    return "".join([*shown, text[place:end], "…" if end < len(text) else ""])


class _Hit(NamedTuple):
    start: int
    end: int
    term: str


def _hits(text: str, wanted: set[str], prefix: str | None) -> list[_Hit]:
    """The places of a query's words and dates, in order; in a script without spaces, of its pairs and signs."""
    lower = text.lower()
    places = list(dates_in(lower if len(lower) == len(text) else ""))
    for match in _words_as_written(text):
        word, first = match[0], match.start()
        places += [(first + start, first + end, word[start:end]) for start, end in _pieces(word, signs=True)]
    found: list[_Hit] = []
    for start, end, word in sorted(places):
        hit = next((term for term in _stems(word) if term in wanted or (prefix and term.startswith(prefix))), None)
        if hit is None and prefix and _plain(word).startswith(prefix):
            hit = prefix
        if hit is not None and found and start < found[-1].end:
            found[-1] = found[-1]._replace(end=max(found[-1].end, end))
        elif hit is not None:
            found.append(_Hit(start, end, hit))
    return found


@lru_cache(maxsize=65_536)
def _stems(word: str) -> list[str]:
    return [stem(each) for each in words_in(word) if is_telling(each)]


def _best_window(hits: list[_Hit], length: int) -> int:
    """The start of the window of this length with the most different words."""
    best, start = 0, 0
    for number, hit in enumerate(hits):
        seen = len({other.term for other in hits[number : number + 64] if other.end <= hit.start + length})
        if seen > best:
            best, start = seen, max(0, hit.start - length // 6)
    return start


# The version


@lru_cache(maxsize=1)
def version() -> str:
    """A checksum over the terms of a sample; it changes with any part of the tokenizer, or with its libraries."""
    return f"{crc32(' '.join(terms_of(_SAMPLE)).encode()):08x}"


_SAMPLE = """
    Generously running allergies were happily discovered, 1st of Dec 2026-03-05 in Sept 3/15/2026; won't it?
    naïve Łódź Đà Nẵng straße smørrebrød œuvre İzmir ёлка край שָׁלוֹם كِتَاب ٣ दूध दादा का பால் বাংলা
    แมวกินปลา ແມວ ឆ្មា ကြောင် 고양이를 키운다 我家养了一只猫 昨日は京都の寺を訪れました コーヒー ﾊﾝｶｸ
"""
