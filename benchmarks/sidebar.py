"""The sidebar at size: a page of 50 sessions with titles and previews, in each order and with each filter.

    python -m benchmarks.sidebar [--quick] [--sessions 100000 1000000]

Each user has up to 1,000 sessions, each of two messages. The peer is the same page by plain SQL on the same file:
its rows as tuples, without previews. A figure is the best of five, as fast as it can be when nothing else runs.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.run import Figure, arguments, machine, show
from session_middleware import Sessions
from session_middleware.models import to_text, utc_now
from session_middleware.storage.titles import title_key

_SESSIONS = (100_000, 1_000_000)
_OF_USER = 1_000  # sessions
_TIMES = 5
_WORDS = [
    first + second for first in ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi") for second in ("rt", "ll", "nd", "sh")
]
_INSERT = """
    INSERT INTO sessions (id, home, family_id, user_id, opened_as, created_at, active_since, last_active_at, title,
    title_key, group_id, visibility, last_seq, message_count)
    VALUES (?1, ?2, ?1, ?3, 'opened', ?4, ?4, ?5, ?6, ?7, 'team-' || (?2 % 100), 'group', 3, 2)
"""
_INDEXES = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'sessions' AND sql IS NOT NULL"
_MESSAGES = """
    INSERT INTO messages (session_id, seq, message_id, position, role, text, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


def _sessions(count: int, chance: random.Random) -> Iterator[tuple[Any, ...]]:
    begin = utc_now() - timedelta(days=6)
    for number in range(count):
        created = begin + timedelta(seconds=chance.random() * 400_000)
        active = created + timedelta(seconds=chance.random() * 100_000)
        title = f"{' '.join(chance.choices(_WORDS, k=5))} {number % 89}"
        if number == 7 * count // 10:
            title = "The Ünique one"
        user = f"user-{number % max(1, count // _OF_USER)}"
        own = f"{chance.getrandbits(128):032x}"
        yield own, number + 1, user, to_text(created), to_text(active), title.capitalize(), title_key(title)


def fill(path: Path, count: int) -> None:
    with Sessions(path):
        pass
    sessions = sorted(_sessions(count, random.Random(1)))
    answer = "Certainly. " + "Here is what I have found about it. " * 12
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        indexes = connection.execute(_INDEXES).fetchall()
        for name, _ in indexes:  # which is quicker to create than to extend
            connection.execute(f"DROP INDEX {name}")
        connection.executemany(_INSERT, sessions)
        connection.executemany(
            _MESSAGES,
            (
                (row[0], seq, f"m{seq}", seq, role, text, row[4])
                for row in sessions
                for seq, role, text in ((2, "user", row[5] + ", please?"), (3, "assistant", answer))
            ),
        )
        for _, sql in indexes:
            connection.execute(sql)
    connection.close()


def _best(call: Callable[[], Sequence[Any]]) -> float:
    """Milliseconds, of a call that finds something."""
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        assert call()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def _figures(path: Path, count: int) -> Iterator[Figure]:
    plain, aim = sqlite3.connect(path), 5 if count <= 100_000 else 10

    def figure(what: str, call: Callable[[], Sequence[Any]], condition: str, order: str = "last_active_at") -> Figure:
        direction = "ASC" if order == "title_key" else "DESC"
        sql = f"SELECT * FROM sessions WHERE {condition} ORDER BY {order} {direction}, id {direction} LIMIT 50"
        theirs = _best(lambda: plain.execute(sql).fetchall())
        return Figure(what, _best(call), "ms", "rows by plain SQL", theirs, aim_of_ours=aim)

    with Sessions(path, sweep_interval=None) as sessions:
        user = sessions.for_user("user-0")
        grouped = sessions.for_user("user-0", ["team-1", "team-2"])
        yield figure("all, by activity", sessions.list, "TRUE")
        yield figure("all, by creation", lambda: sessions.list(order="creation"), "TRUE", "created_at")
        yield figure("all, by title", lambda: sessions.list(order="title"), "TRUE", "title_key")
        middle = sessions.list(limit=count // 2)[-1] if count <= 10_000 else sessions.list(limit=5_000)[-1]
        yield figure(
            "all, a later page",
            lambda: sessions.list(after=middle),
            f"last_active_at < '{to_text(middle.last_active_at)}'",
        )
        yield figure('all, status="open"', lambda: sessions.list(status="open"), "status = 'active'")
        yield figure('all, status="expired" or "idle"', lambda: sessions.list(status=["expired", "idle"]), "TRUE")
        theirs = "user_id = 'user-0'"
        yield figure("a user's, by activity", user.list, theirs)
        yield figure("a user's, by creation", lambda: user.list(order="creation"), theirs, "created_at")
        yield figure("a user's, by title", lambda: user.list(order="title"), theirs, "title_key")
        yield figure('a user\'s, status="open"', lambda: user.list(status="open"), theirs)
        yield figure("a user's, in two groups", grouped.list, theirs)
        yield figure(
            "a user's, text in the title", lambda: user.list(title="BART"), f"{theirs} AND title_key LIKE '%bart%'"
        )
        yield figure("all, frequent text in the title", lambda: sessions.list(title="BART"), "title LIKE '%bart%'")
        yield figure("all, rare text in the title", lambda: sessions.list(title="ünique"), "title LIKE '%nique%'")
        yield figure(
            "all, rare text, by title",
            lambda: sessions.list(title="ünique", order="title"),
            "title LIKE '%nique%'",
            "title_key",
        )
    plain.close()


def report(*, quick: bool, sessions: Sequence[int] = ()) -> None:
    for count in sessions or ((2_000,) if quick else _SESSIONS):
        with TemporaryDirectory() as place:
            path = Path(place) / "sidebar.db"
            fill(path, count)
            show(f"Sidebar: a page of 50 among {count:,} sessions", _figures(path, count), judged=not quick)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[])
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, sessions=options.sessions)


if __name__ == "__main__":
    main()
