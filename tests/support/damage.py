"""A database with one of everything in it, the ways it can be damaged, and all that can be read of it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import TypedDict

from session_middleware import SessionError, Sessions, StorageError
from tests.support import agents
from tests.support.agents import human

OWNERS = {"tools": "ada", "fork": "ada", "essay": "bob", "half": None, "big": "eve", "delta": None, "tree": "bob"}
STATE_TABLES = ("checkpoints", "writes", "lists", "list_items", "blobs")
ENDLESS = 1000  # more checkpoints than there are
RECORD_TABLES = ("runs", "messages", "tool_calls", "events")


# Building


def build(path: Path) -> None:
    """Sessions of several users: subgraphs, interrupts, forks, edited lists, deltas, big values, memories."""
    with Sessions(path) as sessions:
        _tools(sessions)
        _essay(sessions)
        _half(sessions)
        _big(sessions)
        _delta(sessions)
        _tree(sessions)


def config(sessions: Sessions, name: str) -> Any:
    return sessions.config(name, user_id=OWNERS[name])


def _tools(sessions: Sessions) -> None:
    """Turns with tools, a message edited and a turn taken again, and a fork that goes its own way."""
    graph, here = sessions.attach(agents.tool_graph()), config(sessions, "tools")
    for thing in ("tea", "rye", "ice"):
        graph.invoke(human(f"look up {thing}", id=f"h-{thing}"), here)
    sessions.checkpointer.copy_thread("tools", "fork")
    graph.update_state(here, {"messages": [HumanMessage("look up tee", id="h-tea")]}, as_node="model")
    graph.invoke(human("both tea"), here)
    earlier = next(state for state in graph.get_state_history(here) if len(state.values.get("messages", ())) == 4)
    graph.invoke(human("something else"), earlier.config)
    graph.invoke(human("fail tea"), config(sessions, "fork"))
    session = sessions.get("tools")
    session.memory.remember("Ada drinks tea")
    session.memory.remember("Ada is tall", scope="user")
    session.update(title="Of tea", metadata={"a": 1}, tags=["x", "y"])


def _essay(sessions: Sessions) -> None:
    """A subgraph that waits for an answer."""
    graph = sessions.attach(agents.own_subgraph(asks=True))
    graph.invoke(human("a draft"), config(sessions, "essay"))


def _half(sessions: Sessions) -> None:
    """A step of which one task is done and another has failed: its writes are pending."""

    def fails(state: MessagesState) -> dict[str, Any]:
        raise ValueError("no")

    def works(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("done", id="done"), AIMessage("done twice", id="done-2")]}

    builder = StateGraph(MessagesState).add_node("works", works).add_node("fails", fails)
    graph = sessions.attach(builder.add_edge(START, "works").add_edge(START, "fails").compile())
    try:
        graph.invoke(human("go"), config(sessions, "half"))
    except ValueError:
        return
    raise AssertionError("it was to fail")


class Big(TypedDict):
    text: str
    data: bytes
    numbers: list[int]


def _big(sessions: Sessions) -> None:
    """Values of many pages, and a list of many small ones that is cut in the middle of a run."""
    chance = random.Random(5)

    def grow(state: Big) -> dict[str, Any]:
        return {"data": chance.randbytes(30_000), "numbers": [*state["numbers"][:150], *range(len(state["text"]))]}

    graph = sessions.attach(StateGraph(Big).add_node("grow", grow).add_edge(START, "grow").compile())
    for size in (200, 20_000):
        graph.invoke({"text": "x" * size, "data": b"", "numbers": list(range(300))}, config(sessions, "big"))


def _fold(messages: list[Any], new: Any) -> list[Any]:
    return [*messages, *(message for each in new for message in (each if isinstance(each, list) else [each]))]


class Delta(TypedDict):
    said: Annotated[list[Any], DeltaChannel(_fold, list, snapshot_frequency=5)]


def delta_graph() -> Any:
    def answer(state: Delta) -> dict[str, Any]:
        return {"said": [f"{len(state['said'])}: {'word ' * 20}"]}

    return StateGraph(Delta).add_node("answer", answer).add_edge(START, "answer").compile()


def _delta(sessions: Sessions) -> None:
    """A channel that is made again from the writes of earlier checkpoints."""
    graph = sessions.attach(delta_graph())
    for number in range(6):
        graph.invoke({"said": [f"turn {number}"]}, config(sessions, "delta"))


def _tree(sessions: Sessions) -> None:
    """A longer thread, whose checkpoints fill several pages."""
    graph = sessions.attach(agents.chat())
    for number in range(25):
        graph.invoke(human(f"turn {number}: {'word ' * number}"), config(sessions, "tree"))


# Reading


class Key(NamedTuple):
    """One reading: what was asked of which thread."""

    what: str
    thread: str = ""
    namespace: str = ""
    checkpoint_id: str | None = None


Readings = dict[Key, Any]


def read(sessions: Sessions, keys: Readings | None = None) -> Readings:
    """The answer to every question, or the error it raised. The questions are those of `keys`, if given."""
    found: Readings = {}
    for key, ask in _questions(sessions, keys):
        try:
            found[key] = ask()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is judged later
            found[key] = error
    return found


def _questions(sessions: Sessions, keys: Readings | None) -> Iterator[tuple[Key, Callable[[], Any]]]:
    saver = sessions.checkpointer
    yield Key("sessions"), lambda: sorted(_described(session) for session in sessions.list(limit=None))
    yield Key("list all"), lambda: _listed(saver, None)
    for thread in OWNERS:
        here = config(sessions, thread)
        yield Key("session", thread), lambda thread=thread: _described(sessions.get(thread))
        yield Key("list", thread), lambda here=here: _listed(saver, here)
        for table in (*RECORD_TABLES, "memories"):
            yield Key(table, thread), lambda thread=thread, table=table: _record(sessions, thread, table)
        for key in _checkpoints(sessions, thread, keys):
            where = _at(here, key.namespace, key.checkpoint_id)
            if key.what == "replayed":
                yield key, lambda where=where: saver.get_delta_channel_history(config=where, channels=["said"])
            else:
                yield key, lambda where=where: _plain(saver.get_tuple(where))


def _listed(saver: Any, where: Any) -> list[Any]:
    """All that are listed; a list that does not end is cut."""
    return [_plain(found) for found in islice(saver.list(where), ENDLESS)]


def _checkpoints(sessions: Sessions, thread: str, keys: Readings | None) -> list[Key]:
    """Each checkpoint, the latest of each namespace, and what a channel is made from that is not stored."""
    if keys is not None:
        return [key for key in keys if key.thread == thread and key.what in ("one", "latest", "replayed")]
    found = list(sessions.checkpointer.list(config(sessions, thread)))
    ids = [
        (each.config["configurable"]["checkpoint_ns"], each.config["configurable"]["checkpoint_id"]) for each in found
    ]
    keyed = [Key("latest", thread, namespace) for namespace in dict.fromkeys(ns for ns, _ in ids)]
    keyed += [Key("one", thread, *each) for each in ids]
    if thread == "delta":
        replayed = [
            each for each, one in zip(ids, found, strict=True) if "said" not in one.checkpoint["channel_values"]
        ]
        keyed += [Key("replayed", thread, *each) for each in replayed]
    return keyed


def _is_tuple(key: Key) -> bool:
    return key.what in ("one", "latest")


def _at(here: Any, namespace: str, checkpoint_id: str | None) -> Any:
    where = {"checkpoint_ns": namespace} | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})
    return {**here, "configurable": {**here["configurable"], **where}}


def _plain(found: Any) -> Any:
    if found is None:
        return None
    ids = ("thread_id", "checkpoint_ns", "checkpoint_id")
    names = [each and {name: each["configurable"].get(name) for name in ids} for each in (found.config, found[3])]
    return {
        "config": names[0],
        "parent": names[1],
        "checkpoint": found.checkpoint,
        "metadata": found.metadata,
        "writes": found.pending_writes,
    }


def _described(session: Any) -> tuple[Any, ...]:
    return (session.id, session.user_id, session.family_id, session.title or "", session.message_count)


def _record(sessions: Sessions, thread: str, table: str) -> Any:
    session = sessions.get(thread)
    if table == "memories":
        return [memory.text for memory in session.memory.list()]
    return [entry.model_dump() for entry in getattr(session, table)()]


# Judging


def silent(truth: Readings, found: Readings) -> Iterator[tuple[str, Key]]:
    """What was read wrong without an error, by kind. The words of the record are promised by nobody."""
    for key, value in found.items():
        expected = truth[key]
        if isinstance(value, Exception) or value == expected:
            continue
        if key.what in (*RECORD_TABLES, "memories"):
            yield f"plain: {key.what}", key
        elif key.what in ("session", "sessions"):
            yield (
                ("sessions: fewer" if key.what == "sessions" and len(value) < len(expected) else "plain: session"),
                key,
            )
        elif key.what in ("list", "list all"):
            yield f"{key.what}: {_list_kind(expected, value)}", key
        elif value is None or expected is None or value == {"said": {"writes": []}}:
            yield f"{key.what}: not found", key
        elif key.what == "latest" and value["config"] != expected["config"]:
            yield "latest: an older one", key
        elif _is_tuple(key) and _fewer_writes(expected, value):
            yield "writes: fewer", key
        else:
            yield f"{key.what}: another value", key


def _fewer_writes(expected: Any, value: Any) -> bool:
    rest = [{name: part for name, part in each.items() if name != "writes"} for each in (expected, value)]
    return rest[0] == rest[1] and all(write in expected["writes"] for write in value["writes"])


def _list_kind(expected: list[Any], value: list[Any]) -> str:
    if len(value) == ENDLESS:
        return "endless"
    by_id = {_id(each): each for each in expected}
    if any(_id(each) not in by_id for each in value):
        return "another value"
    wrong = [each for each in value if each != by_id[_id(each)]]
    if not wrong:
        return "fewer"
    return "fewer writes" if all(_fewer_writes(by_id[_id(each)], each) for each in wrong) else "another value"


def _id(found: Any) -> tuple[str, ...]:
    return tuple(found["config"].values())


def unnamed(path: Path, found: Readings) -> Iterator[tuple[str, Key]]:
    """Errors that are not ours, or do not say which file, and of a checkpoint's own damage: where."""
    for key, error in found.items():
        if not isinstance(error, Exception):
            continue
        text = f"{key.what}: {type(error).__name__}: {error}"
        if not isinstance(error, SessionError) or (isinstance(error, StorageError) and str(path) not in str(error)):
            yield text, key


