"""Things people do with a graph that has a checkpointer, as functions, and what is then seen of a thread.

Each scenario builds its graph on a saver, runs it by a `Runner`, and returns the graph and what it
was answered. All ids and words are fixed, so that the same scenario on two savers can be compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import add
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Interrupt, RetryPolicy, Send, StateSnapshot, interrupt
from typing_extensions import TypedDict

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    log: Annotated[list[str], add]
    count: int


class Failed(Exception):
    pass


class Runner:
    """One way of running: sync or async, with one durability."""

    def __init__(self, *, is_async: bool, durability: str) -> None:
        self.is_async = is_async
        self.options: Any = {"durability": durability}

    async def run(self, graph: Any, given: Any, config: Any = CONFIG) -> Any:
        if self.is_async:
            return await graph.ainvoke(given, config, **self.options)
        return graph.invoke(given, config, **self.options)

    async def fails(self, graph: Any, given: Any, config: Any = CONFIG) -> None:
        try:
            await self.run(graph, given, config)
        except Failed:
            return
        raise AssertionError("it should have failed")

    async def update(self, graph: Any, config: Any, values: Any, **options: Any) -> Any:
        if self.is_async:
            return await graph.aupdate_state(config, values, **options)
        return graph.update_state(config, values, **options)

    async def history(self, graph: Any, config: Any = CONFIG) -> list[Any]:
        if self.is_async:
            return [state async for state in graph.aget_state_history(config)]
        return list(graph.get_state_history(config))


def say(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [HumanMessage(text, id=f"h-{text}")], **fields}


class Flaky:
    """A node that says it ran, and fails the first times."""

    def __init__(self, name: str, *, failures: int = 0) -> None:
        self.name = name
        self.failures = failures
        self.runs = 0

    def __call__(self, state: Any) -> dict[str, Any]:
        self.runs += 1
        if self.runs <= self.failures:
            raise Failed(self.name)
        return {"log": [f"{self.name} {state.get('item', '')}".strip()]}


def chat() -> StateGraph[Any, Any, Any, Any]:
    def answer(state: State) -> dict[str, Any]:
        count = state.get("count", 0) + 1
        text = f"{count}: you said {state['messages'][-1].text}"
        return {"messages": [AIMessage(text, id=f"a-{text}")], "count": count, "log": [text]}

    def note(state: State) -> dict[str, Any]:
        return {"log": [f"noted {len(state['messages'])}"]}

    builder = StateGraph(State).add_node("answer", answer).add_node("note", note)
    return builder.add_edge(START, "answer").add_edge("answer", "note")


async def turns(saver: Any, by: Runner) -> Any:
    graph = chat().compile(checkpointer=saver)
    return graph, [await by.run(graph, say(f"turn {turn}")) for turn in range(3)]


async def edits(saver: Any, by: Runner) -> Any:
    """The state is changed from outside: added to, edited, removed from, and before there is any."""
    graph = chat().compile(checkpointer=saver)
    await by.update(graph, CONFIG, say("before all"), as_node=START)
    await by.run(graph, None)
    await by.run(graph, say("one"))
    await by.update(graph, CONFIG, {"messages": [HumanMessage("edited", id="h-one")], "log": ["by hand"]})
    await by.update(graph, CONFIG, {"messages": [RemoveMessage(id="h-before all")]}, as_node="note")
    after_answer = await by.update(graph, CONFIG, {"count": 10}, as_node="answer")
    return graph, [await by.run(graph, None, after_answer), await by.run(graph, say("two"))]


async def forks(saver: Any, by: Runner) -> Any:
    """Back to earlier checkpoints: run again from one, change another and go on, and a fork of the fork."""
    graph = chat().compile(checkpointer=saver)
    for turn in range(3):
        await by.run(graph, say(f"turn {turn}"))
    past = [state for state in await by.history(graph) if state.next == ("answer",)]
    found = [await by.run(graph, None, past[-1].config)]
    fork = await by.update(graph, past[len(past) // 2].config, say("instead"))
    found.append(await by.run(graph, None, fork))
    done = [state for state in await by.history(graph) if state.next == ()]
    found.append(await by.run(graph, say("from the oldest end"), done[-1].config))
    fork = await by.update(graph, done[-1].config, {"log": ["as answer"]}, as_node="answer")
    found.append(await by.run(graph, None, fork))
    return graph, found


async def copied_as_it_was(saver: Any, by: Runner) -> Any:
    """``as_node="__copy__"`` forks a checkpoint without a change."""
    graph = chat().compile(checkpointer=saver)
    await by.run(graph, say("one"))
    await by.run(graph, say("two"))
    past = [state for state in await by.history(graph) if state.next == ("answer",)]
    fork = await by.update(graph, past[-1].config, None, as_node="__copy__")
    return graph, [await by.run(graph, None, fork)]


async def many_updates(saver: Any, by: Runner) -> Any:
    from langgraph.types import StateUpdate

    graph = chat().compile(checkpointer=saver)
    updates = [[StateUpdate(say("one"), START)], [StateUpdate({"count": 5}, "answer")], [StateUpdate({"log": ["x"]})]]
    if by.is_async:
        await graph.abulk_update_state(CONFIG, updates)
    else:
        graph.bulk_update_state(CONFIG, updates)
    return graph, [await by.run(graph, say("two"))]


def spread(*nodes: Flaky) -> StateGraph[Any, Any, Any, Any]:
    """`Send`s to one node and to the others, all at once; then one that has seen them all."""
    builder = StateGraph(State)
    sends = [Send(node.name, {"item": item}) for node in nodes for item in range(2)]
    builder.add_node("begin", Flaky("begin")).add_node("join", Flaky("join"))
    for node in nodes:
        builder.add_node(node.name, node).add_edge(node.name, "join")
    builder.add_edge(START, "begin").add_conditional_edges("begin", lambda _: sends, [node.name for node in nodes])
    return builder.add_edge("join", END)


async def fan_out(saver: Any, by: Runner) -> Any:
    graph = spread(Flaky("left"), Flaky("right")).compile(checkpointer=saver)
    return graph, [await by.run(graph, say(f"turn {turn}")) for turn in range(2)]


async def fan_out_that_fails(saver: Any, by: Runner) -> Any:
    """One of the sends fails, before or after the others are done."""
    left, right = Flaky("left"), Flaky("right", failures=1)
    graph = spread(left, right).compile(checkpointer=saver)
    await by.fails(graph, say("go"))
    return graph, [await by.run(graph, None)]


async def parallel_that_fails(saver: Any, by: Runner) -> Any:
    left, right, after = Flaky("left"), Flaky("right", failures=2), Flaky("after")
    builder = StateGraph(State)
    for node in (left, right, after):
        builder.add_node(node.name, node)
    builder.add_edge(START, "left").add_edge(START, "right").add_edge(["left", "right"], "after")
    graph = builder.compile(checkpointer=saver)
    await by.fails(graph, say("go"))
    await by.fails(graph, None)
    return graph, [await by.run(graph, None), right.runs, after.runs]


async def failed_then_new_input(saver: Any, by: Runner) -> Any:
    node = Flaky("node", failures=1)
    graph = StateGraph(State).add_node("node", node).add_edge(START, "node").compile(checkpointer=saver)
    await by.fails(graph, say("one"))
    return graph, [await by.run(graph, say("two")), node.runs]


async def retried_by_policy(saver: Any, by: Runner) -> Any:
    node, policy = Flaky("node", failures=2), RetryPolicy(initial_interval=0, jitter=False, retry_on=Failed)
    builder = StateGraph(State).add_node("node", node, retry_policy=policy).add_edge(START, "node")
    graph = builder.compile(checkpointer=saver)
    return graph, [await by.run(graph, say("one")), node.runs]


def asking(name: str, *questions: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {"log": [f"{name}: {interrupt(question)}" for question in questions]}


async def asked(saver: Any, by: Runner) -> Any:
    """A node with two questions, then breakpoints before another."""
    builder = StateGraph(State).add_node("ask", asking("ask", "first?", "second?")).add_node("end", Flaky("end"))
    builder.add_edge(START, "ask").add_edge("ask", "end")
    graph = builder.compile(checkpointer=saver, interrupt_before=["end"])
    found = [await by.run(graph, given) for given in (say("go"), Command(resume="a"), Command(resume="b"), None)]
    return graph, found


async def asked_side_by_side(saver: Any, by: Runner) -> Any:
    builder = StateGraph(State).add_node("left", asking("left", "l?")).add_node("right", asking("right", "r?"))
    builder.add_node("plain", Flaky("plain"))
    for name in ("left", "right", "plain"):
        builder.add_edge(START, name)
    graph = builder.compile(checkpointer=saver)
    await by.run(graph, say("go"))
    waiting = [one for state in (await by.history(graph))[:1] for one in state.interrupts]
    answers = {one.id: f"yes to {one.value}" for one in waiting}
    return graph, [sorted(answers.values()), await by.run(graph, Command(resume=answers))]


async def commands(saver: Any, by: Runner) -> Any:
    def router(state: State) -> Command[Any]:
        return Command(update={"log": ["routed"], "count": 1}, goto="end" if state.get("count") else "again")

    builder = StateGraph(State).add_node("router", router, destinations=("end", "again"))
    builder.add_node("again", Flaky("again")).add_node("end", Flaky("end"))
    builder.add_edge(START, "router").add_edge("again", "router")
    graph = builder.compile(checkpointer=saver)
    return graph, [await by.run(graph, say("go")), await by.run(graph, Command(update={"count": 7}, goto="end"))]


def nested(*, memory: bool, depth: int = 2) -> StateGraph[Any, Any, Any, Any]:
    """A graph in a graph (in a graph) that asks; `memory`: it keeps a state of its own from turn to turn."""

    def count(state: State) -> dict[str, Any]:
        return {"count": state.get("count", 0) + 1, "log": [f"inner {state.get('count', 0) + 1}"]}

    builder = StateGraph(State).add_node("tally", count).add_node("ask", asking("inner", "how?"))
    builder.add_edge(START, "tally").add_edge("tally", "ask")
    for level in range(depth - 1):
        graph = builder.compile(checkpointer=True if memory else None)
        builder = StateGraph(State).add_node("before", Flaky(f"before {level}")).add_node("inner", graph)
        builder.add_node("after", Flaky(f"after {level}"))
        builder.add_edge(START, "before").add_edge("before", "inner").add_edge("inner", "after")
    return builder


async def _ask_nested(saver: Any, by: Runner, builder: Any) -> Any:
    graph, found = builder.compile(checkpointer=saver), []
    for turn in range(2):
        await by.run(graph, say(f"turn {turn}"))
        found.append(inner_state(graph))
        found.append(await by.run(graph, Command(resume=f"so {turn}")))
    return graph, found


def inner_state(graph: Any) -> Any:
    """The states of the subgraphs that are under way."""
    return tasks_of(graph.get_state(CONFIG, subgraphs=True))


async def subgraph_that_asks(saver: Any, by: Runner) -> Any:
    return await _ask_nested(saver, by, nested(memory=False))


async def subgraph_in_a_subgraph_that_asks(saver: Any, by: Runner) -> Any:
    return await _ask_nested(saver, by, nested(memory=False, depth=3))


async def subgraph_with_a_memory(saver: Any, by: Runner) -> Any:
    return await _ask_nested(saver, by, nested(memory=True))


async def changed_in_a_subgraph(saver: Any, by: Runner) -> Any:
    """The state of a subgraph that waits is changed from outside."""
    graph = nested(memory=False).compile(checkpointer=saver)
    await by.run(graph, say("go"))
    inside = graph.get_state(CONFIG, subgraphs=True).tasks[0].state.config
    await by.update(graph, inside, {"log": ["by hand"]})
    return graph, [inner_state(graph), await by.run(graph, Command(resume="so"))]


async def functions(saver: Any, by: Runner) -> Any:
    """The functional API: a task that is done does not run again when its entrypoint goes on."""
    ran: list[str] = []

    @task
    def shout(text: str) -> str:
        ran.append(text)
        return text.upper()

    @entrypoint(checkpointer=saver)
    def loud(text: str, *, previous: Any = None) -> str:
        return f"{previous or ''}{shout(text).result()}{interrupt('end?')}"

    found = []
    for text in ("a", "b"):
        await by.run(loud, text)
        found.append(await by.run(loud, Command(resume="!")))
    return loud, [*found, ran]


async def tool_answers(saver: Any, by: Runner) -> Any:
    """Messages without an id, which the reducer gives them in place; contents changed in place."""

    def ask(state: State) -> dict[str, Any]:
        call = {"name": "f", "args": {"n": len(state["messages"])}, "id": f"c{len(state['messages'])}"}
        return {"messages": [AIMessage("", tool_calls=[call], id=f"ask-{len(state['messages'])}")]}

    def answer(state: State) -> dict[str, Any]:
        state["messages"][0].additional_kwargs["seen"] = len(state["messages"])
        call = state["messages"][-1].tool_calls[0]  # type: ignore[union-attr]
        return {"messages": [ToolMessage("done", tool_call_id=call["id"], artifact={"n": (1, b"\x00")})]}

    builder = StateGraph(State).add_node("ask", ask).add_node("answer", answer)
    graph = builder.add_edge(START, "ask").add_edge("ask", "answer").compile(checkpointer=saver)
    return graph, [await by.run(graph, say(f"turn {turn}")) for turn in range(3)]


SCENARIOS: list[Callable[[Any, Runner], Awaitable[tuple[Any, Any]]]] = [
    turns, edits, forks, copied_as_it_was, many_updates, fan_out, fan_out_that_fails, parallel_that_fails,
    failed_then_new_input, retried_by_policy, asked, asked_side_by_side, commands, subgraph_that_asks,
    subgraph_in_a_subgraph_that_asks, subgraph_with_a_memory, changed_in_a_subgraph, functions, tool_answers,
]  # fmt: skip
UNDEFINED = (
    ("exit", forks),  # there is no history to go back in
    ("exit", copied_as_it_was),
    ("async", tool_answers),  # what is changed in place may be stored before or after
)
RACING = (fan_out_that_fails, parallel_that_fails)  # which branch is done when another fails is chance


# What is seen of a thread


def plain(value: Any) -> Any:
    """A value without what is chance in it: ids that were made up."""
    if isinstance(value, ToolMessage):
        return "tool", value.content, value.tool_call_id, value.artifact
    if isinstance(value, Interrupt):
        return "interrupt", value.value
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def tasks_of(state: Any) -> Any:
    """What is to be done next, in the order it is told; the state of subgraphs with it."""
    return [
        (each.name, each.error and str(each.error), plain(each.interrupts), plain(each.result), inside(each.state))
        for each in state.tasks
    ]


def inside(state: Any) -> Any:
    """A subgraph's state; without ``subgraphs=True`` there is only a config that leads to it."""
    return (plain(state.values), state.next, tasks_of(state)) if isinstance(state, StateSnapshot) else None


def seen(states: list[Any], *, tasks: bool = True) -> list[Any]:
    """A thread's whole history: each state, and which one it came from by its place in the history."""
    places = {state.config["configurable"]["checkpoint_id"]: place for place, state in enumerate(states)}
    return [
        (
            plain(state.values),
            state.next,
            {name: state.metadata.get(name) for name in ("source", "step")},
            places.get((state.parent_config or {"configurable": {}})["configurable"].get("checkpoint_id")),
            tasks_of(state) if tasks else None,
        )
        for state in states
    ]
