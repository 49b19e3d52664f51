"""`for_user`: the same door with every access checked; and what a group may see."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from langgraph.store.base import InvalidNamespaceError

from session_middleware import SessionAccessDenied, SessionNotFound, Sessions, UserRevoked
from session_middleware.errors import InvalidArgument, InvalidIdentity, MemoryAccessDenied, MemoryScopeUnavailable
from session_middleware.models import Identity, SessionInfo
from session_middleware.session import Session
from session_middleware.user_sessions import UserSessions
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said
from tests.support.pairwise import engines_in_turns

pytestmark = pytest.mark.usefixtures("each_engine")

SECRET = "PLUGH-what-alice-said"


@pytest.fixture
def graph(sessions: Sessions) -> Any:
    """Attached, with one turn of alice's in session t, whose group is team."""
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human(f"look up {SECRET}"), sessions.config("t", user_id="alice", group_id="team"))
    sessions.get("t").memory.remember(SECRET)
    return graph


def test_the_owner_finds_lists_runs_and_changes_what_is_theirs(sessions: Sessions, graph: Any) -> None:
    alice = sessions.for_user("alice")
    session = alice.get("t")
    assert [s.id for s in alice.list()] == ["t"]
    assert alice.count() == 1
    graph.invoke(human("hi"), session.config())
    assert len(said(alice.get("t"))) == 6
    assert alice.open("t", title="Tea").title == "Tea"
    assert session.update(tags=["x"]).tags == ("x",)
    assert session.memory.recall("what alice said")
    copy = alice.get("t").fork()
    assert (copy.user_id, copy.parent_id) == ("alice", "t")
    assert session.stats().message_count == 6
    alice.prune("t")
    assert session.stats().checkpoint_count == 1
    assert session.complete().status == "completed"
    assert alice.explain("t").status == "completed"
    assert alice.delete("t").sessions == 1


def ask(door: UserSessions, name: str) -> Any:
    return {
        "find": lambda: door.find("t"),
        "get": lambda: door.get("t"),
        "open": lambda: door.open("t"),
        "delete": lambda: door.delete("t"),
        "prune": lambda: door.prune("t"),
        "fork": lambda: door.get("t").fork(id="mine"),
        "explain": lambda: door.explain("t"),
        "list": door.list,
        "count": door.count,
        "usage": lambda: [one for one in door.usage("tool") if one.calls],
        "tool_calls": door.tool_calls,
    }[name]()


@engines_in_turns(
    name=["find", "get", "open", "delete", "prune", "fork", "explain", "list", "count", "usage", "tool_calls"]
)
def test_what_is_anothers_is_not_found_at_any_door(name: str, sessions: Sessions, graph: Any) -> None:
    before = dict(sessions.get("t"))
    stranger = sessions.for_user("mallory", ["team"])
    if name in ("find", "list", "count", "usage", "tool_calls"):
        assert not ask(stranger, name)
        assert ask(sessions.for_user("alice"), name)
    else:
        with pytest.raises(SessionNotFound) as refusal:
            ask(stranger, name)
        assert "alice" not in str(refusal.value)
    assert dict(sessions.get("t")) == before
    assert sessions.find("mine") is None


def test_what_is_nobodys_is_not_found_either(sessions: Sessions) -> None:
    sessions.open("free")
    alice = sessions.for_user("alice")
    assert alice.find("free") is None
    assert alice.list() == []
    with pytest.raises(SessionNotFound):
        alice.open("free")
    assert [event.kind for event in sessions.get("free").events()] == ["opened"]


def test_a_session_held_by_its_owner_shows_nothing_of_the_one_that_took_its_id(sessions: Sessions, graph: Any) -> None:
    held = sessions.for_user("alice").get("t")
    sessions.delete("t")
    sessions.checkpointer._storage._database.write(lambda c: c.execute("DELETE FROM tombstones"))  # as if long ago
    graph.invoke(human("look up gold"), sessions.config("t", user_id="mallory"))
    for read in (held.messages, held.tool_calls, held.runs, held.events, held.timeline, held.stats):
        with pytest.raises(SessionNotFound):
            read()
    for write in (held.complete, held.delete, held.ping, held.pin, lambda: held.update(title="x")):
        with pytest.raises(SessionNotFound):
            write()
    for call in (lambda: held.memory.remember("x"), lambda: held.memory.recall("gold"), held.ping):
        with pytest.raises(SessionNotFound):
            call()
    assert (sessions.get("t").title, sessions.get("t").status) == ("look up gold", "active")


