"""Questions and answers, as every engine keeps them."""

from __future__ import annotations

from datetime import UTC, datetime

from session_middleware.models import Identity, Question
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import AnswerEntry, QuestionEntry, RunEnd
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import SessionFilter

LEFT, RIGHT = "0" * 32, "f" * 32
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(run_id: str, **fields: object) -> RunContext:
    return RunContext("t", Identity(user_id="alice"), run_id=run_id, **fields)  # type: ignore[arg-type]


def questions(storage: Storage) -> list[tuple[object, ...]]:
    found = storage.list_records(Question, "t")
    info = storage.find_session("t")
    assert info is not None
    assert info.waiting_count == sum(one.status == "open" for one in found)
    assert storage.count_sessions(SessionFilter(waiting=True)) == (info.waiting_count > 0)
    return [(one.value, one.status, one.answer) for one in found]


def test_a_question_that_is_asked_again_is_one_row_with_its_innermost_place(storage: Storage) -> None:
    storage.append(run("r1"), [QuestionEntry(LEFT, "outer?", "team", "", "c1")])
    storage.append(run("r2"), [QuestionEntry(LEFT, "inner?", "ask", "team:1", "c1"), QuestionEntry(LEFT, "inner?")])
    [question] = storage.list_records(Question, "t")
    assert (question.value, question.node, question.checkpoint_ns, question.run_id) == ("inner?", "ask", "team:1", "r1")
    storage.append(run("r3"), [AnswerEntry("yes", NOON)])
    storage.append(run("r3"), [QuestionEntry(LEFT, "and now?", "ask", "team:1", "c1")])
    assert questions(storage) == [("inner?", "answered", "yes"), ("and now?", "open", None)]


def test_one_answer_answers_one_question_and_several_are_answered_by_id(storage: Storage) -> None:
    storage.append(run("r1"), [QuestionEntry(LEFT, "left?"), QuestionEntry(RIGHT, "right?")])
    storage.append(run("r2"), [AnswerEntry("to which?", NOON)])
    assert [status for _, status, _ in questions(storage)] == ["open", "open"]
    storage.append(run("r3"), [AnswerEntry({RIGHT: None}, NOON)])
    assert questions(storage) == [("left?", "open", None), ("right?", "answered", None)]
    storage.append(run("r4"), [AnswerEntry({"decisions": []}, NOON), RunEnd("error", "no", 1, rejects_answers=True)])
    assert questions(storage)[0] == ("left?", "open", None)
    storage.append(run("r5"), [AnswerEntry({"decisions": []}, NOON)])
    [left, _] = storage.list_records(Question, "t")
    assert (left.answer, left.answered_by, left.answered_at, left.answer_run_id) == (
        {"decisions": []},
        "alice",
        NOON,
        "r5",
    )


def test_an_answer_that_two_handlers_of_a_run_bring_is_recorded_once(storage: Storage) -> None:
    storage.append(run("r1"), [QuestionEntry(LEFT, "first?", checkpoint_id="c1")])
    for _ in range(2):
        storage.append(run("r2", started_from="c1"), [AnswerEntry("yes", NOON)])
    assert questions(storage) == [("first?", "answered", "yes")]
    storage.append(run("r3", started_from="c1"), [AnswerEntry("no", NOON)])
    assert questions(storage) == [("first?", "answered", "yes"), ("first?", "answered", "no")]


def test_a_question_of_a_later_checkpoint_drops_the_earlier_ones(storage: Storage) -> None:
    storage.append(run("r1"), [QuestionEntry(LEFT, "first?", checkpoint_id="c1")])
    storage.append(
        run("r2"), [QuestionEntry(RIGHT, "second?", checkpoint_id="c2"), QuestionEntry(None, checkpoint_id="c2")]
    )
    assert questions(storage) == [("first?", "dropped", None), ("second?", "open", None), (None, "open", None)]
    storage.append(run("r3", continues_without_input=True))
    assert [status for _, status, _ in questions(storage)] == ["dropped", "open", "answered"]
    assert storage.check(repair=False, deep=True) == []
