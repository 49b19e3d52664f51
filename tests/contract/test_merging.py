"""Merging a session into another one, as every engine does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.errors import InvalidArgument, SessionBusy, SessionNotFound
from session_middleware.models import Identity, Message
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.sql.sessions.merging import _TIMES, Place, interleaved, moved
from session_middleware.storage.sql.tables import tables
from session_middleware.storage.types import ConversationItemPut


def test_the_rows_of_each_table_with_seqs_are_moved() -> None:
    numbered = {name for name, table in tables().items() if {"session_id", "seq"} <= table.columns.keys()}
    assert numbered == {"checkpoints", *_TIMES}


def items(storage: Storage, session_id: str) -> list[str]:
    return [stored.item for stored in storage.list_items(session_id)]


@pytest.mark.parametrize("with_items", [True, False])
def test_the_items_of_a_conversation_are_its_state(storage: Storage, *, with_items: bool) -> None:
    for name in "ab":
        message = MessageEntry(f"{name}-1", "user", name)
        storage.append_items(RunContext(name, Identity()), [ConversationItemPut(name, f"{name}-1", [message])])
    storage.merge_sessions("a", "b", with_items=with_items)
    assert items(storage, "a") == (["a", "b"] if with_items else ["a"])
    assert {message.text for message in storage.list_records(Message, "a")} == {"a", "b"}
    assert (storage.find_session("b"), items(storage, "b"), storage.list_records(Message, "b")) == (None, [], [])
    tombstone = storage.find_tombstone("b")
    assert tombstone is not None
    assert (tombstone.action, tombstone.merged_into) == ("merged", "a")
    assert storage.check(repair=False, deep=True) == []


def test_a_context_of_the_old_id_is_admitted_to_the_primary(storage: Storage) -> None:
    for name in "ab":
        storage.append(RunContext(name, Identity(user_id="ann")), [MessageEntry(name, "user", name)])
    storage.merge_sessions("a", "b", with_items=False)
    read, written = RunContext("b", Identity(user_id="ann"), reading=True), RunContext("b", Identity(user_id="ann"))
    found = storage.authorize(read)
    storage.append(written, [MessageEntry("c", "user", "c")])
    assert found is not None
    assert (found.id, read.session_id, written.session_id) == ("a", "a", "a")
    assert written.is_of("b")
    assert [message.text for message in storage.list_messages("a")] == ["a", "b", "c"]


def test_a_refused_merge_changes_nothing(storage: Storage) -> None:
    for name in "ab":
        storage.append(RunContext(name, Identity()), [MessageEntry(name, "user", name)])
    for primary, secondary, error in (
        ("a", "a", InvalidArgument),
        ("a", "x", SessionNotFound),
        ("x", "a", SessionNotFound),
    ):
        with pytest.raises(error):
            storage.merge_sessions(primary, secondary, with_items=True)
    storage.append(RunContext("b", Identity(), run_id="r", lease=Lease()))
    with pytest.raises(SessionBusy):
        storage.merge_sessions("a", "b", with_items=True)
    assert [storage.list_messages(name)[0].text for name in "ab"] == ["a", "b"]


_RECORD = st.lists(st.tuples(st.integers(1, 3), st.one_of(st.none(), st.sampled_from("0123456789"))), max_size=12)


@given(_RECORD, _RECORD)
def test_interleaved_records_keep_their_order(one: list[tuple[int, str]], other: list[tuple[int, str]]) -> None:
    records = []
    for steps in (one, other):
        seq, record = 0, []
        for step, at in steps:
            seq += step
            record.append(Place(seq, at or "", True))
        records.append(record)
    moves = interleaved(records)
    places = [[moved(own, seq) for seq, *_ in record] for own, record in zip(moves, records, strict=True)]
    assert all(place == sorted(place) for place in places)
    assert len({*places[0], *places[1]}) == len(one) + len(other)
    for record, place, own in zip(records, places, moves, strict=True):
        between = [moved(own, seq + 0.5) for seq, *_ in record]
        assert all(seq < after for seq, after in zip(place, between, strict=True))
        assert all(before < seq for before, seq in zip(between, place[1:], strict=False))
    for at, other_at in ((a, b) for a in range(len(one)) for b in range(len(other))):
        latest, other_latest = (
            max(place.at for place in record[: n + 1]) for record, n in zip(records, (at, other_at), strict=True)
        )
        assert (places[0][at] < places[1][other_at]) == (latest <= other_latest)
