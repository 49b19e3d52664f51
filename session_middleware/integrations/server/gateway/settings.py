"""`Gateway`: the settings of the session gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from session_middleware.errors import InvalidArgument
from session_middleware.settings import duration_of


@dataclass(frozen=True)
class Gateway:
    """The MCP server that sessions use, and its limits, which count in each server process.

    Args:
        command: the program, such as ``"python"``; it speaks MCP on its standard input and output.
        args: its arguments. ``{data_dir}`` in one of them is the folder of the session.
        env: further variables of its environment, which otherwise has few of the server's own. The variables
            ``SESSION_ID``, ``SESSION_USER_ID``, ``SESSION_GROUP_ID`` and ``SESSION_DATA_DIR`` are added.
        data_dir: the folder of a session, with ``{user_id}`` or ``{group_id}``, and ``{session_id}`` unless the MCP
            server supports several processes in one folder.
        max_processes: of all users. A use beyond the limit is refused; no process is ended for it.
        max_processes_per_user: of one user.
        start_timeout: the longest wait for the MCP server to start, such as ``"30s"``.
        call_timeout: the longest wait for the answer to a call.
        max_message_bytes: the longest message of the MCP server. A process that writes a longer one is ended.
        listen: the address of this machine at which the other server processes reach this one. The default suits
            server processes of one machine.

    Raises:
        InvalidArgument: a setting is invalid.
    """

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    data_dir: str = "mcp-data/{user_id}/{session_id}"
    max_processes: int = 32
    max_processes_per_user: int = 8
    start_timeout: timedelta | str | float = "30s"
    call_timeout: timedelta | str | float = "5m"
    max_message_bytes: int = 10_000_000
    listen: str = "127.0.0.1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", tuple(self.args))
        if not self.command or "\0" in self.command:
            raise InvalidArgument("command", self.command, wanted="the name of a program")
        if "{user_id}" not in self.data_dir and "{group_id}" not in self.data_dir:
            wanted = "a path with {user_id} or {group_id}, because another user may get the id of a deleted session"
            raise InvalidArgument("data_dir", self.data_dir, wanted=wanted)
        for name in ("max_processes", "max_processes_per_user", "max_message_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgument(name, value, wanted="a number of at least 1")
        for name in ("start_timeout", "call_timeout"):
            if duration_of(name, getattr(self, name)) is None:
                raise InvalidArgument(name, getattr(self, name), wanted="a duration such as '30s'")

    def seconds(self, name: str) -> float:
        duration = duration_of(name, getattr(self, name))
        assert duration is not None
        return duration.total_seconds()
