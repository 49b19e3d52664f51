"""What was acknowledged is there after a power cut, at any moment and whatever the disk had taken till then.

A process runs graphs while all it does to the disk is logged, in order. From the log the disk is
rebuilt as it may be after a cut at some moment, and opened. Some moments by default; with
``SESSION_FAULT_ROUNDS=200`` many more.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from session_middleware import Sessions
from tests.support.disk import Disk, Record, read_log
from tests.support.marked_writer import Call, calls_in

SUPPORT = Path(__file__).parents[1] / "support"
CUTS = 6 * min(int(os.environ.get("SESSION_FAULT_ROUNDS", "1")), 66)
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
MODES = ["sync", "async"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="what a process writes can be logged on Linux only"
    ),
    pytest.mark.skipif(
        COMPILER is None and os.environ.get("CI") != "true",
        reason="a C compiler is needed to log what a process writes; install one (apt-get install gcc libc6-dev)",
    ),
]


@dataclass
class History:
    """What a process did: to the disk, and in its own words."""

    records: list[Record]
    calls: list[Call]


@pytest.fixture(scope="module")
def logger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None, "there is no C compiler, without which this cannot be tested; .ci/run installs one"
    library = tmp_path_factory.mktemp("logger") / "write_log.so"
    command = [COMPILER, "-shared", "-fPIC", "-O2", "-o", str(library), str(SUPPORT / "write_log.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, logger: Path) -> Callable[[str, str], History]:
    """Run the writer in one of the ways, once."""

    @cache
    def run(synchronous: str, mode: str) -> History:
        folder = tmp_path_factory.mktemp(f"{synchronous}-{mode}")
        database, log = folder / "sessions.db", folder / "log"
        environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parents[1])}
        environment |= {"LD_PRELOAD": str(logger), "WRITE_LOG": str(log), "WRITE_LOG_OF": str(database)}
        command = [sys.executable, str(SUPPORT / "marked_writer.py"), str(database), str(log), synchronous, mode]
        subprocess.run(command, check=True, timeout=100, env=environment)
        records = read_log(log)
        assert {record.what for record in records} >= set("OWTSUM"), "the log misses what must have been done"
        return History(records, list(calls_in(records).values()))

    return run


def moments(history: History, chance: Random) -> list[int]:
    """Half of them right after something was acknowledged, where the least may be missing."""
    acknowledged = [int(call.done) + 1 for call in history.calls]
    picked = chance.sample(acknowledged, min(CUTS // 2, len(acknowledged)))
    return sorted({*picked, *(chance.randrange(len(history.records)) for _ in range(CUTS // 2))})


def cuts(history: History, folder: Path, *, ignored: str = "") -> Iterator[tuple[int, Path]]:
    """The moments of the cuts, and what each has left."""
    chance, disk, played = Random(1), Disk(ignored=ignored), 0
    for moment in moments(history, chance):
        disk.play(history.records[played:moment])
        played = moment
        left = folder / str(moment)
        left.mkdir()
        disk.cut(left / "sessions.db", chance)
        yield moment, left / "sessions.db"
        shutil.rmtree(left)


# What is found


class Found:
    """What a file holds when it is opened after the cut."""

    def __init__(self, path: Path) -> None:
        with Sessions(path, synchronous="normal") as sessions:
            self.tuples = {
                (where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"]): found
                for found in sessions.checkpointer.list(None)
                for where in [found.config["configurable"]]
            }
            self.threads = {key[0] for key in self.tuples}
            self.sessions = {session.id: session.messages() for session in sessions.list(limit=None)}
            sessions.open("after the cut")
        connection = sqlite3.connect(path)
        self.integrity = [text for (text,) in connection.execute("PRAGMA integrity_check")]
        connection.close()

    def has(self, call: Call, *, deleted: set[str]) -> bool | None:
        """Whether a call's effect is there; ``None``: it cannot be known from outside."""
        if call.kind == "delete":
            return False if call.thread_id in self.threads else None
        if call.key in self.tuples:
            return call.kind == "put" or self._written(call) != []
        return None if call.kind == "writes" or call.thread_id in deleted else False

    def _written(self, call: Call) -> list[tuple[str, Any]]:
        pending = self.tuples[call.key].pending_writes or []
        return [(channel, value) for task_id, channel, value in pending if task_id == call.given[1]]

    def is_equal(self, call: Call) -> bool:
        if call.kind == "writes":
            return self._written(call) == list(call.given[0])
        found = self.tuples[call.key]
        return (found.checkpoint, found.metadata) == call.given

    def missing_from_the_record(self) -> list[str]:
        """Messages of a session's state that are not among its messages."""
        missing = []
        for thread_id in self.threads:
            latest = max(key for key in self.tuples if key[:2] == (thread_id, ""))
            state = self.tuples[latest].checkpoint["channel_values"].get("messages", [])
            recorded = {message.message_id for message in self.sessions.get(thread_id, [])}
            missing += [message.id for message in state if message.id not in recorded]
        return missing


