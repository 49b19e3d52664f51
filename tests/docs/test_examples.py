"""Each example is run as its page says, and what it prints is what happens."""

from __future__ import annotations

import runpy
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

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


def test_the_supervisor_waits_for_a_person_of_the_team(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("supervisor", monkeypatch=monkeypatch)
    assert "1 waiting, runs: erin waiting\n" in capsys.readouterr().out
    run("supervisor", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "0 waiting, runs: erin waiting, bob ok\n" in printed
    assert "cashier: Paid 240 euros." in printed
    assert "{'approved': True} by bob" in printed


def test_the_chat_app_streams_edits_and_keeps_two_users_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_DB", "chat.db")
    names = runpy.run_path(str(EXAMPLES / "chat_app.py"))
    with TestClient(names["app"]) as client:
        alice, bob = {"X-User": "alice"}, {"X-User": "bob"}
        chat = client.post("/chats", headers=alice).json()["id"]
        with client.stream("POST", f"/chats/{chat}", json={"text": "Hello!"}, headers=alice) as answer:
            parts = list(answer.iter_text())
        assert "".join(parts) == "You said: Hello! This is message 2 of our chat."
        [asked, answered] = client.get(f"/chats/{chat}", headers=alice).json()
        assert (asked["text"], answered["role"]) == ("Hello!", "assistant")
        assert client.get("/chats", headers=alice).json()[0]["title"] == "Hello!"

        edited = client.post(f"/chats/{chat}/messages/{asked['id']}", json={"text": "Good day!"}, headers=alice)
        assert edited.text == "You said: Good day! This is message 2 of our chat."
        [asked, _] = client.get(f"/chats/{chat}", headers=alice).json()
        assert (asked["version"], len(asked["branches"])) == (2, 2)
        client.post(f"/chats/{chat}/branch", json={"branch": asked["branches"][0]}, headers=alice)
        assert client.get(f"/chats/{chat}", headers=alice).json()[0]["text"] == "Hello!"
        assert client.post(f"/chats/{chat}/regenerate", headers=alice).text.startswith("You said: Hello!")

        assert client.get("/chats", headers=bob).json() == []
        for method, path in (("GET", ""), ("POST", ""), ("POST", "/regenerate"), ("DELETE", "")):
            json = {"text": "hi", "branch": "main"} if method == "POST" else None
            assert client.request(method, f"/chats/{chat}{path}", json=json, headers=bob).status_code == 404
        assert client.get("/chats").status_code == 422
        assert client.delete(f"/chats/{chat}", headers=alice).status_code == 204
        assert client.get("/chats", headers=alice).json() == []
        assert "fetch(path" in client.get("/").text


@pytest.mark.slow
def test_the_calls_of_two_mcp_servers_are_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    run("mcp_tools", monkeypatch=monkeypatch)
    with Sessions("trip.db") as sessions:
        calls = sessions.get("trip").tool_calls()
    assert [(call.name, call.status) for call in calls] == [("forecast", "ok"), ("book", "ok"), ("book", "interrupted")]
