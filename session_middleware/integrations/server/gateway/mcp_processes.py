"""Processes of an MCP server, each for one session: started at its first use, and ended with the session or when idle.

A process is an exclusive resource of its session, so one server process at a time has it, and two never write to the
same folder. One task enters and leaves the SDK's client, because cancel scopes require that (`Session.aresource`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import anyio
from jsonschema.exceptions import SchemaError, best_match  # type: ignore[import-untyped]
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from mcp import Client, MCPError
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT, CallToolResult, Tool, jsonrpc_message_adapter

from session_middleware import Sessions
from session_middleware.errors import (
    InvalidArgument,
    InvalidToolArguments,
    SessionError,
    SessionLimitReached,
    ToolNotFound,
    ToolServerFailed,
    ToolTimedOut,
)
from session_middleware.integrations.server.gateway.settings import Gateway
from session_middleware.models import utc_now
from session_middleware.session import Session

logger = logging.getLogger("session_middleware")

RESOURCE = "mcp"
_CHECK_SECONDS = 5.0  # between two checks for idle sessions
_EXIT_SECONDS = 2.0  # that a process has to end in after its input is closed, and again after SIGTERM
_LONGEST = 500  # characters of a sentence about arguments, which may repeat them


class McpProcess:
    """A process of the MCP server, and the client that speaks with it."""

    def __init__(self, settings: Gateway, session: Session, folder: Path) -> None:
        self._settings, self.session, self._folder = settings, session, folder
        self.started_at: datetime = utc_now()
        self.active_since = session.active_since  # a session that is reopened later gets another process
        self.calls = 0  # in progress
        self.has_ended = False
        self._stack = AsyncExitStack()
        self._tools: dict[str, Tool] = {}

    async def start(self) -> None:
        """Raises `ToolServerFailed`."""
        seconds = self._settings.seconds("start_timeout")
        try:
            async with asyncio.timeout(seconds):  # not a cancel scope, because the client's own ones stay entered
                self._client = await self._stack.enter_async_context(Client(self._transport()))
                await self.list_tools()
        except TimeoutError as error:
            await self.end()
            raise ToolServerFailed(f"did not start within {seconds:g} s") from error
        except (OSError, MCPError, ValueError, RuntimeError, ExceptionGroup) as error:
            await self.end()
            logger.warning("the MCP server %r did not start (%s)", self._settings.command, error)
            raise ToolServerFailed("did not start") from error
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        self.has_ended = True
        await self._stack.aclose()

    async def list_tools(self) -> list[Tool]:
        """The tools of the server, as it lists them now. Raises `ToolServerFailed`."""
        found: list[Tool] = []
        cursor = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            if (cursor := page.next_cursor) is None:
                break
        self._tools = {tool.name: tool for tool in found}
        return found

    async def check(self, name: str, arguments: dict[str, Any]) -> None:
        """Raises `ToolNotFound` and `InvalidToolArguments`."""
        if name not in self._tools:
            await self._asked(self.list_tools())
        if (tool := self._tools.get(name)) is None:
            raise ToolNotFound(name)
        try:
            validator = validator_for(tool.input_schema)
            validator.check_schema(tool.input_schema)
            fault = best_match(validator(tool.input_schema).iter_errors(arguments))
        except SchemaError:  # the server validates by itself
            return
        if fault is not None:
            place = ".".join(str(part) for part in fault.absolute_path)
            raise InvalidToolArguments(
                name, f"{place}: {fault.message}"[:_LONGEST] if place else fault.message[:_LONGEST]
            )

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Raises `ToolTimedOut` and `ToolServerFailed`."""
        seconds = self._settings.seconds("call_timeout")
        request = self._client.call_tool(name, arguments, read_timeout_seconds=seconds)
        found: CallToolResult = await self._asked(request, name)
        return found

    async def _asked(self, request: Any, tool: str = "") -> Any:
        self.calls += 1
        try:
            return await request
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise ToolTimedOut(tool, self._settings.seconds("call_timeout")) from error
            if error.code == CONNECTION_CLOSED:
                self.has_ended = True
                raise ToolServerFailed("ended during the call, which may have had its effect") from error
            raise ToolServerFailed(f"refused the call: {error.message[:_LONGEST]}") from error
        except (RuntimeError, ValueError) as error:  # a result that does not conform to the protocol, or to its schema
            raise ToolServerFailed("gave an invalid result") from error
        finally:
            self.calls -= 1

    def _environment(self) -> dict[str, str]:
        session = self.session
        own = {"SESSION_ID": session.id, "SESSION_USER_ID": session.user_id, "SESSION_GROUP_ID": session.group_id}
        given = {name: value for name, value in own.items() if value is not None}
        return {**get_default_environment(), **self._settings.env, **given, "SESSION_DATA_DIR": str(self._folder)}

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        """The process and its two streams.

        The SDK's own transport joins the parts of a long line again for each part: ten megabytes stop the loop for
        four seconds. This one reads a line in linear time, up to a limit.
        """
        args = [part.replace("{data_dir}", str(self._folder)) for part in self._settings.args]
        process = await asyncio.create_subprocess_exec(
            self._settings.command,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,
            limit=self._settings.max_message_bytes,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        guard = await _guard(process.pid)
        incoming_send, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, outgoing_receive = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._read, process.stdout, incoming_send)
                group.start_soon(_write, process.stdin, outgoing_receive)
                try:
                    yield incoming, outgoing
                finally:
                    with anyio.CancelScope(shield=True):
                        await _end(process)
                        await guard.communicate(b"\n")
                    group.cancel_scope.cancel()
        finally:
            for stream in (incoming_send, incoming, outgoing, outgoing_receive):
                stream.close()

    async def _read(self, lines: asyncio.StreamReader, to: Any) -> None:
        async with to:
            while True:
                try:
                    line = await lines.readline()
                except ValueError:
                    most = self._settings.max_message_bytes
                    logger.warning("the MCP server wrote a message of more than %d bytes, and is ended", most)
                    break
                if not line.endswith(b"\n"):
                    break
                try:
                    message: Any = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                except ValueError as error:  # such as a line that the server prints for people
                    message = error
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await to.send(message)
            self.has_ended = True


