"""What all commands share: ids by prefix, filters, formats, questions, and the settings of the app; on each engine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from session_middleware import Sessions
from session_middleware.cli import opening
from session_middleware.cli.main import cli
from tests.conftest import Clock
from tests.support import agents
from tests.support.postgres import Server

Run = Callable[..., Result]


@pytest.fixture
def db(each_engine: str) -> str:
    """Sessions of ada, tagged and titled, one of bob, who was active last, and one that nobody owns and that failed."""
    with Sessions(each_engine) as sessions:
        agent = sessions.attach(agents.chat())
        for thread, user in (("ab1", "ada"), ("ab2", "ada"), ("n1", None), ("b", "bob")):
            agent.invoke({"messages": f"hello from {thread}"}, sessions.config(thread, user_id=user))
        sessions.get("ab1").update(tags=["x", "y"], title="Tea")
        sessions.get("ab2").update(metadata={"plan": "pro", "n": 3})
        sessions.get("n1").fail("boom")
    return each_engine


@pytest.fixture
def run(db: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str, said: str = "", is_terminal: bool = False) -> Result:
        monkeypatch.setattr(opening, "is_terminal", lambda: is_terminal)
        return CliRunner().invoke(cli, [*arguments, "--db", db], input=said, catch_exceptions=False)

    return run


def ids(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def status_of(run: Run, session_id: str) -> str:
    return str(json.loads(run("show", session_id, "--json").stdout)["session"]["status"])


# Ids


def test_a_session_is_found_by_its_id_a_unique_beginning_or_last(run: Run) -> None:
    assert json.loads(run("explain", "ab1", "--json").stdout)["session_id"] == "ab1"
    assert json.loads(run("explain", "n", "--json").stdout)["session_id"] == "n1"
    assert json.loads(run("explain", "last", "--json").stdout)["session_id"] == "b"
    several = run("show", "ab")
    assert (several.exit_code, several.stdout) == (1, "")
    assert "several ids begin with 'ab': 'ab1', 'ab2'; type more of it" in several.stderr
    assert "no session 'zz'" in run("show", "zz").stderr


def test_a_deleted_id_is_not_the_beginning_of_another_one(run: Run, db: str) -> None:
    with Sessions(db) as sessions:
        sessions.open("ab")
    assert run("delete", "ab", "--yes").exit_code == 0
    again = run("delete", "ab", "--yes")
    assert (again.exit_code, "no session 'ab'" in again.stderr) == (1, True)
    assert ids(run("list", "--jsonl")) == ["b", "n1", "ab2", "ab1"]


def test_yes_needs_a_whole_id_because_nobody_reads_the_question(run: Run) -> None:
    refused = run("delete", "n", "--yes")
    assert (refused.exit_code, "'n' is only the beginning of 'n1'" in refused.stderr) == (1, True)
    assert "Delete session 'n1'?" in run("delete", "n", said="n\n", is_terminal=True).stderr
    assert run("delete", "last", "--yes").exit_code == 0
    assert ids(run("list", "--jsonl")) == ["n1", "ab2", "ab1"]


def test_a_shell_completes_commands_and_the_ids_of_the_database(db: str) -> None:
    def completed(*typed: str, incomplete: str) -> list[str]:
        found = ShellComplete(cli, {}, "session-middleware", "_X").get_completions(list(typed), incomplete)
        return [item.value for item in found]

    assert completed(incomplete="sto") == []
    assert completed(incomplete="st") == ["stats"]
    assert completed("show", "--db", db, incomplete="ab") == ["ab1", "ab2"]
    assert completed("delete", "--db", db, "ab1", incomplete="la") == ["last"]
    assert completed("show", "--db", "none.db", incomplete="a") == []


# Filters and formats


def test_all_filters_find_the_same_sessions_in_each_command(run: Run) -> None:
    found = {
        ("--user", "ada"): {"ab1", "ab2"},
        ("--tag", "x", "--tag", "y"): {"ab1"},
        ("--status", "failed"): {"n1"},
        ("--since", "1h", "--until", "9999-01-01"): {"ab1", "ab2", "n1", "b"},
        ("--until", "1h"): set(),
        ("--group", "staff"): set(),
        ("--title", "TEA"): {"ab1"},
        ("--metadata", "plan=pro", "--metadata", "n=3"): {"ab2"},
        ("--metadata", 'n="3"'): set(),
        ("--status", "open", "--status", "failed", "--user", "ada"): {"ab1", "ab2"},
        ("--waiting",): set(),
    }
    for options, expected in found.items():
        assert set(ids(run("list", "--jsonl", *options))) == expected
        assert json.loads(run("stats", "--json", *options).stdout)["sessions"] == len(expected)
        hits = json.loads(run("search", "hello", "--json", *options).stdout)
        assert {hit["session_id"] for hit in hits} == expected
        used = json.loads(run("usage", "--by", "session", "--json", *options).stdout)
        assert {each["key"] for each in used} == expected
        assert run("delete", "--dry-run", "--json", *options).exit_code == 0
    assert "no status 'asleep'" in run("list", "--status", "asleep").stderr
    assert run("list", "--since", "soon").exit_code == 2
    assert run("list", "--metadata", "plan").exit_code == 2
    assert ids(run("list", "--jsonl", "--order", "creation")) == ["b", "n1", "ab2", "ab1"]


def test_a_session_that_waits_for_an_answer_is_found_and_says_so(run: Run, db: str) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", interrupt("Send it?"))]}

    graph = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
    with Sessions(db) as sessions:
        sessions.attach(graph).invoke({"messages": "send"}, sessions.config("w", user_id="ada"))
    assert ids(run("list", "--waiting", "--jsonl")) == ["w"]
    assert "active, waiting" in run("list", "--user", "ada").stdout
    shown = run("show", "w").stdout
    assert "waits        1 answer" in shown
    assert "ask: Send it? → not answered yet" in shown


def test_a_program_gets_json_lines_or_csv(run: Run) -> None:
    listed = json.loads(run("list", "--json").stdout)
    assert [json.loads(line) for line in run("list", "--jsonl").stdout.splitlines()] == listed
    rows = list(csv.DictReader(io.StringIO(run("list", "--csv").stdout)))
    assert [(row["id"], row["user_id"]) for row in rows] == [(each["id"], each["user_id"] or "") for each in listed]
    assert json.loads(rows[-1]["tags"]) == ["x", "y"]
    records = [json.loads(line) for line in run("show", "b", "--jsonl").stdout.splitlines()]
    assert records == json.loads(run("show", "b", "--json").stdout)["timeline"]
    assert [row["record"] for row in csv.DictReader(io.StringIO(run("show", "b", "--csv").stdout))] == [
        each["record"] for each in records
    ]
    assert run("list", "--user", "nobody", "--csv").stdout == ""
    for command in ("usage", "stats", "explain last", "search hello"):
        for output in ("--json", "--jsonl", "--csv"):
            result = run(*command.split(), output)
            assert result.exit_code == 0
            assert result.stderr == ""
            assert result.stdout


def test_texts_of_all_scripts_are_written_in_ascii(run: Run, db: str) -> None:
    with Sessions(db) as sessions:
        sessions.open("会话 🙂").add({"role": "user", "content": "退款在哪里 🙂"})
    for command in ("list", "show last", "search 退款", "follow last --timeout 1ms", "stats", "usage", "list --csv"):
        result = CliRunner(charset="ascii").invoke(cli, [*command.split(), "--db", db], catch_exceptions=False)
        assert (result.exit_code, result.stdout.isascii()) == (0, True)
        if command.startswith("list"):
            assert "\\u4f1a\\u8bdd" in result.stdout


def test_follow_prints_the_last_records_and_then_new_ones(run: Run, db: str) -> None:
    with Sessions(db) as sessions:
        for n in range(20):
            sessions.open("long").add({"role": "user", "content": f"message {n}"})
    shown = run("show", "long", "--last", "2", "--jsonl").stdout.splitlines()
    assert (len(shown), json.loads(shown[-1])["text"]) == (2, "message 19")
    lines = run("follow", "long", "--timeout", "1ms").stdout.splitlines()
    assert (len(lines), "message 19" in lines[-1]) == (10, True)
    lines = run("follow", "long", "--all", "--timeout", "1ms", "--jsonl").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [each["text"] for each in records if each["record"] == "message"] == [f"message {n}" for n in range(20)]
    assert "failed" in run("follow", "n1").stdout  # ends by itself, because the session has ended


# Changes


def test_titles_and_tags_are_changed(run: Run, db: str) -> None:
    assert run("rename", "last", "退款 🙂").stdout == "session 'b' is titled '退款 🙂'\n"
    assert run("rename", "ab1", "").stdout == "session 'ab1' has no title\n"
    assert run("tag", "ab1", "z", "x", "--remove", "y").stdout == "session 'ab1' has 'x', 'z'\n"
    assert run("tag", "ab1", "--remove", "x", "--remove", "z").stdout == "session 'ab1' has no tags\n"
    too_long = run("rename", "ab1", "x" * 2000)
    assert (too_long.exit_code, "title cannot be" in too_long.stderr) == (2, True)
    with Sessions(db) as sessions:
        assert (sessions.get("b").title, sessions.get("ab1").title, sessions.get("ab1").tags) == ("退款 🙂", None, ())


def test_close_ends_sessions_by_id_or_by_filter(run: Run, db: str) -> None:
    assert run("close", "last", "--as", "abandoned", "--reason", "gone").stdout == "session 'b': abandoned\n"
    assert "cannot become completed" in run("close", "b").stderr
    assert run("close", "ab1", "b", "--yes").exit_code == 1
    assert status_of(run, "ab1") == "active"
    assert run("close", "--user", "ada").exit_code == 2
    assert run("close", "--user", "ada", "--yes").stdout == "2 sessions: completed\n"
    assert run("close", "--user", "ada", "--yes").stdout == "no open session found\n"
    with Sessions(db) as sessions:
        assert (sessions.get("b").reason, sessions.get("ab1").status) == ("gone", "completed")


def test_a_fork_begins_as_the_session_did_and_is_compared_with_it(run: Run, db: str) -> None:
    with Sessions(db) as sessions:
        asked, _ = sessions.get("b").messages()
    assert asked.message_id in run("show", "b", "--full").stdout
    forked = run("fork", "b", "--at", asked.message_id, "--id", "c", "--title", "Again").stdout
    assert forked == "session 'c' is a fork of 'b', with 0 messages\n"
    assert "at cannot be" in run("fork", "b", "--at", "nothing").stderr
    compared = json.loads(run("compare", "b", "c", "--json").stdout)
    assert [step["change"] for step in compared["steps"]] == ["only_a", "only_a"]
    assert "- user: hello from b" in run("compare", "b", "last").stdout
    assert len(run("compare", "b", "c", "--csv").stdout.splitlines()) == 3


def test_a_merged_session_is_found_by_both_ids(run: Run, db: str) -> None:
    assert run("merge", "ab1", "ab2").exit_code == 2
    assert "is only the beginning of" in run("merge", "ab1", "n", "--yes").stderr
    assert "owner" in run("merge", "ab1", "b", "--yes").stderr
    merged = run("merge", "ab1", "ab2", "--yes").stdout
    assert merged == "session 'ab2' is a part of 'ab1', which has 4 messages\n"
    assert json.loads(run("show", "ab2", "--json").stdout)["session"]["id"] == "ab1"
    assert ids(run("list", "--user", "ada", "--jsonl")) == ["ab1"]


@pytest.mark.parametrize(
    "command",
    [
        "merge ab2 ab1",
        "delete ab1",
        "delete --user ada",
        "close ab1 ab2",
        "forget ada",
        "sweep --older-than 1ms",
    ],
)
def test_a_question_needs_a_terminal_or_yes(run: Run, db: str, command: str) -> None:
    refused = run(*command.split())
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "There is no terminal to ask on; add --yes." in refused.stderr
    declined = run(*command.split(), said="n\n", is_terminal=True)
    assert (declined.exit_code, "Aborted!" in declined.stderr) == (1, True)
    assert len(ids(run("list", "--jsonl", "--user", "ada"))) == 2
    assert status_of(run, "ab1") == "active"
    assert run(*command.split(), "--yes").exit_code == (command == "forget ada" and db.startswith("postgresql"))
    assert "ab1" not in ids(run("list", "--jsonl", "--status", "active"))


def test_sessions_are_named_by_ids_or_by_filters_and_not_by_both(run: Run) -> None:
    for command in (("delete",), ("close",), ("delete", "ab1", "--user", "ada"), ("stats", "ab1", "--user", "ada")):
        assert run(*command, *(("--yes",) if command[0] != "stats" else ())).exit_code == 2
    assert len(ids(run("list", "--jsonl"))) == 4


def test_compact_shrinks_a_file_or_names_the_statement(run: Run, db: str) -> None:
    before = ids(run("list", "--jsonl"))
    output = run("compact").stdout
    assert ("VACUUM (FULL, ANALYZE);" if db.startswith("postgresql") else "freed") in output
    assert ids(run("list", "--jsonl")) == before
    assert run("check", "--deep").exit_code == 0


def test_doctor_and_check_examine_each_engine(run: Run, db: str) -> None:
    Sessions(db, idle_timeout="3h").close()
    found = run("doctor", "--json")
    assert found.exit_code == 0, found.output
    facts = json.loads(found.stdout)
    assert (facts["sessions"], facts["problems"], facts["app_settings"]) == (4, [], {"idle_timeout": 10_800.0})
    assert ("postgresql" in facts["versions"]) == db.startswith("postgresql")
    assert "idle_timeout 3 hours" in run("doctor").stdout
    with Sessions(db) as sessions:
        sessions._storage._database.write(  # type: ignore[attr-defined]
            lambda connection: connection.execute("UPDATE sessions SET run_count = 9 WHERE id = 'ab1'")
        )
    for command in ("doctor", "check"):
        result = run(command)
        assert (result.exit_code, "run_count is 9" in result.stdout) == (1, True)
    assert run("check", "--repair").exit_code == 0
    assert run("doctor").exit_code == 0


# The settings of the app


def test_the_status_is_that_of_the_app(run: Run, db: str) -> None:
    with Sessions(db, idle_timeout="1h", idle_after="1ms", on_expire="delete") as sessions:
        assert [session.status for session in sessions.list(user_id="ada")] == ["idle", "idle"]
        shown = run("list", "--user", "ada")
    assert shown.stdout.count(" idle ") == 2
    note = "with the settings of the app: idle_after 0.001 seconds, idle_timeout 1 hour, on_expire delete\n"
    assert shown.stderr == note
    assert ids(run("list", "--jsonl", "--status", "idle")) == ["b", "ab2", "ab1"]
    Sessions(db).close()  # gives none of the settings, as a notebook does
    assert run("list", "--user", "ada").stderr == note
    Sessions(db, idle_timeout="7d").close()
    assert run("list").stderr == ""


def test_a_sweep_ends_by_the_settings_of_the_app_and_asks_before_it_deletes(run: Run, db: str) -> None:
    Sessions(db, idle_timeout="1ms", on_expire="delete").close()
    assert "Delete 3 sessions?" in run("sweep", said="n\n", is_terminal=True).stderr
    assert len(json.loads(run("sweep", "--dry-run", "--json").stdout)) == 3
    assert len(json.loads(run("sweep", "--yes", "--json").stdout)) == 3
    assert ids(run("list", "--jsonl")) == ["n1"]


def test_a_setting_of_the_command_takes_precedence_with_a_warning(run: Run, db: str, monkeypatch: Any) -> None:
    Sessions(db, idle_timeout="1ms").close()
    swept = run("sweep", "--dry-run", "--idle-timeout", "2h")
    assert swept.stderr == "Warning: idle_timeout is 2 hours here, and 0.001 seconds in the app\n"
    assert "nothing is due" in swept.stdout
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "never")
    warning = "Warning: idle_timeout is none here, and 0.001 seconds in the app\n"
    assert run("list", "--jsonl").stderr == warning
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "1ms")
    assert run("list", "--jsonl").stderr == ""
    monkeypatch.setenv("SESSION_MAX_SESSIONS", "5")
    assert "max_sessions is 5 here, and none in the app" in run("list", "--jsonl").stderr


def test_no_command_changes_the_settings_of_the_app(run: Run, db: str) -> None:
    settings = {"idle_timeout": None, "retention": timedelta(days=30), "max_sessions": 7, "archive_path": "old"}
    Sessions(db, **settings).close()
    for command in ("list", "sweep --idle-timeout 2h --yes", "chat --thread c", "migrate"):
        assert run(*command.split()).exit_code == 0
    with Sessions(db, **settings) as sessions:
        kept = sessions._storage.find_settings()
    path = str(Path("old").absolute())
    assert kept == {"archive_path": path, "idle_timeout": None, "max_sessions": 7, "retention": 30 * 86_400.0}


def test_an_app_without_write_access_keeps_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Sessions(path, idle_timeout="1h").close()
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    with Sessions(path, idle_timeout="2h", sweep_interval=None) as sessions:
        assert sessions.list() == []
    tmp_path.chmod(0o700)


def test_a_role_of_postgres_that_only_reads_opens_with_settings_of_its_own(postgres_server: Server) -> None:
    with postgres_server.database() as url:
        Sessions(url, idle_timeout="1h").close()
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("CREATE ROLE reader LOGIN")
            owner.execute("GRANT USAGE ON SCHEMA session_middleware TO reader")
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA session_middleware TO reader")
        reading = url.replace("postgres@", "reader@")
        with Sessions(reading, idle_timeout="2h", sweep_interval=None) as sessions:
            assert sessions.list() == []
        listed = CliRunner().invoke(cli, ["list", "--db", reading], catch_exceptions=False)
        assert (listed.exit_code, listed.stderr) == (0, "with the settings of the app: idle_timeout 1 hour\n")
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("DROP OWNED BY reader")
    postgres_server.execute("DROP ROLE reader")


def test_opening_with_the_same_settings_writes_nothing(db: str) -> None:
    clock = Clock()
    for _ in range(2):
        with Sessions(db, idle_timeout="1h", clock=clock) as sessions:
            rows = sessions._storage._database.read(  # type: ignore[attr-defined]
                lambda connection: connection.execute("SELECT * FROM settings").fetchall()
            )
        assert rows == [("idle_timeout", "3600.0", "2026-01-01T12:00:00.000Z")]
        clock.advance(hours=1)
