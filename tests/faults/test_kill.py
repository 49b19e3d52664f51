"""What was acknowledged is there after ``kill -9``, and session, record and checkpoint agree.

A few rounds by default; many with ``SESSION_FAULT_ROUNDS=200``.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from session_middleware import Sessions
from session_middleware.storage.record_entries import ASIDE
from tests.support import agents
from tests.support.disk import read_log
from tests.support.marked_writer import calls_in
from tests.support.pairwise import ENGINES, pairwise
from tests.support.processes import Process, run
from tests.support.writer import graph

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "2"))
WRITER = Path(__file__).parents[1] / "support" / "writer.py"


def run_and_kill(path: Path, round_: int, durability: str, mode: str, turns: int) -> int:
    """The last turn that was acknowledged before the process was killed, in the middle of a later one."""
    process = Process(WRITER, path, round_, durability, mode)
    last = -1
    for line in process.stdout:
        last = int(line)
        if last >= turns:
            process.kill()
            break
    last = max([last, *(int(line) for line in process.stdout)])
    assert process.wait() != 0
    process.close()
    return last


@pytest.mark.parametrize(("durability", "mode"), [("sync", "sync"), ("sync", "async"), ("async", "sync")])
def test_nothing_acknowledged_is_lost(tmp_path: Path, durability: str, mode: str) -> None:
    path = tmp_path / "sessions.db"
    acknowledged = []
    for round_ in range(ROUNDS):
        last = run_and_kill(path, round_, durability, mode, random.randrange(1, 12))
        acknowledged += [f"{round_}-{turn}" for turn in range(last + 1)]
    with Sessions(path) as sessions:
        agent = sessions.attach(graph().compile())
        config = sessions.config("t", user_id="ada")
        agent.invoke(None, config)  # finishes what was cut off
        state = [m.id for m in agent.get_state(config).values["messages"]]
        recorded = [m.message_id for m in sessions.get("t").messages() if ASIDE not in m.flags]
        calls = sessions.get("t").tool_calls()
    assert set(acknowledged) <= set(state)
    assert len(recorded) == len(set(recorded))
    assert set(state) == set(recorded)
    assert {f"call-{message_id}" for message_id in acknowledged} <= {c.tool_call_id for c in calls if c.status == "ok"}
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


class Tasks(BaseCallbackHandler):
    """The ids of the tasks that ran."""

    run_inline = True

    def __init__(self) -> None:
        self.ran: set[str] = set()

    def on_chain_start(self, *args: Any, metadata: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.ran.add((metadata or {}).get("langgraph_checkpoint_ns", "").rpartition(":")[2])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_task_whose_writes_were_acknowledged_does_not_run_again(mode: str, tmp_path: Path) -> None:
    waiting = round_ = 0
    while round_ < ROUNDS or (not waiting and round_ < ROUNDS + 20):  # until it hit a run with something left to do
        round_ += 1
        path, log = tmp_path / f"{round_}.db", tmp_path / f"{round_}.log"
        command = (WRITER.with_name("marked_writer.py"), path, log, "full", mode, random.randrange(8, 120))
        assert run(*command).returncode == -signal.SIGKILL
        calls = calls_in(read_log(log)).values()
        written = {call.given[1] for call in calls if call.kind == "writes" and call.done < float("inf")}
        tasks = Tasks()
        with Sessions(path) as sessions:
            agent = sessions.attach(graph().compile())
            for thread_id in {call.thread_id for call in calls}:
                config = sessions.config(thread_id)
                if sessions.checkpointer.get_tuple(config) is None:  # killed before the first of it, or it was deleted
                    mine = [call for call in calls if call.thread_id == thread_id]
                    deleted = max((call.begun for call in mine if call.kind == "delete"), default=-1)
                    assert all(
                        call.done == float("inf") for call in mine if call.kind == "put" and call.begun > deleted
                    )
                    continue
                waiting += len(agent.get_state(config).next)
                agent.invoke(None, {**config, "callbacks": [tasks]})
                assert agent.get_state(config).next == ()
                state = [message.id for message in agent.get_state(config).values["messages"]]
                assert [message.message_id for message in sessions.get(thread_id).messages()] == state
        assert not written & tasks.ran
    assert waiting


def test_a_tool_cut_off_by_a_kill_is_recorded_as_interrupted(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(CUT_OFF)
    path = tmp_path / "sessions.db"
    assert run(script, path, "die").returncode == -signal.SIGKILL
    with Sessions(path) as sessions:
        [call] = sessions.get("t").tool_calls()
        assert (call.status, call.name, call.arguments) == ("interrupted", "work", {"how": "die"})
        assert sessions.get("t").runs()[-1].outcome == "interrupted"
    run(script, path, "live", check=True)
    with Sessions(path) as sessions:
        assert [run.outcome for run in sessions.get("t").runs()] == ["interrupted", "ok"]
        first, second = sessions.get("t").tool_calls()
        assert (first.status, first.attempt) == ("interrupted", 1)
        assert (second.status, second.attempt, second.result) == ("ok", 2, "done")
        assert sessions.get("t").opened_as == "resumed"
        assert [m.role for m in sessions.get("t").messages()] == ["user", "assistant", "tool", "assistant"]


CUT_OFF = '''
import os, signal, sys
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from session_middleware import Sessions

@tool
def work(how: str) -> str:
    """Work."""
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"

def model(state):
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [AIMessage("finished")]}
    return {"messages": [AIMessage("", tool_calls=[{"name": "work", "args": {"how": "die"}, "id": "c"}])]}

builder = StateGraph(MessagesState)
builder.add_node("model", model)
builder.add_node("tools", ToolNode([work]))
builder.add_edge(START, "model")
builder.add_conditional_edges("model", tools_condition)
builder.add_edge("tools", "model")
sessions = Sessions(sys.argv[1])
agent = sessions.attach(builder.compile())
config = sessions.config("t")
agent.invoke({"messages": "go"} if sys.argv[2] == "die" else None, config, durability="sync")
sessions.close()
'''


DIES_IN_A_TOOL = """
import os, signal, sys
from langchain_core.tools import tool
from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import human

