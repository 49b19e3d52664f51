"""The exports for people: each word of the conversation is there once, and none of it is markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.errors import StorageError
from session_middleware.models import Message, ToolCall
from tests.support import agents
from tests.support.agents import human

EVIL = "# no heading\n<script>alert('x')</script> ``` & \x1b[31m"


@pytest.fixture
def session(sessions: Sessions) -> Any:
    graph, config = sessions.attach(agents.tool_graph()), sessions.config("../t/é", user_id="alice")
    for text in ("look up tea", EVIL, "fail cake"):
        graph.invoke(human(text), config)
    session = sessions.get("../t/é").update(title="<i>Tea</i>")
    session.record_tool("../../etc/passwd", {"path": "</pre>"}, result="``` \x00", duration=None)
    return session


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"class", "style", "lang", "charset", "name", "content"}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_is_whole_in_one_file_and_nothing_of_it_is_the_sessions_markup(session: Any, tmp_path: Path) -> None:
    text = session.export(tmp_path / "t.html", "html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.tags.isdisjoint({"script", "i", "link", "img"})
    assert {"details", "article", "table"} <= page.tags
    assert "color-scheme: light dark" in text
    assert "http" not in text.replace("http-equiv", "")
    joined = "".join(page.text)
    for said in ("look up tea", "<script>alert('x')</script>", "it said tea is nice", "<i>Tea</i>", "</pre>", "cake"):
        assert said in joined
    assert "\x1b" not in text
    assert joined.count("tea is nice") == 2  # the result, and what was said of it


def test_markdown_holds_each_text_in_a_quotation_or_a_fence(session: Any, tmp_path: Path) -> None:
    text = session.export(tmp_path / "t.md", "markdown").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == r"# \<i\>Tea\</i\>"
    assert "> # no heading" in lines
    assert "<script>" not in text
    assert [line for line in lines if line.startswith("## tool")] == [
        r"## tool look\_up",
        "## tool failing",
        "## tool ../../etc/passwd",
    ]
    assert lines[lines.index("``` ␀") - 1] == "````"
    assert lines.count("tea is nice") == 1


def test_a_folder_has_the_record_as_plain_files_with_safe_names(session: Any, tmp_path: Path) -> None:
    folder = session.export(tmp_path / "out" / "t", "folder")
    lines = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]  # noqa: E731
    assert [Message(**line) for line in lines("conversation.jsonl")] == session.messages()
    assert [ToolCall(**line) for line in lines("tool_calls.jsonl")] == session.tool_calls()
    about = json.loads((folder / "metadata.json").read_text())
    assert (about["session"]["id"], about["session"]["user_id"]) == ("../t/é", "alice")
    assert about["stats"]["tool_call_count"] == 3
    calls = sorted((folder / "tool_calls").iterdir())
    assert [json.loads(call.read_text())["name"] for call in calls] == ["look_up", "failing", "../../etc/passwd"]
    assert json.loads(calls[0].read_text())["arguments"] == {"thing": "tea"}
    assert sorted(each.name for each in tmp_path.rglob("*") if "passwd" in each.name) == [calls[2].name]
    with pytest.raises(StorageError, match="it exists already"):
        session.export(folder, "folder")


@pytest.mark.parametrize(("kind", "suffix"), [("markdown", ".md"), ("html", ".html"), ("folder", "")])
def test_many_sessions_are_one_folder(kind: Any, suffix: str, session: Any, sessions: Sessions, tmp_path: Path) -> None:
    sessions.open("Ä")
    sessions.open("plain", user_id="bob")
    assert sessions.export(tmp_path / "all", kind) == 3
    found = sorted(each.name for each in (tmp_path / "all").iterdir())
    assert f"plain{suffix}" in found
    assert all(name.endswith(suffix) for name in found)
    assert sessions.for_user("alice").export(tmp_path / "own", kind) == 1
    with pytest.raises(StorageError, match="it exists already"):
        sessions.export(tmp_path / "own", kind)
