"""The commands, called as from a terminal and from a script."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from langchain_core.language_models import GenericFakeChatModel

from session_middleware import Sessions
from session_middleware.cli import opening
from session_middleware.cli.main import cli
from tests.support import agents
from tests.support.commands import MAIN
from tests.support.processes import Process, run

try:
    import fcntl
    import termios
except ImportError:  # Windows, where the test that needs them is skipped
    pass

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "session_middleware.cli"]

Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def call(*arguments: str, said: str = "") -> Result:
        monkeypatch.setattr(opening, "is_terminal", lambda: bool(said))
        return CliRunner().invoke(cli, arguments, input=said, catch_exceptions=False)

    return call


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two sessions of ada's and one of nobody's."""
    path = tmp_path_factory.mktemp("filled") / "some.db"
    with Sessions(path, synchronous="normal") as sessions:
        agent = sessions.attach(agents.chat())
        for thread, user in (("a1", "ada"), ("a2", "ada"), ("n1", None)):
            agent.invoke({"messages": f"hello from {thread}"}, sessions.config(thread, user_id=user))
    return path


@pytest.fixture
def db(filled: Path, tmp_path: Path) -> str:
    """A copy of this test's own."""
    return str(shutil.copy(filled, tmp_path))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


# list


def test_list_shows_a_line_a_session_latest_first(call: Call, db: str) -> None:
    output = call("list", "--db", db).output
    assert [line.split()[0] for line in output.splitlines() if "  active  " in line] == ["n1", "a2", "a1"]


def test_list_filters_by_user_and_status(call: Call, db: str) -> None:
    assert len(json.loads(call("list", "--db", db, "--user", "ada", "--json").stdout)) == 2
    assert json.loads(call("list", "--db", db, "--status", "expired", "--json").stdout) == []
    assert "no sessions" in call("list", "--db", db, "--user", "bob").output


def test_list_says_when_there_is_more(call: Call, db: str) -> None:
    assert "1 of 3" in call("list", "--db", db, "--limit", "1").output


def test_list_refuses_a_status_there_is_not(call: Call, db: str) -> None:
    sweep = ("sweep", "--db", db, "--older-than", "1d", "--status", "asleep")
    assert_is_one_line(call("list", "--db", db, "--status", "asleep"), "no status 'asleep'", "idle", exit_code=2)
    assert_is_one_line(call(*sweep), "no status 'asleep'", exit_code=2)
    assert_is_one_line(call("list", "--db", db, "--status", "archived"), "list --archived", exit_code=2)


