"""An agent that cannot recall goes on without."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel

from session_middleware import Sessions
from session_middleware.integrations.langchain_agents import SessionMiddleware


def agent_of(sessions: Sessions) -> Any:
    model = FakeListChatModel(responses=["ok"])
    return sessions.attach(create_agent(model, [], middleware=[SessionMiddleware(sessions, recall=True)]))


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failing_recall_is_told_once_and_the_run_goes_on(
    is_async: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path, sweep_interval=None) as sessions, caplog.at_level(logging.WARNING, "session_middleware"):
        agent, config = agent_of(sessions), sessions.config("t", user_id="alice")
        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE index_sessions RENAME TO gone")
        for _ in range(2):
            asked = {"messages": "what tea do I drink?"}
            answer = await agent.ainvoke(asked, config) if is_async else agent.invoke(asked, config)
            assert answer["messages"][-1].text == "ok"
        assert sessions.recorder.faults == 2
        assert len([record for record in caplog.records if "counted" in record.message]) == 1
        assert [run.outcome for run in sessions.get("t").runs()] == ["ok", "ok"]
