"""Values of classes that applications keep in their state."""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NamedTuple, NewType, TypeVar
from uuid import UUID

import pydantic.dataclasses
from langchain_core.messages import HumanMessage
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ImportString,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    v1,
)

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.StrEnum):
    FAST = "fast"


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Outer:
    class Inner(BaseModel):
        n: int

    @dataclasses.dataclass
    class Row:
        n: int

    class Kind(enum.Enum):
        A = "a"

    class Pair(NamedTuple):
        left: int
        right: Any

    class Box(BaseModel, Generic[T]):
        value: T


class Item(BaseModel):
    name: str
    tags: list[str] = []


class Special(Item):
    price: float = 0.0


class Box(BaseModel, Generic[T]):
    value: T


class Aliased(BaseModel):
    """With a default, LangGraph's own savers give back the default."""

    amount: int = Field(default=1, alias="theAmount")
    unit: str = Field(validation_alias=AliasChoices("theUnit", "u"))
    model_config = ConfigDict(extra="forbid")


class Nested(BaseModel):
    aliased: Aliased
    items: Sequence[Item] = ()
    anything: Any = None


class Keyed(BaseModel):
    """Of types that msgpack does not have."""

    pair: tuple[int, str] = Field((1, "a"), alias="thePair")
    by_id: dict[UUID, Item] = {}
    by_colour: dict[Colour, int] = {}
    counts: defaultdict[str, list[int]] = Field(default_factory=lambda: defaultdict(list))


@dataclasses.dataclass
class Tupled:
    pair: tuple[int, Any]
    by_number: dict[int, str]


class Numbers(RootModel[list[int]]):
    pass


class Hashed(BaseModel):
    """Whose validator changes a value each time."""

    password: str

    @field_validator("password")
    @classmethod
    def _hash(cls, value: str) -> str:
        return f"hashed {value}"


class Hidden(BaseModel):
    token: str = Field(default="none", exclude=True)
    shown: datetime | None = None

    @field_serializer("shown")
    def _show(self, value: datetime | None) -> str:
        return "later"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loud(self) -> str:
        return self.token.upper()


class Private(BaseModel):
    name: str
    _seen: list[int] = PrivateAttr(default_factory=list)
    _greeting: str = ""

    def model_post_init(self, context: Any) -> None:
        self._greeting = f"hi {self.name}"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    name: str


class Old(v1.BaseModel):
    name: str = v1.Field(alias="theName")
    count: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: int
    y: Any = None


@dataclasses.dataclass
class Derived:
    name: str
    size: int = dataclasses.field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.size = len(self.name)
        self.calls += 1
        self.index = {self.name: self.size}


@dataclasses.dataclass
class Parametrised(Generic[T]):
    value: T
    scale: dataclasses.InitVar[int] = 1


@pydantic.dataclasses.dataclass
class Checked:
    n: int
    inner: Item | None = None


class Point(NamedTuple):
    x: int
    y: Any = 0


class MyMessage(HumanMessage):
    mood: Mode = Mode.FAST


UserId = NewType("UserId", str)


