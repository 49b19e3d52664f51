"""Documents of a session are changed by those who may change it, and end with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from session_middleware import SessionAccessDenied, SessionNotFound, Sessions
from session_middleware.session import Session
from tests.conftest import Clock
from tests.support.embeddings import SubjectEmbeddings

pytestmark = pytest.mark.sessions(":memory:")


@pytest.fixture
def store() -> InMemoryVectorStore:
    return InMemoryVectorStore(SubjectEmbeddings())


@pytest.fixture
def shared(sessions: Sessions) -> Session:
    """Of alice, and read by bob."""
    return sessions.open("t", user_id="alice", group_id="team", visibility="group")


def texts(scoped: Any) -> list[str]:
    return [document.page_content for document in scoped.similarity_search("dog", k=9)]


@pytest.mark.parametrize("scope", ["session", "user"])
def test_one_who_may_only_read_a_session_changes_none_of_its_documents(
    scope: Any, sessions: Sessions, store: InMemoryVectorStore, shared: Session
) -> None:
    [id_] = sessions.scope(store, session=shared).add_texts(["dog of alice"])
    bobs = sessions.scope(store, session=sessions.for_user("bob", ["team"]).get("t"), scope=scope)
    with pytest.raises(SessionAccessDenied):
        bobs.add_texts(["dog of bob"], ids=[id_])
    with pytest.raises(SessionAccessDenied):
        bobs.delete([id_])
    assert texts(bobs) == ["dog of alice"]


def test_by_a_config_neither(sessions: Sessions, store: InMemoryVectorStore, shared: Session) -> None:
    [id_] = sessions.scope(store, session=shared).add_texts(["dog of alice"])
    scoped = sessions.scope(store)
    config = sessions.config("t", user_id="bob", group_ids=["team"])
    for change in (lambda _: scoped.add_texts(["dog of bob"]), lambda _: scoped.delete([id_])):
        with pytest.raises(SessionAccessDenied):
            RunnableLambda(change).invoke("x", config)
    assert texts(sessions.scope(store, session=shared)) == ["dog of alice"]


def test_whoever_may_no_longer_read_a_session_finds_none_of_its_documents(
    sessions: Sessions, store: InMemoryVectorStore, shared: Session
) -> None:
    sessions.scope(store, session=shared).add_texts(["dog of alice"])
    bobs = sessions.scope(store, session=sessions.for_user("bob", ["team"]).get("t"))
    shared.update(visibility="private")
    with pytest.raises(SessionNotFound):
        texts(bobs)


@pytest.mark.parametrize("user_id", ["alice", None])
def test_the_next_session_of_an_id_has_no_documents_of_the_one_before(
    user_id: str | None, sessions: Sessions, store: InMemoryVectorStore
) -> None:
    session = sessions.open("t", user_id=user_id)
    scoped = sessions.scope(store, session=session)
    [id_] = scoped.add_texts(["dog"])
    sessions.forget_user(user_id) if user_id else sessions.delete("t")
    after = sessions.scope(store, session=sessions.open("t", user_id="mallory"))
    assert (texts(after), after.get_by_ids([id_]), after.delete([id_])) == ([], [], False)
    with pytest.raises(SessionNotFound, match="was deleted"):
        scoped.add_texts(["a late dog"])


def test_a_restored_session_has_its_documents(store: InMemoryVectorStore, clock: Clock, tmp_path: Path) -> None:
    sessions = Sessions(
        tmp_path / "sessions.db", clock=clock, idle_timeout="1h", on_expire="archive", sweep_interval=None
    )
    sessions.scope(store, session=sessions.open("t", user_id="alice")).add_texts(["dog"])
    for _ in range(2):
        clock.advance(hours=2)
        sessions.sweep()
        assert sessions.find("t") is None
        assert texts(sessions.scope(store, session=sessions.restore("t"))) == ["dog"]


def test_documents_added_before_a_session_is_there_open_it(sessions: Sessions, store: InMemoryVectorStore) -> None:
    scoped = sessions.scope(store)
    config = sessions.config("t", user_id="alice")
    RunnableLambda(lambda _: scoped.add_texts(["dog"])).invoke("x", config)
    assert texts(sessions.scope(store, session=sessions.get("t"))) == ["dog"]
    assert sessions.get("t").user_id == "alice"
