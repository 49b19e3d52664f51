"""The files of archives: a session exported to a file of its own, deleted, and imported again on request.

The file is written in the transaction that deletes the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from session_middleware.errors import StorageError
from session_middleware.models import SessionInfo
from session_middleware.storage import jsonl
from session_middleware.storage.atomic_files import ADVICE, file_name
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import exports
from session_middleware.storage.sql.sessions.session_rows import Remains


def write(connection: Connection, session: SessionInfo, rules: EngineContext) -> tuple[str, str]:
    """Write everything of a session to its file; returns its path and digest."""
    path = _path_of(session, rules)
    if path is None:
        raise StorageError(rules.path, "there is no folder for archives", advice="set archive_path")
    rows = exports.of_family(connection, session.home, [session.id])
    return str(path.absolute()), jsonl.write(path, 1, rows, advice=f"{ADVICE}; nothing was deleted")


def _path_of(session: SessionInfo | Remains, rules: EngineContext) -> Path | None:
    """The file for one incarnation of an id. The home distinguishes databases that share a folder."""
    name = f"{file_name(session.id)}.{session.home:x}.{session.incarnation}.jsonl"
    return None if rules.archives is None else rules.archives / name


def remove(sessions: Sequence[SessionInfo | Remains], rules: EngineContext) -> int:
    """Delete the files that killed processes left of sessions that they did not archive; returns their bytes."""
    if rules.archives is None or not rules.archives.is_dir():
        return 0
    return sum(jsonl.remove(path) for session in sessions if (path := _path_of(session, rules)) is not None)
