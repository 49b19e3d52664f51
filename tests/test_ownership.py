"""A session opened with a `user_id` is its owner's: nobody else runs, reads or changes it by a config."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import HumanMessage
from langgraph.types import Command

from session_middleware import InvalidIdentity, SessionAccessDenied, SessionError, Sessions
from tests.support import agents
from tests.support.agents import human, said
from tests.support.pairwise import pairwise

SECRET = "XYZZY-what-the-stranger-said"
OWNERS = "PLUGH-what-the-owner-said"


@pytest.fixture
def graph(sessions: Sessions) -> Any:
    """Attached, with one turn of alice's in session t."""
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human(f"look up {OWNERS}", id="h1"), sessions.config("t", user_id="alice"))
    return graph


def raw(user_id: str | None) -> dict[str, Any]:
    """A config as LangGraph's own docs write it: no metadata."""
    return {"configurable": {"thread_id": "t"} | ({} if user_id is None else {"user_id": user_id})}


def proper(user_id: str | None) -> dict[str, Any]:
    identity = raw(user_id)["configurable"]
    return {"configurable": identity, "metadata": identity}


async def invoke(graph: Any, config: Any) -> None:
    graph.invoke(human(SECRET), config)


async def ainvoke(graph: Any, config: Any) -> None:
    await graph.ainvoke(human(SECRET), config)


async def stream(graph: Any, config: Any) -> None:
    list(graph.stream(human(SECRET), config))


async def astream(graph: Any, config: Any) -> None:
    [chunk async for chunk in graph.astream(human(SECRET), config)]


async def batch(graph: Any, config: Any) -> None:
    graph.batch([human(SECRET)], [config])


async def abatch(graph: Any, config: Any) -> None:
    await graph.abatch([human(SECRET)], [config])


async def resume(graph: Any, config: Any) -> None:
    graph.invoke(Command(resume=SECRET), config)


async def get_state(graph: Any, config: Any) -> None:
    graph.get_state(config)


async def aget_state(graph: Any, config: Any) -> None:
    await graph.aget_state(config)


async def get_state_history(graph: Any, config: Any) -> None:
    list(graph.get_state_history(config))


async def aget_state_history(graph: Any, config: Any) -> None:
    [state async for state in graph.aget_state_history(config)]


async def update_state(graph: Any, config: Any) -> None:
    graph.update_state(config, human(SECRET))


async def aupdate_state(graph: Any, config: Any) -> None:
    await graph.aupdate_state(config, human(SECRET))


async def put_writes(graph: Any, config: Any) -> None:
    key = {"checkpoint_ns": "", "checkpoint_id": "1"}
    graph.checkpointer.put_writes({"configurable": config["configurable"] | key}, [("messages", SECRET)], "task")


DOORS = [invoke, ainvoke, stream, astream, batch, abatch, resume, get_state, aget_state, get_state_history]
DOORS += [aget_state_history, update_state, aupdate_state, put_writes]
Door = Callable[[Any, Any], Any]


