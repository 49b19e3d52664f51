"""A process that runs graphs on a file, and marks in the log when each of its writes began and returned.

python power_writer.py DATABASE LOG SYNCHRONOUS MODE
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, get_checkpoint_metadata

from session_middleware import Sessions
from tests.support import disk
from tests.support.writer import graph

OPENINGS, TURNS, SESSIONS = 3, 4, 3
_words = random.Random(1)


@dataclass
class Call:
    """A write of such a process, and where in the log it began and returned."""

    kind: str  # put, writes, delete
    where: dict[str, Any]  # the config's ``configurable``
    given: tuple[Any, ...]
    begun: int
    done: float = float("inf")

    @property
    def thread_id(self) -> str:
        return str(self.where["thread_id"])

    @property
    def key(self) -> tuple[str, str, str]:
        checkpoint_id = self.given[0]["id"] if self.kind == "put" else self.where["checkpoint_id"]
        return self.thread_id, self.where["checkpoint_ns"], checkpoint_id


def calls_in(records: list[disk.Record]) -> dict[int, Call]:
    found: dict[int, Call] = {}
    for place, record in enumerate(records):
        if record.what == disk.MARK:
            what, number, *said = pickle.loads(record.data)
            if what == "begun":
                kind, where, *given = said
                found[number] = Call(kind, where, tuple(given), place)
            else:
                found[number].done = place
    return found


class Marks:
    """Appended to the log that also has what is done to the disk, so that their order is known."""

    def __init__(self, path: str, die_after: float) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = itertools.count()
        self._left = die_after

    @contextmanager
    def around(self, kind: str, where: dict[str, Any], *given: Any) -> Iterator[None]:
        number = next(self._numbers)
        names = ("thread_id", "checkpoint_ns", "checkpoint_id")
        self._mark("begun", number, kind, {name: where[name] for name in names if name in where}, *given)
        yield
        self._mark("done", number)
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _mark(self, *mark: Any) -> None:
        os.write(self._file, disk.mark(pickle.dumps(mark)))


class Witness(BaseCheckpointSaver[Any]):
    """Passes all on to a saver, and marks each write."""

    def __init__(self, saver: BaseCheckpointSaver[Any], marks: Marks) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver
        self.marks = marks

    def get_next_version(self, current: Any, channel: None) -> Any:
        return self.saver.get_next_version(current, channel)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self.saver.get_tuple(config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self.saver.aget_tuple(config)

    def list(self, *args: Any, **options: Any) -> Iterator[CheckpointTuple]:
        return self.saver.list(*args, **options)

    def alist(self, *args: Any, **options: Any) -> AsyncIterator[CheckpointTuple]:
        return self.saver.alist(*args, **options)

    def put(self, config: RunnableConfig, checkpoint: Any, metadata: Any, new_versions: Any) -> RunnableConfig:
        with self.marks.around("put", config["configurable"], checkpoint, get_checkpoint_metadata(config, metadata)):
            return self.saver.put(config, checkpoint, metadata, new_versions)

    async def aput(self, config: RunnableConfig, checkpoint: Any, metadata: Any, new_versions: Any) -> RunnableConfig:
        with self.marks.around("put", config["configurable"], checkpoint, get_checkpoint_metadata(config, metadata)):
            return await self.saver.aput(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: RunnableConfig, writes: Sequence[Any], task_id: str, task_path: str = "") -> None:
        with self.marks.around("writes", config["configurable"], writes, task_id):
            self.saver.put_writes(config, writes, task_id, task_path)

    async def aput_writes(self, config: RunnableConfig, writes: Any, task_id: str, task_path: str = "") -> None:
        with self.marks.around("writes", config["configurable"], writes, task_id):
            await self.saver.aput_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        with self.marks.around("delete", {"thread_id": thread_id}):
            self.saver.delete_thread(thread_id)


def said(name: str, opening: int, turn: int) -> dict[str, Any]:
    filler = _words.randbytes(_words.choice([4, 40, 4000])).hex()
    return {"messages": [HumanMessage(f"{filler} double {turn}", id=f"{name}-{opening}-{turn}")]}


def talk(agent: Any, sessions: Sessions, opening: int) -> None:
    for turn in range(TURNS):
        for name in range(SESSIONS):
            agent.invoke(said(f"s{name}", opening, turn), sessions.config(f"s{name}"), durability="sync")


async def atalk(agent: Any, sessions: Sessions, opening: int) -> None:
    async def one(name: str) -> None:
        for turn in range(TURNS):
            await agent.ainvoke(said(name, opening, turn), sessions.config(name), durability="sync")

    await asyncio.gather(*(one(f"s{name}") for name in range(SESSIONS)))


def main(path: str, log: str, synchronous: str, mode: str, die_after: str = "inf") -> None:
    marks = Marks(log, float(die_after))
    for opening in range(OPENINGS):
        with Sessions(path, synchronous=synchronous) as sessions:
            saver = Witness(sessions.checkpointer, marks)
            agent = sessions.attach(graph().compile(checkpointer=saver), checkpointer=False)
            gone = f"gone{opening}"
            agent.invoke(said(gone, opening, 0), sessions.config(gone), durability="sync")
            if mode == "async":
                asyncio.run(atalk(agent, sessions, opening))
            else:
                talk(agent, sessions, opening)
            saver.delete_thread(gone)
            agent.invoke(said("s0", opening, TURNS), sessions.config("s0"), durability="async")


if __name__ == "__main__":
    main(*sys.argv[1:])