# Raw rows: whether SQLite itself can still read a thread


def raw(path: Path) -> dict[str, Any]:
    """The rows of each thread by its keys, as SQLite gives them, or the error."""
    rows: dict[str, Any] = {}
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        for thread in OWNERS:
            try:
                rows[thread] = _raw_rows(connection, thread)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                rows[thread] = error
    return rows


def _raw_rows(connection: sqlite3.Connection, thread: str) -> list[Any]:
    one = {"id": thread}
    own = "WHERE home = (SELECT home FROM sessions WHERE id = :id)"
    queries = (
        "SELECT name, sql FROM sqlite_master",  # where that has changed, all are concerned
        "SELECT * FROM sessions WHERE id = :id",
        "SELECT * FROM checkpoints WHERE session_id = :id",
        "SELECT * FROM writes WHERE session_id = :id",
        f"SELECT * FROM lists {own}",
        f"SELECT * FROM list_items {own}",
        f"SELECT * FROM blobs {own}",
    )
    return [sorted(connection.execute(query, one).fetchall(), key=repr) for query in queries]


# Damaging


def flip_bit(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place, bit = chance.randrange(100, len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place}"


def flip_header_bit(path: Path, chance: random.Random) -> str:
    """In the 8 to 12 bytes a page begins with, and the pointers to its cells: where the structure is."""
    data = bytearray(path.read_bytes())
    page, bit = chance.randrange(1, len(data) // 4096), chance.randrange(8)
    place = page * 4096 + chance.randrange(60)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place}"


def overwrite(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    page, start = chance.randrange(1, len(data) // 4096), chance.choice((0, chance.randrange(4096)))
    length = chance.choice((1, 16, 200, 4096)) if start else chance.choice((16, 4096))
    length = min(length, 4096 - start)
    filling = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    data[page * 4096 + start : page * 4096 + start + length] = filling
    path.write_bytes(data)
    return f"{length} bytes at {start} of page {page + 1}"


def swap_pages(path: Path, chance: random.Random) -> str:
    """A page is written where another belongs, as a confused disk does it."""
    data = bytearray(path.read_bytes())
    one, other = (chance.randrange(1, len(data) // 4096) for _ in range(2))
    data[one * 4096 : one * 4096 + 4096] = data[other * 4096 : other * 4096 + 4096]
    path.write_bytes(data)
    return f"page {other + 1} over page {one + 1}"


def cut(path: Path, chance: random.Random) -> str:
    size = chance.choice(
        (chance.randrange(1, path.stat().st_size), 4096 * chance.randrange(1, path.stat().st_size // 4096))
    )
    with path.open("r+b") as file:
        file.truncate(size)
    return f"cut at {size}"


WAYS: dict[str, Callable[[Path, random.Random], str]] = {
    "bit": flip_bit,
    "header bit": flip_header_bit,
    "overwritten": overwrite,
    "swapped": swap_pages,
    "cut": cut,
}


def columns(path: Path) -> list[tuple[str, str]]:
    """Every column that is not generated, of every table that holds state, and of the sessions."""
    with closing(sqlite3.connect(path)) as connection:
        return [
            (table, row[1])
            for table in ("sessions", *STATE_TABLES)
            for row in connection.execute(f"PRAGMA table_info({table})")
        ]


def damage_cell(path: Path, table: str, column: str, chance: random.Random) -> str:
    """Change one cell of one row as little as can be, by SQL. Returns which row that was."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        keys = [
            row[1]
            for row in sorted(connection.execute(f"PRAGMA table_info({table})"), key=lambda row: row[5])
            if row[5]
        ]
        rows = connection.execute(f"SELECT {', '.join(keys)}, {column} FROM {table}").fetchall()
        for row in chance.sample(rows, len(rows)):
            value = altered(row[-1], chance)
            where = " AND ".join(f"{key} = ?" for key in keys)
            try:
                done = connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *row[:-1]))
            except (sqlite3.IntegrityError, sqlite3.OperationalError):  # the latter from an index of what JSON holds
                continue
            assert done.rowcount == 1
            return f"{table}.{column} of {row[:-1]}: {row[-1]!r:.40} to {value!r:.40}"
    raise AssertionError(f"no row of {table} could be changed")


def altered(value: Any, chance: random.Random) -> Any:
    if value is None:
        return chance.choice((1, "x"))
    if isinstance(value, float):
        return chance.choice((value + 1, -value - 0.5, "x"))
    if isinstance(value, int):
        return chance.choice((value + 1, value ^ (1 << chance.randrange(16)), 0 if value else 1, "x"))
    if not value:
        return value + (b"x" if isinstance(value, bytes) else "x")
    place, data = chance.randrange(len(value)), value if isinstance(value, bytes) else value.encode()
    place = min(place, len(data) - 1)
    changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    return chance.choice((changed, data[:-1], b"")) if isinstance(value, bytes) else changed.decode("utf-8", "replace")
