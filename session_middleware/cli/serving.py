"""Commands that serve the sessions to other programs until they are ended."""

from __future__ import annotations

import asyncio
import gc
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from functools import partial, reduce
from ipaddress import ip_address
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from session_middleware.cli import options
from session_middleware.cli.loading import extra, import_object
from session_middleware.cli.options import command
from session_middleware.cli.output import say

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from session_middleware import Sessions
    from session_middleware.integrations.mcp_server import Caller
    from session_middleware.integrations.server import Authenticate, Gateway, LoopbackUser

_GRACE_SECONDS = 3  # that open streams have to end in after Ctrl-C


# The address, and who calls

_CALLABLES = "a function of the request or a JwtVerifier"
_VERIFIERS = "a TokenVerifier of the MCP SDK or a JwtVerifier"


def server_options(port: int, *, user: str, auth: str) -> Callable[..., Any]:
    """Add --host and --port, and the ways to find out who calls: --user, whose default is `user`, and --auth."""
    port_text = f"0 takes a free one. [default: {port}]"
    user_text = f"The user whose sessions are served; not with --auth. [default: {user}]"
    auth_text = f"Identifies each caller: {auth}. Needed with a --host that others can reach."
    added = [
        click.option(
            "--host", metavar="NAME", default="127.0.0.1", help="The address to listen on. [default: 127.0.0.1]"
        ),
        click.option("--port", type=click.IntRange(0, 65535), metavar="N", default=port, help=port_text),
        click.option("--user", "user_id", metavar="ID", help=user_text),
        click.option("--auth", metavar="MODULE:NAME", help=auth_text),
    ]
    return lambda function: reduce(lambda made, option: option(made), reversed(added), function)


def _named_by(auth: str | None, user_id: str | None, host: str, *, wanted: str, methods: Sequence[str]) -> Any:
    """The object that `auth` names, which has one of the methods, or ``None`` where only this machine can call.

    Raises:
        click.UsageError: anybody on the network would be one user.
    """
    if auth is None:
        if not all(ip_address(address[4][0]).is_loopback for address in _addresses(host, 0)):
            raise click.UsageError(
                f"others can reach {host}, and without --auth their identity is unknown; give --auth MODULE:NAME, "
                "or leave out --host to serve this machine only"
            )
        return None
    if user_id is not None:
        raise click.UsageError("--auth says who calls, so there is no --user; give one of them")
    found = import_object("--auth", auth)
    if not any(callable(getattr(found, method, None)) for method in methods):
        raise click.ClickException(f"--auth {auth!r} cannot find out who calls; name {wanted}")
    return found


def _identity_of(host: str, user_id: str | None, auth: str | None, *, everybody: LoopbackUser) -> Authenticate:
    """How to find out who calls: without `auth` and `user_id` each caller is `everybody`."""
    from session_middleware.integrations.server import LoopbackUser
    from session_middleware.lifecycle import owner_id_of

    found: Authenticate | None = _named_by(auth, user_id, host, wanted=_CALLABLES, methods=["__call__"])
    return found or (everybody if user_id is None else LoopbackUser(owner_id_of("--user", user_id)))


