"""Whatever is done with a graph, its answers and its whole history are those with LangGraph's own saver."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.types import Command

from session_middleware import Sessions
from tests.support import scenarios
from tests.support.scenarios import CONFIG, SCENARIOS, Runner, plain, say, seen

pytestmark = pytest.mark.sessions(synchronous="normal")

Scenario = Callable[[Any, Runner], Awaitable[tuple[Any, Any]]]


def runner(is_async: bool = False, durability: str = "sync") -> Runner:
    return Runner(is_async=is_async, durability=durability)


class Pickle:
    """A serializer of the user's own."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])


def encrypted() -> EncryptedSerializer:
    pytest.importorskip("Crypto.Cipher.AES", reason="encryption needs pycryptodome")
    return EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")


async def compared(scenario: Scenario, by: Runner, path: Path, make_serde: Callable[[], Any] = lambda: None) -> None:
    """Play it on both; then our file is opened by one that knows nothing."""
    serde, seen = make_serde(), partial(scenarios.seen, tasks=scenario not in scenarios.RACING)
    graph, expected = await scenario(InMemorySaver(serde=serde) if serde else InMemorySaver(), by)
    history = seen(list(graph.get_state_history(CONFIG)))
    assert history
    with Sessions(path, serde=serde, synchronous="normal") as sessions:
        ours, found = await scenario(sessions.checkpointer, by)
        assert plain(found) == plain(expected)
        assert seen(list(ours.get_state_history(CONFIG))) == history
        assert seen([state async for state in ours.aget_state_history(CONFIG)]) == history
        assert sessions.recorder.faults == 0
    with Sessions(path, serde=serde) as sessions:
        ours.checkpointer = sessions.checkpointer
        assert seen(list(ours.get_state_history(CONFIG))) == history
        assert seen([ours.get_state(CONFIG)])[0][0] == history[0][0]


