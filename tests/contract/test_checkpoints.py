"""Checkpoints and their pieces, as every engine keeps them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from session_middleware.models import Identity
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    Chunk,
    ListPut,
    ListRef,
    StaleParent,
    StoredList,
    Write,
    WritesPut,
)
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from tests.support.pairwise import KINDS

pytestmark = pytest.mark.parametrize("storage_url", KINDS, indirect=True)

BODY = Blob("msgpack", b"body")


@pytest.fixture
def context() -> RunContext:
    return RunContext("t", Identity())


def blob(text: str) -> Blob:
    return Blob("text", text.encode())


def chunks(text: str) -> list[Chunk]:
    return [Chunk(blob(letter)) for letter in text]


def put(
    storage: Storage, context: RunContext, checkpoint_id: str, /, **fields: object
) -> tuple[str, dict[str, ListRef]]:
    given = {
        "context": context, "checkpoint_ns": "", "checkpoint_id": checkpoint_id, "parent_id": None, "body": BODY,
        "source": "loop", "step": 0, "parent_channels": None, "inherited": (), "values": {}, **fields,
    }  # fmt: skip
    return storage.put_checkpoint(CheckpointPut(**given))  # type: ignore[arg-type]


def letters(storage: Storage, checkpoint_id: str | None, session_id: str = "t") -> str:
    found = storage.get_checkpoint(session_id, "", checkpoint_id)
    assert found is not None
    stored = found.values["m"]
    assert isinstance(stored, StoredList)
    return "".join(chunk.blob.data.decode() for chunk in stored.chunks)


def ids(storage: Storage, session_id: str | None, limit: int | None = None, matches: Any = None, **where: Any) -> Any:
    rows = storage.list_checkpoints(CheckpointFilter(session_id, **where), limit=limit, matches=matches)
    return [row.checkpoint_id for row in rows]


def append(
    storage: Storage, context: RunContext, checkpoint_id: str, base: ListRef | None, keep: int, tail: str
) -> ListRef:
    return put(storage, context, checkpoint_id, values={"m": ListPut(base, keep, chunks(tail))})[1]["m"]


def test_values_come_back_as_they_were_put(storage: Storage, context: RunContext) -> None:
    put(
        storage,
        context,
        "c1",
        values={"none": None, "blob": blob("x"), "m": ListPut(None, 0, chunks("ab")), "e": ListPut(None, 0, [])},
    )
    found = storage.get_checkpoint("t", "", None)
    assert found is not None
    assert (found.body, found.values["none"], found.values["blob"]) == (BODY, None, blob("x"))
    assert letters(storage, "c1") == "ab"
    assert found.values["e"].chunks == []  # type: ignore[union-attr]


def test_the_latest_is_the_one_put_last(storage: Storage, context: RunContext) -> None:
    for checkpoint_id in ("c2", "c9", "c1"):
        put(storage, context, checkpoint_id)
    assert storage.get_checkpoint("t", "", None).checkpoint_id == "c1"  # type: ignore[union-attr]
    assert storage.get_checkpoint("t", "other", None) is None


def test_a_list_grows_in_place_and_each_checkpoint_keeps_its_length(storage: Storage, context: RunContext) -> None:
    one = append(storage, context, "c1", None, 0, "ab")
    two = append(storage, context, "c2", one, 2, "cd")
    assert one.list_id == two.list_id
    assert (letters(storage, "c1"), letters(storage, "c2")) == ("ab", "abcd")


def test_two_writers_on_one_list_branch_apart(storage: Storage, context: RunContext) -> None:
    one = append(storage, context, "c1", None, 0, "ab")
    append(storage, context, "c2", one, 2, "c")
    append(storage, context, "c3", one, 2, "d")
    assert (letters(storage, "c1"), letters(storage, "c2"), letters(storage, "c3")) == ("ab", "abc", "abd")


def test_edits_removals_and_trims_branch_where_they_differ(storage: Storage, context: RunContext) -> None:
    base = append(storage, context, "c1", None, 0, "abcd")
    edited = append(storage, context, "c2", base, 1, "Xcd")
    append(storage, context, "c3", edited, 3, "")
    append(storage, context, "c4", base, 0, "cd")
    append(storage, context, "c5", base, 2, "")
    assert [letters(storage, f"c{n}") for n in range(1, 6)] == ["abcd", "aXcd", "aXc", "cd", "ab"]


def test_branches_of_branches_stay_equal_however_deep(storage: Storage, context: RunContext) -> None:
    text = "abcdefghij"
    ref = append(storage, context, "c00", None, 0, text)
    for number in range(1, 60):
        keep = number % len(text)
        text = text[:keep] + chr(65 + number % 26) + text[keep + 1 :]
        ref = append(storage, context, f"c{number:02}", ref, keep, text[keep:])
        assert letters(storage, f"c{number:02}") == text


def test_a_run_of_small_values_is_cut_where_a_branch_needs_it(storage: Storage, context: RunContext) -> None:
    run = Chunk(Blob("+ints", b"12345"), 5)
    base = put(storage, context, "c1", values={"m": ListPut(None, 0, [run])})[1]["m"]
    put(storage, context, "c2", values={"m": ListPut(base, 3, chunks("x"))})
    stored = storage.get_checkpoint("t", "", "c2").values["m"]  # type: ignore[union-attr]
    assert [(c.blob.data, c.length) for c in stored.chunks] == [(b"12345", 3), (b"x", 1)]  # type: ignore[union-attr]


def test_a_child_refers_to_what_its_parent_has(storage: Storage, context: RunContext) -> None:
    channels, refs = put(storage, context, "c1", values={"a": blob("x"), "m": ListPut(None, 0, chunks("ab"))})
    put(storage, context, "c2", parent_id="c1", parent_channels=channels, inherited=["a", "m"], values={})
    found = storage.get_checkpoint("t", "", "c2")
    assert found is not None
    assert (found.parent_id, found.values["a"]) == ("c1", blob("x"))
    assert letters(storage, "c2") == "ab"
    assert refs["m"].length == 2


def test_a_parent_that_is_not_what_was_believed_stores_nothing(storage: Storage, context: RunContext) -> None:
    channels, _ = put(storage, context, "c1", values={"a": blob("x")})
    put(storage, context, "c1", values={"a": blob("y")})
    for parent_id in ("c1", "gone"):
        with pytest.raises(StaleParent):
            put(storage, context, "c2", parent_id=parent_id, parent_channels=channels, inherited=["a"])
    assert storage.get_checkpoint("t", "", "c2") is None


def test_what_a_checkpoint_brings_is_recorded_with_it(storage: Storage, context: RunContext) -> None:
    put(storage, context, "c1", messages=[MessageEntry("m", "user", "hi")])
    assert [m.text for m in storage.list_messages("t")] == ["hi"]


def test_values_that_a_transaction_stores_twice_are_stored_once(storage: Storage, context: RunContext) -> None:
    value = blob("x" * 2_000)

    def write(idx: int) -> None:
        storage.put_writes(WritesPut(context, "", "c1", "a", "", [Write(idx, "x", value)]))

    def store() -> None:
        put(storage, context, "c1", values={"a": value, "m": ListPut(None, 0, [Chunk(value)])})

    for outcome in storage.run_batch([partial(write, 0), partial(write, -1), partial(write, -1), store], durable=True):
        outcome()
    found = storage.get_checkpoint("t", "", "c1")
    assert found is not None
    assert [each.value for each in found.writes] == [value, value]
    assert found.values["a"] == value
    assert letters(storage, "c1") == value.data.decode()


def test_writes_come_back_in_the_order_they_are_applied(storage: Storage, context: RunContext) -> None:
    def write(task: str, path: str, *writes: Write) -> None:
        storage.put_writes(WritesPut(context, "", "c1", task, path, writes))

    write("b", "p2", Write(0, "x", blob("3")), Write(1, "y", None))
    write("a", "p2", Write(0, "x", chunks("12")))
    write("c", "p1", Write(0, "x", blob("0")), Write(-1, "__error__", blob("e")))
    assert storage.get_checkpoint("t", "", "c1") is None
    put(storage, context, "c1")
    found = storage.get_checkpoint("t", "", "c1")
    assert found is not None
    assert [(w.task_id, w.channel) for w in found.writes] == [
        ("c", "__error__"), ("c", "x"), ("a", "x"), ("b", "x"), ("b", "y"),
    ]  # fmt: skip
    assert found.writes[2].value == chunks("12")
    assert found.writes[4].value is None


def test_a_write_stays_and_a_special_one_is_replaced(storage: Storage, context: RunContext) -> None:
    put(storage, context, "c1")
    for text in ("first", "second"):
        writes = [Write(0, "x", blob(text)), Write(-1, "__error__", blob(text))]
        storage.put_writes(WritesPut(context, "", "c1", "task", "", writes))
    found = storage.get_checkpoint("t", "", "c1")
    assert [w.value for w in found.writes] == [blob("second"), blob("first")]  # type: ignore[union-attr]


def test_checkpoints_are_listed_newest_first_and_by_pages(storage: Storage, context: RunContext) -> None:
    for number in range(4):
        put(storage, context, f"c{number}")
        put(storage, context, f"d{number}", checkpoint_ns="sub")
        put(storage, context, f"c{number}+", checkpoint_ns="sub")
    put(storage, RunContext("u", Identity()), "c9")
    assert [row.key[1:] for row in storage.list_checkpoints(CheckpointFilter("t"))] == [
        *[("sub", f"d{n}") for n in (3, 2, 1, 0)],
        *[place for n in (3, 2, 1, 0) for place in (("sub", f"c{n}+"), ("", f"c{n}"))],
    ]
    assert ids(storage, "t", checkpoint_ns="", before="c2") == ["c1", "c0"]
    assert ids(storage, "t", checkpoint_id="d1") == ["d1"]
    paged, after = [], None
    while page := storage.list_checkpoints(CheckpointFilter(after=after), limit=3):
        paged += page
        after = page[-1].key
    assert paged == storage.list_checkpoints(CheckpointFilter())
    assert len(paged) == 13


def test_only_what_matches_is_listed_and_only_as_much_as_is_wanted(storage: Storage, context: RunContext) -> None:
    for number in range(8):
        put(storage, context, f"c{number}", body=Blob("t", b"odd" if number % 2 else b"even"))
    seen: list[Blob] = []

    def matches(body: Blob) -> bool:
        seen.append(body)
        return body.data == b"odd"

    assert ids(storage, "t", matches=matches, limit=2) == ["c7", "c5"]
    assert len(seen) == 3
    assert ids(storage, "t", matches=matches, after=("t", "", "c5")) == ["c3", "c1"]


def test_what_is_listed_is_what_is_got_one_by_one(storage: Storage, context: RunContext) -> None:
    one = append(storage, context, "c1", None, 0, "abcd")
    two = append(storage, context, "c2", one, 2, "XY")
    append(storage, context, "c3", two, 4, "z")
    append(storage, context, "c4", one, 4, "e")
    run = Chunk(Blob("+ints", b"12345"), 5)
    base = put(storage, context, "c5", values={"m": ListPut(None, 0, [run]), "b": blob("b"), "n": None})[1]["m"]
    put(storage, context, "c6", values={"m": ListPut(base, 3, []), "e": ListPut(None, 0, [])})
    for number in (2, 5):
        writes = [Write(0, "x", chunks("ab")), Write(1, "y", blob("b")), Write(2, "z", None), Write(3, "e", [])]
        storage.put_writes(WritesPut(context, "", f"c{number}", "task", "", writes))
    listed = storage.list_checkpoints(CheckpointFilter("t"))
    assert listed == [storage.get_checkpoint("t", "", f"c{number}") for number in (6, 5, 4, 3, 2, 1)]


def test_deleting_frees_every_piece_of_the_session_and_none_of_another(storage: Storage, context: RunContext) -> None:
    other = RunContext("u", Identity())
    for number, who in enumerate((context, other)):
        base = append(storage, who, "c1", None, 0, "abc")
        append(storage, who, "c2", base, 1, "z")
        storage.put_writes(WritesPut(who, "", "c2", "task", "", [Write(0, "x", blob(f"w{number}"))]))
    assert storage.delete_session("t").checkpoints == 2
    assert storage.get_checkpoint("t", "", None) is None
    assert letters(storage, "c2", "u") == "az"
    assert storage.measure_session("u").checkpoints == 2
