"""Values a state may hold, how a node may change them in place, and when two of them are the same."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.types import Send
from pydantic import BaseModel

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]


class Ticket(BaseModel):
    title: str
    tags: list[str] = []
    parent: Ticket | None = None


@dataclasses.dataclass
class Point:
    x: Any
    notes: list[Any] = dataclasses.field(default_factory=list)


ALLOWED = (Ticket, Point)

# What is the same


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down; NaN is itself, and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k1, k2) and same(v1, v2) for (k1, v1), (k2, v2) in zip(_ordered(one), _ordered(other), strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, BaseModel):
        return same(vars(one), vars(other)) and same(one.__pydantic_extra__, other.__pydantic_extra__)
    if isinstance(one, Send):
        return same((one.node, one.arg), (other.node, other.arg))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    if numpy is not None and isinstance(one, numpy.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one == other)


def _ordered(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(mapping.items(), key=lambda item: (type(item[0]).__name__, repr(item[0])))


# Values

long = st.builds("".join, st.lists(st.sampled_from("xy"), min_size=1, max_size=2)).map(lambda text: text * 30_000)
texts = st.sampled_from(["", "hi", "ho", "naïve ☃ 𝄞 \u0000 end", "x" * 300]) | st.text(max_size=6)
numbers = st.sampled_from([0, 1, True, False, 1.0, 0.0, -0.0, float("nan"), float("inf"), 2**63, -(2**63)])
scalars = st.none() | numbers | texts
binary = st.binary(max_size=4)
json = st.recursive(
    scalars | binary,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc") | st.integers(0, 1), inner),
    max_leaves=5,
)
tuples = st.tuples(scalars, st.lists(scalars, max_size=2))
sets = st.sets(st.integers(0, 9), max_size=3) | st.frozensets(texts, max_size=2)
tickets = st.builds(
    Ticket, title=texts, tags=st.lists(texts, max_size=2), parent=st.none() | st.builds(Ticket, title=texts)
)
points = st.builds(Point, json, st.lists(scalars, max_size=2))

ids = st.none() | st.sampled_from(["m1", "m2", "m3"])
extras = st.dictionaries(st.sampled_from(["k", "l"]), json, max_size=2)
content = texts | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts, "annotations": st.lists(extras, max_size=1)})
    | st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": texts})})
    | texts,
    max_size=2,
)
calls = st.fixed_dictionaries(
    {"name": st.just("f"), "args": extras, "id": st.sampled_from(["c1", "c2"]), "type": st.just("tool_call")}
)
messages = st.one_of(
    st.builds(HumanMessage, content, id=ids, additional_kwargs=extras),
    st.builds(
        AIMessage,
        content,
        id=ids,
        tool_calls=st.lists(calls, max_size=2),
        response_metadata=extras,
        usage_metadata=st.none() | st.just({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
    ),
    st.builds(ToolMessage, content, id=ids, tool_call_id=st.just("c1"), artifact=json),
    st.builds(SystemMessage, texts, id=ids),
)
documents = st.builds(Document, texts, metadata=extras)
arrays = (
    st.builds(
        lambda values, kind, order: (
            numpy.asfortranarray(numpy.array([values, values], kind)) if order else numpy.array(values, kind)
        ),
        st.lists(st.integers(0, 9), max_size=3),
        st.sampled_from(["int64", "float32", "bool"]),
        st.booleans(),
    )
    if numpy is not None
    else st.none()
)
anything = messages | json | long | tickets | points | tuples | sets | documents | arrays
elements = st.one_of(messages, messages, scalars, scalars, anything)
lists = st.lists(elements, max_size=4) | st.lists(scalars, min_size=2, max_size=6)


# Changes made in place


def change(draw: Callable[[st.SearchStrategy[Any]], Any], value: Any) -> bool:
    """Change something of a value, or in it; whether the very object was changed."""
    if isinstance(value, AIMessage) and value.tool_calls and draw(st.booleans()):
        call = draw(st.sampled_from(value.tool_calls))
        return change(draw, call["args"])
    if isinstance(value, BaseMessage):
        return _change_message(draw, value)
    if isinstance(value, dict):
        inner = [part for part in value.values() if isinstance(part, dict | list | set)]
        if inner and draw(st.booleans()):
            return change(draw, draw(st.sampled_from(inner)))
        if value and draw(st.booleans()):
            value.pop(draw(st.sampled_from(list(value))))
        value[draw(st.sampled_from("abc"))] = draw(json)
    elif isinstance(value, list):
        inner = [part for part in value if isinstance(part, dict | list)]
        if inner and draw(st.booleans()):
            return change(draw, draw(st.sampled_from(inner)))
        if value and draw(st.booleans()):
            value[draw(st.integers(0, len(value) - 1))] = draw(json)
        else:
            value.append(draw(json))
    elif isinstance(value, set):
        value.symmetric_difference_update({draw(st.integers(0, 9))})
    elif isinstance(value, Ticket):
        if value.parent is not None and draw(st.booleans()):
            return change(draw, value.parent)
        value.title = draw(texts)
        value.tags.append(draw(texts))
    elif isinstance(value, Point):
        value.x = draw(json)
        value.notes.append(draw(scalars))
    elif isinstance(value, Document):
        return change(draw, value.metadata)
    elif numpy is not None and isinstance(value, numpy.ndarray) and value.size and value.flags.writeable:
        value.flat[0] = not value.flat[0]
    else:
        return False
    return True


def _change_message(draw: Callable[[st.SearchStrategy[Any]], Any], message: BaseMessage) -> bool:
    field = draw(st.sampled_from(["content", "block", "additional_kwargs", "response_metadata", "name", "id", "extra"]))
    if field == "content" or (field == "block" and not isinstance(message.content, list)):
        message.content = draw(content)
    elif field == "block":
        blocks = [block for block in message.content if isinstance(block, dict)]
        if not blocks:
            return False
        block = draw(st.sampled_from(blocks))
        if block["type"] == "text":
            block["annotations"].append(draw(extras))
            block["text"] = draw(texts)
        else:
            block["image_url"]["url"] = draw(texts)
    elif field in ("additional_kwargs", "response_metadata"):
        getattr(message, field)[draw(st.sampled_from("kl"))] = draw(json)
    elif field == "extra":
        message.note = draw(json)  # type: ignore[attr-defined]
    else:
        setattr(message, field, draw(texts))
    return True
