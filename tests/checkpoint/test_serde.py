"""What is stored reads back equal; nothing is imported, and only data classes are built, because of what bytes say."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import importlib.util
import pathlib
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pprint import pformat
from types import ModuleType
from typing import Annotated, Any, ForwardRef, Optional

import ormsgpack
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from session_middleware.checkpoint import checkpoint_diff
from session_middleware.checkpoint.classes import shape_of
from session_middleware.checkpoint.serde import StrictSerializer
from session_middleware.errors import UnserializableValue
from tests.support import classes
from tests.support.classes import VALUES, Colour, Item, Outer, Point

STRICT = StrictSerializer(only_allowed=True)

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


@pytest.mark.parametrize("part", [(1, 2.5), "lone \ud800", classes.Box(value=1), b"raw"], ids=repr)
def test_a_message_has_the_bytes_that_langgraph_writes_whatever_is_in_it(part: Any) -> None:
    message = ToolMessage("4", tool_call_id="c", artifact={"part": part})
    assert StrictSerializer().dumps_typed(message) == JsonPlusSerializer().dumps_typed(message)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 1, 1.5, "text", b"bytes", [1, [2]], {"a": {1: 2}}, {1, 2}, frozenset({3}),
        uuid.UUID(int=7), decimal.Decimal("1.10"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.timedelta(days=1),
        Send("node", {"a": 1}), Interrupt("why?"), Document("text"), _DeltaSnapshot([1]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("serde", [StrictSerializer(), STRICT], ids=["any", "only allowed"])
def test_plain_values_and_langgraphs_own_read_back_equal(value: object, serde: StrictSerializer) -> None:
    found = serde.loads_typed(serde.dumps_typed(value))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_data_classes_read_back_equal_and_as_the_same_stored_value(value: Any) -> None:
    serde = StrictSerializer()
    typed = serde.dumps_typed(value)
    found = serde.loads_typed(typed)
    assert found == value
    assert type(found) is type(value)
    assert pformat(found, width=1) == pformat(value, width=1)  # sets are sorted
    assert serde.dumps_typed(found) == typed
    assert checkpoint_diff.fingerprints([found], serde) == checkpoint_diff.fingerprints([value], serde)


def test_what_a_class_makes_beside_its_fields_is_made_again() -> None:
    serde = StrictSerializer()
    derived = serde.loads_typed(serde.dumps_typed(VALUES["derived fields"]))
    assert (derived.index, derived.calls) == ({"ada": 3}, 1)
    private = serde.loads_typed(serde.dumps_typed(VALUES["private attributes"]))
    assert (private._seen, private._greeting) == ([1], "hi ada")
    held = classes.Locked(name="x")
    found = serde.loads_typed(serde.dumps_typed(held))
    assert found.name == "x"
    assert found._lock is not held._lock
    assert type(found._lock) is type(held._lock)


def test_fields_that_were_set_are_told_from_defaults() -> None:
    serde = StrictSerializer()
    assert serde.loads_typed(serde.dumps_typed(Item(name="x"))).model_dump(exclude_unset=True) == {"name": "x"}


def test_a_subclass_of_a_plain_value_reads_back_as_the_equal_plain_value() -> None:
    serde = StrictSerializer()
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for value, base in (
        (classes.Moment.fromisoformat(moment.isoformat()), dt.datetime),
        (classes.Number(int=7), uuid.UUID),
        (classes.Names({"a"}), set),
    ):
        found = serde.loads_typed(serde.dumps_typed(value))
        assert (found, type(found)) == (value, base)


def test_a_class_that_cannot_be_found_gives_what_is_stored_of_it() -> None:
    class Local(BaseModel):
        inner: Outer.Inner

    serde = StrictSerializer()
    assert serde.loads_typed(serde.dumps_typed([Local(inner=Outer.Inner(n=1))])) == [{"inner": {"n": 1}}]


def test_arrays_read_back_equal_or_are_refused() -> None:
    numpy = pytest.importorskip("numpy")
    serde = StrictSerializer()
    for array in (
        numpy.array([["2026-01-01"]], dtype="datetime64[D]"),
        numpy.array([(1, [2.0, 3.0])], dtype=[("a", "i4"), ("b", "f8", (2,))]),
        numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
    ):
        found = serde.loads_typed(serde.dumps_typed(array))
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    with pytest.raises(UnserializableValue, match="array of Python objects"):
        serde.dumps_typed(numpy.array([object()]))


def test_a_missing_time_of_pandas_is_stored_as_langgraph_stores_it() -> None:
    pandas = pytest.importorskip("pandas")
    serde = StrictSerializer()
    assert serde.loads_typed(serde.dumps_typed([pandas.NaT])) == ["NaT"]


def test_scalars_of_numpy_read_back_as_what_they_were() -> None:
    numpy = pytest.importorskip("numpy")
    serde = StrictSerializer()
    moment, nothing = numpy.datetime64("2026-01-02T03:04:05.123456789"), numpy.datetime64("NaT")
    scalars = [moment, nothing, numpy.timedelta64(3, "D"), numpy.bool_(False), numpy.int64(3), numpy.uint8(3)]
    scalars += [numpy.float32(1.5), numpy.complex64(1j), numpy.void(b"abc")]
    scalars.append(numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")])[0])
    for scalar in [*scalars, numpy.array(3)]:  # an array without dimensions stays one
        (found,) = serde.loads_typed(serde.dumps_typed([scalar]))
        assert type(found) is type(scalar)
        assert (found.dtype, found.tobytes()) == (scalar.dtype, scalar.tobytes())
    of_python = [numpy.float64(1.5), numpy.str_("x"), numpy.bytes_(b"x")]  # subclasses, as LangGraph stores them
    assert serde.loads_typed(serde.dumps_typed(of_python)) == [1.5, "x", b"x"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "object is not serializable"),
        ([Item], "Item is a class"),
        (classes.Failing(name="x", held=object()), "no dump today"),
        (2**80, "64-bit"),
    ],
    ids=["object", "class", "dump", "integer"],
)
def test_a_value_that_cannot_be_stored_is_refused_with_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(UnserializableValue, match=reason):
        StrictSerializer().dumps_typed(value)


# Classes that change


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Replaces a module of an application by its next release."""

    def replace(source: str) -> ModuleType:
        module = ModuleType("app_of_the_test")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(RELEASE + source, module.__dict__)
        return module

    yield replace
    monkeypatch.delitem(sys.modules, "app_of_the_test", raising=False)


