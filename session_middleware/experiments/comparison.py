"""Where two sessions diverge: a value, and the functions that build it.

A step is a message or a tool call of the current branch; the answer of a tool is a part of its call. Equal steps are
aligned first, and the steps between them by kind and tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import SequenceMatcher
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from session_middleware.display.frames import data_frame
from session_middleware.display.html import MAX_ROWS, paragraph_html, table_html
from session_middleware.display.text import call_text, cost_text, duration_text, json_text, plural, shortened, visible
from session_middleware.experiments.current_branch import current_branch
from session_middleware.experiments.differences import differences, key_of
from session_middleware.models import Message, ModelCall, Stats, ToolCall, Value

if TYPE_CHECKING:
    from session_middleware.session import Session

Change: TypeAlias = Literal["same", "changed", "only_a", "only_b"]

_SIGNS: dict[Change, str] = {"same": " ", "changed": "~", "only_a": "-", "only_b": "+"}
_COMPARED = {"kind", "name", "text", "requests", "arguments", "result", "error", "status"}
_LINE_CHARACTERS = 110
_FOLDED = 3  # successive equal steps; more are shown as their number
_WINDOW = 500  # steps that are aligned by kind together, which takes quadratic time


class Step(Value):
    """A message, or a tool call with its result."""

    kind: Literal["system", "user", "assistant", "tool", "tool call"]
    seq: int
    name: str | None = None  # of the tool
    text: str = ""
    requests: tuple[str, ...] = ()  # the tools that an assistant's message asks for
    arguments: Any = None  # of a tool call; of an assistant's message those of requests without an answer
    result: Any = None
    error: str | None = None
    status: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    duration_ms: float | None = None  # of the tool, or of the model's call

    @property
    def line(self) -> str:
        if self.kind != "tool call":
            asks = f" (asks for {', '.join(self.requests)})" if self.requests else ""
            return shortened(f"{self.kind}: {self.text}", _LINE_CHARACTERS) + asks
        outcome = json_text(self.result if self.error is None else self.error)
        call = f"{call_text(self.name, self.arguments)} → {self.status}"
        return f"{call}: {outcome}" if outcome else call

    @property
    def content(self) -> dict[str, Any]:
        """What is compared: neither tokens, cost nor time."""
        return self.model_dump(include=_COMPARED)


class ComparedStep(Value):
    """A step of one session, or a pair of steps of both."""

    change: Change
    a: Step | None = None
    b: Step | None = None
    differences: tuple[str, ...] = ()  # such as ``arguments.city="Rome" → "Oslo"``

    @property
    def line(self) -> str:
        step = self.a or self.b
        assert step is not None
        return step.line


class Total(Value):
    """A number of both sessions, of all their branches. ``None``: not known."""

    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a


class Comparison(Value):
    """Where two sessions diverge. ``print`` shows text, a notebook tables, and `to_pandas` has a row per step."""

    a: str
    b: str
    steps: tuple[ComparedStep, ...] = ()
    totals: tuple[Total, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether all steps are the same: tokens, cost and time may differ."""
        return self.first_difference is None

    @property
    def first_difference(self) -> ComparedStep | None:
        return next((step for step in self.steps if step.change != "same"), None)

    @property
    def summary(self) -> str:
        counts = {change: sum(step.change == change for step in self.steps) for change in _SIGNS}
        names = {"same": "the same", "changed": "changed", "only_a": "only in a", "only_b": "only in b"}
        found = ", ".join(f"{count:,} {names[change]}" for change, count in counts.items() if count)
        return f"a = {self.a!r}, b = {self.b!r}: {plural(len(self.steps), 'step')}" + (f", {found}" if found else "")

    def __repr__(self) -> str:
        return f"<Comparison: {self.summary}>"

    def __str__(self) -> str:
        names = max((len(total.name) for total in self.totals), default=0)
        totals = (
            f"  {total.name:<{names}}  {_amount(total, total.a):>10}  {_amount(total, total.b):>10}  {_change(total)}"
            for total in self.totals
        )
        head = f"  {'':<{names}}  {'a':>10}  {'b':>10}"
        return visible("\n".join(line.rstrip() for line in (self.summary, "", head, *totals, "", *self._lines())))

    def _lines(self) -> Iterator[str]:
        for is_same, group in groupby(self.steps, key=lambda step: step.change == "same"):
            steps = list(group)
            if is_same and len(steps) > _FOLDED:
                yield f"  … {plural(len(steps), 'same step')}"
                continue
            for step in steps:
                yield f"{_SIGNS[step.change]} {step.line}"
                yield from (f"      {difference}" for difference in step.differences)

    def _repr_html_(self) -> str:
        totals = [[one.name, _amount(one, one.a), _amount(one, one.b), _change(one)] for one in self.totals]
        steps = [
            [_SIGNS[step.change], step.a.line if step.a else "", step.b.line if step.b else "", _joined(step)]
            for step in self.steps[:MAX_ROWS]
        ]
        return (
            paragraph_html(self.summary)
            + table_html(["", "a", "b", "difference"], totals)
            + table_html(["", "a", "b", "differences"], steps, len(self.steps) - len(steps))
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row per step: ``change``, ``differences``, and the fields of a `Step` for each session.

        Raises `MissingExtra` if pandas is not installed.
        """
        columns = ("change", "differences", *(f"{side}_{name}" for name in Step.model_fields for side in "ab"))
        return data_frame(map(_row, self.steps), columns)


def _row(step: ComparedStep) -> dict[str, Any]:
    sides = {"a": step.a, "b": step.b}
    fields = {f"{side}_{name}": value for side, one in sides.items() if one for name, value in one}
    return {"change": step.change, "differences": _joined(step), **fields}


def _joined(step: ComparedStep) -> str:
    return "; ".join(step.differences)


def _amount(total: Total, value: float | None) -> str:
    if value is None or total.name == "cost":
        return cost_text(value)
    return duration_text(value) if total.name == "time" else f"{value:,.0f}"


def _change(total: Total) -> str:
    change = total.difference
    if not change:
        return ""
    return ("+" if change > 0 else "-") + _amount(total, abs(change))


# Building


def comparison_of(a: Session, b: Session) -> Comparison:
    """Compare the current branches of two sessions, and the totals of all their branches."""
    steps = tuple(_aligned(_steps_of(a), _steps_of(b)))
    return Comparison(a=a.id, b=b.id, steps=steps, totals=_totals(a.stats(), b.stats()))


def _steps_of(session: Session) -> list[Step]:
    """In the order of the conversation. A fork has the answers of tools, but not their executions."""
    messages, tool_calls = current_branch(session)
    executions = {(call.message_id, call.tool_call_id): call for call in tool_calls}  # the latest attempts
    known = {call_id for _, call_id in executions} | {message.tool_call_id for message in messages}
    models = {call.message_id: call for call in session.model_calls()}
    requests: dict[Any, tuple[str, dict[str, Any]]] = {}
    found: list[tuple[float, Step]] = []
    for message in messages:
        requests |= {call.get("id"): (message.message_id, call) for call in message.tool_calls}
        if message.tool_call_id is None:
            step = _of_message(message, models.get(message.message_id), known)
        else:
            by, request = requests.get(message.tool_call_id, (None, {}))
            step = _of_answer(message, request, executions.pop((by, message.tool_call_id), None))
        found.append((message.position, step))
    found += [(float(call.seq), _of_call(call)) for call in executions.values()]
    return [step for _, step in sorted(found, key=lambda each: each[0])]


def _of_message(message: Message, call: ModelCall | None, known: set[str | None]) -> Step:
    open_ = [call for call in message.tool_calls if call.get("id") not in known]
    return Step(
        kind=message.role,
        seq=message.seq,
        name=message.name,
        text=message.text,
        requests=tuple(str(call.get("name")) for call in message.tool_calls),
        arguments=[call.get("args") for call in open_] or None,
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        cost=None if call is None else call.cost,
        duration_ms=None if call is None else call.duration_ms,
    )


def _of_answer(message: Message, request: Mapping[str, Any], call: ToolCall | None) -> Step:
    failed = (message.extra or {}).get("status") == "error"
    return Step(
        kind="tool call",
        seq=message.seq,
        name=request.get("name") or message.name,
        arguments=request.get("args"),
        result=message.text if message.content is None else message.content,
        status="error" if failed else "ok",
        duration_ms=None if call is None else call.duration_ms,
    )


def _of_call(call: ToolCall) -> Step:
    """A call without an answer in the conversation."""
    names = ("seq", "name", "arguments", "result", "error", "status", "duration_ms")
    return Step(kind="tool call", **{name: getattr(call, name) for name in names})


def _totals(a: Stats, b: Stats) -> tuple[Total, ...]:
    counts = {
        "messages": "message_count",
        "tool calls": "tool_call_count",
        "model calls": "model_call_count",
        "errors": "error_count",
        "input tokens": "input_tokens",
        "output tokens": "output_tokens",
        "cost": "cost",
    }
    totals = [Total(name=name, a=getattr(a, field), b=getattr(b, field)) for name, field in counts.items()]
    unit = timedelta(milliseconds=1)
    return (*totals, Total(name="time", a=a.duration / unit, b=b.duration / unit))


def _aligned(a: Sequence[Step], b: Sequence[Step]) -> Iterator[ComparedStep]:
    matcher = SequenceMatcher(None, [key_of(step.content) for step in a], [key_of(step.content) for step in b])
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from (ComparedStep(change="same", a=x, b=y) for x, y in zip(a[i:i_end], b[j:j_end], strict=True))
        else:
            for start in range(0, max(i_end - i, j_end - j), _WINDOW):
                of_a, of_b = (steps[start : start + _WINDOW] for steps in (a[i:i_end], b[j:j_end]))
                yield from _by_kind(of_a, of_b)


def _by_kind(a: Sequence[Step], b: Sequence[Step]) -> Iterator[ComparedStep]:
    """Align steps none of which are equal."""
    of_a, of_b = ([(step.kind, step.name) for step in steps] for steps in (a, b))
    for tag, i, i_end, j, j_end in SequenceMatcher(None, of_a, of_b, autojunk=False).get_opcodes():
        if tag == "equal":
            for x, y in zip(a[i:i_end], b[j:j_end], strict=True):
                yield ComparedStep(change="changed", a=x, b=y, differences=tuple(differences(x.content, y.content)))
        else:
            yield from (ComparedStep(change="only_a", a=step) for step in a[i:i_end])
            yield from (ComparedStep(change="only_b", b=step) for step in b[j:j_end])
