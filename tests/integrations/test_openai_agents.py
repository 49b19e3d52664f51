"""OpenAI's Agents SDK, by its own `Runner` and its own scripted model."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from agents import (
    Agent,
    AgentsException,
    GuardrailFunctionOutput,
    ModelRetrySettings,
    ModelSettings,
    RunConfig,
    Runner,
    RunState,
    SQLiteSession,
    function_tool,
    input_guardrail,
    output_guardrail,
)
from agents.memory import Session as SessionProtocol
from agents.memory import SessionSettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import BadRequestError, OpenAIError

from session_middleware import SessionAccessDenied, SessionExpired, Sessions, UnserializableValue
from session_middleware.integrations.openai_agents import OpenAIAgentsSession
from tests.support import processes
from tests.support.agents import said

QUIET = RunConfig(tracing_disabled=True)
ITEMS: list[Any] = [
    {"role": "user", "content": "hi"},
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "x"}],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": None},
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "price", "arguments": '{"thing": "tea"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "3"},
    {"type": "function_call", "call_id": "c2", "name": "price", "arguments": "{broken"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "output_text", "text": "no"}]},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    | {"content": [{"type": "output_text", "text": "tea is 3", "annotations": []}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    {"role": "developer", "content": "be kind \ud800 ☕"},
]


@function_tool
def price(thing: str) -> str:
    """What a thing costs."""
    return f"{thing}: 3"


def agent(*steps: Any) -> Agent[Any]:
    return Agent(name="shop", model=ScriptedModel(list(steps)), tools=[price])


def kinds(items: list[Any]) -> list[str]:
    return [item.get("type", item.get("role")) for item in items]


async def test_it_is_a_session_by_the_protocol(sessions: Sessions) -> None:
    assert isinstance(OpenAIAgentsSession(sessions), SessionProtocol)


async def test_a_conversation_goes_on_where_it_was(sessions: Sessions) -> None:
    shop = agent([function_call("price", {"thing": "tea"}, call_id="c1")], [assistant_message("3, please")])
    await Runner.run(shop, "how much is tea?", session=OpenAIAgentsSession(sessions, "t"), run_config=QUIET)

    later = agent([assistant_message("as I said")])
    await Runner.run(later, "and now?", session=OpenAIAgentsSession(sessions, "t"), run_config=QUIET)
    [call] = later.model.calls  # type: ignore[union-attr]
    assert kinds(call.input) == ["user", "function_call", "function_call_output", "message", "user"]

    session = sessions.get("t")
    assert said(session) == [
        ("user", "how much is tea?"),
        ("assistant", ""),
        ("tool", "tea: 3"),
        ("assistant", "3, please"),
        ("user", "and now?"),
        ("assistant", "as I said"),
    ]
    [tool_call] = session.tool_calls()
    assert (tool_call.name, tool_call.arguments, tool_call.result) == ("price", {"thing": "tea"}, "tea: 3")
    assert [event.kind for event in session.events()] == ["opened", "resumed"]


async def test_it_does_what_the_sdks_own_session_does(sessions: Sessions) -> None:
    """The same runs over both, and the same answers from both."""
    ours, theirs = OpenAIAgentsSession(sessions, "t"), SQLiteSession("t")
    for session in (ours, theirs):
        shop = agent([function_call("price", {"thing": "tea"}, call_id="c1")], [assistant_message("3", item_id="m1")])
        await Runner.run(shop, "how much?", session=session, run_config=QUIET)
        await session.add_items([{"role": "user", "content": "one more"}])
    assert await ours.get_items() == await theirs.get_items()
    for limit in (0, 1, 2, 100):
        assert await ours.get_items(limit) == await theirs.get_items(limit)
    for _ in range(6):
        assert await ours.pop_item() == await theirs.pop_item()
    await ours.clear_session()
    assert await ours.get_items() == []
    theirs.close()


@pytest.mark.parametrize("words", [None, "by no means"])
@pytest.mark.parametrize("formatted", [False, True])
async def test_a_tool_that_is_not_approved_is_refused(words: str | None, formatted: bool, sessions: Sessions) -> None:
    @function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        """Pays."""
        return f"paid {amount}"

    asked = [function_call("pay", {"amount": n}, call_id=f"c{n}") for n in (1, 2)]
    shop = Agent(name="shop", model=ScriptedModel([asked, [assistant_message("as you like")]]), tools=[pay])
    quiet = RunConfig(tracing_disabled=True, tool_error_formatter=(lambda _: "rather not") if formatted else None)
    stopped = await Runner.run(shop, "pay", session=OpenAIAgentsSession(sessions, "t"), run_config=quiet)
    state = stopped.to_state()
    state.reject(stopped.interruptions[0], rejection_message=words)
    state.approve(stopped.interruptions[1])
    await Runner.run(shop, state, session=OpenAIAgentsSession(sessions, "t"), run_config=quiet)
    found = [(call.arguments["amount"], call.status, call.error) for call in sessions.get("t").tool_calls()]
    assert found == [(1, "refused", None), (2, "ok", None)]
    assert sessions.get("t").error_count == 0


async def test_calls_with_one_id_are_executions_of_their_own(sessions: Sessions) -> None:
    items: list[Any] = [{"role": "user", "content": "hi"}]
    items += [{"type": "function_call", "call_id": "c", "name": "f", "arguments": f'{{"a": {n}}}'} for n in (1, 2)]
    items += [{"type": "function_call_output", "call_id": "c", "output": f"is {n}"} for n in (1, 2)]
    await OpenAIAgentsSession(sessions, "t").add_items(items)
    found = sessions.get("t").tool_calls()
    assert [(c.attempt, c.arguments, c.result) for c in found] == [(1, {"a": 1}, "is 1"), (1, {"a": 2}, "is 2")]


async def test_a_streamed_run_is_kept_as_well(sessions: Sessions) -> None:
    streamed = Runner.run_streamed(
        agent([assistant_message("hello")]), "hi", session=OpenAIAgentsSession(sessions, "t"), run_config=QUIET
    )
    async for _ in streamed.stream_events():
        pass
    assert said(sessions.get("t")) == [("user", "hi"), ("assistant", "hello")]


async def test_items_come_back_as_they_were_given(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    await session.add_items(ITEMS[:4])
    await session.add_items(ITEMS[4:])
    assert await OpenAIAgentsSession(sessions, "t").get_items() == ITEMS
    assert await session.get_items(3) == ITEMS[-3:]


async def test_each_item_is_a_message_of_the_record(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    await session.add_items(ITEMS)
    found = sessions.get("t").messages()
    assert [(m.role, m.text) for m in found] == [
        *[("user", "hi"), ("user", "look"), ("assistant", "hm"), ("assistant", ""), ("tool", "3"), ("assistant", "")],
        *[("tool", "no"), ("assistant", "tea is 3"), ("assistant", ""), ("system", "be kind \ufffd ☕")],
    ]
    assert found[3].tool_calls[0]["args"] == {"thing": "tea"}
    assert found[5].tool_calls[0]["args"] == {"arguments": "{broken"}
    assert [m.flags for m in found if m.flags] == [("item:reasoning",), ("item:web_search_call",), ("invalid:unicode",)]
    assert {call.tool_call_id: call.status for call in sessions.get("t").tool_calls()} == {"c1": "ok", "c2": "ok"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.fixed_dictionaries({"type": st.none() | st.text(), "x": json_values}) | json_values, max_size=5))
def test_whatever_is_json_comes_back(items: list[Any]) -> None:
    async def there_and_back() -> None:
        with Sessions(":memory:") as sessions:
            session = OpenAIAgentsSession(sessions, "t")
            await session.add_items(items)
            assert await session.get_items() == items
            assert sessions.recorder.faults == 0

    asyncio.run(there_and_back())


async def test_what_is_no_json_is_refused_and_nothing_of_it_is_kept(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    with pytest.raises(UnserializableValue, match="item 1"):
        await session.add_items([ITEMS[0], {"role": "user", "content": object()}])  # type: ignore[list-item]
    assert await session.get_items() == []


async def test_what_is_popped_or_cleared_stays_in_the_record_with_a_mark(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    await session.add_items(ITEMS[:3])
    assert await session.pop_item() == ITEMS[2]
    assert await session.get_items() == ITEMS[:2]
    await session.add_items(ITEMS[3:5])
    await session.clear_session()
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items(ITEMS[:1])
    assert await session.get_items() == ITEMS[:1]
    found = sessions.get("t").messages()
    assert [("removed" in message.flags) for message in found] == [True] * 5 + [False]
    assert found[0].text == "hi"


async def test_the_settings_limit_how_much_a_run_begins_with(sessions: Sessions) -> None:
    await OpenAIAgentsSession(sessions, "t").add_items(ITEMS[:2])
    session = OpenAIAgentsSession(sessions, "t", session_settings=SessionSettings(limit=1))
    assert await session.get_items() == ITEMS[1:2]
    assert await session.get_items(2) == ITEMS[:2]


async def test_another_user_is_refused(sessions: Sessions) -> None:
    own = OpenAIAgentsSession(sessions, "t", user_id="alice")
    await own.add_items(ITEMS[:2])
    for user_id in ("bob", None):
        other = OpenAIAgentsSession(sessions, "t", user_id=user_id)
        for attempt in (other.get_items, other.pop_item, other.clear_session, lambda o=other: o.add_items(ITEMS[:1])):
            with pytest.raises(SessionAccessDenied):
                await attempt()
        with pytest.raises(SessionAccessDenied):
            await Runner.run(agent([assistant_message("psst")]), "hi", session=other, run_config=QUIET)
    assert await own.get_items() == ITEMS[:2]
    assert sessions.get("t").message_count == 2


async def test_an_expired_session_does_what_on_resume_says(tmp_path: Path, clock: Any) -> None:
    for on_resume, items in (("revive", ITEMS[:2]), ("fresh", ITEMS[1:2])):
        with Sessions(tmp_path / f"{on_resume}.db", clock=clock, idle_timeout="1h", on_resume=on_resume) as sessions:
            session = OpenAIAgentsSession(sessions, "t")
            await session.add_items(ITEMS[:1])
            clock.advance(hours=2)
            assert await session.get_items() == (ITEMS[:1] if on_resume == "revive" else [])
            await session.add_items(ITEMS[1:2])
            assert await session.get_items() == items
    with Sessions(tmp_path / "reject.db", clock=clock, idle_timeout="1h", on_resume="reject") as sessions:
        session = OpenAIAgentsSession(sessions, "t")
        await session.add_items(ITEMS[:1])
        clock.advance(hours=2)
        with pytest.raises(SessionExpired):
            await session.get_items()


async def test_adding_at_once_keeps_each_call_together_and_loses_nothing(tmp_path: Path) -> None:
    doors = [Sessions(tmp_path / "sessions.db") for _ in range(3)]
    pairs = [[{"role": "user", "content": f"{n}a"}, {"role": "user", "content": f"{n}b"}] for n in range(30)]
    await asyncio.gather(*(OpenAIAgentsSession(doors[n % 3], "t").add_items(pair) for n, pair in enumerate(pairs)))  # type: ignore[arg-type]
    found: list[Any] = await OpenAIAgentsSession(doors[0], "t").get_items()
    assert sorted(found, key=lambda item: (int(item["content"][:-1]), item["content"])) == [i for p in pairs for i in p]
    assert all(found[n + 1]["content"] == found[n]["content"][:-1] + "b" for n in range(0, 60, 2))
    for sessions in doors:
        sessions.close()


async def test_only_one_of_many_pops_gets_an_item(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    await session.add_items(ITEMS)
    popped = await asyncio.gather(*(session.pop_item() for _ in range(len(ITEMS) + 3)))
    assert [item for item in popped if item is not None] == ITEMS[::-1]


async def test_redaction_is_of_the_record_and_not_of_the_conversation(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", redact=["emails"]) as sessions:
        session = OpenAIAgentsSession(sessions, "t")
        await session.add_items([{"role": "user", "content": "I am a@b.example"}])
        assert (await session.get_items())[0]["content"] == "I am a@b.example"  # type: ignore[typeddict-item]
        assert "a@b" not in sessions.get("t").messages()[0].text


async def test_without_tracking_the_conversation_goes_on_all_the_same(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", tracking=False) as sessions:
        session = OpenAIAgentsSession(sessions, "t")
        await session.add_items(ITEMS[:2])
        assert await session.pop_item() == ITEMS[1]
        assert await session.get_items() == ITEMS[:1]
        assert sessions.get("t").messages() == []


async def test_deleting_the_session_deletes_its_items(sessions: Sessions) -> None:
    session = OpenAIAgentsSession(sessions, "t")
    await session.add_items(ITEMS[:2])
    sessions.delete("t")
    assert await session.get_items() == []


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from session_middleware import Sessions\n"
        "from session_middleware.integrations.openai_agents import OpenAIAgentsSession\n"
        "session = OpenAIAgentsSession(Sessions(sys.argv[1]), 't')\n"
        "asyncio.run(session.add_items([{'role': 'user', 'content': 'hi'}]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = str(tmp_path / "sessions.db")
    assert processes.run("-c", code, path).returncode != 0
    with Sessions(path) as sessions:
        assert asyncio.run(OpenAIAgentsSession(sessions, "t").get_items()) == [{"role": "user", "content": "hi"}]


PICTURE = base64.b64encode(bytes(range(256)) * 400).decode()
WITH_FILES: dict[str, Any] = {
    "input_image": {
        "role": "user",
        "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}],
    },
    "input_file": {"role": "user", "content": [{"type": "input_file", "file_data": PICTURE, "filename": "a.pdf"}]},
    "screenshot": {"type": "computer_call_output", "call_id": "c1"}
    | {"output": {"type": "computer_screenshot", "image_url": f"data:image/png;base64,{PICTURE}"}},
    "generated": {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": PICTURE},
}


@pytest.mark.parametrize("item", WITH_FILES.values(), ids=WITH_FILES)
async def test_an_image_is_stored_once_and_comes_back_as_it_was_given(item: Any, tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        session = OpenAIAgentsSession(sessions, "t")
        await session.add_items([item, item])
        await session.add_items([item, {"role": "user", "content": "what is it?"}])
        assert await session.get_items() == [item, item, item, {"role": "user", "content": "what is it?"}]
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        (inline,) = connection.execute("SELECT SUM(length(item)) FROM conversation_items").fetchone()
        (told,) = connection.execute("SELECT SUM(length(content)) FROM messages").fetchone()
        (stored,) = connection.execute("SELECT SUM(length(data)) FROM files").fetchone()
    assert (inline < 1500, told < 1500, stored) == (True, True, 256 * 400)


async def test_a_file_stays_while_an_item_has_it(sessions: Sessions) -> None:
    item, session = WITH_FILES["input_image"], OpenAIAgentsSession(sessions, "t")
    await session.add_items([item, item])
    record = sessions.get("t")
    first, second = (message.message_id for message in record.messages())
    record.delete_message(first)
    assert await session.get_items() == [item]
    assert await session.pop_item() == item
    record.delete_message(second)
    assert record.file(f"sha256:{hashlib.sha256(bytes(range(256)) * 400).hexdigest()}") is None


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;charset=utf-8;base64,{PICTURE}",  # with a parameter that a hash does not keep
        PICTURE[:-2] + "x=",  # not as an encoder would have ended it
        f"sha256:{hashlib.sha256(bytes(range(256)) * 400).hexdigest()}",
    ],
    ids=["parameter", "ending", "name"],
)
async def test_what_only_looks_like_a_file_comes_back_as_it_was_given(text: str, sessions: Sessions) -> None:
    content = [{"type": "input_file", "file_data": text}, *WITH_FILES["input_file"]["content"]]
    session, item = OpenAIAgentsSession(sessions, "t"), {"role": "user", "content": content}
    await session.add_items([item, WITH_FILES["input_image"], {"role": "user", "content": text}])  # type: ignore[list-item]
    assert await session.get_items() == [item, WITH_FILES["input_image"], {"role": "user", "content": text}]


# What is held after runs that do not go as planned


@function_tool(failure_error_function=None)
def breaking(thing: str) -> str:
    """Ends the run."""
    raise RuntimeError(f"no {thing}")


@function_tool
def failing(thing: str) -> str:
    """Tells the model that it failed."""
    raise RuntimeError(f"no {thing}")


@function_tool(needs_approval=True)
def pay(thing: str) -> str:
    """Asks first."""
    return f"paid {thing}"


@input_guardrail(run_in_parallel=False)
async def no_question(context: Any, asked: Any, given: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@input_guardrail
async def no_question_meanwhile(context: Any, asked: Any, given: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@output_guardrail
async def no_answer(context: Any, asked: Any, output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


def shop(*steps: Any, **options: Any) -> Agent[Any]:
    options = {"name": "shop", "tools": [price, breaking, failing, pay], **options}
    return Agent(model=ScriptedModel(list(steps)), **options)


def call(name: str, call_id: str) -> Any:
    return function_call(name, {"thing": "tea"}, call_id=call_id, item_id=f"fc_{call_id}")


def say(text: str = "so it is") -> Any:
    return assistant_message(text, item_id=f"m_{text}")


class Runs:
    """Runs with one session, streamed or not; what a run ends with is given back, also an error."""

    def __init__(self, session: Any, *, streamed: bool) -> None:
        self.session = session
        self.streamed = streamed
        self.result: Any = None  # of the run in progress, if it is streamed

    async def __call__(self, agent: Agent[Any], given: Any = "how much?", **options: Any) -> Any:
        config = {"session": self.session, "run_config": QUIET, **options}
        try:
            if not self.streamed:
                return await Runner.run(agent, given, **config)
            self.result = Runner.run_streamed(agent, given, **config)
            async for _ in self.result.stream_events():
                pass
            return self.result
        except (AgentsException, OpenAIError, RuntimeError) as error:
            return error


async def _a_tool_that_ends_the_run(run: Runs) -> None:
    await run(shop([call("price", "c1")], [call("breaking", "c2")], [say()]))


async def _a_tool_that_fails(run: Runs) -> None:
    await run(shop([call("failing", "c1")], [call("price", "c2")], [say()]))


async def _a_model_that_fails(run: Runs) -> None:
    await run(shop(RuntimeError("no")))
    await run(shop([call("price", "c1")], RuntimeError("no")))


async def _too_many_turns(run: Runs) -> None:
    await run(shop(*([call("price", f"c{n}")] for n in range(3))), max_turns=2)


async def _a_guardrail_before(run: Runs) -> None:
    await run(shop([say("never")], input_guardrails=[no_question]))


async def _a_guardrail_beside(run: Runs) -> None:
    await run(shop([say("never")], input_guardrails=[no_question_meanwhile]))


async def _a_guardrail_behind(run: Runs) -> None:
    await run(shop([call("price", "c1")], [say("never")], output_guardrails=[no_answer]))


async def _a_handoff(run: Runs) -> None:
    other = shop([call("price", "c1")], [say("from the other")], name="other")
    await run(shop([function_call("transfer_to_other", {}, call_id="h1", item_id="h1")], handoffs=[other]))


async def _an_approval(run: Runs) -> None:
    asking = shop([call("pay", "c1"), call("pay", "c2"), call("price", "c3")], [say()])
    result = await run(asking)
    for answer in (RunState.approve, RunState.reject):  # one after the other
        state = result.to_state()
        answer(state, result.interruptions[0])
        result = await run(asking, state)


async def _an_approval_in_another_process(run: Runs) -> None:
    asking = shop([call("pay", "c1")], [say()])
    state = await RunState.from_json(asking, (await run(asking)).to_state().to_json())
    state.approve(state.get_interruptions()[0])
    await run(asking, state)


async def _an_approval_that_never_comes(run: Runs) -> None:
    await run(shop([call("pay", "c1")]))


async def _a_conversation_that_is_locked(run: Runs) -> None:
    response = httpx.Response(400, request=httpx.Request("POST", "http://x"))
    locked = BadRequestError("locked", response=response, body={"code": "conversation_locked"})
    await run(shop(locked, [call("price", "c1")], locked, [say()]))


async def _a_model_that_is_asked_again(run: Runs) -> None:
    again = ModelSettings(retry=ModelRetrySettings(max_retries=2, policy=lambda context: True))
    await run(shop(RuntimeError("1"), [call("price", "c1")], RuntimeError("2"), [say()], model_settings=again))


async def _an_input_of_several_items(run: Runs) -> None:
    await run(shop([say("one")]), [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


async def _a_run_that_stops_at_its_tool(run: Runs) -> None:
    await run(shop([call("price", "c1")], tool_use_behavior="stop_on_first_tool"))


async def _a_task_that_is_cancelled(run: Runs) -> None:
    begun = asyncio.Event()

    @function_tool
    async def waiting(thing: str) -> str:
        """Waits."""
        begun.set()
        await asyncio.Event().wait()
        return thing

    task = asyncio.ensure_future(run(shop([call("price", "c1"), call("waiting", "c2")], tools=[price, waiting])))
    await begun.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _writes_that_are_cancelled(run: Runs) -> None:
    for steps in range(6):
        task = asyncio.ensure_future(run.session.add_items([{"role": "user", "content": str(steps)}]))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _a_stream_that_is_cancelled(where: str, mode: Any) -> Any:
    async def story(run: Runs) -> None:
        def cancel(asked: Any) -> list[Any]:
            run.result.cancel(mode=mode)
            return [say("cancelled")]

        @function_tool
        async def cancelling(thing: str) -> str:
            """Has the run cancelled that it is called by."""
            run.result.cancel(mode=mode)
            return thing

        first = ModelStep.respond(cancel) if where == "the first model call" else [call("price", "c1")]
        second = [call("cancelling", "c2")] if where == "a tool" else ModelStep.respond(cancel)
        run.streamed = True
        await run(shop(first, second, [say()], tools=[price, cancelling]))

    return story


STORIES = {
    **{name[1:]: story for name, story in list(globals().items()) if name.startswith(("_a_", "_an_", "_too_", "_wri"))},
    **{
        f"a stream that is cancelled in {where}, {mode}": _a_stream_that_is_cancelled(where, mode)
        for where in ("the first model call", "a tool", "a later model call")
        for mode in ("immediate", "after_turn")
    },
}
del STORIES["a_stream_that_is_cancelled"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_it_holds_the_same_items_as_the_sdks_own_session(sessions: Sessions, story: Any, streamed: bool) -> None:
    ours = OpenAIAgentsSession(sessions, "t", session_settings={"limit": 50})
    theirs = SQLiteSession("t", session_settings=SessionSettings(limit=50))
    for session in (ours, theirs):
        run = Runs(session, streamed=streamed)
        await story(run)
        await run(shop([say("and on")]), "and now?")
    items = await theirs.get_items()
    assert await ours.get_items() == items
    assert kinds(items)[-1] == "message"
    theirs.close()


async def test_its_settings_may_be_a_dict(sessions: Sessions) -> None:
    await OpenAIAgentsSession(sessions, "t").add_items(ITEMS[:3])
    session = OpenAIAgentsSession(sessions, "t", session_settings={"limit": 1})
    assert session.session_settings == SessionSettings(limit=1)
    assert await session.get_items() == ITEMS[2:3]
    later = shop([say()])
    await Runner.run(later, "and now?", session=session, run_config=QUIET)
    assert kinds(later.model.calls[0].input) == ["reasoning", "user"]  # type: ignore[union-attr]
    session.session_settings = {"limit": 2}  # type: ignore[assignment]
    assert len(await session.get_items()) == 2
    assert OpenAIAgentsSession(sessions, "t").session_settings == SessionSettings()
    with pytest.raises(TypeError, match="limits"):
        OpenAIAgentsSession(sessions, "t", session_settings={"limits": 1})
    with pytest.raises(TypeError, match="session_settings cannot be 5"):
        OpenAIAgentsSession(sessions, "t", session_settings=5)  # type: ignore[arg-type]