RELEASE = """
import dataclasses, enum
from pydantic import BaseModel, ConfigDict, Field
from typing import Any, Literal, NamedTuple
"""
CHANGES: dict[str, tuple[str, str, str, str]] = {  # a release, a value of it, the next, and what is read then
    "field dropped": (
        "class A(BaseModel):\n x: int\n y: int = 0",
        "A(x=1, y=2)",
        "class A(BaseModel):\n x: int",
        "A(x=1)",
    ),
    "field dropped, and others forbidden": (
        "class A(BaseModel):\n x: int\n y: int = 0",
        "A(x=1, y=2)",
        "class A(BaseModel):\n model_config = ConfigDict(extra='forbid')\n x: int",
        "A(x=1)",
    ),
    "field added": ("class A(BaseModel):\n x: int", "A(x=1)", "class A(BaseModel):\n x: int\n y: int = 5", "A(x=1)"),
    "field required": (
        "class A(BaseModel):\n x: int",
        "A(x=1)",
        "class A(BaseModel):\n x: int\n y: int",
        "A.model_construct(x=1)",
    ),
    "constraint tightened": (
        "class A(BaseModel):\n x: int",
        "A(x=-1)",
        "class A(BaseModel):\n x: int = Field(gt=0)",
        "A.model_construct(x=-1)",
    ),
    "choices tightened": (
        "class A(BaseModel):\n x: str",
        "A(x='old')",
        "class A(BaseModel):\n x: Literal['new']",
        "A.model_construct(x='old')",
    ),
    "type changed": ("class A(BaseModel):\n x: str", "A(x='5')", "class A(BaseModel):\n x: int", "A(x=5)"),
    "alias added": (
        "class A(BaseModel):\n x: int = 0",
        "A(x=1)",
        "class A(BaseModel):\n x: int | None = Field(0, alias='theX')",
        "A(theX=1)",
    ),
    "class within renamed": (
        "class B(BaseModel):\n n: int\nclass A(BaseModel):\n b: B",
        "A(b=B(n=1))",
        "class C(BaseModel):\n n: int\nclass A(BaseModel):\n b: C",
        "A(b=C(n=1))",
    ),
    "class within gone from a dataclass": (
        "class B(BaseModel):\n n: int\n@dataclasses.dataclass\nclass A:\n b: Any",
        "A(B(n=1))",
        "@dataclasses.dataclass\nclass A:\n b: Any",
        "A({'n': 1})",
    ),
    "model gone": ("class A(BaseModel):\n x: Any", "A(x=[A(x=1)])", "", "{'x': [{'x': 1}]}"),
    "field of a dataclass dropped": (
        "@dataclasses.dataclass\nclass A:\n x: int\n y: int",
        "A(1, 2)",
        "@dataclasses.dataclass\nclass A:\n x: int",
        "{'x': 1, 'y': 2}",
    ),
    "field of a dataclass added": (
        "@dataclasses.dataclass\nclass A:\n x: int",
        "A(1)",
        "@dataclasses.dataclass\nclass A:\n x: int\n y: int = 5",
        "A(1, 5)",
    ),
    "dataclass that checks": (
        "@dataclasses.dataclass\nclass A:\n x: int",
        "A(-1)",
        "@dataclasses.dataclass\nclass A:\n x: 'int'\n def __post_init__(self): assert self.x > 0",
        "{'x': -1}",
    ),
    "dataclass gone": ("@dataclasses.dataclass\nclass A:\n x: int", "A(1)", "", "{'x': 1}"),
    "field of a named tuple added": (
        "class A(NamedTuple):\n x: int",
        "A(1)",
        "class A(NamedTuple):\n y: int = 5\n x: int = 0",
        "A(5, 1)",
    ),
    "field of a named tuple dropped": (
        "class A(NamedTuple):\n x: int\n y: int",
        "A(1, 2)",
        "class A(NamedTuple):\n x: int",
        "{'x': 1, 'y': 2}",
    ),
    "member gone": ("class A(enum.Enum):\n X = 'x'\n Y = 'y'", "A.Y", "class A(enum.Enum):\n X = 'x'", "'y'"),
    "member renamed": ("class A(enum.Enum):\n X = 'x'", "A.X", "class A(enum.Enum):\n Z = 'x'", "A.Z"),
    "members numbered anew": (
        "class A(enum.Enum):\n X = 1\n Y = 2",
        "A.Y",
        "class A(enum.Enum):\n W = 2\n Y = 3",
        "A.Y",
    ),
    "another class of that name": ("class A(BaseModel):\n x: int", "A(x=1)", "def A(**fields): 1 / 0", "{'x': 1}"),
    "dataclass that became a model": (
        "@dataclasses.dataclass\nclass A:\n x: int",
        "A(1)",
        "class A(BaseModel):\n x: int",
        "A(x=1)",
    ),
}


