"""Values as the page writes them: times, durations, amounts, and the beginnings of long texts. Pure functions."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from session_middleware.display.text import (
    arguments_text,
    cost_text,
    detail_text,
    duration_text,
    second_text,
    shortened,
    visible,
)
from session_middleware.models import Explanation, Question
from session_middleware.session import Session

SHOWN_CHARACTERS = 4_000  # of a text in the page; the whole is behind a link
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"))
_RECENT = timedelta(days=30)


class Excerpt(NamedTuple):
    """The beginning of a long text."""

    text: str
    total: int  # characters of the whole

    @property
    def is_cut(self) -> bool:
        return self.total > len(self.text)


def excerpt(value: Any, limit: int = SHOWN_CHARACTERS) -> Excerpt:
    """The beginning of a text, or of a value as JSON."""
    text = as_text(value)
    return Excerpt(text[:limit], len(text))


def as_text(value: Any) -> str:
    """A value as text: JSON, unless it is a text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)


def indented(value: Any) -> str:
    """A value as text; a short text that is JSON, such as many tools return, is indented."""
    text = as_text(value)
    if text[:1] not in "{[" or len(text) > SHOWN_CHARACTERS:
        return text
    try:
        return as_text(json.loads(text)) if isinstance(value, str) else text
    except (ValueError, RecursionError):
        return text


def one_line(value: Any, limit: int = 120) -> str:
    """The beginning of a text, without line breaks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shortened(text, limit)


def shown(value: Any) -> Any:
    """A value of a template, with control characters and overrides of the direction made visible."""
    return visible(value) if isinstance(value, str) else value


def moment(at: datetime | None) -> str:
    return "" if at is None else f"{second_text(at)} UTC"


def clock_time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%H:%M:%S}"


def day(at: datetime) -> str:
    local = at.astimezone(UTC)
    return f"{local:%A}, {local.day} {local:%B %Y}"


def age(at: datetime | None, now: datetime) -> str:
    """How long ago, or in how long, a moment is; a day if that is far."""
    if at is None:
        return ""
    if abs(now - at) > _RECENT:
        return f"{at.astimezone(UTC):%Y-%m-%d}"
    seconds = abs(now - at).total_seconds()
    for size, noun in _UNITS:
        if seconds >= size:
            count = int(seconds // size)
            text = f"{count} {noun}{'' if count == 1 else 's'}"
            return f"{text} ago" if at <= now else f"in {text}"
    return "just now" if at <= now else "in a moment"


def duration(milliseconds: float | None) -> str:
    return "" if milliseconds is None else duration_text(milliseconds)


def number(count: float | None) -> str:
    return "" if count is None else f"{count:,.0f}"


def compact(count: float) -> str:
    """A count of few characters: ``950``, ``12.3k``, ``4.1M``."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return f"{count:,.0f}"


_CODE = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)(?:^ {0,3}```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]{1,500})`|\*\*([^*\n]{1,500})\*\*")


def prose(text: str) -> Markup:
    """The beginning of what was said, with code and what is strong as Markdown marks it. All else stays as it is."""
    cut = excerpt(text)
    whole = visible(cut.text) + ("…" if cut.is_cut else "")
    found, end = Markup(), 0
    for block in _CODE.finditer(whole):
        found += _inline(whole[end : block.start()].rstrip("\n")) + Markup("<pre dir=auto>{}</pre>").format(block[1])
        end = block.end()
    return found + _inline(whole[end:].lstrip("\n") if end else whole)


def _inline(text: str) -> Markup:
    found, end = Markup(), 0
    for mark in _INLINE.finditer(text):
        tag = Markup("<code>{}</code>") if mark[1] else Markup("<strong>{}</strong>")
        found += escape(text[end : mark.start()]) + tag.format(mark[1] or mark[2])
        end = mark.end()
    return found + escape(text[end:])


def answering(question: Question, session: Session) -> str:
    """The code that answers a question."""
    if question.interrupt_id is None:  # a breakpoint
        given = "None"
    elif isinstance(question.value, dict) and "action_requests" in question.value:
        given = f'Command(resume={{{question.interrupt_id!r}: {{"decisions": [{{"type": "approve"}}]}}}})'
    else:
        given = f"Command(resume={{{question.interrupt_id!r}: answer}})"
    identity = {"user_id": session.user_id, "group_id": session.group_id}
    named = "".join(f", {name}={value!r}" for name, value in identity.items() if value is not None)
    return f"graph.invoke({given}, sessions.config({session.id!r}{named}))"


def sentence(explained: Explanation) -> str:
    """An explanation as sentences, without the id of its session."""
    parts = explained.text.removeprefix(f"session {explained.session_id!r}: ").split("; ")
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)


FILTERS = {
    "age": age,
    "answering": answering,
    "arguments": arguments_text,
    "clock_time": clock_time,
    "compact": compact,
    "day": day,
    "duration": duration,
    "excerpt": excerpt,
    "facts": lambda event: detail_text(event.detail, full=True)[:SHOWN_CHARACTERS],
    "indented": indented,
    "moment": moment,
    "money": cost_text,
    "number": number,
    "one_line": one_line,
    "prose": prose,
    "sentence": sentence,
}
