"""Recorded values as short text for terminals, notebooks and `repr`. Pure functions.

Recorded text is untrusted. Control characters, which could move a cursor or reverse the direction of a line, are
replaced by visible ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

SHORT_PART = 70  # of a tool call, each of its arguments and its result
UNKNOWN = "\N{EN DASH}"  # a value that is not known, such as the cost of a model without a price
_REPR_CHARACTERS = 60
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

_CONTROLS = dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_CONTROLS |= {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_BREAKS = {0x09: 0x2409, 0x0A: 0x240A, 0x2028: 0xFFFD, 0x2029: 0xFFFD}


def visible(text: str) -> str:
    """The text with control characters, escape sequences and direction overrides made visible."""
    return text.translate(_CONTROLS)


def visible_line(text: str) -> str:
    """As `visible`, with line breaks and tabs made visible too, so that an id stays in its cell."""
    return text.translate(_CONTROLS | _BREAKS)


def shortened(text: str, limit: int) -> str:
    """The text on one line, cut to `limit` characters."""
    line = re.sub(r"\s+", " ", text[: limit * 8]).strip()
    return line if len(line) <= limit and len(text) <= limit * 8 else line[: limit - 1].rstrip() + "…"


def arguments_text(value: Any, *, full: bool = False) -> str:
    """A tool's arguments as they are written in a call: ``a=1, b="x"``."""
    if not isinstance(value, dict):
        return json_text(value, full=full)
    text = ", ".join(f"{name}={json.dumps(one, ensure_ascii=False, default=str)}" for name, one in value.items())
    return text if full else shortened(text, SHORT_PART)


def call_text(name: object, arguments: Any, *, full: bool = False) -> str:
    """A tool call as it is written in Python: ``search(query="tea")``."""
    return f"{name}({arguments_text(arguments, full=full)})"


def json_text(value: Any, *, full: bool = False) -> str:
    """A recorded value as text: a text unchanged, ``None`` as an empty text, any other value as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if full else shortened(text, SHORT_PART)


def detail_text(detail: Mapping[str, Any], *, full: bool = False) -> str:
    """The facts of an event in words, such as ``user mallory, last active at 2026-01-01 12:00:00``."""
    text = _words(detail)
    return text if full else shortened(text, SHORT_PART)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        facts = ((str(name).removesuffix("_id").replace("_", " "), one) for name, one in value.items())
        return ", ".join(f"{name} {_words(one)}" for name, one in facts if one is not None)
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_words, value))
    if isinstance(value, str) and _TIME.fullmatch(value):
        return second_text(datetime.fromisoformat(value))
    return str(value)


def second_text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def duration_text(milliseconds: float) -> str:
    if milliseconds < 1_000:
        return f"{milliseconds:.3g} ms"
    seconds = milliseconds / 1_000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def cost_text(dollars: float | None) -> str:
    """An amount with cents, and below a dollar with four digits that count: ``$1.20``, ``$0.000412``."""
    if dollars is None:
        return UNKNOWN
    if dollars >= 1:
        return f"${dollars:,.2f}"
    if 0 < dollars < 0.000001:
        return "under $0.000001"
    whole, _, decimals = f"{float(f'{dollars:.4g}'):.6f}".rstrip("0").partition(".")
    return f"${whole}.{decimals:0<2}"


def span_text(duration: timedelta) -> str:
    """A duration in its two largest units, such as ``"7 days"`` or ``"1 hour 30 minutes"``."""
    seconds, parts = duration.total_seconds(), []
    for noun, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count, seconds = divmod(seconds, size)
        parts += [plural(int(count), noun)] if count else []
    if seconds and not parts[1:]:
        parts.append(f"{seconds:.3g} second" + ("s" if seconds != 1 else ""))
    return " ".join(parts[:2]) or "0 seconds"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class _Unquoted(str):
    def __repr__(self) -> str:
        return str(self)


def repr_parts(values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields that `repr` shows: those that are neither empty nor the default, with texts cut."""
    for name, value in values.items():
        if value in (None, (), {}, defaults[name]):
            continue
        if isinstance(value, datetime):
            value = _Unquoted(second_text(value))
        elif isinstance(value, str):
            value = shortened(value, _REPR_CHARACTERS)
        yield name, value
