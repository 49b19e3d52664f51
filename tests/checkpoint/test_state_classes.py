"""States of an application's own classes: what is put is what is read, and nothing has to be allowed for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import add
from pathlib import Path
from pprint import pformat
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, ConfigDict, Field

from session_middleware import Sessions, UnserializableValue
from session_middleware.checkpoint.classes import named_in
from session_middleware.checkpoint.serde import StrictSerializer
from tests.support import processes
from tests.support.agents import human
from tests.support.classes import (
    VALUES,
    Aliased,
    Box,
    Colour,
    Derived,
    Item,
    Level,
    Outer,
    Point,
    Special,
    Tupled,
    UserId,
    evaluated_late,
)

Build = Callable[[Any], Any]


class Shop(BaseModel):
    """A state that is a model itself."""

    messages: Annotated[list[AnyMessage], add_messages] = []
    items: Annotated[Sequence[Item], add] = []
    prices: Mapping[str, Outer.Row] = {}
    colour: Literal[Colour.RED, Colour.PAIR] = Colour.RED
    at: Point | None = None
    box: Box[Outer.Inner] | None = None
    nested: Outer.Box[Item] | None = None
    aliased: Annotated[Aliased, "of another service"] | None = None
    level: Level = Level.LOW
    user: UserId = Field(default=UserId("nobody"), alias="theUser")
    derived: Derived | None = None


GIVEN: dict[str, Any] = {
    "items": [Item(name="tea"), Special(name="cake", price=2.5)],
    "prices": {"tea": Outer.Row(1)},
    "colour": Colour.PAIR,
    "at": Point(1, 2),
    "box": Box[Outer.Inner](value=Outer.Inner(n=1)),
    "nested": Outer.Box[Item](value=Item(name="x")),
    "aliased": Aliased(theAmount=5, u="kg"),
    "derived": Derived("ada"),
}


def shop(**compiled_with: Any) -> Any:
    def work(state: Shop) -> dict[str, Any]:
        assert isinstance(state, Shop)
        return {**GIVEN, "messages": [AIMessage("done")]}

    return StateGraph(Shop).add_node("work", work).add_edge(START, "work").compile(**compiled_with)


@pytest.fixture(params=["attached", "attached, strict types", "checkpointer", "encrypted"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Sessions, Build]]:
    def open_() -> Sessions:
        encrypting = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16) if "encrypted" in request.param else None
        strict: dict[str, Any] = {"strict_types": True, "allowed_types": [Special]} if "strict" in request.param else {}
        return Sessions(tmp_path / "sessions.db", serde=encrypting, **strict)

    with open_() as sessions:
        if "attached" in request.param:
            yield sessions, lambda make: sessions.attach(make())
        else:
            yield sessions, lambda make: make(checkpointer=sessions.checkpointer)
        assert sessions.recorder.faults == 0


async def test_a_state_of_ones_own_classes_is_read_as_it_was_put(build: tuple[Sessions, Build]) -> None:
    sessions, made = build
    graph, config = made(shop), sessions.config("t")
    graph.invoke(human("hi"), config)
    await graph.ainvoke(human("more"), config)
    values = made(shop).get_state(config).values
    assert values["items"] == GIVEN["items"] * 2
    assert [type(item) for item in values["items"]] == [Item, Special] * 2
    assert {name: values[name] for name in GIVEN if name != "items"} == {
        name: value for name, value in GIVEN.items() if name != "items"
    }
    assert type(values["at"]) is Point
    assert (values["derived"].index, values["derived"].calls) == ({"ada": 3}, 1)
    assert (await graph.aget_state(config)).values == values


class Anything(TypedDict):
    value: Any
    values: Annotated[list[Any], add]


@pytest.mark.parametrize("name", VALUES)
def test_any_data_class_is_read_as_it_was_put(name: str, tmp_path: Path) -> None:
    def make(**compiled_with: Any) -> Any:
        given = {"value": VALUES[name], "values": [VALUES[name]]}
        return StateGraph(Anything).add_node("n", lambda _: given).add_edge(START, "n").compile(**compiled_with)

    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = make(checkpointer=sessions.checkpointer)
        graph.invoke({"value": 1, "values": []}, sessions.config("t"))
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = sessions.attach(make())
        graph.invoke({"value": VALUES[name], "values": []}, sessions.config("t"))
        found = graph.get_state(sessions.config("t")).values
        put = {"value": VALUES[name], "values": [VALUES[name]] * 2}
        assert pformat(found, width=1) == pformat(put, width=1)  # sets are sorted


def test_a_class_beside_an_annotation_that_names_nothing_is_found() -> None:
    module = evaluated_late("""