def everything_stored(path: Path) -> bytes:
    """All bytes of the database: the file, its log and whatever else is beside it."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()) if file.is_file())


@pairwise(door=DOORS, written=[raw, proper], stranger=["mallory", None])
async def test_a_stranger_is_refused_at_every_door_and_leaves_only_an_event(
    door: Door, written: Callable[..., Any], stranger: str | None, graph: Any, sessions: Sessions, path: Path
) -> None:
    before = sessions.get("t").timeline()
    with pytest.raises(SessionAccessDenied, match=r"owned by another user.*user_id=") as refusal:
        await door(graph, written(stranger))
    assert OWNERS not in str(refusal.value)
    assert "alice" not in str(refusal.value)
    *same, event = sessions.get("t").timeline()
    assert same == before
    assert (event.kind, event.reason, event.detail) == ("denied", "owner", {"user_id": stranger})
    assert sessions.recorder.faults == 0
    sessions.close()
    assert SECRET.encode() not in everything_stored(path)


@pytest.mark.parametrize("door", [invoke, ainvoke, stream, astream], ids=lambda door: door.__name__)
async def test_the_recorder_alone_stops_a_strangers_run_and_adds_nothing_to_langchains_warning(
    door: Door, graph: Any, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    def node(state: Any) -> dict[str, Any]:
        ran.append("ran")
        return {}

    from langgraph.graph import START, MessagesState, StateGraph

    bare = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()
    before = sessions.get("t").messages()
    with pytest.raises(SessionAccessDenied):
        await door(bare, {**proper("mallory"), "callbacks": [sessions.recorder]})
    assert (ran, sessions.get("t").messages(), len(sessions.get("t").runs())) == ([], before, 1)
    event = sessions.get("t").events()[-1]
    assert (event.kind, event.detail) == ("denied", {"user_id": "mallory"})  # once
    assert {record.name for record in caplog.records} == {"langchain_core.callbacks.manager"}


@pytest.mark.parametrize(("door", "written"), [*zip(DOORS, cycle([raw, proper]), strict=False)])
async def test_the_owner_may_use_every_door(
    door: Door, written: Callable[..., Any], graph: Any, sessions: Sessions
) -> None:
    await door(graph, written("alice"))
    assert "denied" not in [event.kind for event in sessions.get("t").events()]
    assert sessions.recorder.faults == 0


async def test_an_owner_named_only_in_configurable_is_recorded_like_any_other(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    await graph.ainvoke(human("look up tea"), raw("alice"))
    graph.invoke(human("look up tea"), raw("alice"))
    session = sessions.get("t")
    assert session.user_id == "alice"
    assert [run.outcome for run in session.runs()] == ["ok", "ok"]
    assert [call.status for call in session.tool_calls()] == ["ok", "ok"]
    runs = [run.id for run in session.runs()]
    assert [message.run_id for message in session.messages()] == [runs[0]] * 4 + [runs[1]] * 4


def test_a_user_id_that_is_a_number_is_its_text(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), {"configurable": {"thread_id": "t", "user_id": 7}})
    graph.invoke(human("hi"), sessions.config("t", user_id="7"))
    assert (sessions.get("t").user_id, len(sessions.get("t").runs())) == ("7", 2)


@pytest.mark.parametrize("stranger", ["", "ALICE", "alice ", "alice\0", "\u0430lice", 0, ["alice"]])
def test_an_identity_that_is_nearly_the_owners_is_a_strangers(stranger: Any, graph: Any, sessions: Sessions) -> None:
    with pytest.raises(SessionError):
        graph.get_state({"configurable": {"thread_id": "t", "user_id": stranger}})


EMPTY = {"user_id": "", "group_id": "", "group_ids": [""]}


@pytest.mark.parametrize("nobody", [EMPTY, {"user_id": ""}, {"user_id": "", "group_ids": ""}])
async def test_empty_ids_in_a_config_name_nobody(nobody: dict[str, Any], sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    config: Any = {"configurable": {"thread_id": "u"} | nobody}
    with_metadata: Any = config | {"metadata": config["configurable"]}
    graph.invoke(human("one"), config)
    await graph.ainvoke(human("two"), with_metadata)
    alone = agents.tool_graph(checkpointer=sessions.checkpointer)
    await alone.ainvoke(human("three"), config)
    agents.tool_graph().invoke(human("four"), with_metadata | {"callbacks": [sessions.recorder]})
    assert (await graph.aget_state(config)).values["messages"][-1].text == "you said three"
    assert sessions.get("u").user_id is None
    assert [text for role, text in said(sessions.get("u")) if role == "user"] == ["one", "two", "three", "four"]
    with sessions.acting_as("alice"):
        graph.invoke(human("one"), {"configurable": {"thread_id": "of-alice"} | nobody})
    assert sessions.get("of-alice").user_id == "alice"


def test_an_empty_id_as_an_argument_is_refused(sessions: Sessions) -> None:
    """An app that passes one has lost its user: the session would be open to everybody."""
    for call in (sessions.config, sessions.open, sessions.acting_as, sessions.for_user):
        with pytest.raises(InvalidIdentity):
            call(user_id="")


# A server around us


async def test_a_host_vouches_for_calls_without_an_identity_and_for_no_others(path: Path) -> None:
    with Sessions(path, access="host") as sessions:
        graph = sessions.attach(agents.tool_graph())
        graph.invoke(human("one"), sessions.config("t", user_id="alice"))
        for config in (raw(None), raw("")):
            assert graph.get_state(config).values["messages"][0].text == "one"
            assert [state async for state in graph.aget_state_history(config)]
            await graph.ainvoke(human("two"), config)
            graph.update_state(config, human("by hand"))
        assert sessions.memory(raw(None)).recall("one")
        assert sessions.get("t").user_id == "alice"
        for door in (get_state, get_state_history, update_state, invoke, ainvoke):
            with pytest.raises(SessionAccessDenied):
                await door(graph, proper("mallory"))
        with pytest.raises(SessionAccessDenied):
            graph.get_state({"configurable": {"thread_id": "t", "group_id": "team"}})
        assert sessions.for_user("mallory").find("t") is None
    with Sessions(path) as sessions, pytest.raises(SessionAccessDenied):
        sessions.attach(agents.tool_graph()).get_state(raw(None))


@pytest.mark.parametrize("named", [{"user_id": "bob"}, {"user_id": "a tracer's id"}, {"group_id": "other"}])
@pytest.mark.parametrize("alone", [True, False], ids=["checkpointer and recorder", "attached"])
async def test_who_runs_is_in_the_config_whatever_metadata_says(
    sessions: Sessions, named: dict[str, str], alone: bool
) -> None:
    sessions.open("t", user_id="alice", group_id="team", visibility="group-write")
    graph = agents.tool_graph(checkpointer=sessions.checkpointer if alone else None)
    graph = graph.with_config(callbacks=[sessions.recorder]) if alone else sessions.attach(graph)
    config: Any = sessions.config("t", user_id="bob", group_ids=["team"]) | {"metadata": named}
    graph.invoke(human("one"), config)
    await graph.ainvoke(human("two"), config)
    assert [(run.user_id, run.outcome) for run in sessions.get("t").runs()] == [("bob", "ok")] * 2
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human(SECRET), sessions.config("t", user_id="mallory") | {"metadata": {"user_id": "alice"}})
    assert SECRET not in str(said(sessions.get("t")))


def test_a_host_vouches_for_the_id_of_a_deleted_session(path: Path) -> None:
    with Sessions(path, access="host") as sessions:
        graph = sessions.attach(agents.tool_graph())
        graph.invoke(human("one"), sessions.config("t", user_id="alice"))
        sessions.delete("t")
        graph.invoke(human("anew"), raw(None))
        assert [text for role, text in said(sessions.get("t")) if role == "user"] == ["anew"]


async def test_a_user_whom_a_server_has_authenticated_comes_before_what_its_client_claims(sessions: Sessions) -> None:
    """As LangGraph's server marks them: ``user_id`` there may be the client's, or that of the thread's last run."""
    graph = sessions.attach(agents.tool_graph())
    marks = {"langgraph_auth_user_id": "mallory", "langgraph_auth_user": {"group_ids": ["team"]}}
    claims = {"user_id": "alice", "group_id": "board"}
    config: Any = {"configurable": {"thread_id": "m"} | marks | claims, "run_id": uuid4()}
    config["configurable"]["run_id"] = str(config["run_id"])
    graph.invoke(human("one"), config | {"metadata": claims})
    assert (sessions.get("m").user_id, sessions.get("m").group_id) == ("mallory", None)
    sessions.open("a", user_id="alice", group_id="team", visibility="group")
    sessions.open("b", user_id="alice", group_id="board", visibility="group")
    assert graph.get_state({"configurable": {"thread_id": "a"} | marks | claims}).values == {}
    with pytest.raises(SessionAccessDenied):
        await graph.aget_state({"configurable": {"thread_id": "b"} | marks | claims})
    assert sessions.get("m").runs()[0].outcome == "ok"


