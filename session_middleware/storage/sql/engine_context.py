"""`EngineContext`: what every operation on sessions needs to know besides its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from session_middleware.models import Clock, NewId
from session_middleware.settings import SessionSettings


@dataclass(slots=True)
class EngineContext:
    settings: SessionSettings
    clock: Clock
    new_id: NewId
    path: str  # for messages to people
    over: set[int] = field(default_factory=set)  # leases of this process's ended runs, whose rows may still be there
    unreadable: set[str] = field(default_factory=set)  # sessions of which it was said that their row cannot be read

    @property
    def archives(self) -> Path | None:
        """The folder for archives: beside the file, unless the setting names it; none of a database that is no file."""
        if self.settings.archive_path is not None:
            return Path(self.settings.archive_path).expanduser()
        return None if self.path == ":memory:" or "://" in self.path else Path(f"{self.path}.archive")

    def archive_at(self, path: str) -> Path:
        """Where an archive is that was written to `path`: maybe the folder was moved since, with the database."""
        here = None if self.archives is None else self.archives / Path(path).name
        return here if here is not None and here.is_file() else Path(path)
