"""What is stored reads back equal, and nothing is built from a type nobody allowed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid

import ormsgpack
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.errors import UnserializableValue


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    item: str
    count: int = 1


MESSAGES: list[AnyMessage] = [
    HumanMessage("hi", id="1", name="Ada", additional_kwargs={"a": [1]}),
    HumanMessage([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
    AIMessage("", id="2", tool_calls=[{"name": "f", "args": {"q": 1}, "id": "c"}]),
    AIMessage("yes", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
    ToolMessage("4", tool_call_id="c", artifact={"rows": [1, 2]}, status="error"),
    SystemMessage("be kind"),
    AIMessageChunk("par"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.type)
def test_messages_read_back_as_langgraph_reads_them(message: AnyMessage) -> None:
    typed = StrictSerializer().dumps_typed(message)
    assert typed == JsonPlusSerializer().dumps_typed(message)
    ours, theirs = StrictSerializer().loads_typed(typed), JsonPlusSerializer().loads_typed(typed)
    assert ours == theirs == message
    assert type(ours) is type(message)
    assert ours.__dict__ == theirs.__dict__
    assert ours.model_fields_set == theirs.model_fields_set
    assert ours.model_copy(update={"content": "x"}).content == "x"
    assert ours.model_dump_json() == theirs.model_dump_json()


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1, 1.5, "text", b"bytes", [1, [2]], {"a": {1: 2}}, {1, 2}, frozenset({3}),
        uuid.UUID(int=7), decimal.Decimal("1.10"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.timedelta(days=1),
        Send("node", {"a": 1}), Interrupt("why?"), Document("text"),
    ],
    ids=str,
)  # fmt: skip
def test_plain_values_and_langgraphs_own_read_back_equal(value: object) -> None:
    serde = StrictSerializer()
    assert serde.loads_typed(serde.dumps_typed(value)) == value


@pytest.mark.parametrize("value", [Point(1, 2), Colour.RED, Order(item="tea")], ids=str)
def test_a_type_is_refused_when_it_is_put_until_it_is_allowed(value: object) -> None:
    with pytest.raises(UnserializableValue, match=rf"allowed_types=\[{type(value).__name__}\]"):
        StrictSerializer().dumps_typed(value)
    serde = StrictSerializer([type(value)])
    assert serde.loads_typed(serde.dumps_typed(value)) == value


def test_a_stored_type_that_is_not_allowed_is_an_error_and_never_a_dict() -> None:
    stored = StrictSerializer([Point]).dumps_typed([Point(1, 2)])
    with pytest.raises(UnserializableValue, match="Point"):
        StrictSerializer().loads_typed(stored)


def test_with_msgpack_allowlist_adds_and_keeps_what_was_allowed() -> None:
    serde = StrictSerializer([Point]).with_msgpack_allowlist([(Colour.__module__, "Colour")])
    assert serde.loads_typed(serde.dumps_typed([Point(1, 2), Colour.RED])) == [Point(1, 2), Colour.RED]
    assert serde.with_msgpack_allowlist([Point]) is serde


def _forged(code: int, *parts: object) -> tuple[str, bytes]:
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(parts)))


@pytest.mark.parametrize("environment", ["true", "false"])
@pytest.mark.parametrize(
    "forged",
    [
        _forged(0, "os", "system", "touch pwned"),
        _forged(1, "os", "system", ["touch pwned"]),
        _forged(2, "subprocess", "run", {"args": ["touch", "pwned"]}),
        _forged(3, "os", "path", "pwned", "exists"),
        _forged(3, "datetime", "datetime", "2026", "strptime"),
        _forged(4, "subprocess", "Popen", {"args": ["touch", "pwned"]}),
        _forged(5, "subprocess", "Popen", {"args": ["touch", "pwned"]}, "model_validate_json"),
        ("pickle", b"cos\nsystem\n(S'touch pwned'\ntR."),
    ],
    ids=str,
)
def test_forged_bytes_never_run_code(
    forged: tuple[str, bytes], environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", environment)
    with pytest.raises((UnserializableValue, NotImplementedError)):
        StrictSerializer().loads_typed(forged)
    assert list(tmp_path.iterdir()) == []  # type: ignore[attr-defined]


def test_a_class_that_has_gone_is_named() -> None:
    with pytest.raises(UnserializableValue, match=r"nowhere\.Gone"):
        StrictSerializer([("nowhere", "Gone")]).loads_typed(_forged(2, "nowhere", "Gone", {}))
