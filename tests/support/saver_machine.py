"""Random work on checkpointers, as LangGraph's loop does it, beside LangGraph's own saver in memory.

Two `Sessions` on one file write, as two processes would; a third only reads, so that looking does
not fill the writers' caches. After each step what changed must load as the other saver has it, and
at the end everything must.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from session_middleware import SessionClosed, Sessions
from tests.support import state_values as values
from tests.support.state_values import same

THREADS = ("one", "two")
NAMESPACES = ("", "sub:1")
LISTS = ("messages", "list", "other")
PLAIN = ("plain", "second")
SPECIAL = ("__error__", "__interrupt__", "__resume__", "__scheduled__")

threads = st.tuples(st.sampled_from(THREADS), st.sampled_from((*NAMESPACES[:1], *NAMESPACES)))
writers = st.integers(0, 1)
places = st.integers(0, 30)


class Thread:
    """A loop's own state: what Pregel holds between its super-steps."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {name: [] for name in LISTS}
        self.versions: dict[str, Any] = {}
        self.stored: dict[str, Any] = {}  # a deep copy of the state as of `versions`
        self.parent: str | None = None
        self.next_id: str | None = None
        self.puts: dict[str, tuple[Any, ...]] = {}
        self.step = -1


class Machine(RuleBasedStateMachine):
    _template: ClassVar[dict[str, Path]] = {}

    def serde(self) -> SerializerProtocol | None:
        """What both savers serialise with; ``None`` for each's own."""
        return None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="equal-"))
        self.path = self.folder / "sessions.db"
        shutil.copy(self._empty(), self.path)
        self._serde = self.serde()
        self.oracle = InMemorySaver(serde=self._serde or JsonPlusSerializer(allowed_msgpack_modules=values.ALLOWED))
        self.writers = [self._open(), self._open()]
        self.reader = self._open()
        self.threads: dict[tuple[str, str], Thread] = defaultdict(Thread)
        self.count = 0
        self.unseen: set[tuple[int, str]] = set()  # of writers and threads: another deleted it, and they do not know

    @classmethod
    def _empty(cls) -> Path:
        """A new database, made once."""
        if "path" not in cls._template:
            path = Path(tempfile.mkdtemp(prefix="equal-")) / "empty.db"
            Sessions(path).close()
            cls._template["path"] = path
        return cls._template["path"]

    def _open(self) -> Sessions:
        return Sessions(self.path, serde=self._serde, allowed_types=values.ALLOWED, synchronous="normal")

    def _savers(self, writer: int) -> tuple[Any, Any]:
        return self.oracle, self.writers[writer].checkpointer

    def _new_id(self) -> str:
        self.count += 1
        return f"{self.count:032x}"

    # Changing the state

    @rule(at=threads, name=st.sampled_from(LISTS), data=st.data(), in_place=st.booleans())
    def edit_list(self, at: tuple[str, str], name: str, data: st.DataObject, in_place: bool) -> None:
        state = self.threads[at].state
        found = state[name] = state[name] if in_place else list(state[name])
        kinds = [
            "append",
            "append",
            "change",
            "change",
            "replace",
            "remove",
            "front",
            "end",
            "reorder",
            "repeat",
            "clear",
        ]
        kind = data.draw(st.sampled_from(kinds if found else ["append"]))
        place = data.draw(st.integers(0, max(len(found) - 1, 0)))
        if kind == "append":
            found.extend(data.draw(values.lists))
        elif kind == "change":
            if not values.change(data.draw, found[place]):
                found[place] = data.draw(values.elements)
        elif kind == "replace":
            found[place] = data.draw(values.elements)
        elif kind == "remove":
            del found[place]
        elif kind == "front":
            del found[: place + 1]
        elif kind == "end":
            del found[place:]
        elif kind == "reorder":
            found[:] = found[place:] + found[:place][::-1]
        elif kind == "repeat" and len(found) < 20:
            found.append(found[place])
        elif kind == "clear":
            found.clear()

    @rule(at=threads, name=st.sampled_from(LISTS), value=values.lists)
    def replace_list(self, at: tuple[str, str], name: str, value: list[Any]) -> None:
        self.threads[at].state[name] = value

    @rule(at=threads, name=st.sampled_from(PLAIN), value=values.anything)
    def set_plain(self, at: tuple[str, str], name: str, value: Any) -> None:
        self.threads[at].state[name] = value

    @rule(at=threads, name=st.sampled_from(PLAIN + LISTS), gone=st.booleans())
    def lose(self, at: tuple[str, str], name: str, gone: bool) -> None:
        """A channel becomes ``None``, or empty in LangGraph's sense; a list is then begun anew."""
        state = self.threads[at].state
        if name in LISTS:
            state[name] = []
        elif gone:
            state.pop(name, None)
        else:
            state[name] = None

    @rule(at=threads, data=st.data())
    def change_plain(self, at: tuple[str, str], data: st.DataObject) -> None:
        state = self.threads[at].state
        for name in PLAIN:
            if name in state:
                values.change(data.draw, state[name])

    @rule(at=threads, name=st.sampled_from(LISTS), other=st.sampled_from(LISTS + PLAIN))
    def share(self, at: tuple[str, str], name: str, other: str) -> None:
        """The same object in two channels."""
        state = self.threads[at].state
        if name != other:
            state[other] = state[name]
            if other in PLAIN:
                state[name] = list(state[name])

    @rule(at=threads, to=threads)
    def copy_state(self, at: tuple[str, str], to: tuple[str, str]) -> None:
        """Two threads, or namespaces, with equal contents."""
        self.threads[to].state = copy.deepcopy(self.threads[at].state)

    # Putting

    @rule(at=threads, writer=writers, parent=st.sampled_from(["known"] * 6 + ["none", "unknown"]), text=st.booleans())
    def put(self, at: tuple[str, str], writer: int, parent: str, text: bool) -> None:
        thread = self.threads[at]
        parent_id = {"known": thread.parent, "none": None, "unknown": self._new_id()}[parent]
        changed = [n for n in {*thread.state, *thread.stored} if not self._is_stored(thread, n)]
        self._raise_versions(thread, changed, text=text)
        thread.step += 1
        checkpoint_id, thread.next_id = thread.next_id or self._new_id(), None
        checkpoint = {
            "v": 4,
            "ts": f"2026-01-01T00:00:00.{self.count:06}+00:00",
            "id": checkpoint_id,
            "channel_values": dict(thread.state),
            "channel_versions": dict(thread.versions),
            "versions_seen": {"__input__": {}, "node": dict(thread.versions)},
            "updated_channels": sorted(changed) or None,
        }
        metadata = {"source": ("input", "loop", "update", "fork")[thread.step % 4], "step": thread.step, "parents": {}}
        new_versions = {name: thread.versions[name] for name in changed if name in thread.versions}
        config = self._config(at, parent_id)
        put = config, checkpoint, metadata, new_versions
        self._put(at, writer, put)
        thread.parent = checkpoint_id
        thread.stored = copy.deepcopy(thread.state)
        every = dict(thread.versions)  # when it is put again, what it shares may be gone
        thread.puts[checkpoint_id] = (config, copy.deepcopy(checkpoint), metadata, every)

    @rule(at=threads, name=st.sampled_from(LISTS), writer=writers, times=st.integers(2, 20), keep=st.integers(0, 4))
    def rewrite(self, at: tuple[str, str], name: str, writer: int, times: int, keep: int) -> None:
        """Steps that each change the end of a list, so that lists branch from branches."""
        found = self.threads[at].state[name]
        for time in range(times):
            del found[max(keep, len(found) - 1) :]
            found += [self.count, time]
            self.put(at=at, writer=writer, parent="known", text=False)

    @staticmethod
    def _is_stored(thread: Thread, name: str) -> bool:
        here, there = name in thread.state, name in thread.stored
        return here == there and (not here or same(thread.state[name], thread.stored[name]))

    def _raise_versions(self, thread: Thread, changed: list[str], *, text: bool) -> None:
        current = max(thread.versions.values(), default=None)
        if current is None:
            version = (self.oracle if text else self.writers[0].checkpointer).get_next_version(None, None)
        else:
            version = self.writers[0].checkpointer.get_next_version(current, None)
        thread.versions.update(dict.fromkeys(changed, version))

    def _put(self, at: tuple[str, str], writer: int, put: tuple[Any, ...]) -> None:
        config, checkpoint, metadata, new_versions = put
        before = copy.deepcopy(checkpoint)
        for saver in self._savers(writer):
            call = partial(saver.put, copy.deepcopy(config), checkpoint, metadata, new_versions)
            found = self._write(writer, at, call)
            assert _where(found) == (*at, checkpoint["id"])
        assert same(checkpoint, before), "a put must not change what it is given"
        self.check_one(at, checkpoint["id"])
        self.check_one(at, None)

    def _write(self, writer: int, at: tuple[str, str], call: Callable[[], Any]) -> Any:
        """Ours refuses who does not know yet that the thread was deleted, until he has looked."""
        try:
            return call()
        except SessionClosed:
            assert (writer, at[0]) in self.unseen
            self.unseen.discard((writer, at[0]))
            self.writers[writer].checkpointer.get_tuple(self._config(at, None))
            return call()

    @rule(at=threads, writer=writers, place=places)
    def put_again(self, at: tuple[str, str], writer: int, place: int) -> None:
        thread = self.threads[at]
        if not thread.puts:
            return
        checkpoint_id = self._pick(thread, place)
        there = [_where(one.config)[2] for one in self.oracle.list(self._config(at, None))]
        if checkpoint_id in there or checkpoint_id > max(there, default=""):
            self._put(at, writer, copy.deepcopy(thread.puts[checkpoint_id]))
        # else it would be the latest here, being put last, and for LangGraph's saver one of an earlier time

    @rule(at=threads, place=places, writer=writers, load=st.booleans())
    def fork(self, at: tuple[str, str], place: int, writer: int, load: bool) -> None:
        """Go on from an earlier checkpoint: from its state, or with the present one."""
        thread = self.threads[at]
        if not thread.puts:
            return
        thread.parent = self._pick(thread, place)
        if load:
            found = self.writers[writer].checkpointer.get_tuple(self._config(at, thread.parent))
            if found is None:
                return
            thread.state = {name: [] for name in LISTS} | dict(found.checkpoint["channel_values"])
            thread.versions = dict(found.checkpoint["channel_versions"])
            thread.stored = copy.deepcopy(found.checkpoint["channel_values"])

    @rule(
        at=threads,
        writer=writers,
        place=places,
        ahead=st.booleans(),
        task=st.sampled_from([("t0", "~__pregel_push, b"), ("t1", ""), ("t2", "~__pregel_pull, a"), ("t3", "")]),
        writes=st.lists(
            st.tuples(st.sampled_from((*LISTS, *PLAIN, *SPECIAL, "branch:to:a")), values.lists | values.anything)
            | st.tuples(st.just("__pregel_tasks"), st.builds(Send, st.just("a"), values.json)),
            max_size=3,
        ),
    )
    def put_writes(
        self, at: tuple[str, str], writer: int, place: int, ahead: bool, task: tuple[str, str], writes: list[Any]
    ) -> None:
        """The path of a task never changes."""
        thread = self.threads[at]
        if ahead or not thread.puts:
            checkpoint_id = thread.next_id = thread.next_id or self._new_id()
        else:
            checkpoint_id = self._pick(thread, place)
        for saver in self._savers(writer):
            self._write(writer, at, partial(saver.put_writes, self._config(at, checkpoint_id), writes, *task))
        self.check_one(at, checkpoint_id)

    @precondition(lambda self: any(thread.puts for thread in self.threads.values()))
    @rule(name=st.sampled_from(THREADS), writer=writers, forget=st.booleans())
    def delete_thread(self, name: str, writer: int, forget: bool) -> None:
        for saver in self._savers(writer):
            saver.delete_thread(name)
        self.unseen.add((1 - writer, name))
        for at, thread in self.threads.items():
            if at[0] == name:
                thread.versions, thread.stored = {}, {}
                thread.next_id = None
                if forget:
                    thread.parent, thread.puts = None, {}
                self.check_thread(at)

    @rule(writer=writers)
    def reopen(self, writer: int) -> None:
        self.unseen -= {(writer, name) for name in THREADS}
        self.writers[writer].close()
        self.writers[writer] = self._open()

    @rule(at=threads, writer=writers)
    def read(self, at: tuple[str, str], writer: int) -> None:
        """As a run does before its first step, which fills that writer's cache."""
        saver = self.writers[writer].checkpointer
        self.unseen.discard((writer, at[0]))
        assert_same(saver.get_tuple(self._config(at, None)), self.oracle.get_tuple(self._config(at, None)))

    # Comparing

    @rule(at=threads, place=places, limit=st.integers(0, 3), step=st.integers(-1, 4))
    def list_some(self, at: tuple[str, str], place: int, limit: int, step: int) -> None:
        thread = self.threads[at]
        before = self._config(at, self._pick(thread, place)) if thread.puts else None
        for options in (
            {"limit": limit},
            {"before": before},
            {"before": before, "limit": limit, "filter": {"source": "loop"}},
            {"filter": {"step": step}},
            {"filter": {"step": step, "source": "input"}, "limit": limit},
        ):
            self._check_lists(self._config(at, None), **options)
        if before is not None:
            self._check_lists(before)

    def check_one(self, at: tuple[str, str], checkpoint_id: str | None) -> None:
        config = self._config(at, checkpoint_id)
        assert_same(self.reader.checkpointer.get_tuple(config), self.oracle.get_tuple(config))

    def check_thread(self, at: tuple[str, str]) -> None:
        self.check_one(at, None)
        for checkpoint_id in self.threads[at].puts:
            self.check_one(at, checkpoint_id)
        self._check_lists(self._config(at, None))

    def _check_lists(self, config: Any, **options: Any) -> None:
        found = list(self.reader.checkpointer.list(config, **options))
        expected = list(self.oracle.list(config, **options))
        assert [_where(one.config) for one in found] == [_where(one.config) for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)

    def teardown(self) -> None:
        try:
            self.check_all()
        finally:
            for sessions in (*self.writers, self.reader):
                sessions.close()
            shutil.rmtree(self.folder)

    def check_all(self) -> None:
        for at in list(self.threads):
            self.check_thread(at)
        for config in (None, *({"configurable": {"thread_id": name}} for name in THREADS)):
            found = sorted(self.reader.checkpointer.list(config), key=lambda one: _where(one.config))
            expected = sorted(self.oracle.list(config), key=lambda one: _where(one.config))
            assert [_where(one.config) for one in found] == [_where(one.config) for one in expected]
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)

    @staticmethod
    def _pick(thread: Thread, place: int) -> str:
        return list(thread.puts)[-1 - place % len(thread.puts)]

    @staticmethod
    def _config(at: tuple[str, str], checkpoint_id: str | None) -> Any:
        configurable = {"thread_id": at[0], "checkpoint_ns": at[1]}
        return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