def test_the_recorder_and_the_checkpointer_of_two_doors_to_one_file_serve_one_run(path: Path) -> None:
    """LangGraph's server loads the module that makes a `Sessions` anew for each of its parts."""
    with Sessions(path) as one, Sessions(path) as other:
        graph = one.attach(agents.tool_graph(checkpointer=other.checkpointer), checkpointer=False, store=False)
        run_id = uuid4()
        config: Any = {"configurable": raw("alice")["configurable"] | {"run_id": str(run_id)}, "run_id": run_id}
        graph.invoke(human("look up tea"), config)
    with Sessions(path) as sessions:
        found = sessions.get("t")
        assert (found.user_id, [(run.id, run.outcome) for run in found.runs()]) == ("alice", [(str(run_id), "ok")])
        assert [event.kind for event in found.events()] == ["opened"]
        assert (found.message_count, found.tool_calls()[0].status) == (4, "ok")


def test_two_users_in_one_batch_are_told_apart(graph: Any, sessions: Sessions) -> None:
    configs = [sessions.config("t", user_id=user) for user in ("alice", "mallory", "alice")]
    results = graph.batch([human("one"), human(SECRET), human("two")], configs, return_exceptions=True)
    assert [isinstance(result, SessionAccessDenied) for result in results] == [False, True, False]
    assert SECRET not in {text for _, text in said(sessions.get("t"))}