@tool
def look_up(thing: str) -> str:
    "What a thing is."
    os.kill(os.getpid(), signal.SIGKILL)

path, durability, turns = sys.argv[1:]
sessions = Sessions(path)
graph = sessions.attach(agents.tool_graph(look_up))
for turn in range(int(turns)):
    graph.invoke(human(f"hello {turn}"), sessions.config("t"), durability=durability)
graph.invoke(human("look up tea"), sessions.config("t"), durability=durability)
"""


@pairwise(turns=[0, 1], durability=["sync", "exit"], next_input=[None, "what is left?"], sweeps=[True, False])
def test_the_history_is_what_the_state_has_after_a_process_was_killed_in_a_run(
    tmp_path: Path, durability: str, turns: int, next_input: str | None, sweeps: bool
) -> None:
    path = tmp_path / "sessions.db"
    assert run("-c", DIES_IN_A_TOOL, path, durability, turns).returncode != 0
    with Sessions(path) as sessions:
        session, agent = sessions.get("t"), sessions.attach(agents.tool_graph())
        config: Any = sessions.config("t")

        def has_the_state() -> bool:
            state = [(m.type, m.text) for m in agent.get_state(config).values.get("messages", [])]
            return [(m.type, m.text) for m in session.history().messages] == state

        recorded = [m.text for m in session.messages()]
        assert len(recorded) == 2 * turns + 2
        assert has_the_state()
        if sweeps:
            sessions.sweep()
            assert has_the_state()
            assert sessions.check() == []
        if next_input is None and (turns or durability == "sync"):
            agent.invoke(None, config)
        else:
            agent.invoke(agents.human(next_input or "hello again"), config)
        assert has_the_state()
        assert [m.text for m in session.messages()][: len(recorded)] == recorded


DIES_BEFORE_A_CHECKPOINT = """
import os, sys, threading
from langchain_core.tools import tool
from session_middleware import Sessions
from session_middleware.checkpoint.saver import SessionSaver
from tests.support import agents

wrote, began = threading.Event(), threading.Event()

@tool
def look_up(thing: str) -> str:
    "What a thing is."
    began.set()
    threading.Event().wait()

class Saver(SessionSaver):
    def put_writes(self, config, writes, *args):
        super().put_writes(config, writes, *args)
        if any(agents.requests_a_tool(value) for _, value in writes):
            wrote.set()

    def put(self, config, checkpoint, *args):
        if agents.requests_a_tool(checkpoint["channel_values"].get("messages")):
            wrote.wait()
            began.wait()
            os._exit(9)
        return super().put(config, checkpoint, *args)

url, turns = sys.argv[1:]
sessions = Sessions(url)
graph = sessions.attach(agents.tool_graph(look_up))
graph.checkpointer.__class__ = Saver
for turn in range(int(turns)):
    graph.invoke(agents.human(f"hello {turn}"), sessions.config("t"))
graph.invoke(agents.human("look up tea"), sessions.config("t"), durability="async")
"""


@pairwise(
    parts=["attached", "checkpointer"],
    runner=[agents.invoke, agents.ainvoke],
    turns=[0, 1],
    sweeps=[True, False],
    each_engine=ENGINES,
)
async def test_new_input_discards_the_pending_writes_of_a_killed_run_from_the_record_too(
    each_engine: str, parts: str, runner: agents.Runner, turns: int, sweeps: bool
) -> None:
    assert run("-c", DIES_BEFORE_A_CHECKPOINT, each_engine, turns).returncode == 9
    with Sessions(each_engine) as sessions:
        agent = sessions.attach(agents.tool_graph(), recorder=parts == "attached")
        config: Any = sessions.config("t")
        before = sessions.get("t").messages()
        if sweeps:
            sessions.sweep()
        await runner(agent, agents.human("what is left?"), config)
        state = [m.id for m in agent.get_state(config).values["messages"]]
        recorded = sessions.get("t").messages()
    assert [m.message_id for m in recorded if ASIDE not in m.flags] == state
    assert [m.message_id for m in recorded[: len(before)]] == [m.message_id for m in before]
    assert [m.role for m in recorded if ASIDE in m.flags] == ["assistant"]


DIES_IN_A_NODE = """
import os, sys
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from session_middleware import Sessions
from tests.support import agents

url, durability, inner = sys.argv[1:]
builder = StateGraph(MessagesState).add_node("say", lambda _: {"messages": [AIMessage("hello")]})
builder.add_node("die", lambda _: os._exit(9)).add_edge(START, "say").add_edge("say", "die")
graph = builder.compile()
if inner == "True":
    graph = StateGraph(MessagesState).add_node("inner", graph).add_edge(START, "inner").compile()
sessions = Sessions(url)
sessions.attach(graph).invoke(agents.human("hi"), sessions.config("t"), durability=durability)
"""


@pairwise(inner=[False, True], durability=["sync", "exit"], each_engine=ENGINES)
def test_what_was_said_before_a_kill_is_recorded_for_each_durability(
    each_engine: str, durability: str, inner: bool
) -> None:
    assert run("-c", DIES_IN_A_NODE, each_engine, durability, inner).returncode == 9
    with Sessions(each_engine) as sessions:
        assert agents.said(sessions.get("t")) == [("user", "hi"), ("assistant", "hello")]
        assert [each.outcome for each in sessions.get("t").runs()] == ["interrupted"]
