"""A chat app with FastAPI: streaming, a sidebar, edited messages, and two users who never see each other's chats.

    pip install 'session-middleware[fastapi]' uvicorn
    uvicorn --app-dir examples chat_app:app          # then open http://127.0.0.1:8000

The answers are scripted, so no key is needed. Replace `user_of` by the login of your app: the name of a user must come
from something that the user cannot choose.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header
from fastapi.responses import HTMLResponse, StreamingResponse
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Session, Sessions
from session_middleware.integrations.fastapi_errors import add_error_handler
from session_middleware.user_sessions import UserSessions

# The agent


async def answer(state: MessagesState) -> dict[str, Any]:
    text = f"You said: {state['messages'][-1].text} This is message {len(state['messages']) + 1} of our chat."
    model = GenericFakeChatModel(messages=iter([AIMessage(text)]))  # in your app: any chat model
    return {"messages": [await model.ainvoke(state["messages"])]}


sessions = Sessions(os.environ.get("CHAT_DB", "chat.db"), require_user=True, on_busy="reject")
graph: Any = sessions.attach(StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile())


# The app


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    for session in await sessions.aunfinished():  # answers that a killed process left unfinished
        await graph.ainvoke(None, session.config())
    yield
    await sessions.aclose()


app = FastAPI(lifespan=lifespan)
add_error_handler(app)  # each exception of the package has its HTTP status


def user_of(x_user: Annotated[str, Header()]) -> UserSessions:
    return sessions.for_user(x_user)


User = Annotated[UserSessions, Depends(user_of)]
Text = Annotated[str, Body(embed=True, min_length=1, max_length=10_000)]


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return Path(__file__).with_name("chat_app.html").read_text()


@app.get("/chats")
async def sidebar(user: User, search: str = "") -> list[dict[str, Any]]:
    found = await user.alist(status="open", title=search, limit=30)
    return [{"id": one.id, "title": one.title or "New chat", "preview": one.preview} for one in found]


@app.post("/chats")
async def new_chat(user: User) -> dict[str, str]:
    return {"id": (await user.aopen()).id}


@app.get("/chats/{chat_id}")
async def messages(user: User, chat_id: str) -> list[dict[str, Any]]:
    session = await user.aget(chat_id)
    page = await session.amessages(last=50, subgraphs=False)
    found = [{"id": one.message_id, "role": one.role, "text": one.text, "version": 1, "branches": ()} for one in page]
    if await session.abranches():  # something was edited, or answered again
        for each in found:
            versions = await session.asiblings(str(each["id"]))
            each |= {"version": versions.index, "branches": versions.branches}
    return found


@app.delete("/chats/{chat_id}", status_code=204)
async def delete(user: User, chat_id: str) -> None:
    await user.adelete(chat_id)


@app.post("/chats/{chat_id}")
async def say(user: User, chat_id: str, text: Text) -> StreamingResponse:
    session = await user.acheck(chat_id)  # raises now, while the response can still have a status
    return streamed({"messages": [HumanMessage(text)]}, session.config())


@app.post("/chats/{chat_id}/messages/{message_id}")
async def edit(user: User, chat_id: str, message_id: str, text: Text) -> StreamingResponse:
    session = await user.acheck(chat_id)
    return streamed(None, await session.aedit(message_id, text))


@app.post("/chats/{chat_id}/regenerate")
async def regenerate(user: User, chat_id: str) -> StreamingResponse:
    session = await user.acheck(chat_id)
    return streamed(None, await session.aregenerate())


@app.post("/chats/{chat_id}/branch", status_code=204)
async def switch(user: User, chat_id: str, branch: Annotated[str, Body(embed=True)]) -> None:
    session: Session = await user.aget(chat_id)
    await session.aswitch(branch)


def streamed(given: dict[str, Any] | None, config: RunnableConfig) -> StreamingResponse:
    """The words of the answer as they come. A reader that leaves cancels the run; what was said is recorded."""

    async def words() -> AsyncIterator[str]:
        async for chunk, _ in graph.astream(given, config, stream_mode="messages"):
            yield chunk.text

    return StreamingResponse(words(), media_type="text/plain; charset=utf-8")