from dataclasses import dataclass
from typing import TypedDict

@dataclass
class Order:
    price: ImportedForTypeCheckersOnly

class Orders(TypedDict):
    order: Order
""")
    assert named_in([module.Orders]) == {module.Order}


def test_values_of_classes_go_through_sends_inputs_and_interrupts(build: tuple[Sessions, Build]) -> None:
    class State(TypedDict):
        items: Annotated[list[Item], add]
        answers: Annotated[list[Point], add]

    def ask(state: Any) -> Any:
        assert type(state["item"]) is Item
        return {"answers": [interrupt(Point(len(state["item"].name)))]}

    def make(**compiled_with: Any) -> Any:
        builder = StateGraph(State).add_node("ask", ask)
        builder.add_conditional_edges(START, lambda state: [Send("ask", {"item": item}) for item in state["items"]])
        return builder.compile(**compiled_with)

    sessions, made = build
    graph, config = made(make), sessions.config("t")
    graph.invoke({"items": [Item(name="tea")]}, config)
    [question] = graph.get_state(config).interrupts
    assert question.value == Point(3)
    graph.invoke(Command(resume=Point(4)), config)
    assert graph.get_state(config).values == {"items": [Item(name="tea")], "answers": [Point(4)]}


def test_a_list_of_instances_grows_by_what_is_new_and_changes_in_place_are_noticed(tmp_path: Path) -> None:
    def rows() -> int:
        with sqlite3.connect(tmp_path / "sessions.db") as connection:
            return int(connection.execute("SELECT COUNT(*) FROM list_items").fetchone()[0])

    made = [Special(name="x"), Derived("ada"), Point(1, (2,)), Box[Item](value=Item(name="y")), Tupled((1, {1}), {})]

    def work(state: dict[str, Any]) -> dict[str, Any]:
        if state["value"] == "change":
            state["values"][0].name = "changed"
            state["values"][3].value.tags.append("changed")
        return {"values": [Item(name=state["value"])]}

    builder = StateGraph(Anything).add_node("work", work).add_edge(START, "work")
    path, expected, before = tmp_path / "sessions.db", list(made), 0
    for number, value in enumerate(["a", "b", "change", "c"]):
        with Sessions(path) as sessions:  # each time by a process that knows nothing
            graph = builder.compile(checkpointer=sessions.checkpointer)
            graph.invoke({"value": value, "values": made if number == 0 else []}, sessions.config("t"))
            expected = [*expected, Item(name=value)]
            if value == "change":
                expected[0], expected[3] = Special(name="changed"), Box[Item](value=Item(name="y", tags=["changed"]))
            assert graph.get_state(sessions.config("t")).values["values"] == expected
        if value in ("b", "c"):
            assert rows() - before == 1
        before = rows()


def test_a_process_that_has_not_imported_the_class_reads_what_is_stored_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "app_state.py").write_text(
        "from pydantic import BaseModel\nclass Order(BaseModel):\n    n: int\n    parts: list['Order'] = []\n"
    )
    common = """
import sys
from operator import add
from typing import Annotated, Any, TypedDict
from langgraph.graph import START, StateGraph
from session_middleware import Sessions
from session_middleware.checkpoint.classes import named_in
from session_middleware.checkpoint.serde import StrictSerializer
class State(TypedDict):
    orders: Annotated[list[Any], add]
    note: str
def graph(saver):
    return StateGraph(State).add_node("n", lambda s: {"note": "x"}).add_edge(START, "n").compile(checkpointer=saver)
