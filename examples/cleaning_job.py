"""A cleaning job for cron: back up, end the sessions that are due, check, and fail loudly.

    python examples/cleaning_job.py chat.db backups

It runs beside the app. The exit code is 1 if the database has a problem, so cron sends a mail.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from session_middleware import Sessions, StorageError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Back up, end the sessions that are due, and check.")
    parser.add_argument("database")
    parser.add_argument("backups", type=Path, help="the folder of the backups, of which seven are kept")
    parser.add_argument("--idle", default="30d", help="archive sessions that were idle for so long (default: 30d)")
    parser.add_argument("--delete-after", default="365d", help="delete archives so long after the end (default: 365d)")
    options = parser.parse_args(arguments)
    if not Path(options.database).exists():  # `Sessions` would create it
        print(f"there is no database {options.database}", file=sys.stderr)
        return 2
    try:
        with Sessions(
            options.database,
            idle_timeout=options.idle,
            on_expire="archive",
            retention=options.delete_after,
            sweep_interval=None,  # this job is the sweep
        ) as sessions:
            return clean(sessions, options.backups)
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1


def clean(sessions: Sessions, backups: Path) -> int:
    print(f"backup: {sessions.backup(backups, keep=7)}")  # before anything is deleted
    ended = Counter((each.action, each.reason) for each in sessions.sweep())
    for (action, reason), count in sorted(ended.items()):
        print(f"{action}: {count} ({reason})")
    for session in sessions.unfinished():
        print(f"cut off: {session.id}; its app continues with agent.invoke(None, session.config())")
    problems = sessions.check()
    for problem in problems:
        print(f"problem: {problem.text}", file=sys.stderr)
    print(f"open: {sessions.count(status='open')}, archived: {len(sessions.list_archived(limit=None))}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
