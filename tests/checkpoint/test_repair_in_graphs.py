"""A thread whose tool call was cut off takes new input, and a model takes its history."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.checkpoint.repair import INTERRUPTED, unanswered
from session_middleware.errors import SessionBusy
from tests.support import agents, processes
from tests.support.agents import RUNNERS, Runner, Saying, Scripted, asks, human, invoke, kinds
from tests.support.pairwise import pairwise


class Strict(Scripted):
    """Refuses a history that asks for a tool and has no answer, as model APIs do."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if missing := unanswered(messages):
            raise ValueError(f"400: no answer to {[asked.call['id'] for asked in missing]}")
        return super()._generate(messages)


class CutOff(BaseException):
    """The process is being stopped."""


class Price:
    """A tool that is cut off while `works` is false."""

    works = False


@pytest.fixture
def price(sessions: Sessions) -> Iterator[Any]:
    @tool
    def price(thing: str) -> str:
        """What a thing costs."""
        if not Price.works:
            raise CutOff
        return f"{thing}: 3"

    async def after_look_up(thing: str) -> str:
        """On an event loop a tool that is cut off ends its run, whether or not the one beside it has finished."""
        while not Price.works and "ok" not in {call.status for call in await sessions.get("t").atool_calls()}:
            pass
        return str(price.func(thing))

    price.coroutine = after_look_up
    Price.works = False
    yield price
    Price.works = True


def tool_graph(price: Any) -> Any:
    return agents.tool_graph(price, model=Strict())


def agent(price: Any) -> Any:
    return create_agent(Strict(), [agents.look_up, price])


MAKERS: list[Callable[[Any], Any]] = [tool_graph, agent]


async def cut_off(runner: Runner, graph: Any, config: Any, text: str = "both tea") -> None:
    with pytest.raises(CutOff):
        await runner(graph, human(text), config)


def answers(graph: Any, config: Any) -> dict[str, str]:
    return {m.tool_call_id: m.text for m in graph.get_state(config).values["messages"] if m.type == "tool"}


def repairs(session: Any) -> list[Any]:
    return [event for event in session.events() if event.kind == "repaired"]


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize("make", MAKERS)
async def test_new_input_finds_the_missing_answers(
    make: Callable[[Any], Any], runner: Runner, sessions: Sessions, price: Any
) -> None:
    graph, config = sessions.attach(make(price)), sessions.config("t", user_id="alice")
    await cut_off(runner, graph, config)
    await runner(graph, human("hello"), config)
    state = graph.get_state(config).values["messages"]
    assert [m.type for m in state] == ["human", "ai", "tool", "tool", "human", "ai"]
    session = sessions.get("t")
    assert [m.message_id for m in session.messages()] == [m.id for m in state]
    assert kinds(session).count("price") == 1
    assert {call.name: call.status for call in session.tool_calls()} == {"look_up": "ok", "price": "interrupted"}
    assert [run.outcome for run in session.runs()] == ["interrupted", "ok"]


@pytest.mark.parametrize("make", MAKERS)
async def test_the_part_of_a_step_that_was_finished_is_not_lost(
    make: Callable[[Any], Any], sessions: Sessions, price: Any
) -> None:
    graph, config = sessions.attach(make(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    graph.invoke(human("hello"), config)
    assert list(answers(graph, config).values()) == ["tea is nice", INTERRUPTED]


@pytest.mark.parametrize("part", ["metadata", "configurable"])
async def test_new_input_of_a_run_whose_config_has_its_id_is_not_lost(
    part: str, sessions: Sessions, price: Any
) -> None:
    """LangGraph's server sets this id. LangGraph resumes, without its input, a run whose id a checkpoint has."""
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, {**config, part: config[part] | {"run_id": "run-1"}})
    state = graph.invoke(human("hello"), {**config, part: config[part] | {"run_id": "run-2"}})
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "tool", "human", "ai"]


