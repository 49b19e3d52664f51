"""The pytest fixture `session_replay`, which replays a recorded session as a regression test.

pytest imports this plugin in each of its runs, so it imports the package only when a test uses the fixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from session_middleware.experiments.replay import Replay

_REPLAYS = pytest.StashKey[list[tuple["Replay", bool]]]()  # and whether a departure from the record fails the test

_SQLITE = b"SQLite format 3\0"  # the beginning of a database file


@pytest.fixture
def session_replay(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Replay]:
    """Replay a recorded session: ``session_replay("tests/refund.db", "thread-42")``.

    The first argument is the path of an export (JSON lines) or of a database file, of which a copy is read, the URL
    of a database, or a `Sessions`. The second one may be omitted if there is only one session. At the end of the test
    a run that departed from the record fails it, with the report, unless ``check=False``. ``on_missing`` is that of
    `Sessions.replay`.
    """
    replays = request.node.stash.setdefault(_REPLAYS, [])

    def replay(source: Any, session_id: str | None = None, *, on_missing: Any = "refuse", check: bool = True) -> Replay:
        from session_middleware import Sessions

        if hasattr(source, "replay"):
            found = _read(source, session_id, on_missing)
        else:
            is_export = "://" not in str(source) and not _is_database(Path(source))
            where = ":memory:" if is_export else source if "://" in str(source) else _copied(Path(source), tmp_path)
            with Sessions(where, sweep_interval=None) as sessions:
                if is_export:
                    sessions.import_from(source)
                found = _read(sessions, session_id, on_missing)
        replays.append((found, check))
        return found

    return replay


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _copied(path: Path, folder: Path) -> Path:
    """Copy a database with what is in its log, because opening it would change the file."""
    folder = folder / f"replay-{len(list(folder.iterdir()))}"
    folder.mkdir()
    for each in (path, path.with_name(f"{path.name}-wal")):
        if each == path or each.exists():
            shutil.copy(each, folder)
    return folder / path.name


def _read(sessions: Any, session_id: str | None, on_missing: Any) -> Replay:
    if session_id is None:
        found = sessions.list(limit=2)
        if len(found) != 1:
            raise ValueError("name the session to replay, because the database does not have exactly one")
        session_id = found[0].id
    return sessions.replay(session_id, on_missing=on_missing)  # type: ignore[no-any-return]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose run departed from the record; add the report to one that fails anyway."""
    try:
        result = yield
    except BaseException:
        for replay, _ in item.stash.get(_REPLAYS, ()):
            item.add_report_section("call", "session replay", str(replay.report()))
        raise
    reports = [replay.report() for replay, is_checked in item.stash.get(_REPLAYS, ()) if is_checked]
    if left := [str(report) for report in reports if not report.followed]:
        pytest.fail("\n".join(left), pytrace=False)
    return result
