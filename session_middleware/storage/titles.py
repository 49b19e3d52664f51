"""Titles of sessions: made from a user's message, and as they are searched and sorted. Pure functions."""

from __future__ import annotations

import re
import unicodedata

from session_middleware.storage.jsonable import clean

UNTITLED = "\U0010ffff"  # the key of no title, which sorts last
_LIMIT = 60  # characters of a title that is made
_KEY = 256  # characters of a title that are searched and sorted by; an entry of PostgreSQL's indexes has 2,704 bytes
_READ = 1_000  # of the message


def title_of(text: str) -> str | None:
    """A title from a message: its beginning on one line, cut at a word. ``None`` for a message without text."""
    line = re.sub(r"\s+", " ", text[:_READ]).strip()
    if len(line) <= _LIMIT:
        return line or None
    cut = line[:_LIMIT]
    at_word = cut.rpartition(" ")[0]
    return (at_word if len(at_word) > _LIMIT // 2 else cut[:-1]).rstrip() + "…"


def title_key(title: str | None) -> str:
    """A title as it is compared: without differences of case, width and composition."""
    return unicodedata.normalize("NFKC", clean(title).casefold())[:_KEY] if title else UNTITLED