WAYS = [  # each scenario has each durability, each serializer, and both ways to run; each two of these meet somewhere
    pytest.param(scenario, durability, is_async, make_serde, id=f"{scenario.__name__}-{durability}-{name}")
    for number, scenario in enumerate(SCENARIOS)
    for place, durability in enumerate(("sync", "async", "exit"))
    for is_async in [(number + place) % 2 == 1]
    for make_serde in [(None, encrypted, Pickle)[(number // 2 + place) % 3]]
    for name in [f"{'a' * is_async}invoke-{make_serde.__name__.lower() if make_serde else 'plain'}"]
    if (durability, scenario) not in scenarios.UNDEFINED
]


@pytest.mark.parametrize(("scenario", "durability", "is_async", "make_serde"), WAYS)
async def test_answers_and_history_are_those_of_langgraphs_own_saver(
    scenario: Scenario, durability: str, is_async: bool, make_serde: Callable[[], Any] | None, tmp_path: Path
) -> None:
    """With each serializer a state has the same bytes again where its values are the same."""
    await compared(scenario, runner(is_async, durability), tmp_path / "sessions.db", make_serde or (lambda: None))


def test_nothing_that_was_said_is_readable_in_an_encrypted_state(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path, serde=encrypted(), tracking=False) as sessions:
        scenarios.chat().compile(checkpointer=sessions.checkpointer).invoke(say("a-secret-word"), CONFIG)
    assert b"secret-word" not in path.read_bytes()


# What is left after a prune goes on


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("memory", [False, True], ids=["", "with a memory"])
@pytest.mark.parametrize("is_async", [False, True], ids=["invoke", "ainvoke"])
async def test_a_thread_pruned_while_a_subgraph_waits_goes_on_where_it_was(
    is_async: bool, memory: bool, depth: int, sessions: Sessions
) -> None:
    by = runner(is_async)
    graphs = [
        scenarios.nested(memory=memory, depth=depth).compile(checkpointer=saver)
        for saver in (sessions.checkpointer, InMemorySaver())
    ]
    for turn in range(3):
        for graph in graphs:
            await by.run(graph, say(f"turn {turn}"))
        await sessions.checkpointer.aprune(["t"])
        ours, theirs = (scenarios.inner_state(graph) for graph in graphs)
        assert ours == theirs
        assert ours[0][2] == [("interrupt", "how?")]
        answers = [await by.run(graph, Command(resume=f"so {turn}")) for graph in graphs]
        assert plain(answers[0]) == plain(answers[1])
        sessions.checkpointer.prune(["t"])
    assert answers[0]["log"].count("inner: so 2") == 1
    assert len(list(graphs[0].get_state_history(CONFIG))) == 1


async def test_a_thread_pruned_after_a_branch_failed_runs_only_that_again(sessions: Sessions) -> None:
    left, right = scenarios.Flaky("left"), scenarios.Flaky("right", failures=1)
    graph = scenarios.spread(left, right).compile(checkpointer=sessions.checkpointer)
    await runner().fails(graph, say("go"))
    done = [task.name for task in graph.get_state(CONFIG).tasks if task.result]
    ran = left.runs
    sessions.checkpointer.prune(["t"])
    assert [task.name for task in graph.get_state(CONFIG).tasks if task.result] == done
    graph.invoke(None, CONFIG)
    assert left.runs == ran + 2 - done.count("left")


async def test_a_pruned_thread_can_be_changed_and_forked_again(sessions: Sessions) -> None:
    graphs = [scenarios.chat().compile(checkpointer=saver) for saver in (sessions.checkpointer, InMemorySaver())]
    for graph in graphs:
        for turn in range(3):
            graph.invoke(say(f"turn {turn}"), CONFIG)
    sessions.checkpointer.prune(["t"])
    found = []
    for graph in graphs:
        fork = graph.update_state(graph.get_state(CONFIG).config, say("changed"), as_node="__start__")
        found.append([graph.invoke(None, fork), graph.invoke(say("more"), CONFIG)])
    assert plain(found[0]) == plain(found[1])


# Copies, and runs that are deleted


async def test_a_copy_made_while_a_subgraph_waits_and_its_source_are_answered_apart(sessions: Sessions) -> None:
    graph = scenarios.nested(memory=False).compile(checkpointer=sessions.checkpointer)
    copy = {"configurable": {"thread_id": "copy"}}
    graph.invoke(say("go"), CONFIG)
    sessions.checkpointer.copy_thread("t", "copy")
    answers = [graph.invoke(Command(resume=name), config)["log"] for name, config in (("one", CONFIG), ("two", copy))]
    assert [f"inner: {name}" in log for log in answers for name in ("one", "two")] == [True, False, False, True]
    assert [log[0] for log in answers] == ["before 0", "before 0"]


async def test_a_copy_and_its_source_go_on_as_two_threads_that_began_alike(sessions: Sessions) -> None:
    ours, theirs = (scenarios.chat().compile(checkpointer=saver) for saver in (sessions.checkpointer, InMemorySaver()))
    copy: Any = {"configurable": {"thread_id": "copy"}}
    for turn in range(2):
        ours.invoke(say(f"turn {turn}"), CONFIG)
        for config in (CONFIG, copy):
            theirs.invoke(say(f"turn {turn}"), config)
    await sessions.checkpointer.acopy_thread("t", "copy")
    for graph in (ours, theirs):
        graph.invoke(say("in the source"), CONFIG)
        await graph.ainvoke(say("in the copy"), copy)
        fork = graph.update_state(list(graph.get_state_history(copy))[-2].config, say("early in the copy"))
        graph.invoke(None, fork)
    for config in (CONFIG, copy):
        assert seen(list(ours.get_state_history(config))) == seen(list(theirs.get_state_history(config)))
    sessions.checkpointer.delete_thread("t")
    assert seen(list(ours.get_state_history(copy))) == seen(list(theirs.get_state_history(copy)))


def as_run(name: str) -> Any:
    return {**CONFIG, "metadata": {"run_id": name}}


@pytest.mark.parametrize("deleted", [["r3"], ["r0"], ["r1", "r2"], ["r0", "r1", "r2", "r3"], ["unknown"], []])
async def test_deleting_runs_leaves_the_others_as_they_were(deleted: list[str], sessions: Sessions) -> None:
    graph = scenarios.chat().compile(checkpointer=sessions.checkpointer)
    for number in range(4):
        graph.invoke(say(f"turn {number}"), as_run(f"r{number}"))
    before = list(graph.get_state_history(CONFIG))
    kept = [state for state in before if state.metadata["run_id"] not in deleted]
    await sessions.checkpointer.adelete_for_runs(deleted)
    after = list(graph.get_state_history(CONFIG))
    assert [(s.config, s.values, s.next, s.metadata) for s in after] == [
        (s.config, s.values, s.next, s.metadata) for s in kept
    ]
    answer = graph.invoke(say("more"), as_run("r9"))
    texts = [message.text for message in kept[0].values["messages"]] if kept else []
    assert [message.text for message in answer["messages"]][:-2] == texts


def test_deleting_the_run_that_waits_goes_back_to_the_one_before(sessions: Sessions) -> None:
    graph = scenarios.nested(memory=False).compile(checkpointer=sessions.checkpointer)
    graph.invoke(say("one"), as_run("r0"))
    done = graph.invoke(Command(resume="so"), as_run("r0"))
    graph.invoke(say("two"), as_run("r1"))
    assert graph.get_state(CONFIG).next == ("inner",)
    sessions.checkpointer.delete_for_runs(["r1"])
    state = graph.get_state(CONFIG)
    assert (state.next, plain(state.values)) == ((), plain(done))
    graph.invoke(say("three"), as_run("r2"))
    assert graph.invoke(Command(resume="then"), as_run("r2"))["log"][-2:] == ["inner: then", "after 0"]