def test_a_tool_does_not_get_at_a_session_of_another_user(graph: Any, sessions: Sessions) -> None:
    from langchain_core.tools import tool

    @tool
    def look_up(thing: str) -> str:
        """Peeks."""
        return str(graph.get_state({"configurable": {"thread_id": "t"}}).values)

    spying = sessions.attach(agents.tool_graph(look_up, handle_tool_errors=False))
    with pytest.raises(SessionAccessDenied):
        spying.invoke(human("look up tea"), sessions.config("m", user_id="mallory"))
    assert OWNERS not in str(sessions.get("m").timeline())


# LangGraph's idioms, for the owner


def test_the_owner_goes_back_in_time_with_the_configs_langgraph_gives(graph: Any, sessions: Sessions) -> None:
    history = list(graph.get_state_history(sessions.config("t", user_id="alice")))
    assert graph.invoke(None, history[1].config)["messages"][-1].text == f"it said {OWNERS} is nice"
    parent = graph.get_state(history[0].parent_config)
    assert parent.values == history[1].values
    assert graph.get_state(parent.config).values == parent.values
    assert [run.outcome for run in sessions.get("t").runs()] == ["ok", "ok"]


async def test_the_owner_forks_by_checkpoint_id(graph: Any, sessions: Sessions) -> None:
    owner = sessions.config("t", user_id="alice")
    history = [state async for state in graph.aget_state_history(owner)]
    chosen = next(state for state in history if state.next == ("tools",))
    by_id = sessions.config("t", user_id="alice", checkpoint_id=chosen.config["configurable"]["checkpoint_id"])
    assert (await graph.aget_state(by_id)).values == chosen.values
    fork = await graph.aupdate_state(chosen.config, {"messages": [HumanMessage("no", id="h2")]}, as_node="tools")
    result = await graph.ainvoke(None, fork)
    assert result["messages"][-1].text == "you said no"
    assert [message.text for message in graph.get_state(owner).values["messages"]][-1] == "you said no"


def test_the_owner_goes_on_from_what_update_state_returns(graph: Any, sessions: Sessions) -> None:
    config = graph.update_state(sessions.config("t", user_id="alice"), human("hello"), as_node="__start__")
    assert graph.invoke(None, config)["messages"][-1].text == "you said hello"


@pytest.mark.parametrize("door", [get_state, get_state_history, update_state, invoke], ids=lambda door: door.__name__)
async def test_a_config_without_its_owner_opens_nothing(door: Door, graph: Any, sessions: Sessions) -> None:
    found = graph.get_state(sessions.config("t", user_id="alice")).config["configurable"]
    with pytest.raises(SessionAccessDenied):
        await door(graph, {"configurable": {name: found[name] for name in ("thread_id", "checkpoint_id")}})


async def test_the_owner_sees_into_a_subgraph_and_answers_it(sessions: Sessions) -> None:
    graph = sessions.attach(agents.own_subgraph(asks=True))
    owner = sessions.config("s", user_id="alice")
    graph.invoke(human("Once"), owner)
    for state in (graph.get_state(owner, subgraphs=True), await graph.aget_state(owner, subgraphs=True)):
        inner = state.tasks[0].state
        assert inner.values == {"draft": "Once"}
        assert graph.get_state(inner.config).values == {"draft": "Once"}
    graph.update_state(inner.config, {"draft": "Twice"})
    assert graph.get_state(owner, subgraphs=True).tasks[0].state.values == {"draft": "Twice"}
    assert graph.invoke(Command(resume=" more"), owner)["messages"][-1].text == "Twice more"


