"""What LangGraph's server serves in its test. It loads this file once for each entry of ``langgraph.json``."""

from __future__ import annotations

from langgraph_sdk import Auth

from session_middleware import Sessions
from tests.support import agents

sessions = Sessions("chat.db")  # with SESSION_ACCESS=host
attached = sessions.attach(agents.agent(), checkpointer=False, store=False)
plain = agents.agent()
checkpointer, store = sessions.checkpointer, sessions.store

auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> dict[str, str]:
    return {"identity": headers[b"x-user"].decode()}


@auth.on.threads
async def only_their_own(ctx: Auth.types.AuthContext, value: dict[str, object]) -> dict[str, str]:
    value.setdefault("metadata", {})["owner"] = ctx.user.identity  # type: ignore[index]
    return {"owner": ctx.user.identity}
