"""How the scripted model decides: from the messages alone to a tool to call, or a text to say.

Pure functions of the history, like a real model: nothing is kept between calls, so whatever it
knows of earlier turns it knows because the thread was restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from session_middleware.demo import sales

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about and any are at be by can could did do does file files for from have how i in is it list me my of on or"
        " our please read say says shop should show tell that the there they this to us was we what when where which"
        " who will with would you your",
    )
)
_NAME = re.compile(r"\b(?:my name is|call me|i am called)\s+([^\W\d_][\w'-]*)", re.IGNORECASE)
_ASKS_NAME = re.compile(r"\b(what(?:'s| is| was) my name|who am i|do you (?:know|remember) my name)\b", re.IGNORECASE)
_ASKS_HISTORY = re.compile(r"\bwhat (?:did|have) i (?:ask|say|said|asked)\b", re.IGNORECASE)
_FILE_NAME = re.compile(r"\b[\w-]+\.(?:txt|csv|md)\b")
_ABOUT_LISTING = re.compile(r"\b(?:list|which|what) (?:the |are the |all )?files\b", re.IGNORECASE)
_ABOUT_FILES = re.compile(
    r"\b(?:files?|polic\w+|read|refund\w*|return\w*|exchange\w*|hours|open\w*|closed?|sunday|saturday|shipp\w+"
    r"|deliver\w*|postage|products?|notes?|waterproof|wash\w*|weigh\w*|lumens?|abroad)\b",
    re.IGNORECASE,
)
_ABOUT_REPORT = re.compile(r"\b(?:report|export)\b", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_ARITHMETIC = re.compile(r"[-(\s]*\d[\d.,]*(?:\s*\)*\s*(?:\*\*|//|[-+*/%^x\u00d7])\s*[-(\s]*\d[\d.,]*)+(?:\s*\))*")
_DATE = re.compile(r"\d{4}-\d{2}(?:-\d{2})?")

INTRODUCTION = (
    "I am the built-in scripted model: I follow rules and need no key. I can read the shop's files (try"
    ' "What is our refund policy?"), query its sales ("Which product has the highest revenue?"), calculate'
    ' ("What is 17 * 23?"), export a report, and I know what was said earlier in this session.'
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says next: a text, or one tool it wants called."""

    text: str = ""
    tool: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def decide(messages: Sequence[BaseMessage], tools: Collection[str]) -> Reply:
    """The next step of the conversation, given the names of the tools that may be called."""
    at = max((i for i, message in enumerate(messages) if isinstance(message, HumanMessage)), default=None)
    if at is None:
        return Reply(INTRODUCTION)
    question = messages[at].text
    answer = messages[-1]
    if isinstance(answer, ToolMessage):
        reply = _go_on(question, answer, messages[at + 1 :])
    else:
        reply = _begin(question, messages[:at])
    if reply.tool is not None and reply.tool not in tools:
        return Reply(f"I would call {reply.tool} for that, but I was given no such tool.")
    return reply


# The first step of a turn


def _begin(question: str, earlier: Sequence[BaseMessage]) -> Reply:
    said = [message.text for message in earlier if isinstance(message, HumanMessage)]
    if _ASKS_HISTORY.search(question):
        return Reply(_recount(said))
    if _ASKS_NAME.search(question):
        return Reply(_name_in([*said, question]))
    if _ABOUT_REPORT.search(question) and not _FILE_NAME.search(question):
        return Reply(tool="export_report")
    if (expression := arithmetic_in(question)) is not None:
        return Reply(tool="calculate", arguments={"expression": expression})
    return _look_up(question)


def _look_up(question: str) -> Reply:
    if (name := _FILE_NAME.search(question)) is not None:
        return Reply(tool="read_file", arguments={"name": name[0]})
    if sales.is_asked(question, besides_files=_ABOUT_FILES.search(question) is None):
        return Reply(tool="query_sales", arguments={"sql": sales.understand(question).sql()})
    if _ABOUT_FILES.search(question) or sales.products_in(question):
        return Reply(tool="list_files")
    if (name := _NAME.search(question)) is not None:
        return Reply(f"Nice to meet you, {name[1]}. Ask me for your name later, in this session.")
    return Reply(INTRODUCTION)


def _recount(said: Sequence[str]) -> str:
    if not said:
        return "This is the first thing you say in this session."
    lines = "\n".join(f"{number}. {text}" for number, text in enumerate(said, start=1))
    return f"Earlier in this session you said:\n{lines}"


def _name_in(said: Sequence[str]) -> str:
    names = [match[1] for text in said for match in _NAME.finditer(text)]
    if names:
        return f"Your name is {names[-1]}: you told me earlier in this session."
    return "You have not told me your name in this session."


