"""Runs of LangGraph's API over a real socket, by LangGraph's own client."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from session_middleware import Session, Sessions
from session_middleware.integrations.server import app
from session_middleware.integrations.server.runs.notes import RunNotes
from session_middleware.models import Run, utc_now
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.record import reads
from tests.support.gated_server import caller_of, gated
from tests.support.served_app import serving

pytest.importorskip("uvicorn")

GRAPH = "gated"


class Served(NamedTuple):
    """A server in this process, and what a test does to it."""

    url: str
    sessions: Sessions
    folder: Path
    clients: list[LangGraphClient]

    def client(self, user: str = "alice") -> LangGraphClient:
        self.clients.append(get_client(url=self.url, headers={"x-user": user}))
        return self.clients[-1]

    def let_go(self, name: str) -> None:
        (self.folder / name).touch()

    def open(self, thread_id: str = "t", user: str = "alice") -> Session:
        return self.sessions.open(thread_id, user_id=user)


@pytest.fixture
async def served(sessions: Sessions, tmp_path: Path) -> AsyncIterator[Served]:
    with serving(app(sessions, {GRAPH: gated(tmp_path)}, authenticate=caller_of)) as url:
        found = Served(url, sessions, tmp_path, [])
        yield found
        for client in found.clients:
            await client.aclose()


def say(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def texts(values: Any) -> list[str]:
    return [message["content"] for message in values["messages"]]


async def until(parts: AsyncIterator[Any], is_last: Callable[[Any], bool]) -> list[Any]:
    """The parts of a stream up to the first of which this is true."""
    found = []
    async with asyncio.timeout(20):
        async for part in parts:
            found.append(part)
            if is_last(part):
                break
    return found


def counts(part: Any) -> bool:
    return bool(part.event == "custom")


async def hold(client: LangGraphClient, name: str, **options: Any) -> str:
    """Begin a run that holds in its node, and return its id when it does."""
    run = await client.runs.create("t", GRAPH, input=say(f"hold {name}"), stream_mode=["custom", "values"], **options)
    async with aclosing(client.runs.join_stream("t", run["run_id"], last_event_id="-1")) as parts:  # type: ignore[type-var]
        await until(parts, counts)
    return run["run_id"]


# A conversation


async def test_a_conversation_is_interrupted_and_resumed(served: Served) -> None:
    client, created = served.client(), []
    served.open()
    parts = [
        part
        async for part in client.runs.stream(
            "t",
            GRAPH,
            input=say("hi"),
            stream_mode=["values", "messages-tuple"],
            metadata={"experiment": "b"},
            on_run_created=created.append,
        )
    ]
    assert [part.event for part in parts] == [
        *("metadata", "values", *["messages"] * 5, "values", "messages", "values")
    ]
    assert "".join(part.data[0]["content"] for part in parts if part.event == "messages") == "you said hiyours"
    assert texts(parts[-1].data) == ["hi", "you said hi", "yours"]
    assert created == [{"run_id": parts[0].data["run_id"], "thread_id": "t"}]

    asked = await client.runs.wait("t", GRAPH, input=say("ask"))
    assert [each["value"] for each in asked["__interrupt__"]] == ["Which colour?"]
    answered = await client.runs.wait("t", GRAPH, command={"resume": "green"})
    assert texts(answered)[-2:] == ["you like green", "yours"]

    runs = await client.runs.list("t")
    assert [run["status"] for run in runs] == ["success"] * 3
    assert runs[-1]["metadata"] == {"experiment": "b"}
    assert await client.runs.get("t", runs[-1]["run_id"]) == runs[-1]
    recorded = served.sessions.get("t").runs()
    assert [run.id for run in recorded] == [run["run_id"] for run in runs][::-1]
    assert [(run.outcome, run.user_id) for run in recorded] == [("ok", "alice"), ("waiting", "alice"), ("ok", "alice")]
    assert recorded[0].metadata == {"experiment": "b"}
    assert await client.runs.list("t", limit=1, offset=1, select=["status"]) == [{"status": "success"}]
    await client.runs.delete("t", runs[0]["run_id"])
    assert [run["run_id"] for run in await client.runs.list("t")] == [run["run_id"] for run in runs[1:]]
    with pytest.raises(NotFoundError):
        await client.runs.get("t", runs[0]["run_id"])


async def test_pages_of_runs_are_the_latest_of_the_api_and_of_python_code(served: Served) -> None:
    client, graph = served.client(), served.sessions.attach(gated(served.folder))
    config = served.sessions.config("t", user_id="alice")
    ids = []
    for text in ("one", "two", "fail", "three"):
        run = await client.runs.create("t", GRAPH, input=say(text), if_not_exists="create")
        await client.runs.join("t", run["run_id"])
        with suppress(ValueError):
            await graph.ainvoke(say(text), config)
        ids += [run["run_id"], served.sessions.get("t").runs()[-1].id]
    await client.runs.delete("t", ids.pop())
    latest = ids[::-1]
    assert [run["run_id"] for run in await client.runs.list("t")] == latest
    for offset in range(0, 8, 2):
        page = await client.runs.list("t", limit=2, offset=offset)
        assert [run["run_id"] for run in page] == latest[offset : offset + 2]
    failed = await client.runs.list("t", limit=1, status="error", offset=1)
    assert [run["run_id"] for run in failed] == [ids[4]]


async def test_a_long_thread_costs_no_more_to_list_find_and_follow(
    served: Served, open_sessions: Callable[..., Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, noted, recorded = served.client(), list[int](), list[int]()  # the numbers of rows of each read
    list_, values_of = items.list_, reads.values_of
    monkeypatch.setattr(items, "list_", lambda *asked: counted(noted, list_(*asked)))
    monkeypatch.setattr(reads, "values_of", lambda *asked: counted(recorded, values_of(*asked)))
    ticks = itertools.count()
    earlier = open_sessions(clock=lambda: utc_now() - timedelta(hours=1) + timedelta(milliseconds=next(ticks)))
    graph, config = earlier.attach(gated(served.folder)), earlier.config("t", user_id="alice", on_busy="wait")
    runs: list[Run] = []
    for number in range(130):
        await graph.ainvoke(say("hi"), config, durability="exit")
        (run,) = await earlier.get("t").aruns(last=1)
        runs.append(run)
        if 0 < number < 129:  # the others are known from the record alone
            note = RunNotes.new(run.id, "t", GRAPH, run.started_at, metadata={"number": run.seq})
            await RunNotes(earlier).put([note.ended("success", run.started_at)])
    recorded.clear()
    page = await client.runs.list("t", limit=5, offset=1)
    assert [run["run_id"] for run in page] == [run.id for run in runs[-2:-7:-1]]
    assert [run["metadata"] for run in page] == [{"number": run.seq} for run in runs[-2:-7:-1]]
    assert (noted, recorded) == ([6], [7])
    recorded.clear()
    for run in (runs[-1], runs[0]):
        assert (await client.runs.get("t", run.id))["run_id"] == run.id
    assert recorded == [100, 100, 130]
    noted.clear()
    async with aclosing(await client.threads.join_stream("t")) as stream:  # type: ignore[type-var]
        await client.runs.create("t", GRAPH, input=say("hold a"), stream_mode="custom")
        await until(stream, lambda _: len(noted) >= 5)
    served.let_go("a")
    assert sum(noted) < 2 * 130, noted


def counted(sizes: list[int], found: Any) -> Any:
    sizes.append(len(found))
    return found


async def test_commands_and_checkpoints_say_where_a_run_goes_on(served: Served) -> None:
    client = served.client()
    stopped = await client.runs.wait("t", GRAPH, input=say("one"), interrupt_before=["child"], if_not_exists="create")
    assert texts(stopped) == ["one", "you said one"]
    assert texts(await client.runs.wait("t", GRAPH, input=None)) == ["one", "you said one", "yours"]
    command = {"update": {"messages": [{"role": "user", "content": "again"}]}, "goto": "answer"}
    assert texts(await client.runs.wait("t", GRAPH, command=command))[-3:] == ["again", "you said again", "yours"]
    first = served.sessions.get("t").runs()[0].checkpoint_id
    for option in ({"checkpoint_id": first}, {"checkpoint": {"checkpoint_id": first, "checkpoint_ns": ""}}):
        assert texts(await client.runs.wait("t", GRAPH, input=None, **option)) == ["one", "you said one", "yours"]


async def test_an_error_has_its_name_and_only_a_message_that_is_the_graphs_own(served: Served) -> None:
    client = served.client()
    served.open()
    parts = [part async for part in client.runs.stream("t", GRAPH, input=say("fail"))]
    assert (parts[-1].event, parts[-1].data) == ("error", {"error": "ValueError", "message": "it failed"})
    found = await client.runs.wait("t", GRAPH, input=say("leak"), raise_error=False)
    assert found == {"__error__": {"error": "OSError", "message": "An internal error occurred"}}
    run, other = await client.runs.list("t", status="error")
    assert run["run_id"] != other["run_id"]
    assert await client.runs.join("t", run["run_id"]) == found


async def test_a_run_without_a_thread_leaves_nothing_behind(served: Served) -> None:
    client, created = served.client(), []
    assert texts(await client.runs.wait(None, GRAPH, input=say("hi"), on_run_created=created.append))[-1] == "yours"
    batch = await client.runs.create_batch([{"assistant_id": GRAPH, "input": say(each)} for each in "ab"])
    for run in [*created, *batch]:
        with suppress(httpx.HTTPStatusError):  # it has ended
            await client.runs.join(run["thread_id"], run["run_id"])
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await client.runs.join(run["thread_id"], run["run_id"])
    assert served.sessions.list() == []
    await client.runs.wait(None, GRAPH, input=say("hi"), on_completion="keep")
    assert [session.user_id for session in served.sessions.list()] == ["alice"]


# Several runs in one thread


async def test_a_later_run_waits_is_refused_interrupts_or_rolls_back(served: Served) -> None:
    client = served.client()
    await client.runs.wait("t", GRAPH, input=say("one"), if_not_exists="create")
    await hold(client, "a")
    waiting = await client.runs.create("t", GRAPH, input=say("two"))
    statuses = [run["status"] for run in await client.runs.list("t")]
    assert statuses == ["pending", "running", "success"]
    with pytest.raises(ConflictError):
        await client.runs.create("t", GRAPH, input=say("no"), multitask_strategy="reject")
    served.let_go("a")
    assert texts(await client.runs.join("t", waiting["run_id"])) == [
        *("one", "you said one", "yours"),
        *("hold a", "you said hold a", "yours"),
        *("two", "you said two", "yours"),
    ]

    holding = await hold(client, "b")
    values = await client.runs.wait("t", GRAPH, input=say("three"), multitask_strategy="interrupt")
    assert texts(values)[-4:] == ["hold b", "three", "you said three", "yours"]
    assert (await client.runs.get("t", holding))["status"] == "interrupted"

    holding = await hold(client, "c")
    values = await client.runs.wait("t", GRAPH, input=say("four"), multitask_strategy="rollback")
    assert texts(values)[-4:] == ["yours", "four", "you said four", "yours"]
    with pytest.raises(NotFoundError):
        await client.runs.get("t", holding)


async def test_runs_of_python_code_count_too(served: Served) -> None:
    client, graph = served.client(), served.sessions.attach(gated(served.folder))
    config = served.sessions.config("t", user_id="alice")
    own = asyncio.create_task(graph.ainvoke(say("hold a"), config))
    while not (await served.sessions.aopen("t", user_id="alice")).is_running:
        pass
    with pytest.raises(ConflictError):
        await client.runs.create("t", GRAPH, input=say("no"), multitask_strategy="reject")
    waiting = await client.runs.create("t", GRAPH, input=say("two"))
    assert [run["status"] for run in await client.runs.list("t")] == ["pending", "running"]
    served.let_go("a")
    await own
    assert texts(await client.runs.join("t", waiting["run_id"]))[-3:] == ["two", "you said two", "yours"]


@pytest.mark.sessions(on_busy="reject")
async def test_a_setting_that_refuses_holds_where_the_client_chose_nothing(served: Served) -> None:
    client = served.client()
    await hold(client, "a", if_not_exists="create")
    with pytest.raises(ConflictError):
        await client.runs.create("t", GRAPH, input=say("no"))
    values = await client.runs.wait("t", GRAPH, input=say("two"), multitask_strategy="interrupt")
    assert texts(values) == ["hold a", "two", "you said two", "yours"]


async def test_a_cancelled_run_keeps_its_steps_or_undoes_them(served: Served) -> None:
    client = served.client()
    before = await client.runs.wait("t", GRAPH, input=say("one"), if_not_exists="create")
    for action, expected in (("rollback", texts(before)), ("interrupt", [*texts(before), "hold a"])):
        run = await hold(client, "a")
        values = await client.runs.cancel("t", run, wait=True, action=action)  # type: ignore[func-returns-value]
        assert texts(values) == expected
    waiting = await client.runs.create("t", GRAPH, input=say("later"), after_seconds=1000)
    assert (await client.runs.get("t", waiting["run_id"]))["status"] == "pending"
    await client.runs.cancel_many(status="pending")
    await client.runs.join("t", waiting["run_id"])
    assert [run["status"] for run in await client.runs.list("t")] == ["interrupted", "interrupted", "success"]
    with pytest.raises(NotFoundError):
        await client.runs.cancel_many(thread_id="t", run_ids=[waiting["run_id"]])


# Streams


async def test_a_client_that_comes_back_gets_the_rest(served: Served) -> None:
    client = served.client()
    served.open()
    modes: Any = ["custom", "values"]
    run = await client.runs.create("t", GRAPH, input=say("hold a"), stream_mode=modes, stream_resumable=True)
    first = client.runs.join_stream("t", run["run_id"], last_event_id="-1")
    async with aclosing(first):  # type: ignore[type-var]
        seen = await until(first, lambda part: part.event == "custom" and part.data["count"] == 3)
    served.let_go("a")
    rest = [part async for part in client.runs.join_stream("t", run["run_id"], last_event_id=seen[-1].id)]
    numbers = [part.data["count"] for part in [*seen, *rest] if part.event == "custom"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert texts(rest[-1].data) == ["hold a", "you said hold a", "yours"]
    again = [part async for part in client.runs.join_stream("t", run["run_id"], last_event_id=seen[-1].id)]
    assert again == rest
    values = client.runs.join_stream("t", run["run_id"], last_event_id="-1", stream_mode="values")
    assert {part.event async for part in values} == {"metadata", "values"}
    assert [part async for part in client.runs.join_stream("t", run["run_id"])] == []  # there is nothing new


@pytest.mark.parametrize(("mode", "status"), [("cancel", "interrupted"), ("continue", "success")])
async def test_a_client_that_leaves_decides_what_becomes_of_its_run(served: Served, mode: Any, status: str) -> None:
    client = served.client()
    served.open()
    stream = client.runs.stream("t", GRAPH, input=say("hold a"), stream_mode="custom", on_disconnect=mode)
    async with aclosing(stream):  # type: ignore[type-var]
        await until(stream, counts)
    (run,) = await client.runs.list("t")
    if mode == "continue":
        served.let_go("a")
    await client.runs.join("t", run["run_id"])
    assert (await client.runs.get("t", run["run_id"]))["status"] == status


async def test_the_stream_of_a_thread_has_the_runs_that_come(served: Served) -> None:
    client = served.client()
    served.open()
    async with asyncio.timeout(20):
        first = await hold(client, "a")
        stream = await client.threads.join_stream("t")
        async with aclosing(stream):
            await anext(stream)
            served.let_go("a")
            second = await client.runs.create("t", GRAPH, input=say("two"))
            is_last = lambda part: part.data == {"status": "run_done", "run_id": second["run_id"]}  # noqa: E731
            parts = await until(stream, is_last)
        done = [part.data["run_id"] for part in parts if part.event == "metadata" and "status" in part.data]
        assert done == [first, second["run_id"]]
        assert texts([part for part in parts if part.event == "values"][-1].data)[-3:] == [
            "two",
            "you said two",
            "yours",
        ]
        values = [part for part in parts if part.event == "values"]
        async with aclosing(await client.threads.join_stream("t", last_event_id=values[0].id)) as again:
            missed = await until(again, lambda part: part.id == values[-1].id)
        assert [part for part in missed if part.event == "values"] == values[1:]


# Others


async def test_the_thread_of_another_user_is_not_found(served: Served) -> None:
    alice, mallory = served.client(), served.client("mallory")
    run = await hold(alice, "a", if_not_exists="create")
    config = {"configurable": {"user_id": "alice", "thread_id": "t"}}
    for refused in (
        mallory.runs.create("t", GRAPH, input=say("hi")),
        mallory.runs.create("t", GRAPH, input=say("hi"), if_not_exists="create"),
        mallory.runs.list("t"),
        mallory.runs.get("t", run),
        mallory.runs.cancel("t", run),
        mallory.runs.delete("t", run),
        mallory.runs.cancel_many(status="all"),
        mallory.runs.cancel_many(thread_id="t", run_ids=[run]),
        until(mallory.runs.join_stream("t", run), counts),
    ):
        with pytest.raises(NotFoundError):
            await refused
    for joined in (mallory.runs.join("t", run), mallory.runs.wait("t", GRAPH, input=say("hi"))):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await joined
    own: Any = {"metadata": {"user_id": "alice"}}
    await mallory.runs.wait("m", GRAPH, input=say("I am alice"), if_not_exists="create", config={**config, **own})
    found = served.sessions.get("m")
    assert (found.user_id, [each.user_id for each in found.runs()]) == ("mallory", ["mallory"])
    assert (await alice.runs.get("t", run))["status"] == "running"
    await served.client("root").runs.cancel("t", run, wait=True)
    assert {each.user_id for each in served.sessions.get("t").runs()} == {"alice"}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


BAD = (
    ("/threads/t/runs", {"assistant_id": "none"}, 404),
    ("/threads/none/runs", {"assistant_id": GRAPH}, 404),
    ("/threads/t/runs", {}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "stream_mode": "everything"}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "webhook": "http://127.0.0.1"}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "config": {"configurable": {"a": 1}}, "context": {"b": 2}}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "after_seconds": -1}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "metadata": {"a": "\ud800"}}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "metadata": nested(400)}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "command": {"resume": nested(400)}}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "input": nested(400)}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "interrupt_before": ["\ud800"]}, 422),
    ("/threads/t/runs", {"assistant_id": GRAPH, "checkpoint_id": "\ud800"}, 422),
    ("/threads/t/runs", [], 422),
    ("/threads/a%00b/runs/wait", {"assistant_id": GRAPH, "if_not_exists": "create"}, 422),
    (f"/threads/{'a' * 9000}/runs/wait", {"assistant_id": GRAPH, "if_not_exists": "create"}, 422),
    ("/runs", {"assistant_id": GRAPH, "command": {"resume": 1}}, 400),
    ("/runs/cancel", {}, 422),
    ("/runs/cancel", {"status": "all", "thread_id": "t", "run_ids": []}, 422),
    ("/threads/t/runs/none/cancel", {}, 422),
    ("/threads/t/runs/5f1f0e7c-8b1d-4d0e-9f63-3d1a2c8e7b10/cancel", {}, 404),
    ("/threads/t/runs/wait", {"assistant_id": GRAPH, "input": "text"}, 200),
    ("/threads/t/runs/wait", {"assistant_id": GRAPH, "command": {"goto": "none"}}, 200),
    ("/threads/t/runs/wait", {"assistant_id": GRAPH, "checkpoint_id": "none", "input": {}}, 404),
    ("/threads/t/runs/wait", {"assistant_id": GRAPH, "config": {"configurable": {"user": 1, "x": "\0"}}}, 200),
)


async def test_bad_input_is_refused_with_a_sentence(served: Served) -> None:
    served.open()
    async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as client:
        for where, body, status in BAD:
            escaped = json.dumps(body)  # httpx does not encode lone surrogates
            answer = await client.post(where, content=escaped, headers={"content-type": "application/json"})
            assert answer.status_code == status, (where, body, answer.text)
            assert answer.json().get("detail") or status == 200
            assert "Traceback" not in answer.text
