"""Vectors: made outside of transactions, found with words, never wrong when the model is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session_middleware.errors import EmbeddingFailed, InvalidSettings
from session_middleware.memory.embedding import Embedder, model_of
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.memory.store import SessionStore
from session_middleware.models import Identity
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from tests.conftest import Clock
from tests.support.embeddings import SubjectEmbeddings
from tests.support.memories import put_of
from tests.support.pairwise import engines_in_turns


@pytest.fixture
def model() -> SubjectEmbeddings:
    return SubjectEmbeddings()


@pytest.fixture
def parts_of(
    storage: Storage, offload: StorageExecutor, clock: Clock, new_id: Callable[[], str]
) -> Iterator[Callable[..., MemoryIndexer]]:
    made: list[MemoryIndexer] = []

    def make(model: SubjectEmbeddings, **config: Any) -> MemoryIndexer:
        embedder = Embedder(storage, model_of({"dims": model.dimensions, "embed": model, **config}))
        made.append(MemoryIndexer(storage, offload, clock=clock, new_id=new_id, embedder=embedder))
        return made[-1]

    yield make
    for parts in made:
        parts.close()


@pytest.fixture
def parts(parts_of: Callable[..., MemoryIndexer], model: SubjectEmbeddings) -> MemoryIndexer:
    return parts_of(model)


@pytest.fixture
def store(parts: MemoryIndexer) -> SessionStore:
    return SessionStore(parts)


def keys(found: Any) -> list[str]:
    return [item.key for item in found]


def say(storage: Storage, *texts: str, session_id: str = "t", user_id: str | None = None, **fields: Any) -> None:
    seen = [MessageEntry(f"m{n}", "user", text, **fields) for n, text in enumerate(texts)]
    storage.append(RunContext(session_id, Identity(user_id=user_id), is_run=False), seen)


def test_what_is_meant_is_found_without_its_words(store: SessionStore) -> None:
    store.put(("n",), "pet", {"text": "my puppy"})
    store.put(("n",), "car", {"text": "a red truck"})
    assert keys(store.search(("n",), query="which hound?"))[0] == "pet"
    assert keys(store.search(("n",), query="any vehicle"))[0] == "car"


def test_words_and_meaning_count_together(store: SessionStore) -> None:
    store.put(("n",), "both", {"text": "a puppy called Rex"})
    store.put(("n",), "meaning", {"text": "a hound"})
    store.put(("n",), "words", {"text": "the car of Rex"})
    found = store.search(("n",), query="the dog Rex")
    assert keys(found)[0] == "both"
    assert set(keys(found)) == {"both", "meaning", "words"}


def test_the_texts_of_a_batch_go_to_the_model_in_one_call(store: SessionStore, model: SubjectEmbeddings) -> None:
    from langgraph.store.base import PutOp

    store.batch([PutOp(("n",), str(n), {"text": f"puppy {n}"}) for n in range(20)])
    assert [len(call) for call in model.calls] == [20]


def test_each_path_has_a_vector_of_its_own_and_the_nearest_counts(store: SessionStore) -> None:
    store.put(("n",), "k", {"a": "puppy", "b": ["car", "soup"], "c": "nothing"}, index=["a", "b[*]"])
    store.put(("n",), "hidden", {"a": "puppy"}, index=False)
    scores = [store.search(("n",), query=query)[0].score for query in ("hound", "vehicle", "dinner")]
    assert scores == [pytest.approx(scores[0])] * 3
    assert keys(store.search(("n",), query="hound")) == ["k", "hidden"]


def test_the_fields_of_the_settings_are_what_has_vectors(
    parts_of: Callable[..., MemoryIndexer], model: SubjectEmbeddings
) -> None:
    store = SessionStore(parts_of(model, fields=["title"]))
    store.put(("n",), "k", {"title": "puppy", "body": "car"})
    assert model.calls == [["puppy"]]


def test_an_item_put_again_or_deleted_loses_its_old_vector(store: SessionStore) -> None:
    store.put(("n",), "k", {"text": "puppy"})
    store.put(("n",), "k", {"text": "truck"})
    store.put(("n",), "other", {"text": "soup"})
    assert keys(store.search(("n",), query="vehicle"))[0] == "k"
    first, second = store.search(("n",), query="hound", limit=2)
    assert first.score == pytest.approx(second.score, abs=0.1)
    store.delete(("n",), "k")
    assert keys(store.search(("n",), query="vehicle")) == ["other"]


def test_messages_are_found_by_what_is_meant(storage: Storage, parts: MemoryIndexer) -> None:
    say(storage, "I walked my puppy", "Nice.", "Then I had soup", "Fine.")
    assert parts.index() == (4, 4)
    memory = SessionMemory(parts, parts.storage, RunContext("t", Identity()), owner_id=None, group_id=None)
    assert keys(memory.recall("what about the hound?", 1)) == ["m0"]
    [found] = memory.recall("the hound", 1, explain=True)
    assert found.parts is not None
    assert found.parts["vector"] > 0.5
    assert found.parts["words"] == 0.0


def test_names_of_speakers_are_not_part_of_what_is_meant(
    storage: Storage, parts: MemoryIndexer, model: SubjectEmbeddings
) -> None:
    say(storage, "I walked my puppy", user_id="u", name="Carol")
    parts.index()
    memory = SessionMemory(parts, parts.storage, RunContext("t", Identity(user_id="u")), owner_id="u", group_id=None)
    memory.recall("What is Carol's dog called?")
    assert model.queries == ["What is  dog called?"]


def test_a_failing_model_leaves_items_stored_and_they_are_indexed_later(
    store: SessionStore, model: SubjectEmbeddings, caplog: pytest.LogCaptureFixture
) -> None:
    model.fails = ConnectionError("no network")
    for n in range(3):
        store.put(("n",), str(n), {"text": f"puppy {n}"})
    assert keys(store.search(("n",), query="puppy")) == ["0", "1", "2"]
    assert [record.message for record in caplog.records if "ConnectionError: no network" in record.message]
    assert len(caplog.records) == 1  # told once
    model.fails = None
    store.put(("n",), "3", {"text": "soup"})
    assert set(keys(store.search(("n",), query="hound"))[:3]) == {"0", "1", "2"}


@engines_in_turns("storage_url", answer=[[[1.0, 2.0]], [[math.nan] * 4], [[math.inf] * 4], [[0.0] * 4, [0.0] * 4], []])
def test_what_is_no_vector_is_not_stored(
    store: SessionStore, model: SubjectEmbeddings, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    model.answers = answer or [[1.0] * 5]
    store.put(("n",), "k", {"text": "puppy"})
    assert [record for record in caplog.records if record.levelno == logging.WARNING]
    assert keys(store.search(("n",), query="puppy")) == ["k"]
    model.answers = None
    store.put(("n",), "l", {"text": "soup"})
    assert keys(store.search(("n",), query="hound"))[0] == "k"


def test_a_vector_of_zeros_is_near_nothing(store: SessionStore, model: SubjectEmbeddings) -> None:
    model.answers = [[0.0] * 4]
    store.put(("n",), "k", {"text": "puppy"})
    model.answers = None
    assert keys(store.search(("n",), query="hound")) == ["k"]


def test_another_model_is_noticed_told_and_indexed_by_a_command(
    parts_of: Callable[..., MemoryIndexer], model: SubjectEmbeddings, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    store = SessionStore(parts_of(model))
    store.put(("n",), "k", {"text": "puppy"})
    other = SubjectEmbeddings(dimensions=6, model="subjects-2")
    parts = parts_of(other)
    store = SessionStore(parts)
    store.put(("n",), "l", {"text": "hound"})
    assert keys(store.search(("n",), query="puppy")) == ["k"]
    assert other.calls == other.queries == []
    assert "subjects-1" in caplog.text
    assert "index_memory(rebuild=True)" in caplog.text
    assert parts.index(rebuild=True).vectors == 2
    assert keys(store.search(("n",), query="pet")) == ["k", "l"]
    assert storage.set_vector_model("other", 3) == ("tests.support.embeddings.SubjectEmbeddings:subjects-2", 6)


def test_a_model_of_the_same_name_whose_weights_have_changed_can_make_all_vectors_anew(
    parts: MemoryIndexer, store: SessionStore, model: SubjectEmbeddings
) -> None:
    store.put(("n",), "k", {"text": "puppy"})
    assert parts.index() == (0, 0)
    model.answers = [[0.0, 0.0, 1.0, 0.0]]
    assert parts.index(rebuild=True).vectors == 1
    assert store.search(("n",), query="dinner")[0].score == pytest.approx(1.0, abs=0.05)


def test_a_model_that_does_not_answer_a_rebuild_is_told_of_and_takes_no_vector(
    parts: MemoryIndexer, store: SessionStore, model: SubjectEmbeddings
) -> None:
    store.put(("n",), "k", {"text": "puppy"})
    model.fails = ConnectionError("nobody there")
    with pytest.raises(EmbeddingFailed, match=r"ConnectionError: nobody there.*index="):
        parts.index(rebuild=True)
    model.fails = None
    assert store.search(("n",), query="dog")[0].score == pytest.approx(1.0, abs=0.05)


def test_what_changes_while_the_model_works_is_given_no_old_vector(
    storage: Storage, parts: MemoryIndexer, store: SessionStore, model: SubjectEmbeddings
) -> None:
    from session_middleware.storage.memory_types import Vectors

    storage.put_memories([put_of(("n",), "k", {"text": "puppy"}, "puppy", embed=True)])
    parts.embedder.is_current()  # type: ignore[union-attr]
    [waiting] = storage.list_to_embed(10, messages=False)
    storage.put_memories([put_of(("n",), "k", {"text": "soup"}, "soup", embed=True)])
    storage.put_vectors([Vectors(waiting, [[1.0, 0.0, 0.0, 0.0]])])
    assert len(storage.list_to_embed(10, messages=False)) == 1
    parts.embed_items()
    assert store.search(("n",), query="dinner")[0].score == pytest.approx(1.0, abs=0.05)


def test_vectors_go_with_their_session(storage: Storage, parts: MemoryIndexer) -> None:
    say(storage, "my puppy", user_id="u")
    say(storage, "my hound", session_id="other", user_id="u")
    parts.index()
    storage.delete_session("t")
    memory = SessionMemory(
        parts, parts.storage, RunContext("other", Identity(user_id="u")), owner_id="u", group_id=None
    )
    assert [m.session_id for m in memory.recall("dog")] == ["other"]


def test_a_config_without_a_model_or_dimensions_is_refused() -> None:
    config: Any
    for config in ({}, {"dims": 0}, {"dims": "4"}, {"dims": True}, {"dims": 4, "embed": None}):
        with pytest.raises(InvalidSettings, match="index"):
            model_of(config)
