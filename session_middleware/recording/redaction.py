"""What the record keeps: the ``redact`` and ``record`` settings, applied to all that is on its way to storage.

Live state is not touched. What was taken out of a row is told in its `marks`: ``"redacted:emails"``,
``"redacted"`` by a function of the user's, ``"withheld:arguments"``, ``"withheld:result"``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from session_middleware.settings import DETECTORS, RECORDED, Record, Redact
from session_middleware.storage.jsonable import plain
from session_middleware.storage.record_entries import (
    Entry,
    HistoryEntry,
    MessageEntry,
    ModelCallEntry,
    RunEnd,
    ToolEnd,
    ToolStart,
)

Detector = Callable[[str], str]

_HELD_BACK = 256  # characters at the end of a text that is still streamed, for functions of the user's
_OF_NUMBERS = string.digits + " -"
_OF_WORDS = string.ascii_letters + string.digits + "_.+%@~/=-"  # of addresses and keys

# Each takes time in proportion to the text, whatever is in it: a run of characters is looked at once from its
# beginning, and not again from each of them.
_EMAIL = re.compile(r"[\w.+%-]++(@[\w-]++(?:\.[\w-]++)*\.[A-Za-z]{2,})?")
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abeprs]-|npm_|pypi-)[A-Za-z0-9_-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*",
    re.DOTALL,
)
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}+(\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]+)?")  # a JSON Web Token
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]?\d)")


def _is_card(digits: str) -> bool:
    """By the check digit that card numbers have."""
    numbers = [int(digit) for digit in reversed(digits)]
    doubled = [sum(divmod(2 * number, 10)) for number in numbers[1::2]]
    return 13 <= len(numbers) <= 19 and (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def _redact_card(found: re.Match[str]) -> str:
    return "[redacted card number]" if _is_card(re.sub(r"\D", "", found[0])) else found[0]


def _redact_emails(text: str) -> str:
    return _EMAIL.sub(lambda found: "[redacted email]" if found[1] else found[0], text) if "@" in text else text


def _redact_keys(text: str) -> str:
    text = _KEY.sub("[redacted key]", text)
    return _TOKEN.sub(lambda found: "[redacted key]" if found[1] else found[0], text)


_DETECTORS: Mapping[str, Detector] = {
    "emails": _redact_emails,
    "keys": _redact_keys,
    "card_numbers": lambda text: _CARD.sub(_redact_card, text),
}
assert frozenset(_DETECTORS) == DETECTORS

_OF_ARGUMENTS = ("args", "error")  # of a tool call; the error is of one that could not be parsed, and quotes it


class RedactionPolicy:
    """Entries as the record keeps them."""

    def __init__(
        self, redact: Redact = None, record: Record = "all", *, tell: Callable[[Exception], None] = lambda _: None
    ) -> None:
        names = () if redact is None or callable(redact) else redact
        self._detectors: list[tuple[str, Detector]] = [(f"redacted:{name}", _DETECTORS[name]) for name in names]
        if callable(redact):
            self._detectors.append(("redacted", redact))
        self._record = record
        self._tell = tell

    def begun(self, text: str, *, cut_off: bool) -> str:
        """What may be kept of a text that is still streamed, or was cut off: not what a secret may begin with."""
        if not self._detectors:
            return text
        text = text if cut_off else text[:-_HELD_BACK]
        return min(text.rstrip(_OF_NUMBERS), text.rstrip(_OF_WORDS), key=len)

    def keeps(self, kind: str, tool: str | None = None) -> bool:
        """Whether one of `RECORDED` is kept; of a tool whose name is not known, if it is of every tool."""
        if self._record == "all":
            return True
        if not isinstance(self._record, Mapping):
            return kind in self._record
        default = self._record.get("*", RECORDED)
        if tool is None and kind.startswith("tool_"):
            return all(kind in kinds for kinds in (default, *self._record.values()))
        return kind in self._record.get(tool or "*", default)

    def entries(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those that are kept, as they are kept."""
        if self._record == "all" and not self._detectors:
            return list(entries)
        return [kept for entry in entries if (kept := self._entry(entry)) is not None]

    def messages(self, messages: Sequence[MessageEntry]) -> list[MessageEntry]:
        """As `entries`."""
        if self._record == "all" and not self._detectors:
            return list(messages)
        return [self._message(message) for message in messages] if self.keeps("messages") else []

    def _entry(self, entry: Entry) -> Entry | None:
        if isinstance(entry, MessageEntry):
            return self._message(entry) if self.keeps("messages") else None
        if isinstance(entry, HistoryEntry):
            kept = [self._message(message) for message in entry.messages]
            return entry._replace(messages=kept) if self.keeps("messages") else None
        if isinstance(entry, ToolStart):
            return self._start(entry)
        if isinstance(entry, ToolEnd):
            return self._end(entry)
        if isinstance(entry, ModelCallEntry):
            error, marks = self._text(entry.error)
            return entry._replace(error=error, marks=(*entry.marks, *marks)) if self.keeps("model_calls") else None
        if isinstance(entry, RunEnd):
            return entry._replace(error=self._text(entry.error)[0])
        return entry

    def _message(self, message: MessageEntry) -> MessageEntry:
        if message.role == "tool" and not self.keeps("tool_results", message.name):
            extra = {"status": "error"} if message.tool_error else None
            left = message._replace(text="", content=None, artifact=None, extra=extra, files=())
            return left._replace(marks=(*message.marks, "withheld:result"))
        text, marks = self._text(message.text)
        content, more = self._value(message.content)
        calls, others = self._calls(message.tool_calls)
        name, of_name = self._text(message.name)
        artifact, of_artifact = self._value(message.artifact)
        extra, of_extra = self._fields(message.extra or {})
        marks = tuple(dict.fromkeys((*message.marks, *marks, *more, *others, *of_name, *of_artifact, *of_extra)))
        call = message.call if self.keeps("model_calls") else None
        kept = message._replace(
            text=text or "", content=content, artifact=artifact, tool_calls=calls, name=name, call=call
        )
        return kept._replace(extra=extra or None, marks=marks)

    def _fields(self, fields: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
        """The values of a message's fields redacted; their names, and whether a tool failed, are nobody's words."""
        found: dict[str, Any] = {}
        marks: list[str] = []
        for name, value in fields.items():
            found[name], more = (value, ()) if name == "status" else self._value(value)
            marks += more
        return found, marks

    def _calls(self, calls: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], Sequence[str]]:
        found: list[dict[str, Any]] = []
        marks: list[str] = []
        for call in calls:
            if self.keeps("tool_arguments", call.get("name")):
                told, more = self._fields({name: call[name] for name in _OF_ARGUMENTS if name in call})
            else:
                told = {"args": None, "error": None} if call.get("type") == "invalid_tool_call" else {"args": {}}
                more = ("withheld:arguments",)
            found.append({**call, **told})
            marks += more
        return found, marks

    def _start(self, call: ToolStart) -> ToolStart:
        if not self.keeps("tool_arguments", call.name):
            return call._replace(arguments=None, marks=(*call.marks, "withheld:arguments"))
        arguments, marks = self._value(call.arguments)
        return call._replace(arguments=arguments, marks=(*call.marks, *marks))

    def _end(self, call: ToolEnd) -> ToolEnd:
        if not self.keeps("tool_results", call.name):
            error = call.error and call.error.partition(":")[0]
            return call._replace(result=None, artifact=None, error=error, marks=(*call.marks, "withheld:result"))
        result, marks = self._value(call.result)
        artifact, more = self._value(call.artifact)
        error, others = self._text(call.error)
        marks = tuple(dict.fromkeys((*call.marks, *marks, *more, *others)))
        return call._replace(result=result, artifact=artifact, error=error, marks=marks)

    def _text(self, text: str | None) -> tuple[str | None, Sequence[str]]:
        marks = []
        for mark, detect in self._detectors if text else ():
            try:
                redacted = detect(str(text))
                if not isinstance(redacted, str):
                    raise TypeError(f"redact gave back a {type(redacted).__name__}")
            except Exception as error:  # noqa: BLE001  # it is the user's function: what it fails on is not kept
                self._tell(error)
                return "[not kept: redacting it failed]", ("redacted",)
            if redacted != text:
                text = redacted
                marks.append(mark)
        return text, marks

    def _value(self, value: Any) -> tuple[Any, Sequence[str]]:
        """A value with each of its texts redacted."""
        if value is None or not self._detectors:
            return value, ()
        marks: list[str] = []
        return self._walk(plain(value), marks), tuple(dict.fromkeys(marks))

    def _walk(self, value: Any, marks: list[str]) -> Any:
        if isinstance(value, str):
            text, more = self._text(value)
            marks += more
            return text
        if isinstance(value, dict):
            found: dict[str, Any] = {}
            numbers: dict[str, int] = {}
            for key, part in value.items():
                found[_other_than(found, self._walk(key, marks), numbers)] = self._walk(part, marks)
            return found
        return [self._walk(part, marks) for part in value] if isinstance(value, list) else value


def _other_than(taken: Mapping[str, Any], key: str, numbers: dict[str, int]) -> str:
    """The key, or with a number what several keys became when they were redacted; `numbers` go on from the last."""
    name = key
    while name in taken:
        numbers[key] = numbers.get(key, 1) + 1
        name = f"{key} {numbers[key]}"
    return name
