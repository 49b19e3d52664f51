"""What can be asked of a large record: usage over all sessions, a page of a long timeline.

    python -m benchmarks.reports [--quick] [--calls 1000000] [--records 10000]

The calls are of 10,000 sessions of 1,000 users, as the recorder writes them. The peer of a sum is
the same sum by plain SQL over a copy of the table without the order that ours has, a table in the
order of time; of a page it is reading the whole timeline. A figure is the best of three: a sum is as
fast as it can be when nothing else runs.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.run import Figure, arguments, machine, show
from session_middleware import Sessions
from session_middleware.models import Identity, to_text
from session_middleware.storage.record_entries import MessageEntry, ModelCallEntry, RunEnd, ToolEnd, ToolStart
from session_middleware.storage.run import RunContext, RunState

_SESSIONS, _USERS = 10_000, 1_000
_COLUMNS = (
    "session_id, seq, run_id, id, model, provider, input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost,"
    " duration_ms, error, message_id, checkpoint_ns, node, started_at"
)
_NAIVE = """
    SELECT s.user_id, COUNT(*), SUM(m.error IS NOT NULL), SUM(m.input_tokens), SUM(m.output_tokens), SUM(m.cost),
    AVG(m.duration_ms) FROM by_time AS m JOIN sessions AS s ON s.id = m.session_id GROUP BY s.user_id
"""


def _rows(calls: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Calls in the order of time: each session has a stretch of them, now and then."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    seqs = [10] * _SESSIONS
    number = 0
    while number < calls:
        session = chance.randrange(_SESSIONS)
        for _ in range(min(chance.randint(1, 40), calls - number)):
            seqs[session] += 3
            started = to_text(begin + timedelta(seconds=30 * number))
            failed = chance.random() < 0.02
            yield (
                *(f"session-{session:06d}", seqs[session], f"run-{chance.getrandbits(96):024x}"),
                *(f"call-{chance.getrandbits(96):024x}", chance.choice(("small", "large")), "provider"),
                *(chance.randrange(5000), chance.randrange(500), 0, None, None if failed else chance.random() / 100),
                *(chance.lognormvariate(6, 1), "Timeout" if failed else None, f"lc_run--{chance.getrandbits(96):024x}"),
                *(f"model:{chance.getrandbits(96):024x}", "model", started),
            )
            number += 1


def _fill(path: Path, calls: int) -> None:
    chance = random.Random(1)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO sessions (id, home, family_id, user_id, opened_as, created_at, active_since, last_active_at)"
        " VALUES (?1, ?2, ?1, ?3, 'opened', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z',"
        " '2027-01-01T00:00:00.000Z')",
        ((f"session-{n:06d}", n + 1, f"user-{n % _USERS:04d}") for n in range(_SESSIONS)),
    )
    connection.execute("CREATE TEMP TABLE given AS SELECT " + _COLUMNS + " FROM model_calls WHERE 0")
    connection.executemany(
        f"INSERT INTO given VALUES ({', '.join('?' * 17)})",
        _rows(calls, chance),
    )
    connection.execute("CREATE TABLE by_time AS SELECT * FROM given")
    connection.execute(f"INSERT INTO model_calls ({_COLUMNS}) SELECT * FROM given ORDER BY session_id, seq")
    connection.execute("COMMIT")
    connection.close()


def _best(call: Callable[[], Any]) -> float:
    """Seconds."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _usage(place: Path, calls: int) -> list[Figure]:
    path = place / "usage.db"
    with Sessions(path) as sessions:
        _fill(path, calls)
        plain = sqlite3.connect(path)
        theirs = _best(lambda: plain.execute(_NAIVE).fetchall())
        plain.execute("DROP TABLE by_time")
        plain.close()
        peer = "sums and a mean, by time"
        one = _best(lambda: sessions.usage("model", user_id="user-0001"))
        return [
            Figure('usage(by="user")', _best(sessions.usage), "s", peer, theirs, aim_of_ours=1),
            Figure('usage(by="session")', _best(lambda: sessions.usage("session")), "s", peer, theirs),
            Figure('usage(by="model")', _best(lambda: sessions.usage("model")), "s", peer, theirs),
            Figure('usage(by="day")', _best(lambda: sessions.usage("day")), "s", peer, theirs),
            Figure('usage(by="model", user_id=…)', 1000 * one, "ms", peer, 1000 * theirs),
        ]


def _long_session(sessions: Sessions, records: int) -> None:
    for turn in range(records // 8):
        context = RunContext(
            "long", Identity(), run_id=f"run-{turn}", state=RunState(admitted=turn > 0, announced=turn > 0)
        )
        call, ask = f"call-{turn}", f"ask-{turn}"
        entries: list[Any] = [
            MessageEntry(f"hi-{turn}", "user", "how is the weather? " * 5),
            ModelCallEntry(f"m1-{turn}", "small", checkpoint_ns="model:1"),
            MessageEntry(ask, "assistant", "", tool_calls=[{"name": "search", "args": {"q": "weather"}, "id": call}]),
            ToolStart(f"x-{turn}", call, "search", {"q": "weather"}, message_id=ask),
            ToolEnd(f"x-{turn}", "ok", "sunny " * 20),
            MessageEntry(f"got-{turn}", "tool", "sunny " * 20, tool_call_id=call),
            ModelCallEntry(f"m2-{turn}", "small", checkpoint_ns="model:2"),
            MessageEntry(f"bye-{turn}", "assistant", "It is sunny. " * 20),
            RunEnd("ok", None, 5.0),
        ]
        sessions._storage.append(context, entries)


def _timeline(place: Path, records: int) -> list[Figure]:
    with Sessions(place / "timeline.db") as sessions:
        _long_session(sessions, records)
        session = sessions.get("long")
        whole = 1000 * _best(session.timeline)
        middle = session.timeline()[records // 2].seq
        peer = "the whole timeline"
        return [
            Figure("first page of 50", 1000 * _best(lambda: session.timeline(limit=50)), "ms", peer, whole, None, 5),
            Figure(
                "a page in the middle",
                1000 * _best(lambda: session.timeline(after=middle, limit=50)),
                "ms",
                peer,
                whole,
            ),
            Figure("its tree, too", 1000 * _best(lambda: session.timeline(limit=50).tree), "ms", peer, whole),
        ]


def report(*, quick: bool, calls: int | None = None, records: int | None = None) -> None:
    calls, records = calls or (50_000 if quick else 1_000_000), records or (2_000 if quick else 10_000)
    with TemporaryDirectory() as place:
        show(f"Usage: {calls:,} model calls of {_SESSIONS:,} sessions", _usage(Path(place), calls), judged=not quick)
        title = f"Timeline: {records:,} records of one session"
        show(title, _timeline(Path(place), records), judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--records", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, calls=options.calls, records=options.records)


if __name__ == "__main__":
    main()