class Locked(BaseModel):
    name: str
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class Failing(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    name: str
    held: object

    @field_serializer("held")
    def _dump(self, value: object) -> str:
        raise OSError("no dump today")


class Moment(datetime):
    pass


class Number(UUID):
    pass


class Names(set[str]):
    pass


# What forged bytes may try to run

TRAPPED: list[Any] = []


class Trap:
    def __init__(self, path: str) -> None:
        TRAPPED.append(path)


def trap(path: str) -> None:
    TRAPPED.append(path)


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        TRAPPED.append(name)
        return super().__getattribute__(name)

    def __getattr__(cls, name: str) -> Any:
        TRAPPED.append(name)
        raise AttributeError(name)

    def __eq__(cls, other: object) -> bool:
        TRAPPED.append("==")
        return cls is other

    def __hash__(cls) -> int:
        TRAPPED.append("hash")
        return super().__hash__()

    @property
    def prop(cls) -> Any:
        TRAPPED.append("prop")


class Watched(metaclass=Meta):
    pass


class Trapped:
    """In the place of a module."""

    def __getattr__(self, name: str) -> Any:
        TRAPPED.append(name)
        raise AttributeError(name)


def __getattr__(name: str) -> Any:
    if not name.startswith("__"):
        TRAPPED.append(name)
    raise AttributeError(name)


class Guessing(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        TRAPPED.append(value)
        return cls.A


class Importing(BaseModel):
    what: ImportString[Any]


def seen_by(private: Private) -> Private:
    private._seen.append(1)
    return private


VALUES: dict[str, Any] = {
    "enum": Colour.RED,
    "enum of tuples": Colour.PAIR,
    "int enum": Level.LOW,
    "str enum": Mode.FAST,
    "flags": Access.READ | Access.WRITE,
    "enum within a class": Outer.Kind.A,
    "model": Item(name="tea", tags=["hot"]),
    "model with what was set": Item(name="tea"),
    "model within a class": Outer.Inner(n=1),
    "dataclass within a class": Outer.Row(1),
    "named tuple within a class": Outer.Pair(1, [Outer.Inner(n=2)]),
    "generic model": Box[Item](value=Item(name="tea")),
    "generic of plain values": Box[list[int]](value=[1]),
    "generic without parameters": Box(value=1),
    "generic within a class": Outer.Box[Outer.Inner](value=Outer.Inner(n=1)),
    "aliases": Aliased(theAmount=5, u="kg"),
    "aliases within": Nested(aliased=Aliased(theAmount=5, u="kg"), items=[Special(name="x", price=2.0)]),
    "anything within": Nested(aliased=Aliased(u="kg"), anything={"row": Outer.Row(1), "point": Point(1), "s": {1}}),
    "tuples within": Keyed(thePair=(2, "b")),
    "keys within": Keyed(by_id={UUID(int=1): Item(name="x")}, by_colour={Colour.RED: 1}, thePair=(3, "c")),
    "default dict within": Keyed(counts=defaultdict(list, {"a": [1]})),
    "tuples in a dataclass": Tupled((1, (2, Point(3))), {}),
    "set of tuples": [{(1, ("a", Point(1))), (2,)}, frozenset({(1,)})],
    "root model": Numbers([1, 2]),
    "validator that changes": Hashed(password="x"),
    "excluded field and serializer": Hidden(token="t", shown=datetime(2026, 1, 1, tzinfo=UTC)),
    "private attributes": seen_by(Private(name="ada")),
    "extra fields": Open(name="x", more=Outer.Row(1)),  # type: ignore[call-arg]
    "secret": Box[SecretStr](value=SecretStr("x")),
    "not validated": Item.model_construct(name=5),
    "model of pydantic v1": Old(theName="x"),
    "frozen dataclass": Frozen(x=1, y=Frozen(x=2)),
    "derived fields": Derived("ada"),
    "generic dataclass": Parametrised[int](1, scale=3),
    "pydantic dataclass": Checked(n=1, inner=Item(name="x")),
    "named tuple": Point(1, Point(2)),
    "message of one's own": MyMessage("hi", id="1", mood=Mode.FAST),
    "plain": {"d": Decimal("1.1"), "u": UUID(int=1), "p": Path("a/b"), "r": re.compile("x"), "q": deque([1], 3)},
    "keys": {1: Item(name="x"), ("a", 1): Point(1), None: Colour.RED},
}


def evaluated_late(source: str) -> ModuleType:
    """A module whose annotations may name what is not defined: as Python 3.14 has it, or as strings."""
    module, strings = ModuleType("evaluated_late"), "from __future__ import annotations\n"
    sys.modules[module.__name__] = module  # where the names in its annotations are looked up
    text = source if sys.version_info >= (3, 14) else strings + source
    exec(compile(text, module.__name__, "exec", dont_inherit=True), vars(module))
    return module