async def _guard(group: int) -> asyncio.subprocess.Process:
    """A process that kills a group of processes when its own input ends without a line: when this process has died.

    An MCP server that waits in a call does not notice that its input has ended, and would go on beside its successor.
    """
    script = 'read line || kill -s KILL -- "-$1"'
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", script, "sh", str(group)),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


async def _write(pipe: asyncio.StreamWriter, messages: Any) -> None:
    async with messages:
        async for each in messages:
            pipe.write(each.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            try:
                await pipe.drain()
            except OSError:  # the process has ended, which `_read` notices
                return


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the input of the process, and kill its group if that does not end it."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if await _has_exited(process):
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    await _has_exited(process)
    process._transport.close()  # type: ignore[attr-defined]  # a descendant may hold the pipes open


async def _has_exited(process: asyncio.subprocess.Process) -> bool:
    until = anyio.current_time() + _EXIT_SECONDS
    while process.returncode is None and anyio.current_time() < until:
        await asyncio.sleep(0.01)  # `wait` also waits for the pipes, which a descendant may hold open
    return process.returncode is not None


class McpProcesses:
    """The processes of this server process."""

    def __init__(self, sessions: Sessions, settings: Gateway) -> None:
        most = sessions.settings.max_open_resources
        if settings.max_processes > most:
            wanted = f"at most {most}, or set max_open_resources to more"
            raise InvalidArgument("max_processes", settings.max_processes, wanted=wanted)
        self._sessions, self.settings = sessions, settings
        self.live: list[McpProcess] = []
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._watch: asyncio.Task[None] | None = None

    async def of(self, session: Session, *, holder: str) -> McpProcess:
        """The process of a session, started if there is none, or if it has ended since the last call.

        Raises:
            ResourceHeld: another server process has it.
            SessionLimitReached: there are too many processes.
            ToolServerFailed: it did not start.
        """
        lock = self._locks.setdefault(session.id, asyncio.Lock())
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_idle_periodically())
        async with lock:
            use = partial(
                session.aresource,
                RESOURCE,
                open=partial(self._start, session),
                close=self._end,
                exclusive=True,
                holder=holder,
            )
            process: McpProcess = await use()
            if process.has_ended or process.active_since != session.active_since:
                await session.aclose_resource(RESOURCE)
                process = await use()
            return process

    async def _start(self, session: Session, folder: Path | None = None) -> McpProcess:
        self._check_limits(session.user_id)
        folder = folder or session.path(self.settings.data_dir).absolute()
        process = McpProcess(self.settings, session, folder)
        self.live.append(process)
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            await process.start()
        except BaseException:
            self.live.remove(process)
            raise
        return process

    async def _end(self, process: McpProcess) -> None:
        try:
            await process.end()
        finally:
            self.live.remove(process)

    @asynccontextmanager
    async def alone(self, session: Session, folder: Path) -> AsyncIterator[McpProcess]:
        """A process for one call, in a folder of its own."""
        process = await self._start(session, folder)
        try:
            yield process
        finally:
            await self._end(process)

    def _check_limits(self, user_id: str | None) -> None:
        settings, users = self.settings, Counter(process.session.user_id for process in self.live)
        if users[user_id] >= settings.max_processes_per_user:
            raise SessionLimitReached(settings.max_processes_per_user, user_id=user_id)
        if len(self.live) >= settings.max_processes:
            raise SessionLimitReached(settings.max_processes)

    async def _end_idle_periodically(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                await self.end_idle()
            except SessionError as error:
                logger.warning("idle MCP servers were not ended, which will be tried again (%s)", error)

    async def end_idle(self) -> None:
        """End the processes of sessions that are idle: without a call or a ping for ``idle_after``."""
        for process in [process for process in self.live if not process.calls]:
            session = await self._sessions.afind(process.session.id)
            is_same = session is not None and session.incarnation == process.session.incarnation
            if session is not None and is_same and session.status != "active":  # a deleted one is closed by the sweeper
                await session.aclose_resource(RESOURCE)

    async def close(self) -> None:
        """End all processes."""
        if self._watch is not None:
            self._watch.cancel()
        sessions = {process.session.id: process.session for process in self.live}
        operator = [await self._sessions.afind(session_id) for session_id in sessions]
        await asyncio.gather(*(each.aclose_resource(RESOURCE) for each in operator if each is not None))
