"""Rows that cannot be found any more: nothing older or emptier passes for what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import Sessions
from session_middleware.errors import StorageError
from tests.conftest import OpenSessions
from tests.faults.test_saver import graph

pytestmark = pytest.mark.usefixtures("each_engine")


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Sessions:
    sessions = open_sessions()
    agent = graph().compile(checkpointer=sessions.checkpointer)
    for session_id in ("t", "other"):
        for number in range(2):
            agent.invoke({"messages": [HumanMessage("hi", id=f"h{number}")]}, sessions.config(session_id))
    return sessions


def vanish(sessions: Any, table: str, where: str = "TRUE") -> None:
    """As a flipped bit in a key does it: the row is no longer where its key is looked for."""
    sessions._storage._database.write(
        lambda c: c.execute(
            f"DELETE FROM {table} WHERE {'id' if table == 'sessions' else 'session_id'} = 't' AND {where}"
        )
    )


NEWEST = "checkpoint_id = (SELECT MAX(checkpoint_id) FROM checkpoints WHERE session_id = 't')"


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("checkpoints", NEWEST),
        ("checkpoints", "TRUE"),
        ("sessions", "TRUE"),
    ],
)
def test_a_thread_whose_newest_state_cannot_be_found_says_so(sessions: Any, table: str, where: str) -> None:
    vanish(sessions, table, where)
    saver, config = sessions.checkpointer, sessions.config("t")
    for read in (
        saver.get_tuple,
        lambda config: list(saver.list(config)),
        graph().compile(checkpointer=saver).get_state,
    ):
        with pytest.raises(StorageError, match="session 't'"):
            read(config)
    with pytest.raises(StorageError, match="session 't'"):
        graph().compile(checkpointer=saver).invoke({"messages": [HumanMessage("more")]}, config)
    assert saver.get_tuple(sessions.config("other")) is not None
