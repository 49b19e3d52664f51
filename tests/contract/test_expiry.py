"""The listing of sessions that are due, over every engine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from session_middleware.models import Identity
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import SessionDetails
from tests.conftest import Clock

Make = Callable[..., Storage]


def opened(storage: Storage, session_id: str, **details: float) -> None:
    storage.open_session(RunContext(session_id, Identity(user_id="alice")), SessionDetails(**details))  # type: ignore[arg-type]


def test_a_listing_has_the_bytes_of_each_session_on_request(make_storage: Make, clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h")
    for name in "cab":
        opened(storage, name)
        storage.append(RunContext(name, Identity(user_id="alice")), [MessageEntry("m", "user", name * 9)])
        clock.advance(seconds=name == "c")
    clock.advance(hours=1)
    listed = storage.list_due(clock(), sized=True)
    assert [each.session_id for each in listed] == list("cab")
    assert [each.bytes for each in listed] == [storage.measure_session(name).bytes for name in "cab"]
    assert [each.bytes for each in storage.list_due(clock())] == [None] * 3
    storage.end_due(listed, now=clock())
    assert storage.list_due(clock()) == []


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


def test_a_listing_is_limited_to_those_that_are_due_first(make_storage: Make, clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h")
    for name in "cabd":
        opened(storage, name, idle_timeout_seconds=1800.0 if name == "b" else None)  # type: ignore[arg-type]
        clock.advance(seconds=1)
    clock.advance(hours=1)
    assert [each.session_id for each in storage.list_due(clock(), limit=3)] == list("bca")
    older = storage.list_due(clock(), inactive_since=clock() - timedelta(minutes=30), limit=2)
    assert [each.session_id for each in older] == list("ca")