def test_a_deleted_id_is_kept_for_its_owner(sessions: Sessions, graph: Any) -> None:
    sessions.delete("t")
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human("mine now"), sessions.config("t", user_id="mallory"))
    with pytest.raises(SessionNotFound):
        sessions.for_user("mallory").open("t")
    graph.invoke(human("hi"), sessions.config("t", user_id="alice"))
    assert len(said(sessions.get("t"))) == 2


# Groups


def test_a_run_says_who_ran_it(sessions: Sessions) -> None:
    session = sessions.open("shared", user_id="alice", group_id="team", visibility="group-write")
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human("mine"), sessions.config("shared", user_id="alice", group_id="team"))
    graph.invoke(human("look up tea"), sessions.config("shared", user_id="bob", group_id="team"))
    with sessions.for_user("carol", ["team"]).get("shared") as by_hand:
        by_hand.add({"role": "user", "content": "and mine"})
    who = {run.id: run.user_id for run in session.runs()}
    assert list(who.values()) == ["alice", "bob", "carol"]
    asked = [(message.text, who[message.run_id or ""]) for message in session.messages() if message.role == "user"]
    assert asked == [("mine", "alice"), ("look up tea", "bob"), ("and mine", "carol")]
    assert {who[call.run_id or ""] for call in session.tool_calls()} == {"bob"}
    assert sessions.forget_user("bob").traces == 1  # the run
    assert [run.user_id for run in session.runs()] == ["alice", "forgotten", "carol"]


@pytest.mark.parametrize("visibility", ["group", "group-write"])
def test_a_group_reads_what_is_shared_with_it_and_changes_it_where_it_may(
    visibility: Any, sessions: Sessions, graph: Any
) -> None:
    sessions.get("t").update(visibility=visibility)
    bob, eve = sessions.for_user("bob", ["team", "other"]), sessions.for_user("eve", ["other"])
    config = sessions.config("t", user_id="bob", group_ids=["team"])
    assert [s.id for s in bob.list()] == ["t"]
    assert eve.list() == []
    assert eve.find("t") is None
    assert SECRET in str(bob.get("t").messages())
    assert SECRET in str(graph.get_state(config).values)
    assert len(list(graph.get_state_history(config))) == 5
    if visibility == "group":
        for act in (
            lambda: graph.invoke(human("mine"), config),
            lambda: graph.update_state(config, human("mine")),
        ):
            with pytest.raises(SessionAccessDenied):
                act()
        assert len(said(bob.get("t"))) == 4
    else:
        graph.invoke(human("mine"), config)
        assert bob.get("t").update(title="ours").title == "ours"
        assert bob.get("t").fork().user_id == "alice"
    assert sessions.get("t").user_id == "alice"


CHANGES: dict[str, Any] = {
    "open": lambda door, _: door.open("t"),
    "delete": lambda door, _: door.delete("t"),
    "prune": lambda door, _: door.prune("t"),
    "fork": lambda door, _: door.get("t").fork(),
    "restore": lambda door, _: door.restore("t"),
    "session.update": lambda _, held: held.update(title="x"),
    "session.ping": lambda _, held: held.ping(),
    "session.pin": lambda _, held: held.pin(),
    "session.unpin": lambda _, held: held.unpin(),
    "session.complete": lambda _, held: held.complete(),
    "session.delete": lambda _, held: held.delete(),
    "session.resource": lambda _, held: held.resource("x", open=dict),
    "session.delete_message": lambda _, held: held.delete_message("x"),
    "session.add": lambda _, held: held.add(human("x")["messages"][0]),
    "session.add_history": lambda _, held: held.add_history(human("x")["messages"]),
    "session.record_tool": lambda _, held: held.record_tool("x"),
    "session.record_model_call": lambda _, held: held.record_model_call("x"),
    "session.__enter__": lambda _, held: held.__enter__(),
    "session.repair": lambda _, held: held.repair(),
    "session.memory.remember": lambda _, held: held.memory.remember("x"),
    "session.history": lambda _, held: held.history().add_messages(human("x")["messages"]),
}


@engines_in_turns(name=CHANGES)
def test_a_reader_is_refused_a_change_and_a_stranger_finds_nothing(name: str, sessions: Sessions, graph: Any) -> None:
    sessions.get("t").update(visibility="group")
    bob = sessions.for_user("bob", ["team"])
    held = bob.get("t")
    before = dict(sessions.get("t"))
    with pytest.raises(SessionAccessDenied, match="'bob' may only read it"):
        CHANGES[name](bob, held)
    with pytest.raises(SessionNotFound):
        CHANGES[name](
            sessions.for_user("eve", ["other"]), Session(SessionInfo(**dict(held)), sessions, Identity(user_id="eve"))
        )
    after = dict(sessions.get("t"))
    assert {key for key in before if before[key] != after[key]} <= {"version"}


