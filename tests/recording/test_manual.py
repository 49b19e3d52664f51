"""Loops that no framework runs: messages, tools and histories recorded by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, RemoveMessage

from session_middleware import InvalidArgument, Sessions
from tests.support import agents
from tests.support.agents import said
from tests.support.classes import evaluated_late

pytestmark = pytest.mark.usefixtures("consistent")


def asking(name: str, arguments: str, call_id: str = "c1") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_role_is_known_in_any_case_and_an_unknown_one_is_refused(sessions: Sessions) -> None:
    session = sessions.open("t")
    for role in ("System", "USER", "Assistant", "Human", "AI", "developer"):
        session.add({"role": role, "content": role})
    roles = ["system", "user", "assistant", "user", "assistant", "system"]
    assert [message.role for message in session.messages()] == roles
    for given in ({"role": "bogus", "content": "x"}, {"role": ["user"], "content": "x"}):
        for act in (lambda given=given: session.add(given), lambda given=given: session.add_history([given])):
            with pytest.raises(InvalidArgument, match=r"role cannot be .*; give one of: .*'assistant'"):
                act()
    with pytest.raises(InvalidArgument, match="message cannot be 'hi'; give a message"):
        session.add("hi")
    with pytest.raises(InvalidArgument, match=r"message cannot be RemoveMessage.*; give a message that was said"):
        session.add(RemoveMessage("1"))
    assert len(session.messages()) == 6


def test_a_message_in_a_graph_of_a_role_nobody_knows_is_recorded_with_a_mark(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    chorus = ChatMessage("hear, hear", role="chorus")
    graph.invoke({"messages": [chorus, ChatMessage("be brief", role="System")]}, sessions.config("t"))
    first, second = sessions.get("t").messages()[:2]
    assert (first.role, first.text, first.flags) == ("user", "hear, hear", ("unknown:role",))
    assert (second.role, second.flags) == ("system", ())


def test_a_loop_over_openais_dicts_is_recorded_as_a_run(sessions: Sessions) -> None:
    with sessions.open("job-7", user_id="alice") as session:

        @session.tool
        def weather(city: str) -> dict[str, str]:
            return {"sky": f"blue in {city}"}

        session.add(user("how is it in Paris?"))
        session.add(asking("weather", '{"city": "Paris"}'))
        result = weather("Paris")
        session.add({"role": "tool", "tool_call_id": "c1", "content": str(result)})
        assert session.add(answer("blue")).text == "blue"
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool", "assistant"]
    (call,) = session.tool_calls()
    assert (call.tool_call_id, call.name, call.arguments, call.result) == ("c1", "weather", {"city": "Paris"}, result)
    assert (call.status, call.message_id) == ("ok", session.messages()[1].message_id)
    (run,) = session.runs()
    assert (run.outcome, {message.run_id for message in session.messages()}) == ("ok", {run.id})
    assert [event.kind for event in session.events()] == ["opened"]


def test_a_tool_may_name_a_class_that_is_defined_after_it(sessions: Sessions) -> None:
    module = evaluated_late("def refund(order: Order) -> str: return f'order {order}'")
    with sessions.open("job") as session:
        assert session.tool(module.refund)(7) == "order 7"
    assert [call.arguments for call in session.tool_calls()] == [{"order": 7}]


def test_leaving_by_an_exception_fails_the_run_and_keeps_everything(sessions: Sessions) -> None:
    session = sessions.open("job")

    @session.tool(name="go")
    def move(steps: int) -> None:
        raise ValueError("too far")

    def loop() -> None:
        with session:
            session.add(user("go"))
            move(steps=3)

    with pytest.raises(ValueError, match="too far"):
        loop()
    assert said(session) == [("user", "go")]
    (call,) = session.tool_calls()
    assert (call.name, call.status, call.error, call.arguments) == ("go", "error", "ValueError: too far", {"steps": 3})
    assert [(run.outcome, run.error) for run in session.runs()] == [("error", "ValueError: too far")]


async def test_a_generator_is_executed_while_its_items_are_read(sessions: Sessions) -> None:
    session = sessions.open("job")

    @session.tool
    def count(to: int) -> Iterator[int]:
        yield from range(to)
        raise ValueError("no more")

    @session.tool
    async def acount(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    with contextlib.suppress(ValueError):
        for _ in count(2):
            assert session.tool_calls()[0].status == "running"
    reading = count(2)
    next(reading)
    reading.close()
    assert [number async for number in acount(3)] == [0, 1, 2]
    found = [(call.name, call.arguments, call.status, call.result, call.error) for call in session.tool_calls()]
    assert found == [
        ("count", {"to": 2}, "error", None, "ValueError: no more"),
        ("count", {"to": 2}, "interrupted", None, None),
        ("acount", {"to": 3}, "ok", [0, 1, 2], None),
    ]


async def test_a_recorded_generator_is_used_as_without_recording(sessions: Sessions) -> None:
    session, cleaned_up_by = sessions.open("job"), list[object]()

    @session.tool
    def add_up() -> Generator[int, int, str]:
        total = 0
        while total < 5:
            try:
                total += yield total
            except ValueError:
                total = 0
        return "enough"

    @session.tool
    async def aadd_up() -> AsyncGenerator[int, int]:
        total = 0
        try:
            while total < 5:
                total += yield total
        finally:
            cleaned_up_by.append(asyncio.current_task())
            if total < 5:
                raise KeyError("half done")

    adding = add_up()
    assert [next(adding), adding.send(2), adding.throw(ValueError()), adding.send(4)] == [0, 2, 0, 4]
    with pytest.raises(StopIteration) as end:
        adding.send(1)
    assert end.value.value == "enough"
    aadding = aadd_up()
    assert [await anext(aadding), await aadding.asend(2)] == [0, 2]
    with pytest.raises(KeyError, match="half done"):
        await aadding.aclose()
    assert cleaned_up_by == [asyncio.current_task()]
    found = [(call.name, call.status, call.result, call.error) for call in session.tool_calls()]
    assert found == [("add_up", "ok", [0, 2, 0, 4], None), ("aadd_up", "error", None, "KeyError: 'half done'")]


async def test_an_async_loop_is_recorded_the_same(sessions: Sessions) -> None:
    async with await sessions.aopen("job") as session:

        @session.tool
        async def look(where: str) -> str:
            await asyncio.sleep(0)
            return f"nothing in {where}"

        @session.tool
        async def wait() -> None:
            await asyncio.Event().wait()

        await session.aadd(HumanMessage("look"))
        assert await look("the box", tool_call_id="c9") == "nothing in the box"  # type: ignore[call-arg]
        waiting = asyncio.ensure_future(wait())
        while len(session.tool_calls()) < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    calls = await session.atool_calls()
    assert [(c.name, c.tool_call_id == "c9", c.status) for c in calls] == [
        ("look", True, "ok"),
        ("wait", False, "interrupted"),
    ]


def test_a_tools_start_is_down_before_it_runs(sessions: Sessions, tmp_path: Path) -> None:
    session = sessions.open("job")

    @session.tool
    def look() -> str:
        with Sessions(tmp_path / "sessions.db") as others:
            (call,) = others.get("job").tool_calls()
            return call.status

    assert look() == "running"


def test_saying_the_same_twice_is_two_messages_and_the_same_message_twice_is_one(sessions: Sessions) -> None:
    session = sessions.open("job")
    for _ in range(2):
        session.add(user("yes"))
        session.add(AIMessage("fine", id="a1"))
    assert said(session) == [("user", "yes"), ("assistant", "fine"), ("user", "yes")]
    session.add(AIMessage("well", id="a1"))
    assert said(session)[1] == ("assistant", "well")


def test_a_message_may_have_been_said_earlier(sessions: Sessions) -> None:
    then = datetime(2020, 1, 1, tzinfo=UTC)
    assert sessions.open("job").add(user("hi"), at=then).created_at == then


@pytest.mark.parametrize("at", ["2020-01-01", 5, date(2020, 1, 1), datetime(2020, 1, 1)], ids=repr)
def test_a_moment_that_names_no_point_in_time_is_refused(at: Any, sessions: Sessions) -> None:
    session = sessions.open("job")
    with pytest.raises(InvalidArgument, match=r"at cannot be .*; give a datetime with a time zone"):
        session.add(user("hi"), at=at)
    assert session.messages() == []


def test_a_history_that_is_passed_again_adds_what_is_new(sessions: Sessions) -> None:
    session, history = sessions.open("job"), [user("hi"), answer("hello")]
    for _ in range(3):
        session.add_history(history)
    session.add_history([*history, user("yes"), answer("ok"), user("yes")])
    assert [text for _, text in said(session)] == ["hi", "hello", "yes", "ok", "yes"]
    session.add_history([answer("ok"), user("yes"), answer("bye")])  # trimmed at the front
    assert [text for _, text in said(session)][-2:] == ["yes", "bye"]
    session.add_history([user("hi"), answer("hello"), user("yes"), answer("ok"), user("yes"), answer("see you")])
    assert [text for _, text in said(session)][-2:] == ["yes", "see you"]
    assert [m.version for m in session.messages()] == [1, 1, 1, 1, 1, 2]


def test_a_history_that_goes_another_way_is_a_branch(sessions: Sessions) -> None:
    session = sessions.open("job")
    session.add_history([user("a"), answer("b"), user("c"), answer("d")])
    session.add_history([user("a"), answer("b"), user("x")])
    session.add(answer("y"))
    assert [text for _, text in said(session)] == ["a", "b", "x", "y"]
    assert [text for _, text in said(session, branch="main")] == ["a", "b", "c", "d"]
    session.add_history([user("new"), answer("e"), user("f")])
    assert [text for _, text in said(session)] == ["new", "e", "f"]
    assert len(session.messages(branch="all")) == 9
    assert [branch.parent_id for branch in session.branches()] == ["main", "branch-2"]


def test_a_summary_stands_where_it_was_put(sessions: Sessions) -> None:
    session = sessions.open("job")
    session.add_history([user("a"), answer("b"), user("c"), answer("d")])
    session.add_history([{"role": "system", "content": "so far: a, b"}, user("c"), answer("d"), user("e")])
    assert [text for _, text in said(session)] == ["a", "b", "so far: a, b", "c", "d", "e"]


def test_tools_that_have_run_elsewhere_can_be_told_of(sessions: Sessions) -> None:
    session = sessions.open("job")
    session.record_tool("add", {"a": 1}, 3, duration=timedelta(milliseconds=5))
    session.record_tool("add", {"a": 1}, error=KeyError("a"))
    session.record_tool("pay", status="refused", tool_call_id="c1")
    found = [(c.name, c.status, c.result, c.error, c.duration_ms) for c in session.tool_calls()]
    assert found == [
        ("add", "ok", 3, None, 5.0),
        ("add", "error", None, "KeyError: 'a'", None),
        ("pay", "refused", None, None, None),
    ]


@pytest.mark.parametrize("arguments", ["{not json", "[1, 2]", '"x"', ""])
def test_arguments_that_do_not_parse_are_recorded_all_the_same(arguments: str, sessions: Sessions) -> None:
    session = sessions.open("job")
    session.add(asking("f", arguments))
    assert session.messages()[0].tool_calls[0]["name"] == "f"


NO_MESSAGES: list[tuple[Any, str]] = [
    ({}, "message cannot be {}; give a dict with a 'role' and a 'content'"),
    ({"role": None, "content": None}, "a 'role' and a 'content'"),
    ({"rol": "user", "content": "x"}, "a 'role' and a 'content'"),
    ({"content": "x"}, "a 'role' and a 'content'"),
    ({"role": "user"}, "with a 'content', or with an assistant's 'tool_calls'"),
    ({"role": "user", "contnt": "x"}, "with a 'content'"),
    ({"role": "nonsense", "content": "x"}, "role cannot be 'nonsense'; give one of"),
    ({"role": "user", "content": "x", "id": ["m"]}, "id cannot be"),
    ({"role": "user", "content": "x", "name": MagicMock()}, "name cannot be"),
    (None, "message cannot be None"),
    ("hi", "message cannot be 'hi'"),
]


@pytest.mark.parametrize(("message", "says"), NO_MESSAGES)
def test_a_value_that_is_no_message_is_refused(message: Any, says: str, sessions: Sessions) -> None:
    session = sessions.open("t")
    for act in (lambda: session.add(message), lambda: session.add_history([user("hi"), message])):
        with pytest.raises(InvalidArgument, match=says):
            act()
    assert session.messages() == []


@pytest.mark.parametrize("messages", [None, "hi", 5, user("hi")])
def test_a_history_is_a_list_of_messages(messages: Any, sessions: Sessions) -> None:
    with pytest.raises(InvalidArgument, match=r"messages cannot be .*; give a list of messages"):
        sessions.open("t").add_history(messages)


NO_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"model": MagicMock()}, "model cannot be"),
    ({"model": 5}, "model cannot be 5"),
    ({"provider": ["openai"]}, "provider cannot be"),
    ({"message_id": 5}, "message_id cannot be 5"),
    ({"usage": 5}, "usage cannot be 5; give a dict of token counts"),
    ({"usage": MagicMock()}, "usage cannot be"),
    ({"usage": {"input_tokens": -5}}, "usage cannot be .*; give numbers of tokens that are not negative"),
    ({"usage": {"output_tokens": "many"}}, "usage cannot be"),
    ({"input_tokens": -1}, "input_tokens cannot be -1"),
    ({"output_tokens": 1.5}, "output_tokens cannot be 1.5"),
    ({"cost": -1}, "cost cannot be -1"),
    ({"cost": True}, "cost cannot be True"),
    ({"duration": 5}, "duration cannot be 5; give a timedelta"),
    ({"duration": timedelta(-1)}, "duration cannot be"),
]


@pytest.mark.parametrize(("given", "says"), NO_CALLS)
def test_a_model_call_of_the_wrong_kind_is_refused(given: dict[str, Any], says: str, sessions: Sessions) -> None:
    session = sessions.open("t")
    with pytest.raises(InvalidArgument, match=says):
        session.record_model_call(**given)
    assert session.model_calls() == []


@pytest.mark.parametrize("given", [{"name": None}, {"name": ""}, {"name": MagicMock()}, {"duration": "5s"}])
def test_an_execution_without_a_name_or_a_duration_is_refused(given: dict[str, Any], sessions: Sessions) -> None:
    session = sessions.open("t")
    with pytest.raises(InvalidArgument, match=rf"{next(iter(given))} cannot be"):
        session.record_tool(**{"name": "f", **given})
    with pytest.raises(InvalidArgument, match="function cannot be 5"):
        session.tool(5)  # type: ignore[call-overload]
    assert session.tool_calls() == []


ODD = [
    {"role": "user", "content": b"bytes", "name": 5, "id": 7},
    {"role": "user", "content": [5, "\ud800"]},
    {"role": "assistant", "tool_calls": "abc"},
    {"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": None, "arguments": 5}}, {}]},
    {"role": "tool", "content": {"a": 1j}, "status": "odd"},
]


@pytest.mark.parametrize("message", ODD, ids=str)
def test_a_message_of_odd_parts_is_recorded_as_well_as_can_be(message: Any, sessions: Sessions) -> None:
    with sessions.open("t") as session:
        assert session.add(message).seq
        session.record_tool("f", message)
    assert (len(session.messages()), len(session.tool_calls())) == (1, 1)


def test_an_error_that_cannot_be_told_is_raised_as_it_is(sessions: Sessions) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    session = sessions.open("job")

    @session.tool
    def fail() -> None:
        raise Mute

    with pytest.raises(Mute), session:
        fail()
    assert [(call.status, call.error) for call in session.tool_calls()] == [("error", "Mute")]
    assert [(run.outcome, run.error) for run in session.runs()] == [("error", "Mute")]


def test_an_image_is_stored_once_and_read_by_its_hash(sessions: Sessions, tmp_path: Path) -> None:
    import base64

    picture = bytes(range(256)) * 400
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    session = sessions.open("job")
    for text in ("one", "two"):
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
        session.add({"role": "user", "content": content})
    first, second = session.messages()
    assert (first.text, second.text) == ("one", "two")
    name = first.content[1]["image_url"]["url"].removeprefix("data:image/png;")
    assert session.file(name) == picture
    assert session.history().messages[1].content[1]["image_url"]["url"] == url
    stored = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert stored < 3 * len(picture) + 400_000


@pytest.mark.parametrize(
    ("error", "outcome", "told"),
    [
        (ValueError("no luck"), "error", "ValueError: no luck"),
        (ValueError(), "error", "ValueError"),
        (asyncio.CancelledError(), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_a_loop_that_is_cancelled_was_interrupted_and_has_no_error(
    sessions: Sessions, error: BaseException, outcome: str, told: str | None
) -> None:
    with pytest.raises(type(error)), sessions.open("t"):
        raise error
    assert [(run.outcome, run.error) for run in sessions.get("t").runs()] == [(outcome, told)]


CALLS_OF_ONE_ID: list[Any] = [
    {"role": "user", "content": "hi"},
    *(
        message
        for asked in ([1, 2], [3], [4], [5], [6])
        for message in (
            {"role": "assistant", "content": ""}
            | {
                "tool_calls": [
                    {"id": "call_0", "function": {"name": "add", "arguments": f'{{"a": {n}}}'}} for n in asked
                ]
            },
            *({"role": "tool", "tool_call_id": "call_0", "content": f"sum {n}"} for n in asked),
        )
    ),
]


@pytest.mark.parametrize("how", ["add", "add_history", "add_history again and again", "add in a block"])
def test_calls_of_one_id_have_their_own_arguments_and_results(how: str, sessions: Sessions) -> None:
    job = sessions.open("t")
    if how == "add_history":
        job.add_history(CALLS_OF_ONE_ID)
    elif how == "add_history again and again":
        for number in range(1, len(CALLS_OF_ONE_ID) + 1):
            job.add_history(CALLS_OF_ONE_ID[:number])
    else:
        with job if how == "add in a block" else contextlib.nullcontext():
            for message in CALLS_OF_ONE_ID:
                job.add(message)
    found = [(call.attempt, call.arguments["a"], call.result, call.status) for call in job.tool_calls()]
    assert found == [(2 if n == 2 else 1, n, f"sum {n}", "ok") for n in (1, 2, 3, 4, 5, 6)]
    assert len(job.messages()) == len(CALLS_OF_ONE_ID)


def test_a_tool_executed_twice_for_one_id_is_two_executions(sessions: Sessions) -> None:
    job = sessions.open("t")

    @job.tool
    def add(a: int) -> str:
        return f"sum {a}"

    with job:
        for message in CALLS_OF_ONE_ID[:2]:
            job.add(message)
        for n in (1, 2):
            job.add({"role": "tool", "tool_call_id": "call_0", "content": add(n)})
    assert [(call.tool_call_id, call.attempt, call.arguments, call.result) for call in job.tool_calls()] == [
        ("call_0", 1, {"a": 1}, "sum 1"),
        ("call_0", 2, {"a": 2}, "sum 2"),
    ]


def test_arguments_in_another_order_are_the_same_request(sessions: Sessions) -> None:
    session, said = sessions.open("t"), [user("a"), asking("f", '{"x": 1, "y": {"a": 1, "b": 2}}')]
    session.add_history(said)
    said[1] = asking("f", '{"y":{"b":2,"a":1},"x":1}')
    session.add_history([*said, {"role": "tool", "tool_call_id": "c1", "content": "r"}])
    assert [(m.role, m.version) for m in session.messages(branch="all", all_versions=True)] == [
        *(("user", 1), ("assistant", 1), ("tool", 1)),
    ]
    session.add_history([user("a"), asking("f", '{"x": 2, "y": {"a": 1, "b": 2}}'), user("b")])
    assert len(session.messages(branch="all", all_versions=True)) == 5


def test_a_methods_receiver_is_no_argument(sessions: Sessions) -> None:
    session = sessions.open("t")

    class Shop:
        @session.tool
        def look_up(self, thing: str) -> str:
            return f"{thing} is nice"

        @classmethod
        @session.tool
        def price(cls, thing: str) -> int:
            return len(thing)

    assert (Shop().look_up("tea"), Shop.price(thing="tea")) == ("tea is nice", 3)
    assert [call.arguments for call in session.tool_calls()] == [{"thing": "tea"}] * 2


def test_the_id_of_the_requested_call_may_be_given_by_position(sessions: Sessions) -> None:
    session = sessions.open("t")

    @session.tool
    def look_up(thing: str, tool_call_id: str = "") -> str:
        return f"{thing} for {tool_call_id}"

    assert look_up("tea", "call-1") == "tea for call-1"
    assert [call.tool_call_id for call in session.tool_calls()] == ["call-1"]
