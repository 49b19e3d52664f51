"""The record, as every engine keeps it: each message and each execution is one row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import Sessions
from session_middleware.models import Event, Identity, ModelCall, Run, ToolCall
from session_middleware.storage.checkpoint_types import Blob, CheckpointPut
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import ASIDE, MessageEntry, ModelCallEntry, RunEnd, ToolEnd, ToolStart
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.record import runs
from session_middleware.storage.types import Part, SessionDetails
from tests.support import agents

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}


@pytest.fixture
def run() -> RunContext:
    return RunContext("t", Identity(), run_id="r1")


def say(message_id: str, text: str, role: str = "user", **fields: object) -> MessageEntry:
    return MessageEntry(message_id, role, text, **fields)  # type: ignore[arg-type]


def test_the_same_history_again_adds_nothing(storage: Storage, run: RunContext) -> None:
    call = ModelCallEntry("2", input_tokens=3, output_tokens=4)
    history = [say("1", "hi"), say("2", "ho", "assistant", call=call)]
    for _ in range(3):
        storage.append(run, history)
    assert [(m.seq, m.text) for m in storage.list_messages("t")] == [(3, "hi"), (4, "ho")]
    assert [(call.message_id, call.flags) for call in storage.list_records(ModelCall, "t")] == [("2", ("told",))]
    session = storage.find_session("t")
    assert (session.message_count, session.input_tokens, session.output_tokens) == (2, 3, 4)


def test_other_words_under_a_known_id_are_a_new_version_in_the_same_place(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("1", "hi"), say("2", "there")])
    storage.append(run, [say("1", "hello")])
    latest = storage.list_messages("t")
    assert [(m.text, m.version) for m in latest] == [("hello", 2), ("there", 1)]
    old = storage.list_messages("t", all_versions=True)[0]
    assert (old.text, old.replaced_by) == ("hi", latest[0].seq)
    assert storage.find_session("t").message_count == 2


def test_what_is_said_and_said_otherwise_in_one_batch_is_as_in_two(storage: Storage, run: RunContext) -> None:
    streamed = [say("1", text, "assistant", complete=text == "hello") for text in ("he", "hell", "hello")]
    storage.append(run, [*streamed, say("2", "hi"), say("2", "there")])
    storage.append(run, [say("3", text, "assistant", complete=False) for text in ("cut", "cut off")])
    found = [(m.text, m.version, m.status) for m in storage.list_messages("t")]
    assert found == [("hello", 1, "complete"), ("there", 2, "complete"), ("cut off", 1, "incomplete")]
    assert [m.text for m in storage.list_messages("t", all_versions=True)] == ["hello", "hi", "there", "cut off"]


def test_every_row_of_a_session_has_its_place_in_one_order(storage: Storage, run: RunContext) -> None:
    storage.append(run)
    storage.append(run, [say("1", "hi"), say("2", "", "assistant", tool_calls=[CALL])])
    storage.append(run, [ToolStart("x1", "c1", "add", {"a": 1})])
    storage.append(run, [ToolEnd("x1", "ok", "2", None, 5)])
    storage.append(run, [say("3", "2", "tool", tool_call_id="c1", name="add")])
    storage.append(run, [RunEnd("ok", None, 9)])
    rows = [
        *storage.list_records(Event, "t"),
        *storage.list_records(Run, "t"),
        *storage.list_messages("t"),
        *storage.list_records(ToolCall, "t"),
    ]
    rows.sort(key=lambda row: row.seq)
    assert [type(row).__name__ for row in rows] == ["Event", "Run", "Message", "Message", "ToolCall", "Message"]
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5, 6]


def test_beginning_a_run_again_does_nothing(storage: Storage, run: RunContext) -> None:
    storage.append(run)
    storage.append(run)
    storage.append(RunContext("t", Identity(), run_id="r1"))
    assert len(storage.list_records(Run, "t")) == 1
    assert storage.find_session("t").run_count == 1


def test_an_execution_is_closed_with_its_result_and_finds_its_message(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("2", "", "assistant", tool_calls=[CALL])])
    storage.append(run, [ToolStart("x1", "c1", "add", {"a": 1}, node="tools")])
    [call] = storage.list_records(ToolCall, "t")
    assert (call.status, call.message_id, call.result) == ("running", "2", None)
    storage.append(run, [ToolEnd("x1", "error", None, "ValueError: no", 1.5)])
    [call] = storage.list_records(ToolCall, "t")
    assert (call.status, call.error, call.duration_ms, call.arguments) == ("error", "ValueError: no", 1.5, {"a": 1})
    assert storage.find_session("t").error_count == 1


def test_executing_a_call_again_is_another_attempt_and_the_cut_off_one_says_so(
    storage: Storage, run: RunContext
) -> None:
    storage.append(run, [ToolStart("x1", "c1", "add", {})])
    storage.append(run, [ToolStart("x2", "c1", "add", {})])
    assert [(c.attempt, c.status) for c in storage.list_records(ToolCall, "t")] == [(1, "interrupted"), (2, "running")]


def test_a_call_nobody_watched_is_known_from_its_answer(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("2", "", "assistant", tool_calls=[CALL])])
    answer = say("3", "boom", "tool", tool_call_id="c1", tool_error=True)
    storage.append(run, [answer])
    storage.append(run, [answer])
    [call] = storage.list_records(ToolCall, "t")
    assert (call.name, call.arguments, call.status, call.error, call.duration_ms) == (
        "add",
        {"a": 1},
        "error",
        "boom",
        None,
    )


def test_pages_go_on_after_a_seq(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say(str(n), f"m{n}") for n in range(6)])
    first = storage.list_messages("t", Part(limit=4))
    rest = storage.list_messages("t", Part(after=first[-1].seq))
    assert [m.text for m in first + rest] == [f"m{n}" for n in range(6)]


def test_what_json_cannot_hold_is_recorded_with_a_mark(storage: Storage, run: RunContext) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<odd \ud800>"

    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    for number, value in enumerate([b"bytes", {1, 2}, Odd(), cycle, {("a", 1): 2}, float("nan")]):
        storage.append(run, [ToolStart(f"x{number}", f"c{number}", "tool\ud800", {"value": value})])
        storage.append(run, [ToolEnd(f"x{number}", "ok", value, "\udfff", 0)])
    calls = storage.list_records(ToolCall, "t")
    assert len(calls) == 6
    assert calls[0].result["__repr__"] == "b'bytes'"
    assert calls[1].result == [1, 2]
    assert calls[2].result["__repr__"] == "<odd \ufffd>"
    assert {call.flags for call in calls} == {("invalid:unicode",)}
    assert "__repr__" in calls[3].result


def test_without_tracking_nothing_said_is_kept(make_storage: Callable[..., Storage], run: RunContext) -> None:
    storage = make_storage(tracking=False)
    storage.append(run, [say("1", "hi")])
    assert storage.list_messages("t") == []
    assert [event.kind for event in storage.list_records(Event, "t")] == ["opened"]


# Branches and places


def put(
    checkpoint_id: str, parent_id: str | None, *messages: MessageEntry, context: RunContext | None = None, step: int = 0
) -> CheckpointPut:
    context = context or RunContext("t", Identity())
    body = Blob("t", b"body")
    return CheckpointPut(context, "", checkpoint_id, parent_id, body, "loop", step, None, (), {}, messages=messages)


def texts(storage: Storage, **options: object) -> list[str]:
    part = Part(**{name: options.pop(name) for name in ("after", "limit") if name in options})  # type: ignore[arg-type]
    return [message.text for message in storage.list_messages("t", part, **options)]  # type: ignore[arg-type]


def test_a_second_child_of_a_checkpoint_begins_a_branch(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one")))
    storage.put_checkpoint(put("c2", "c1", say("2", "two")))
    storage.put_checkpoint(put("c3", "c1", say("3", "three")))
    storage.put_checkpoint(put("c4", "c3", say("4", "four")))
    assert texts(storage) == ["one", "three", "four"]
    assert texts(storage, branch="main") == ["one", "two"]
    assert texts(storage, branch="all") == ["one", "two", "three", "four"]
    (branch,) = storage.list_branches("t")
    assert (branch.id, branch.parent_id, storage.find_session("t").branch) == ("branch-2", "main", "branch-2")
    storage.put_checkpoint(put("c5", "c2", say("5", "five")))
    assert texts(storage) == ["one", "two", "five"]


def test_two_runs_that_both_begin_a_thread_are_two_branches(storage: Storage) -> None:
    one, two = (RunContext("t", Identity(), run_id=run_id) for run_id in ("r1", "r2"))
    storage.append(one, [say("1", "one")])
    storage.append(two, [say("2", "two")])
    storage.put_checkpoint(put("c1", None, say("1", "one"), context=one))
    for _ in range(2):
        storage.put_checkpoint(put("c2", None, say("2", "two"), context=two))
    storage.append(one, [say("3", "three")])
    assert (texts(storage, branch="main"), texts(storage)) == (["one", "three"], ["two"])
    assert len(storage.list_branches("t")) == 1


def test_what_a_run_said_before_its_checkpoint_parted_goes_with_it(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one")))
    runs = [RunContext("t", Identity(), run_id=name, started_from="c1") for name in ("r1", "r2")]
    for context, text in zip(runs, ("left", "right"), strict=True):
        storage.append(context, [say(text, text)])
    for number, (context, text) in enumerate(zip(runs, ("left", "right"), strict=True)):
        storage.put_checkpoint(put(f"c{2 + number}", "c1", say(text, text), context=context))
    assert texts(storage, branch="main") == ["one", "left"]
    assert texts(storage) == ["one", "right"]


def test_what_is_replayed_the_same_stays_one_row(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one")))
    storage.put_checkpoint(put("c2", "c1", say("2", "two"), say("3", "three")))
    storage.put_checkpoint(put("c3", "c1", say("2", "two")))
    storage.put_checkpoint(put("c4", "c3", say("4", "four")))
    assert texts(storage) == ["one", "two", "four"]
    assert texts(storage, branch="main") == ["one", "two", "three"]
    assert storage.find_session("t").message_count == 4
    assert len(storage.list_messages("t", branch="all", all_versions=True)) == 4


def test_an_edit_on_a_branch_leaves_the_other_as_it_was(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one"), say("2", "two")))
    storage.put_checkpoint(put("c2", "c1", say("3", "three")))
    storage.put_checkpoint(put("c3", "c1", say("1", "uno")))
    assert texts(storage) == ["uno", "two"]
    assert texts(storage, branch="main") == ["one", "two", "three"]


def test_a_checkpoint_put_again_is_where_it_was(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one")))
    storage.put_checkpoint(put("c2", "c1", say("2", "two")))
    for _ in range(2):
        storage.put_checkpoint(put("c3", "c1", say("3", "three")))
    assert texts(storage) == ["one", "three"]
    assert len(storage.list_branches("t")) == 1


def test_a_message_put_before_a_known_one_stands_there(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("1", "one"), say("2", "two"), say("3", "three")])
    storage.append(run, [say("s", "so far", followed_by="3"), say("4", "four")])
    assert texts(storage) == ["one", "two", "so far", "three", "four"]
    storage.append(run, [say("s2", "further", followed_by="3")])
    first = storage.list_messages("t", Part(limit=3))
    assert [m.text for m in first] == ["one", "two", "so far"]
    assert texts(storage, after=first[-1].seq) == ["further", "three", "four"]


def test_what_was_written_as_it_came_is_put_into_the_order_of_its_checkpoint(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("1", "one"), say("right", "right"), say("left", "left")])
    ordered = [say("left", "left", followed_by="right"), say("right", "right")]
    storage.put_checkpoint(put("c1", None, *ordered, context=run))
    assert texts(storage) == ["one", "left", "right"]


def test_a_checkpoint_that_comes_late_puts_what_was_written_before_it_in_order(
    storage: Storage, run: RunContext
) -> None:
    storage.append(run, [say("2", "an answer", "assistant")])
    run.notes.message_steps.update({("", "1"): 2, ("", "2"): 2})
    storage.put_checkpoint(put("c1", None, say("1", "a question"), context=run, step=0))
    both = (say("1", "a question")._replace(followed_by="2"), say("2", "an answer", "assistant"))
    storage.put_checkpoint(put("c2", "c1", *both, context=run, step=1))
    assert texts(storage) == ["a question", "an answer"]


def test_a_replayed_message_that_comes_late_stays_one_row_of_both_branches(storage: Storage) -> None:
    question = say("1", "a question")
    storage.put_checkpoint(put("c1", None, step=-1))
    storage.put_checkpoint(put("c2", "c1", question))
    storage.put_checkpoint(put("c3", "c2", say("2", "an answer", "assistant"), step=1))
    replay = RunContext("t", Identity(), run_id="r2", started_from="c1")
    answers = [say("3", "another", "assistant"), say("4", "and more", "assistant")]
    replay.notes.message_steps.update({("", "3"): 2, ("", "4"): 3})
    storage.append(replay, answers)
    storage.put_checkpoint(put("c4", "c1", context=replay))
    storage.put_checkpoint(put("c5", "c4", question, context=replay, step=1))
    storage.put_checkpoint(put("c6", "c5", answers[0], context=replay, step=2))
    storage.put_checkpoint(put("c7", "c6", answers[1], context=replay, step=3))
    assert texts(storage) == ["a question", "another", "and more"]
    assert texts(storage, branch="all") == ["a question", "an answer", "another", "and more"]
    storage.put_checkpoint(put("c8", "c6", say("5", "instead", "assistant"), step=3))
    assert texts(storage) == ["a question", "another", "instead"]


def test_messages_that_were_removed_and_put_back_stay_where_they_were_said(storage: Storage) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "one")._replace(followed_by="2"), say("2", "two")))
    again = (say("2", "two")._replace(followed_by="1"), say("1", "one"))
    storage.put_checkpoint(put("c2", "c1", *again))
    assert texts(storage) == ["one", "two"]


def test_a_checkpoint_that_comes_late_takes_no_newer_version_back(storage: Storage, run: RunContext) -> None:
    storage.append(run, [say("1", "my mail is al@x.com")])
    storage.append(run, [say("1", "my mail is hidden")])
    run.notes.message_steps["", "1"] = 1
    storage.put_checkpoint(put("c1", None, say("1", "my mail is al@x.com"), context=run, step=0))
    storage.put_checkpoint(put("c2", "c1", say("1", "my mail is hidden"), context=run, step=1))
    assert [(m.text, m.version) for m in storage.list_messages("t")] == [("my mail is hidden", 2)]
    storage.put_checkpoint(put("c3", "c2", say("1", "my mail is al@x.com"), context=run, step=1))  # of the same step
    assert [(m.text, m.version) for m in storage.list_messages("t")] == [("my mail is al@x.com", 3)]


def test_what_a_model_was_heard_saying_is_one_row_with_the_message_of_the_state(
    storage: Storage, run: RunContext
) -> None:
    run.notes.on_fault = pytest.fail
    run.notes.unclaimed["assistant", "fine"] = "heard"
    run.notes.add([say("heard", "fine", "assistant", flags=("aside",))])
    of_state = say("own", "fine", "assistant")
    storage.put_checkpoint(put("c1", None, of_state, context=run))
    storage.append(run, [of_state])
    assert [(m.message_id, m.flags) for m in storage.list_messages("t")] == [("own", ())]


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_process_died_before_putting_is_one_row_when_its_run_goes_on(
    storage: Storage, run: RunContext, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    storage.put_checkpoint(put("c1", None, say("1", "hello"), context=run))
    storage.append(run, [say("2", "yes")])
    storage.append(run, [say("3", "5", "tool", tool_call_id="c1")])
    monkeypatch.setattr(runs, "is_gone", lambda process: True)
    storage.update_session("t", SessionDetails(title="read again, as by another process"))
    after = RunContext("t", Identity(), run_id="r2", started_from="c1", continues_without_input=goes_on)
    storage.append(after, [say("2b", "yes"), say("3b", "5", "tool", tool_call_id="c1"), say("4", "yes")])
    again = ["2b", "3b"] if goes_on else ["2", "3", "2b", "3b"]
    assert [m.message_id for m in storage.list_messages("t")] == ["1", *again, "4"]


# What is not whole


def test_a_message_that_is_streamed_is_completed_in_its_place(storage: Storage, run: RunContext) -> None:
    for text in ("he", "hello"):
        storage.append(run, [say("1", text, "assistant", complete=False)])
    assert [(m.text, m.status) for m in storage.list_messages("t")] == [("hello", "incomplete")]
    storage.append(run, [say("1", "hello you", "assistant", call=ModelCallEntry("1", input_tokens=3))])
    storage.append(run, [say("1", "hel", "assistant", complete=False)])  # late
    (message,) = storage.list_messages("t", all_versions=True)
    assert (message.text, message.status, message.version) == ("hello you", "complete", 1)
    assert storage.find_session("t").input_tokens == 3


def test_a_context_writes_what_it_has_kept_before_what_comes(storage: Storage, run: RunContext) -> None:
    run.notes.add([say("1", "one")])
    storage.put_checkpoint(put("c1", None, say("2", "two"), context=run))
    assert texts(storage) == ["one", "two"]
    assert not run.notes.entries


def test_what_cannot_be_written_is_told_of_and_takes_nothing_with_it(storage: Storage, run: RunContext) -> None:
    told: list[Exception] = []
    run.notes.on_fault = told.append
    run.notes.add([say("1", "one"), say("2", "two", input_tokens=2**80), say("3", "three")])
    storage.put_checkpoint(put("c1", None, say("4", "four"), context=run))
    assert texts(storage) == ["one", "three", "four"]
    assert [type(error).__name__ for error in told] == ["OverflowError"]
    session = storage.find_session("t")
    assert (session.message_count, session.input_tokens) == (3, 0)
    assert storage.get_checkpoint("t", "", "c1") is not None


def test_a_fault_is_raised_to_whoever_writes_by_hand(storage: Storage, run: RunContext) -> None:
    with pytest.raises(OverflowError):
        storage.append(run, [say("2", "two", input_tokens=2**80)])
    assert storage.list_messages("t") == []


def test_counters_are_of_the_rows_there_are(storage: Storage, run: RunContext) -> None:
    storage.append(
        run, [ModelCallEntry("m1", cost=lambda: 0.5), ModelCallEntry("m2"), ModelCallEntry("m3", error="no")]
    )
    storage.append(run, [say("1", "boom", "tool", tool_call_id="c1", tool_error=True)])
    storage.append(run, [say("2", "no!", "tool", tool_call_id="c2", tool_error=True, refused=True)])
    assert [call.status for call in storage.list_records(ToolCall, "t")] == ["error", "refused"]
    session = storage.find_session("t")
    assert (session.model_call_count, session.unpriced_count, session.cost) == (3, 1, 0.5)
    assert (session.tool_call_count, session.error_count) == (2, 1)
    storage.append(run, [RunEnd("ok", None, 1)])
    assert storage.list_records(Run, "t")[0].cost == 0.5


ODD_IDS = {"NUL": "a\0b", "no valid unicode": "a\ud800b", "3 MB": "x" * 3_000_000}


def test_a_message_with_an_odd_id_is_one_row_whoever_records_it_again(storage_url: str) -> None:
    for text in ("hi", "bye"):
        with Sessions(storage_url) as sessions:
            graph = sessions.attach(agents.chat())
            for name, odd in ODD_IDS.items():
                session, said = sessions.open(f"{name} by hand"), HumanMessage(text, id=odd)
                cut = HumanMessage("cut \ud800", id="cut")
                graph.invoke({"messages": [said, cut] if text == "hi" else text}, sessions.config(name))
                recorded = sessions.get(name).messages(all_versions=True)
                found = [message.text for message in recorded if message.role == "user"]
                assert found == ["hi", "cut \ufffd", "bye"][: len(found)]
                added = [session.add({"role": "user", "content": "s", "id": each}) for each in (odd, "a")]
                assert [(m.message_id, m.seq) for m in session.messages()] == [(m.message_id, m.seq) for m in added]
                assert len(added[0].message_id) <= 200
                assert recorded[0].message_id == added[0].message_id


def test_a_call_with_an_odd_id_finds_its_request_and_its_answer(storage: Storage, run: RunContext) -> None:
    for number, odd in enumerate(ODD_IDS.values()):
        asked = say(odd, "", "assistant", tool_calls=[CALL | {"id": odd}])
        storage.append(run, [ToolStart(f"x{number}", odd, "add", {"a": 1}), ToolEnd(f"x{number}", "ok", 3)])
        storage.append(run, [asked._replace(flags=(ASIDE,))])
        storage.append(run, [asked])
        storage.append(run, [say(f"answer {number}", "3", "tool", tool_call_id=odd)])
        [[call], [answer]] = storage.find_executions("t", [odd])
        request = storage.find_message("t", odd)
        assert request is not None
        assert (request.flags, call.message_id) == ((), request.message_id)
        assert (answer.message_id, answer.tool_call_id) == (f"answer {number}", call.tool_call_id)
        assert call.tool_call_id == request.tool_calls[0]["id"]