@pytest.mark.parametrize(("before", "value", "after", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_class_that_changed_gives_what_is_stored(
    before: str, value: str, after: str, expected: str, release: Callable[[str], ModuleType]
) -> None:
    for serde in (
        StrictSerializer(),
        StrictSerializer([("app_of_the_test", name) for name in "AB"], only_allowed=True),
    ):
        stored = serde.dumps_typed([eval(value, release(before).__dict__)])
        wanted = eval(expected, release(after).__dict__)
        [found] = serde.loads_typed(stored)
        assert found == wanted
        assert type(found) is type(wanted)


def test_the_shape_of_a_class_is_the_same_with_each_release_of_python() -> None:
    count = Optional[int]  # noqa: UP045  # some releases have another text for it than for `int | None`
    types: dict[str, Any] = {
        "count": count,
        "either": int | str,
        "paths": list[pathlib.Path | None],
        "call": Callable[[count], Callable[..., None]],
        "noted": Annotated[count, "a note"],
        "later": "Later | None",
        "parent": Optional[ForwardRef("Later")],  # noqa: UP045
    }
    assert shape_of(dataclasses.make_dataclass("A", types.items())) == 2269723652


def test_a_path_that_python_3_13_stored_is_a_path_with_each_release() -> None:
    stored = _forged(1, "pathlib._local", "PosixPath", ["/", "a", "b"])
    assert StrictSerializer().loads_typed(stored) == pathlib.Path("/a/b")


def test_a_module_that_is_not_imported_is_not_imported(release: Callable[[str], ModuleType]) -> None:
    serde = StrictSerializer()
    stored = serde.dumps_typed(eval("A(x=1)", release("class A(BaseModel):\n x: int").__dict__))
    del sys.modules["app_of_the_test"]
    assert serde.loads_typed(stored) == {"x": 1}
    assert "app_of_the_test" not in sys.modules


# Only what is allowed


@pytest.mark.parametrize("value", [Point(1, 2), Colour.RED, Item(name="tea"), Outer.Inner(n=1)], ids=str)
def test_with_strict_types_a_type_is_refused_when_it_is_put_until_it_is_allowed(value: object) -> None:
    with pytest.raises(UnserializableValue, match=rf"allowed_types=\[{type(value).__qualname__}\]"):
        STRICT.dumps_typed(value)
    serde = StrictSerializer([type(value)], only_allowed=True)
    assert serde.loads_typed(serde.dumps_typed(value)) == value


def test_with_strict_types_a_stored_type_that_is_not_allowed_is_an_error_and_never_a_dict() -> None:
    stored = StrictSerializer([Point], only_allowed=True).dumps_typed([Point(1, 2)])
    with pytest.raises(UnserializableValue, match="Point"):
        STRICT.loads_typed(stored)


def test_with_msgpack_allowlist_adds_and_keeps_what_was_allowed() -> None:
    serde = StrictSerializer([Point], only_allowed=True).with_msgpack_allowlist([(Colour.__module__, "Colour")])
    assert serde.loads_typed(serde.dumps_typed([Point(1, 2), Colour.RED])) == [Point(1, 2), Colour.RED]
    assert serde.with_msgpack_allowlist([Point]) is serde


def test_an_allowed_name_that_is_nowhere_gives_what_is_stored() -> None:
    serde = StrictSerializer([("nowhere", "Gone")], only_allowed=True)
    assert serde.loads_typed(_forged(2, "nowhere", "Gone", {"x": 1})) == {"x": 1}


# Forged bytes


def _forged(code: int, *parts: object) -> tuple[str, bytes]:
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(parts)))


