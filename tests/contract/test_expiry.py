"""What is due is listed at once, however many those are, and looked at one by one, over every engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from session_middleware.models import Identity
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.sessions import expiry
from session_middleware.storage.types import SessionDetails
from tests.conftest import Clock

Make = Callable[..., Storage]


def opened(storage: Storage, session_id: str, **details: float) -> None:
    storage.open_session(RunContext(session_id, Identity(user_id="alice")), SessionDetails(**details))  # type: ignore[arg-type]


def test_a_listing_is_a_sequence_whose_values_are_made_page_by_page(
    make_storage: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_PAGE", 2)
    storage = make_storage(idle_timeout="1h")
    for name in "cabde":
        opened(storage, name)
        storage.append(RunContext(name, Identity(user_id="alice")), [MessageEntry("m", "user", name * 9)])
        clock.advance(seconds=name == "c")
    clock.advance(hours=1)
    listed = storage.list_due(clock(), sized=True)
    assert (len(listed), bool(listed), [each.session_id for each in listed]) == (5, True, list("cabde"))
    assert [each.session_id for each in reversed(listed)] == list("edbac")
    assert (listed[0].session_id, listed[-1].session_id) == ("c", "e")
    assert [each.session_id for each in listed[1:4]] == list("abd")
    assert listed == list(listed) == listed[:]
    assert [each.bytes for each in listed] == [storage.measure_session(name).bytes for name in "cabde"]
    assert [each.bytes for each in storage.list_due(clock())] == [None] * 5
    with pytest.raises(IndexError):
        listed[5]
    storage.end_due(listed, now=clock())
    assert listed != storage.list_due(clock()) == []


def test_those_due_for_several_reasons_are_listed_once_for_the_first_of_them(make_storage: Make, clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", max_age="3h", retention="30m")
    opened(storage, "ended")
    storage.end_session("ended", "completed", reason="by_user", detail={})
    opened(storage, "idle first")
    opened(storage, "old first", idle_timeout_seconds=7200.0, max_age_seconds=5400.0)
    opened(storage, "soon", idle_timeout_seconds=60.0)
    opened(storage, "never", idle_timeout_seconds=0.0, max_age_seconds=0.0)
    opened(storage, "pinged")
    clock.advance(minutes=30)
    storage.ping_session("pinged")
    clock.advance(hours=4)
    assert [(each.session_id, each.reason, each.action) for each in storage.list_due(clock())] == [
        ("soon", "idle_timeout", "keep"),
        ("ended", "retention", "delete"),
        ("idle first", "idle_timeout", "keep"),
        ("old first", "max_age", "keep"),
        ("pinged", "idle_timeout", "keep"),
    ]
