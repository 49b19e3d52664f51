"""Dates in a text, however they are written: "Mar 5th, 2026", "2026-03-05" and "5.3.2026" are "march 5 2026". Pure.

What may be no date, or one of two, is left as it is.
"""

from __future__ import annotations

import re

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_SHORT = {month[:3]: month for month in MONTHS if len(month) > 3} | {"sept": "september"}
_YEAR, _ANY_SHORT = r"(?:1[89]|2[01])\d\d", "|".join(sorted(_SHORT, key=len, reverse=True))
_DAY = [rf"\d{ending}" for ending in ("", ",", "st", "nd", "rd", "th")]
_BEFORE = [*_DAY, *(rf"\b{word}" for word in ("in", "of", "by", "since", "until", "last", "next"))]
DATES = re.compile(
    rf"""
    \b(?P<y>{_YEAR})(?P<s>[-/.])(?P<m>0?[1-9]|1[0-2])(?P=s)(?P<d>0?[1-9]|[12]\d|3[01])(?=\b|t\d)
    | \b(?P<y2>{_YEAR})-(?P<m2>0[1-9]|1[0-2])\b(?!-)
    | \b(?P<first>\d\d?)(?P<between>[-/.])(?P<second>\d\d?)(?P=between)(?P<y3>{_YEAR})\b
    | (?P<y4>{_YEAR})\s?[年년]\s?(?P<m4>0?[1-9]|1[0-2])\s?[月월]\s?(?P<d4>\d\d?)\s?[日일]
    | \b(?P<day>\d\d?)(?:st|nd|rd|th)\b
    | (?:{"|".join(rf"(?<={before}[ ])" for before in _BEFORE)})(?P<short>{_ANY_SHORT})\b\.?
    | \b(?P<short2>{_ANY_SHORT})\b\.?(?=,?[ ]?\d)
    """,
    re.VERBOSE | re.ASCII,
)


def with_dates(plain: str) -> str:
    """Each date by its month's name and its numbers; a short month only beside a number or after an "in"."""
    return DATES.sub(written_out, plain)


def written_out(found: re.Match[str]) -> str:
    part = {name: value for name, value in found.groupdict().items() if value is not None}
    if "day" in part:
        return str(int(part["day"]))
    if short := part.get("short") or part.get("short2"):
        return _SHORT[short]
    if "first" in part:
        day, month = int(part["first"]), int(part["second"])
        if month > 12 or (part["between"] == "/" and day == month):
            day, month = month, day
        elif part["between"] != "." and day <= 12:
            return found[0]  # 3/5/2026 is one day here and another there
        year = part["y3"]
    else:
        year = part.get("y") or part.get("y2") or part["y4"]
        month, day = int(part.get("m") or part.get("m2") or part["m4"]), int(part.get("d") or part.get("d4") or 0)
    if not 1 <= month <= 12 or day > 31:
        return found[0]
    return f" {MONTHS[month - 1]} {day or ''} {year} "
