"""Loads are equal to what was put, whatever was done between, and storage stays linear in what was said.

The first half does random work beside LangGraph's own saver (see `equal_machine`); the second holds
single cases, found so or thought of.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, Field, PrivateAttr, field_serializer

from session_middleware import Sessions
from tests.support.saver_machine import Machine
from tests.support.state_values import ALLOWED, Point, Ticket, elements, numpy, same

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))  # how much longer to look; read before a fixture hides it

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


def few(examples: int) -> settings:
    return settings(
        max_examples=examples * ROUNDS,
        stateful_step_count=25,
        deadline=None,
        phases=tuple(set(Phase) - {Phase.explain}),  # which costs more than it tells here
        suppress_health_check=list(HealthCheck),
    )


class Pickle:
    """A serializer of the user's own, which keeps more than msgpack does."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])


def encrypted() -> EncryptedSerializer:
    pytest.importorskip("Crypto.Cipher.AES", reason="encryption needs pycryptodome")
    plain = JsonPlusSerializer(allowed_msgpack_modules=ALLOWED)
    return EncryptedSerializer.from_pycryptodome_aes(plain, key=b"0123456789abcdef")


class EncryptedMachine(Machine):
    def serde(self) -> EncryptedSerializer:
        return encrypted()


class PickleMachine(Machine):
    def serde(self) -> Pickle:
        return Pickle()


class TestEqual(Machine.TestCase):
    settings = few(12)


class TestEqualWhenEncrypted(EncryptedMachine.TestCase):
    settings = few(2)


class TestEqualWithTheUsersSerializer(PickleMachine.TestCase):
    settings = few(3)


# Single cases


class Steps:
    """Puts one list after another, each on top of the last, and says what then loads."""

    def __init__(self, path: Path, serde: Any = None, allowed: Sequence[type] = ALLOWED) -> None:
        self.options: dict[str, Any] = {"serde": serde, "allowed_types": allowed, "synchronous": "normal"}
        self.path = path
        self.sessions = Sessions(path, **self.options)
        self.count = 0

    def put(self, value: Any, *, parent: int | None = None, changed: bool = True) -> int:
        self.count += 1
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        if self.count > 1:
            config["configurable"]["checkpoint_id"] = f"{parent or self.count - 1:04}"
        self.version = self.count if changed else self.version
        checkpoint = {
            "v": 4,
            "ts": "2026-01-01T00:00:00+00:00",
            "id": f"{self.count:04}",
            "channel_values": {"list": value},
            "channel_versions": {"list": self.version},
            "versions_seen": {},
        }
        metadata = {"source": "loop", "step": self.count, "parents": {}}
        self.sessions.checkpointer.put(config, checkpoint, metadata, {"list": self.version} if changed else {})
        return self.count

    def get(self, place: int | None = None) -> Any:
        config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": f"{place or self.count:04}"}}
        return self.sessions.checkpointer.get_tuple(config).checkpoint["channel_values"]["list"]

    def rows(self, table: str) -> int:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        finally:
            connection.close()

    def reopen(self) -> None:
        self.sessions.close()
        self.sessions = Sessions(self.path, **self.options)


@pytest.fixture
def make_steps(tmp_path: Path) -> Iterator[Callable[..., Steps]]:
    made: list[Steps] = []

    def make(**options: Any) -> Steps:
        made.append(Steps(tmp_path / f"{len(made)}.db", **options))
        return made[-1]

    yield make
    for steps in made:
        steps.sessions.close()


def test_a_list_whose_end_is_changed_again_and_again_loads_at_every_step(make_steps: Callable[..., Steps]) -> None:
    """Each change cuts a run of plain values and branches, until a branch copies what it is made of."""
    steps, value = make_steps(), [1, 2, 3, 4]
    put = {steps.put(value): value}
    for number in range(40):
        value = [*value[:-1], number, number + 100]
        put[steps.put(value)] = value
    for place, expected in put.items():
        assert steps.get(place) == expected


class Secret:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class Guarded(HumanMessage):
    """A message one of whose fields only its own dump can encode."""

    secret: Any = None

    @field_serializer("secret")
    def _show(self, value: Any) -> Any:
        return value.value if isinstance(value, Secret) else value


