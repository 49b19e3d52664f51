"""Lists are split into what is kept, what is new, and chunks; and joined to what they were."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.types import Interrupt, Send

from session_middleware.checkpoint import checkpoint_diff, codec
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.errors import UnserializableValue
from session_middleware.storage.checkpoint_types import Chunk
from tests.support.classes import Box

SERDE = StrictSerializer()


def fingerprint(element: object) -> int:
    return checkpoint_diff.fingerprints([element], SERDE)[0]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=400)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(plain, max_size=12))
def test_a_list_joins_to_what_it_was(elements: list[object]) -> None:
    assert codec.load(codec.dump_list("x", elements, SERDE), SERDE) == elements


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=20), st.data())
def test_a_run_can_be_cut_anywhere(elements: list[int], data: st.DataObject) -> None:
    [run] = codec.dump_list("x", elements, SERDE)
    length = data.draw(st.integers(1, len(elements)))
    if run.length > 1:
        assert codec.load([Chunk(run.blob, length)], SERDE) == elements[:length]


def test_small_plain_values_share_a_chunk_and_messages_have_their_own() -> None:
    elements = [1, 2, "three", HumanMessage("hi"), HumanMessage("ho"), 4, "x" * 1000]
    assert [chunk.length for chunk in codec.dump_list("x", elements, SERDE)] == [3, 1, 1, 1, 1]


def test_kept_is_the_common_beginning() -> None:
    assert checkpoint_diff.common_prefix_length(array("q", [1, 2, 3]), array("q", [1, 2])) == 2
    assert checkpoint_diff.common_prefix_length(array("q", [1, 9, 3]), array("q", [1, 2, 3])) == 1
    assert checkpoint_diff.common_prefix_length(array("q"), array("q", [1])) == 0


def test_added_are_elements_the_old_list_did_not_have_however_they_moved() -> None:
    old = array("q", [1, 2, 3, 4])
    new = array("q", [1, 4, 5, 3, 2, 6])
    assert checkpoint_diff.new_elements(["a", "b", "c", "d", "e", "f"], new, old, 1) == ["c", "f"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("hr", "rH", "H"),
        ("ayby", "ybyC", "C"),
        ("ybyc", "bycY", "Y"),
        ("yoyo", "oyoY", "Y"),
        ("abcd", "ScdE", "SE"),  # a summary in front of what is left
        ("ba", "Aba", "A"),  # the newest first
        ("abc", "acD", "D"),
        ("abc", "aXcC", "XC"),
        ("ab", "XY", "XY"),
        ("ab", "", ""),
    ],
)
def test_an_equal_message_without_an_id_is_new_where_it_is_said_again(before: str, after: str, said: str) -> None:
    """What is new is in capitals here, and else the same letter."""
    elements = [HumanMessage(letter) for letter in after]
    old, new = (array("q", map(ord, letters.lower())) for letters in (before, after))
    assert (
        "".join(
            m.text
            for m in checkpoint_diff.new_elements(elements, new, old, checkpoint_diff.common_prefix_length(new, old))
        )
        == said
    )


@given(st.lists(st.sampled_from("yno"), max_size=12), st.integers(1, 6))
def test_of_a_window_over_what_is_said_each_message_is_new_once_unless_nothing_shows(said: str, size: int) -> None:
    window, found = array("q"), 0
    for letter in said:
        moved = array("q", [*window, ord(letter)])[-size:]
        found += len(
            checkpoint_diff.new_elements(
                [HumanMessage(chr(mark)) for mark in moved],
                moved,
                window,
                checkpoint_diff.common_prefix_length(moved, window),
            )
        )
        found += moved == window  # a window full of the same word stays as it is
        window = moved
    assert found == len(said)


def test_a_fingerprint_is_of_the_value_not_the_object() -> None:
    assert fingerprint(HumanMessage("hi", id="1")) == fingerprint(HumanMessage("hi", id="1"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "content", "bye"),
        lambda m: setattr(m, "id", "2"),
        lambda m: m.additional_kwargs.update(a=1),
        lambda m: m.response_metadata.update(a={"b": [1]}),
        lambda m: m.tool_calls[0]["args"].update(q="other"),
        lambda m: m.tool_calls.append({"name": "x", "args": {}, "id": "9", "type": "tool_call"}),
        lambda m: setattr(m, "extra_field", 1),
    ],
)
def test_a_change_made_in_place_changes_the_fingerprint(change: object) -> None:
    message = AIMessage("hi", id="1", tool_calls=[{"name": "f", "args": {"q": "x"}, "id": "c"}])
    before = fingerprint(message)
    change(message)  # type: ignore[operator]
    assert fingerprint(message) != before


def test_a_change_deep_in_content_blocks_changes_the_fingerprint() -> None:
    message = HumanMessage([{"type": "text", "text": "hi", "annotations": [{"n": 1}]}])
    before = fingerprint(message)
    message.content[0]["annotations"][0]["n"] = 2  # type: ignore[index]
    assert fingerprint(message) != before


@pytest.mark.parametrize("pair", [(1, True), (1, 1.0), (0.0, -0.0), ("1", 1), (b"1", "1"), (None, False)])
def test_values_that_only_compare_equal_have_other_fingerprints(pair: tuple[object, object]) -> None:
    assert fingerprint(pair[0]) != fingerprint(pair[1])


class Unknown:
    pass


@dataclass
class Row:
    cells: Any


UNKNOWN = Unknown()
CULPRITS: dict[str, tuple[Any, str, Any]] = {
    "list": ({"columns": [1, 2, UNKNOWN]}, "['columns'][2]", UNKNOWN),
    "set": ({("a", 1): {UNKNOWN}}, "[('a', 1)][…]", UNKNOWN),
    "deque": (deque([UNKNOWN]), "[0]", UNKNOWN),
    "key": ({UNKNOWN: 1}, ".keys()", UNKNOWN),
    "message": (ToolMessage("x", tool_call_id="1", artifact=[UNKNOWN]), ".artifact[0]", UNKNOWN),
    "dataclass": ([Row(cells=[UNKNOWN])], "[0].cells[0]", UNKNOWN),
    "send": (Send("node", {"x": UNKNOWN}), ".arg['x']", UNKNOWN),
    "interrupt": ((Interrupt({"q": UNKNOWN}),), "[0].value['q']", UNKNOWN),
    "model": ([Box(value=(1, UNKNOWN))], "[0].value[1]", UNKNOWN),
    "itself": (UNKNOWN, "", UNKNOWN),
}


@pytest.mark.parametrize(("value", "path", "part"), CULPRITS.values(), ids=CULPRITS)
def test_the_culprit_is_named_by_its_path_and_what_is_wrong_with_it(value: Any, path: str, part: Any) -> None:
    with pytest.raises(UnserializableValue) as outer:
        SERDE.dumps_typed(value)
    found, culprit, problem = codec.find_culprit(value, "state.data", SERDE, outer.value)
    assert (found, culprit) == (f"state.data{path}", part)
    assert f"{type(part).__module__}.{type(part).__name__}" in str(problem)


def test_a_value_that_holds_itself_is_its_own_culprit() -> None:
    value: list[Any] = [1]
    value.append({"again": value})
    path, culprit, _ = codec.find_culprit(value, "state.data", SERDE, ValueError())
    assert (path, culprit is value[1]) == ("state.data[1]", True)