def _where(config: Any) -> tuple[str, str, str]:
    configurable = config["configurable"]
    return configurable["thread_id"], configurable["checkpoint_ns"], configurable["checkpoint_id"]


def assert_same(found: CheckpointTuple | None, expected: CheckpointTuple | None) -> None:
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    assert _where(found.config) == _where(expected.config)
    assert (found.parent_config and _where(found.parent_config)) == (
        expected.parent_config and _where(expected.parent_config)
    )
    for name in ("checkpoint", "metadata", "pending_writes"):
        one, other = getattr(found, name), getattr(expected, name)
        assert same(one, other), f"{name}: {_difference(one, other)}"


def _difference(one: Any, other: Any) -> str:
    if type(one) is type(other) and isinstance(one, dict):
        for key in {*one, *other}:
            if key not in one or key not in other or not same(one[key], other[key]):
                return f"[{key!r}]" + _difference(one.get(key, "absent"), other.get(key, "absent"))
    if type(one) is type(other) and isinstance(one, list) and len(one) == len(other):
        for place, (part, counterpart) in enumerate(zip(one, other, strict=True)):
            if not same(part, counterpart):
                return f"[{place}]" + _difference(part, counterpart)
    return f" is {str(one)[:300]!r} and not {str(other)[:300]!r}"
