"""How long memory takes: recall and search over many messages, one small scope among many, vectors, puts.

    python -m benchmarks.memory_speed [--quick] [--messages 500000] [--keep folder]

Texts are made up, their words as frequent as words are (Zipf). Peers: a recall of the same scope in a
database that holds nothing else, and LangGraph's SQLite store for puts. CPU time of the calling thread
where nothing else is said, median of many queries.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from langgraph.store.base import PutOp
from langgraph.store.sqlite import SqliteStore

from benchmarks.run import Figure, arguments, machine, middle, show
from session_middleware import Sessions
from session_middleware.models import to_text, utc_now
from session_middleware.storage.memory_types import ToEmbed, Vectors

_SITTING = 100  # messages in a session
_STOP = ["the", "a", "i", "you", "to", "and", "it", "is", "of", "in", "that", "was", "for", "on", "my", "with"]


class Speech:
    """Texts and queries of made-up words."""

    def __init__(self, seed: int = 1, vocabulary: int = 20_000) -> None:
        self._chance = random.Random(seed)
        syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwz", "aeiou")]
        words = {
            "".join(self._chance.choices(syllables, k=self._chance.choice([2, 3, 3, 4]))) for _ in range(vocabulary)
        }
        self._words = sorted(words)
        self._weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self._words))))

    def text(self) -> str:
        length = self._chance.choice([3, 6, 10, 12, 15, 20, 30])
        words = self._chance.choices(self._words, cum_weights=self._weights, k=length)
        return " ".join(word if self._chance.random() < 0.5 else self._chance.choice(_STOP) for word in words)

    def query(self) -> str:
        return " ".join(
            self._chance.choices(self._words, cum_weights=self._weights, k=self._chance.choice([2, 3, 4, 5]))
        )


def say(sessions: Sessions, speech: Speech, user_id: str, count: int) -> None:
    """So many messages of a user, a hundred a session: straight into the tables, because they are many."""
    now = to_text(utc_now())
    with closing(sqlite3.connect(sessions.settings.storage_url)) as connection:
        for first in range(0, count, _SITTING):
            session_id, size = f"{user_id}-{first}", min(_SITTING, count - first)
            connection.execute(
                "INSERT INTO sessions (id, home, family_id, user_id, opened_as, created_at, active_since,"
                " last_active_at, last_seq, message_count)"
                " SELECT ?, COALESCE(MAX(home), 0) + 1, ?, ?, 'opened', ?, ?, ?, ?, ? FROM sessions",
                (session_id, session_id, user_id, now, now, now, size, size),
            )
            connection.executemany(
                "INSERT INTO messages (session_id, seq, message_id, position, role, text, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (session_id, n + 1, f"m{n}", n + 1, ("user", "assistant")[n % 2], speech.text(), now)
                    for n in range(size)
                ],
            )
        connection.commit()


def timed(call: Callable[[Any], object], arguments: Iterable[Any]) -> float:
    """The median, in milliseconds of this thread's CPU time."""
    seconds = []
    for argument in arguments:
        started = time.thread_time()
        call(argument)
        seconds.append(time.thread_time() - started)
    return middle(seconds)


