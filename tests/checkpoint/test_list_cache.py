"""Lists kept for the next reading: equal to what is stored, and nobody else's to change."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage

from session_middleware.checkpoint.codec import Codec
from session_middleware.checkpoint.list_cache import ListCache, ListReader
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.storage.checkpoint_types import Chunk, ListRef, StoredList

CODEC = Codec(StrictSerializer())


def message(number: int) -> Any:
    call: Any = {"name": "search", "args": {"n": number, "deep": [{"x": 1.5}, None, True]}, "id": f"c{number}"}
    return (
        HumanMessage(f"question {number}", id=f"h{number}"),
        AIMessage("", tool_calls=[call], id=f"a{number}", response_metadata={"tokens": number}),
        ToolMessage(f"answer {number}", tool_call_id=f"c{number}", id=f"t{number}", artifact=b"raw"),
        AIMessageChunk("a part", id=f"p{number}"),
        {"plain": [number, "text"]},
    )[number % 5]


def stored(elements: list[Any], skipped: int = 0) -> tuple[StoredList, list[Any]]:
    chunks = [Chunk(CODEC.dump("messages", element)) for element in elements]
    whole = CODEC.load(chunks)
    return StoredList(ListRef(1, len(elements), 0), chunks[skipped:], skipped), whole


@pytest.mark.parametrize("sizes", [[40], [64, 128, 129], [33, 34, 200], [5, 50, 51, 63, 64, 65]])
def test_what_is_kept_reads_like_what_is_stored(sizes: list[int]) -> None:
    kept, had = ListCache(), 0
    for size in sizes:
        reader = kept.reader("t")
        had = reader.refs()[1].length if reader.refs() else 0
        reading, whole = stored([message(number) for number in range(size)], skipped=had)
        found = reader.load(reading, CODEC.load)
        assert found == whole
        assert [type(element) for element in found] == [type(element) for element in whole]
        assert [getattr(element, "__pydantic_fields_set__", None) for element in found] == [
            getattr(element, "__pydantic_fields_set__", None) for element in whole
        ]
        kept.store("t", reader)


def test_whoever_changes_what_was_read_changes_nothing_that_is_kept() -> None:
    elements = [message(number) for number in range(100)]
    kept, reader = ListCache(), ListCache().reader("t")
    reading, whole = stored(elements)
    reader.load(reading, CODEC.load)
    kept.store("t", reader)
    for _ in range(2):
        again = kept.reader("t").load(stored(elements, skipped=100)[0], CODEC.load)
        assert again == whole
        again[1].tool_calls[0]["args"]["deep"].append("changed")
        again[0].content = "changed"
        again[0].additional_kwargs["changed"] = True
        again.pop()


def test_in_one_snapshot_a_long_list_gives_its_shorter_ones() -> None:
    elements = [message(number) for number in range(100)]
    reader = ListReader({}, is_snapshot=True)
    for size in (100, 65, 64, 1, 0):
        reading, whole = stored(elements[:size])
        assert reader.load(reading, CODEC.load) == whole


def test_a_list_that_is_shorter_than_the_kept_one_is_read_from_storage() -> None:
    kept, reader = ListCache(), ListCache().reader("t")
    reader.load(stored([message(number) for number in range(100)])[0], CODEC.load)
    kept.store("t", reader)
    other, whole = stored([HumanMessage(f"another {number}") for number in range(50)])
    assert kept.reader("t").load(other, CODEC.load) == whole


def test_the_sessions_read_longest_ago_are_forgotten_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("session_middleware.checkpoint.list_cache._MAX_BYTES", 50_000)
    kept = ListCache()
    for number in range(10):
        reader = kept.reader(f"t{number}")
        reader.load(stored([message(number) for number in range(64)])[0], CODEC.load)
        kept.store(f"t{number}", reader)
    assert not kept.reader("t0").refs()
    assert kept.reader("t9").refs()
