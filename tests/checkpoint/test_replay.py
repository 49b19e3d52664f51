"""A conversation of months, through an attached graph, in several processes one after another."""

from __future__ import annotations

import signal
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from session_middleware import Sessions
from tests.support import replay
from tests.support.processes import run
from tests.support.replay import THREAD, Sittings

TURNS_FILE = replay.find_turns_file()

pytestmark = pytest.mark.skipif(TURNS_FILE is None, reason=replay.ABSENT)


@pytest.fixture(scope="module")
def sittings() -> Sittings:
    assert TURNS_FILE is not None
    return replay.read_sittings(TURNS_FILE)


@pytest.fixture(scope="module")
def uninterrupted(sittings: Sittings) -> list[BaseMessage]:
    """The state's messages after one process and one graph have played all of it."""
    script: deque[BaseMessage] = deque()
    graph = replay.build(script).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": THREAD}}
    for turns in sittings.values():
        for turn in turns:
            replay.play(graph, script, turn, config)
    return graph.get_state(config).values["messages"]


def replayed(database: Path, sittings: Sittings, *, processes: int, killed: bool) -> list[str]:
    """Play all sittings, some in each process; the ids of the messages that were acknowledged."""
    numbers = list(sittings)
    size = -(-len(numbers) // processes)
    acknowledged: list[str] = []
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        command = (replay.__file__, TURNS_FILE, database, part[0], part[-1])
        done = run(*command, *(["--killed"] if killed else []), timeout=60)
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
        acknowledged += done.stdout.split()
    return acknowledged


def spoken(messages: list[BaseMessage]) -> list[tuple[str | None, str, Any]]:
    return [(message.id, message.type, message.content) for message in messages]


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_a_conversation_over_many_processes_is_whole_in_order_and_recorded_once(
    tmp_path: Path, sittings: Sittings, uninterrupted: list[BaseMessage], killed: bool
) -> None:
    """A killed process dies right after its last acknowledged turn, with its database open."""
    database = tmp_path / "sessions.db"
    everything = replay.all_messages(sittings)
    turn_count = sum(map(len, sittings.values()))

    acknowledged = replayed(database, sittings, processes=3 if killed else 6, killed=killed)

    assert acknowledged == [message.id for message in everything]
    with Sessions(database) as sessions:
        session = sessions.get(THREAD)
        rows = session.messages(all_versions=True)
        assert [row.message_id for row in rows] == acknowledged
        assert [(row.role, row.text, row.content) for row in rows] == [
            (
                "user" if message.type == "human" else "assistant",
                str(message.text),
                None if isinstance(message.content, str) else message.content,
            )
            for message in everything
        ]
        assert session.message_count == len(everything)
        assert [run.outcome for run in session.runs()] == ["ok"] * turn_count
        assert [event.kind for event in session.events()] == ["opened"] + ["resumed"] * (turn_count - 1)

        graph = sessions.attach(replay.build(deque()).compile())
        state = graph.get_state(sessions.config(THREAD, user_id="reader"))
        assert spoken(state.values["messages"]) == spoken(uninterrupted)
        assert state.next == ()
