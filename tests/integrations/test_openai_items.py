"""OpenAI's Agents SDK keeps in our session what it keeps in its own; with any release of the SDK that we allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, SQLiteSession, Usage, function_tool
from agents.memory import Session as SessionProtocol
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from session_middleware import Sessions
from session_middleware.integrations.openai_agents import OpenAIAgentsSession


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class Asking(Model):
    """Asks for the weather, and says so."""

    def __init__(self) -> None:
        self._asked = False

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        call = ResponseFunctionToolCall(
            type="function_call", call_id="call-1", name="weather", arguments='{"city": "Rome"}'
        )
        text = ResponseOutputText(type="output_text", text="It is sunny", annotations=[])
        said = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
        output, self._asked = (said if self._asked else call), True
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing is streamed here")


async def test_a_run_keeps_the_same_items_as_in_the_sdks_own_session(tmp_path: Path) -> None:
    untraced = RunConfig(tracing_disabled=True)
    with Sessions(tmp_path / "sessions.db") as sessions:
        ours, theirs = OpenAIAgentsSession(sessions, "t", user_id="alice"), SQLiteSession("t")
        assert isinstance(ours, SessionProtocol)
        for session in (ours, theirs):
            for text in ("How is Rome?", "And now?"):
                agent = Agent(name="agent", model=Asking(), tools=[weather])
                await Runner.run(agent, text, session=session, run_config=untraced)
        items = await ours.get_items()
        assert items == await theirs.get_items()
        assert len(items) == 8
        found = sessions.get("t")
        assert (found.user_id, [call.result for call in found.tool_calls()]) == ("alice", ["sunny in Rome"] * 2)
        assert await ours.pop_item() == await theirs.pop_item()
        await ours.clear_session()
        assert await ours.get_items() == []
        theirs.close()
