"""Aligning a history that has no ids with what is recorded: every way in which the two can differ."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_middleware.recording.history_diff import (
    align_appended,
    align_input,
    align_prompt,
    align_state,
    diff_history,
    rewind,
)
from session_middleware.storage.record_entries import Alignment, ComparableMessage


def recorded(*texts: str, run_id: str | None = None) -> list[ComparableMessage]:
    """Who speaks is told by the first letter: a user or, in capitals, an assistant."""
    return [ComparableMessage(f"m{number}", words(text), run_id) for number, text in enumerate(texts)]


def history(*texts: str) -> list[ComparableMessage]:
    return [ComparableMessage(None, words(text)) for text in texts]


def words(text: str) -> tuple[str, str]:
    return ("assistant" if text[0].isupper() else "user", text)


def test_the_same_history_again_adds_nothing() -> None:
    assert diff_history(recorded("hi", "Hello"), history("hi", "Hello")) == Alignment(["m0", "m1"])


def test_what_follows_it_is_new() -> None:
    assert diff_history(recorded("hi"), history("hi", "Hello", "bye")) == Alignment(["m0", None, None])


def test_a_beginning_of_it_adds_nothing() -> None:
    assert diff_history(recorded("hi", "Hello", "bye"), history("hi")) == Alignment(["m0"])


def test_saying_the_same_twice_is_two_messages() -> None:
    assert diff_history(recorded("yes", "Ok"), history("yes", "Ok", "yes")) == Alignment(["m0", "m1", None])
    assert diff_history(recorded("yes"), history("yes", "yes")) == Alignment(["m0", None])


def test_the_last_message_edited_is_another_version_of_it() -> None:
    assert diff_history(recorded("hi", "Hello"), history("hi", "Hullo")) == Alignment(["m0", "m1"])
    assert diff_history(recorded("hi", "Hello"), history("hi", "Hullo", "bye")) == Alignment(["m0", "m1", None])


def test_a_message_edited_before_others_that_stay_is_another_version_of_it() -> None:
    assert diff_history(recorded("hi", "Hello", "bye"), history("hey", "Hello", "bye")) == Alignment(["m0", "m1", "m2"])


def test_history_trimmed_at_the_front_adds_only_what_is_new_at_its_end() -> None:
    said = recorded("a", "B", "c", "D")
    assert diff_history(said, history("c", "D")) == Alignment(["m2", "m3"])
    assert diff_history(said, history("c", "D", "e")) == Alignment(["m2", "m3", None])
    assert diff_history(said, history("a", "D", "e")) == Alignment(["m0", "m3", None])  # the first was kept


def test_a_summary_in_place_of_what_was_trimmed_is_new_and_changes_nothing_behind_it() -> None:
    said = recorded("a", "B", "c", "D")
    assert diff_history(said, history("so far", "D", "e")) == Alignment([None, "m3", None])
    assert diff_history(recorded("a", "B"), history("first", "a", "B")) == Alignment([None, "m0", "m1"])


def test_the_end_of_what_is_recorded_and_one_turn_more_adds_that_turn() -> None:
    said = recorded("next", "One", "next", "Two")
    assert diff_history(said, history("Two", "next")).ids == ["m3", None]
    assert diff_history(said, history("next", "Two", "next")).ids == ["m2", "m3", None]
    assert diff_history(said[:3], history("next", "Two")).ids == ["m2", None]


def test_one_turn_is_new_unless_something_in_it_shows_that_it_is_recorded() -> None:
    said = recorded("next", "One", "why", "Two")
    assert diff_history(said, history("next")) == Alignment([None])
    assert diff_history(said, history("Three")) == Alignment([None])
    assert diff_history(said, history("how", "Three")) == Alignment([None, None])
    assert diff_history(recorded("next", "Part 1"), history("next", "Part 2")) == Alignment([None, None])
    assert diff_history(recorded("next", "One", "next", "Two"), history("next", "Three")) == Alignment([None, None])
    assert diff_history(said, history("why", "Two")).ids == ["m2", "m3"]
    assert diff_history(said, history("next", "Three")) == Alignment(
        ["m0", None], branch_after=1
    )  # the first was said once


def test_messages_masked_or_cut_short_are_versions_of_those_recorded() -> None:
    said = recorded("what is it", "Some answer", "and why", "For a reason")
    known = ["m0", "m1", "m2", "m3", None]
    for masks in (["[masked]"] * 4, ["***"] * 4, ["Removed"] * 4, ["what…", "Some [cut]", "and", "…"]):
        passed = [*(old._replace(message_id=None, words=(old.words[0], mask)) for old, mask in zip(said, masks))]  # noqa: B905
        assert diff_history(said, [*passed, *history("next")]) == Alignment(known)
        assert diff_history(said, [*passed[2:], *history("next")]) == Alignment(known[2:])
    other = history("what is it", "Some answer", "who", "A stranger", "next")
    assert diff_history(said, other) == Alignment(["m0", "m1", None, None, None], branch_after=2)


def test_another_way_is_a_branch_from_the_last_message_that_both_have() -> None:
    assert diff_history(recorded("a", "B", "c", "D"), history("a", "B", "x")) == Alignment(
        ["m0", "m1", None], branch_after=2
    )


def test_a_list_that_shares_no_beginning_starts_a_branch() -> None:
    assert diff_history(recorded("a", "B"), history("x", "Y", "z")) == Alignment([None] * 3, branch_after=0)


def test_ids_count_more_than_words() -> None:
    said = [ComparableMessage("m0", words("yes")), ComparableMessage("m1", words("Ok"))]
    assert diff_history(said, [*said, ComparableMessage("other", words("yes"))]) == Alignment(["m0", "m1", None])


def test_another_question_with_the_same_instructions_leaves_nothing_behind() -> None:
    said = recorded("be nice", "one", "A", run_id="r1")
    assert align_prompt(said, history("be nice", "two"), run_id="r2") == Alignment(["m0", None])


def test_a_question_asked_again_in_another_run_is_asked_again() -> None:
    said = recorded("be nice", "one", "A", run_id="r1")
    assert align_prompt(said, history("be nice", "one"), run_id="r2") == Alignment(["m0", None])
    assert align_prompt(said, history("be nice", "one"), run_id="r1") == Alignment(["m0", "m1"])


def test_of_what_a_graph_is_called_with_only_what_is_not_recorded_is_new_wherever_it_stands() -> None:
    said = recorded("a", "Tool", "B", "c", "D", run_id="r1")
    assert align_input(said, history("now", "a", "B", "x", "c", "D", "e"), run_id="r2").ids == [
        *(None, "m0", "m2", None, "m3", "m4", None),
    ]
    assert align_input(said, history("a"), run_id="r2").ids == [None]  # asked again
    assert align_input(said, history("a"), run_id="r1").ids == ["m0"]


def test_what_the_recorder_has_just_seen_is_not_added_to_a_history_again() -> None:
    said = recorded("one", "A", run_id="r1")
    assert align_appended(said, history("one", "A"), run_id="r1") == Alignment(["m0", "m1"])
    assert align_appended(said, history("one", "A"), run_id="r2") == Alignment([None, None])


def test_a_state_without_ids_goes_on_from_what_its_run_was_given() -> None:
    said = recorded("yes", "Ok", run_id="r1") + [ComparableMessage("m2", words("yes"), "r2")]
    state = partial(align_state, run_id="r2", goes_on=False)
    assert state(said, history("yes", "Ok")) == Alignment(["m2", None])
    assert state(said, history("yes", "Ok", "yes", "Ok")) == Alignment(["m0", "m1", "m2", None])
    assert state(said, history("Ok")) == Alignment([None])
    assert state(said[:2], history("yes")) == Alignment([None])  # asked again
    assert align_state(said[:2], history("yes"), run_id="r2", goes_on=True) == Alignment(["m0"])


SYSTEM = [ComparableMessage("s", ("system", "It is 10:01.")), *recorded("hi", "Hello")]


def test_instructions_are_compared_with_instructions() -> None:
    def told(*texts: str) -> list[ComparableMessage]:
        return [ComparableMessage(None, ("system", texts[0])), *history(*texts[1:])]

    assert diff_history(SYSTEM, told("It is 10:02.", "hi", "Hello", "bye")) == Alignment(["s", "m0", "m1", None])
    assert diff_history(SYSTEM, told("Speak Dutch!", "hi", "Hello")) == Alignment(
        ["s", "m0", "m1"]
    )  # in the same place
    assert diff_history(SYSTEM, told("So far: greetings", "Hello", "bye")) == Alignment([None, "m1", None])
    assert diff_history(SYSTEM, told("It is 10:02.", "x", "Y", "z")) == Alignment(
        ["s", None, None, None], branch_after=1
    )


def test_a_state_that_went_back_leaves_what_it_does_not_know() -> None:
    said = recorded("a", "B", "c")
    assert rewind(said, said[:2]) == Alignment(["m0", "m1"], branch_after=2)
    assert rewind(said, said) == Alignment(["m0", "m1", "m2"])


SPOKEN = st.lists(st.sampled_from(["yes", "no", "Ok", "Well"]), max_size=6)


@given(SPOKEN, SPOKEN)
def test_a_conversation_that_grows_is_recorded_as_it_is(before: list[str], more: list[str]) -> None:
    found = diff_history(recorded(*before), history(*before, *more))
    assert found == Alignment([*(f"m{number}" for number in range(len(before))), *[None] * len(more)])


@given(SPOKEN, SPOKEN)
def test_what_a_history_says_is_in_the_record_afterwards(before: list[str], passed: list[str]) -> None:
    """Whatever it was taken for, the branch then ends as the history does."""
    found = diff_history(recorded(*before), history(*passed))
    kept = [f"m{number}" for number in range(len(before))]
    known = [message_id for message_id in found.ids if message_id is not None]
    assert len(found.ids) == len(passed)
    assert known == sorted(known, key=kept.index)
    if found.branch_after is not None:
        assert set(known) <= set(kept[: found.branch_after])


@pytest.mark.parametrize("run_id", [None, "r"])
@given(before=SPOKEN, passed=SPOKEN)
def test_what_a_model_is_asked_never_leaves_anything_behind(
    before: list[str], passed: list[str], run_id: str | None
) -> None:
    for add in (align_prompt, align_input):
        found = add(recorded(*before), history(*passed), run_id=run_id)
        assert (len(found.ids), found.branch_after) == (len(passed), None)
