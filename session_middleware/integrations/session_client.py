"""`SessionClient`: a session of the gateway as a context manager, for programs that have no database.

It needs the extra ``client`` (httpx) only. The session is kept alive by pings in the background, and closed at the end.
A call that did not reach the server, as while that is restarted, is sent again; one whose answer was lost is not,
because the tool may have run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import quote

from session_middleware import errors

try:
    import httpx
except ModuleNotFoundError as error:
    raise errors.MissingExtra("SessionClient", "client") from error

_PAUSE_SECONDS = 0.2  # before a request is sent again, and longer each time
_LONGEST_PAUSE_SECONDS = 2.0
_JOIN_SECONDS = 5.0


class SessionClient:
    """A session on a server with a gateway: ``with SessionClient(url) as session: session.call("add", {"n": 2})``.

    ``async with`` and the methods with the prefix ``a`` do the same for asyncio. Entering opens a session, or
    resumes the one with this id; the end of the block completes it. All methods raise the exceptions below.

    Args:
        url: of the server, with the path where its app is mounted.
        token: sent as ``Authorization: Bearer …``.
        session_id: an id of your own, to resume the session later. By default the server generates one.
        headers: further headers of each request.
        keep: leave the session open at the end of the block.
        timeout_seconds: the longest wait for an answer, such as that of a tool.
        retry_seconds: how long a request that cannot reach the server is repeated.
        options: the `group_id`, `title`, `purpose`, `tags` and `metadata` of a new session.

    Raises:
        SessionNotFound: there is no such session, or it is another user's.
        SessionExpired: it has expired.
        SessionClosed: it has ended.
        SessionAccessDenied: the caller is not authenticated, or may not do this.
        ServerUnavailable: the server cannot be reached, or its answer was lost.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        session_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout_seconds: float = 330.0,
        retry_seconds: float = 30.0,
        **options: Any,
    ) -> None:
        self.url, self.keep = url.rstrip("/"), keep
        self._headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token is not None else {})}
        self._given = {"session_id": session_id, **options}
        self._timeout = httpx.Timeout(timeout_seconds, connect=5.0)
        self._retry_seconds, self._ping_seconds = retry_seconds, 60.0
        self._id: str | None = session_id
        self._http: httpx.Client | None = None
        self._ahttp: httpx.AsyncClient | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The id of the session, once the block has begun."""
        if self._id is None:
            raise errors.InvalidSessionId("the session has not begun")
        return self._id

    def __enter__(self) -> Self:
        self._http = httpx.Client(headers=self._headers, timeout=self._timeout)
        try:
            self._begun(self._request("POST", "/session/start", self._start_body()))
        except BaseException:
            self._http.close()
            raise
        self._ended.clear()
        self._thread = threading.Thread(target=self._keep_alive, name="session-pings", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._http is not None
        assert self._thread is not None
        self._ended.set()
        self._thread.join(_JOIN_SECONDS)
        try:
            if not self.keep:
                with suppress(errors.SessionNotFound, errors.SessionExpired, errors.SessionClosed):
                    self.close()
        finally:
            self._http.close()

    async def __aenter__(self) -> Self:
        self._ahttp = httpx.AsyncClient(headers=self._headers, timeout=self._timeout)
        try:
            self._begun(await self._arequest("POST", "/session/start", self._start_body()))
        except BaseException:
            await self._ahttp.aclose()
            raise
        self._task = asyncio.create_task(self._akeep_alive())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ahttp is not None
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            if not self.keep:
                with suppress(errors.SessionNotFound, errors.SessionExpired, errors.SessionClosed):
                    await self.aclose()
        finally:
            await self._ahttp.aclose()

    # What a session can do

    def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The result of a tool: its value, its text, or a list of parts where it has others than texts.

        Raises:
            ToolNotFound: the server has no such tool.
            InvalidToolArguments: the arguments do not conform to its schema; it was not called.
            ToolFailed: the tool reported an error.
            ToolTimedOut: it took too long.
            ToolServerFailed: its process ended; the next call starts a new one.
        """
        return _result(self._request("POST", self._tool(tool), dict(arguments or {}), tool=tool))

    async def acall(self, tool: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """`call`, for asyncio."""
        return _result(await self._arequest("POST", self._tool(tool), dict(arguments or {}), tool=tool))

    def tools(self) -> list[dict[str, Any]]:
        """The tools, as MCP describes them."""
        found: list[dict[str, Any]] = self._request("GET", self._path("tools"))["tools"]
        return found

    async def atools(self) -> list[dict[str, Any]]:
        """`tools`, for asyncio."""
        found: list[dict[str, Any]] = (await self._arequest("GET", self._path("tools")))["tools"]
        return found

    def status(self) -> dict[str, Any]:
        """The session as the server shows it: its status, when it expires, the number of its calls."""
        return self._request("GET", self._path("status"))

    async def astatus(self) -> dict[str, Any]:
        """`status`, for asyncio."""
        return await self._arequest("GET", self._path("status"))

    def ping(self) -> None:
        """Keep the session from becoming idle; done in the background too."""
        self._request("POST", self._path("ping"))

    async def aping(self) -> None:
        """`ping`, for asyncio."""
        await self._arequest("POST", self._path("ping"))

    def close(self) -> None:
        """Complete the session."""
        self._request("POST", self._path("close"))

    async def aclose(self) -> None:
        """`close`, for asyncio."""
        await self._arequest("POST", self._path("close"))

    # Requests

    def _start_body(self) -> dict[str, Any]:
        given = {name: value for name, value in self._given.items() if value is not None}
        return {**given, **({"if_exists": "resume"} if self._id is not None else {})}

    def _begun(self, session: dict[str, Any]) -> None:
        self._id, self._ping_seconds = session["session_id"], session["ping_seconds"]

    def _path(self, what: str) -> str:
        return f"/session/{_quoted(self.id)}/{what}"

    def _tool(self, tool: str) -> str:
        return self._path(f"tools/{_quoted(tool)}")

    def _request(self, method: str, path: str, body: Any = None, *, tool: str = "") -> dict[str, Any]:
        if self._http is None:
            raise errors.ServerUnavailable(self.url, "the block of the client has not begun")
        until, pause = time.monotonic() + self._retry_seconds, _PAUSE_SECONDS
        while True:
            try:
                response = self._http.request(method, self.url + path, json=body)
            except httpx.HTTPError as error:
                if self._is_final(error, until):
                    raise self._unavailable(error) from error
            else:
                if not _is_temporary(response) or time.monotonic() > until:
                    return self._answer(response, tool)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _arequest(self, method: str, path: str, body: Any = None, *, tool: str = "") -> dict[str, Any]:
        if self._ahttp is None:
            raise errors.ServerUnavailable(self.url, "the block of the client has not begun")
        until, pause = time.monotonic() + self._retry_seconds, _PAUSE_SECONDS
        while True:
            try:
                response = await self._ahttp.request(method, self.url + path, json=body)
            except httpx.HTTPError as error:
                if self._is_final(error, until):
                    raise self._unavailable(error) from error
            else:
                if not _is_temporary(response) or time.monotonic() > until:
                    return self._answer(response, tool)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _is_final(self, error: httpx.HTTPError, until: float) -> bool:
        """Whether the request may have reached the server, or was repeated for long enough."""
        return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or time.monotonic() > until

    def _unavailable(self, error: httpx.HTTPError) -> errors.ServerUnavailable:
        problem = "it cannot be reached" if isinstance(error, httpx.ConnectError) else "its answer was lost"
        return errors.ServerUnavailable(self.url, f"{problem} ({type(error).__name__})")

    def _answer(self, response: httpx.Response, tool: str) -> dict[str, Any]:
        try:
            body: Any = response.json()
        except ValueError:
            body = None
        if response.is_success and isinstance(body, dict):
            return body
        raise self._error(response, body if isinstance(body, dict) else {}, tool)

    def _error(self, response: httpx.Response, body: dict[str, Any], tool: str) -> errors.SessionError:
        session_id, detail = str(body.get("session_id") or self._id), str(body.get("detail", ""))
        known: dict[str, Callable[[], errors.SessionError]] = {
            "SessionNotFound": lambda: errors.SessionNotFound(session_id),
            "SessionExists": lambda: errors.SessionExists(session_id),
            "SessionExpired": lambda: errors.SessionExpired(session_id, since=None),
            "SessionClosed": lambda: errors.SessionClosed(session_id, status="closed"),
            "SessionAccessDenied": lambda: errors.SessionAccessDenied(session_id, user_id=None),
            "UserRevoked": lambda: errors.UserRevoked(session_id, user_id=None),
            "SessionBusy": lambda: errors.SessionBusy(session_id),
            "ToolNotFound": lambda: errors.ToolNotFound(tool),
            "InvalidToolArguments": lambda: errors.InvalidToolArguments(tool, detail),
            "ToolTimedOut": lambda: errors.ToolTimedOut(tool),
            "ToolServerFailed": lambda: errors.ToolServerFailed(f"failed ({detail})"),
        }
        if (make := known.get(str(body.get("error")))) is not None:
            return make()
        if response.status_code in (401, 403):
            return errors.SessionAccessDenied(session_id, user_id=None)
        return errors.ServerUnavailable(self.url, f"it answered {response.status_code} {detail}".rstrip())

    # Keeping it alive

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._ping_seconds):
            try:
                self.ping()
            except errors.ServerUnavailable:
                continue  # the next ping may reach it
            except errors.SessionError:
                return  # the session has ended, which the next call raises

    async def _akeep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            try:
                await self.aping()
            except errors.ServerUnavailable:
                continue  # the next ping may reach it
            except errors.SessionError:
                return  # the session has ended, which the next call raises


def _is_temporary(response: httpx.Response) -> bool:
    """Whether the server asks to try again, and has not done anything."""
    return response.status_code == 503 and "retry-after" in response.headers


def _quoted(part: str) -> str:
    """A part of a path. Dots are encoded too, because clients resolve ``..``."""
    return quote(part, safe="").replace(".", "%2E")


def _result(body: dict[str, Any]) -> Any:
    if body["is_error"]:
        raise errors.ToolFailed(body["tool"], str(body["result"]))
    return body["result"]
