"""Nobody is ever given a byte that belongs to somebody they should not see: random people at random doors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware import SessionError, Sessions
from session_middleware.model import Identity
from tests.integrations import agents
from tests.integrations.agents import human

USERS = ["ann", "bob", "cyd"]
GROUPS: dict[str, list[str]] = {"ann": ["red"], "bob": ["red", "blue"], "cyd": ["blue"]}
IDS = ["s1", "s2", "s3"]
OPS = [
    *("run", "get_state", "history", "update_state", "by_checkpoint", "store_get", "store_search", "open", "find"),
    *(
        "messages",
        "timeline",
        "tool_calls",
        "stats",
        "recall",
        "remember",
        "list",
        "count",
        "copy",
        "explain",
        "delete",
    ),
    *("share", "hide", "complete", "events", "memories", "prune", "ping", "held"),
]

Step = tuple[str, str, str]


class World:
    """One database, and whose each secret is."""

    def __init__(self, path: Path) -> None:
        self.sessions = Sessions(path)
        self.graph = self.sessions.attach(agents.tool_graph())
        self.number = 0
        self.held: dict[tuple[str, str], Any] = {}

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
        if op == "run":
            whole = {**config["configurable"], "group_id": GROUPS[user][0]}
            return graph.invoke(human(f"look up {self.secret(user)}"), {"configurable": whole, "metadata": whole})
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
        if op == "store_get":
            with self.inside(config):
                return store.search(("session", session_id)), store.search(("user", user))
        if op == "store_search":
            with self.inside(config):
                return store.search((), query="SECRET"), store.list_namespaces()
        if op == "open":
            return door.open(session_id, metadata={"by": self.secret(user)})
        if op == "find":
            return door.find(session_id)
        if op == "list":
            return door.list(limit=None)
        if op == "count":
            return [door.count(status=status) for status in ("active", "idle", "completed")]
        if op in ("copy", "delete", "explain", "prune"):
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
        if op == "held":
            return session.messages(), session.timeline(), session.memory.list()
        return getattr(session, op)()

    @contextmanager
    def inside(self, config: Any) -> Iterator[None]:
        """As code that runs in a graph with this config."""
        token = var_child_runnable_config.set(config)
        try:
            yield
        finally:
            var_child_runnable_config.reset(token)


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(IDS), st.sampled_from(OPS)), min_size=10, max_size=30)
)
def test_nobody_is_given_what_is_not_theirs(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "sessions.db")
        try:
            for user, session_id in zip(USERS, IDS, strict=True):
                for op in ("run", "remember"):
                    world.do(user, session_id, op)
            for user, session_id, op in steps:
                reachable = {
                    session.user_id
                    for session in world.sessions.list(
                        limit=None, visible_to=Identity(user_id=user, group_ids=GROUPS[user])
                    )
                }
                try:
                    given_ = world.do(user, session_id, op)
                except SessionError as refusal:
                    given_ = str(refusal)
                for owner in re.findall(r"SECRET-(\w+)-\d+", repr(given_)):
                    assert owner == user or owner in reachable, (user, session_id, op, given_)
        finally:
            world.sessions.close()
