"""Threads over HTTP with LangGraph's official client: each is a session of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import BadRequestError, ConflictError, NotFoundError, UnprocessableEntityError
from starlette.testclient import TestClient

from session_middleware import Sessions
from session_middleware.integrations.server import Caller, app
from tests.support import agents

UNKNOWN = "1ef4a9b8-e6fb-67b1-8001-abd5184439d1"


def of_user(address: str, user: str, **headers: str) -> SyncLangGraphClient:
    return get_sync_client(url=address, headers={"x-user": user, **headers})


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text, **more}]}


def texts(state: Any) -> list[str]:
    return [message["content"] for message in state["values"]["messages"]]


def conversation(client: SyncLangGraphClient, *turns: str, **created: Any) -> str:
    """A thread that has these messages of a user and of a model in turn."""
    updates: list[dict[str, Any]] = [
        {"values": {"messages": [{"role": role, "content": text}]}, "as_node": node}
        for text, role, node in zip(turns, ["user", "ai"] * 9, ["__start__", "model"] * 9, strict=False)
    ]
    if updates[1:]:  # as a command
        updates[1] |= {"command": {"update": updates[1]["values"]}, "values": None}
    supersteps = [{"updates": [update]} for update in updates]
    thread_id: str = client.threads.create(graph_id="agent", supersteps=supersteps, **created)["thread_id"]
    return thread_id


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user of this test alone, because the tests share a server."""
    return f"user of {request.node.name}"


@pytest.fixture
def client(served: str, user: str) -> Iterator[SyncLangGraphClient]:
    with of_user(served, user) as client:
        yield client


# One thread


def test_a_thread_is_created_read_changed_and_deleted(client: SyncLangGraphClient) -> None:
    threads = client.threads
    made = threads.create(metadata={"a": 1, "n": {"x": 1, "y": 1}}, graph_id="agent")
    thread_id = made["thread_id"]
    assert (made["status"], made["values"], made["interrupts"], made["config"]) == ("idle", None, {}, {})
    assert made["metadata"] == {"a": 1, "n": {"x": 1, "y": 1}, "graph_id": "agent"}
    assert threads.get(thread_id) == made
    assert threads.get_state(thread_id)["values"] == {}
    assert threads.get_history(thread_id) == []

    changed = threads.update(thread_id, metadata={"n": {"y": 2}, "a": None, "title": "Tea"})
    assert changed["metadata"] == {"n": {"y": 2}, "graph_id": "agent", "title": "Tea"}
    assert threads.update(thread_id, metadata={"b": 1}, return_minimal=True) is None
    assert threads.update(thread_id, metadata={"title": None})["metadata"].keys() == {"n", "graph_id", "b"}

    threads.delete(thread_id)
    for call in (threads.get, threads.delete, threads.get_state, threads.copy):
        with pytest.raises(NotFoundError):
            call(thread_id)


def test_a_thread_that_exists_is_returned_only_where_the_client_wants_it(client: SyncLangGraphClient) -> None:
    thread_id = client.threads.create(metadata={"a": 1})["thread_id"]
    with pytest.raises(ConflictError):
        client.threads.create(thread_id=thread_id)
    again = client.threads.create(thread_id=thread_id, if_exists="do_nothing", metadata={"b": 2})
    assert again["metadata"] == {"a": 1}
    new = client.threads.create(thread_id=f"chat of {thread_id}", if_exists="do_nothing")
    assert client.threads.get(f"chat of {thread_id}") == new


def test_a_time_to_live_is_the_idle_timeout_of_the_session(client: SyncLangGraphClient) -> None:
    made = client.threads.create(ttl=90)
    assert "ttl" not in made
    ttl = client.threads.get(made["thread_id"], include=["ttl"])["ttl"]  # type: ignore[typeddict-item]
    assert (ttl["ttl_minutes"], ttl["strategy"]) == (90, "delete")
    assert ttl["expires_at"] > made["updated_at"]
    client.threads.update(made["thread_id"], metadata={}, ttl={"ttl": 5, "strategy": "keep_latest"})
    ttl = client.threads.get(made["thread_id"], include=["ttl"])["ttl"]  # type: ignore[typeddict-item]
    assert (ttl["ttl_minutes"], ttl["strategy"]) == (5, "keep_latest")
    for wrong in (0, -1, 1e12):
        with pytest.raises(UnprocessableEntityError, match="ttl"):
            client.threads.create(ttl=wrong)  # type: ignore[arg-type]


