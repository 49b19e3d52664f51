"""A supervisor with two workers, one of which may pay only what a person has approved.

    python examples/supervisor.py          # twice: the second run approves what the first one asked

The first process asks and ends. Any other process finds what waits, and answers. The answers of the models are
scripted, so no key is needed.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from session_middleware import Session, Sessions

LIMIT = 100  # euros, above which a person decides
Worker = Literal["researcher", "cashier"]


def supervisor(state: MessagesState) -> Command[Worker | Literal["__end__"]]:
    """Decide who works next. In your program, a model does."""
    done = {message.name for message in state["messages"]}
    if "researcher" not in done:
        return Command(goto="researcher")
    if "cashier" not in done:
        return Command(goto="cashier")
    return Command(goto="__end__")


def researcher(state: MessagesState) -> Command[Literal["supervisor"]]:
    found = AIMessage("Invoice 7 is over 240 euros, from a supplier that we know.", name="researcher")
    return Command(goto="supervisor", update={"messages": [found]})


def cashier(state: MessagesState) -> dict[str, Any]:
    """A worker with a graph of its own; its question stops the whole run."""
    amount = 240
    decision = interrupt({"pay": amount, "to": "supplier 12"}) if amount > LIMIT else {"approved": True}
    text = f"Paid {amount} euros." if decision["approved"] else f"Not paid: {decision.get('why', 'refused')}."
    return {"messages": [AIMessage(text, name="cashier")]}


def build() -> Any:
    pay = StateGraph(MessagesState).add_node("pay", cashier).add_edge(START, "pay").compile()
    graph = StateGraph(MessagesState)
    graph.add_node("supervisor", supervisor).add_node("researcher", researcher).add_node("cashier", pay)
    graph.add_edge(START, "supervisor").add_edge("cashier", "supervisor")
    return graph.compile()


def ask(agent: Any, sessions: Sessions) -> None:
    """An employee hands in an invoice. The session belongs to the employee, and to the finance team."""
    sessions.open("invoice-7", user_id="erin", group_id="finance", visibility="group-write", tags=["invoices"])
    config = sessions.config("invoice-7", user_id="erin", group_id="finance")
    agent.invoke({"messages": [HumanMessage("Pay invoice 7")]}, config)


def approve(agent: Any, waiting: list[Session], sessions: Sessions) -> None:
    """A member of the finance team decides what waits. It is on record who did."""
    bob = sessions.for_user("bob", ["finance"])
    for session in waiting:
        for question in bob.get(session.id).waiting_for():
            print(f"{session.id}: {question.asked}")
            agent.invoke(Command(resume={"approved": True}), bob.config(session.id))


def main(database: str = "supervisor.db") -> None:
    with Sessions(database) as sessions:
        agent = sessions.attach(build())
        waiting = sessions.list(waiting=True, tags=["invoices"])
        if waiting:
            approve(agent, waiting, sessions)
        else:
            ask(agent, sessions)
        session = sessions.get("invoice-7")
        print(f"{session.id}: {session.status}, {session.waiting_count} waiting, runs:", end=" ")
        print(", ".join(f"{run.user_id} {run.outcome}" for run in session.runs()))
        for message in session.messages():
            print(f"  {message.name or message.role}: {message.text}")
        for question in session.questions():
            outcome = f"{question.answer} by {question.answered_by}" if question.answered_by else question.status
            print(f"  {question.value} → {outcome}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
