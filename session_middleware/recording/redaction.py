"""The ``redact`` and ``record`` settings, applied to all entries before they are stored.

State and checkpoints are not changed. An entry's `flags` name each change: ``"redacted:emails"``,
``"redacted"`` for a user's function, ``"withheld:arguments"``, ``"withheld:result"``, ``"withheld:value"``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from session_middleware.settings import DETECTORS, RECORDED, Record, Redact
from session_middleware.storage.jsonable import plain
from session_middleware.storage.record_entries import (
    AnswerEntry,
    Entry,
    HistoryEntry,
    MessageEntry,
    ModelCallEntry,
    QuestionEntry,
    RunEnd,
    ToolEnd,
    ToolStart,
)

Detector = Callable[[str], str]
T = TypeVar("T", bound=Entry)
E = TypeVar("E", MessageEntry, ToolStart, ToolEnd, ModelCallEntry, QuestionEntry, AnswerEntry)

_HELD_BACK = 256  # characters at the end of a streamed text that are not recorded yet: a secret may begin there
_NUMBER_CHARACTERS = string.digits + " -"
_WORD_CHARACTERS = string.ascii_letters + string.digits + "_.+%@~/=-"  # of addresses and keys

# Each pattern takes linear time for any text: possessive quantifiers prevent a second match attempt inside a run
# of characters.
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
    """Validate the check digit of a card number (Luhn)."""
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

_ARGUMENT_FIELDS = ("args", "error")  # of a tool call; the error of an invalid call quotes its arguments


class RedactionPolicy:
    def __init__(
        self, redact: Redact = None, record: Record = "all", *, on_error: Callable[[Exception], None] = lambda _: None
    ) -> None:
        names = () if redact is None or callable(redact) else redact
        self._detectors: list[tuple[str, Detector]] = [(f"redacted:{name}", _DETECTORS[name]) for name in names]
        if callable(redact):
            self._detectors.append(("redacted", redact))
        self._record = record
        self._on_error = on_error
        self.changes_entries = record != "all" or bool(self._detectors)

    def partial_text(self, text: str, *, cut_off: bool) -> str:
        """Return the part of a streamed or cut-off text that contains no beginning of a secret."""
        if not self._detectors:
            return text
        text = text if cut_off else text[:-_HELD_BACK]
        return min(text.rstrip(_NUMBER_CHARACTERS), text.rstrip(_WORD_CHARACTERS), key=len)

    def is_recorded(self, kind: str, tool: str | None = None) -> bool:
        """Return whether a kind of `RECORDED` is recorded: for an unnamed tool, whether it is for every tool."""
        if self._record == "all":
            return True
        if not isinstance(self._record, Mapping):
            return kind in self._record
        default = self._record.get("*", RECORDED)
        if tool is None and kind.startswith("tool_"):
            return all(kind in kinds for kinds in (default, *self._record.values()))
        return kind in self._record.get(tool or "*", default)

    def redacted(self, value: Any) -> Any:
        """Return a JSON value as the record would have it."""
        return self._redact(value, [])

    def entries(self, entries: Iterable[T]) -> list[T]:
        """Return redacted entries, without those that the ``record`` setting excludes."""
        return [cast("T", redacted) for entry in entries if (redacted := self._entry(entry)) is not None]

    def _entry(self, entry: Entry) -> Entry | None:
        match entry:
            case MessageEntry():
                return self._message(entry) if self.is_recorded("messages") else None
            case HistoryEntry():
                return entry._replace(messages=self.entries(entry.messages)) if self.is_recorded("messages") else None
            case ToolStart() if not self.is_recorded("tool_arguments", entry.name):
                return entry._replace(arguments=None, flags=(*entry.flags, "withheld:arguments"))
            case ToolStart():
                return self._redacted(entry, "arguments")
            case ToolEnd() if not self.is_recorded("tool_results", entry.name):
                error = entry.error and entry.error.partition(":")[0]  # the exception's type
                return entry._replace(result=None, artifact=None, error=error, flags=(*entry.flags, "withheld:result"))
            case ToolEnd():
                return self._redacted(entry, "result", "artifact", "error")
            case ModelCallEntry():
                return self._redacted(entry, "error") if self.is_recorded("model_calls") else None
            case QuestionEntry() | AnswerEntry() if not self._is_recorded_whole:
                return entry._replace(value=None, flags=(*entry.flags, "withheld:value"))
            case QuestionEntry():
                return self._redacted(entry, "value")
            case AnswerEntry():
                return self._redacted(entry, "value")
            case RunEnd():
                return entry._replace(error=self._redact(entry.error, []))

    @property
    def _is_recorded_whole(self) -> bool:
        """Whether a value is recorded that may quote messages and the arguments of tools."""
        return self.is_recorded("messages") and self.is_recorded("tool_arguments")

    def plain(self, value: Any) -> Any:
        """A value without entry, such as the labels of a run, redacted."""
        return self._redact(value, [])

    def _redacted(self, entry: E, *names: str) -> E:
        """Redact the fields with these names."""
        flags = list(entry.flags)
        fields = {name: self._redact(getattr(entry, name), flags) for name in names}
        return entry._replace(**fields, flags=tuple(dict.fromkeys(flags)))

    def _message(self, message: MessageEntry) -> MessageEntry:
        if message.role == "tool" and not self.is_recorded("tool_results", message.name):
            extra = {"status": "error"} if message.tool_error else None
            withheld = message._replace(text="", content=None, artifact=None, extra=extra, files=())
            return withheld._replace(flags=(*message.flags, "withheld:result"))
        redacted = self._redacted(message, "text", "content", "name", "artifact")
        flags = list(redacted.flags)
        return redacted._replace(
            tool_calls=[self._call(call, flags) for call in message.tool_calls],
            extra=self._fields(message.extra or {}, flags) or None,
            call=message.call if self.is_recorded("model_calls") else None,
            flags=tuple(dict.fromkeys(flags)),
        )

    def _fields(self, fields: Mapping[str, Any], flags: list[str]) -> dict[str, Any]:
        """Redact the values, but not the names and not the status of a tool."""
        return {name: value if name == "status" else self._redact(value, flags) for name, value in fields.items()}

    def _call(self, call: dict[str, Any], flags: list[str]) -> dict[str, Any]:
        if self.is_recorded("tool_arguments", call.get("name")):
            return call | self._fields({name: call[name] for name in _ARGUMENT_FIELDS if name in call}, flags)
        flags.append("withheld:arguments")
        is_invalid = call.get("type") == "invalid_tool_call"
        return {**call, "args": None, "error": None} if is_invalid else {**call, "args": {}}

    def _text(self, text: str, flags: list[str]) -> str:
        for flag, detect in self._detectors if text else ():
            try:
                redacted = detect(text)
                if not isinstance(redacted, str):
                    raise TypeError(f"redact returned a {type(redacted).__name__}, not a str")
            except Exception as error:  # noqa: BLE001  # a text on which the user's function fails is not recorded
                self._on_error(error)
                flags.append("redacted")
                return "[not recorded: redaction failed]"
            if redacted != text:
                text = redacted
                flags.append(flag)
        return text

    def _redact(self, value: Any, flags: list[str]) -> Any:
        """Redact each text in a value. The flags of the changes are appended to `flags`."""
        if value is None or not self._detectors:
            return value
        return self._walk(value if isinstance(value, str) else plain(value), flags)

    def _walk(self, value: Any, flags: list[str]) -> Any:
        if isinstance(value, str):
            return self._text(str(value), flags)
        if isinstance(value, dict):
            found: dict[str, Any] = {}
            numbers: dict[str, int] = {}
            for key, part in value.items():
                found[_unique_key(found, self._walk(key, flags), numbers)] = self._walk(part, flags)
            return found
        return [self._walk(part, flags) for part in value] if isinstance(value, list) else value


def _unique_key(taken: Mapping[str, Any], key: str, numbers: dict[str, int]) -> str:
    """Return the key, with a number if redaction made it equal to another. `numbers` has the last one of each key."""
    name = key
    while name in taken:
        numbers[key] = numbers.get(key, 1) + 1
        name = f"{key} {numbers[key]}"
    return name
