"""A session as a waterfall: its runs, and in each the calls of models and tools on the time axis of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from session_middleware.integrations.server.page.conversation import Place
from session_middleware.models import Event, Message, ModelCall, Question, Run, ToolCall
from session_middleware.session import Session
from session_middleware.storage.timeline import Node

PAGE = 300  # records
_MILLISECOND = timedelta(milliseconds=1)
_UNSHOWN_EVENTS = frozenset({"resumed", "opened", "connected"})
Timed = ModelCall | ToolCall


@dataclass(frozen=True)
class Span:
    """A line of the waterfall. `begin` and `width` are fractions of the axis; ``None``: it has no bar."""

    kind: str  # "model", "tool", "node", "question" or "event"
    depth: int
    name: str
    record: ModelCall | ToolCall | Question | Event | None = None
    answer: Message | None = None  # of a model call
    begin: float | None = None
    width: float = 0.0
    is_running: bool = False
    is_failed: bool = False


@dataclass(frozen=True)
class RunTrace:
    """A run with its lines. Without a run: what was recorded outside of runs."""

    run: Run | None
    duration_ms: float  # the length of its axis
    asked: Message | None = None  # the user's message that it began with
    spans: list[Span] = field(default_factory=list)

    @property
    def ticks(self) -> list[tuple[float, float]]:
        """Fractions of the axis, and the milliseconds there."""
        return [(part, part * self.duration_ms) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]


class Trace(NamedTuple):
    """What the view of a trace shows: runs with their calls on one axis of time."""

    runs: list[RunTrace]  # the latest first
    first_seq: int
    has_earlier: bool
    has_later: bool


async def trace_of(session: Session, now: datetime, place: Place) -> Trace:
    """A page of the record by run: the last one, or the one before a seq."""
    if place.since is not None:
        page = await session.atimeline(after=place.since - 1, last=4 * PAGE)
    else:
        page = await session.atimeline(before=place.before, last=PAGE)
    first = page[0].seq if page else 0
    has_earlier = first > 1
    answers = {record.message_id: record for record in page if isinstance(record, Message)}
    runs = [_run_trace([node], answers, now) for node in page.tree if isinstance(node.record, Run)]
    outside = [node for node in page.tree if not isinstance(node.record, Run)]
    if (found := _run_trace(outside, answers, now)).spans:
        runs.append(found)
    return Trace(runs[::-1], first, has_earlier, place.before is not None)


def _run_trace(nodes: Sequence[Node], answers: dict[str, Message], now: datetime) -> RunTrace:
    """The trace of a run, the only node; or of the nodes outside of runs."""
    run = nodes[0].record if nodes and isinstance(nodes[0].record, Run) else None
    flat = [(depth, child) for node in nodes for depth, child in node.walk()]
    timed = [child.record for _, child in flat if isinstance(child.record, Timed) and child.record.started_at]
    begin = run.started_at if run else min((one.started_at for one in timed if one.started_at), default=now)
    is_live = run is not None and run.outcome == "running"
    ends = [_end(one, now, is_live=is_live) for one in timed]
    if run is not None:
        ends.append(now if is_live else begin + _MILLISECOND * (run.duration_ms or 0.0))
    whole = max((end - begin for end in ends), default=timedelta()) / _MILLISECOND
    asked = next((one.record for _, one in flat if isinstance(one.record, Message) and one.record.role == "user"), None)
    spans = _spans(flat, answers, _Axis(begin, max(whole, 0.001), now, is_live=is_live))
    return RunTrace(run, whole, asked, spans)


class _Axis(NamedTuple):
    begin: datetime
    duration_ms: float
    now: datetime
    is_live: bool

    def place(self, record: Timed) -> tuple[float, float]:
        """The begin and the width of a bar, as fractions."""
        assert record.started_at is not None
        length = (_end(record, self.now, is_live=self.is_live) - record.started_at) / _MILLISECOND
        begin = (record.started_at - self.begin) / _MILLISECOND / self.duration_ms
        begin = min(max(begin, 0.0), 1.0)
        return begin, min(max(length / self.duration_ms, 0.0), 1.0 - begin)


def _end(record: Timed, now: datetime, *, is_live: bool) -> datetime:
    assert record.started_at is not None
    if record.duration_ms is None and is_live:
        return now
    return record.started_at + _MILLISECOND * (record.duration_ms or 0.0)


def _spans(flat: Sequence[tuple[int, Node]], answers: dict[str, Message], axis: _Axis) -> list[Span]:
    spans = []
    for _, node in flat:
        record, depth = node.record, node.namespace.count("|")
        if record is None and node.children and any("|" in child.namespace for child in node.children):
            spans.append(Span("node", depth, node.name))  # a subgraph, whose own nodes are below it
        elif isinstance(record, Question):
            spans.append(Span("question", depth, record.asked, record))
        elif isinstance(record, Event) and record.kind not in _UNSHOWN_EVENTS:
            spans.append(Span("event", depth, record.kind, record))
        elif isinstance(record, ModelCall | ToolCall):
            begin, width = axis.place(record) if record.started_at else (None, 0.0)
            is_running = axis.is_live and record.duration_ms is None and record.error is None
            is_failed = record.error is not None
            answer = None
            if isinstance(record, ModelCall):
                kind, name = "model", record.model or "a model"
                answer = answers.get(record.message_id or "")
                is_running = is_running and answer is None
            else:
                kind, name = "tool", record.name
                is_failed = record.status in ("error", "refused", "interrupted")
                is_running = record.status == "running"
            spans.append(Span(kind, depth, name, record, answer, begin, width, is_running, is_failed))
    return spans
