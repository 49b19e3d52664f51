"""Forking a session, pruning it and deleting a run's checkpoints, as every engine does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from session_middleware.errors import InvalidArgument, SessionExists, SessionNotFound, StorageError
from session_middleware.models import Event, Identity, Run, ToolCall
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    Chunk,
    ListPut,
    ListRef,
    StoredHistory,
    Write,
    WritesPut,
)
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry, ToolStart
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import MessagePoint, SessionDetails


def blob(text: str) -> Blob:
    return Blob("text", text.ljust(900).encode())  # too long to be inline


def chunks(text: str) -> list[Chunk]:
    return [Chunk(blob(letter)) for letter in text]


def put(storage: Storage, session_id: str, checkpoint_id: str, ns: str = "", **fields: Any) -> dict[str, ListRef]:
    given = {
        "context": RunContext(session_id, Identity()), "checkpoint_ns": ns, "checkpoint_id": checkpoint_id,
        "parent_id": None, "body": blob(f"body {checkpoint_id}"), "source": "loop", "step": 0, "parent_channels": None,
        "inherited": (), "values": {}, **fields,
    }  # fmt: skip
    return storage.put_checkpoint(CheckpointPut(**given))[1]


def write(storage: Storage, session_id: str, checkpoint_id: str, *writes: Write, ns: str = "", task: str = "t") -> None:
    storage.put_writes(WritesPut(RunContext(session_id, Identity()), ns, checkpoint_id, task, "", writes))


def grow(storage: Storage, session_id: str, text: str, **fields: Any) -> None:
    """A checkpoint for each letter, whose list is all the letters so far, with a write that says it."""
    ref, parent_id = None, None
    for number, letter in enumerate(text):
        values = {"m": ListPut(ref, number, chunks(letter)), "last": blob(f"last {letter}")}
        ref = put(storage, session_id, f"c{number}", parent_id=parent_id, values=values, **fields)["m"]
        write(storage, session_id, f"c{number}", Write(0, "m", chunks(f"{letter}!")))
        parent_id = f"c{number}"


def keys(storage: Storage, session_id: str) -> list[str]:
    return sorted(":".join(filter(None, row.key[1:])) for row in storage.list_checkpoints(CheckpointFilter(session_id)))


def pieces(storage: Any) -> set[str]:
    """The texts of all blobs there are."""
    rows = storage._database.read(lambda connection: connection.execute("SELECT data FROM blobs").fetchall())
    return {data.decode().rstrip() for (data,) in rows}


def everything(storage: Storage) -> list[Any]:
    return [
        storage.list_checkpoints(CheckpointFilter()),
        storage.find_session("t"),
        storage.find_session("u"),
        pieces(storage),
    ]


# Pruning


def test_the_latest_of_each_namespace_stays_with_its_writes_and_values(storage: Storage) -> None:
    grow(storage, "t", "abc")
    put(storage, "t", "d0", "keeps")
    put(storage, "t", "d1", "keeps")
    before = storage.get_checkpoint("t", "", "c2")
    deleted = storage.prune_checkpoints(["t"])
    assert (deleted.checkpoints, deleted.sessions) == (3, 0)
    assert keys(storage, "t") == ["c2", "keeps:d1"]
    assert storage.get_checkpoint("t", "", None) == before
    assert pieces(storage) == {"a", "b", "c", "!", "last c"}
    assert storage.prune_checkpoints(["t"]).checkpoints == 0


def test_a_subgraphs_namespace_goes_with_the_checkpoint_that_started_it(storage: Storage) -> None:
    for number in range(3):
        put(storage, "t", f"c{number}")
        for run in range(2):
            put(storage, "t", f"s{run}", f"sub:task{number}", enclosing={"": f"c{number}"})
            inner = {"": f"c{number}", f"sub:task{number}": f"s{run}"}
            put(storage, "t", "i0", f"sub:task{number}|inner:{run}", enclosing=inner)
            put(storage, "t", f"k{number}{run}", "stateful", enclosing={"": f"c{number}"})
    write(storage, "t", "s1", Write(0, "m", blob("gone" * 20)), ns="sub:task0")
    storage.prune_checkpoints(["t"])
    assert keys(storage, "t") == ["c2", "stateful:k21", "sub:task2:s1", "sub:task2|inner:1:i0"]
    assert "gone" * 20 not in pieces(storage)


def test_writes_that_came_before_their_checkpoint_stay(storage: Storage) -> None:
    grow(storage, "t", "ab")
    write(storage, "t", "c9", Write(0, "x", blob("early")))
    write(storage, "t", "b9", Write(0, "x", blob("lost" * 20)))
    storage.prune_checkpoints(["t"])
    put(storage, "t", "c9")
    assert storage.get_checkpoint("t", "", "c9").writes[0].value == blob("early")  # type: ignore[union-attr]
    assert "lost" * 20 not in pieces(storage)


def test_ancestors_stay_as_far_as_a_channel_is_replayed_from_them(storage: Storage) -> None:
    for number in range(6):
        values = {"x": blob("x2")} if number == 2 else {"y": blob("y1")} if number == 1 else {}
        replayed = [name for name in ("x", "y") if name not in values]
        parent_id = f"c{number - 1}" if number else None
        put(storage, "t", f"c{number}", parent_id=parent_id, values=values, replayed=replayed)
        write(storage, "t", f"c{number}", Write(0, "x", blob(f"wx{number}")), Write(1, "y", blob(f"wy{number}")))
    before = storage.get_history("t", "", None, ["x", "y"])
    storage.prune_checkpoints(["t"])
    assert keys(storage, "t") == ["c1", "c2", "c3", "c4", "c5"]
    assert storage.get_history("t", "", None, ["x", "y"]) == before
    assert [w.value for w in before["x"].writes] == [blob(f"wx{n}") for n in (2, 3, 4)]
    assert (before["x"].seed, before["y"].seed) == (blob("x2"), blob("y1"))


def test_pruning_one_of_a_family_leaves_the_others_whole(storage: Storage) -> None:
    grow(storage, "t", "abc")
    storage.fork_session("t", "u")
    grow(storage, "other", "xyz")
    whole = [storage.list_checkpoints(CheckpointFilter("u")), storage.list_checkpoints(CheckpointFilter("other"))]
    assert storage.prune_checkpoints(["t", "unknown"]).checkpoints == 2
    assert [[replaced(row) for row in rows] for rows in whole] == [
        [replaced(row) for row in storage.list_checkpoints(CheckpointFilter(session_id))]
        for session_id in ("u", "other")
    ]
    assert {"a", "x"} <= pieces(storage)


def test_one_of_a_family_is_pruned_and_deleted_although_another_one_is_damaged(storage: Any) -> None:
    grow(storage, "t", "abc")
    storage.fork_session("t", "damaged")
    grow(storage, "u", "xyz")
    sql = "UPDATE checkpoints SET channels = '{' WHERE session_id = 'damaged'"
    storage._database.write(lambda connection: connection.execute(sql))
    with pytest.raises(StorageError, match="damaged"):
        storage.prune_checkpoints(["damaged", "t", "u"])
    assert [keys(storage, session_id) for session_id in "tu"] == [["c2"], ["c2"]]
    assert storage.delete_session("t").sessions == 1
    left = pieces(storage)
    assert left.isdisjoint({"last x", "last y"})
    assert left >= {"last a", "last b", "last c"}  # of the damaged one, as far as is known
    storage.delete_session("damaged")
    assert pieces(storage) == {"x", "y", "z", "!", "last z"}


def replaced(row: Any) -> tuple[Any, ...]:
    return row.key, row.parent_id, row.body, row.channels, row.values, row.writes


# A run's checkpoints


def test_a_runs_checkpoints_go_in_every_session_and_namespace(storage: Storage) -> None:
    for session_id in ("t", "u"):
        for ns in ("", "sub:1"):
            put(storage, session_id, "c0", ns, run_id="r0")
            put(storage, session_id, "c\0", ns, run_id="r\0")
    put(storage, "t", "c2")
    write(storage, "t", "c\0", Write(0, "x", blob("gone" * 20)))
    assert storage.delete_for_runs(["r\0", "unknown"]).checkpoints == 4
    assert keys(storage, "t") == ["c0", "c2", "sub:1:c0"]
    assert keys(storage, "u") == ["c0", "sub:1:c0"]
    assert pieces(storage) == set()
    assert storage.delete_for_runs([]).checkpoints == 0


def test_what_only_the_last_run_said_is_gone_from_a_list_that_stays(storage: Storage) -> None:
    ref = put(storage, "t", "c0", values={"m": ListPut(None, 0, chunks("ab"))}, run_id="r0")["m"]
    longer = put(storage, "t", "c1", values={"m": ListPut(ref, 2, chunks("cd"))}, run_id="r1")["m"]
    branch = put(storage, "t", "c2", values={"m": ListPut(longer, 3, chunks("X"))}, run_id="r2")["m"]
    storage.delete_for_runs(["r1"])
    assert pieces(storage) == {"a", "b", "c", "X"}  # the branch leans on the first three
    storage.delete_for_runs(["r2"])
    assert pieces(storage) == {"a", "b"}
    put(storage, "t", "c3", values={"m": ListPut(ref, 2, chunks("yz"))})
    assert (
        "".join(c.blob.data.decode().rstrip() for c in storage.get_checkpoint("t", "", "c3").values["m"].chunks)
        == "abyz"
    )  # type: ignore[union-attr]
    assert branch.list_id != ref.list_id


def test_the_elements_of_writes_are_kept_with_them(storage: Storage) -> None:
    long = "a" * 100
    put(storage, "t", "c0", run_id="r0")
    put(storage, "t", "c1", run_id="r1")
    write(storage, "t", "c1", Write(0, "m", [Chunk(blob(long), 1)]))
    storage.delete_for_runs(["r0"])
    assert pieces(storage) == {long}
    storage.delete_for_runs(["r1"])
    assert pieces(storage) == set()


def test_a_runs_checkpoint_stays_when_another_is_replayed_from_its_writes(storage: Storage) -> None:
    for number in range(5):
        parent_id = f"c{number - 1}" if number else None
        values = {"x": blob("seed")} if number == 1 else {}
        replayed = [] if number == 1 else ["x"]
        put(storage, "t", f"c{number}", parent_id=parent_id, values=values, replayed=replayed, run_id=f"r{number}")
        write(storage, "t", f"c{number}", Write(0, "x", blob(str(number))))
    before = storage.get_history("t", "", "c3", ["x"])
    assert storage.delete_for_runs(["r0", "r1", "r2", "r4"]).checkpoints == 2
    assert keys(storage, "t") == ["c1", "c2", "c3"]
    assert storage.get_history("t", "", "c3", ["x"]) == before


# Forks


def test_a_fork_has_the_state_the_owner_and_what_was_said_and_nothing_of_what_ran(storage: Storage) -> None:
    context = RunContext("t", Identity(user_id="alice", group_id="team"))
    storage.open_session(context, SessionDetails(title="x"))
    put(storage, "t", "c0", context=context, values={"m": ListPut(None, 0, chunks("ab"))})
    put(storage, "t", "s0", "sub:1", context=context, run_id="r", enclosing={"": "c0"})
    storage.put_writes(WritesPut(context, "", "c0", "task", "path", [Write(0, "x", chunks("12"))]))
    run = RunContext("t", context.identity, run_id="r1")
    storage.append(run, [MessageEntry("m", "assistant", "hi", input_tokens=5, output_tokens=3)])
    storage.append(run, [ToolStart("e", "c", "f", {})])
    fork = storage.fork_session("t", "u")
    assert (fork.id, fork.parent_id, fork.family_id, fork.opened_as) == ("u", "t", "t", "forked")
    assert (fork.user_id, fork.group_id, fork.status) == ("alice", "team", "active")
    assert [replaced(r)[1:] for r in storage.list_checkpoints(CheckpointFilter("u"))] == [
        replaced(r)[1:] for r in storage.list_checkpoints(CheckpointFilter("t"))
    ]
    assert [(event.kind, event.detail) for event in storage.list_records(Event, "u")] == [("forked", {"from": "t"})]
    assert [(message.message_id, message.text, message.run_id) for message in storage.list_messages("u")] == [
        ("m", "hi", None)
    ]
    assert (storage.list_records(Run, "u"), storage.list_records(ToolCall, "u")) == ([], [])
    assert (fork.message_count, fork.tool_call_count, fork.run_count, fork.input_tokens) == (1, 0, 0, 0)
    assert storage.check(repair=False) == []


def test_a_fork_outlives_what_it_came_from_and_costs_no_piece(storage: Storage) -> None:
    grow(storage, "t", "abc")
    there = pieces(storage)
    storage.fork_session("t", "u")
    storage.fork_session("u", "v")
    assert pieces(storage) == there
    rows = [replaced(row)[1:] for row in storage.list_checkpoints(CheckpointFilter("t"))]
    storage.delete_session("t")
    storage.delete_session("u")
    assert [replaced(row)[1:] for row in storage.list_checkpoints(CheckpointFilter("v"))] == rows
    storage.delete_session("v")
    assert pieces(storage) == set()


def test_a_fork_at_a_checkpoint_has_its_ancestors_and_the_subgraphs_between(storage: Storage) -> None:
    grow(storage, "t", "abc")
    for number in range(3):
        put(storage, "t", f"i{number}", "keeps", enclosing={"": f"c{number}"})
    put(storage, "t", "c1-other", parent_id="c0")
    write(storage, "t", "c1", Write(-3, "__interrupt__", blob("ask")), task="asking")
    write(storage, "t", "c1", Write(-4, "__resume__", blob("yes")), Write(0, "m", chunks("y")), task="asking")
    before = pieces(storage)
    storage.fork_session("t", "u", at="c1", details=SessionDetails(title="part"))
    storage.fork_session("t", "whole", at="c2")
    assert keys(storage, "u") == ["c0", "c1", "keeps:i0"]
    assert keys(storage, "whole") == ["c0", "c1", "c2", "keeps:i0", "keeps:i1", "keeps:i2"]
    stored = storage.get_checkpoint("u", "", None)
    assert stored is not None
    assert (stored.checkpoint_id, [write.channel for write in stored.writes]) == ("c1", ["__interrupt__", "m"])
    assert [len(row.writes) for row in storage.list_checkpoints(CheckpointFilter("whole", ""))] == [1, 4, 1]
    assert storage.find_session("u").title == "part"  # type: ignore[union-attr]
    assert pieces(storage) == before
    for at in ("i1", "unknown"):
        with pytest.raises(InvalidArgument):
            storage.fork_session("t", "v", at=at)
    assert storage.find_session("v") is None


def test_ids_with_a_nul_are_forked_and_pruned_as_others(storage: Storage) -> None:
    for number in range(2):
        put(storage, "t", f"c\0{number}", parent_id="c\x000" if number else None)
        write(storage, "t", f"c\0{number}", Write(0, "m", chunks("a")))
    storage.fork_session("t", "u", at="c\x001")
    assert [len(row.writes) for row in storage.list_checkpoints(CheckpointFilter("u"))] == [1, 1]
    storage.prune_checkpoints(["t"])
    assert keys(storage, "t") == ["c\x001"]


def test_a_switch_makes_the_last_checkpoint_of_a_branch_the_latest(storage: Storage) -> None:
    for checkpoint_id, parent_id in (("c0", None), ("c1", "c0"), ("d1", "c0"), ("d2", "d1")):
        said = [MessageEntry(f"m-{checkpoint_id}", "user", checkpoint_id)]
        put(storage, "t", checkpoint_id, parent_id=parent_id, messages=said)
        put(storage, "t", f"i-{checkpoint_id}", "keeps", enclosing={"": checkpoint_id})
    write(storage, "t", "c1", Write(0, "m", chunks("a")))
    for branch, latest in (("main", "c1"), ("branch-2", "d2"), ("main", "c1")):
        assert storage.switch_branch("t", branch).branch == branch
        assert storage.get_checkpoint("t", "", None).checkpoint_id == latest  # type: ignore[union-attr]
        assert storage.get_checkpoint("t", "keeps", None).checkpoint_id == f"i-{latest}"  # type: ignore[union-attr]
    put(storage, "t", "e2", parent_id="c1")
    assert storage.find_session("t").branch == "main"  # type: ignore[union-attr]
    assert storage.find_message_point("t", "m-d1", "branch-2") == MessagePoint("d1", "c0")
    assert storage.find_message_point("t", "unknown") is None
    with pytest.raises(InvalidArgument, match="'main', 'branch-2'"):
        storage.switch_branch("t", "branch-3")
    assert storage.check(repair=False, deep=True) == []


def test_forks_go_on_apart(storage: Storage) -> None:
    ref = put(storage, "t", "c0", values={"m": ListPut(None, 0, chunks("ab"))})["m"]
    storage.fork_session("t", "u")
    for session_id in ("t", "u"):
        put(storage, session_id, "c1", values={"m": ListPut(ref, 2, chunks(session_id))})
    found = [storage.get_checkpoint(session_id, "", None).values["m"].chunks for session_id in ("t", "u")]  # type: ignore[union-attr]
    assert ["".join(c.blob.data.decode().rstrip() for c in each) for each in found] == ["abt", "abu"]


def test_a_session_that_was_only_opened_may_be_filled(storage: Storage) -> None:
    grow(storage, "t", "ab")
    storage.open_session(RunContext("u", Identity()), SessionDetails(title="mine"))
    fork = storage.fork_session("t", "u")
    assert (fork.title, fork.parent_id, fork.family_id) == ("mine", "t", "t")
    assert keys(storage, "u") == ["c0", "c1"]


def test_a_target_that_is_taken_is_refused(storage: Storage) -> None:
    grow(storage, "t", "ab")
    put(storage, "checkpoint", "c0")
    storage.append(RunContext("message", Identity()), [MessageEntry("m", "user", "mine")])
    write(storage, "write", "c0", Write(0, "x", blob("w")))
    storage.open_session(RunContext("owner", Identity(user_id="bob")), SessionDetails())
    storage.open_session(RunContext("fork", Identity()), SessionDetails())
    storage.fork_session("fork", "v")
    for target in ("t", "checkpoint", "message", "write", "owner", "fork"):
        before = [*everything(storage), storage.find_session(target)]
        with pytest.raises(SessionExists):
            storage.fork_session("t", target)
        assert [*everything(storage), storage.find_session(target)] == before


def test_an_unknown_source_is_named_and_nothing_is_opened(storage: Storage) -> None:
    with pytest.raises(SessionNotFound, match="nowhere"):
        storage.fork_session("nowhere", "u")
    assert storage.find_session("u") is None


# All of them


OPERATIONS: dict[str, Callable[[Storage], Any]] = {
    "prune": lambda storage: storage.prune_checkpoints(["t"]),
    "delete_for_runs": lambda storage: storage.delete_for_runs(["r"]),
    "copy": lambda storage: storage.fork_session("t", "u"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_fails_has_done_nothing(name: str, storage: Any) -> None:
    grow(storage, "t", "abc", run_id="r")
    last = "INSERT ON events" if name == "copy" else "DELETE ON checkpoints"
    if storage.name.startswith("postgresql://"):
        body = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$"
        trigger = f"CREATE TRIGGER fail BEFORE {last} FOR EACH ROW EXECUTE FUNCTION fail()"
        storage._database.write(lambda connection: connection.execute(f"CREATE FUNCTION fail() {body}"))
        storage._database.write(lambda connection: connection.execute(trigger))
    else:
        fail = f"CREATE TEMP TRIGGER fail BEFORE {last} BEGIN SELECT RAISE(ABORT, 'no'); END"
        storage._database.write(lambda connection: connection.execute(fail))
    before = everything(storage)
    with pytest.raises(StorageError):
        OPERATIONS[name](storage)
    assert everything(storage) == before
    if storage.name.startswith("postgresql://"):  # the next test has this database too
        storage._database.write(lambda connection: connection.execute("DROP FUNCTION fail CASCADE"))


@pytest.mark.parametrize("storage_url", ["sqlite", "memory"], indirect=True)
def test_deleted_space_goes_back_to_the_file_system(storage: Storage) -> None:
    for session_id in ("t", "u"):
        for number in range(4):
            put(storage, session_id, f"c{number}", values={"m": blob(f"{session_id}{number}" * 50_000)})
    freed = [storage.prune_checkpoints(["t"]).bytes_freed, storage.delete_session("u").bytes_freed]
    assert all(290_000 < each < 500_000 for each in freed)


# Replayed channels


def test_a_history_follows_the_line_of_parents_and_not_a_branch(storage: Storage) -> None:
    put(storage, "t", "c0", values={"x": ListPut(None, 0, chunks("ab")), "n": None})
    put(storage, "t", "c1", parent_id="c0", replayed=["x"])
    put(storage, "t", "c2", parent_id="c0", replayed=["x"])
    put(storage, "t", "c3", parent_id="c1", replayed=["x"])
    for number in range(4):
        write(storage, "t", f"c{number}", Write(0, "x", chunks(f"{number}")), Write(1, "z", None), task="b")
        write(storage, "t", f"c{number}", Write(0, "x", blob(f"a{number}")), task="a")
    found = storage.get_history("t", "", "c3", ["x", "z", "n"])
    seed = found["x"].seed
    assert [c.blob for c in seed.chunks] == [blob("a"), blob("b")]  # type: ignore[union-attr]
    assert [w.value for w in found["x"].writes] == [blob("a0"), chunks("0"), blob("a1"), chunks("1")]
    assert (found["z"].has_seed, [w.task_id for w in found["z"].writes]) == (False, ["b", "b"])
    assert found["n"] == StoredHistory(True, None, [])
    assert storage.get_history("t", "", None, ["x"])["x"] == found["x"]
    assert storage.get_history("t", "", "unknown", ["x"]) == {"x": StoredHistory(False, None, [])}


def test_a_checkpoint_that_became_its_own_ancestor_ends_the_line(storage: Storage) -> None:
    put(storage, "t", "c0", parent_id="c1")
    put(storage, "t", "c1", parent_id="c0")
    assert storage.get_history("t", "", "c1", ["x"])["x"].has_seed is False
    storage.prune_checkpoints(["t"])
    assert keys(storage, "t") == ["c1"]
