"""Each example is run as its page says, and what it prints is what happens."""

from __future__ import annotations

import runpy
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from session_middleware import Sessions
from session_middleware.models import utc_now

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``python examples/NAME.py ARGUMENTS`` does."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_the_hand_written_loop_goes_on_where_it_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        run("hand_written_loop", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "'weather': opened, 0 messages" in printed
    assert "'weather': resumed, 8 messages" in printed
    assert "attempt 1 error ConnectionError: no route" in printed
    with Sessions("loop.db") as sessions:
        session = sessions.get("weather")
        assert [call.status for call in session.tool_calls()][:3] == ["error", "ok", "ok"]
        assert {run.outcome for run in session.runs()} == {"ok"}
        assert session.cost
        assert session.cost > 0


def test_the_experiment_is_compared_priced_and_replayed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("experiment", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "4 steps, 2 the same, 2 changed" in printed
    assert "the run followed the record" in printed
    assert "$0.0001" in printed


def test_the_cleaning_job_archives_what_is_due_and_reports_a_damaged_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sessions("chat.db", clock=lambda: utc_now() - timedelta(days=60)) as sessions:
        sessions.open("old", user_id="alice")
    with pytest.raises(SystemExit) as ended:
        run("cleaning_job", "chat.db", "backups", monkeypatch=monkeypatch)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "archive: 1 (idle_timeout)" in printed
    assert "open: 0, archived: 1" in printed
    assert len(list(Path("backups").glob("chat-*.db"))) == 1

    Path("chat.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(SystemExit) as ended:
        run("cleaning_job", "chat.db", "backups", monkeypatch=monkeypatch)
    assert ended.value.code == 1
    assert "chat.db" in capsys.readouterr().err

    with pytest.raises(SystemExit) as ended:
        run("cleaning_job", "missing.db", "backups", monkeypatch=monkeypatch)
    assert ended.value.code == 2
    assert not Path("missing.db").exists()
