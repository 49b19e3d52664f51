"""Normalisation of dates: "Mar 5th, 2026", "2026-03-05" and "5.3.2026" become "march 5 2026". Pure functions.

Ambiguous dates, and text that may not be a date, are unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_SHORT = {month[:3]: month for month in MONTHS if len(month) > 3} | {"sept": "september"}
_YEAR, _ANY_SHORT = r"(?:1[89]|2[01])\d\d", "|".join(sorted(_SHORT, key=len, reverse=True))
_DIGIT = re.compile(r"\d")
_NUMERIC = re.compile(
    rf"""
    \b(?=\d)(?:
    (?P<y>{_YEAR})(?P<s>[-/.])(?P<m>0?[1-9]|1[0-2])(?P=s)(?P<d>0?[1-9]|[12]\d|3[01])(?=\b|t\d)
    | (?P<y2>{_YEAR})-(?P<m2>0[1-9]|1[0-2])\b(?!-)
    | (?P<first>\d\d?)(?P<between>[-/.])(?P<second>\d\d?)(?P=between)(?P<y3>{_YEAR})\b
    | (?P<y4>{_YEAR})\s?[年년]\s?(?P<m4>0?[1-9]|1[0-2])\s?[月월]\s?(?P<d4>\d\d?)\s?[日일]
    | (?P<day>\d\d?)(?:st|nd|rd|th)\b
    )
    """,
    re.VERBOSE | re.ASCII,
)
_MONTH = re.compile(
    rf"(?:{_ANY_SHORT})\b\.?(?P<day>(?=,?[ ]?\d))?", re.ASCII
)  # a pattern that begins with letters is fast
_BEFORE = re.compile(r"(?:\d(?:st|nd|rd|th)?,?|\b(?:in|of|by|since|until|last|next)) ", re.ASCII)
_LONGEST_BEFORE = 7


def with_dates(plain: str) -> str:
    """Replace dates by the month's name and numbers; an abbreviated month only next to a number or after "in"."""
    if _DIGIT.search(plain):
        plain = _NUMERIC.sub(_number, plain)
    return _MONTH.sub(_month, plain)


def dates_in(plain: str) -> Iterator[tuple[int, int, str]]:
    """The start, the end and the replacement of each date and part of a date."""
    for pattern, written in ((_NUMERIC, _number), (_MONTH, _month)):
        yield from ((*found.span(), written(found)) for found in pattern.finditer(plain))


def _month(found: re.Match[str]) -> str:
    text, start = found.string, found.start()
    if start and (text[start - 1].isalnum() or text[start - 1] == "_"):
        return found[0]
    is_date = found["day"] is not None or any(
        before.end() == start for before in _BEFORE.finditer(text, max(0, start - _LONGEST_BEFORE), start)
    )
    return _SHORT[found[0].rstrip(".")] if is_date else found[0]


def _number(found: re.Match[str]) -> str:
    part = {name: value for name, value in found.groupdict().items() if value is not None}
    if "day" in part:
        return str(int(part["day"]))
    if "first" in part:
        day, month = int(part["first"]), int(part["second"])
        if month > 12 or (part["between"] == "/" and day == month):
            day, month = month, day
        elif part["between"] != "." and day <= 12:
            return found[0]  # 3/5/2026 is in March or in May
        year = part["y3"]
    else:
        year = part.get("y") or part.get("y2") or part["y4"]
        month, day = int(part.get("m") or part.get("m2") or part["m4"]), int(part.get("d") or part.get("d4") or 0)
    if not 1 <= month <= 12 or day > 31:
        return found[0]
    return f" {MONTHS[month - 1]} {day or ''} {year} "
