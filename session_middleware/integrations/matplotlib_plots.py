"""Plots of sessions on matplotlib, for notebooks: usage over turns, latency by tool, a run's waterfall, forks.

Each function draws on `ax`, or on a new figure of its own, and returns the axes. The figure can be changed and saved as
any other one. Colours are those of the current style.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from session_middleware import MissingExtra, Session, Sessions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from session_middleware.models import ModelCall, Run, ToolCall

_MILLISECOND = timedelta(milliseconds=1)
_KINDS = ("run", "model", "tool")


def plot_usage(session: Session, *, ax: Axes | None = None) -> Axes:
    """Tokens over the turns of a session, stacked, and the cost as a line on an axis of its own.

    A turn is a run with calls of models. The line is left out where no call has a known price.
    """
    runs = [run for run in session.runs() if run.input_tokens is not None or run.output_tokens is not None]
    axes = _axes(ax, width=7)
    turns = range(1, len(runs) + 1)
    inputs, outputs = ([getattr(run, name) or 0 for run in runs] for name in ("input_tokens", "output_tokens"))
    axes.bar(turns, inputs, label="input tokens")
    axes.bar(turns, outputs, bottom=inputs, label="output tokens")
    axes.set(xlabel="turn", ylabel="tokens", title=_text(f"Usage of {session.id}"))
    axes.locator_params(axis="x", integer=True)
    lines, labels = axes.get_legend_handles_labels()
    if any(run.cost is not None for run in runs):
        costs = axes.twinx()
        line = costs.plot(turns, [float("nan") if run.cost is None else run.cost for run in runs], "k.-", label="cost")
        costs.set(ylabel="cost, US dollars")
        costs.set_ylim(bottom=0)
        lines, labels = [*lines, *line], [*labels, "cost"]
    axes.legend(lines, labels)
    return axes


def plot_latency(calls: Iterable[ToolCall], *, ax: Axes | None = None) -> Axes:
    """The durations of tool calls by tool, as boxes from `Session.tool_calls` or `Sessions.tool_calls`; slowest first.

    Calls without a duration, such as those that are known from checkpoints alone, are left out.
    """
    durations: dict[str, list[float]] = {}
    for call in calls:
        if call.duration_ms is not None:
            durations.setdefault(call.name, []).append(call.duration_ms)
    ordered = sorted(durations.items(), key=lambda item: sorted(item[1])[len(item[1]) // 2])
    axes = _axes(ax, width=7, height=1 + 0.4 * max(len(ordered), 2))
    if ordered:
        axes.boxplot([values for _, values in ordered], orientation="horizontal")
        axes.set_yticklabels([_text(f"{name} ({len(values):,})") for name, values in ordered])
    axes.set(xlabel="milliseconds", title="Latency by tool")
    return axes


def plot_waterfall(session: Session, run: Run | str | None = None, *, ax: Axes | None = None) -> Axes:
    """The calls of models and tools in a run, as bars over the time since the run began.

    Args:
        run: a run of the session, or its id; by default the last one.
    """
    runs, wanted = session.runs(), getattr(run, "id", run)
    found = next((each for each in reversed(runs) if wanted in (None, each.id)), None)
    if found is None:
        raise ValueError(f"session {session.id!r} has no run {wanted!r}" if runs else f"{session.id!r} has no runs")
    bars: list[tuple[str, str, float, float]] = [("run", "run", 0.0, found.duration_ms or 0.0)]
    calls: list[ModelCall | ToolCall] = [*session.model_calls(), *session.tool_calls()]
    for call in sorted(calls, key=lambda each: each.seq):
        if call.run_id == found.id and call.started_at is not None:
            begin = max((call.started_at - found.started_at) / _MILLISECOND, 0.0)
            bars.append((*_name_of(call), begin, call.duration_ms or 0.0))
    axes = _axes(ax, width=7, height=1 + 0.35 * max(len(bars), 3))
    for row, (kind, _, begin, length) in enumerate(bars):
        axes.barh(row, length, left=begin, color=f"C{_KINDS.index(kind)}")
    axes.set_yticks(range(len(bars)), [_text(name) for _, name, *_ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds since the run began", title=_text(f"Run {runs.index(found) + 1} of {session.id}"))
    return axes


def _name_of(call: ModelCall | ToolCall) -> tuple[str, str]:
    kind = "tool" if hasattr(call, "tool_call_id") else "model"
    return kind, getattr(call, "name", None) or getattr(call, "model", None) or "a model"


def plot_forks(sessions: Sessions, session_id: str, *, ax: Axes | None = None) -> Axes:
    """The tree of a session's family: its root and all forks, oldest first, with their titles and messages.

    Deleted members are left out, and their forks are drawn at the root.
    """
    family = sessions.get(session_id).family_id
    members = [one for one in sessions.list(limit=None, order="creation") if one.family_id == family]
    rows = list(_tree(members, None, {one.id for one in members}, 0))
    axes = _axes(ax, width=7, height=1 + 0.4 * max(len(rows), 2))
    places = {one.id: (depth, row) for row, (depth, one) in enumerate(rows)}
    for one_id, (depth, row) in places.items():
        parent = next(one.parent_id for _, one in rows if one.id == one_id)
        if parent in places:
            x, y = places[parent]
            axes.plot([x, x, depth], [y, row, row], color="0.6", zorder=1)
    for depth, one in rows:
        _, row = places[one.id]
        axes.scatter(depth, row, color="C1" if one.id == session_id else "C0", zorder=2)
        label = f"{one.id}: {one.title}" if one.title else one.id
        axes.annotate(_text(f"{label} ({one.message_count:,})"), (depth, row), (8, -4), textcoords="offset points")
    axes.set(title=_text(f"Forks of {family}"), xlim=(-0.5, max((depth for depth, _ in rows), default=0) + 3))
    axes.invert_yaxis()
    axes.set_axis_off()
    return axes


def _tree(members: list[Session], parent: str | None, known: set[str], depth: int) -> Iterable[tuple[int, Session]]:
    for one in members:
        if (one.parent_id if one.parent_id in known else None) == parent:
            yield depth, one
            yield from _tree(members, one.id, known, depth + 1)


def _axes(ax: Axes | None, *, width: float, height: float = 3.5) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtra("a plot", "plots") from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _text(text: str) -> str:
    """The text on one line, without the signs that matplotlib reads as mathematics."""
    line = " ".join(text.split())
    return (line if len(line) <= 60 else line[:59] + "…").replace("$", r"\$")
