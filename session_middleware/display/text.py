"""Recorded values in a few words: for terminals, notebooks and what `repr` says. Pure functions.

Everything recorded is untrusted text. Control characters, which could move a cursor or turn the
direction of a line, are shown as what they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

SHORT_PART = 70  # of a tool call, each of its arguments and its result
_REPR_CHARACTERS = 60

_CONTROLS = dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_CONTROLS |= {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}


def visible(text: str) -> str:
    """The text with control characters, escape sequences and direction overrides made visible."""
    return text.translate(_CONTROLS)


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


def json_text(value: Any, *, full: bool = False) -> str:
    """A recorded value as text: a text as it is, nothing for nothing, all else as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if full else shortened(text, SHORT_PART)


def second_text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def duration_text(milliseconds: float) -> str:
    if milliseconds < 1_000:
        return f"{milliseconds:.3g} ms"
    seconds = milliseconds / 1_000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def span_text(duration: timedelta) -> str:
    """A duration as people say it: its two largest units, such as ``"7 days"`` or ``"1 hour 30 minutes"``."""
    seconds, parts = duration.total_seconds(), []
    for noun, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count, seconds = divmod(seconds, size)
        parts += [plural(int(count), noun)] if count else []
    if seconds and not parts[1:]:
        parts.append(f"{seconds:.3g} second" + ("s" if seconds != 1 else ""))
    return " ".join(parts[:2]) or "0 seconds"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class _AsItIs(str):
    def __repr__(self) -> str:
        return str(self)


def repr_parts(values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What `repr` says of a value's fields: those that say something, with texts cut and times to the second."""
    for name, value in values.items():
        if value in (None, (), {}, defaults[name]):
            continue
        if isinstance(value, datetime):
            value = _AsItIs(second_text(value))
        elif isinstance(value, str):
            value = shortened(value, _REPR_CHARACTERS)
        yield name, value
