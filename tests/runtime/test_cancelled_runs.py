"""A run that is cancelled while a thread still works for it, as when a client has gone away."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from session_middleware import Sessions
from session_middleware.checkpoint.serde import StrictSerializer
from tests.support import agents
from tests.support.agents import human


class Held(StrictSerializer):
    """Serialises; once it `is_armed`, not before it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_armed = False
        self.reached, self.go_on = threading.Event(), threading.Event()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if self.is_armed:
            self.is_armed = False
            self.reached.set()
            self.go_on.wait(30)
        return super().dumps_typed(obj)


@tool
def look_up(thing: str) -> str:
    """What a thing is, if it were not cut off."""
    raise KeyboardInterrupt


async def test_a_run_that_is_cancelled_while_its_repair_is_written_has_ended(tmp_path: Path) -> None:
    serde = Held()
    with Sessions(tmp_path / "sessions.db", serde=serde) as sessions:
        config = sessions.config("t")
        with pytest.raises(KeyboardInterrupt):
            sessions.attach(agents.tool_graph(look_up)).invoke(human("look up tea"), config)
        graph = sessions.attach(agents.tool_graph())
        serde.is_armed = True
        run = asyncio.create_task(graph.ainvoke(human("hello"), config))
        await asyncio.to_thread(serde.reached.wait, 30)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        serde.go_on.set()
        await graph.ainvoke(human("next"), config)
        session = sessions.get("t")
        assert [run.outcome for run in session.runs()] == ["interrupted", "interrupted", "ok"]
        assert [event.kind for event in session.events()] == ["opened", "resumed", "repaired", "resumed"]
        assert sessions.check() == []
