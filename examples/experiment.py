"""An experiment: two prompts on the same questions, compared, priced, and run again from the record.

    python examples/experiment.py          # writes experiment.db; without a key and a network

Each variant is a session with tags and labels, so the results are rows that can be filtered, summed and plotted later.
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, SystemMessage
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions

QUESTIONS = ("What does shipping cost?", "How long do I have to return it?")
PROMPTS = {"short": "Answer in one sentence.", "kind": "You are kind. Answer fully."}
SCRIPT = {  # what the model answers under each prompt
    "short": ("4 euros.", "30 days."),
    "kind": ("Shipping is 4 euros, and free from 50 euros on.", "30 days. Take your time!"),
}


def build(prompt: str, model: Any) -> Any:
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke([SystemMessage(prompt), *state["messages"]])]}

    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()


def scripted(variant: str) -> Any:
    """Stands for a chat model: it answers with the script, and says what it has used."""
    usage = [
        {"input_tokens": 40, "output_tokens": len(text), "total_tokens": 40 + len(text)} for text in SCRIPT[variant]
    ]
    named: Any = {"model_name": "gpt-5-mini"}
    answers = [
        AIMessage(text, usage_metadata=used, response_metadata=named)
        for text, used in zip(SCRIPT[variant], usage, strict=True)
    ]
    return GenericFakeChatModel(messages=iter(answers))


def main(database: str = "experiment.db") -> None:
    with Sessions(database) as sessions:
        for variant, prompt in PROMPTS.items():
            sessions.open(variant, tags=["shipping-1"], metadata={"prompt": prompt}, user_id="lab")
            agent = sessions.attach(build(prompt, scripted(variant)))
            for question in QUESTIONS:
                config = sessions.config(variant, user_id="lab")
                agent.invoke({"messages": question}, {**config, "tags": [variant]})

        print("Compared\n")
        comparison = sessions.get("short").compare("kind")
        print(comparison)

        print("\nTokens and cost\n")
        for one in sessions.usage(by="session", tags=["shipping-1"]):
            cost = "unknown" if one.cost is None else f"${one.cost:.6f}"
            print(f"{one.key:<6} {one.calls} calls, {one.input_tokens} + {one.output_tokens} tokens, {cost}")

        print("\nRun again with the recorded answers: nothing is called, and nothing is paid\n")
        replay = sessions.replay("kind")
        again = build(PROMPTS["kind"], replay.model())
        messages: list[Any] = []
        for message in replay.inputs:
            messages = again.invoke({"messages": [*messages, message]})["messages"]
        print(replay.report())


if __name__ == "__main__":
    main(*sys.argv[1:2])
