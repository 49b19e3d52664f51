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


def test_a_pending_write_that_cannot_be_found_is_no_task_to_run_again(sessions: Any) -> None:
    saver, config = sessions.checkpointer, sessions.config("t")
    found = saver.get_tuple(config)
    saver.put_writes(found.config, [("messages", [HumanMessage("done")]), ("other", 1)], "task")
    assert len(saver.get_tuple(config).pending_writes) == 2
    vanish(sessions, "writes", f"{NEWEST} AND task_id = 'task'")
    with pytest.raises(StorageError, match="a write of it cannot be found"):
        saver.get_tuple(config)


def test_writes_that_come_before_their_checkpoint_are_counted_with_it(sessions: Any) -> None:
    saver, config = sessions.checkpointer, sessions.config("t")
    found = saver.get_tuple(config)
    checkpoint = {**found.checkpoint, "id": "f" * 36}
    ahead = {"configurable": {**found.config["configurable"], "checkpoint_id": checkpoint["id"]}}
    saver.put_writes(ahead, [("messages", [])], "task")
    saver.put_writes(ahead, [("messages", [])], "task")
    saver.put(found.config, checkpoint, {}, {})
    assert len(saver.get_tuple(config).pending_writes) == 1


def test_what_is_left_after_deleting_some_is_whole(sessions: Any) -> None:
    saver = sessions.checkpointer
    saver.prune(["t"])
    saver.copy_thread("t", "copy")
    for session_id in ("t", "copy"):
        assert len(list(saver.list(sessions.config(session_id)))) == 1
        assert saver.get_tuple(sessions.config(session_id)) is not None
    saver.delete_thread("t")
    assert saver.get_tuple(sessions.config("t")) is None
    assert saver.get_tuple(sessions.config("copy")) is not None