async def test_it_is_a_checkpoint_of_its_own_with_an_event(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    before = graph.get_state(config)
    graph.invoke(human("hello"), config)
    [added] = [state for state in graph.get_state_history(config) if state.metadata["source"] == "update"]
    assert added.parent_config["configurable"]["checkpoint_id"] == before.config["configurable"]["checkpoint_id"]
    assert (added.metadata["step"], added.next) == (before.metadata["step"] + 1, ())
    [event] = repairs(sessions.get("t"))
    assert event.reason == "new input"
    assert event.detail["checkpoint_id"] == added.config["configurable"]["checkpoint_id"]
    assert [call["answer"] for call in event.detail["tool_calls"]] == ["known", "interrupted"]
    assert event.run_id == sessions.get("t").runs()[-1].id


async def test_what_was_there_is_not_altered(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    before = graph.get_state(config)
    graph.invoke(human("hello"), config)
    assert graph.get_state(before.config).values == before.values
    assert graph.get_state(before.config).next == ("tools",)


async def test_reading_a_thread_repairs_nothing(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    states = [graph.get_state(config), await graph.aget_state(config), next(iter(graph.get_state_history(config)))]
    assert {state.next for state in states} == {("tools",)}
    assert repairs(sessions.get("t")) == []


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize("make", MAKERS)
async def test_resuming_with_none_still_executes_the_pending_tool(
    make: Callable[[Any], Any], runner: Runner, sessions: Sessions, price: Any
) -> None:
    graph, config = sessions.attach(make(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    Price.works = True
    await runner(graph, None, config)
    assert list(answers(graph, config).values()) == ["tea is nice", "tea: 3"]
    assert repairs(sessions.get("t")) == []


async def test_a_command_repairs_nothing(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config, "look up tea" if Price.works else "both tea")
    Price.works = True
    graph.invoke(Command(update={"messages": []}), config)
    assert repairs(sessions.get("t")) == []


def test_what_waits_for_a_person_is_not_repaired_when_asked(sessions: Sessions) -> None:
    graph, config = sessions.attach(agents.tool_graph(model=Strict())), sessions.config("t")
    graph.invoke(human("ask tea"), config)
    assert graph.get_state(config).interrupts
    assert sessions.get("t").repair() == []
    graph.invoke(Command(resume=True), config)
    assert repairs(sessions.get("t")) == []
    assert [call.status for call in sessions.get("t").tool_calls()] == ["interrupted", "ok"]


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize(
    "make", [lambda: agents.tool_graph(model=Strict()), lambda: create_agent(Strict(), agents.TOOLS)]
)
async def test_what_waits_for_a_person_is_given_up_by_new_input(
    make: Callable[[], Any], runner: Runner, sessions: Sessions
) -> None:
    graph, config = sessions.attach(make()), sessions.config("t")
    await runner(graph, human("ask tea"), config)
    await runner(graph, human("never mind"), config)
    await runner(graph, human("hello"), config)
    state = graph.get_state(config).values["messages"]
    assert [m.type for m in state] == ["human", "ai", "tool", "human", "ai", "human", "ai"]
    assert [m.message_id for m in sessions.get("t").messages()] == [m.id for m in state]
    assert [call.status for call in sessions.get("t").tool_calls()] == ["interrupted"]
    assert len(repairs(sessions.get("t"))) == 1


async def test_an_answer_that_the_input_brings_is_the_answer(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config, "both tea")
    asked = graph.get_state(config).values["messages"][-1].tool_calls
    given = [{"role": "tool", "content": "by hand", "tool_call_id": call["id"]} for call in asked]
    graph.invoke({"messages": given}, config)
    assert list(answers(graph, config).values()) == ["by hand", "by hand"]
    assert repairs(sessions.get("t")) == []


async def test_it_can_be_turned_off(tmp_path: Path, price: Any) -> None:
    with Sessions(tmp_path / "sessions.db", repair="off") as sessions:
        graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
        await cut_off(invoke, graph, config)
        with pytest.raises(ValueError, match="no answer"):
            graph.invoke(human("hello"), config)
        [first, second] = sessions.get("t").repair()
        assert (first.answer, second.answer) == ("known", "interrupted")
        graph.invoke(human("hello"), config)


async def test_a_dry_run_says_what_would_be_answered_and_changes_nothing(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t", user_id="alice")
    await cut_off(invoke, graph, config)
    before, events = graph.get_state(config), sessions.get("t").events()
    said = sessions.get("t").repair(dry_run=True)
    assert [(call.name, call.answer) for call in said] == [("look_up", "known"), ("price", "interrupted")]
    assert graph.get_state(config) == before
    assert sessions.get("t").events() == events
    done = await sessions.get("t").arepair()
    assert [call.tool_call_id for call in done] == [call.tool_call_id for call in said]
    assert graph.get_state(config).next == ()
    assert [event.reason for event in repairs(sessions.get("t"))] == ["asked for"]
    assert sessions.get("t").repair() == []


async def test_the_checkpointer_alone_is_repaired_when_asked(sessions: Sessions, price: Any) -> None:
    config = sessions.config("t")
    graph = sessions.attach(tool_graph(price), recorder=False)
    await cut_off(invoke, graph, config)
    assert [call.answer for call in sessions.get("t").repair()] == ["interrupted", "interrupted"]
    graph.invoke(human("hello"), config)
    assert {call.status for call in sessions.get("t").tool_calls()} == {"interrupted"}


async def test_a_run_in_progress_gives_its_answers_itself(sessions: Sessions) -> None:
    found = []

    @tool
    def price(thing: str) -> str:
        """What a thing costs."""
        with pytest.raises(SessionBusy, match="busy"):
            sessions.get("t").repair()
        found.append(graph.get_state(config).next)  # a read from inside the run
        plain.invoke(human("meanwhile"), config)  # and another run beside it
        return f"{thing}: 3"

    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    plain = sessions.attach(agents.chat())
    graph.invoke(human("both tea"), config, durability="sync")
    assert found == [("tools",)]
    assert repairs(sessions.get("t")) == []


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_subgraph_that_keeps_its_state_is_repaired_too(is_async: bool, sessions: Sessions, price: Any) -> None:
    class Question(TypedDict):
        question: str

    class Team(TypedDict):
        messages: list[AnyMessage]

    team = agents.tool_graph(price, model=Strict(), checkpointer=True)

    def ask(state: Question) -> Question:
        return {"question": team.invoke({"messages": [HumanMessage(state["question"])]})["messages"][-1].text}

    async def aask(state: Question) -> Question:
        reply = await team.ainvoke({"messages": [HumanMessage(state["question"])]})
        return {"question": reply["messages"][-1].text}

    outer = StateGraph(Question).add_node("team", aask if is_async else ask).add_edge(START, "team").compile()
    graph, config = sessions.attach(outer), sessions.config("t")
    with pytest.raises(CutOff):
        await graph.ainvoke({"question": "both tea"}, config) if is_async else graph.invoke(
            {"question": "both tea"}, config
        )
    out = (
        await graph.ainvoke({"question": "hello"}, config) if is_async else graph.invoke({"question": "hello"}, config)
    )
    assert out["question"] == "you said hello"
    [event] = repairs(sessions.get("t"))
    assert [call["answer"] for call in event.detail["tool_calls"]] == ["known", "interrupted"]


def last_one(messages: list[BaseMessage]) -> list[BaseMessage]:
    return messages[-1:]


@pairwise(sends=[last_one, list], blocks=[False, True], recorder=[True, False], runner=[agents.invoke, agents.ainvoke])
async def test_agents_that_hand_over_to_each_other_answer_their_calls_themselves(
    sends: Callable[..., Any], blocks: bool, recorder: bool, runner: Runner, sessions: Sessions
) -> None:
    builder, models = agents.handing_over(sends, blocks=blocks)
    graph, config = sessions.attach(builder.compile(), recorder=recorder), sessions.config("t")
    for text in ("hi", "and?", "bob?"):
        await runner(graph, human(text), config)
        assert not recorder or sessions.get("t").repair() == []
    session = sessions.get("t")
    assert repairs(session) == []
    state = graph.get_state(config, subgraphs=True).values["messages"]
    assert [m.text for m in state if m.type == "tool"] == ["over to bob", "over to bob", "over to alice"]
    assert all(agents.answered_at_once(asked) for model in models for asked in model.asked)
    assert session.history().messages == state


@pytest.mark.parametrize("runner", [invoke, agents.ainvoke])
async def test_a_handover_that_an_agent_is_not_told_of_is_repaired_with_what_was_said(
    runner: Runner, sessions: Sessions
) -> None:
    @tool("to_bob")
    def hand_over(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Lets another agent go on."""
        return Command(
            goto="bob", graph=Command.PARENT, update={"messages": [ToolMessage("ok", tool_call_id=tool_call_id)]}
        )

    model = Saying(says=[asks(("to_bob", {})), AIMessage("fine")])
    alice = create_agent(model, [hand_over], checkpointer=True)

    def last(state: MessagesState) -> dict[str, Any]:
        return {"messages": alice.invoke({"messages": state["messages"][-1:]})["messages"][-1:]}

    async def alast(state: MessagesState) -> dict[str, Any]:
        return {"messages": (await alice.ainvoke({"messages": state["messages"][-1:]}))["messages"][-1:]}

    builder = StateGraph(MessagesState).add_node("alice", RunnableLambda(last, alast), destinations=("bob",))
    builder.add_node("bob", lambda state: {"messages": [AIMessage("bob here")]}).add_edge(START, "alice")
    graph, config = sessions.attach(builder.compile()), sessions.config("t")
    await runner(graph, human("hi"), config)
    await runner(graph, human("and?"), config)
    assert [m.text for m in model.asked[-1]] == ["hi", "", "ok", "and?"]
    [event] = repairs(sessions.get("t"))
    assert [call["answer"] for call in event.detail["tool_calls"]] == ["known"]


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize(
    "make", [lambda model: agents.tool_graph(model=model), lambda model: create_agent(model, agents.TOOLS)]
)
async def test_a_history_in_which_every_call_has_its_answer_is_left_alone(
    make: Callable[[Any], Any], runner: Runner, sessions: Sessions
) -> None:
    twice = asks(("look_up", {"thing": "tea"}), ("price", {"thing": "tea"}))
    graph = sessions.attach(make(Saying(says=[twice, AIMessage("one"), AIMessage("two"), AIMessage("three")])))
    config = sessions.config("t")
    for text in ("hi", "again", "and again"):
        await runner(graph, human(text), config)
    state = graph.get_state(config).values["messages"]
    assert [m.type for m in state] == ["human", "ai", "tool", "tool", "ai", "human", "ai", "human", "ai"]
    assert repairs(sessions.get("t")) == sessions.get("t").repair() == []


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
async def test_an_answer_that_the_state_has_before_its_call_is_moved_behind_it_once(
    sessions: Sessions, parts: str, runner: Runner
) -> None:
    model = Strict()

    def answer(state: MessagesState) -> Any:
        if len(state["messages"]) == 1:
            call = asks(("look_up", {}), id="c").model_copy(update={"id": "asks"})
            return {"messages": [ToolMessage("nice", tool_call_id="c", id="answers"), call]}
        assert agents.answered_at_once(state["messages"])
        return {"messages": [model.invoke(state["messages"])]}

    built = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    graph, config = sessions.attach(built, recorder=parts == "attached"), sessions.config("t")
    for text in ("hi", "again", "and again"):
        await runner(graph, human(text), config)
        if parts == "checkpointer":  # which is repaired when asked
            assert len(sessions.get("t").repair()) == (1 if text == "hi" else 0)
    assert [m.id for m in graph.get_state(config).values["messages"]][1:3] == ["asks", "answers"]
    session = sessions.get("t")
    recorded = [message.message_id for message in session.messages()]
    assert sorted(recorded) == sorted(m.id for m in graph.get_state(config).values["messages"])
    assert [event.kind for event in session.events()].count("repaired") == 1


def test_branches_that_use_one_id_are_left_alone(sessions: Sessions) -> None:
    def use(thing: str) -> Any:
        asking = asks(("look_up", {"thing": thing}))
        return lambda state: {"messages": [asking.model_copy()] if len(state["messages"]) == 1 else []}

    def answer(state: MessagesState) -> dict[str, Any]:
        calls = [call for m in state["messages"][-2:] for call in getattr(m, "tool_calls", ())]
        return {"messages": [ToolMessage(str(call["args"]), tool_call_id=call["id"]) for call in calls]}

    builder = StateGraph(MessagesState).add_node("tools", answer)
    for thing in ("tea", "milk"):
        builder.add_node(thing, use(thing)).add_edge(START, thing)
    graph, config = sessions.attach(builder.add_edge(["tea", "milk"], "tools").compile()), sessions.config("t")
    for text in ("hi", "again", "and again"):
        graph.invoke(human(text), config)
    assert [m.type for m in graph.get_state(config).values["messages"]] == [
        *("human", "ai", "ai", "tool", "tool", "human", "human")
    ]
    assert repairs(sessions.get("t")) == []


@pytest.mark.parametrize("finished", [0, 1])
def test_of_two_calls_with_one_id_the_cut_off_one_is_answered(finished: int, sessions: Sessions) -> None:
    things = ["tea", "milk"]
    done = threading.Event()

    @tool
    def price(thing: str) -> str:
        """What a thing costs."""
        if thing == things[finished]:
            done.set()
            return f"{thing}: 3"
        done.wait(10)
        raise CutOff

    model = Saying(says=[asks(*(("price", {"thing": thing}) for thing in things)), AIMessage("hello")])
    graph, config = sessions.attach(create_agent(model, [price])), sessions.config("t")
    with pytest.raises(CutOff):
        graph.invoke(human("prices?"), config)
    known = {call.arguments["thing"]: call.status for call in sessions.get("t").tool_calls()}
    graph.invoke(human("hello"), config)
    texts = [m.text for m in graph.get_state(config).values["messages"] if m.type == "tool"]
    expected = [f"{things[n]}: 3" if n == finished else INTERRUPTED for n in (0, 1)]
    assert (known[things[finished]], texts) == ("ok", expected)
    assert {c.arguments["thing"]: c.status for c in sessions.get("t").tool_calls()} == {
        things[finished]: "ok",
        things[1 - finished]: "interrupted",
    }


@pytest.mark.parametrize("count", [2, 5])
async def test_of_many_at_once_one_repairs(count: int, tmp_path: Path, price: Any) -> None:
    with Sessions(tmp_path / "sessions.db") as first:
        await cut_off(invoke, first.attach(tool_graph(price)), first.config("t"))
    others = [Sessions(tmp_path / "sessions.db") for _ in range(count)]
    together = threading.Barrier(count)

    def take_turn(sessions: Sessions) -> None:
        together.wait()
        sessions.attach(agents.chat()).invoke(human("hello"), sessions.config("t"))

    await asyncio.gather(*(asyncio.to_thread(take_turn, sessions) for sessions in others))
    assert len(repairs(others[0].get("t"))) == 1
    for sessions in others:
        sessions.close()


def test_a_process_that_was_killed_leaves_a_thread_that_takes_new_input(tmp_path: Path) -> None:
    path, script = tmp_path / "sessions.db", tmp_path / "killed.py"
    script.write_text(KILLED)
    assert processes.run(script, path).returncode != 0
    with Sessions(path) as sessions:
        graph, config = sessions.attach(agents.tool_graph(model=Strict())), sessions.config("t", user_id="ada")
        graph.invoke(human("hello"), config)
        assert [m.type for m in graph.get_state(config).values["messages"]] == ["human", "ai", "tool", "human", "ai"]
        [call] = sessions.get("t").tool_calls()
        assert (call.status, call.name) == ("interrupted", "die")
        assert sessions.check() == []  # nothing of the dead run is left in the way


KILLED = '''
import os, signal, sys
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from session_middleware import Sessions

@tool
def die() -> str:
    """Die."""
    os.kill(os.getpid(), signal.SIGKILL)

builder = StateGraph(MessagesState)
builder.add_node("model", lambda _: {"messages": [AIMessage("", tool_calls=[{"name": "die", "args": {}, "id": "c"}])]})
builder.add_node("tools", ToolNode([die]))
builder.add_edge(START, "model").add_edge("model", "tools")
sessions = Sessions(sys.argv[1])
sessions.attach(builder.compile()).invoke({"messages": "go"}, sessions.config("t", user_id="ada"), durability="sync")
'''


async def test_another_user_is_refused_before_anything_is_repaired(sessions: Sessions, price: Any) -> None:
    graph = sessions.attach(tool_graph(price))
    await cut_off(invoke, graph, sessions.config("t", user_id="alice"))
    with pytest.raises(PermissionError):
        graph.invoke(human("hello"), sessions.config("t", user_id="bob"))
    assert repairs(sessions.get("t")) == []


async def test_a_fork_from_an_old_checkpoint_is_repaired_there(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    await cut_off(invoke, graph, config)
    old = graph.get_state(config).config
    graph.invoke(human("hello"), config)
    out = graph.invoke(human("another way"), old)
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "human", "ai"]
    assert out["messages"][-1].text == "you said another way"


async def test_the_same_run_id_goes_on_with_the_same_run(sessions: Sessions, price: Any) -> None:
    graph, config = sessions.attach(tool_graph(price)), sessions.config("t")
    config["metadata"] |= {"run_id": "r-1"}
    await cut_off(invoke, graph, config)
    Price.works = True
    graph.invoke(human("both tea"), config)
    assert list(answers(graph, config).values()) == ["tea is nice", "tea: 3"]
    assert repairs(sessions.get("t")) == []


def test_a_whole_thread_costs_no_write_and_no_read(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sessions._storage, "run_batch", lambda *a, **k: asked.append(a))
    graph, config = sessions.attach(agents.tool_graph(model=Strict())), sessions.config("t")
    for _ in range(3):
        graph.invoke(human("look up tea"), config)
    assert asked == []


@pytest.mark.parametrize("user_id", [None, "alice"])
@pytest.mark.parametrize("is_inside", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_loop_recorded_by_hand_is_repaired_in_its_record(
    is_async: bool, is_inside: bool, user_id: str | None, sessions: Sessions
) -> None:
    async def repaired() -> list[Any]:
        found = session.repair(dry_run=True)
        done = await session.arepair() if is_async else session.repair()
        assert [call.answer for call in found] == [call.answer for call in done]
        assert (await session.arepair() if is_async else session.repair()) == []
        return [call.answer for call in done]

    session = sessions.open("t") if user_id is None else sessions.for_user(user_id).open("t")
    calls = [{"name": name, "args": {}, "id": f"call-{name}"} for name in ("cut_off", "done", "said")]
    with session:
        session.add({"role": "user", "content": "do three things"})
        session.add(AIMessage("", tool_calls=calls))
        session.record_tool("done", {}, "it is done", tool_call_id="call-done")
        session.add(ToolMessage("said so", tool_call_id="call-said"))
        session.add({"role": "user", "content": "well?"})
        if is_inside:
            assert await repaired() == ["interrupted", "known"]
            with ThreadPoolExecutor(1) as another, pytest.raises(SessionBusy):
                another.submit(sessions.get("t").repair).result()
    if not is_inside:
        assert await repaired() == ["interrupted", "known"]
    history = session.history().messages
    assert [message.type for message in history] == ["human", "ai", "tool", "tool", "tool", "human"]
    assert [message.text for message in history[2:]] == ["said so", INTERRUPTED, "it is done", "well?"]
    assert {call.tool_call_id: call.status for call in session.tool_calls()} == {
        "call-cut_off": "interrupted",
        "call-done": "ok",
        "call-said": "ok",
    }
    assert [event.reason for event in repairs(session)] == ["asked for"]


@pytest.mark.parametrize("is_last", [True, False])
def test_an_answer_that_a_loop_recorded_before_its_call_is_moved_behind_it_once(
    is_last: bool, sessions: Sessions
) -> None:
    session = sessions.open("t")
    calls = [{"name": "look_up", "args": {}, "id": call_id} for call_id in ("early", "cut_off", "also_early")]
    session.add({"role": "user", "content": "look"})
    for call_id in ("early", "also_early"):
        session.add(ToolMessage(call_id, tool_call_id=call_id))
    session.add(AIMessage("", tool_calls=calls))
    if not is_last:
        session.add({"role": "assistant", "content": "done"})
    assert [call.answer for call in session.repair()] == ["known", "interrupted", "known"]
    assert session.repair() == []
    session.add({"role": "user", "content": "and?"})
    rest = ["and?"] if is_last else ["done", "and?"]
    texts = [message.text for message in session.history().messages]
    assert texts == ["look", "", "early", INTERRUPTED, "also_early", *rest]
    assert agents.answered_at_once(session.history().messages)
    assert sessions.check() == []
