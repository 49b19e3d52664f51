"""Stems of English words, so that "painted" finds "painting": Snowball's stemmer, in pure Python.

A table comes first for irregular verbs and plurals ("won", "children"), which no stemmer handles. Words with other
than English letters are unchanged.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

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
_lock = threading.Lock()  # a stemmer is not thread-safe: it holds the current word


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    word = _IRREGULAR.get(word, word)
    if len(word) <= 2 or not (word.isascii() and word.isalpha()):
        return word
    with _lock:
        return str(_english().stemWord(word))


@lru_cache(maxsize=1)
def _english() -> Any:
    from snowballstemmer.english_stemmer import EnglishStemmer  # type: ignore[import-untyped]

    return EnglishStemmer()