class Private(BaseModel):
    kept: int = 1
    unsaid: int = Field(0, exclude=True)
    _hidden: int = PrivateAttr(0)


class PrivateMessage(HumanMessage):
    _hidden: int = PrivateAttr(0)


class Word(str):
    __slots__ = ()


def _hide(value: Any) -> Any:
    value._hidden = 5
    return value


def _unsay(value: Any) -> Any:
    value.unsaid = 5
    return value


def _tell(value: Any) -> Any:
    value.value = 2
    return value


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a tuple becomes a list": ((1, 2), lambda _: [1, 2]),
    "a tuple inside becomes a list": ({"a": (1, 2)}, lambda _: {"a": [1, 2]}),
    "bytearray becomes bytes": (bytearray(b"x"), lambda _: b"x"),
    "a str subclass becomes a str": (Word("x"), lambda _: "x"),
    "a private attribute": (Private(), _hide),
    "a message's private attribute": (PrivateMessage("x"), _hide),
    "a field that a dump leaves out": (Private(), _unsay),
    "an object msgpack cannot encode": (Secret(1), _tell),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_only_the_users_serializer_stores_is_noticed(name: str, make_steps: Callable[..., Steps]) -> None:
    value, edit = pickle.loads(pickle.dumps(CHANGES[name][0])), CHANGES[name][1]
    steps = make_steps(serde=Pickle())
    steps.put([value])
    edited = edit(value)
    steps.put([edited])
    [loaded] = steps.get()
    assert type(loaded) is type(edited)
    assert loaded == edited
    assert getattr(loaded, "_hidden", None) == getattr(edited, "_hidden", None)


def test_changes_in_what_only_the_users_serializer_can_encode_are_noticed(make_steps: Callable[..., Steps]) -> None:
    """Several together, because what stands for one that cannot be compared must not stand for the next."""
    steps, secrets = make_steps(serde=Pickle()), [Secret(0) for _ in range(4)]
    for number in range(1, 21):
        for secret in secrets:
            secret.value = number
        steps.put(secrets)
    assert [[secret.value for secret in steps.get(place)] for place in range(1, 21)] == [[n] * 4 for n in range(1, 21)]


def test_changes_in_a_field_only_the_messages_own_dump_encodes_are_noticed(make_steps: Callable[..., Steps]) -> None:
    steps, guarded = make_steps(allowed=[Guarded]), [Guarded("x", id=str(n), secret=Secret(0)) for n in range(4)]
    for number in range(1, 21):
        for message in guarded:
            message.secret.value = number
        steps.put(guarded)
    assert [[one.secret for one in steps.get(place)] for place in range(1, 21)] == [[n] * 4 for n in range(1, 21)]


def test_a_serializer_may_name_its_format_as_it_likes(make_steps: Callable[..., Steps]) -> None:
    class Plus(Pickle):
        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            return "+pickle", pickle.dumps(obj)

    steps = make_steps(serde=Plus())
    steps.put([{"a": 1}, 2, 3])
    assert steps.get() == [{"a": 1}, 2, 3]


@pytest.mark.parametrize(("before", "after"), [(bytearray(b"x"), b"x"), (b"x", bytearray(b"x"))])
def test_what_loads_does_not_depend_on_what_was_put_before(
    before: Any, after: Any, make_steps: Callable[..., Steps]
) -> None:
    """Bytes of one kind after bytes of the other kind, which msgpack writes alike."""
    steps, alone = make_steps(), make_steps()
    steps.put([before])
    steps.put([after])
    alone.put([after])
    assert same(steps.get(), alone.get())


def test_a_change_in_place_that_nobody_announced_stays_out_of_the_channel(make_steps: Callable[..., Steps]) -> None:
    """LangGraph gives a channel a new version when it is written; without one its stored value holds."""
    steps, message = make_steps(), HumanMessage("hi", id="1")
    steps.put([message])
    message.content = "changed"
    steps.put([message], changed=False)
    assert steps.get()[0].content == "hi"
    steps.put([message])
    assert steps.get()[0].content == "changed"


