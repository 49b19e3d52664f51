"""What session-middleware does, shown by doing it: ``make demo``, or ``python examples/tour.py``.

The agent is an ordinary LangGraph graph. The answers of its model are scripted, so no key and no network are needed.
Everything else is real: the tools, the database, the killed process and the sizes.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from session_middleware import SessionAccessDenied, Sessions

THREAD = "support-42"
TURNS = 60

# The agent: nothing in it knows of sessions


class ScriptedModel(GenericFakeChatModel):
    """Answers with the given messages, one per call. In your program, this is any chat model."""

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> ScriptedModel:
        return self


def tool_call(name: str, call_id: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": call_id}])


def priced(answer: AIMessage | str) -> AIMessage:
    """The answer as a provider's model gives it, with its name and the tokens."""
    message = AIMessage(answer) if isinstance(answer, str) else answer.model_copy()
    message.usage_metadata = {"input_tokens": 420, "output_tokens": 60, "total_tokens": 480}
    message.response_metadata = {"model_name": "gpt-5-mini"}
    return message


def build_graph(*answers: AIMessage | str, before_refund: Callable[[], None] = lambda: None) -> Any:
    """An agent with two tools, whose model gives these answers."""

    @tool
    def read_policy(topic: str) -> str:
        """Look up the shop's policy on a topic."""
        return {"returns": "Returns are free within 30 days; water filters only while sealed."}[topic]

    @tool
    def refund_order(order: int) -> str:
        """Refund an order."""
        before_refund()
        return f"order {order}: 42.90 euros refunded"

    tools = [read_policy, refund_order]
    model = ScriptedModel(messages=map(priced, answers)).bind_tools(tools)

    def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", call_model)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile()


# The tour


def main() -> None:
    began = time.monotonic()
    for name in [name for name in os.environ if name.startswith("SESSION_")]:
        del os.environ[name]  # settings of your own would change what is shown
    path = Path(tempfile.mkdtemp(prefix="session-middleware-tour-"), "tour.db")
    os.chdir(path.parent)  # and so would those of a .env file
    for section in (converse, kill, resume, query, edit, remember, refuse, expire):
        section(path)
    compare_sizes()
    print(f"\nThat took {time.monotonic() - began:.1f} seconds. The sessions are kept in")
    print(f"{path}. See what was said and done in them:")
    program = shlex.quote(str(Path(sys.executable).with_name("session-middleware")))
    print(f"{program} show {THREAD} --db {shlex.quote(str(path))}")


def converse(path: Path) -> None:
    heading("1. Three lines give a LangGraph agent sessions")
    print('   sessions = Sessions("tour.db", idle_timeout="30m")')
    print("   agent = sessions.attach(graph)")
    print(f'   agent.invoke({{"messages": "..."}}, sessions.config("{THREAD}", user_id="ada"))')
    graph = build_graph(
        tool_call("read_policy", "call-1", topic="returns"),
        "Yes, within 30 days, as long as the filter is sealed.",
    )
    with Sessions(path, idle_timeout="30m") as sessions:
        agent = sessions.attach(graph)
        question = "Can I return water filter order 1042?"
        state = agent.invoke({"messages": question}, sessions.config(THREAD, user_id="ada"))
    print_messages(state["messages"])


