"""The tour runs by itself, and what it claims is what happened."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """With settings that would spoil the tour if it listened to them."""
    given = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    spoiling = {"SESSION_ON_RESUME": "reject", "SESSION_TRACKING": "false", "SESSION_STORAGE_URL": "no/such/folder"}
    return subprocess.run(
        [sys.executable, "-m", "session_middleware.cli", *arguments],
        env={**os.environ, **given, **spoiling},
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def tour(place: Path) -> str:
    done = run("demo", "--db", str(place / "kept.db"), folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def words(text: str) -> str:
    """Without the line breaks and the padding."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    "claim",
    [
        "Your name is Ada: you told me earlier in this session.",
        "4 runs, 16 messages and 4 tool calls are rows in one file",
        "the file says: export_report, attempt 1: interrupted, no result",
        "waiting to run: tools",
        "support-42 was resumed; its question is recorded once",
        "the tool call: attempt 1 interrupted; attempt 2 ok",
        "the turn is complete: nothing is left to run",
        "export_report() → interrupted",
        "1 found there, 0 from another session",
        "support-44 of mallory recalls 'euros': nothing",
        "SessionAccessDenied: session 'support-42' is owned by another user",
        "0 messages were added; an event says so: denied",
        "a dry run would end 3",
        "the session was revived and is active",
        "without a key or a network",
    ],
)
def test_tour_shows_what_it_promises(tour: str, claim: str) -> None:
    assert claim in words(tour)


@pytest.mark.skipif(find_spec("langgraph.checkpoint.sqlite") is None, reason="LangGraph's saver is not installed")
def test_tour_s_file_is_many_times_smaller(tour: str) -> None:
    found = re.search(r"after 60 turns the file is ([\d.]+) times smaller", words(tour))
    assert found is not None
    assert float(found[1]) > 5


def test_tour_is_plain_text_of_80_columns_when_it_is_not_a_terminal(tour: str) -> None:
    assert "\x1b" not in tour
    assert [line for line in tour.splitlines() if len(line) > 80 and "kept.db" not in line] == []


def test_tour_s_last_line_can_be_typed_as_it_stands(tour: str, place: Path) -> None:
    last = tour.splitlines()[-1]
    assert "show support-42 --db" in last
    shown = subprocess.run(
        ["sh", "-c", last], cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "What is our refund policy" in shown.stdout, shown.stderr


def test_tour_keeps_its_database_and_names_it(place: Path) -> None:
    last = run("demo", folder=place).stdout.splitlines()[-1]
    path = Path(shlex.split(last)[-1])
    assert path.is_file()
    shutil.rmtree(path.parent)


def test_tour_s_database_can_be_looked_at_and_is_not_overwritten(tour: str, place: Path) -> None:
    shown = run("show", "support-42", "--db", "kept.db", "--json", folder=place)
    assert json.loads(shown.stdout)["session"]["user_id"] == "ada"
    again = run("demo", "--db", "kept.db", folder=place)
    assert again.returncode == 1
    assert again.stderr.startswith("Error: kept.db: it exists already")