def _addresses(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"--host {host!r} is no address of this machine; write one such as 127.0.0.1") from error


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `click.ClickException` if the port is in use."""
    family, _, _, _, address = min(_addresses(host, port), key=lambda found: found[0] != socket.AF_INET)
    try:
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        advice = "choose another one with --port, or --port 0 for a free one"
        text = f"cannot listen on {host}, port {port} ({error.strerror}); {advice}"
        raise click.ClickException(text) from error


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# The server


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block at Ctrl-C and at SIGTERM, which uvicorn raises again after the last response."""

    def end(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def respond(asgi: ASGIApp, listening: socket.socket, *, end: Callable[[], Awaitable[None]] | None = None) -> None:
    """Serve until a signal. Only warnings and errors are logged.

    Args:
        end: called at the signal, to end responses that last, for which uvicorn would wait.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if end is not None:
                await end()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        asgi,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # a caller could name the loopback address as its own
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    gc.collect()
    gc.freeze()  # a full collection stops all streams, and need not visit what was imported
    await Server(config).serve(sockets=[listening])


@command(
    "serve --app my_agent:graph",
    "serve --app support=my_app.agents:build --port 9000 --user alice",
    "serve --app my_agent:graph --host 0.0.0.0 --auth my_app.auth:caller",
    db=None,
)
@options.new_db_option
@click.option(
    "--app",
    "apps",
    metavar="[NAME=]MODULE:GRAPH",
    multiple=True,
    help="A graph that clients may run, or a function that returns one; may be repeated. Its name is the attribute's,"
    " or NAME.",
)
@server_options(8123, user="local", auth=_CALLABLES)
@click.option(
    "--origin",
    "origins",
    metavar="URL",
    multiple=True,
    help="A web page that may call, such as https://chat.example, or *; may be repeated. [default: without --auth,"
    " those of this machine]",
)
@click.option(
    "--mcp",
    metavar="COMMAND",
    help="An MCP server of which each session gets a process, such as 'python tools.py {data_dir}'.",
)
@click.option(
    "--mcp-data", metavar="PATH", help="The folder {data_dir} of a session. [default: mcp-data/{user_id}/{session_id}]"
)
@click.option("--requests-per-minute", metavar="N", type=click.IntRange(1), help="Of each user. [default: no limit]")
@click.option("--streams-per-user", metavar="N", type=click.IntRange(1), help="Open at once. [default: no limit]")
@click.option(
    "--body-bytes",
    metavar="N",
    type=click.IntRange(1),
    default=33_554_432,
    help="The largest request. [default: 32 MiB]",
)
@click.option(
    "--metrics-token",
    envvar="SESSION_SERVER_METRICS_TOKEN",
    metavar="TOKEN",
    help="Reads /metrics from other machines. [default: SESSION_SERVER_METRICS_TOKEN]",
)
def serve(
    db: str | None,
    apps: tuple[str, ...],
    host: str,
    port: int,
    user_id: str | None,
    auth: str | None,
    origins: tuple[str, ...],
    metrics_token: str | None,
    mcp: str | None,
    mcp_data: str | None,
    **limits: Any,
) -> None:
    """Serve sessions and graphs over HTTP, as clients of LangGraph's server expect them."""
    with extra("server"):
        import uvicorn  # noqa: F401 - named here, where it is missing

        from session_middleware.integrations import server
        from session_middleware.integrations.server.application import end_streams
    from session_middleware.cli.loading import graph_names
    from session_middleware.cli.opening import opened_as_app

    authenticate = _identity_of(host, user_id, auth, everybody=server.LoopbackUser("local"))
    found = {name: (target, import_object("--app", target)) for name, target in graph_names(apps).items()}

    gateway = _gateway(mcp, mcp_data)

    async def run(sessions: Sessions, listening: socket.socket) -> None:
        async with AsyncExitStack() as stack:
            graphs = await _attached(sessions, found, stack)
            chosen = server.Limits(**limits)
            made = server.app(
                *(sessions, graphs),
                authenticate=authenticate,
                origins=origins,
                limits=chosen,
                metrics_token=metrics_token,
                gateway=gateway,
            )
            say(f"serving {_names(graphs)} on {url_of(listening)}; Ctrl-C ends it")
            await respond(made, listening, end=partial(end_streams, made))

    with opened_as_app(db) as sessions, closing(listen(host, port)) as listening, _ended_by_signals():
        asyncio.run(run(sessions, listening))


def _gateway(command: str | None, data_dir: str | None) -> Gateway | None:
    """The settings of the gateway. Raises `click.UsageError` for a command that cannot be split."""
    from session_middleware.integrations.server import Gateway

    if command is None:
        if data_dir is not None:
            raise click.UsageError("--mcp-data needs --mcp; name the MCP server whose folder it is")
        return None
    try:
        program, *args = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--mcp {command!r} is no command; write one such as 'python tools.py'") from error
    return Gateway(program, args=tuple(args), data_dir=data_dir or Gateway.data_dir)


async def _attached(sessions: Sessions, found: dict[str, tuple[str, Any]], stack: AsyncExitStack) -> dict[str, Any]:
    """The graphs with the parts of `sessions`, in place of those that they were compiled with."""
    from session_middleware.cli.loading import compiled_graph

    graphs = {}
    for name, (target, each) in found.items():
        graph = await compiled_graph(target, each, stack)
        for part in ("checkpointer", "store"):
            if getattr(graph, part, None) not in (None, False):
                click.echo(f"Warning: the {part} of {target} is not used; the database has its own", err=True)
        graphs[name] = sessions.attach(graph, replace=True)
    return graphs


def _names(graphs: dict[str, Any]) -> str:
    return ", ".join(graphs) if graphs else "sessions without a graph"


# The MCP server


@command("mcp --user alice", "mcp --http --port 9000", "mcp --http --host 0.0.0.0 --auth my_app.auth:verifier", db=None)
@options.new_db_option
@click.option("--http", is_flag=True, help="Serve streamable HTTP, and not the program that starts this one.")
@server_options(8124, user="all sessions; with --http: local", auth=f"{_VERIFIERS}, with --http")
@click.option("--groups", metavar="ID,…", default="", help="Groups of this user, whose shared sessions are served too.")
def mcp_command(db: str | None, user_id: str | None, groups: str, *, http: bool, **where: Any) -> None:
    """Serve sessions as tools of the Model Context Protocol, over stdin and stdout or over HTTP."""
    with extra("mcp"):
        from session_middleware.integrations import mcp_server
    from session_middleware.cli.opening import is_terminal, opened_as_app

    host, port, auth = (where[name] for name in ("host", "port", "auth"))
    given = [f"--{name}" for name in where if _is_given(name)]
    if given and not http:
        raise click.UsageError(f"{given[0]} needs --http; add it, or leave out {given[0]}")
    caller = _mcp_caller(user_id, groups)
    methods = ("verify_token", "caller_of")
    verifier = _named_by(auth, user_id, host, wanted=_VERIFIERS, methods=methods) if http else None
    with opened_as_app(db) as sessions:
        made = mcp_server.server(sessions, caller, token_verifier=verifier)
        if not http:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread that reads stdin would keep the process alive
            if is_terminal():
                click.echo("serving MCP on stdin and stdout, for the client that starts it; Ctrl-C ends it", err=True)
            made.run("stdio")
            return
        with closing(listen(host, port)) as listening, _ended_by_signals():
            say(f"serving MCP on {url_of(listening)}/mcp; Ctrl-C ends it")
            asyncio.run(respond(made.streamable_http_app(host=host), listening))


def _is_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _mcp_caller(user_id: str | None, groups: str) -> Caller | None:
    from session_middleware.integrations.mcp_server import Caller
    from session_middleware.lifecycle import owner_id_of, owner_ids_of

    group_ids = [each.strip() for each in groups.split(",") if each.strip()]
    if user_id is None:
        if group_ids:
            raise click.UsageError("--groups needs --user; name the user who is in them")
        return None
    return Caller(owner_id_of("--user", user_id), owner_ids_of("--groups", group_ids))


# The page


@command(
    "ui",
    "ui --db sessions.db --user alice",
    "ui --db postgresql://localhost/app --port 9000",
)
@server_options(8125, user="all sessions", auth=_CALLABLES)
def ui(sessions: Sessions, host: str, port: int, user_id: str | None, auth: str | None) -> None:
    """Serve a page to read sessions in a browser: conversations, traces, branches, usage.

    Without --user and --auth, programs of this machine see all sessions, as with the command list.
    """
    with extra("server"):
        import uvicorn  # noqa: F401 - named here, where it is missing

        from session_middleware.integrations import server

    authenticate = _identity_of(host, user_id, auth, everybody=server.LoopbackUser(is_operator=True))
    with closing(listen(host, port)) as listening, _ended_by_signals():
        say(f"the page is at {url_of(listening)}; Ctrl-C ends it")
        asyncio.run(respond(server.ui(sessions, authenticate=authenticate), listening))


COMMANDS = (serve, mcp_command, ui)
