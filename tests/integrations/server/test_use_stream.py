"""A chat front end made with ``useStream``, React's hook of LangGraph's client: it works as with LangGraph's server."""

from __future__ import annotations

import json
import subprocess

import pytest

from session_middleware import Sessions
from session_middleware.integrations.server import app
from tests.support import agents, node
from tests.support.gated_server import caller_of
from tests.support.served_app import serving

pytestmark = pytest.mark.slow


def test_a_person_chats_approves_edits_and_comes_back(sessions: Sessions) -> None:
    command = node.script("use_stream.mjs", uses="react-test-renderer")
    with serving(app(sessions, {"agent": agents.agent()}, authenticate=caller_of)) as url:
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    edited = ["look up milk", "milk is nice", "it said milk is nice"]
    assert json.loads(ran.stdout) == {
        "errors": [],
        "answered": ["look up tea", "tea is nice", "it said tea is nice"],
        "asked": "may I have cake?",
        "edited": edited,
        "branches": 2,
        "again": edited,
    }
    (session,) = sessions.list()
    assert (session.user_id, session.title, len(session.branches())) == ("alice", "look up tea", 1)
    assert [message.text for message in session.messages() if message.text] == edited
