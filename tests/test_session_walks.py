"""Random sequences of what people do with sessions leave each session as a plain model in Python has it.

A few walks by default; many with ``SESSION_FAULT_ROUNDS=200``.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import InvalidArgument, Session, Sessions
from session_middleware.storage.titles import title_of
from tests.conftest import Clock
from tests.support import agents
from tests.support.pairwise import engines_in_turns
from tests.support.postgres import Server
from tests.test_exports import seen

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))  # read before a fixture hides it
STEPS = 25


@dataclass(frozen=True)
class Said:
    """A message. Each action has a time of its own."""

    id: str
    role: str
    text: str
    at: int


@dataclass(frozen=True)
class Call:
    """An execution of a tool."""

    message_id: str
    call_id: str
    tool: str
    result: str


@dataclass
class Line:
    """A branch: what the record shows of it, and what the state has. An edit is in the state when it has run."""

    said: list[Said] = field(default_factory=list)
    state: list[Said] | None = field(default_factory=list)  # None: its checkpoints were of a session that was merged
    edit: Said | None = None

    @property
    def is_finished(self) -> bool:
        return self.edit is None and (not self.state or self.state[-1].text.startswith(("you said", "it said")))


@dataclass
class Model:
    """A session as it should be."""

    id: str
    parent: str | None = None
    title: str | None = None
    current: str = "main"
    lines: dict[str, Line] = field(default_factory=lambda: {"main": Line()})
    versions: dict[str, set[str]] = field(default_factory=dict)  # the texts of each message, by id
    calls: list[Call] = field(default_factory=list)
    runs: int = 0
    appended: set[str] = field(default_factory=set)  # ids of messages that came into the state by a merge

    @property
    def line(self) -> Line:
        return self.lines[self.current]

    def know(self, messages: list[Said]) -> None:
        for one in messages:
            self.versions.setdefault(one.id, set()).add(one.text)

    @property
    def targets(self) -> list[Said]:
        """The messages that can be edited or answered again, and before which a fork can end."""
        state = {one.id for one in [*(self.line.state or []), *([self.line.edit] if self.line.edit else [])]}
        return [one for one in self.line.said if one.id in state - self.appended]


def upto(messages: list[Said], message_id: str, *, with_it: bool = False) -> list[Said]:
    """The messages before one, and without the results of other tools that came with it."""
    place = [one.id for one in messages].index(message_id)
    if with_it:
        return messages[: place + 1]
    while messages[place].role == "tool" and messages[place - 1].role == "tool":
        place -= 1
    return messages[:place]


def answers(state: list[Said]) -> list[str]:
    """What a run from this state adds."""
    asked, *after = state[[one.role for one in state].index("user") :]
    place = max(place for place, one in enumerate(state) if one.role == "user")
    asked, after = state[place], state[place + 1 :]
    action, thing = asked.text.split()[0], asked.text.split()[-1]
    results = {"look": [f"{thing} is nice"], "both": [f"{thing} is nice", str(len(thing))]}.get(action, [])
    script = ["", *results, f"it said {results[-1]}"] if results else [f"you said {asked.text}"]
    return script[len(after) :]


class Walk:
    """Sessions in a database, the models of them, and the actions."""

    def __init__(self, sessions: Sessions, others: Iterator[Sessions], clock: Clock, folder: Path, seed: int) -> None:
        self.chance, self.clock, self.others, self.folder = random.Random(seed), clock, others, folder
        self.numbers, self.log, self.model = itertools.count(1), [], agents.Scripted()
        self.models: dict[str, Model] = {}
        self._use(sessions)
        self.open()

    def _use(self, sessions: Sessions) -> None:
        self.sessions, self.graph = sessions, sessions.attach(agents.tool_graph(model=self.model))

    def session(self, model: Model) -> Session:
        return self.sessions.get(model.id)

    # Checking

    def check(self) -> None:
        assert {one.id for one in self.sessions.list(limit=None)} == {*self.models}
        for model in self.models.values():
            session = self.session(model)
            assert (session.parent_id, session.title, session.branch) == (model.parent, model.title, model.current)
            for branch, line in model.lines.items():
                read = [(one.message_id, one.role, one.text) for one in session.messages(branch=branch)]
                assert read == [(one.id, one.role, one.text) for one in line.said], (model.id, branch)
            assert session.messages() == session.messages(branch=model.current)
            for branch in {"main", *(each.id for each in session.branches())} - {*model.lines}:  # of a fork at a point
                read = [one.message_id for one in session.messages(branch=branch)]
                begins = [[one.id for one in line.said[: len(read)]] for line in model.lines.values()]
                assert read in begins, (model.id, branch)
            assert self.state(session) == [(one.id, one.text) for one in model.line.state or []], model.id
            calls = [(one.message_id, one.tool_call_id, one.name, str(one.result)) for one in session.tool_calls()]
            assert sorted(calls) == sorted(
                (one.message_id, one.call_id, one.tool, one.result) for one in model.calls
            ), model.id
            counts = (session.message_count, session.tool_call_count, session.run_count)
            assert counts == (len(model.versions), len(model.calls), model.runs), model.id

    def state(self, session: Session) -> list[tuple[str, str]]:
        return [(one.id, one.text) for one in self.graph.get_state(session.config()).values.get("messages", [])]

    # Actions

    def step(self) -> None:
        self.clock.advance(seconds=1)
        model = self.chance.choice([*self.models.values()])
        often = [self.say, self.edit, self.regenerate, self.switch, self.fork, self.resume]
        rarely = [self.merge, self.delete, self.move, self.archive, self.again, self.open, self.rename]
        action = self.chance.choice(often if self.chance.random() < 0.75 else rarely)
        self.log.append((action.__name__, model.id))
        action(*([] if action in (self.move, self.open) else [model]))
        self.check()

    @property
    def now(self) -> int:
        return int(self.clock().timestamp())

    def text(self) -> str:
        number = next(self.numbers)
        return self.chance.choice([f"look up tea{number}", f"both milk{number}", f"text {number}"])

    def open(self) -> None:
        model = Model(f"s{next(self.numbers)}")
        self.sessions.open(model.id, user_id="alice")
        self.models[model.id] = model

    def rename(self, model: Model) -> None:
        model.title = f"title {next(self.numbers)}"
        self.session(model).update(title=model.title)

    def run(self, model: Model, given: Any, config: Any, state: list[Said]) -> list[Said]:
        """Run, and return what the run added to this state."""
        values = self.graph.invoke(given, config)["messages"]
        assert [one.id for one in values[: len(state)]] == [one.id for one in state]
        new = values[len(state) :]
        roles = {"human": "user", "ai": "assistant", "tool": "tool"}
        requests = {call["id"]: (one.id, call) for one in values if one.type == "ai" for call in one.tool_calls}
        for one in new:
            if one.type == "tool":
                message_id, call = requests[one.tool_call_id]
                result = one.text if one.status == "success" else "None"  # it was interrupted
                model.calls.append(Call(message_id, call["id"], call["name"], result))
        model.runs += 1
        added = [Said(one.id, roles[one.type], one.text, self.now) for one in new]
        model.know(added)
        return added

    def put(self, model: Model, line: Line) -> None:
        """Make this the current branch: a new one, or the one that it is the continuation of."""
        branch = self.session(model).branch
        if branch in model.lines:
            before = model.lines[branch].said
            assert line.said[: len(before)] == before, branch
        model.current = branch
        model.lines[branch] = line

    def say(self, model: Model) -> None:
        line, text = model.line, self.text()
        state, question = line.state or [], HumanMessage(text, id=f"q{next(self.numbers)}")
        new = self.run(model, {"messages": [question]}, self.session(model).config(), state)
        place = [one.id for one in new].index(str(question.id))
        assert all(one.role == "tool" for one in new[:place])  # answers to interrupted calls
        assert [one.text for one in new[place + 1 :]] == answers([*state, *new[: place + 1]])
        said = line.said if line.edit is None else upto(line.said, line.edit.id)
        model.title = model.title or title_of(text)
        self.put(model, Line([*said, *new], [*state, *new]))

    def resume(self, model: Model) -> None:
        line = model.line
        if line.is_finished or line.state is None or (line.state and line.state[-1].id in model.appended):
            return
        state = [*line.state, *([line.edit] if line.edit else [])]
        new = self.run(model, None, self.session(model).config(), state)
        assert [one.text for one in new] == answers(state)
        self.put(model, Line([*line.said, *new], [*state, *new]))

    def edit(self, model: Model) -> None:
        line, session = model.line, self.session(model)
        asked = [one for one in model.targets if one.role == "user"]
        if not asked:
            return
        old = self.chance.choice(asked)
        config = session.edit(old.id, text := self.text())
        new = replace(old, text=text, at=self.now)
        model.know([new])
        state = line.state or []
        begin = state if line.edit == old else upto(state, old.id)
        self.put(model, Line([*upto(line.said, old.id), new], begin, new))
        if self.chance.random() < 0.6:
            added = self.run(model, None, config, [*begin, new])
            assert [one.text for one in added] == answers([*begin, new])
            self.put(model, Line([*upto(line.said, old.id), new, *added], [*begin, new, *added]))

    def regenerate(self, model: Model) -> None:
        if not (targets := model.targets):
            return
        line, session, chosen = model.line, self.session(model), self.chance.choice(targets)
        state = [*(line.state or []), *([line.edit] if line.edit else [])]
        asked = [one for one in upto(state, chosen.id, with_it=True) if one.role == "user"][-1]
        begin = upto(state, asked.id, with_it=True)
        new = self.run(model, None, session.regenerate(chosen.id), begin)
        assert [one.text for one in new] == answers(begin)
        begin_of_said, after = upto(line.said, asked.id, with_it=True), line.said
        own = {one.id for one in state} - model.appended
        merged = itertools.takewhile(lambda one: one.id not in own, after[len(begin_of_said) :])
        self.put(model, Line([*begin_of_said, *merged, *new], [*begin, *new]))

    def switch(self, model: Model) -> None:
        branch = self.chance.choice([*model.lines])
        if model.lines[branch].state is None:
            if not any(line.state or line.edit for line in model.lines.values()):
                return
            with pytest.raises(InvalidArgument):
                self.session(model).switch(branch)
            return
        assert self.session(model).switch(branch).branch == branch
        model.current = branch

    def fork(self, model: Model) -> None:
        title = self.chance.choice([None, f"fork {next(self.numbers)}"])
        made = replace(deepcopy(model), id=f"f{next(self.numbers)}", parent=model.id, calls=[], runs=0)
        made.title = title or model.title
        targets = model.targets
        if not targets or self.chance.random() < 0.3:
            self.session(model).fork(id=made.id, title=title)
        else:
            at = self.chance.choice(targets)
            fork = self.session(model).fork(at.id, id=made.id, title=title)
            line = model.line
            state = line.state or []
            begin = state if line.edit == at else upto(state, at.id)
            made.current, made.lines = fork.branch, {fork.branch: Line(upto(line.said, at.id), begin)}
            made.versions = {one.id: {one.text} for one in made.line.said}
        self.models[made.id] = made

    def delete(self, model: Model) -> None:
        if len(self.models) > 1:
            self.session(model).delete()
            del self.models[model.id]

    def merge(self, model: Model) -> None:
        others = [one for one in self.models.values() if one is not model]
        if not others:
            return
        other, session = self.chance.choice(others), self.session(model)
        appends = self.chance.random() < 0.4
        said = other.line.said
        self.log[-1] += (other.id, appends)
        try:
            session.merge(other.id, state="append_messages" if appends else "keep_primary")
        except InvalidArgument:
            assert appends
            assert not model.line.is_finished
            return
        known = deepcopy(model.versions)

        def renamed(one: Said) -> Said:
            is_other = one.id in known and one.text not in known[one.id]
            return replace(one, id=f"{one.id}~{other.id}") if is_other else one

        def taken(messages: list[Said]) -> list[Said]:
            return [new for one in messages if (new := renamed(one)).id not in known]

        line, new = model.line, taken(said)
        line.said = sorted([*line.said, *new], key=lambda one: one.at)
        if appends and line.state is not None:
            has = {one.id for one in line.state}
            new = [one for one in map(renamed, said) if one.id not in has]
            line.state = [*line.state, *new]
            for before, one in itertools.pairwise(line.state):
                if one in new and one not in line.said:  # it is of another branch
                    line.said.insert(line.said.index(before) + 1, one)
            model.appended |= {one.id for one in new}
        model.versions = {}
        for message in session.messages(all_versions=True, branch="all"):
            model.versions.setdefault(message.message_id, set()).add(message.text)
        assert {*known, *(one.id for one in line.said)} <= {*model.versions}
        for branch in {"main", *(each.id for each in session.branches())} - {model.current}:
            read = [
                Said(one.message_id, one.role, one.text, int(one.created_at.timestamp()))
                for one in session.messages(branch=branch)
            ]
            was = model.lines.setdefault(branch, Line(state=None))
            kept = {one.id for one in was.said}
            assert [(one.id, one.text) for one in read if one.id in kept] == [(one.id, one.text) for one in was.said]
            was.said = read
        model.calls += other.calls
        model.runs += other.runs
        model.title = model.title or other.title
        if model.parent == other.id:
            model.parent = other.parent
        del self.models[other.id]

    # Files

    def move(self) -> None:
        """Go on in another database, into which everything is imported."""
        target = next(self.others, None)
        if target is None:
            return
        path = self.folder / f"{next(self.numbers)}.jsonl"
        assert self.sessions.export(path) == len(self.models)
        assert sorted(target.import_from(path)) == sorted(self.models)
        assert seen(target, *self.models) == seen(self.sessions, *self.models)
        assert self.sessions.check(deep=True) == []
        self._use(target)

    def again(self, model: Model) -> None:
        """Export one session, delete it, and import it where its family is."""
        path = self.session(model).export(self.folder / f"{next(self.numbers)}.jsonl")
        before = seen(self.sessions, model.id)
        self.sessions.delete(model.id)
        assert self.sessions.import_from(path) == [model.id]
        for was, now in zip(before[model.id], seen(self.sessions, model.id)[model.id], strict=True):
            assert now == (was | {"incarnation": now["incarnation"]} if "incarnation" in now else was)

    def archive(self, model: Model) -> None:
        self.session(model).update(idle_timeout="1ms")
        self.clock.advance(seconds=1)
        assert [(ended.session_id, ended.action) for ended in self.sessions.sweep()] == [(model.id, "archive")]
        assert self.sessions.find(model.id) is None
        self.sessions.restore(model.id).update(idle_timeout="never")


@pytest.fixture
def others(postgres_server: Server, tmp_path: Path, clock: Clock) -> Iterator[Callable[[str], Iterator[Sessions]]]:
    """Empty databases, of the other engine and of the first one in turns."""
    with ExitStack() as opened:

        def more(first: str) -> Iterator[Sessions]:
            for number in range(3):
                is_file = first.startswith("postgresql") == (number % 2 == 0)
                place = tmp_path / f"{number}.db" if is_file else opened.enter_context(postgres_server.database())
                archives = tmp_path / f"archives {number}"
                yield opened.enter_context(Sessions(place, clock=clock, archive_path=archives, **SETTINGS))

        yield more


SETTINGS: dict[str, Any] = {"sweep_interval": None, "idle_timeout": "never", "on_expire": "archive"}


@pytest.mark.sessions(**SETTINGS)
@engines_in_turns(seed=range(4 * ROUNDS))
def test_each_session_is_as_its_model(
    sessions: Sessions,
    others: Callable[[str], Iterator[Sessions]],
    clock: Clock,
    tmp_path: Path,
    each_engine: str,
    seed: int,
) -> None:
    walk = Walk(sessions, others(each_engine), clock, tmp_path, seed)
    try:
        for _ in range(STEPS):
            walk.step()
    except BaseException:
        print(*walk.log, sep="\n")
        raise
    for model in walk.models.values():
        for message in (session := walk.session(model)).messages():
            versions = session.siblings(message.message_id)
            assert versions.total == len({*versions.branches}) >= versions.index >= 1
    assert walk.sessions.check(deep=True) == []
