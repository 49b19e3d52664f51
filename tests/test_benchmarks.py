"""Each benchmark runs on the current schema and the current interfaces. Its figures are not judged here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import locomo
from benchmarks.crowd import Crowd
from benchmarks.run import NAMES

SMALLEST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # constants of the module, arguments of its report
    "checkpoint_cost": ({"_READS": 2, "_BLOCK": 2}, {"turns": 4}),
    "crowd": ({"_CROWDS": [Crowd("2 processes of 2 threads", 2, 2)]}, {}),
    "fleet": ({"SMALL": (4, 2, 2)}, {}),
    "import_time": ({"_WARM_UP": 0}, {"runs": 1}),
    "lifecycle": ({"_WAITING": 2}, {"sessions": 100, "turns": 2}),
    "loop_lag": ({"SMALL": (4, 1)}, {}),
    "memory_speed": ({}, {"messages": 1_000}),
    "postgres": ({"SMALL": (2, 2, 2, 1)}, {}),
    "recorder_cost": ({"_LONG": 10, "_TASKS": 3, "_WARM_UP": 1}, {"turns": 5}),
    "replay": ({"SMALL": 6}, {}),
    "streaming": ({"_WORDS": 3, "_PROCESSES": 1}, {"clients": 2}),
    "sidebar": ({}, {"sessions": [200]}),
    "reports": ({"_SESSIONS": 20, "_USERS": 5}, {"calls": 200, "records": 40}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_with_its_smallest_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, (constants, arguments) = import_module(f"benchmarks.{name}"), SMALLEST.get(name, ({}, {}))
    for constant, value in constants.items():
        monkeypatch.setattr(benchmark, constant, value)
    benchmark.report(quick=True, **arguments)
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_scores_of_recall_are_computed_from_a_folder_of_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = {"conversation_id": "c", "session": 1, "time": "2026-01-01T12:00:00"}
    turns = [
        turn | {"turn_id": "t1", "speaker": "Ada", "text": "My cat is called Schrödinger."},
        turn | {"turn_id": "t2", "speaker": "Bob", "text": "Mine is called Tea."},
    ]
    question = {"question_id": "q", "conversation_id": "c", "category": 1, "evidence": ["t1"]}
    question["question"] = "What is the name of Schrödinger?"
    for name, rows in (("turns", turns), ("questions", [question])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["locomo", "--data", str(tmp_path), "--words-only"])
    locomo.main()
    printed = capsys.readouterr().out
    assert "words (the default), categories 1-4" in printed
    assert printed.splitlines()[1].split()[5:7] == ["1", "100.00"]
