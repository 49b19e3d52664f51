"""Session-aware retrieval: questions that lean on what was said find their documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from benchmarks.follow_ups import ALONE as ALONE_TOO
from benchmarks.follow_ups import DOCUMENTS, WordRetriever, hits, names, said
from session_middleware import Sessions
from session_middleware.memory.query_rewriting import complete, depends_on_context

ALONE = [
    ("How long does delivery take?", {"delivery"}),
    ("Are you looking for carpenters in Bremen?", {"jobs"}),
    ("How much does the Cirrus fan cost?", {"cirrus"}),
]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions(":memory:") as sessions:
        yield sessions


def test_follow_up_questions_find_their_documents(sessions: Sessions) -> None:
    without, with_completion = (hits(sessions, WordRetriever(), completed=which) for which in (False, True))
    assert with_completion >= 0.9
    assert with_completion - without >= 0.3


def test_a_question_that_stands_alone_stays_as_it_is(sessions: Sessions) -> None:
    retriever = WordRetriever()
    config = said(sessions, "t", ["Do you have the Aurora lamp?", "Yes."])
    for question, wanted in ALONE:
        assert wanted & set(names(sessions.augment(retriever).invoke(question, config))[:3])
        assert retriever.asked[-1] == question


def test_short_questions_that_stand_alone_find_what_they_found(sessions: Sessions) -> None:
    without, with_completion = (
        hits(sessions, WordRetriever(), completed=which, questions=ALONE_TOO, first=1) for which in (False, True)
    )
    assert with_completion == without >= 0.9


def test_a_short_question_finds_the_memory_it_asks_for_whatever_was_said_before(sessions: Sessions) -> None:
    before = ["I work at a bakery.", "How nice!", "Peanuts make me ill.", "I will remember it.", "The weather is bad."]
    config = said(sessions, "t", before, user_id="alice")
    memory = sessions.get("t").memory
    memory.remember("Alice's cat is called Mimi", "cat", scope="user")
    memory.remember("Peanuts make Alice ill, so she works at a bakery without them", "peanuts", scope="user")
    found = sessions.augment(WordRetriever(), kinds=["item"]).invoke("What is the name of my cat?", config)
    assert next(document for document in found if document.metadata["from"] == "memory").metadata["key"] == "cat"


def test_the_more_a_question_says_the_less_is_added() -> None:
    before = ["The Aurora lamp, in brass or black, with a shade."]
    added = [len(complete(asked, before).split()) - len(asked.split()) for asked in ("it?", "it cost euros?")]
    assert added == [5, 3]
    assert complete("Does her cat Mimi sleep on the red sofa?", before) == "Does her cat Mimi sleep on the red sofa?"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("And how much is it?", True),
        ("Its price?", True),
        ("that one", True),
        ("why?", True),
        ("", True),
        ("What about the warranty of the brass lamp?", True),
        ("In brass?", True),
        ("What does that cover?", True),
        ("How long does delivery to Bremen take?", False),
        ("What is the name of my cat?", False),
        ("Is there a stove that burns wood?", False),
        ("oak desk", False),
        ("Why is oak oiled?", False),
    ],
)
def test_what_leans_on_what_came_before(question: str, expected: bool) -> None:
    assert depends_on_context(question) is expected


def test_nothing_is_added_where_nothing_was_said() -> None:
    assert complete("And it?", []) == complete("And it?", ["  "]) == complete("And it?", ["And it?"]) == "And it?"


def test_what_the_last_turns_were_about_is_added_first() -> None:
    before = ["I have a lamp.", "A lamp, which one?", "The Aurora lamp, in brass."]
    assert complete("And it?", before, most=2) == "And it? lamp aurora"


def test_a_function_completes_instead(sessions: Sessions) -> None:
    retriever = WordRetriever()
    config = said(sessions, "t", ["one", "two"])
    sessions.augment(retriever, complete=lambda query, before: f"{query} {len(before)}").invoke("it", config)
    assert retriever.asked[-1] == "it 2"


def test_memories_and_documents_come_in_one_list_each_saying_where_from(sessions: Sessions) -> None:
    config = sessions.config("t", user_id="alice")
    sessions.open("t", user_id="alice").memory.remember("Alice's oak desk was oiled in May", "k")
    found = sessions.augment(WordRetriever()).invoke("How is an oak desk to be oiled?", config)
    assert {document.metadata["from"] for document in found} == {"memory", "documents"}
    scores = [document.metadata["fused_score"] for document in found]
    assert scores == sorted(scores, reverse=True)
    assert max(scores) == 1.0


def test_the_same_text_comes_once_and_no_more_than_the_budget(sessions: Sessions) -> None:
    config = sessions.config("t")
    memory = sessions.open("t").memory
    memory.remember(DOCUMENTS["care-oak"].upper())
    memory.remember("oak " * 300)
    found = sessions.augment(WordRetriever(), budget_tokens=60).invoke("cleaning oak with alcohol", config)
    texts = [document.page_content.lower() for document in found]
    assert texts.count(DOCUMENTS["care-oak"].lower()) == 1
    assert sum(len(text) for text in texts) <= 4 * 60
    assert len(sessions.augment(WordRetriever(), k=2).invoke("oak", config)) == 2


async def test_async_finds_the_same(sessions: Sessions) -> None:
    config = said(sessions, "t", ["Do you have the Aurora lamp?", "Yes, in brass."])
    augmented = sessions.augment(WordRetriever())
    ours = augmented.invoke("And how much is it?", config)
    assert [d.page_content for d in await augmented.ainvoke("And how much is it?", config)] == [
        d.page_content for d in ours
    ]


def test_a_retriever_behind_it_sees_who_asks(sessions: Sessions) -> None:
    seen: list[Any] = []

    class Asked(BaseRetriever):
        def invoke(self, input: str, config: Any = None, **kwargs: Any) -> list[Document]:
            seen.append(config["configurable"])
            return []

        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return []

    sessions.augment(Asked()).invoke("hi there", sessions.config("t", user_id="alice"))
    assert (seen[0]["thread_id"], seen[0]["user_id"]) == ("t", "alice")
