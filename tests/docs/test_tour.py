"""The tour, which `make demo` starts, runs by itself, and what it claims is what happened."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What it prints, with settings around it that it must not use."""
    spoiling = {"SESSION_ON_RESUME": "reject", "SESSION_TRACKING": "false", "SESSION_STORAGE_URL": "no/such/folder"}
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / ".env").write_text("SESSION_ON_RESUME=reject")
    command = [sys.executable, str(ROOT / "examples" / "tour.py")]
    environment = {**os.environ, **spoiling, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    yield done.stdout
    shutil.rmtree(Path(shlex.split(done.stdout.splitlines()[-1])[-1]).parent)


CLAIMS = [
    "killed (exit code -9)",
    "tool   order 1042: 42.90 euros refunded",
    """| refund_order | 1 | interrupted | {"order": 1042} | None""",
    """| refund_order | 2 | ok | {"order": 1042} | "order 1042: 42.90 euros refunded""",
    "ada: 4 calls of models, 1680 + 240 tokens, $0.0",
    "branch-2: ... Is it refunded? | Nothing was refunded.",
    "main: ... Please refund it. | order 1042",
    "ada in support-43 recalls: ['Ada prefers store credit']",
    "mallory in support-44 recalls: []",
    "SessionAccessDenied: session 'support-42' is owned by another user",
    "event: denied {'user_id': 'mallory'}",
    "support-42 is active again, with all of its 10 messages",
]


@pytest.mark.slow
def test_the_tour_shows_what_it_promises(shown: str) -> None:
    assert [claim for claim in CLAIMS if claim not in shown] == []


@pytest.mark.slow
def test_the_file_of_the_tour_is_many_times_smaller(shown: str) -> None:
    found = re.search(r"(\d+) times less", shown)
    assert found is not None
    assert int(found[1]) > 5


@pytest.mark.slow
def test_the_last_line_of_the_tour_can_be_typed_as_it_stands(shown: str) -> None:
    done = subprocess.run(["sh", "-c", shown.splitlines()[-1]], capture_output=True, text=True, cwd="/")
    assert "Can I return water filter order 1042?" in done.stdout, done.stderr
