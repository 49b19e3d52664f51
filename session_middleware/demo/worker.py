"""One turn of the demo agent in a process of its own, made to be killed in the middle of a tool call.

    python -m session_middleware.demo.worker DATABASE FOLDER THREAD USER STARTED

The tool writes the file STARTED when it begins and then takes a minute: time enough to be killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from session_middleware import Sessions
from session_middleware.demo.agent import build_agent
from session_middleware.demo.model import ScriptedModel
from session_middleware.demo.tools import make_report_tool, make_tools
from session_middleware.demo.workspace import Workspace

QUESTION = "Please export the sales report."
_MINUTE = 60.0


def work(database: Path, workspace: Workspace, *, thread: str, user_id: str, started: Path) -> None:
    tools = make_tools(workspace.files, workspace.database)
    tools.append(make_report_tool(workspace.files, workspace.database, started=started, seconds=_MINUTE))
    with Sessions(database) as sessions:
        agent = sessions.attach(build_agent(tools, ScriptedModel()))
        agent.invoke({"messages": QUESTION}, sessions.config(thread, user_id=user_id))


def main(arguments: list[str]) -> None:
    database, folder, thread, user_id, started = arguments
    work(Path(database), Workspace.in_folder(Path(folder)), thread=thread, user_id=user_id, started=Path(started))


if __name__ == "__main__":
    main(sys.argv[1:])
