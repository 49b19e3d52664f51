"""The page on the gateway: its MCP server is served by its command, and its client is run."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.commands import serving
from tests.support.processes import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_app_of_the_page_starts_a_process_for_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, app, _ = blocks("python")
    (tmp_path / "counter.py").write_text(counter)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    names: dict[str, Any] = {}
    exec(compile(app, "my_app.py", "exec"), names)
    with TestClient(names["host"]) as client:
        session_id = client.post("/session/start", json={}).json()["session_id"]
        assert client.post(f"/session/{session_id}/tools/add", json={"n": 2}).json()["result"] == 2
        assert client.get(f"/session/{session_id}/status").json()["tool_call_count"] == 1


@pytest.mark.slow
def test_the_gateway_and_the_client_of_the_page_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (counter, _, client), (console,), (printed,) = blocks("python"), blocks("console"), blocks("text")
    (tmp_path / "counter.py").write_text(counter)
    command = re.findall(r"^\$ session-middleware (.*)$", console, re.MULTILINE)[0]
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with serving(*shlex.split(command)) as (line, address):
        assert line.replace(address, "http://127.0.0.1:8123") in console
        (tmp_path / "client.py").write_text(client.replace("http://127.0.0.1:8123", address))
        done = run("client.py")
        assert (done.stderr, done.stdout) == ("", printed)
        assert [path.parent.name for path in tmp_path.glob("mcp-data/local/*/counter")] != []
