"""Each benchmark runs on the current schema and the current interfaces. Its figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run import NAMES

ROOT = Path(__file__).parents[1]
SMALLEST = {  # constants of the module, and arguments beside ``quick=True``
    "checkpoint_cost": ("", "turns=10"),
    "recorder_cost": ("_LONG, _TASKS, _WARM_UP = 20, 5, 1", "turns=4"),
    "import_time": ("", "runs=1"),
    "reports": ("_SESSIONS, _USERS = 100, 10", "calls=1_000, records=160"),
    "lifecycle": ("_WAITING = 10", "sessions=1_000"),
}


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_with_its_smallest_numbers(name: str) -> None:
    constants, arguments = SMALLEST.get(name, ("", ""))
    setting = f"exec({constants!r}, vars(benchmark)); " if constants else ""
    assert run("-c", f"import benchmarks.{name} as benchmark; {setting}benchmark.report(quick=True, {arguments})")


@pytest.mark.slow
def test_the_scores_of_recall_are_computed_from_a_folder_of_questions(tmp_path: Path) -> None:
    turn = {"conversation_id": "c", "session": 1, "time": "2026-01-01T12:00:00"}
    turns = [
        turn | {"turn_id": "t1", "speaker": "Ada", "text": "My cat is called Schrödinger."},
        turn | {"turn_id": "t2", "speaker": "Bob", "text": "Mine is called Tea."},
    ]
    question = {"question_id": "q", "conversation_id": "c", "category": 1, "evidence": ["t1"]}
    question["question"] = "What is the name of Schrödinger?"
    for name, rows in (("turns", turns), ("questions", [question])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    printed = run("-m", "benchmarks.locomo", "--data", str(tmp_path), "--words-only")
    assert "words (the default), categories 1-4" in printed
    assert printed.splitlines()[1].split()[5:7] == ["1", "100.00"]
