"""The latest checkpoint, its writes, and the number of checkpoints are stored twice: a lost row is missed."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from session_middleware import StorageError
from session_middleware.models import Identity
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import SessionDetails


def at(checkpoint_id: str | None = None, thread: str = "t", ns: str = "") -> Any:
    more = {"checkpoint_id": checkpoint_id} if checkpoint_id else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, **more}}


def put(sessions: Any, checkpoint_id: str, parent: str | None = None, **metadata: Any) -> None:
    checkpoint = {**empty_checkpoint(), "id": checkpoint_id}
    sessions.checkpointer.put(at(parent), checkpoint, {"source": "loop", **metadata}, {})


def write(sessions: Any, checkpoint_id: str, task: str = "task") -> None:
    sessions.checkpointer.put_writes(at(checkpoint_id), [("a", 1), ("b", 2)], task)


def thread(sessions: Any) -> None:
    """A line of three, from the first of which a branch has been tried, with a write each; and another thread."""
    for checkpoint_id, parent in (("1", None), ("2", "1"), ("3", "1"), ("4", "3")):
        put(sessions, checkpoint_id, parent, run_id=f"run {checkpoint_id}")
        write(sessions, checkpoint_id)
    sessions.checkpointer.copy_thread("t", "u")


def vanish(sessions: Any, table: str, checkpoint_id: str, thread: str = "t") -> None:
    sql = f"DELETE FROM {table} WHERE session_id = ? AND checkpoint_id = ?"
    sessions._storage._database.write(lambda c: c.execute(sql, (thread, checkpoint_id)))


def listed(sessions: Any, config: Any, **how: Any) -> list[str]:
    return [found.config["configurable"]["checkpoint_id"] for found in sessions.checkpointer.list(config, **how)]


def is_clean(sessions: Any) -> bool:
    return not sessions.check() and not sessions.check(deep=True)


@pytest.mark.parametrize(
    ("table", "lost"), [("checkpoints", "1"), ("checkpoints", "2"), ("checkpoints", "4"), ("writes", "4")]
)
def test_a_lost_row_is_missed_by_every_reading_that_should_show_it(sessions: Any, table: str, lost: str) -> None:
    thread(sessions)
    vanish(sessions, table, lost)
    for reading in (
        lambda: sessions.checkpointer.get_tuple(at(lost)),
        lambda: listed(sessions, at()),
        lambda: listed(sessions, None),
        lambda: listed(sessions, at(lost)),
        lambda: listed(sessions, at(), limit=4),
        lambda: listed(sessions, at(), filter={"run_id": f"run {lost}"}),
    ):
        with pytest.raises(StorageError, match=r"of session 't'.*damaged"):
            reading()
    assert listed(sessions, at(thread="u")) == ["4", "3", "2", "1"]
    for deep in (False, True):
        found = sessions.check(deep=deep)
        assert {problem.session_id for problem in found} == {"t"}
        assert sessions.check(deep=deep, repair=True) == found


@pytest.mark.parametrize(("column", "value"), [("checkpoint_id", "5"), ("checkpoint_id", ""), ("position", "")])
def test_a_row_under_another_id_or_position_is_missed_by_its_own(sessions: Any, column: str, value: str) -> None:
    thread(sessions)
    sql = f"UPDATE checkpoints SET {column} = ? WHERE session_id = 't' AND checkpoint_id = '2'"
    sessions._storage._database.write(lambda c: c.execute(sql, (value,)))
    with pytest.raises(StorageError, match=r"checkpoint 2 of session 't'.*damaged"):
        sessions.checkpointer.get_tuple(at("2"))
    with pytest.raises(StorageError, match=r"of session 't'.*damaged"):
        sessions.checkpointer.get_delta_channel_history(config=at("2"), channels=["a"])
    assert sessions.checkpointer.get_tuple(at("3")) is not None


def test_the_latest_is_missed_by_the_first_page_of_a_list(sessions: Any) -> None:
    thread(sessions)
    vanish(sessions, "checkpoints", "4")
    with pytest.raises(StorageError, match=r"of session 't'.*damaged"):
        listed(sessions, at(), limit=1)
    assert listed(sessions, at(), before=at("4"), limit=1) == ["3"]


def test_one_that_never_was_is_not_there_and_no_damage(sessions: Any) -> None:
    for checkpoint_id in ("2", "4"):
        put(sessions, checkpoint_id)
    for checkpoint_id in ("1", "3", "5"):
        assert sessions.checkpointer.get_tuple(at(checkpoint_id)) is None
        assert listed(sessions, at(checkpoint_id)) == []
    assert sessions.checkpointer.get_tuple(at("1", thread="other")) is None


def test_what_comes_out_of_order_is_noted_in_its_place(sessions: Any) -> None:
    write(sessions, "5")  # long before its checkpoint
    for checkpoint_id in ("4", "2", "5", "1", "3", "3", "5"):
        put(sessions, checkpoint_id)
        write(sessions, checkpoint_id)
        write(sessions, "2", f"late, after {checkpoint_id}")
    assert listed(sessions, at()) == ["5", "4", "3", "2", "1"]
    assert len(sessions.checkpointer.get_tuple(at("2")).pending_writes) == 12
    assert is_clean(sessions)
    vanish(sessions, "checkpoints", "3")
    with pytest.raises(StorageError, match="session 't'"):
        listed(sessions, at())


@pytest.mark.parametrize("runs", [["1"], ["2", "3"], ["4"], ["1", "4"], ["1", "2", "3", "4"]])
def test_what_is_deleted_on_purpose_is_not_missed_and_what_had_vanished_still_is(
    sessions: Any, runs: list[str]
) -> None:
    thread(sessions)
    sessions.checkpointer.delete_for_runs([f"run {run}" for run in runs])
    left = [each for each in "4321" if each not in runs]
    assert listed(sessions, at()) == left
    assert [sessions.checkpointer.get_tuple(at(run)) for run in runs] == [None] * len(runs)
    put(sessions, "6", left[0] if left else None)
    assert listed(sessions, at()) == ["6", *left]
    assert is_clean(sessions)
    for lost in left:
        vanish(sessions, "checkpoints", lost)
        sessions.checkpointer.delete_for_runs(["run 6"])
        with pytest.raises(StorageError, match=f"checkpoint {lost}"):
            sessions.checkpointer.get_tuple(at(lost))


def test_a_thread_whose_newest_has_vanished_is_not_pruned_to_an_older_one(sessions: Any) -> None:
    thread(sessions)
    vanish(sessions, "checkpoints", "4")
    with pytest.raises(StorageError, match=r"session .t.*newest"):
        sessions.checkpointer.prune(["t", "u"])
    assert sessions.checkpointer.get_tuple(at("3")) is not None
    assert listed(sessions, at(thread="u")) == ["4"]


def test_a_copy_misses_what_its_source_misses(sessions: Any) -> None:
    thread(sessions)
    vanish(sessions, "writes", "4")
    sessions.checkpointer.copy_thread("t", "copy")
    vanish(sessions, "checkpoints", "4")
    sessions.checkpointer.copy_thread("t", "second")
    for name in ("copy", "second"):
        with pytest.raises(StorageError, match=f"of session '{name}'"):
            sessions.checkpointer.get_tuple(at("4", thread=name))
        assert sessions.checkpointer.get_tuple(at("3", thread=name)) is not None


def test_the_writes_of_operations_that_share_a_commit_are_counted(sessions: Any) -> None:
    def failing() -> None:
        write(sessions, "3")
        raise LookupError

    put(sessions, "1")
    calls = [lambda: write(sessions, "1"), lambda: put(sessions, "2", "1"), failing, lambda: put(sessions, "3", "2")]
    first, second, failed, last = sessions._storage.run_batch(calls, durable=True)
    assert (first(), second(), last()) == (None, None, None)
    with pytest.raises(LookupError):
        failed()
    assert listed(sessions, at()) == ["3", "2", "1"]
    assert is_clean(sessions)


def test_an_event_between_two_operations_of_a_commit_has_a_seq_of_its_own(sessions: Any) -> None:
    storage, run = sessions._storage, RunContext("t", Identity(), run_id="r")

    def said(text: str) -> None:
        storage.append(run, [MessageEntry(text, "user", text)])

    said("a")
    calls = [
        lambda: said("b"),
        lambda: storage.update_session("t", SessionDetails(client={"app": "y"})),
        lambda: said("c"),
    ]
    calls += [lambda: storage.open_session(run, SessionDetails(client={"app": "x"})), lambda: said("d")]
    for outcome in storage.run_batch(calls, durable=True):
        outcome()
    seqs = [record.seq for record in storage.list_timeline("t").records]
    assert len(set(seqs)) == len(seqs) >= 7
    assert is_clean(sessions)


def test_what_is_read_in_a_commit_has_what_was_written_in_it(sessions: Any) -> None:
    def counted() -> int:
        put(sessions, "2", "1")
        put(sessions, "3", "2")
        return sessions._storage.measure_session("t").checkpoints  # type: ignore[no-any-return]

    put(sessions, "1")
    (outcome,) = sessions._storage.run_batch([counted], durable=True)
    assert outcome() == 3