# State


def test_the_state_is_read_now_and_at_each_checkpoint(client: SyncLangGraphClient) -> None:
    threads, thread_id = client.threads, conversation(client, "hi", "hello", "tea?", "no")
    state = threads.get_state(thread_id)
    assert texts(state) == ["hi", "hello", "tea?", "no"]
    assert texts(threads.get(thread_id)) == texts(state)
    history = threads.get_history(thread_id, limit=100)
    assert history[0] == state
    assert [len(texts(each)) for each in history] == [4, 3, 2, 1]
    second = history[2]
    assert threads.get_state(thread_id, checkpoint=second["checkpoint"]) == second
    assert threads.get_state(thread_id, checkpoint_id=second["checkpoint_id"]) == second  # type: ignore[typeddict-item]
    assert threads.get_history(thread_id, before=second["checkpoint"]) == history[3:]
    assert threads.get_history(thread_id, before=second["checkpoint"]["checkpoint_id"]) == history[3:]
    by_config: Any = {"configurable": second["checkpoint"]}  # as the JavaScript client has it
    assert threads.get_history(thread_id, before=by_config) == history[3:]
    assert threads.get_history(thread_id, limit=1, metadata={"step": second["metadata"]["step"]}) == [second]  # type: ignore[index]
    assert threads.get_state(thread_id, select=["next", "values.messages"]).keys() == {"values", "next"}  # type: ignore[list-item]
    assert threads.get_history(thread_id, select=["next"])[0] == {"next": []}
    assert threads.get_state(thread_id, checkpoint_id=UNKNOWN)["values"] == {}


def test_the_state_is_updated_also_from_an_earlier_checkpoint(client: SyncLangGraphClient) -> None:
    threads, thread_id = client.threads, conversation(client, "hi", "hello")
    changed = threads.update_state(thread_id, say("by hand"), as_node="__start__")
    assert set(changed["checkpoint"]) == {"thread_id", "checkpoint_ns", "checkpoint_id"}
    state = threads.get_state(thread_id)
    assert (texts(state), state["next"]) == (["hi", "hello", "by hand"], ["model"])
    assert state["checkpoint"] == changed["checkpoint"]
    first = threads.get_history(thread_id, limit=9)[-1]
    threads.update_state(thread_id, say("another"), as_node="__start__", checkpoint=first["checkpoint"])
    assert texts(threads.get_state(thread_id)) == ["hi", "another"]
    with pytest.raises(NotFoundError, match="no such checkpoint"):
        threads.update_state(thread_id, say("lost"), as_node="__start__", checkpoint_id=UNKNOWN)
    message = "the graph refused it"
    for wrong in ({"as_node": "unknown"}, {"values": {"messages": 5}, "as_node": "model"}, {"values": [1]}):
        with pytest.raises(UnprocessableEntityError, match=message):
            threads.update_state(thread_id, **{"values": {}, **wrong})  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match="of no graph of this server"):
        threads.update_state(threads.create()["thread_id"], {})


def test_an_unknown_subgraph_has_no_values(client: SyncLangGraphClient) -> None:
    threads, thread_id = client.threads, conversation(client, "hi", "hello")
    elsewhere: Any = {**(threads.get_state(thread_id)["checkpoint"]), "checkpoint_ns": "no:1"}
    assert threads.get_state(thread_id, checkpoint=elsewhere)["values"] == {}


