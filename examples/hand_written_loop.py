"""A loop without a framework: messages, tools with errors and retries, tokens, and continuing after a crash.

    python examples/hand_written_loop.py            # twice: the second run resumes the session

`complete` stands for the client of a model, such as OpenAI's; its answers are scripted, so no key is needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from session_middleware import Session, Sessions

Message = dict[str, Any]


def complete(messages: list[Message]) -> tuple[Message, dict[str, int]]:
    """The answer of a model to a conversation, and its usage."""
    said = [message for message in messages if message["role"] == "assistant"]
    since = [message["role"] for message in messages[-2:]]
    if messages[-1]["role"] == "user":
        arguments = json.dumps({"city": messages[-1]["content"].split()[-1].strip("?")})
        function = {"name": "weather", "arguments": arguments}
        call = {"id": f"call-{len(said)}", "type": "function", "function": function}
        answer: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    else:
        answer = {"role": "assistant", "content": f"They say: {messages[-1]['content']}"}
    return answer, {"prompt_tokens": 10 * len(messages), "completion_tokens": 4 * len(since)}


class Agent:
    """The loop. All it needs to continue is in the session, so it can be created again at any time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tools: dict[str, Callable[..., Any]] = {"weather": session.tool(weather)}

    def answer(self, text: str) -> str:
        with self.session:  # a run: it is in the record, with its outcome
            self.session.repair()  # answers the calls that a killed process left open
            messages = self.history()
            self._say(messages, {"role": "user", "content": text})
            while True:
                message, usage = complete(messages)
                self.session.record_model_call("gpt-5-mini", usage=usage)
                self._say(messages, message)
                if not message.get("tool_calls"):
                    return str(message["content"])
                for call in message["tool_calls"]:
                    self._say(messages, self._executed(call))

    def history(self) -> list[Message]:
        """The conversation so far, as a model takes it."""
        found = []
        for message in self.session.messages():
            said: Message = {"role": message.role, "content": message.text}
            if message.tool_calls:
                said["tool_calls"] = [
                    {
                        "id": call["id"],
                        "type": "function",
                        "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
                    }
                    for call in message.tool_calls
                ]
            if message.tool_call_id:
                said["tool_call_id"] = message.tool_call_id
            found.append(said)
        return found

    def _say(self, messages: list[Message], message: Message) -> None:
        messages.append(message)
        self.session.add(message)

    def _executed(self, call: dict[str, Any]) -> Message:
        tool, arguments = self.tools[call["function"]["name"]], json.loads(call["function"]["arguments"])
        for attempt in (1, 2):  # each is a row of `tool_calls`
            try:
                result = tool(**arguments, tool_call_id=call["id"])
                break
            except ConnectionError as error:
                result = f"failed: {error}"
                if attempt == 2:
                    break
        return {"role": "tool", "content": str(result), "tool_call_id": call["id"]}


_failures = iter([ConnectionError("no route")])  # of the first call only


def weather(city: str) -> str:
    if (error := next(_failures, None)) is not None:
        raise error
    return f"sun in {city}"


def main(database: str = "loop.db") -> None:
    with Sessions(database) as sessions:
        session = sessions.open("weather", user_id="ada")
        print(f"session {session.id!r}: {session.opened_as}, {session.message_count} messages")
        agent = Agent(session)
        for text in ("How is the weather in Rome?", "And in Oslo?"):
            print("user      ", text)
            print("assistant ", agent.answer(text))
        for call in session.tool_calls():
            print(
                "tool      ", call.name, call.arguments, "attempt", call.attempt, call.status, call.error or call.result
            )
        stats = session.stats()
        print(f"{stats.input_tokens} + {stats.output_tokens} tokens, ${stats.cost:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