with Sessions("sessions.db") as sessions:
    graph, config = graph(sessions.checkpointer), sessions.config("t")
"""
    steps = [
        "    import app_state\n"
        "    graph.invoke({'orders': [app_state.Order(n=1, parts=[app_state.Order(n=2)])]}, config)\n",
        "    assert graph.get_state(config).values['orders'] == [{'n': 1, 'parts': [{'n': 2, 'parts': []}]}]\n"
        "    graph.invoke({'orders': [5]}, config)\n"
        "    assert 'app_state' not in sys.modules\n",
        "    import app_state\n"
        "    found = graph.get_state(config).values['orders']\n"
        "    assert found == [app_state.Order(n=1, parts=[app_state.Order(n=2)]), 5], found\n",
    ]
    for step in steps:
        done = processes.run("-c", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n" + common + step)
        assert (done.returncode, done.stderr) == (0, "")


# Serializers of the user's


class QuotaExceeded(OSError):
    pass


class Failing(JsonPlusSerializer):
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if "secret" in repr(obj):
            raise QuotaExceeded("no more keys today")
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if b"unreadable" in data[1]:
            raise QuotaExceeded("key revoked")
        return super().loads_typed(data)


async def test_what_a_serializer_raises_is_raised_and_a_note_names_the_place(tmp_path: Path) -> None:
    def make(value: Any) -> Any:
        given = {"value": value, "values": []}
        return StateGraph(Anything).add_node("n", lambda _: given).add_edge(START, "n")

    with Sessions(tmp_path / "sessions.db", serde=Failing()) as sessions:
        for number, graph in enumerate(
            (
                sessions.attach(make({"a": [1, "secret"]}).compile()),
                make({"a": [1, "secret"]}).compile(checkpointer=sessions.checkpointer),
            )
        ):
            with pytest.raises(QuotaExceeded, match="no more keys today") as caught:
                graph.invoke({"values": []}, sessions.config(f"t{number}"))
            [note] = caught.value.__notes__
            assert "state.value['a'][1] is a str, which Failing cannot store (no more keys today)" in note
            with pytest.raises(QuotaExceeded):
                await graph.ainvoke({"values": []}, sessions.config(f"a{number}"))
        graph = sessions.attach(make("unreadable").compile())
        graph.invoke({"values": []}, sessions.config("u"))
        with pytest.raises(QuotaExceeded, match="key revoked"):
            graph.get_state(sessions.config("u"))
        graph = sessions.attach(make([object()]).compile())
        with pytest.raises(TypeError, match=r"state\.value\[0\] is a object, which Failing cannot store") as refused:
            graph.invoke({"values": []}, sessions.config("v"))
        assert isinstance(refused.value, UnserializableValue)


def test_bytes_that_are_not_encrypted_are_not_trusted_by_an_encrypting_serializer(tmp_path: Path) -> None:
    forged = JsonPlusSerializer().dumps_typed(Derived("pwned"))
    forged = (
        forged[0],
        forged[1].replace(b"tests.support.classes", b"os.path12345678901234").replace(b"Derived", b"makedir"),
    )
    encrypting = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16)
    with Sessions(tmp_path / "sessions.db", serde=encrypting) as sessions:
        assert isinstance(sessions.checkpointer.serde, EncryptedSerializer)
        assert sessions.checkpointer.serde.loads_typed(forged) == {"name": "pwned", "size": 5, "calls": 1}


def test_a_message_beside_classes_is_a_message(build: tuple[Sessions, Build]) -> None:
    sessions, made = build
    graph = made(shop)
    graph.invoke(human("hi"), sessions.config("t"))
    assert [type(message) for message in graph.get_state(sessions.config("t")).values["messages"]] == [
        HumanMessage,
        AIMessage,
    ]


class Doubled(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = Field(alias="b")


def test_a_field_and_an_extra_value_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="a field and an extra value of the same name"):
        StrictSerializer().dumps_typed(Doubled(b=1, a=9))  # type: ignore[call-arg]