FORGED = [
    _forged(0, "os", "system", "touch pwned"),
    _forged(1, "os", "system", ["touch pwned"]),
    _forged(2, "subprocess", "run", {"args": ["touch", "pwned"]}),
    _forged(3, "os", "path", "pwned", "exists"),
    _forged(3, "datetime", "datetime", "2026", "strptime"),
    _forged(4, "subprocess", "Popen", {"args": ["touch", "pwned"]}),
    _forged(5, "subprocess", "Popen", {"args": ["touch", "pwned"]}, "model_validate_json"),
    _forged(5, "subprocess", "Popen", {"args": ["touch", "pwned"]}, "model_validate_json", 0, None, None),
    _forged(0, "builtins", "eval", "open('pwned', 'w')"),
    _forged(1, "builtins", "open", ["pwned", "w"]),
    _forged(0, "builtins", "__import__", "antigravity"),
    _forged(0, "antigravity", "fly", 1),
    _forged(2, "tests.support.classes", "Trap", {"path": "pwned"}),
    _forged(5, "tests.support.classes", "Trap", {"path": "pwned"}, "model_validate_json"),
    _forged(0, "tests.support.classes", "trap", "pwned"),
    _forged(0, "tests.support.classes", "Outer.trap", "pwned"),
    _forged(0, "tests.support.classes", "Outer.__init__.__globals__", "pwned"),
    _forged(0, "tests.support.classes", "Trapped", "pwned"),
    _forged(0, "tests.support.classes", "Colour.RED", "pwned"),
    _forged(0, "tests.support.classes", "<locals>.X", "pwned"),
    _forged(5, "tests.support.classes", "Importing", {"what": "antigravity.fly"}, "model_validate_json"),
    ("pickle", b"cos\nsystem\n(S'touch pwned'\ntR."),
    ("json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["touch pwned"]}'),
    ("json", b'{"lc": 1, "type": "constructor", "id": ["langchain_core", "prompts", "PromptTemplate"], "kwargs": {}}'),
    _forged(0),
    _forged(0, 1, 2, 3),
    _forged(0, [], {}, None),
    _forged(2, "tests.support.classes", "Point", [1]),
    _forged(5, "tests.support.classes", "Item", 5, "x", 5, 5, 5),
    _forged(6, "O", [1], "C", b"12345678"),
    _forged(99, "tests.support.classes", "Item", {}),
]


@pytest.mark.parametrize("environment", ["true", "false"])
@pytest.mark.parametrize("only_allowed", [False, True])
@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_forged_bytes_never_run_code(
    forged: tuple[str, bytes],
    only_allowed: bool,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", environment)
    monkeypatch.chdir(tmp_path)
    classes.TRAPPED.clear()
    with suppress(ImportError):
        importlib.import_module("numpy")  # the one module that reading may import
    serde, imported, error = StrictSerializer(only_allowed=only_allowed), set(sys.modules), None
    try:
        found = serde.loads_typed(forged)
    except (UnserializableValue, NotImplementedError) as caught:
        error = caught
    else:
        assert isinstance(found, (str, list, dict, int, classes.Importing))
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == imported
    assert classes.TRAPPED == []
    assert "ext_hook" not in str(error)
    if only_allowed and forged[0] == "msgpack":
        assert error is not None


def test_a_look_up_runs_no_code_of_a_module_or_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "lazy_of_the_test", Lazy("lazy_of_the_test"))
    monkeypatch.setitem(sys.modules, "odd_of_the_test", classes.Trapped())
    classes.TRAPPED.clear()
    serde = StrictSerializer()
    for module in ("lazy_of_the_test", "odd_of_the_test"):
        assert serde.loads_typed(_forged(2, module, "Anything", {"x": 1})) == {"x": 1}
    # There is a module's __getattr__, and a metaclass that sees what is asked of its class.
    for name in ("no_such_class", "Watched", "Watched[int]", "Watched.anything", "Watched.prop"):
        assert serde.loads_typed(_forged(2, "tests.support.classes", name, {"x": 1})) == {"x": 1}
    assert serde.loads_typed(_forged(0, "tests.support.classes", "Guessing", "other")) == "other"
    assert classes.TRAPPED == []


def test_a_lazily_loaded_module_stays_unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "late_of_the_test.py"
    path.write_text("raise AssertionError('loaded')")
    spec = importlib.util.spec_from_file_location("late_of_the_test", path)
    assert spec is not None
    assert spec.loader is not None
    loader = spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "late_of_the_test", module)
    loader.exec_module(module)
    assert StrictSerializer().loads_typed(_forged(2, "late_of_the_test", "A", {"x": 1})) == {"x": 1}
