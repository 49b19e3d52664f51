"""The checkpointer under faults that hang or corrupt others."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionError, Sessions, UnserializableValue


def graph() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("bot", lambda state: {"messages": [("ai", f"you said {state['messages'][-1].text}")]})
    builder.add_edge(START, "bot")
    return builder


def test_reading_and_writing_inside_an_unfinished_list_works(sessions: Sessions) -> None:
    agent, config = graph().compile(checkpointer=sessions.checkpointer), sessions.config("t")
    for number in range(15):
        agent.invoke({"messages": f"m{number}"}, config)
    seen = 0
    for found in sessions.checkpointer.list(config):
        assert sessions.checkpointer.get_tuple(found.config) is not None
        if seen % 10 == 0:
            agent.invoke({"messages": "in between"}, config)
        seen += 1
    assert seen == 45


async def test_reading_and_writing_inside_an_unfinished_alist_works(sessions: Sessions) -> None:
    agent, config = graph().compile(checkpointer=sessions.checkpointer), sessions.config("t")
    for number in range(5):
        await agent.ainvoke({"messages": f"m{number}"}, config)
    seen = 0
    async for found in sessions.checkpointer.alist(config):
        assert await sessions.checkpointer.aget_tuple(found.config) is not None
        await agent.ainvoke({"messages": "other"}, sessions.config("u"))
        seen += 1
    assert seen == 15


async def test_a_sync_call_on_the_loop_and_an_async_one_together_neither_hang_nor_fail(sessions: Sessions) -> None:
    agent = sessions.attach(graph().compile())
    calls = [asyncio.ensure_future(agent.ainvoke({"messages": "hi"}, sessions.config(f"a{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    for number in range(5):
        agent.invoke({"messages": "hi"}, sessions.config(f"s{number}"))
    await asyncio.gather(*calls)
    assert sessions.count() == 15


@pytest.mark.slow
async def test_many_cancelled_runs_leave_no_lock_and_nothing_torn(sessions: Sessions) -> None:
    agent = sessions.attach(graph().compile())
    runs = [asyncio.ensure_future(agent.ainvoke({"messages": "hi"}, sessions.config(f"t{n}"))) for n in range(100)]
    for run in runs[::3]:
        await asyncio.sleep(0)
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    for number in range(100):
        state = await agent.ainvoke({"messages": "again"}, sessions.config(f"t{number}"))
        texts = [message.text for message in state["messages"]]
        assert texts[-2:] == ["again", "you said again"]
        assert texts[:-2] in ([], ["hi"], ["hi", "you said hi"])


def test_writes_that_fail_half_way_are_not_there_at_all(sessions: Sessions) -> None:
    saver, config = sessions.checkpointer, sessions.config("t")
    config["configurable"]["checkpoint_ns"] = ""
    config = saver.put(config, empty_checkpoint(), {"source": "input", "step": -1, "parents": {}}, {})
    with pytest.raises(UnserializableValue, match=r"state\.b"):
        saver.put_writes(config, [("a", 1), ("b", object())], "task")
    found = saver.get_tuple(config)
    assert found is not None
    assert found.pending_writes == []


@pytest.mark.slow
def test_a_flipped_bit_is_never_read_as_state(tmp_path: Path) -> None:
    path = tmp_path / "whole.db"
    with Sessions(path) as sessions:
        agent = graph().compile(checkpointer=sessions.checkpointer)
        for number in range(4):
            agent.invoke({"messages": [HumanMessage("lorem ipsum " * 30, id=f"h{number}")]}, sessions.config("t"))
        whole = {found.config["configurable"]["checkpoint_id"]: found for found in sessions.checkpointer.list(None)}
    data, chance = path.read_bytes(), random.Random(7)
    wrong = []
    for round_ in range(60):
        place, bit = chance.randrange(100, len(data)), 1 << chance.randrange(8)
        damaged = bytearray(data)
        damaged[place] ^= bit
        copy = tmp_path / f"damaged-{round_}.db"
        copy.write_bytes(damaged)
        try:
            with Sessions(copy) as sessions:
                for checkpoint_id, expected in whole.items():
                    config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": checkpoint_id}}
                    found = sessions.checkpointer.get_tuple(config)
                    if found is not None and (found.checkpoint, found.metadata) != (
                        expected.checkpoint,
                        expected.metadata,
                    ):
                        wrong.append((place, bit, checkpoint_id))
        except SessionError:
            pass  # found, and named
        copy.unlink()
    assert wrong == []


def test_what_is_deleted_is_in_no_byte_of_the_files(tmp_path: Path) -> None:
    secret = "the-secret-word xyzzyplugh"
    with Sessions(tmp_path / "sessions.db") as sessions:
        agent = sessions.attach(graph().compile())
        for name in ("kept", "gone"):
            agent.invoke({"messages": f"{name}: {secret if name == 'gone' else 'x'}"}, sessions.config(name))
        sessions.get("gone").memory.remember(f"about {secret}")
        sessions.index_memory()
        assert sessions.get("gone").memory.recall("xyzzyplugh")
        sessions.checkpointer.delete_thread("gone")
        files = list(tmp_path.glob("sessions.db*"))
        assert len(files) >= 2
        for part in ("the-secret-word", "xyzzyplugh"):
            assert [file.name for file in files if part.encode() in file.read_bytes()] == []
        assert sessions.get("kept").message_count == 2
