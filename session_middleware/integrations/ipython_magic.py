"""IPython's ``%session``: ``%load_ext session_middleware``, then ``%session ID`` opens or resumes a session.

Each run with the variable ``config`` has the id of its notebook cell as a label (``metadata["cell"]``). When a cell
runs again, the conversation first goes back to before the cell's runs, so its turn is replaced on a new branch. The
labels are in the database, so this also holds after the kernel was restarted.
"""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from langgraph.checkpoint.base import create_checkpoint, empty_checkpoint

from session_middleware import Session, SessionAccessDenied, SessionError, Sessions

_LABEL = "cell"  # of a run, in its metadata


@magics_class
class SessionMagics(Magics):
    """``%session``, and the variables ``sessions``, ``session`` and ``config`` in each cell."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._names: dict[str, Any] = shell.user_ns
        self._session: Session | None = None
        self._cell: str | None = None
        shell.events.register("pre_run_cell", self._before_cell)

    @magic_arguments()
    @argument("id", nargs="?", help="The session to open or resume. Without it: the current session.")
    @argument("--db", help="A path or a postgresql:// URL. By default the variable `sessions`, or sessions.db.")
    @argument("--user", help="The owner of the session.")
    @argument("--group", help="The group of the owner.")
    @line_magic
    def session(self, line: str) -> Session:
        """Open or resume a session, and set the variables `sessions`, `session` and `config`."""
        given = parse_argstring(self.session, line)
        try:
            if given.id is not None:
                sessions = self._sessions(given.db)
                self._session = sessions.open(given.id, user_id=given.user, group_id=given.group)
            elif self._session is None or given.db or given.user or given.group:
                raise UsageError("name the session: %session ID [--db PATH_OR_URL] [--user ID] [--group ID]")
            self._begin()
        except SessionAccessDenied as error:
            raise UsageError(f"session {given.id!r} is owned by another user; name its owner with --user") from error
        except SessionError as error:
            raise UsageError(str(error)) from error
        return self._session

    def _sessions(self, db: str | None) -> Sessions:
        current = self._names.get("sessions")
        if db is None and isinstance(current, Sessions):
            return current
        self._names["sessions"] = sessions = Sessions() if db is None else Sessions(db)
        return sessions

    def _before_cell(self, info: Any) -> None:
        self._cell = getattr(info, "cell_id", None)
        current, sessions = self._session, self._names.get("sessions")
        if current is not None and isinstance(sessions, Sessions):
            try:
                self._session = sessions.get(current.id)
                self._begin()
            except SessionError as error:  # it was deleted, or the database was closed
                sys.stderr.write(f"%session: {error}\n")
                self._session = None
                self._names.pop("config", None)  # has the label of another cell

    def _begin(self) -> None:
        """Set the variables, after the turns that this cell took before are left."""
        names, session = self._names, self._session
        assert session is not None
        config = session.config()
        if self._cell is not None:
            if _leave_turns(names["sessions"], session, self._cell):
                session = self._session = names["sessions"].get(session.id)
            config = {**config, "metadata": {**config.get("metadata", {}), _LABEL: self._cell}}
        names |= {"session": session, "config": config}


def _leave_turns(sessions: Sessions, session: Session, cell: str) -> bool:
    """Take the conversation back to before the runs of a cell that belong to it; returns whether there are any.

    The checkpoint that the first of these runs started from is copied as the latest one, on a new branch.
    """
    own = session.runs(metadata={_LABEL: cell})
    if not own:
        return False
    in_conversation = {message.run_id for message in session.messages()}
    first = next((run for run in own if run.id in in_conversation), None)
    if first is None:
        return False
    saver, config = sessions.checkpointer, session.config(checkpoint_ns="")
    if first.started_from is None:
        saver.get_tuple(config)  # begins an operation of its own, which is no part of the last run
        saver.put(config, empty_checkpoint(), {"source": "fork", "step": -2, "parents": {}}, {})
        return True
    before = saver.get_tuple(session.config(checkpoint_ns="", checkpoint_id=first.started_from))
    if before is None:
        return False  # it was pruned
    step = before.metadata.get("step", -1) + 1
    copied = create_checkpoint(before.checkpoint, None, step)
    saver.put(before.config, copied, {"source": "fork", "step": step, "parents": {}}, {})
    return True


def load_ipython_extension(ipython: Any) -> None:
    if not isinstance(ipython.magics_manager.registry.get("SessionMagics"), SessionMagics):
        ipython.register_magics(SessionMagics)


def unload_ipython_extension(ipython: Any) -> None:
    magics = ipython.magics_manager.registry.pop("SessionMagics", None)
    if magics is not None:
        ipython.events.unregister("pre_run_cell", magics._before_cell)
        ipython.magics_manager.magics["line"].pop("session", None)
