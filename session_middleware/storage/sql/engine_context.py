"""`EngineContext`: what each operation needs besides its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from session_middleware.models import Clock, SessionInfo
from session_middleware.settings import SessionSettings


@dataclass(slots=True)
class EngineContext:
    settings: SessionSettings
    clock: Clock
    path: str  # for messages to people
    over: set[int] = field(default_factory=set)  # leases of this process's ended runs, whose rows may still be there
    parsed: dict[str, tuple[tuple[Any, ...], SessionInfo]] = field(default_factory=dict)  # rows of admitted sessions
    # the users of runs that were refused before the run in progress had opened the session, by session and run
    early_denials: dict[str, dict[str | None, str | None]] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)  # sessions whose damaged row was logged

    @property
    def archives(self) -> Path | None:
        """The folder for archives: beside the database file, unless the setting names it."""
        if self.settings.archive_path is not None:
            return Path(self.settings.archive_path).expanduser()
        return None if self.path == ":memory:" or "://" in self.path else Path(f"{self.path}.archive")

    def archive_at(self, path: str) -> Path:
        """The present path of an archive written to `path`: the folder may have been moved with the database."""
        here = None if self.archives is None else self.archives / Path(path).name
        return here if here is not None and here.is_file() else Path(path)
