"""Where a replayed run departed from the record: values, and the functions that find it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from session_middleware.display.html import paragraph_html, rows_html
from session_middleware.display.text import call_text, plural, visible
from session_middleware.experiments.answers import problem_of
from session_middleware.experiments.differences import differences, likeness
from session_middleware.models import ToolCall, Value

DepartureKind: TypeAlias = Literal[
    "not on record", "other arguments", "no answer", "not made", "other order", "calls of models"
]


class MadeCall(Value):
    """A tool call of the replayed run."""

    name: str
    arguments: Any = None
    answered_by: ToolCall | None = None  # the recorded call
    problem: str | None = None  # why the record does not answer it


class Departure(Value):
    """One place where the run departed from the record. A `seq` is that of the recorded call."""

    columns: ClassVar = ("kind", "text", "seq")

    kind: DepartureKind
    text: str
    made: MadeCall | None = None
    recorded: ToolCall | None = None

    @property
    def seq(self) -> int | None:
        return None if self.recorded is None else self.recorded.seq


class ReplayReport(Value):
    """Where a replayed run departed from the record. ``print`` shows it as text, and a notebook as a table."""

    session_id: str
    recorded: int  # tool calls that the record has an answer to
    answered: int  # of these
    answers: int  # of models, on record
    answers_given: int | None = None  # None: no model was replayed
    departures: tuple[Departure, ...] = ()
    redacted: int = 0  # tool calls that were answered with a redacted text

    @property
    def followed(self) -> bool:
        """Whether the run made the recorded calls with the recorded arguments and in order, and no others."""
        return not self.departures

    @property
    def summary(self) -> str:
        counts = [f"{self.answered} of {plural(self.recorded, 'recorded tool call')} answered"]
        if self.answers_given is not None:
            counts.append(f"{self.answers_given} of {plural(self.answers, 'answer')} of models given")
        if self.redacted:
            counts.append(f"{self.redacted} with a redacted text")
        outcome = (
            "followed the record" if self.followed else f"departed from it in {plural(len(self.departures), 'place')}"
        )
        return f"replay of session {self.session_id!r}: {', '.join(counts)}; the run {outcome}"

    def __repr__(self) -> str:
        return f"<ReplayReport: {self.summary}>"

    def __str__(self) -> str:
        places = (f"  {departure.kind}: {departure.text}" for departure in self.departures)
        return visible("\n".join((self.summary, *places)))

    def _repr_html_(self) -> str:
        return paragraph_html(self.summary) + (rows_html(self.departures) if self.departures else "")


def report_of(
    session_id: str, calls: Sequence[ToolCall], made: Sequence[MadeCall], *, answers: int, asked: int | None
) -> ReplayReport:
    """Compare the calls that a run has made with the recorded ones; `asked` is how often it called a model.

    A call that is not on record is paired with the most similar recorded call of its tool that was not made.
    """
    answered = [(call, call.answered_by) for call in made if call.answered_by and call.problem is None]
    used = {call.answered_by.seq for call in made if call.answered_by}
    answerable = [call for call in calls if problem_of(call) is None]
    unmade = [call for call in answerable if call.seq not in used]
    unanswered = [*_unanswered(made, unmade)]
    return ReplayReport(
        session_id=session_id,
        recorded=len(answerable),
        answered=len(answered),
        answers=answers,
        answers_given=None if asked is None else min(answers, asked),
        departures=(
            *unanswered,
            *(Departure(kind="not made", text=_line(call), recorded=call) for call in unmade),
            *_out_of_order([recorded for _, recorded in answered]),
            *_of_models(answers, asked),
        ),
        redacted=sum(any(flag.startswith("redacted") for flag in recorded.flags) for _, recorded in answered),
    )


def _line(call: ToolCall | MadeCall) -> str:
    return call_text(call.name, call.arguments)


def _unanswered(made: Sequence[MadeCall], unmade: list[ToolCall]) -> Iterator[Departure]:
    """The calls that the record does not answer. Removes the recorded calls that they are paired with from `unmade`."""
    for call in made:
        if call.problem is None:
            continue
        if call.answered_by is not None:
            text = f"{_line(call)}: {call.problem}"
            yield Departure(kind="no answer", text=text, made=call, recorded=call.answered_by)
        elif not (pairs := [recorded for recorded in unmade if recorded.name == call.name]):
            yield Departure(kind="not on record", text=_line(call), made=call)
        else:
            pair = max(pairs, key=lambda recorded: likeness(recorded.arguments, call.arguments))
            unmade.remove(pair)
            changes = ", ".join(differences(pair.arguments, call.arguments)) or "called once more"
            yield Departure(kind="other arguments", text=f"{call.name}: {changes}", made=call, recorded=pair)


def _out_of_order(answered: Sequence[ToolCall]) -> Iterator[Departure]:
    """The calls made after calls that the record has later. The calls of one message have no order."""
    first: dict[str | int, int] = {}
    for call in answered:
        group = call.message_id or call.seq
        first[group] = min(call.seq, first.get(group, call.seq))
    latest: ToolCall | None = None
    for call in answered:
        seq = first[call.message_id or call.seq]
        if latest is not None and seq < first[latest.message_id or latest.seq]:
            yield Departure(kind="other order", text=f"{_line(call)} after {_line(latest)}", recorded=call)
        else:
            latest = call


def _of_models(answers: int, asked: int | None) -> Iterator[Departure]:
    if asked is not None and asked != answers:
        called = f"called {plural(asked, 'time')}, and the record has {plural(answers, 'answer')}"
        yield Departure(kind="calls of models", text=called)