def problems(history: History, moment: int, path: Path, *, synchronous: str) -> Iterator[str]:
    """What is wrong with a file after a cut: what was lost, torn, or is there without what came before it."""
    try:
        found = Found(path)
    except Exception as error:  # noqa: BLE001  # whatever it is, an app would not get its sessions
        yield f"it cannot be read: {error!r}"
        return
    if found.integrity != ["ok"]:
        yield f"its integrity: {found.integrity[:3]}"
    calls = [call for call in history.calls if call.begun < moment]
    deleted = {call.thread_id for call in calls if call.kind == "delete"}
    there = {id(call): found.has(call, deleted=deleted) for call in calls}
    last = max((call.begun for call in calls if there[id(call)]), default=0)
    for call in calls:
        if there[id(call)] and call.kind != "delete" and not found.is_equal(call):
            yield f"{call.kind} {call.key} is there, but not as it was put"
        elif there[id(call)] is False and call.done < moment and (synchronous == "full" or call.done < last):
            yield f"{call.kind} in {call.thread_id} was acknowledged, or had to come before what is there, and is lost"
    if missing := found.missing_from_the_record():
        yield f"not in the record: {missing}"


def all_problems(history: History, folder: Path, *, synchronous: str, ignored: str = "") -> list[str]:
    return [
        f"cut at {moment}: {problem}"
        for moment, path in cuts(history, folder, ignored=ignored)
        for problem in problems(history, moment, path, synchronous=synchronous)
    ]


# The claims


@pytest.mark.parametrize("mode", MODES)
def test_at_full_everything_acknowledged_survives_a_power_cut(mode: str, written: Any, tmp_path: Path) -> None:
    assert all_problems(written("full", mode), tmp_path, synchronous="full") == []


@pytest.mark.parametrize("mode", MODES if "SESSION_FAULT_ROUNDS" in os.environ else MODES[:1])  # one writer has both
def test_at_normal_a_power_cut_leaves_a_true_beginning_of_what_was_put(mode: str, written: Any, tmp_path: Path) -> None:
    assert all_problems(written("normal", mode), tmp_path, synchronous="normal") == []


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_a_power_cut_while_a_file_is_made_leaves_what_can_be_opened(
    synchronous: str, written: Any, tmp_path: Path
) -> None:
    history, chance, disk = written(synchronous, "sync"), Random(2), Disk()
    wrong = []
    first = min(call.done for call in history.calls)
    steps = [place for place, record in enumerate(history.records) if record.what in "OSU" and place < first]
    for place, record in enumerate(history.records[: max(steps) + 1]):
        disk.play([record])
        if place in steps or place % 8 == 0:
            left = tmp_path / str(place)
            left.mkdir()
            disk.cut(left / "sessions.db", chance)
            wrong += problems(history, place + 1, left / "sessions.db", synchronous=synchronous)
    assert wrong == []


# The harness itself


def test_a_disk_that_lies_about_the_log_loses_what_was_acknowledged(written: Any, tmp_path: Path) -> None:
    found = all_problems(written("full", "sync"), tmp_path, synchronous="full", ignored="w")
    assert any("is lost" in problem for problem in found)


def test_a_disk_that_lies_about_the_database_damages_it(written: Any, tmp_path: Path) -> None:
    found = all_problems(written("normal", "sync"), tmp_path, synchronous="normal", ignored="d")
    assert any("integrity" in problem or "cannot be read" in problem for problem in found)


def test_what_normal_promises_is_less_than_full(written: Any, tmp_path: Path) -> None:
    found = all_problems(written("normal", "sync"), tmp_path, synchronous="full")
    assert any("is lost" in problem for problem in found)
