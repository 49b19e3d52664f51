"""Nobody is ever given a byte that belongs to somebody they should not see: random people at random doors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware import SessionError, Sessions
from session_middleware.models import Identity
from session_middleware.storage.types import SessionFilter
from tests.support import agents
from tests.support.agents import human

USERS = ["ann", "bob", "cyd"]
GROUPS: dict[str, list[str]] = {"ann": ["red"], "bob": ["red", "blue"], "cyd": ["blue"]}
IDS = ["s1", "s2", "s3"]
RUNS = ["run", "stream", "get_state", "history", "update_state", "by_checkpoint", "checkpoints", "fork"]
STORE = ["store_get", "store_search", "store_elsewhere", "store_put_elsewhere"]
DOOR = ["open", "find", "list", "count", "fork_session", "explain", "delete", "prune", "usage", "all_tool_calls"]
IN_HAND = ["messages", "timeline", "tool_calls", "model_calls", "runs", "branches", "stats", "events", "ping", "repair"]
CHANGES = ["share", "hide", "complete", "remember", "add", "connect"]
OTHERS = ["recall", "memories", "follow", "resource", "held"]
OPS = [*RUNS, *STORE, *DOOR, *IN_HAND, *CHANGES, *OTHERS]
OPERATORS = ["forget_user", "revoke", "lift"]

Step = tuple[str, str, str]


class World:
    """One database, and whose each secret is."""

    def __init__(self, path: Path) -> None:
        self.sessions = Sessions(path)
        self.graph = self.sessions.attach(agents.tool_graph())
        self.number = 0
        self.held: dict[tuple[str, str], Any] = {}
        self.forgotten: dict[str, int] = {}  # how many secrets there were then

    def secret(self, user: str) -> str:
        self.number += 1
        return f"SECRET-{user}-{self.number}"

    def config(self, user: str, session_id: str, **more: Any) -> Any:
        return self.sessions.config(session_id, user_id=user, group_id=None, group_ids=GROUPS[user], **more)

    def do(self, user: str, session_id: str, op: str) -> Any:
        """What the user is given; refusals give nothing."""
        door = self.sessions.for_user(user, GROUPS[user], group_id=GROUPS[user][0])
        config = self.config(user, session_id)
        graph, store = self.graph, self.sessions.store
        if op in OPERATORS:
            return self.operate(user, op)
        if op in ("run", "stream"):
            whole: Any = {**config["configurable"], "group_id": GROUPS[user][0]}
            asked: Any = human(f"look up {self.secret(user)}"), {"configurable": whole, "metadata": whole}
            return graph.invoke(*asked) if op == "run" else list(graph.stream(*asked, stream_mode="updates"))
        if op == "get_state":
            return graph.get_state(config)
        if op == "history":
            return list(graph.get_state_history(config))
        if op == "update_state":
            return graph.update_state(config, human(self.secret(user)))
        if op == "by_checkpoint":
            latest = self.sessions._storage.get_checkpoint(session_id, "", None)
            key = "0" if latest is None else latest.checkpoint_id
            return graph.get_state(self.config(user, session_id, checkpoint_id=key))
        if op == "checkpoints":
            return list(self.sessions.checkpointer.list(config, limit=3))
        if op == "fork":
            for first in list(graph.get_state_history(config))[-1:]:
                return graph.invoke(None, graph.update_state(first.config, human(self.secret(user))))
            return None
        if op == "store_get":
            with self.inside(config):
                return store.search(("session", session_id)), store.search(("user", user))
        if op == "store_search":
            with self.inside(config):
                return store.search((), query="SECRET"), store.list_namespaces()
        if op == "store_elsewhere":  # from a session of theirs, at what is another's
            with self.inside(self.config(user, f"{user}'s")):
                return [store.search(namespace) for namespace in self.elsewhere(user, session_id)]
        if op == "store_put_elsewhere":
            with self.inside(self.config(user, f"{user}'s")):
                for namespace in self.elsewhere(user, session_id):
                    store.put(namespace, "planted", {"text": "PLANTED"})
                return None
        if op == "open":
            return door.open(session_id, metadata={"by": self.secret(user)})
        if op == "find":
            return door.find(session_id)
        if op == "list":
            return door.list(limit=None)
        if op == "count":
            return [door.count(status=status) for status in ("active", "idle", "completed")]
        if op == "usage":
            return [door.usage(by) for by in ("session", "user", "tool")]
        if op == "all_tool_calls":
            return door.tool_calls(limit=None)
        if op == "fork_session":
            return door.get(session_id).fork()
        if op in ("delete", "explain", "prune"):
            return getattr(door, op)(session_id)
        if op == "held":
            session = self.held.setdefault((user, session_id), door.get(session_id))
        else:
            session = door.get(session_id)
        return self.of(session, op, user)

    def of(self, session: Any, op: str, user: str) -> Any:
        if op == "share":
            return session.update(visibility="group")
        if op == "hide":
            return session.update(visibility="private")
        if op == "remember":
            return [session.memory.remember(self.secret(user), scope=scope) for scope in ("session", "user")]
        if op == "recall":
            return session.memory.recall("SECRET", 99)
        if op == "memories":
            return session.memory.list(["session", "user", "group"])
        if op == "add":
            return session.add({"role": "user", "content": self.secret(user)})
        if op == "connect":
            return session.update(client={"name": self.secret(user)})
        if op == "follow":
            return list(session.follow(timeout="1ms"))
        if op == "resource":
            return session.resource("kept", open=lambda: self.secret(user))
        if op == "held":
            return session.messages(), session.timeline(), session.memory.list(), self.of(session, "resource", user)
        return getattr(session, op)()

    def elsewhere(self, user: str, session_id: str) -> list[tuple[str, str]]:
        others = [other for other in USERS if other != user]
        groups = {group for other in others for group in GROUPS[other]} - set(GROUPS[user])
        namespaces = [("session", session_id), *(("user", other) for other in others), *(("group", g) for g in groups)]
        given_ = []
        for namespace in namespaces:
            try:
                self.sessions.store.search(namespace)
                given_.append(namespace)
            except SessionError:
                pass
        assert given_ in ([], [("session", session_id)])
        return given_

    def operate(self, user: str, op: str) -> None:
        if op == "forget_user":
            self.sessions.forget_user(user)
            self.forgotten[user] = self.number
        else:
            self.sessions.revoke(user, lift=op == "lift")

    def whose(self, session_id: str) -> str | None:
        session = self.sessions.find(session_id)
        return None if session is None else session.user_id

    def kept(self, session_id: str) -> Any:
        """What nobody but those who may write may change: all but that somebody was refused."""
        session = self.sessions.find(session_id)
        if session is None:
            return None
        events = [event for event in session.events() if event.kind != "denied"]
        return dict(session), session.messages(), events, session.memory.list()

    @contextmanager
    def inside(self, config: Any) -> Iterator[None]:
        """As code that runs in a graph with this config."""
        token = var_child_runnable_config.set(config)
        try:
            yield
        finally:
            var_child_runnable_config.reset(token)


@pytest.mark.slow
@hypothesis_settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(
        st.tuples(st.sampled_from(USERS), st.sampled_from(IDS), st.sampled_from([*OPS, *OPERATORS])),
        min_size=20,
        max_size=60,
    )
)
def test_nobody_is_given_or_changes_what_is_not_theirs(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "sessions.db")
        try:
            for user, session_id in zip(USERS, IDS, strict=True):
                for op in ("run", "remember"):
                    world.do(user, session_id, op)
            for step in steps:
                take(world, *step)
        finally:
            world.sessions.close()


def take(world: World, user: str, session_id: str, op: str) -> None:
    visible = SessionFilter(visible_to=Identity(user_id=user, group_ids=GROUPS[user]))
    reachable = {session.user_id for session in world.sessions._storage.list_sessions(visible, limit=None)}
    is_anothers = op not in OPERATORS and world.whose(session_id) not in (None, user)
    before = world.kept(session_id) if is_anothers else None
    try:
        given_ = world.do(user, session_id, op)
    except SessionError as refusal:
        given_ = str(refusal)
    for owner, number in re.findall(r"SECRET-(\w+)-(\d+)", repr(given_)):
        assert owner == user or owner in reachable, (user, session_id, op, given_)
        assert int(number) > world.forgotten.get(owner, 0), (user, session_id, op, given_)
    if is_anothers:
        assert world.kept(session_id) == before, (user, session_id, op)
