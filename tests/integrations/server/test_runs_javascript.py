"""A conversation by LangGraph's client for JavaScript."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from session_middleware import Sessions
from session_middleware.integrations.server import app
from tests.support import node
from tests.support.gated_server import caller_of, gated
from tests.support.served_app import serving

pytestmark = pytest.mark.slow


def test_the_javascript_client_drives_a_whole_conversation(sessions: Sessions, tmp_path: Path) -> None:
    command = node.script("conversation.mjs", uses="@langchain/langgraph-sdk")
    with serving(app(sessions, {"gated": gated(tmp_path)}, authenticate=caller_of)) as url:
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["events"] == ["metadata", "values", *["messages"] * 5, "values", "messages", "values"]
    assert found["tokens"] == "you said hiyours"
    assert found["again"] == found["events"][1:]
    assert found["asked"] == ["Which colour?"]
    assert found["status"] == "interrupted"
    assert found["answered"] == ["hi", "you said hi", "yours", "ask", "you like green", "yours"]
    assert found["history"] > 5
    assert found["runs"] == ["interrupted", "success", "success", "success"]
    assert found["refused"] == [404] * 5
    assert "leaked" not in found
    session = sessions.get(found["id"])
    assert session.user_id == "alice"
    assert [message.text for message in session.messages()][:3] == ["hi", "you said hi", "yours"]
