"""The conversation of a session as Markdown and as a page of HTML, for people to read, keep and send.

The page is one file without a script, and needs no network. All text of a session is escaped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from session_middleware.display.html import facts_html, safe
from session_middleware.display.text import duration_text, json_text, second_text, visible
from session_middleware.exports.folder import pages
from session_middleware.models import Message, Question, ToolCall, facts_of
from session_middleware.storage.atomic_files import written

if TYPE_CHECKING:
    from session_middleware.session import Session


def write_markdown(session: Session, path: Path) -> None:
    _write(path, _markdown(session))


def write_html(session: Session, path: Path) -> None:
    _write(path, _html(session))


def _write(path: Path, parts: Iterator[str]) -> None:
    with written(path) as file:
        for part in parts:
            file.write(f"{part}\n".encode())


def conversation(session: Session) -> Iterator[Message | ToolCall | Question]:
    """The messages of the current branch, each followed by the executions of the calls that it asks for; and questions.

    A message is left out that only asks for recorded executions, or is the answer of one.
    """
    calls = session.tool_calls()
    answered, asked = {call.tool_call_id for call in calls}, defaultdict[str, list[ToolCall]](list)
    others: list[ToolCall | Question] = [*(call for call in calls if call.message_id is None), *session.questions()]
    alone = sorted(others, key=lambda record: record.seq, reverse=True)
    for call in calls:
        asked[call.message_id or ""].append(call)
    for message in pages(session.messages):
        while alone and alone[-1].seq < message.seq:
            yield alone.pop()
        ids = {message.tool_call_id} if message.role == "tool" else {str(each.get("id")) for each in message.tool_calls}
        if not (ids and ids <= answered and (message.role == "tool" or not message.text)):
            yield message
        yield from asked.pop(message.message_id, ())
    yield from reversed(alone)


def _facts(session: Session) -> dict[str, Any]:
    return {name: value for name, value in facts_of(session).items() if value is not None}


def _about(record: Message | ToolCall | Question) -> str:
    """What is said of a record beside its text."""
    if isinstance(record, Question):
        by = f"by {record.answered_by}" if record.answered_by else ""
        return ", ".join(filter(None, (f"{second_text(record.asked_at)} UTC", record.node, record.status, by)))
    moment = record.created_at if isinstance(record, Message) else record.started_at
    parts = [f"{second_text(moment)} UTC" if moment else ""]
    if isinstance(record, ToolCall):
        parts += [record.status, f"attempt {record.attempt}" if record.attempt > 1 else ""]
        parts += [duration_text(record.duration_ms) if record.duration_ms is not None else ""]
    else:
        parts += [record.model or "", "incomplete" if record.status == "incomplete" else ""]
    return ", ".join(filter(None, parts))


def _name(record: Message | ToolCall | Question) -> str:
    if isinstance(record, ToolCall):
        return record.name
    if isinstance(record, Question):
        return "question"
    return f"{record.role} ({record.name})" if record.name else record.role


def _parts(record: Message | ToolCall | Question) -> Iterator[tuple[str, str]]:
    """The texts of a record, with their labels."""
    if isinstance(record, Message):
        yield "", record.text
        if record.content is not None and not record.text:
            yield "content", json_text(record.content, full=True)
        return
    if isinstance(record, Question):
        yield "", json_text(record.value, full=True) or "a breakpoint"
        if record.status == "answered":
            yield "answer", json_text(record.answer, full=True)
        return
    yield "arguments", json_text(record.arguments, full=True)
    if record.result is not None:
        yield "result", json_text(record.result, full=True)
    if record.error is not None:
        yield "error", record.error


# Markdown

_SIGNS = re.compile(r"([\\`*_\[\]<>#|])")


def _markdown(session: Session) -> Iterator[str]:
    yield f"# {_escaped(session.title or session.id)}\n"
    for name, value in _facts(session).items():
        text = f"{second_text(value)} UTC" if hasattr(value, "astimezone") else str(value)
        yield f"- {name}: {_escaped(text)}"
    for record in conversation(session):
        kind = "tool " if isinstance(record, ToolCall) else ""
        yield f"\n## {kind}{_escaped(_name(record))}\n\n{_escaped(_about(record))}"
        for label, text in _parts(record):
            yield f"\n{label}:\n\n{_fenced(text)}" if label else "\n" + _quoted(text) if text else ""


def _escaped(text: str) -> str:
    return _SIGNS.sub(r"\\\1", " ".join(visible(text).split()))


def _quoted(text: str) -> str:
    """A message as a quotation, which its headings stay within. Its Markdown is kept, and its HTML is not."""
    return "\n".join(f"> {line}".rstrip() for line in visible(text).replace("<", "&lt;").split("\n"))


def _fenced(text: str) -> str:
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


# HTML

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --dim: light-dark(#555, #aaa); --user: #2a7de1 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .85rem; margin-bottom: 2rem }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
td:first-child { color: var(--dim) }
article { border-left: 3px solid var(--line); margin: 1rem 0; padding: .1rem 0 .1rem .8rem }
article.user { border-color: var(--user) }
header { font-size: .8rem; color: var(--dim) }
.text, pre { white-space: pre-wrap; margin: .3rem 0 }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0 .5rem 1rem; padding: .3rem .7rem }
summary { cursor: pointer }
summary small { color: var(--dim) }
details.error summary b { color: light-dark(#b00020, #ff8a80) }
pre { background: var(--soft); padding: .5rem; border-radius: .3rem; font-size: .85rem }
"""


def _html(session: Session) -> Iterator[str]:
    title = safe(session.title or session.id)
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{facts_html(_facts(session))}"
    )
    for record in conversation(session):
        yield _tool_html(record) if isinstance(record, ToolCall) else _message_html(record)
    yield "</body></html>"


def _message_html(record: Message | Question) -> str:
    texts = "".join(
        f'{f"<header>{label}</header>" if label else ""}<div class="text">{safe(text)}</div>'
        for label, text in _parts(record)
        if text
    )
    about = f"<header>{safe(_name(record))} · {safe(_about(record))}</header>"
    role = record.role if isinstance(record, Message) else "question"
    return f'<article class="{safe(role)}">{about}{texts}</article>'


def _tool_html(call: ToolCall) -> str:
    parts = "".join(f"<header>{label}</header><pre>{safe(text)}</pre>" for label, text in _parts(call))
    about = f"<b>{safe(call.name)}</b> <small>{safe(_about(call))}</small>"
    return f'<details class="{safe(call.status)}"><summary>{about}</summary>{parts}</details>'