@settings(few(15))
@given(
    values=st.lists(st.lists(elements, max_size=6), min_size=2, max_size=4),
    parents=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_any_list_after_any_other_loads_as_it_was_put(
    values: list[list[Any]], parents: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    steps = Steps(tmp_path_factory.mktemp("lists") / "sessions.db")
    plain = JsonPlusSerializer(allowed_msgpack_modules=ALLOWED)
    try:
        for value, parent in zip(values, parents, strict=False):
            steps.put(value, parent=min(parent, steps.count) or None)
        for place, value in enumerate(values, 1):
            assert same(steps.get(place), plain.loads_typed(plain.dumps_typed(value)))
    finally:
        steps.sessions.close()


# Linear


def _call(n: int) -> dict[str, Any]:
    return {"name": "f", "args": {"n": n}, "id": f"c{n}"}


GROWING: dict[str, Callable[[int], Any]] = {
    "human": lambda n: HumanMessage(f"hi {n}", id=str(n)),
    "human without id": lambda n: HumanMessage(f"hi {n}"),
    "ai": lambda n: AIMessage(f"hi {n}", id=str(n), tool_calls=[_call(n)]),
    "chunk": lambda n: AIMessageChunk(f"hi {n}", id=str(n), tool_calls=[_call(n)]),
    "blocks": lambda n: AIMessage([{"type": "text", "text": f"hi {n}"}], id=str(n)),
    "usage": lambda n: AIMessage(
        f"hi {n}", usage_metadata={"input_tokens": n, "output_tokens": 0, "total_tokens": n}, response_metadata={"a": n}
    ),
    "tool": lambda n: ToolMessage(f"hi {n}", tool_call_id=str(n), artifact=(n, {"a": (n,)})),
    "extra": lambda n: HumanMessage(f"hi {n}", note={"a": n}),
    "number": lambda n: n,
    "text": lambda n: f"hi {n}",
    "long text": lambda n: f"hi {n}" * 200,
    "dict": lambda n: {"n": n, "in": [n, {"m": (n, None)}]},
    "tuple": lambda n: (n, f"{n}"),
    "set": lambda n: {n, n + 8, n + 16},
    "bytes": lambda n: b"x%d" % n,
    "model": lambda n: Ticket(title=str(n), parent=Ticket(title="p")),
    "dataclass": lambda n: Point(n, [n]),
    "document": lambda n: Document(f"hi {n}", metadata={"n": n}),
    **({"array": lambda n: numpy.arange(n + 2)} if numpy is not None else {}),
}


@pytest.mark.parametrize("how", ["at once", "reading", "reopening"])
@pytest.mark.parametrize("kind", GROWING)
def test_what_is_appended_is_stored_once(kind: str, how: str, make_steps: Callable[..., Steps]) -> None:
    steps, value, length = make_steps(), [], 8
    for number in range(length):
        value = [*value, GROWING[kind](number)]
        steps.put(value)
        if how == "reopening":
            steps.reopen()
        if how != "at once":
            value = steps.get()
    assert steps.rows("list_items") == length
    assert steps.rows("lists") == 0
    assert steps.rows("blobs") <= length + 1


@pytest.mark.parametrize("kind", ["human", "number"])
def test_two_processes_taking_turns_store_what_they_append_once(kind: str, make_steps: Callable[..., Steps]) -> None:
    steps, value, length = make_steps(), [], 12
    both = [steps.sessions, Sessions(steps.path, **steps.options)]
    for number in range(length):
        steps.sessions = both[number % 2]
        value = [*(steps.get() if value else []), GROWING[kind](number)]
        steps.put(value)
    assert same(steps.get(), value)
    for sessions in both:
        sessions.close()
    assert steps.rows("list_items") == length


def test_a_changed_element_costs_what_follows_it_not_the_list(make_steps: Callable[..., Steps]) -> None:
    steps, value = make_steps(), [HumanMessage(f"hi {n}", id=str(n)) for n in range(50)]
    steps.put(value)
    for number in range(10):
        value[-1].content = f"changed {number}"
        steps.put(value)
    assert steps.rows("list_items") == 50 + 10
    assert steps.rows("blobs") <= 50 + 10
    assert [message.content for message in steps.get(5)] == [*(f"hi {n}" for n in range(49)), "changed 3"]