def arithmetic_in(question: str) -> str | None:
    """The expression a question contains, written for `calculate`; ``None`` when there is none."""
    if (share := _PERCENT.search(question)) is not None:
        return f"{share[1]} / 100 * {share[2].replace(',', '')}"
    for match in _ARITHMETIC.finditer(_DATE.sub(" ", question)):
        text = match[0].strip().rstrip(".,").replace(",", "").replace("^", "**")
        text = text.replace("x", "*").replace("\u00d7", "*")
        if text.count("(") == text.count(")"):
            return text
    return None


# After a tool has answered


def _go_on(question: str, answer: ToolMessage, turn: Sequence[BaseMessage]) -> Reply:
    call = _call_of(answer, turn)
    if answer.status == "error":
        return Reply(f"That did not work: {answer.text}")
    if call["name"] == "read_file":
        return _after_read(question, turn)
    compose = _COMPOSERS.get(call["name"])
    return compose(question, answer.text, call["args"]) if compose else Reply(f"The answer is: {answer.text}")


def _call_of(answer: ToolMessage, turn: Sequence[BaseMessage]) -> dict[str, Any]:
    for call in _calls(turn):
        if call["id"] == answer.tool_call_id:
            return dict(call)
    return {"name": answer.name, "args": {}}


def _calls(turn: Sequence[BaseMessage]) -> list[ToolCall]:
    return [call for message in turn if isinstance(message, AIMessage) for call in message.tool_calls]


def _after_list(question: str, result: str, _: dict[str, Any]) -> Reply:
    ranked = _ranked(question, result)
    if _ABOUT_LISTING.search(question):
        return Reply(f"There are {len(ranked)} files: {', '.join(sorted(ranked))}.")
    return Reply(tool="read_file", arguments={"name": ranked[0]})


def _after_read(question: str, turn: Sequence[BaseMessage]) -> Reply:
    """Quote the lines that are about the question; read on while hardly any of its words was found."""
    files = _files_read(turn)
    asked = _stems(_NAME.sub("", question))
    lines = [(name, line) for name, text in files.items() for line in text.splitlines()[1:] if line.strip()]
    likely = _likely(asked, lines)
    found = max((len(asked & _stems(f"{name} {line}")) for name, line in likely), default=0)
    unread = [name for name in _listed(question, turn) if name not in files]
    if unread and 2 * found <= len(asked):
        return Reply(tool="read_file", arguments={"name": unread[0]})
    if not likely and not _FILE_NAME.search(question):
        return Reply("I read all the files, and none of them says anything about that.")
    name = likely[0][0] if likely else lines[0][0]
    chosen = [line for file, line in (likely or lines) if file == name][:2]
    return Reply(f"{name} says: " + " ".join(line for file, line in lines if file == name and line in chosen))


def _likely(asked: set[str], lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines that share words with the question, best first; a word few lines have weighs more."""
    in_lines = [_stems(line) for _, line in lines]
    weights = {stem: 1 / max(1, sum(stem in stems for stems in in_lines)) for stem in asked}
    scores = [sum(weights[stem] for stem in asked & stems) for stems in in_lines]
    order = sorted(range(len(lines)), key=lambda at: -scores[at])
    return [lines[at] for at in order if scores[at] > 0]


def _files_read(turn: Sequence[BaseMessage]) -> dict[str, str]:
    """Name and text of the files this turn has read."""
    texts = {message.tool_call_id: message.text for message in turn if isinstance(message, ToolMessage)}
    calls = [call for call in _calls(turn) if call["name"] == "read_file"]
    return {call["args"]["name"]: texts[call["id"] or ""] for call in calls}


def _listed(question: str, turn: Sequence[BaseMessage]) -> list[str]:
    """The files a listing of this turn named, the likeliest first."""
    listings = {call["id"] for call in _calls(turn) if call["name"] == "list_files"}
    for message in turn:
        if isinstance(message, ToolMessage) and message.tool_call_id in listings:
            return _ranked(question, message.text)
    return []


def _ranked(question: str, listing: str) -> list[str]:
    lines = sorted(listing.splitlines(), key=lambda line: -len(_stems(question) & _stems(line)))
    return [line.split()[0] for line in lines]


def _after_query(question: str, result: str, _: dict[str, Any]) -> Reply:
    return Reply(sales.answer(question, result))


def _after_calculation(_question: str, result: str, arguments: dict[str, Any]) -> Reply:
    return Reply(f"{arguments.get('expression')} = {result}")


def _after_report(_question: str, result: str, _: dict[str, Any]) -> Reply:
    return Reply(f"Done: the tool {result}.")


_COMPOSERS: dict[str, Callable[[str, str, dict[str, Any]], Reply]] = {
    "list_files": _after_list,
    "query_sales": _after_query,
    "calculate": _after_calculation,
    "export_report": _after_report,
}


def _stems(text: str) -> set[str]:
    """Words cut to four letters, so that "refund" finds "refunds" and "open" finds "opening"."""
    return {word[:4] for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in _STOP_WORDS}
