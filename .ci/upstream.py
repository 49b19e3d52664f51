"""Run the tests of the installed LangGraph with our checkpointer and store: `make upstream`.

The source distributions of LangGraph and its prebuilt agents contain their tests. These run with our checkpointer and
store in place of LangGraph's, and again with each compiled graph attached. After each test its databases are checked,
and its record is read. The command fails for a test that fails twice with ours, passes with LangGraph's, and is not
among `DIFFERENT`. This file is also the plugin of pytest that puts ours in place.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "upstream"
PACKAGES = ("langgraph", "langgraph-prebuilt")
MODES = ("checkpointer", "attached")
DIFFERENT = {
    "test_delta_channel_snapshot_version_based": "reads `InMemorySaver.blobs`",
    "test_bulk_update_state_replays_updates_in_the_order_given": "reads `InMemorySaver.writes`",
    "test_counter_reset_after_supersteps_snapshot": "expects a snapshot where `SqliteSaver` has none too",
    "test_dynamic_interrupt": "expects LangGraph's sentence about a missing thread id, in place of `InvalidSessionId`",
    "test_partial_pending_checkpoint": "the same",
}


def main() -> None:
    failures: set[str] = set()
    for package in PACKAGES:
        release = f"{package.replace('-', '_')}-{version(package)}"
        download(package, release)
        for mode in MODES:
            passed, failed = run(release, mode)
            again = run(release, mode, failed)[1]
            ours = again - run(release, "theirs", again)[1]
            different = {test for test in ours if any(name in test for name in DIFFERENT)}
            print(
                f"{release}, {mode}: {passed + len(failed - again)} passed, {len(again - ours)} fail with theirs too,"
            )
            print(f"    {len(different)} are known to be different, {len(ours - different)} fail with ours alone")
            failures |= ours - different
    sys.exit("\n".join(["failed:", *sorted(failures), f"The logs are in {BUILD}."]) if failures else 0)


def download(package: str, release: str) -> None:
    """Lay a source distribution into the folder of builds, once."""
    if not (BUILD / release).exists():
        options = ("--quiet", "--no-deps", "--no-binary=:all:", f"--dest={BUILD}", f"{package}=={version(package)}")
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
        with tarfile.open(BUILD / f"{release}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")


def run(release: str, mode: str, only: Collection[str] | None = None) -> tuple[int, set[str]]:
    """Run all tests, or some of them one after the other. Returns how many passed, and the ids of those that failed."""
    if only is not None and not only:
        return 0, set()
    folder = BUILD / release
    which = ["tests", "-n", "auto", "--dist", "worksteal"] if only is None else sorted(only)
    options = ("-q", "-p", "upstream", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout", "120")
    path = os.pathsep.join(map(str, (ROOT, ROOT / ".ci", folder)))
    environment = {**os.environ, "UPSTREAM_MODE": mode, "NO_DOCKER": "true", "PYTHONPATH": path}
    (results := folder / "results.json").unlink(missing_ok=True)
    with (BUILD / f"{release}-{mode}{'' if only is None else '-again'}.log").open("w") as log:
        command = [sys.executable, "-m", "pytest", *options, *which]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if not results.exists():
        sys.exit(f"pytest did not finish: see {log.name}")
    passed, failed = json.loads(results.read_text())
    return passed, set(failed)


# The plugin


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed, failed, errors = (terminalreporter.stats.get(kind, []) for kind in ("passed", "failed", "error"))
    Path("results.json").write_text(json.dumps([len(passed), [report.nodeid for report in failed + errors]]))


if (mode := os.environ.get("UPSTREAM_MODE")) in MODES:
    import langgraph.checkpoint.memory
    import langgraph.checkpoint.sqlite.aio
    import langgraph.store.memory
    from langgraph.graph.state import StateGraph

    from session_middleware import Sessions
    from session_middleware.checkpoint.saver import SessionSaver

    folder = tempfile.TemporaryDirectory()
    numbers = itertools.count()
    opened: list[Sessions] = []

    def sessions(**settings: Any) -> Sessions:
        opened.append(Sessions(f"{folder.name}/{next(numbers)}.db", sweep_interval=None, **settings))
        return opened[-1]

    class Saver(SessionSaver):
        """Our saver, constructed and subclassed as LangGraph's are."""

        def __init__(self, *, serde: Any = None, factory: Any = None) -> None:
            vars(self).update(vars(sessions(serde=serde).checkpointer))
            self.stack = ExitStack()

    def attached(self: Any, *arguments: Any, **options: Any) -> Any:
        graph = compiled(self, *arguments, **options)
        if type(saver := graph.checkpointer) not in (Saver, SessionSaver):  # a subclass has methods of its own
            return graph
        [own] = [each for each in opened if each.checkpointer._storage is saver._storage]
        return own.attach(graph, replace=True, store=graph.store is None)

    langgraph.checkpoint.memory.InMemorySaver = langgraph.checkpoint.memory.MemorySaver = Saver
    sqlite = SimpleNamespace(from_conn_string=lambda conn_string: nullcontext(sessions().checkpointer))
    langgraph.checkpoint.sqlite.SqliteSaver = langgraph.checkpoint.sqlite.aio.AsyncSqliteSaver = sqlite
    langgraph.store.memory.InMemoryStore = lambda **settings: sessions(**settings).store
    if mode == "attached":
        compiled, StateGraph.compile = StateGraph.compile, attached

    @pytest.fixture(autouse=True)
    def checked() -> Iterator[None]:
        yield
        while opened:
            with opened.pop() as own:
                assert own.check(deep=True) == []
                assert own.recorder.faults == 0
                for session in own.list(limit=None):
                    session.timeline()
                    session.messages(branch="all")
                    assert all(run.outcome != "running" for run in session.runs())


if __name__ == "__main__":
    main()