def test_a_group_may_delete_what_is_shared_for_writing(sessions: Sessions, graph: Any) -> None:
    sessions.get("t").update(visibility="group-write")
    assert sessions.for_user("bob", ["team"]).delete("t").sessions == 1


def test_a_member_of_the_group_sees_the_sessions_memories_and_not_its_owners(sessions: Sessions, graph: Any) -> None:
    session = sessions.get("t").update(visibility="group")
    session.memory.remember("alice likes peanuts", scope="user")
    session.memory.remember("the team likes tea", scope="group")
    shared = sessions.for_user("bob", ["team"]).get("t")
    assert {memory.text for memory in shared.memory.recall("likes said", kinds=["item"])} == {
        "the team likes tea",
        SECRET,
    }
    shared.memory.remember("bob likes figs", scope="user")
    assert "bob likes figs" not in {memory.text for memory in session.memory.recall("likes")}


def test_a_member_of_the_group_searches_a_shared_session_that_is_named(sessions: Sessions) -> None:
    for visibility in ("group", "private"):
        shared = sessions.open(visibility, user_id="alice", group_id="team", visibility=visibility)
        shared.add({"role": "user", "content": "xyzzy"})
    member, stranger = sessions.for_user("bob", ["team"]), sessions.for_user("eve")
    assert [hit.session_id for hit in member.search("xyzzy", session_id="group")] == ["group"]
    assert not member.search("xyzzy")
    assert not member.search("xyzzy", session_id="private")
    assert not member.search("xyzzy", session_id="group", user_id="bob")
    assert not stranger.search("xyzzy", session_id="group")


def test_acting_as_names_the_groups_too(sessions: Sessions, graph: Any) -> None:
    sessions.get("t").update(visibility="group")
    with sessions.acting_as("bob", group_ids=["team"]):
        assert graph.get_state({"configurable": {"thread_id": "t"}}).values["messages"]
    with sessions.acting_as("bob"), pytest.raises(SessionAccessDenied):
        graph.get_state({"configurable": {"thread_id": "t"}})


def test_whoever_has_no_id_has_no_door(sessions: Sessions, graph: Any) -> None:
    for step in (lambda: sessions.for_user(None), lambda: sessions.for_user(None, ["team"])):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="the id of a user"):
            step()
    with sessions.acting_as("alice"):
        with sessions.acting_as(None), pytest.raises(SessionAccessDenied):
            graph.get_state({"configurable": {"thread_id": "t"}})
        with pytest.raises(InvalidArgument):
            sessions.for_user(None)  # type: ignore[arg-type]
        assert graph.get_state({"configurable": {"thread_id": "t"}}).values["messages"]


# Revoking


async def test_a_revoked_user_is_refused_everywhere_until_it_is_lifted(sessions: Sessions, graph: Any) -> None:
    sessions.open("b", user_id="bob")
    assert sessions.revoke("alice", reason="left") == ["t"]
    session = sessions.get("t")
    assert (session.status, session.reason) == ("abandoned", "owner_revoked")
    assert session.events()[-1].detail == {"why": "left"}
    for refused in (
        lambda: graph.invoke(human("hi"), sessions.config("t", user_id="alice")),
        lambda: graph.invoke(human("hi"), sessions.config("new", user_id="alice")),
        lambda: graph.get_state(sessions.config("t", user_id="alice")),
        lambda: sessions.open("t", user_id="alice"),
        lambda: sessions.for_user("alice").open("t"),
        lambda: sessions.memory(sessions.config("t", user_id="alice")),
        lambda: sessions.memory(sessions.config("new", user_id="alice")),
    ):
        with pytest.raises(UserRevoked, match="lift"):
            refused()
    assert sessions.get("b").status == "active"
    assert await sessions.arevoke("alice", lift=True) == []
    graph.invoke(human("back"), sessions.config("t", user_id="alice"))
    assert sessions.get("t").opened_as == "reopened"


async def test_the_revoked_users_among_many_are_listed(sessions: Sessions) -> None:
    sessions.revoke("alice"), sessions.revoke("mallory")
    assert await sessions.alist_revoked(["bob", "mallory", "alice", "alice"]) == ["alice", "mallory"]
    assert sessions.list_revoked([]) == []
    for wrong in ("alice", [None], [""]):
        with pytest.raises((InvalidArgument, InvalidIdentity)):
            sessions.list_revoked(wrong)  # type: ignore[arg-type]