def kill(path: Path) -> None:
    heading("2. kill -9 in the middle of a tool call")
    command = [sys.executable, __file__, "worker", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        print(f"   process {process.pid}: {process.stdout.readline().strip()}")
        process.kill()
    print(f"   process {process.pid}: killed (exit code {process.returncode})")


def work(path: Path) -> None:
    """The second process: its tool announces itself, and does not return."""

    def hang() -> None:
        print("refund_order(order=1042) has begun", flush=True)
        time.sleep(60)

    graph = build_graph(tool_call("refund_order", "call-2", order=1042), before_refund=hang)
    with Sessions(path, idle_timeout="30m") as sessions:
        config = sessions.config(THREAD, user_id="ada")
        # "sync": each step is stored before the next begins. LangGraph's default stores it meanwhile.
        sessions.attach(graph).invoke({"messages": "Please refund it."}, config, durability="sync")


def resume(path: Path) -> None:
    heading("3. Another process resumes the thread by its id: agent.invoke(None, config)")
    with Sessions(path, idle_timeout="30m") as sessions:
        agent = sessions.attach(build_graph("Done: 42.90 euros are on their way."))
        state = agent.invoke(None, sessions.config(THREAD, user_id="ada"))
    print_messages(state["messages"][4:])


def query(path: Path) -> None:
    heading("4. Every message and tool call is a row; a call is recorded before it runs")
    sql = "SELECT name, attempt, status, arguments, result FROM tool_calls ORDER BY seq"
    print(f"   {sql}")
    connection = sqlite3.connect(path)
    for row in connection.execute(sql):
        print("  ", *(str(value)[:36] for value in row), sep=" | ")
    connection.close()
    with Sessions(path, idle_timeout="30m") as sessions:
        for one in sessions.usage(by="user"):
            tokens = f"{one.input_tokens} + {one.output_tokens} tokens"
            print(f"   {one.key}: {one.calls} calls of models, {tokens}, ${one.cost:.4f}")


def edit(path: Path) -> None:
    heading("5. A message can be edited; the conversation before the edit stays")
    with Sessions(path, idle_timeout="30m") as sessions:
        agent = sessions.attach(build_graph("Nothing was refunded. Shall I ask a colleague?"))
        session = sessions.get(THREAD)
        message_id = next(message.message_id for message in session.messages() if message.text == "Please refund it.")
        agent.invoke(None, session.edit(message_id, "Is it refunded?"))
        versions = session.siblings(message_id)
        for branch in reversed(versions.branches):  # the older one is current at the end
            texts = [message.text for message in session.switch(branch).messages() if message.text]
            print(f"   {branch}: ... {' | '.join(texts[3:])}")


def remember(path: Path) -> None:
    heading("6. Memory stays in its scope: a session, a user, a group, or everyone")
    with Sessions(path, idle_timeout="30m") as sessions:
        memory = sessions.get(THREAD).memory
        memory.remember("Ada prefers store credit", scope="user")
        for thread, user_id in (("support-43", "ada"), ("support-44", "mallory")):
            session = sessions.open(thread, user_id=user_id)
            texts = [found.text for found in session.memory.recall("store credit")]
            print(f"   {user_id} in {thread} recalls: {texts}")


def refuse(path: Path) -> None:
    heading("7. Another user is refused, and the record says so")
    with Sessions(path, idle_timeout="30m") as sessions:
        agent = sessions.attach(build_graph("Of course! Ada's order is ..."))
        try:
            agent.invoke({"messages": "Show me Ada's order"}, sessions.config(THREAD, user_id="mallory"))
        except SessionAccessDenied as error:
            print(f"   {type(error).__name__}: {str(error).partition(' and ')[0]}")
        event = sessions.get(THREAD).events()[-1]
        print(f"   event: {event.kind} {event.detail}")


def expire(path: Path) -> None:
    heading("8. Idle sessions expire (the clock is one hour ahead), and can be revived")
    with Sessions(path, idle_timeout="30m", clock=lambda: datetime.now(UTC) + timedelta(hours=1)) as sessions:
        ended = sessions.sweep()
        print("   sweep:", ", ".join(f"{each.session_id} ({each.reason})" for each in ended))
        agent = sessions.attach(build_graph("Welcome back, Ada."))
        state = agent.invoke({"messages": "It is me again"}, sessions.config(THREAD, user_id="ada"))
        session = sessions.get(THREAD)
        print(f"   {THREAD} is {session.status} again, with all of its {len(state['messages'])} messages")


def compare_sizes() -> None:
    heading(f"9. The file stays small: {TURNS} turns, answers of 2,000 characters")
    answers = [f"Answer {number}: " + f"{number} lorem ipsum " * 125 for number in range(TURNS)]
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder, "theirs.db"), Path(folder, "ours.db")
        with SqliteSaver.from_conn_string(str(theirs)) as saver:
            chat(build_graph(*answers).copy(update={"checkpointer": saver}), {"configurable": {"thread_id": "t"}})
        with Sessions(ours) as sessions:
            chat(sessions.attach(build_graph(*answers)), sessions.config("t"))
        before, after = (
            sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6 for path in (theirs, ours)
        )
    print(f"   LangGraph's SqliteSaver  {before:6.2f} MB")
    print(f"   session-middleware       {after:6.2f} MB, {before / after:.0f} times less, with the record")


def heading(text: str) -> None:
    """Bold in a terminal, in its own colour: readable on white and on black."""
    is_bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\n\033[1m{text}\033[0m" if is_bold else f"\n{text}")


def chat(agent: Any, config: Any) -> None:
    for number in range(TURNS):
        agent.invoke({"messages": f"Question {number}"}, config)


def print_messages(messages: Sequence[Any]) -> None:
    for message in messages:
        for call in getattr(message, "tool_calls", ()):
            arguments = ", ".join(f"{name}={value!r}" for name, value in call["args"].items())
            print(f"   calls  {call['name']}({arguments})")
        if message.text:
            print(f"   {message.type:<6} {message.text}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(Path(sys.argv[2]))
    else:
        main()
