"""Plots show the figures of the record."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import matplotlib
import pytest

from session_middleware import Session, Sessions
from session_middleware.integrations.matplotlib_plots import plot_forks, plot_latency, plot_usage, plot_waterfall

matplotlib.use("Agg")


def drawn(axes: Any) -> list[str]:
    """The texts of a figure, which is drawn."""
    axes.figure.canvas.draw()
    labels = [*(axes.get_yticklabels() if axes.axison else ()), *axes.texts, axes.title]
    matplotlib.pyplot.close(axes.figure)
    return [label.get_text() for label in labels]


@pytest.fixture
def session(sessions: Sessions) -> Session:
    one = sessions.open("price $1_$2", title="Zoë $")
    for turn in range(3):
        with one:
            one.add({"role": "user", "content": "hi"})
            one.record_model_call(
                model="gpt-4o", input_tokens=100 * turn, output_tokens=10, duration=timedelta(milliseconds=20)
            )

            @one.tool
            def search(q: str) -> str:
                return q

            search(q="tea")
    return sessions.get(one.id)


def test_usage_has_a_bar_for_each_turn(session: Session) -> None:
    axes = plot_usage(session)
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[0, 100, 200], [10, 10, 10]]
    [costs] = [other for other in axes.figure.axes if other is not axes]
    known = [run.cost for run in session.runs()]
    assert list(costs.lines[0].get_ydata()) == known
    assert None not in known
    assert drawn(axes)[-1] == r"Usage of price \$1_\$2"


def test_latency_has_a_box_for_each_tool(session: Session) -> None:
    axes = plot_latency(session.tool_calls())
    assert drawn(axes)[:1] == ["search (3)"]
    assert drawn(plot_latency([]))[-1] == "Latency by tool"


def test_a_waterfall_has_a_bar_for_each_call_of_a_run(session: Session) -> None:
    run = session.runs()[1]
    for given in (run, run.id):
        axes = plot_waterfall(session, given)
        widths = [round(patch.get_width(), 6) for patch in axes.patches]
        [tool] = [call for call in session.tool_calls() if call.run_id == run.id]
        assert widths == [run.duration_ms, 20, tool.duration_ms]
        assert drawn(axes)[:3] == ["run", "gpt-4o", "search"]
    with pytest.raises(ValueError, match="has no run 'none'"):
        plot_waterfall(session, "none")


def test_forks_are_a_tree(sessions: Sessions, session: Session) -> None:
    fork = session.fork(id="fork", title="Other")
    fork.fork(id="fork of fork")
    other = sessions.open("of another family")
    texts = drawn(plot_forks(sessions, "fork"))
    assert texts[:2] == [r"price \$1_\$2: Zoë \$ (3)", "fork: Other (3)"]
    assert texts[2].startswith("fork of fork")
    assert not any(other.id in text for text in texts)
    sessions.delete("fork")
    assert len(drawn(plot_forks(sessions, session.id))) == 3  # two sessions and the title
