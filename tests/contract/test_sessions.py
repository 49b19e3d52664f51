"""Sessions, as every engine keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain, product
from typing import Any

import pytest

from session_middleware import lifecycle
from session_middleware.errors import SessionAccessDenied, SessionBusy, SessionExists, SessionExpired, SessionNotFound
from session_middleware.models import Event, Identity, Pin, SweepResult
from session_middleware.settings import load_settings
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry, RunEnd
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.types import SessionDetails, SessionFilter
from tests.conftest import Clock
from tests.support.memories import put_of

NOTHING = SessionDetails()


def context(session_id: str = "t", user_id: str | None = None, **fields: object) -> RunContext:
    return RunContext(session_id, Identity(user_id=user_id), **fields)  # type: ignore[arg-type]


def ended_now(storage: Storage, clock: Clock, dry_run: bool) -> Sequence[SweepResult]:
    due = storage.list_due(clock())
    return due if dry_run else storage.end_due(due, now=clock())


def kinds(storage: Storage, session_id: str = "t") -> list[str]:
    return [event.kind for event in storage.list_records(Event, session_id)]


def test_an_unknown_id_is_opened_and_a_known_one_resumed(storage: Storage) -> None:
    assert storage.open_session(context(), NOTHING).opened_as == "opened"
    assert storage.open_session(context(), NOTHING).opened_as == "resumed"
    assert kinds(storage) == ["opened", "resumed"]


def test_opening_what_must_be_new_changes_nothing_when_it_is_there(storage: Storage) -> None:
    storage.open_session(context(), NOTHING)
    with pytest.raises(SessionExists):
        storage.open_session(context(must_be_new=True), SessionDetails(title="other"))
    assert kinds(storage) == ["opened"]
    assert storage.find_session("t").title is None


def test_details_replace_and_dicts_merge(storage: Storage) -> None:
    storage.open_session(context(), SessionDetails(title="a", tags=["x"], metadata={"k": 1, "l": 2}))
    session = storage.update_session("t", SessionDetails(tags=["y", "z"], metadata={"k": 3}))
    assert (session.title, session.tags, session.metadata) == ("a", ("y", "z"), {"k": 3, "l": 2})
    with pytest.raises(SessionNotFound):
        storage.update_session("nobody", NOTHING)


def test_a_stranger_is_denied_and_only_the_denial_is_recorded(storage: Storage) -> None:
    storage.open_session(context(user_id="alice"), NOTHING)
    before = storage.find_session("t")
    for stranger in (context(), context(user_id="bob")):
        with pytest.raises(SessionAccessDenied):
            storage.append(stranger, [MessageEntry("m", "user", "let me in")])
        with pytest.raises(SessionAccessDenied):
            storage.authorize(stranger)
    assert storage.list_messages("t") == []
    assert kinds(storage) == ["opened", "denied", "denied"]
    assert [(e.detail["user_id"], e.detail["times"]) for e in storage.list_records(Event, "t")[1:]] == [
        (None, 2),
        ("bob", 2),
    ]
    assert storage.find_session("t").last_active_at == before.last_active_at


def test_ever_new_strangers_are_counted_together_and_fill_nothing(storage: Storage) -> None:
    storage.open_session(context(user_id="alice"), NOTHING)
    for number in range(60):
        with pytest.raises(SessionAccessDenied):
            storage.authorize(context(user_id=f"stranger {number % 20}"))
    denied = storage.list_records(Event, "t")[1:]
    assert len(denied) == 11
    assert sum(event.detail.get("times", 1) for event in denied) == 60


def test_a_denial_is_recorded_when_the_run_in_progress_opens_the_session(storage: Storage) -> None:
    holder, *refused = (context("t", "alice", lease=Lease(), run_id=name) for name in ("h", "a", "b"))
    assert storage.acquire_session(holder, wait=False)
    for each in refused:
        with pytest.raises(SessionBusy):
            storage.acquire_session(each, wait=False)
    storage.append(holder)
    opened, denied = storage.list_records(Event, "t")
    assert (opened.kind, denied.kind, denied.reason) == ("opened", "denied", "busy")
    assert (denied.detail["user_id"], denied.detail["times"]) == ("alice", 2)


def test_a_denial_is_recorded_when_its_transaction_is_repeated(storage: Storage) -> None:
    holder, second, queued = (context("t", "alice", lease=Lease(), run_id=name) for name in ("h", "s", "q"))
    stranger = context("t", "bob", lease=Lease(), run_id="x")
    storage.open_session(holder, SessionDetails(tags=("a",)))
    assert storage.acquire_session(holder, wait=False)
    assert not storage.acquire_session(queued, wait=True)

    def fail() -> None:
        storage.update_session("t", SessionDetails(title="lost"))
        raise ZeroDivisionError

    def denied() -> int:
        events = storage.list_records(Event, "t")
        return sum(event.detail.get("times", 1) for event in events if event.kind == "denied")

    calls: list[Callable[[], object]] = [
        lambda: storage.acquire_session(second, wait=False),
        lambda: storage.acquire_session(queued, wait=False),
        lambda: storage.authorize(stranger),
    ]
    for number, call in enumerate(calls, 1):
        refused, failed = storage.run_batch([call, fail], durable=False)
        with pytest.raises((SessionBusy, SessionAccessDenied)):
            refused()
        with pytest.raises(ZeroDivisionError):
            failed()
        assert denied() == number
    assert queued.lease is not None
    storage.release_leases([queued.lease])
    assert storage.find_active_run("t", but=holder.lease) is None


def test_looking_is_no_activity_and_opens_nothing(storage: Storage, clock: Clock) -> None:
    assert storage.authorize(context()) is None
    assert storage.find_session("t") is None
    opened = storage.open_session(context(), NOTHING)
    clock.advance(minutes=1)
    storage.authorize(context())
    assert storage.find_session("t") == opened


def test_a_revived_session_says_so_once(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", on_resume="revive")
    storage.open_session(context(), NOTHING)
    clock.advance(hours=2)
    again = context()
    assert storage.authorize(again) is not None
    storage.append(again, [])
    storage.append(again, [])
    assert kinds(storage) == ["opened", "revived"]
    assert storage.find_session("t").opened_as == "revived"


def test_a_rejected_session_stays_as_it_was(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", on_resume="reject")
    storage.open_session(context(), NOTHING)
    clock.advance(hours=2)
    with pytest.raises(SessionExpired):
        storage.append(context(), [MessageEntry("m", "user", "hello?")])
    assert storage.list_messages("t") == []
    assert kinds(storage) == ["opened", "denied"]


def test_a_fresh_start_puts_the_old_session_aside_whole(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", on_resume="fresh")
    storage.append(context(user_id="alice"), [MessageEntry("m", "user", "old")])
    storage.put_memories([put_of(("session", "t"), "k", {"text": "old"}, "old", "t")])
    clock.advance(hours=2)
    again = context(user_id="alice")
    assert storage.authorize(again) is None
    storage.append(again, [MessageEntry("n", "user", "new")])
    storage.append(again, [MessageEntry("o", "user", "newer")])
    assert [m.text for m in storage.list_messages("t")] == ["new", "newer"]
    assert [m.text for m in storage.list_messages("t~1")] == ["old"]
    aside = storage.find_session("t~1")
    assert (aside.status, aside.family_id, aside.user_id) == ("abandoned", "t~1", "alice")
    assert kinds(storage, "t~1") == ["opened", "expired", "renamed"]
    assert storage.get_memories([(("session", "t~1"), "k")])[0] is not None
    assert storage.get_memories([(("session", "t"), "k")]) == [None]
    clock.advance(hours=2)
    storage.append(context(user_id="alice"), [])
    assert storage.find_session("t~2") is not None


def test_a_run_that_outlasts_the_timeout_ends_as_it_began(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", on_resume="reject")
    run = context(run_id="r")
    storage.append(run)
    clock.advance(hours=5)
    storage.append(run, [MessageEntry("m", "assistant", "done at last")])
    assert [m.text for m in storage.list_messages("t")] == ["done at last"]
    assert kinds(storage) == ["opened"]


def test_sessions_are_listed_by_latest_activity_and_by_pages(storage: Storage, clock: Clock) -> None:
    for number in range(5):
        storage.open_session(context(f"s{number}", user_id="ab"[number % 2]), SessionDetails(tags=["x", f"n{number}"]))
        clock.advance(seconds=1)
    first = storage.list_sessions(SessionFilter(), limit=3)
    assert [s.id for s in first] == ["s4", "s3", "s2"]
    rest = storage.list_sessions(SessionFilter(), limit=3, after=first[-1])
    assert [s.id for s in rest] == ["s1", "s0"]
    assert [s.id for s in storage.list_sessions(SessionFilter(user_id="b"), limit=None)] == ["s3", "s1"]
    assert [s.id for s in storage.list_sessions(SessionFilter(tags=["x", "n2"]), limit=9)] == ["s2"]
    since = SessionFilter(since=first[1].last_active_at, until=first[0].last_active_at)
    assert [s.id for s in storage.list_sessions(since, limit=9)] == ["s3"]
    assert storage.count_sessions(SessionFilter(user_id="a")) == 3


def test_tags_and_metadata_are_compared_beyond_a_nul_character(storage: Storage) -> None:
    texts = {"a": "a", "nul": "a\0b", "other": "a\0c", "escape": "a\1\1b", "spelled": r"a\u0000b"}
    for session_id, text in texts.items():
        storage.open_session(context(session_id), SessionDetails(tags=[text], metadata={"k": text, text: 1}))
    for session_id, text in texts.items():
        for where in (
            SessionFilter(tags=[text]),
            SessionFilter(metadata={"k": text}),
            SessionFilter(metadata={text: 1}),
        ):
            assert [s.id for s in storage.list_sessions(where, limit=9)] == [session_id]


def test_status_filters_follow_the_clock_and_not_a_sweep(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_after="5m", idle_timeout="1h")
    for session_id, minutes in (("expired", 50), ("idle", 14), ("active", 1)):
        storage.open_session(context(session_id), NOTHING)
        clock.advance(minutes=minutes)
    for status in ("active", "idle", "expired"):
        where = SessionFilter(status=[status])  # type: ignore[arg-type]
        assert [s.id for s in storage.list_sessions(where, limit=9)] == [status]
        assert storage.count_sessions(where) == 1


@pytest.mark.parametrize("durations", [{}, {"max_age": "2h"}, {"idle_timeout": "never", "max_age": "2h"}], ids=repr)
def test_a_status_filter_finds_each_session_once_whatever_it_expires_by(
    durations: dict[str, Any], make_storage: Callable[..., Storage], clock: Clock
) -> None:
    given = {"idle_after": "5m", "idle_timeout": "1h", **durations}
    storage, settings = make_storage(**given), load_settings(**given)
    own = (None, 0.0, 600.0, 4 * 3600.0)
    for number, (idle_timeout, max_age) in enumerate(product(own, own)):
        for kind in ("plain", "pinned", "postponed", "running", "ended"):
            session_id = f"{kind}-{number}"
            details = SessionDetails(idle_timeout_seconds=idle_timeout, max_age_seconds=max_age)
            storage.open_session(context(session_id, "u"), details)
            if kind == "pinned":
                storage.pin_session(session_id, Pin(by="u", why=None, at=clock()))
            elif kind == "postponed":
                storage.postpone_expiry(session_id, clock() + timedelta(hours=1))
            elif kind == "running":
                storage.append(context(session_id, "u", lease=Lease(), run_id=session_id))
            elif kind == "ended":
                storage.end_session(session_id, "expired", reason="by_user", detail={})
    ids = {each.id for each in storage.list_sessions(SessionFilter(), limit=None)}
    for minutes in (0, 5, 5, 30, 20, 60, 60, 90):
        clock.advance(minutes=minutes)
        found: dict[tuple[str, str | None], list[str]] = {}
        for status, owner in product(("active", "idle", "expired"), (None, "u")):
            where = SessionFilter(status=[status], user_id=owner)  # type: ignore[list-item]
            listed = storage.list_sessions(where, limit=None)
            assert {lifecycle.status_at(each, settings, clock()) for each in listed} <= {status}
            assert storage.count_sessions(where) == len(listed)
            found[status, owner] = sorted(each.id for each in listed)
        assert sorted(chain(*found.values())) == sorted([*ids] * 2)


def test_a_sweep_ends_what_is_due_and_a_dry_run_only_says_so(
    make_storage: Callable[..., Storage], clock: Clock
) -> None:
    storage = make_storage(idle_timeout="1h")
    storage.open_session(context("old"), NOTHING)
    clock.advance(minutes=50)
    storage.open_session(context("young"), NOTHING)
    clock.advance(minutes=20)
    for dry_run in (True, False):
        [ended] = ended_now(storage, clock, dry_run)
        assert (ended.session_id, ended.reason, ended.action) == ("old", "idle_timeout", "keep")
        assert (storage.find_session("old").status == "active") is dry_run
    assert ended_now(storage, clock, False) == []
    assert storage.list_records(Event, "old")[-1].reason == "idle_timeout"
    assert storage.find_session("old").ended_at == ended.expired_at


def test_a_sweep_leaves_a_session_with_a_run_in_progress(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h")
    run = context("busy", run_id="r")
    storage.append(run)
    clock.advance(hours=2)
    assert ended_now(storage, clock, False) == []
    assert (storage.find_session("busy").is_running, storage.count_sessions(SessionFilter(status=["active"]))) == (
        True,
        1,
    )
    storage.append(run, [RunEnd("ok", None, 1)])
    assert storage.find_session("busy").last_active_at == clock()
    clock.advance(hours=2)
    assert [ended.session_id for ended in ended_now(storage, clock, False)] == ["busy"]


def test_on_expire_delete_deletes_everything_of_the_session(make_storage: Callable[..., Storage], clock: Clock) -> None:
    storage = make_storage(idle_timeout="1h", on_expire="delete")
    storage.append(context(), [MessageEntry("m", "user", "hi")])
    clock.advance(hours=2)
    assert [ended.action for ended in ended_now(storage, clock, False)] == ["delete"]
    assert storage.find_session("t") is None
    assert storage.list_messages("t") == []


def test_deleting_counts_and_deleting_again_counts_nothing(storage: Storage) -> None:
    storage.append(context(), [MessageEntry("m", "user", "hi"), MessageEntry("n", "assistant", "ho")])
    storage.put_memories([put_of(("session", "t"), "k", {"text": "x"}, "x", "t")])
    deleted = storage.delete_session("t")
    assert (deleted.sessions, deleted.messages, deleted.memories) == (1, 2, 1)
    assert storage.delete_session("t").sessions == 0


def test_ids_are_listed_by_their_beginning(storage: Storage) -> None:
    for name in ("a1", "a2", "b", "一二", "a%"):
        storage.append(context(name))
    storage.delete_session("b")
    assert storage.list_ids("a", limit=9) == ["a%", "a1", "a2"]
    assert storage.list_ids("a", limit=1) == ["a%"]
    assert storage.list_ids("一", limit=9) == ["一二"]
    assert storage.list_ids("b", limit=9) == []
    assert storage.list_ids("", limit=9, deleted=True) == ["b"]


def test_kept_settings_are_replaced_as_a_whole(storage: Storage) -> None:
    assert storage.find_settings() == {}
    storage.keep_settings({"idle_timeout": 60.0, "on_expire": "prune"})
    storage.keep_settings({"idle_timeout": None, "max_sessions": 3})
    assert storage.find_settings() == {"idle_timeout": None, "max_sessions": 3}
