"""Documents that belong to a session, a user or a group, in LangChain's in-memory vector store."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from session_middleware import Sessions
from session_middleware.errors import MemoryScopeUnavailable
from tests.support.embeddings import SubjectEmbeddings

pytestmark = pytest.mark.sessions(":memory:")


@pytest.fixture
def store() -> InMemoryVectorStore:
    return InMemoryVectorStore(SubjectEmbeddings())


def texts(found: Any) -> set[str]:
    return {document.page_content for document in found}


def filled(sessions: Sessions, store: InMemoryVectorStore) -> None:
    for name in ("alice", "bob"):
        session = sessions.open(f"of-{name}", user_id=name, group_id="red" if name == "alice" else "blue")
        for scope in ("session", "user", "group", "global"):
            sessions.scope(store, scope=scope, session=session).add_texts([f"dog of {name} ({scope})"])  # type: ignore[arg-type]
    store.add_texts(["dog of nobody"])


def test_each_sees_what_is_theirs_and_what_is_everybodys(sessions: Sessions, store: InMemoryVectorStore) -> None:
    filled(sessions, store)
    everybodys = {"dog of alice (global)", "dog of bob (global)"}
    own = {f"dog of alice ({scope})" for scope in ("session", "user", "group")}
    scoped = sessions.scope(store, session=sessions.get("of-alice"))
    assert texts(scoped.similarity_search("hound", k=20)) == own | everybodys
    other = sessions.scope(store, session=sessions.open("new", user_id="alice"))
    assert texts(other.similarity_search("hound", k=20)) == {"dog of alice (user)"} | everybodys
    narrow = sessions.scope(store, session=sessions.get("of-alice"), scopes=["session"])
    assert texts(narrow.similarity_search("hound", k=20)) == {"dog of alice (session)"}


async def test_its_retriever_finds_the_session_in_the_config(sessions: Sessions, store: InMemoryVectorStore) -> None:
    filled(sessions, store)
    retriever = sessions.scope(store, scopes=["user"]).as_retriever(search_kwargs={"k": 5})
    for name in ("alice", "bob"):
        config = sessions.config(f"of-{name}", user_id=name)
        assert texts(retriever.invoke("hound", config)) == {f"dog of {name} (user)"}
        assert texts(await retriever.ainvoke("hound", config)) == {f"dog of {name} (user)"}
    augmented = sessions.augment(retriever)
    assert texts(augmented.invoke("hound", sessions.config("of-bob", user_id="bob"))) == {"dog of bob (user)"}


def test_a_filter_of_ones_own_narrows_further(sessions: Sessions, store: InMemoryVectorStore) -> None:
    scoped = sessions.scope(store, session=sessions.open("t"))
    scoped.add_documents([Document("a puppy", metadata={"n": 1}), Document("a hound", metadata={"n": 2})])
    found = scoped.similarity_search("dog", filter=lambda document: document.metadata["n"] == 2)
    assert texts(found) == {"a hound"}
    with pytest.raises(ValueError, match="filter"):
        scoped.similarity_search("dog", filter={"n": 2})


def test_a_store_that_ignores_the_filter_still_shows_nobody_elses(
    sessions: Sessions, store: InMemoryVectorStore
) -> None:
    filled(sessions, store)
    scoped = sessions.scope(store, session=sessions.get("of-bob"), filter_for=lambda key, values: None)
    found = texts(scoped.similarity_search("hound", k=50))
    assert found == {f"dog of bob ({s})" for s in ("session", "user", "group", "global")} | {"dog of alice (global)"}


def test_what_is_anothers_is_neither_got_nor_deleted_nor_overwritten(
    sessions: Sessions, store: InMemoryVectorStore
) -> None:
    alice = sessions.scope(store, session=sessions.open("a", user_id="alice"), scope="user")
    bob = sessions.scope(store, session=sessions.open("b", user_id="bob"), scope="user")
    alice.add_texts(["my dog"], ids=["1"])
    assert bob.get_by_ids(["1"]) == []
    bob.delete(["1"])
    with pytest.raises(ValueError, match="another scope"):
        bob.add_texts(["not yours"], ids=["1"])
    assert texts(alice.get_by_ids(["1"])) == {"my dog"}
    alice.delete(["1"])
    assert alice.get_by_ids(["1"]) == []


def test_a_stamp_cannot_be_forged(sessions: Sessions, store: InMemoryVectorStore) -> None:
    bob = sessions.scope(store, session=sessions.open("b", user_id="bob"))
    bob.add_texts(["a dog"], [{"session_scope": '["user","alice"]'}])
    assert sessions.scope(store, session=sessions.open("a", user_id="alice")).similarity_search("dog") == []


def test_a_scope_without_an_id_takes_no_documents(sessions: Sessions, store: InMemoryVectorStore) -> None:
    with pytest.raises(MemoryScopeUnavailable):
        sessions.scope(store, scope="user", session=sessions.open("t")).add_texts(["a dog"])


def test_a_search_for_what_differs_shows_what_is_visible(sessions: Sessions, store: InMemoryVectorStore) -> None:
    filled(sessions, store)
    alices = sessions.scope(store, session=sessions.get("of-alice"))
    seen = texts(alices.max_marginal_relevance_search("dog", 9))
    assert seen == texts(alices.similarity_search("dog", 9))
    assert "dog of bob (user)" not in seen
    assert alices.max_marginal_relevance_search("dog", 9, filter=lambda document: False) == []


def test_deleting_says_whether_all_were_there_to_be_deleted(sessions: Sessions, store: InMemoryVectorStore) -> None:
    mine, others = (sessions.scope(store, session=sessions.open(name)) for name in ("a", "b"))
    ids, foreign = mine.add_texts(["dog", "hound"]), others.add_texts(["puppy"])
    assert mine.delete(foreign) is False
    assert mine.delete(["nobody"]) is False
    assert mine.delete([ids[0], *foreign]) is False
    assert mine.delete([ids[1]]) is True
    assert mine.get_by_ids(ids) == []
    assert texts(others.get_by_ids(foreign)) == {"puppy"}
    with pytest.raises(ValueError, match="give ids"):
        mine.delete()
