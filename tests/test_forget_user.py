"""Forgetting a user leaves no byte of theirs, and nobody else's is touched."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionAccessDenied, Sessions
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human, said

pytestmark = [pytest.mark.sessions(idle_timeout="1h"), pytest.mark.usefixtures("clock")]

PLANTED = "PLUGHXYZZY"  # in what alice says, in her id and in those of her sessions
ALICE = f"alice-{PLANTED}"


@pytest.fixture
def graph(sessions: Sessions, clock: Clock) -> Any:
    """Attached; alice has left something everywhere, and bob something beside it."""
    graph = sessions.attach(agents.tool_graph())
    for name in ("one", "two", "archived"):
        config = sessions.config(f"{name}-{PLANTED}", user_id=ALICE, group_id="team")
        graph.invoke(human(f"look up {PLANTED}"), config)
        sessions.get(f"{name}-{PLANTED}").update(title=PLANTED, context={"likes": PLANTED}, on_expire="archive")
    graph.invoke(human("look up tea"), sessions.config("b", user_id="bob", group_id="team"))
    mine = sessions.get(f"one-{PLANTED}")
    for scope in ("session", "user", "group", "global"):
        mine.memory.remember(f"{PLANTED} was here", scope=scope)
    sessions.get("b").memory.remember("bob was here", scope="group")
    sessions.get("b").pin("for the court", by=ALICE)
    for name in ("one", "two"):
        sessions.get(f"{name}-{PLANTED}").update(idle_timeout="never")
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human("mine"), sessions.config("b", user_id=ALICE))
    clock.advance(hours=2)
    sessions.sweep()
    sessions.checkpointer.copy_thread(f"two-{PLANTED}", f"fork-{PLANTED}")
    sessions.delete(f"two-{PLANTED}")
    return graph


def everything_stored(folder: Path) -> bytes:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return b"".join(str(file).encode() + file.read_bytes() for file in files)


async def test_no_byte_is_left_of_a_forgotten_user(sessions: Sessions, graph: Any, tmp_path: Path) -> None:
    before = dict(sessions.get("b"), pinned=None)
    bobs = (said(sessions.get("b")), graph.get_state(sessions.config("b", user_id="bob")).values)
    assert PLANTED.encode() in everything_stored(tmp_path)
    planned = await sessions.aforget_user(ALICE, dry_run=True)
    assert planned.dry_run
    assert sessions.count(user_id=ALICE) == 2
    forgotten = sessions.forget_user(ALICE)
    assert forgotten.model_dump(exclude={"dry_run", "bytes_freed"}) == planned.model_dump(
        exclude={"dry_run", "bytes_freed"}
    )
    assert (forgotten.sessions, forgotten.archives, forgotten.memories, forgotten.pending) == (2, 1, 4, False)
    assert forgotten.messages == 8  # a session, and a fork of another: as much was said in each
    assert forgotten.traces == 3  # that she was refused, and that she has pinned, and an event that says so
    assert PLANTED.encode() not in everything_stored(tmp_path)
    assert dict(sessions.get("b"), pinned=None) == before
    assert (said(sessions.get("b")), graph.get_state(sessions.config("b", user_id="bob")).values) == bobs
    assert [memory.text for memory in sessions.get("b").memory.recall("bob", kinds=["item"])] == ["bob was here"]
    assert sessions.check() == []
    assert sessions.check(deep=True) == []
    assert sessions.forget_user(ALICE).sessions == 0


@pytest.mark.parametrize("recorder", [True, False])
def test_no_byte_is_left_of_who_ran_in_anothers_session(tmp_path: Path, recorder: bool) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph, bobs = sessions.attach(agents.chat(), recorder=recorder), sessions.config("b", user_id="bob")
        sessions.open("b", user_id="bob", group_id="team").update(visibility="group-write")
        graph.invoke(human("hi"), bobs)
        graph.invoke(human("hello"), sessions.config("b", user_id=ALICE, group_id="team"))
        assert PLANTED.encode() in everything_stored(tmp_path)
        before = graph.get_state(bobs).values
        sessions.forget_user(ALICE)
        assert graph.get_state(bobs).values == before
        assert sessions.check(deep=True) == []
        assert PLANTED.encode() not in everything_stored(tmp_path)


WORDS_OF_A_CHECKPOINT = ["id", "channel_versions", "loop", "ts", "v", "messages", "hello", "thread-of-bob", "writes"]


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("user_id", WORDS_OF_A_CHECKPOINT)
async def test_a_user_whose_id_is_a_word_of_the_state_is_forgotten_without_harm_to_it(
    tmp_path: Path, user_id: str, attach: bool
) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = agents.chat() if not attach else sessions.attach(agents.chat())
        graph.checkpointer = sessions.checkpointer
        bobs = sessions.config("thread-of-bob", user_id="bob")
        sessions.open("thread-of-bob", user_id="bob", group_id="team").update(visibility="group-write")
        graph.invoke(human("hi"), bobs)
        graph.invoke(human("hello"), sessions.config("thread-of-bob", user_id=user_id, group_id="team"))
        before = list(graph.get_state_history(bobs))
        sessions.forget_user(user_id)
        assert list(graph.get_state_history(bobs)) == before
        assert [snapshot async for snapshot in graph.aget_state_history(bobs)] == before
        assert sessions.check(deep=True) == []
        assert len(graph.invoke(human("and now?"), bobs)["messages"]) == 6


@pytest.mark.parametrize("attach", [True, False])
async def test_who_ran_is_no_part_of_a_checkpoint_and_all_else_of_a_config_is(tmp_path: Path, attach: bool) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = agents.chat() if not attach else sessions.attach(agents.chat())
        graph.checkpointer = sessions.checkpointer
        mine = sessions.config("t", user_id=ALICE, group_id="team", group_ids=["other"], plan="gold")
        mine["metadata"] = {**mine["metadata"], "city": "Ulm", "langgraph_auth_user_id": ALICE}
        graph.invoke(human("hi"), mine)
        await graph.ainvoke(human("hello"), mine)
        graph.update_state(mine, human("by hand"))
        history = list(graph.get_state_history(mine))
        for snapshot in history:
            assert not {"user_id", "group_id", "group_ids", "langgraph_auth_user_id"} & (snapshot.metadata or {}).keys()
            assert snapshot.config["configurable"]["user_id"] == ALICE
        assert len(list(graph.get_state_history(mine, filter={"city": "Ulm", "plan": "gold"}))) == len(history)
        assert list(graph.get_state_history(mine, filter={"city": "Bonn"})) == []
        assert len(list(graph.get_state_history(mine, filter={"user_id": ALICE, "group_id": "team"}))) == len(history)
        graph.invoke(human("hi"), sessions.config("u", user_id="bob"))
        for wanted, ids in (({"user_id": "bob"}, {"u"}), ({"user_id": "bob", "plan": "gold"}, set()), ({}, {"t", "u"})):
            found = list(sessions.checkpointer.list(None, filter=wanted))
            assert {each.config["configurable"]["thread_id"] for each in found} == ids
        assert len(list(sessions.checkpointer.list(None, filter={"user_id": ALICE}, limit=2))) == 2
        bodies = sqlite3.connect(tmp_path / "sessions.db").execute("SELECT body FROM checkpoints").fetchall()
        assert not any(PLANTED.encode() in body for (body,) in bodies)


def test_what_was_forgotten_is_not_brought_back_by_a_slow_run(sessions: Sessions, graph: Any, tmp_path: Path) -> None:
    from langchain_core.tools import tool

    from session_middleware import SessionClosed

    @tool
    def look_up(thing: str) -> str:
        """The operator acts meanwhile."""
        sessions.forget_user(ALICE)
        return PLANTED

    slow = sessions.attach(agents.tool_graph(look_up))
    with pytest.raises(SessionClosed, match=f"session 'one-{PLANTED}' is deleted"):
        slow.invoke(human("look up tea"), sessions.config(f"one-{PLANTED}", user_id=ALICE))
    assert sessions.find(f"one-{PLANTED}") is None
    assert PLANTED.encode() not in everything_stored(tmp_path)
    assert sessions.explain(f"one-{PLANTED}").status == "forgotten"


def test_what_a_killed_sweep_has_left_goes_too(sessions: Sessions, graph: Any, tmp_path: Path) -> None:
    """An archive not yet in the database; what a deleted session gave its group."""
    from session_middleware.storage.sql.sessions import archives

    sessions.delete(f"one-{PLANTED}")
    fork = sessions._storage.find_session(f"fork-{PLANTED}")
    assert fork is not None
    storage = sessions._storage
    left = Path(storage._database.read(lambda connection: archives.write(connection, fork, storage._rules))[0])
    assert left.is_file()
    left.with_name(f"partial.{left.name}").write_bytes(left.read_bytes())
    sessions.forget_user(ALICE)
    assert not left.exists()
    assert PLANTED.encode() not in everything_stored(tmp_path)


def test_a_reader_of_an_older_snapshot_makes_the_receipt_say_that_it_is_pending(
    sessions: Sessions, graph: Any, tmp_path: Path
) -> None:
    reader = sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM sessions").fetchone()
    assert sessions.forget_user(ALICE).pending
    reader.execute("ROLLBACK")
    reader.close()
    assert not sessions.forget_user(ALICE).pending
    assert PLANTED.encode() not in everything_stored(tmp_path)


def test_a_revocation_outlives_what_it_was_of(sessions: Sessions, graph: Any, tmp_path: Path) -> None:
    sessions.revoke(ALICE)
    sessions.forget_user(ALICE)
    assert PLANTED.encode() not in everything_stored(tmp_path)
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human("back"), sessions.config("new", user_id=ALICE))
