"""The page on the server: its graph is served by its command, in a process of its own, and its client is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient

from session_middleware import Sessions
from tests.support.commands import MAIN, serving
from tests.support.processes import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_server_is_mounted_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, app, _ = blocks("python")
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(graph, "my_agent.py", "exec"), names)
    module = ModuleType("my_agent")
    module.graph = names["graph"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_agent", module)
    exec(compile(app, "my_app.py", "exec"), names)
    with TestClient(names["host"]) as client:
        found = client.post("/agents/assistants/search", json={}).json()
        assert [each["graph_id"] for each in found] == ["agent"]
        thread = client.post("/agents/threads", json={}).json()["thread_id"]
    with Sessions(tmp_path / "chat.db") as sessions:
        assert sessions.get(thread).user_id == "alice"


@pytest.mark.slow
def test_the_server_and_the_client_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    graph, _, client = blocks("python")
    (printed,) = blocks("text")
    start, show = (re.findall(r"^\$ session-middleware (.*)$", block, re.MULTILINE)[0] for block in blocks("console"))
    (tmp_path / "my_agent.py").write_text(graph)
    with serving(*start.split()) as (line, address):
        assert line.replace(address, "http://127.0.0.1:8123") in blocks("console")[0]
        (tmp_path / "client.py").write_text(client.replace("http://127.0.0.1:8123", address))
        assert run("client.py", check=True).stdout == printed
        assert "hi" in run("-c", MAIN, *show.split(), check=True).stdout