def test_a_copy_has_the_history_and_a_pruned_thread_the_latest_state(client: SyncLangGraphClient) -> None:
    threads, thread_id = client.threads, conversation(client, "hi", "hello", "tea?", metadata={"a": 1})
    copy: Any = threads.copy(thread_id)
    assert copy["metadata"] == {"a": 1, "graph_id": "agent", "title": "hi"}
    assert len(threads.get_history(copy["thread_id"])) == 3
    threads.update_state(copy["thread_id"], say("in the copy"), as_node="__start__")
    assert texts(threads.get_state(thread_id)) == ["hi", "hello", "tea?"]

    kept = threads.prune([thread_id, thread_id, UNKNOWN], strategy="keep_latest")
    assert kept == {"pruned_count": 1}
    assert len(threads.get_history(thread_id)) == 1
    assert texts(threads.get_state(thread_id)) == ["hi", "hello", "tea?"]
    assert threads.prune([thread_id, copy["thread_id"], UNKNOWN]) == {"pruned_count": 2}
    assert threads.search() == []


# Searching


def test_threads_are_searched_counted_sorted_and_paged(client: SyncLangGraphClient) -> None:
    threads = client.threads
    ids = [
        threads.create(metadata={"n": number, "half": number // 2, "deep": {"x": [number]}})["thread_id"]
        for number in range(4)
    ]

    def found(**wanted: Any) -> list[int]:
        return [ids.index(each["thread_id"]) for each in threads.search(**wanted)]

    assert found() == [3, 2, 1, 0]
    assert found(limit=2, offset=1) == [2, 1]
    assert found(metadata={"half": 0}, limit=1, offset=1) == [0]
    assert found(metadata={"deep": {"x": [2]}}) == [2]
    assert found(metadata={"n": True}) == found(metadata={"n": "1"}) == found(metadata={"other": 1}) == []
    assert found(ids=[ids[0], ids[2], UNKNOWN]) == [2, 0]
    assert found(sort_by="created_at", sort_order="asc") == [0, 1, 2, 3]
    assert found(sort_by="thread_id") == sorted(range(4), key=ids.__getitem__, reverse=True)
    assert found(sort_by="status", status="idle", limit=1) != []
    assert found(status="busy") == []
    assert (threads.count(), threads.count(metadata={"half": 1}), threads.count(status="error")) == (4, 2, 0)
    assert threads.search(select=["thread_id", "status"], limit=1) == [{"thread_id": ids[3], "status": "idle"}]


def test_threads_are_searched_by_their_values_and_parts_of_them_extracted(client: SyncLangGraphClient) -> None:
    tea, _ = conversation(client, "tea", "yes"), conversation(client, "coffee", "no")
    by_value = {"messages": [{"content": "tea", "type": "human"}]}
    assert [each["thread_id"] for each in client.threads.search(values=by_value)] == [tea]
    assert client.threads.count(values=by_value) == 1
    paths = {"last": "values.messages[-1].content", "first": "values.messages[0].type", "none": "values.other[9].x"}
    (found,) = client.threads.search(ids=[tea], extract=paths, select=["thread_id"])
    assert found["extracted"] == {"last": "yes", "first": "human", "none": None}
    for wrong in ({"a b": "values"}, {"a": "other.x"}, {"a": "values.messages["}, {"a": "values..x"}):
        with pytest.raises(UnprocessableEntityError, match="extract"):
            client.threads.search(extract=wrong)


# Other users, and sessions that the host opened


def test_a_thread_of_another_user_is_not_found_in_any_route(client: SyncLangGraphClient, served: str) -> None:
    thread_id = conversation(client, "secret", "PLUGH")
    checkpoint = client.threads.get_state(thread_id)["checkpoint"]
    with of_user(served, "mallory", **{"x-groups": "team"}) as mallory:
        threads = mallory.threads
        for call in (
            lambda: threads.get(thread_id),
            lambda: threads.update(thread_id, metadata={"a": 1}),
            lambda: threads.delete(thread_id),
            lambda: threads.copy(thread_id),
            lambda: threads.get_state(thread_id),
            lambda: threads.get_state(thread_id, checkpoint=checkpoint),
            lambda: threads.get_state(thread_id, checkpoint_id=checkpoint["checkpoint_id"]),
            lambda: threads.update_state(thread_id, {}),
            lambda: threads.get_history(thread_id),
            lambda: threads.create(thread_id=thread_id, if_exists="do_nothing"),
        ):
            with pytest.raises(NotFoundError):
                call()
        assert threads.search(ids=[thread_id]) == threads.search() == []
        assert threads.prune([thread_id]) == {"pruned_count": 0}
        own = threads.create(graph_id="agent")["thread_id"]
        assert threads.get_state(own, checkpoint=checkpoint)["values"] == {}
    assert texts(client.threads.get_state(thread_id)) == ["secret", "PLUGH"]


def test_an_operator_has_access_to_all_threads_and_owns_new_ones(client: SyncLangGraphClient, served: str) -> None:
    thread_id = conversation(client, "hi", "hello")
    with of_user(served, "root", **{"x-operator": "yes"}) as operator, of_user(served, "root") as root:
        assert texts(operator.threads.get_state(thread_id)) == ["hi", "hello"]
        assert [each["thread_id"] for each in operator.threads.search(ids=[thread_id])] == [thread_id]
        operator.threads.update_state(thread_id, say("by the operator"), as_node="__start__")
        with pytest.raises(ConflictError):
            operator.threads.create(thread_id=thread_id)
        own = operator.threads.create()["thread_id"]
        assert root.threads.get(own)["thread_id"] == own
        assert operator.threads.prune([own], strategy="keep_latest") == {"pruned_count": 1}
        operator.threads.delete(own)
        with pytest.raises(NotFoundError):
            operator.threads.delete(own)
    assert len(texts(client.threads.get_state(thread_id))) == 3


def test_what_a_client_cannot_mean_is_refused_in_a_sentence(client: SyncLangGraphClient, served: str) -> None:
    for wrong in ("a\0b", "x" * 2000):
        for call in (client.threads.create, client.threads.get):
            with pytest.raises(UnprocessableEntityError):
                call(thread_id=wrong)
    with pytest.raises(UnprocessableEntityError, match="limit: input should be"):
        client.threads.search(limit=0)
    with pytest.raises(UnprocessableEntityError, match="select"):
        client.threads.search(select=["other"])  # type: ignore[list-item]
    refused = httpx.request("PUT", f"{served}/threads/{UNKNOWN}", headers={"x-user": "alice"}, timeout=60)
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, PATCH")
    with pytest.raises(UnprocessableEntityError, match="metadata"):
        client.threads.update(UNKNOWN, metadata=[1])  # type: ignore[arg-type]


def test_sessions_that_python_opened_are_threads_too(sessions: Sessions) -> None:
    """In the process of the app, with one graph, which is then that of the sessions that name none."""
    graph = sessions.attach(agents.agent())
    graph.invoke(say("ask tea"), sessions.config("asked", user_id="alice"))
    graph.invoke(say("hi"), sessions.config("said", user_id="alice"))
    with pytest.raises(RuntimeError):
        graph.invoke(say("break tea"), sessions.config("broken", user_id="alice"))

    one, two = ({"agent": agents.agent()}, {"agent": agents.agent(), "chat": agents.chat()})
    for graphs in (one, two):
        http = TestClient(app(sessions, graphs, authenticate=lambda _: Caller("alice")))
        found = {each["thread_id"]: each for each in http.post("/threads/search", json={}).json()}
        assert {name: each["status"] for name, each in found.items()} == {
            "asked": "interrupted", "said": "idle", "broken": "error",
        }  # fmt: skip
        assert found["broken"]["error"] == {"error": "RuntimeError", "message": "no tea today"}
        assert texts(found["said"]) == ["hi", "you said hi"]
        assert found["said"]["metadata"]["title"] == "hi"
        state = http.get("/threads/asked/state").json()
        assert [each["value"] for each in state["interrupts"]] == ["may I have tea?"]
        assert len(http.post("/threads/said/history", json={"limit": 9}).json()) == 3
        assert http.post("/threads/count", json={"status": "interrupted"}).json() == 1

    by_graph = {"metadata": {"graph_id": "agent"}}
    http = TestClient(app(sessions, one, authenticate=lambda _: Caller("alice")))
    assert len(http.post("/threads/search", json=by_graph).json()) == 3
    assert http.post("/threads/count", json=by_graph).json() == 3
    (asked,) = http.get("/threads/asked").json()["interrupts"].values()
    assert [each["value"] for each in asked] == ["may I have tea?"]


def test_a_thread_that_is_shared_with_a_group_is_read_or_changed_as_its_visibility_says(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    for name, visibility in (("read", "group"), ("write", "group-write")):
        sessions.open(name, user_id="alice", group_id="team", visibility=visibility)  # type: ignore[arg-type]
        graph.invoke(say("hi"), sessions.config(name, user_id="alice", group_id="team"))
    http = TestClient(app(sessions, {"chat": agents.chat()}, authenticate=lambda _: Caller("bob", ("team",))))
    change = {"values": say("from bob"), "as_node": "__start__"}
    for name, status in (("read", 403), ("write", 200)):
        assert texts(http.get(f"/threads/{name}/state").json()) == ["hi", "you said hi"]
        assert http.patch(f"/threads/{name}", json={"metadata": {"a": 1}}).status_code == status
        assert http.post(f"/threads/{name}/state", json=change).status_code == status
        assert http.post(f"/threads/{name}/copy").status_code == status
    assert http.post("/threads/prune", json={"thread_ids": ["read", "write"]}).json() == {"pruned_count": 1}
    assert len(http.post("/threads/search", json={}).json()) == 2  # with the copy


# Several processes


@pytest.mark.slow
def test_a_thread_is_the_same_on_each_process_of_one_database(served_twice: tuple[str, str]) -> None:
    with of_user(served_twice[0], "alice") as one, of_user(served_twice[1], "alice") as other:
        thread_id = conversation(one, "hi", "hello", metadata={"a": 1})
        assert other.threads.get(thread_id) == one.threads.get(thread_id)
        other.threads.update(thread_id, metadata={"b": 2})
        other.threads.update_state(thread_id, say("from the other"), as_node="__start__")
        assert texts(one.threads.get_state(thread_id)) == ["hi", "hello", "from the other"]
        assert [each["metadata"]["b"] for each in one.threads.search(metadata={"a": 1, "b": 2})] == [2]  # type: ignore[index]
        copy: Any = one.threads.copy(thread_id)
        other.threads.delete(thread_id)
        with pytest.raises(NotFoundError):
            one.threads.get_state(thread_id)
        assert len(texts(other.threads.get_state(copy["thread_id"]))) == 3
        one.store.put_item(["user", "alice"], "k", {"n": 1})
        assert other.store.search_items(["user"] + ["alice"], filter={"n": 1})["items"][0]["key"] == "k"


UNCLEAR = (
    (b"{", "the body is not JSON"),
    (b"[]", "the body: input should be"),
    (b'{"metadata": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}", "metadata: input is nested more than 100 levels"),
    (b'{"ttl": {"ttl": -1}}', "ttl"),
    (b'{"thread_id": "\\ud83d"}', "thread_id: input should be a valid string"),
)


def test_a_body_that_cannot_be_meant_changes_nothing(served: str) -> None:
    with httpx.Client(
        base_url=served, headers={"x-user": "careless", "content-type": "application/json"}, timeout=60
    ) as http:
        for body, sentence in UNCLEAR:
            refused = http.post("/threads", content=body)
            assert refused.status_code == 422
            assert sentence in refused.json()["detail"]
        assert http.post("/threads/search", json={}).json() == []


def test_a_thread_whose_state_its_graph_cannot_read_is_listed_with_the_others(client: SyncLangGraphClient) -> None:
    whole, thread_id = conversation(client, "hi", "hello"), client.threads.create(graph_id="agent")["thread_id"]
    client.threads.update_state(thread_id, say("hi"), as_node="__input__")
    with pytest.raises(UnprocessableEntityError, match="the graph refused it"):  # LangGraph has stored the write then
        client.threads.update_state(thread_id, {"messages": [{"type": "remove"}]}, as_node="__start__")
    with pytest.raises(UnprocessableEntityError, match="the graph refused it"):
        client.threads.get_state(thread_id)
    found = {each["thread_id"]: each["values"] for each in client.threads.search()}
    assert found.keys() == {whole, thread_id}
    assert found[thread_id] is None
    client.threads.delete(thread_id)