def test_a_revoked_users_run_is_stopped_at_its_next_checkpoint(sessions: Sessions) -> None:
    from langchain_core.tools import tool

    @tool
    def look_up(thing: str) -> str:
        """The operator acts meanwhile."""
        sessions.revoke("alice")
        return thing

    graph = sessions.attach(agents.tool_graph(look_up))
    with pytest.raises(UserRevoked):
        graph.invoke(human("look up tea"), sessions.config("t", user_id="alice"))
    assert [role for role, _ in said(sessions.get("t"))] == ["user", "assistant"]


def test_a_revoked_users_session_ends_during_a_run_that_outlasts_its_idle_timeout(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions, ended = open_sessions(idle_timeout="1h", sweep_interval=None), []

    def run() -> None:
        with sessions.open("t", user_id="alice"):
            clock.advance(hours=2)
            ended.extend(sessions.revoke("alice"))

    with pytest.raises(UserRevoked):
        run()
    assert ended == ["t"]
    assert (sessions.get("t").status, sessions.get("t").reason) == ("abandoned", "owner_revoked")


@pytest.mark.parametrize("visibility", ["private", "group-write"])
def test_a_revoked_user_neither_reads_nor_changes_what_they_found_or_held_before(
    visibility: Any, sessions: Sessions, graph: Any
) -> None:
    """Their own, and what a group shares with them."""
    sessions.get("t").update(visibility=visibility)
    user = "bob" if visibility == "group-write" else "alice"
    door = sessions.for_user(user, ["team"])
    held, memory, going = door.get("t"), door.get("t").memory, door.get("t").follow()
    next(going)
    sessions.revoke(user)
    before = dict(sessions.get("t"))  # refusals are events
    names = ("find", "get", "open", "delete", "prune", "fork", "explain", "list", "count", "usage", "tool_calls")
    read = (held.messages, held.tool_calls, held.runs, held.timeline, held.stats, held.branches, held.repair)
    write = (held.delete, held.ping, held.pin, held.complete, held.__enter__, held.history().clear)
    for refused in (
        *(lambda name=name: ask(door, name) for name in names),
        *(lambda: door.search("alice"), lambda: list(going), lambda: list(held.follow())),
        *(lambda: held.update(title="x"), lambda: held.add({"role": "user", "content": "x"})),
        *(lambda: memory.recall("alice"), lambda: memory.remember("x"), lambda: memory.remember("x", scope="user")),
        *(memory.list, lambda: memory.forget(all=True), lambda: held.resource("place", open=str)),
        *(*read, *write),
    ):
        with pytest.raises(UserRevoked):
            refused()
    assert dict(sessions.get("t")) == before
    sessions.revoke(user, lift=True)
    assert held.messages()


def test_a_refusal_says_what_is_the_case(sessions: Sessions, graph: Any) -> None:
    sessions.get("t").update(visibility="group")
    with pytest.raises(SessionAccessDenied, match=r"may only read it; .*'group-write'"):
        graph.invoke(human("mine"), sessions.config("t", user_id="bob", group_ids=["team"]))
    with pytest.raises(SessionAccessDenied, match="owned by another user"):
        graph.invoke(human("mine"), sessions.config("t", user_id="eve", group_ids=["other"]))
    with pytest.raises(SessionAccessDenied, match=r"'bob' is not in group 'others'; name a group of theirs"):
        sessions.for_user("bob", "team").open("fg", group_id="others")


def test_who_asks_cannot_be_said_again(sessions: Sessions, graph: Any) -> None:
    """Arguments that come from a request must not make somebody else of the user the door is for."""
    alice = sessions.for_user("alice", ["red", "blue"])
    for said_again in ({"user_id": "bob"}, {"group_ids": ["green"]}):
        with pytest.raises(TypeError, match="has no argument"):
            alice.open("new", **said_again)
        with pytest.raises(TypeError, match="for_user"):
            alice.config("new", **said_again)
    with pytest.raises(SessionAccessDenied):
        alice.open("new", group_id="green")
    opened = alice.open("new", group_id="blue")
    assert (opened.user_id, opened.group_id) == ("alice", "blue")


def test_the_owner_records_by_hand_and_a_stranger_who_held_the_id_does_not(sessions: Sessions) -> None:
    held = sessions.for_user("alice").open("t")
    with held:
        held.add({"role": "user", "content": "hello"})
    held.history().add_user_message("again")
    assert [message.text for message in held.messages()] == ["hello", "again"]
    sessions.forget_user("alice")
    sessions.for_user("bob").open("t")
    for act in (held.__enter__, lambda: held.add({"role": "user", "content": "mine"}), held.history().clear):
        with pytest.raises(SessionNotFound):
            act()
    assert sessions.get("t").messages() == []


def test_a_resource_is_not_handed_to_who_held_the_id_before(sessions: Sessions) -> None:
    held = sessions.for_user("alice").open("t")
    sessions.forget_user("alice")
    assert sessions.for_user("bob").open("t").resource("place", open=lambda: "bob's") == "bob's"
    with pytest.raises(SessionNotFound):
        held.resource("place", open=lambda: "alice's")


def test_who_has_left_the_group_recalls_nothing_of_it(sessions: Sessions) -> None:
    sessions.open("t", user_id="alice", group_id="red").memory.remember("the red plan", scope="group")
    assert sessions.for_user("alice", ["red"]).get("t").memory.recall("plan")
    left = sessions.for_user("alice").get("t").memory
    assert left.recall("plan") == []
    with pytest.raises(MemoryScopeUnavailable):
        left.remember("more", scope="group")


# Every entry

OPERATORS = {
    *(
        "acting_as",
        "attach",
        "check",
        "close",
        "aclose",
        "find_user",
        "for_user",
        "list_revoked",
        "forget_user",
        "on_closed",
    ),
    *("on_error", "on_expiring", "on_opened", "on_resumed", "on_state_changed", "revoke", "settle", "sweep"),
    *("backup", "template"),  # of the whole database, and of the app
    "index_memory",
    *("memory", "retriever", "augment", "scope"),  # for whoever the run's config names, which is checked
}


def names_of(kind: type) -> set[str]:
    return {name for name, value in inspect.getmembers(kind) if not name.startswith("_") and callable(value)}


def test_every_method_of_sessions_is_guarded_or_the_operators() -> None:
    """A new one has to be decided on."""
    names = names_of(Sessions) - OPERATORS
    missing = {name for name in names if name not in names_of(UserSessions) and name[1:] not in OPERATORS}
    assert missing == set()


def test_all_that_a_guarded_session_asks_of_storage_is_guarded() -> None:
    """What is not known to read or to write is refused, so this fails when a session begins to use something new."""
    import re

    from session_middleware.memory.session_memory import SessionMemory
    from session_middleware.recording.chat_message_history import SessionHistory
    from session_middleware.recording.follow import Following
    from session_middleware.recording.manual import ManualRecorder
    from session_middleware.runtime.authorized_storage import AuthorizedStorage

    parts = (Session, SessionMemory, ManualRecorder, SessionHistory, Following)
    source = "".join(inspect.getsource(kind) for kind in parts)
    used = set(re.findall(r"_storage\.(\w+)\(", source))
    used -= {"export_sessions", "find_active_run"}  # of the unguarded storage, after `AuthorizedStorage.check`
    used -= {"list_sessions"}  # as above, with a condition on who sees what
    assert {"list_messages", "update_session", "put_memories"} <= used <= set(dir(AuthorizedStorage))


def test_the_store_of_a_user_has_the_users_own_namespaces_and_those_of_the_groups(sessions: Sessions) -> None:
    shown = [("user", "alice"), ("user", "alice", "notes"), ("group", "team")]
    hidden = [("user", "bob"), ("group", "other"), ("session", "t"), ("notes",), ("user",), ("langgraph", "runs")]
    for namespace in shown + hidden[:4]:
        sessions.store.put(namespace, "k", {"text": SECRET})
    store = sessions.for_user("alice", ["team"]).store
    for namespace in shown:
        store.put(namespace, "own", {"a": 1})
        assert {found.key for found in store.search(namespace)} >= {"k", "own"}
        assert store.get(namespace, "k") is not None
        store.delete(namespace, "own")
    for namespace in hidden:
        for call in (
            lambda: store.get(namespace, "k"),  # noqa: B023
            lambda: store.put(namespace, "k", {}),  # noqa: B023
            lambda: store.search(namespace),  # noqa: B023
            lambda: store.delete(namespace, "k"),  # noqa: B023
        ):
            with pytest.raises((MemoryAccessDenied, InvalidNamespaceError)):
                call()
    with pytest.raises(MemoryAccessDenied, match=r"belongs to the app; use .*'user', 'alice'"):
        store.get(("notes",), "k")
    assert {found.namespace for found in store.search(())} == set(shown)
    assert set(store.list_namespaces()) == set(shown)
    sessions.revoke("alice")
    with pytest.raises(UserRevoked):
        store.search(())
