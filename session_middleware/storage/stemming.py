"""The stem of an English word, so that "painted" finds "painting".

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with a table before it for
verbs and plurals that change within ("won", "children"). What is not English letters stays as it is.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

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
_VOWELS = frozenset("aeiou")

_SECOND = (
    *(("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("abli", "able")),
    *(("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate")),
    *(("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous")),
    *(("aliti", "al"), ("iviti", "ive"), ("biliti", "ble")),
)
_THIRD = (
    *(("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")),
)
_FOURTH = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    word = _IRREGULAR.get(word, word)
    if len(word) <= 2 or not (word.isascii() and word.isalpha()):
        return word
    word = _plural(word)
    word = _tense(word)
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(word, _SECOND)
    word = _replaced(word, _THIRD)
    return _tidied(_stripped(word))


def _is_consonant(word: str, place: int) -> bool:
    if word[place] == "y":
        return place == 0 or not _is_consonant(word, place - 1)
    return word[place] not in _VOWELS


def _measure(word: str) -> int:
    """How often a consonant follows a vowel: Porter's m."""
    kinds = [_is_consonant(word, place) for place in range(len(word))]
    return sum(after and not before for before, after in pairwise(kinds))


def _has_vowel(word: str) -> bool:
    return any(not _is_consonant(word, place) for place in range(len(word)))


def _is_short(word: str) -> bool:
    """Ends in consonant, vowel, consonant, and the last is not w, x or y: Porter's *o."""
    if len(word) < 3 or word[-1] in "wxy":
        return False
    last = len(word) - 1
    return _is_consonant(word, last) and not _is_consonant(word, last - 1) and _is_consonant(word, last - 2)


def _is_doubled(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _tense(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        if word.endswith(ending) and _has_vowel(base := word[: -len(ending)]):
            if base.endswith(("at", "bl", "iz")):
                return base + "e"
            if _is_doubled(base) and base[-1] not in "lsz":
                return base[:-1]
            return base + "e" if _measure(base) == 1 and _is_short(base) else base
    return word


def _replaced(word: str, endings: tuple[tuple[str, str], ...]) -> str:
    for ending, other in endings:
        if word.endswith(ending):
            base = word[: -len(ending)]
            return base + other if _measure(base) > 0 else word
    return word


def _stripped(word: str) -> str:
    longest = max((ending for ending in _FOURTH if word.endswith(ending)), key=len, default="")
    base = word[: len(word) - len(longest)]
    if not longest or _measure(base) <= 1 or (longest == "ion" and not base.endswith(("s", "t"))):
        return word
    return base


def _tidied(word: str) -> str:
    if word.endswith("e"):
        base = word[:-1]
        if _measure(base) > 1 or (_measure(base) == 1 and not _is_short(base)):
            word = base
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
