"""Random sequences of turns, edits, new answers, switches and forks leave each session as a model in Python has it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from session_middleware import Session, Sessions
from tests.support import agents
from tests.support.agents import human

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")


def texts(session: Session, **options: Any) -> list[str]:
    return [message.text for message in session.messages(**options)]


def reply(text: str) -> str:
    return f"you said {text}"


@dataclass
class Walk:
    """One session, and the conversation on each of its branches."""

    graph: Any
    session: Session
    branches: dict[str, list[str]]

    @property
    def current(self) -> list[str]:
        return self.branches[self.session._sessions.get(self.session.id).branch]

    @property
    def state(self) -> list[str]:
        return [one.text for one in self.graph.get_state(self.session.config()).values.get("messages", [])]

    @property
    def waits(self) -> bool:
        """Whether a user's message has not been answered."""
        return bool(self.current) and not self.current[-1].startswith("you said")

    def is_as_expected(self) -> bool:
        assert {branch: texts(self.session, branch=branch) for branch in self.branches} == self.branches
        assert texts(self.session) == self.current
        assert self.state == self.current or (self.waits and self.state == self.current[:-1])
        return True

    def now(self, conversation: list[str]) -> None:
        self.branches[self.session._sessions.get(self.session.id).branch] = conversation

    def say(self, text: str, chance: random.Random) -> None:
        before = self.state  # without an edit that has not run
        self.graph.invoke(human(text), self.session.config())
        self.now([*before, text, reply(text)])

    def edit(self, text: str, chance: random.Random) -> None:
        place = chance.choice([place for place, one in enumerate(self.current) if not one.startswith("you said")])
        begin = self.current[:place]
        config = self.session.edit(self.session.messages()[place].message_id, text)
        self.now([*begin, text])
        if chance.random() < 0.6:
            self.graph.invoke(None, config)
            self.now([*begin, text, reply(text)])

    def regenerate(self, text: str, chance: random.Random) -> None:
        place = chance.randrange(len(self.current))
        asked = max(at for at, one in enumerate(self.current[: place + 1]) if not one.startswith("you said"))
        conversation = self.current[: asked + 1]
        self.graph.invoke(None, self.session.regenerate(self.session.messages()[place].message_id))
        self.now([*conversation, reply(conversation[-1])])

    def switch(self, text: str, chance: random.Random) -> None:
        branch = chance.choice([*self.branches])
        assert self.session.switch(branch).branch == branch

    def fork(self, text: str, chance: random.Random) -> Walk:
        if chance.random() < 0.3:
            copied = {branch: [*conversation] for branch, conversation in self.branches.items()}
            return Walk(self.graph, self.session.fork(), copied)
        place = chance.randrange(len(self.current))
        fork = self.session.fork(self.session.messages()[place])
        return Walk(self.graph, fork, {fork.branch: self.current[:place]})


@pytest.mark.parametrize("seed", range(3))
def test_each_branch_of_each_session_is_as_it_was_left(sessions: Sessions, seed: int) -> None:
    chance = random.Random(seed)
    walks = [Walk(sessions.attach(agents.chat()), sessions.open("a"), {"main": []})]
    for number in range(20):
        walk = chance.choice(walks)
        actions = [walk.say, walk.edit, walk.regenerate, walk.switch, walk.fork] if walk.current else [walk.say]
        made = chance.choice(actions)(f"text {number}", chance)
        walks += [made] if made else []
        assert all(each.is_as_expected() for each in walks)
    for each in walks:
        for message in each.session.messages():
            versions = each.session.siblings(message.message_id)
            assert versions.total == len({*versions.branches}) >= versions.index >= 1