def report(*, quick: bool, messages: int | None = None, keep: Path | None = None) -> None:
    count = messages or (5_000 if quick else 100_000)
    speech = Speech()
    queries = [speech.query() for _ in range(20 if quick else 200)]
    with tempfile.TemporaryDirectory() as folder:
        figures = [
            *_words(Path(folder) if keep is None else keep, speech, queries, count),
            *_vectors(Path(folder), queries, count // 10),
            *_puts(Path(folder), 2 if quick else 40),
        ]
    show(f"memory ({count:,} messages)", figures, judged=not quick)


def _words(folder: Path, speech: Speech, queries: list[str], count: int) -> list[Figure]:
    options: dict[str, Any] = {"idle_timeout": None, "synchronous": "normal"}
    with (
        Sessions(folder / f"many-{count}.db", **options) as many,
        Sessions(folder / f"few-{count}.db", **options) as few,
    ):
        each = _filled(many, few, speech, count)
        one, small, alone = (s.open(user_id=u).memory for s, u in ((many, "one"), (many, "small"), (few, "small")))
        everybody = timed(many.search, queries)
        return [
            *([] if each is None else [Figure("index a message", each, "ms", "-", 0, aim_of_ours=1)]),
            Figure(f"recall, a user of {count:,}", timed(one.recall, queries), "ms", "-", 0, aim_of_ours=10),
            Figure(
                *("recall, a user of 200", timed(small.recall, queries), "ms"),
                *("in a database of its own", timed(alone.recall, queries)),
                aim_of_ours=5,
            ),
            Figure(f"search, {2 * count:,} of everybody", everybody, "ms", "-", 0, aim_of_ours=50),
        ]


def _filled(many: Sessions, few: Sessions, speech: Speech, count: int) -> float | None:
    """Fill both, unless they were kept; how long it took to index a message."""
    if few.count():
        return None
    say(many, speech, "one", count)
    for number in range(count // 1_000):
        say(many, speech, f"other-{number}", 1_000)
    started = time.thread_time()
    indexed = many.index_memory().messages
    each = 1_000 * (time.thread_time() - started) / indexed
    for sessions in (many, few):
        say(sessions, Speech(7), "small", 200)
        sessions.index_memory()
    return each


def _vectors(folder: Path, queries: list[str], count: int) -> list[Figure]:
    import numpy as np
    from langchain_core.embeddings import DeterministicFakeEmbedding

    index = {"dims": 384, "embed": DeterministicFakeEmbedding(size=384)}
    chance = np.random.default_rng(1)
    with Sessions(folder / "vectors.db", idle_timeout=None, synchronous="normal", index=index) as sessions:
        say(sessions, Speech(3), "one", count)
        while sessions._storage.index_messages(1_000):
            pass
        sessions._indexer.embedder.is_current()  # type: ignore[union-attr]
        while waiting := sessions._storage.list_to_embed(1_000, messages=True):
            sessions._storage.put_vectors([_vector(each, chance) for each in waiting])
        memory = sessions.open(user_id="one").memory
        embedding = timed(index["embed"].embed_query, queries)  # type: ignore[attr-defined]
        took = timed(memory.recall, queries) - embedding
    return [Figure(f"recall, {count:,} texts with vectors", took, "ms", "-", 0, aim_of_ours=25)]


def _vector(of: ToEmbed, chance: Any) -> Vectors:
    return Vectors(of, [chance.normal(size=384).tolist()])


def _puts(folder: Path, rounds: int) -> list[Figure]:
    """One after the other in turn. The time on the clock has the disk's in it: both wait until all is safe there."""
    theirs = SqliteStore(sqlite3.connect(folder / "theirs.db", check_same_thread=False, isolation_level=None))
    theirs.setup()
    computed: dict[str, list[float]] = {"ours": [], "theirs": []}
    waited: dict[str, list[float]] = {"ours": [], "theirs": []}
    with Sessions(folder / "ours.db") as sessions:
        for number in range(rounds):
            for name, store in (("ours", sessions.store), ("theirs", theirs)):
                batch = [PutOp(("n", str(number)), f"k{n}", {"text": f"small item {n}", "n": n}) for n in range(1_000)]
                started, began = time.thread_time(), time.perf_counter()
                store.batch(batch)
                computed[name].append(time.thread_time() - started)
                waited[name].append(time.perf_counter() - began)
    return [
        Figure(f"put 1,000 small items, {what}", middle(took["ours"]), "ms", "SqliteStore", middle(took["theirs"]), 0.5)
        for what, took in (("CPU", computed), ("clock", waited))
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--messages", type=int, help="of the big user, and as many of others")
    parser.add_argument("--keep", type=Path, help="a folder for the databases of messages; they are used again")
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, messages=options.messages, keep=options.keep)


if __name__ == "__main__":
    main()