def test_database_is_the_setting_s_when_none_is_named(call: Call, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_STORAGE_URL", db)
    assert len(json.loads(call("list", "--json").stdout)) == 3
    monkeypatch.setenv("SESSION_STORAGE_URL", f"sqlite:///{db}")
    assert len(json.loads(call("list", "--json").stdout)) == 3


def test_list_tells_titles_under_their_ids(call: Call, db: str) -> None:
    with Sessions(db) as sessions:
        sessions.get("a1").update(title="Tea with [bold]Ada[/]")
    lines = call("list", "--db", db).output.splitlines()
    told = next(n for n, line in enumerate(lines) if line.split()[:1] == ["a1"])
    assert lines[told + 1].strip() == "Tea with [bold]Ada[/]"


# usage


def test_usage_sums_by_user_and_by_tool(call: Call, db: str) -> None:
    by_user = {each["key"]: each["calls"] for each in json.loads(call("usage", "--db", db, "--json").stdout)}
    assert by_user == {"ada": 2, None: 1}
    output = call("usage", "--db", db).output
    assert [line.split()[:2] for line in output.splitlines() if line.split()[:1] in (["ada"], ["all"])] == [
        ["ada", "2"],
        ["all", "3"],
    ]
    assert "3 calls of unknown price" in output
    assert "no calls" in call("usage", "--db", db, "--by", "tool").output
    assert json.loads(call("usage", "--db", db, "--by", "session", "--user", "ada", "--json").stdout)[0]["calls"] == 1


def test_usage_since_is_a_day_or_a_time_ago(call: Call, db: str) -> None:
    assert len(json.loads(call("usage", "--db", db, "--since", "2020-01-31", "--json").stdout)) == 2
    assert len(json.loads(call("usage", "--db", db, "--since", "1d", "--json").stdout)) == 2
    assert json.loads(call("usage", "--db", db, "--since", "9999-01-01", "--json").stdout) == []
    for text in ("soon", "2026-02-31", "never", "99999999d"):
        result = call("usage", "--db", db, "--since", text)
        assert_is_one_line(result, f"--since cannot be '{text}'", "such as 2026-01-31", "such as 7d", exit_code=2)


# Upkeep


def test_delete_asks_and_says_how_much_that_was(call: Call, db: str) -> None:
    planned = json.loads(call("delete", "a1", "--db", db, "--dry-run", "--json").stdout)
    refused = call("delete", "a1", "--db", db, said="n\n")
    assert (refused.exit_code, "Delete session 'a1'?" in refused.stderr) == (1, True)
    assert call("show", "a1", "--db", db).exit_code == 0
    deleted = json.loads(call("delete", "a1", "--db", db, "--yes", "--json").stdout)
    same = ("sessions", "checkpoints", "messages", "tool_calls", "memories")
    assert [planned[name] for name in same] == [deleted[name] for name in same]
    assert (planned["dry_run"], deleted["dry_run"], deleted["messages"]) == (True, False, 2)
    assert "was deleted" in call("explain", "a1", "--db", db).output
    assert_is_one_line(call("delete", "a1", "--db", db, "--yes"), "no session 'a1'")
    assert "deleted" in call("delete", "a2", "--db", db, said="y\n").output


def test_delete_takes_an_archive_away(call: Call, db: str, tmp_path: Path) -> None:
    with Sessions(db, on_expire="archive", idle_timeout="1ms", archive_path=str(tmp_path / "old")) as sessions:
        sessions.sweep()
    assert len(list((tmp_path / "old").iterdir())) == 3
    listed = json.loads(call("list", "--archived", "--user", "ada", "--db", db, "--json").stdout)
    assert {one["session_id"] for one in listed} == {"a1", "a2"}
    assert "idle_timeout" in call("list", "--archived", "--db", db).output
    assert call("list", "--archived", "--status", "idle", "--db", db).exit_code == 2
    assert "Delete the archive of 'a1'?" in call("delete", "a1", "--db", db, said="n\n").stderr
    assert call("delete", "a1", "--db", db, "--dry-run").exit_code == 0
    assert call("delete", "a1", "--db", db, "--yes").exit_code == 0
    assert len(list((tmp_path / "old").iterdir())) == 2


def test_restore_brings_an_archived_session_back(call: Call, db: str) -> None:
    with Sessions(db, on_expire="archive", idle_timeout="1ms") as sessions:
        sessions.sweep()
    Sessions(db, idle_timeout="7d").close()  # the settings of the app are the defaults again
    assert_is_one_line(call("show", "a1", "--db", db), "restore it with session-middleware restore")
    assert "session 'a1': it is active" in call("restore", "a1", "--db", db).output
    assert call("show", "a1", "--db", db).exit_code == 0
    assert_is_one_line(call("restore", "a1", "--db", db), "session 'a1' exists already")
    assert_is_one_line(call("restore", "nobody", "--db", db), "no session 'nobody'")


def test_pin_exempts_until_unpin(call: Call, db: str) -> None:
    assert "pinned by bob (legal hold)" in call("pin", "a1", "--why", "legal hold", "--by", "bob", "--db", db).output
    sweep = ("sweep", "--db", db, "--idle-timeout", "1ms", "--json")
    assert {one["session_id"] for one in json.loads(call(*sweep, "--dry-run").stdout)} == {"a2", "n1"}
    assert "it expires at" in call("unpin", "a1", "--db", db).output
    assert_is_one_line(call("pin", "nobody", "--db", db), "no session 'nobody'")


def test_sweep_cleans_by_age_and_status(call: Call, db: str) -> None:
    with Sessions(db) as sessions:
        sessions.get("a1").complete()
    old = ("sweep", "--db", db, "--older-than", "1ms", "--status", "completed")
    (planned,) = json.loads(call(*old, "--dry-run", "--json").stdout)
    assert (planned["session_id"], planned["reason"], planned["bytes"] > 0) == ("a1", "older_than", True)
    declined = call(*old, said="n\n")
    assert declined.exit_code == 1
    assert "Delete 1 session last active more than 1ms ago?" in declined.output
    assert call("show", "a1", "--db", db).exit_code == 0
    assert "1 ended; the rule is older than 1ms" in call(*old, said="y\n").output
    assert call("show", "a1", "--db", db).exit_code == 1
    assert "was deleted" in call("explain", "a1", "--db", db).output
    assert "it is active" in call("explain", "a2", "--db", db).output


def test_check_finds_and_repairs_and_doctor_says_so(call: Call, db: str) -> None:
    assert "no problems" in call("check", "--db", db).output
    assert call("doctor", "--db", db).exit_code == 0
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE sessions SET message_count = 9, cost = 1 WHERE id = 'a1'")
        connection.execute("INSERT INTO files (session_id, hash, data) VALUES ('gone', 'h', x'00')")
        connection.execute(
            "INSERT INTO leases (session_id, number, process, started_at, renewed_at) VALUES ('a1', 1, 'x', '', '')"
        )
    doctor = call("doctor", "--db", db)
    assert doctor.exit_code == 1
    assert "message_count is 9 and there are 2, and 1 more like it" in " ".join(doctor.output.split())
    found = call("check", "--db", db, "--json")
    assert (found.exit_code, {each["kind"] for each in json.loads(found.output)}) == (
        1,
        {"counter", "orphan", "dead_lease"},
    )
    assert "4 problems repaired, none left" in call("check", "--db", db, "--repair").output
    assert json.loads(call("check", "--db", db, "--json").stdout) == []
    with Sessions(db) as sessions:
        assert sessions.get("a1").message_count == 2
        assert "repaired" in [event.kind for event in sessions.get("a1").events()]


def test_check_compares_errors_and_tokens_with_their_rows(call: Call, db: str) -> None:
    with Sessions(db) as sessions:
        session = sessions.get("a1")
        session.record_tool("f", error="no")
        was = sessions.get("a1")
        assert (was.error_count, was.input_tokens > 0, was.output_tokens > 0) == (1, True, True)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute(
            "UPDATE sessions SET error_count = 0, input_tokens = 1, output_tokens = output_tokens + 1 WHERE id = 'a1'"
        )
    found = json.loads(call("check", "--db", db, "--json").stdout)
    assert [each["text"].split()[0] for each in found] == ["error_count", "input_tokens", "output_tokens"]
    assert call("check", "--db", db, "--repair").exit_code == 0
    with Sessions(db) as sessions:
        now = sessions.get("a1")
        assert (now.error_count, now.input_tokens, now.output_tokens) == (1, was.input_tokens, was.output_tokens)


def test_check_finds_a_checkpoint_with_a_missing_piece(call: Call, db: str) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("DELETE FROM list_items WHERE home = (SELECT home FROM sessions WHERE id = 'a1')")
    result = call("check", "--db", db, "--repair")
    assert result.exit_code == 1
    assert "lacks a part of its state" in " ".join(result.output.split())


def test_forget_asks_and_gives_a_receipt(call: Call, db: str) -> None:
    assert call("forget", "ada", "--db", db, said="n\n").exit_code == 1
    assert json.loads(call("forget", "ada", "--db", db, "--dry-run", "--json").stdout)["sessions"] == 2
    assert "gone from the files" in call("forget", "ada", "--db", db, "--yes").output
    assert [each["id"] for each in json.loads(call("list", "--db", db, "--json").stdout)] == ["n1"]


def test_a_user_without_data_or_revocation_is_named_as_such(call: Call, db: str) -> None:
    for options in ((), ("--dry-run",), ("--yes",)):
        result = call("forget", "nobody", "--db", db, *options)
        assert (result.exit_code, result.output) == (0, "there is no data of this user in the files\n")
    assert call("revoke", "nobody", "--lift", "--db", db).output == "user 'nobody' was not revoked\n"


def test_revoke_ends_and_refuses_until_it_is_lifted(call: Call, db: str) -> None:
    assert "ended 2 open sessions" in call("revoke", "ada", "--db", db).output
    with Sessions(db) as sessions, pytest.raises(PermissionError):
        sessions.open("a1", user_id="ada")
    assert "user 'ada' is admitted again" in call("revoke", "ada", "--db", db, "--lift").output
    with Sessions(db) as sessions:
        assert sessions.open("a1", user_id="ada").opened_as == "reopened"


# show


def test_show_is_the_session_s_timeline(call: Call, db: str) -> None:
    output = call("show", "a1", "--db", db).output
    assert "hello from a1" in output
    assert "owner        ada" in output


def test_show_is_cut_short_unless_full(call: Call, db: str) -> None:
    with Sessions(db) as sessions:
        agent = sessions.attach(agents.chat())
        agent.invoke({"messages": "word " * 500}, sessions.config("n1"))
    assert call("show", "n1", "--db", db).output.count("word") < 100
    assert call("show", "n1", "--db", db, "--full").output.count("word") >= 500


def test_show_as_json_has_the_session_its_numbers_and_its_record(call: Call, db: str) -> None:
    shown: dict[str, Any] = json.loads(call("show", "a1", "--db", db, "--json").stdout)
    assert shown["session"]["id"] == "a1"
    assert shown["stats"]["message_count"] == 2
    said = [row["text"] for row in shown["timeline"] if row["record"] == "message" and row["role"] == "user"]
    assert said == ["hello from a1"]
    assert [row["seq"] for row in shown["timeline"]] == sorted(row["seq"] for row in shown["timeline"])


def test_looking_changes_nothing(call: Call, db: str) -> None:
    before = call("list", "--db", db, "--json").output
    call("show", "a1", "--db", db)
    call("sweep", "--db", db, "--dry-run")
    assert call("list", "--db", db, "--json").output == before


# sweep


def test_sweep_ends_what_is_due_and_a_dry_run_only_says(call: Call, db: str) -> None:
    sweep = ("sweep", "--db", db, "--idle-timeout", "1ms")
    assert "3 would be ended" in call(*sweep, "--dry-run").output
    assert json.loads(call("list", "--db", db, "--status", "expired", "--json").stdout) == []
    assert {one["session_id"] for one in json.loads(call(*sweep, "--json").stdout)} == {"a1", "a2", "n1"}
    assert len(json.loads(call("list", "--db", db, "--status", "expired", "--json").stdout)) == 3
    assert "nothing is due" in call(*sweep).output


# Errors


def assert_is_one_line(result: Result, *words: str, exit_code: int = 1) -> None:
    assert result.exit_code == exit_code
    assert result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("show", "a1"),
        ("usage",),
        ("sweep",),
        ("sweep", "--dry-run"),
        ("delete", "a1", "--yes"),
        ("pin", "a1"),
    ],
)
def test_database_that_is_not_there_is_an_error_and_stays_not_there(
    call: Call, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "none.db"
    assert_is_one_line(call(*command, "--db", str(path)), "none.db", "no such database")
    assert list(tmp_path.iterdir()) == []


def test_another_program_s_database_is_left_alone(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    for command in ("list", "check"):
        assert_is_one_line(call(command, "--db", str(path)), "another program's tables (things)")
    assert path.read_bytes() == before
    path.write_text("a letter to a friend, not a database at all")
    assert_is_one_line(call("list", "--db", str(path)), "not an SQLite database")


def test_unknown_session_bad_setting_and_foreign_owner_are_one_line(call: Call, db: str) -> None:
    assert_is_one_line(call("show", "nobody", "--db", db), "no session 'nobody'", "session-middleware list")
    assert_is_one_line(call("sweep", "--db", db, "--idle-timeout", "soon"), "a duration", "--idle-timeout", exit_code=2)
    assert_is_one_line(call("list", "--db", "mysql://host/db"), "not supported")
    assert_is_one_line(call("chat", "--db", db, "--thread", "a1", "--user", "bob"), "has another owner")


def test_advice_names_commands_and_options(call: Call, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sessions(db) as sessions:
        sessions.get("a2").complete()
    with Sessions(db, on_expire="archive", idle_timeout="1ms") as sessions:
        sessions.sweep()
        sessions.open("b", user_id="bob")
        sessions.revoke("bob")
    chat = ("chat", "--db", db, "--thread")
    assert_is_one_line(call(*chat, "a1", "--user", "ada"), "archived", "session-middleware restore")
    assert_is_one_line(call("show", "a1", "--db", db), "archived", "session-middleware restore")
    call("restore", "a1", "--db", db)
    assert_is_one_line(call(*chat, "a1", "--user", "eve"), "another owner", "--user", "--thread")
    assert_is_one_line(call(*chat, "b", "--user", "bob"), "was revoked", "session-middleware revoke --lift")
    monkeypatch.setenv("SESSION_ON_CLOSED", "reject")
    assert_is_one_line(call(*chat, "a2", "--user", "ada"), "is completed", "SESSION_ON_CLOSED=reopen", "--thread")
    monkeypatch.setenv("SESSION_ON_RESUME", "reject")
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "1ms")
    assert_is_one_line(call(*chat, "a1", "--user", "ada"), "has expired", "SESSION_ON_RESUME=revive", "--thread")
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "soon")
    assert_is_one_line(call("list", "--db", db), "idle_timeout: 'soon' is not", "correct --db, the SESSION_… variable")


def test_an_unknown_id_is_an_error_of_each_command_that_takes_one(call: Call, db: str) -> None:
    for command in ("show", "explain", "pin", "unpin", "delete", "restore"):
        assert_is_one_line(call(command, "nope", "--db", db), "no session 'nope'", "session-middleware list")
        assert_is_one_line(call(command, "", "--db", db), "may not be empty", "give an id", exit_code=2)
    for command in ("forget", "revoke", "list --user", "usage --user"):
        assert_is_one_line(call(*command.split(), "", "--db", db), "may not be empty", "give an id", exit_code=2)


def test_an_empty_db_option_is_not_the_default(call: Call, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_STORAGE_URL", db)
    assert_is_one_line(call("delete", "a1", "--yes", "--db", ""), "the path is empty", "name a file")


def test_a_status_of_a_sweep_needs_an_age(call: Call, db: str) -> None:
    result = call("sweep", "--status", "idle", "--db", db)
    assert result.exit_code == 2
    assert "give --older-than too" in result.stderr


def test_an_archive_without_its_file_is_put_back_or_deleted(call: Call, db: str, tmp_path: Path) -> None:
    with Sessions(db, on_expire="archive", idle_timeout="1ms", archive_path=str(tmp_path / "old")) as sessions:
        sessions.sweep()
    for file in (tmp_path / "old").iterdir():
        file.unlink()
    assert_is_one_line(call("restore", "a1", "--db", db), "missing; put back the file", "or delete")
    assert call("delete", "a1", "--db", db, "--yes").exit_code == 0


def test_model_that_cannot_be_had_is_one_line(call: Call, db: str) -> None:
    pytest.importorskip("langchain")
    result = call("chat", "--db", db, "--thread", "a1", "--user", "ada", "--model", "nonsense")
    assert_is_one_line(result, "'nonsense' cannot be used")


def test_a_provider_that_raises_is_one_line(call: Call, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str) -> None:
        raise RuntimeError("the key\nis missing")

    monkeypatch.setattr(pytest.importorskip("langchain.chat_models"), "init_chat_model", make)
    result = call("chat", "--db", db, "--model", "openai:gpt-5")
    assert_is_one_line(result, "'openai:gpt-5' cannot be used: the key is missing")


def test_missing_langchain_is_named(call: Call, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    assert_is_one_line(call("chat", "--model", "openai:gpt-5"), "session-middleware[chat]")


# chat


def test_chat_goes_on_where_it_ended(call: Call, tmp_path: Path) -> None:
    chat = ("chat", "--db", str(tmp_path / "chat.db"), "--thread", "t1", "--user", "ada")
    first = call(*chat, said="my name is Ada\n/quit\n")
    assert first.exit_code == 0
    assert "session t1: opened" in first.output
    assert "resume with: session-middleware chat --thread t1 --user ada --db" in first.output
    second = call(*chat, said="what is my name?\n")
    assert second.exit_code == 0
    assert "session t1: resumed" in second.output
    assert "user: my name is Ada" in second.output
    assert "You have said 2 things here, first: 'my name is Ada'" in second.output


def test_chat_prints_its_commands_and_sends_none_to_the_model(call: Call, tmp_path: Path) -> None:
    db = str(tmp_path / "chat.db")
    output = call("chat", "--db", db, "--thread", "t1", said="/help\n/x\n/\n/etc/hosts is a file\n").output
    assert output.count("/quit, Ctrl-D or Ctrl-C ends the chat") == 4
    assert "there is no command /x; " in output
    with Sessions(db) as sessions:
        said = [message.text for message in sessions.get("t1").messages() if message.role == "user"]
    assert said == ["/etc/hosts is a file"]


def test_chat_without_a_thread_opens_a_new_session(call: Call, tmp_path: Path) -> None:
    db = str(tmp_path / "chat.db")
    call("chat", "--db", db, said="hello\n")
    call("chat", "--db", db, said="hello\n")
    assert len(json.loads(call("list", "--db", db, "--json").stdout)) == 2


def test_chat_shows_no_more_than_the_last_messages(call: Call, tmp_path: Path) -> None:
    chat = ("chat", "--db", str(tmp_path / "chat.db"), "--thread", "t1")
    call(*chat, said="".join(f"question {n}\n" for n in range(5)))
    resumed = call(*chat).output
    assert "6 earlier messages" in resumed
    assert "user: question 4" in resumed
    assert "user: question 0" not in resumed


@pytest.fixture
def chat_with(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    langchain = pytest.importorskip("langchain.chat_models")

    def chat_with(answers: list[Any], said: str = "") -> Result:
        model = GenericFakeChatModel(messages=iter(answers))
        monkeypatch.setattr(langchain, "init_chat_model", lambda _: model)
        return call("chat", "--db", str(tmp_path / "chat.db"), "--thread", "t1", "--model", "scripted:one", said=said)

    return chat_with


def test_a_model_that_raises_is_one_line_and_the_chat_goes_on(
    call: Call, chat_with: Callable[..., Result], tmp_path: Path
) -> None:
    result = chat_with(["Hello to you"], said="hello\nand now?\n/help\n")
    assert result.exit_code == 0
    [line] = [line for line in result.output.splitlines() if "the turn failed" in line]
    assert "RuntimeError: generator raised StopIteration; try again with /retry" in line
    assert "Hello to you" in result.output
    assert "resume with" in result.output.splitlines()[-1]
    with Sessions(tmp_path / "chat.db") as sessions:
        assert [run.outcome for run in sessions.get("t1").runs()] == ["ok", "error"]
        assert "StopIteration" in (sessions.get("t1").runs()[-1].error or "")


def test_a_turn_that_failed_is_repeated_by_retry_or_the_next_chat(chat_with: Callable[..., Result]) -> None:
    chat_with([], said="hello\n")
    resumed = chat_with(["Hello to you"]).output
    assert "cut off before model; finishing it now" in resumed
    assert "Hello to you" in resumed
    assert "the last turn was finished" in chat_with([], said="/retry\n").output
    assert chat_with([], said="hello\n/retry\n").output.count("the turn failed") == 2


class Breaking(GenericFakeChatModel):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(super()._stream(*args, **kwargs))
        raise ConnectionError("reset\nby [bold]peer[/]")


def test_an_answer_that_breaks_off_is_followed_by_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    langchain = pytest.importorskip("langchain.chat_models")
    monkeypatch.setattr(langchain, "init_chat_model", lambda _: Breaking(messages=iter(["one two"])))
    result = call("chat", "--db", str(tmp_path / "chat.db"), "--thread", "t", "--model", "scripted:one", said="hello\n")
    assert result.exit_code == 0
    assert any(
        line.startswith("the turn failed: ConnectionError: reset by [bold]peer[/];")
        for line in result.output.splitlines()
    )


# As a process

# Writes to a new buffered stream, as the interpreter makes one for a pipe, over the file descriptor that is named.
WRITING = f"import os, sys; os.dup2(int(eval(sys.argv.pop(1))), 1); sys.stdout = open(1, 'w', closefd=False); {MAIN}"
FULL = "os.open('/dev/full', os.O_WRONLY)"
ON_TERMINAL = f"""
import os, sys
for number in (1, 2):
    os.dup2(os.open(sys.argv[1], os.O_WRONLY), number)
del sys.argv[1]
sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
for name in ("COLUMNS", "LINES"):  # which take precedence over the size of the terminal
    os.environ.pop(name, None)
{MAIN}
"""
CLOSED = "[os.close(reading) or writing for reading, writing in [os.pipe()]][0]"


def written_to(descriptor: str, command: str, db: str) -> subprocess.CompletedProcess[str]:
    return run("-c", WRITING, descriptor, *command.split(), *([] if command == "--help" else ["--db", db]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", ["list", "show a1 --json", "--help"])
def test_output_that_cannot_be_written_is_one_line(command: str, db: str) -> None:
    done = written_to(FULL, command, db)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: the output cannot be written (No space left on device); write it elsewhere"
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are closed in another way")
@pytest.mark.parametrize("command", ["list", "show a1 --json", "--help"])
def test_a_reader_that_has_ended_is_no_error(command: str, db: str) -> None:
    assert written_to(CLOSED, command, db).stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_narrow_terminal_gets_colours_and_whole_ids_and_colours_can_be_turned_off(db: str) -> None:
    name = "k" * 60
    with Sessions(db, idle_timeout="3h") as sessions:
        sessions.open(name)

    def printed(**variables: str) -> str:
        terminal, end = os.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 40, 0, 0))
        done = run("-c", ON_TERMINAL, os.ttyname(end), "list", "--db", db, env={"TERM": "xterm-256color"} | variables)
        assert done.returncode == 0
        os.close(end)
        with os.fdopen(terminal, "rb", buffering=0) as stream:
            return stream.read(65_536).decode()

    coloured, plain = printed(), printed(NO_COLOR="1")
    assert "\x1b[38;5;28mactive" in coloured
    assert "38;5" not in plain
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", plain).splitlines()]
    assert [line for line in lines if len(line) > 40] == [name]
    assert lines[-2:] == ["with the settings of the app:", "idle_timeout 3 hours"]


@pytest.mark.slow
def test_chat_in_processes_of_its_own_replaces_what_is_no_text(tmp_path: Path) -> None:
    chat = ["chat", "--db", str(tmp_path / "chat.db"), "--thread", "t1"]
    done = subprocess.run([*COMMAND, *chat], input=b"caf\xe9\n", env=environment(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "said 1 thing here" in done.stdout.decode()
    resumed = Process("-c", MAIN, *chat, stdin=True)
    output, errors = resumed.communicate("what did I say?\n")
    assert (resumed.returncode, errors) == (0, "")
    assert "said 2 things here, first: 'caf\N{REPLACEMENT CHARACTER}'" in output


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_ctrl_c_ends_a_chat_cleanly(tmp_path: Path) -> None:
    process = Process("-c", MAIN, "chat", "--db", tmp_path / "chat.db", "--thread", "t1", stdin=True)
    seen = ""
    while "you> " not in seen:
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert "resume with" in output


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys, session_middleware.cli.main; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["langgraph", "langchain_core", "langchain", "pydantic", "rich", "sqlite_utils"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_ids_are_completed_without_the_import_of_langgraph(db: str) -> None:
    code = """
import sys
from session_middleware.cli.place import ids_of
print(*ids_of(sys.argv[1], "", limit=1), {"langgraph", "langchain_core"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code, db], env=environment(), capture_output=True, text=True)
    assert done.stdout == "a1 set()\n", done.stderr
