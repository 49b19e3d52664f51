"""Session-aware retrieval: questions that lean on what was said find their documents."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.memory.completing import complete, leans

DOCUMENTS = {
    "aurora": "The Aurora lamp costs 89 euros and comes in brass and black. Its bulb lasts ten years.",
    "borea": "The Borea heater costs 140 euros. It warms a room of thirty square metres.",
    "cirrus": "The Cirrus fan costs 60 euros, runs for twelve hours on its battery and makes no noise.",
    "delta": "The Delta desk is made of oak, costs 420 euros and can be raised by hand.",
    "ember": "The Ember stove burns wood; it costs 900 euros and needs a chimney.",
    "returns": "Whatever you bought can be returned within thirty days, if it was not used.",
    "delivery": "Delivery takes three working days and is free above fifty euros.",
    "warranty-lamp": "The warranty of lamps is five years and covers the driver, not the shade.",
    "warranty-desk": "The warranty of desks is ten years and covers the frame and the legs.",
    "care-oak": "Oak should be oiled once a year, and never be cleaned with alcohol.",
    "mount": "Lamps are mounted to the ceiling with two screws, which are in the box.",
    "jobs": "We are looking for carpenters in Bremen and for drivers everywhere.",
}
FOLLOW_UPS = [  # what was said before, the question, the documents that answer it
    (["Do you have the Aurora lamp?", "Yes, in brass and black."], "And how much is it?", {"aurora"}),
    (["I like the Delta desk.", "A good choice, it is made of oak."], "What about its warranty?", {"warranty-desk"}),
    (["Is the Cirrus fan any good?", "Customers like it."], "How long does that one run?", {"cirrus"}),
    (["Tell me about the Ember stove", "It burns wood."], "Does it need anything else?", {"ember"}),
    (["I bought the Borea heater last week.", "I hope you like it."], "Can I return it?", {"returns"}),
    (["I have an oak table here", "How nice, oak lasts long."], "How do I clean it?", {"care-oak"}),
    (["The Aurora lamp arrived today", "Great!"], "How is it mounted to the ceiling?", {"mount"}),
    (["What does the Ember cost?", "900 euros."], "And the Delta?", {"delta"}),
    (["Which heater is the best?", "The Borea, for a room of thirty square metres."], "Its price?", {"borea"}),
    (["Do lamps have a warranty?", "They do."], "What does that cover?", {"warranty-lamp"}),
]
ALONE = [
    ("How long does delivery take?", {"delivery"}),
    ("Are you looking for carpenters in Bremen?", {"jobs"}),
    ("How much does the Cirrus fan cost?", {"cirrus"}),
]


class WordRetriever(BaseRetriever):
    """Documents by the words they share with the question, rare ones first: a stand-in for any retriever."""

    k: int = 3
    asked: list[str] = []  # noqa: RUF012

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.asked.append(query)
        words = {name: Counter(re.findall(r"[a-z]+", text.lower())) for name, text in DOCUMENTS.items()}
        wanted = set(re.findall(r"[a-z]+", query.lower()))
        rarity = {word: math.log(len(words) / (1 + sum(word in had for had in words.values()))) for word in wanted}
        scores = {name: sum(rarity[word] for word in wanted if word in had) for name, had in words.items()}
        best = sorted(scores, key=lambda name: -scores[name])[: self.k]
        return [Document(DOCUMENTS[name], metadata={"name": name, "score": scores[name]}) for name in best]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions(":memory:") as sessions:
        yield sessions


def said(sessions: Sessions, session_id: str, texts: list[str], user_id: str | None = None) -> Any:
    """A session in which user and assistant said this in turn; its config."""
    builder = StateGraph(MessagesState)
    builder.add_node("said", lambda state: {})
    builder.add_edge(START, "said")
    config = sessions.config(session_id, user_id=user_id)
    messages = [(HumanMessage if n % 2 == 0 else AIMessage)(text) for n, text in enumerate(texts)]
    sessions.attach(builder.compile()).update_state(config, {"messages": messages})
    return config


def names(found: list[Document]) -> list[str]:
    return [document.metadata["name"] for document in found if document.metadata["from"] == "documents"]


def hits(sessions: Sessions, *, completed: bool) -> float:
    """The share of the follow-up questions that find a document that answers them among the first three."""
    options = {} if completed else {"complete": lambda query, before: query}
    retriever = sessions.augment(WordRetriever(), kinds=["item"], **options)  # type: ignore[arg-type]
    found = 0
    for number, (before, question, wanted) in enumerate(FOLLOW_UPS):
        config = said(sessions, f"{completed}-{number}", before)
        found += bool(wanted & set(names(retriever.invoke(question, config))[:3]))
    return found / len(FOLLOW_UPS)


def test_follow_up_questions_find_their_documents(sessions: Sessions) -> None:
    without, with_completion = hits(sessions, completed=False), hits(sessions, completed=True)
    assert with_completion >= 0.9
    assert with_completion - without >= 0.3


def test_a_question_that_stands_alone_stays_as_it_is(sessions: Sessions) -> None:
    retriever = WordRetriever()
    config = said(sessions, "t", ["Do you have the Aurora lamp?", "Yes."])
    for question, wanted in ALONE:
        assert wanted & set(names(sessions.augment(retriever).invoke(question, config))[:3])
        assert retriever.asked[-1] == question


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("And how much is it?", True),
        ("Its price?", True),
        ("that one", True),
        ("why?", True),
        ("", True),
        ("What about the warranty of the brass lamp?", True),
        ("How long does delivery to Bremen take?", False),
    ],
)
def test_what_leans_on_what_came_before(question: str, expected: bool) -> None:
    assert leans(question) is expected


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
