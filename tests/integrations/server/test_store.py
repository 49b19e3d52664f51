"""The store over HTTP with LangGraph's official client: a user has the own namespaces, an operator all."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import PermissionDeniedError, UnprocessableEntityError


@pytest.fixture
def client(served: str) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=served, headers={"x-user": "alice", "x-groups": "team"}) as client:
        yield client


def test_items_are_put_got_searched_listed_and_deleted(client: SyncLangGraphClient) -> None:
    store, notes = client.store, ["user", "alice", "notes"]
    store.put_item(notes, "tea", {"text": "green tea", "n": 1})
    store.put_item(notes, "coffee", {"text": "black coffee", "n": 2}, index=False, ttl=5)
    store.put_item(["group", "team"], "shared", {"a": [1]}, index=["a"])
    item = store.get_item(notes, "tea")
    assert (item["namespace"], item["key"], item["value"]) == (notes, "tea", {"text": "green tea", "n": 1})
    assert item["created_at"] <= item["updated_at"]
    assert store.get_item(notes, "unknown") is None
    found = store.search_items(["user", "alice"], filter={"n": {"$gt": 1}})["items"]
    assert [(each["key"], each["score"]) for each in found] == [("coffee", None)]
    assert [each["key"] for each in store.search_items(notes, query="tea")["items"]] == ["tea"]
    assert {each["key"] for each in store.search_items([])["items"]} == {"tea", "coffee", "shared"}
    assert store.list_namespaces()["namespaces"] == [["group", "team"], notes]
    assert store.list_namespaces(prefix=["user"], max_depth=2)["namespaces"] == [["user", "alice"]]
    store.delete_item(notes, "tea")
    store.delete_item(notes, "tea")
    assert store.get_item(notes, "tea") is None


def test_namespaces_of_others_and_of_the_app_are_for_operators(client: SyncLangGraphClient, served: str) -> None:
    headers = {"x-user": "root", "x-operator": "yes"}
    with get_sync_client(url=served, headers=headers) as operator:
        for namespace in (["user", "bob"], ["group", "others"], ["session", "t"], ["notes"]):
            operator.store.put_item(namespace, "k", {"secret": "PLUGH"})
            assert operator.store.get_item(namespace, "k")["value"] == {"secret": "PLUGH"}
            for call in (
                lambda: client.store.get_item(namespace, "k"),  # noqa: B023
                lambda: client.store.put_item(namespace, "k", {}),  # noqa: B023
                lambda: client.store.delete_item(namespace, "k"),  # noqa: B023
                lambda: client.store.search_items(namespace),  # noqa: B023
            ):
                with pytest.raises(PermissionDeniedError, match=r"begin with \['user', 'alice'\]"):
                    call()
    assert "PLUGH" not in str(client.store.search_items([], limit=100))
    assert ["notes"] not in client.store.list_namespaces()["namespaces"]


def test_what_the_store_refuses_is_said_in_a_sentence(client: SyncLangGraphClient, served: str) -> None:
    with pytest.raises(UnprocessableEntityError, match="namespace"):
        client.store.put_item([], "k", {})
    with pytest.raises(UnprocessableEntityError, match="operator"):
        client.store.search_items(["user", "alice"], filter={"n": {"$unknown": 1}})
    half = b'{"namespace": ["user", "alice"], "key": "\\ud83d", "value": {"a": NaN, "b": "\\ud83d"}}'
    headers = {"x-user": "alice", "content-type": "application/json"}
    refused = httpx.put(f"{served}/store/items", content=half, headers=headers, timeout=60)
    assert refused.status_code == 422
    assert "surrogate" in refused.json()["detail"]