async def test_the_owner_reads_and_updates_a_subgraph_by_the_config_in_a_task(sessions: Sessions) -> None:
    graph = sessions.attach(agents.own_subgraph(asks=True))
    owner = sessions.config("s", user_id="alice", group_ids=["team"])
    graph.invoke(human("Once"), owner)
    history = [state async for state in graph.aget_state_history(owner)]
    for number, state in enumerate(
        (graph.get_state(owner), await graph.aget_state(owner), next(graph.get_state_history(owner)), history[0])
    ):
        config = state.tasks[0].state
        assert config["configurable"]["user_id"] == "alice"
        graph.update_state(config, {"draft": f"sync {number}"})
        assert graph.get_state(config).values == {"draft": f"sync {number}"}
        await graph.aupdate_state(config, {"draft": f"async {number}"})
        assert (await graph.aget_state(config)).values == {"draft": f"async {number}"}
    assert graph.invoke(Command(resume=" more"), owner)["messages"][-1].text == "async 3 more"


def test_a_checkpointer_alone_updates_a_subgraph_as_whoever_it_acts_as(sessions: Sessions) -> None:
    graph = agents.own_subgraph(asks=True, checkpointer=sessions.checkpointer)
    owner = sessions.config("s", user_id="alice")
    graph.invoke(human("Once"), owner)
    config = graph.get_state(owner).tasks[0].state
    with pytest.raises(SessionAccessDenied):
        graph.update_state(config, {"draft": "Twice"})
    with sessions.acting_as("alice"):
        graph.update_state(config, {"draft": "Twice"})
    assert graph.invoke(Command(resume=" more"), owner)["messages"][-1].text == "Twice more"


def test_a_graph_bound_to_its_user_sees_into_a_subgraph(sessions: Sessions) -> None:
    graph = sessions.attach(agents.own_subgraph(asks=True)).with_config({"configurable": {"user_id": "alice"}})
    config: Any = {"configurable": {"thread_id": "s"}}
    graph.invoke(human("Once"), config)
    assert sessions.get("s").user_id == "alice"
    assert graph.get_state(config, subgraphs=True).tasks[0].state.values == {"draft": "Once"}


def test_a_checkpointer_alone_sees_into_a_subgraph_as_whoever_it_acts_as(sessions: Sessions) -> None:
    graph = agents.own_subgraph(asks=True, checkpointer=sessions.checkpointer)
    owner = sessions.config("s", user_id="alice")
    graph.invoke(human("Once"), owner)
    with sessions.acting_as("alice"):
        assert graph.get_state(owner, subgraphs=True).tasks[0].state.values == {"draft": "Once"}
    with pytest.raises(SessionAccessDenied), sessions.acting_as("mallory"):
        graph.get_state({"configurable": {"thread_id": "s"}}, subgraphs=True)


async def test_a_stranger_does_not_see_into_a_subgraph(sessions: Sessions) -> None:
    graph = sessions.attach(agents.own_subgraph(asks=True))
    graph.invoke(human("Once"), sessions.config("s", user_id="alice"))
    inner = graph.get_state(sessions.config("s", user_id="alice"), subgraphs=True).tasks[0].state.config
    conf = {name: inner["configurable"][name] for name in ("thread_id", "checkpoint_ns")}
    for user in ({}, {"user_id": "mallory"}):
        with pytest.raises(SessionAccessDenied):
            graph.get_state({"configurable": conf | user})
        with pytest.raises(SessionAccessDenied):
            graph.get_state({"configurable": {"thread_id": "s"} | user}, subgraphs=True)


def test_an_operator_opens_without_being_refused_and_a_named_user_is(sessions: Sessions, graph: Any) -> None:
    assert sessions.get("t").user_id == "alice"
    assert sessions.open("t", user_id="alice").opened_as == "resumed"
    with pytest.raises(SessionAccessDenied):
        sessions.open("t", user_id="mallory")
