"""The command `serve`: the graphs that it finds, whom it refuses to serve, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from langgraph.pregel import Pregel

from session_middleware.cli.loading import compiled_graph, graph_names, import_object
from session_middleware.cli.main import cli
from tests.support.commands import MAIN
from tests.support.processes import Process

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

MODULE = """
import asyncio
import gc
from contextlib import asynccontextmanager, contextmanager
from langgraph.graph import START, MessagesState, StateGraph

ended = []

async def wait(state, writer):
    writer({"waiting": True, "frozen": gc.get_freeze_count() > 10_000})
    await asyncio.Event().wait()

waiting = StateGraph(MessagesState).add_node("wait", wait).add_edge(START, "wait").compile()
builder = StateGraph(MessagesState).add_node("answer", lambda state: {"messages": [("ai", "hello")]})
builder.add_edge(START, "answer")
graph = builder.compile()

def make():
    return builder

def with_config(config):
    return builder.compile(name=str(config))

async def later():
    return graph

@asynccontextmanager
async def opened():
    yield graph
    ended.append("opened")

@contextmanager
def held():
    yield graph
    ended.append("held")

class Agents:
    support = graph

def failing():
    raise RuntimeError("no key")

def caller(request):
    return None

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the modules of a person."""
    (tmp_path / "their_agents.py").write_text(MODULE)
    (tmp_path / "their_broken.py").write_text("import os\nimport their_missing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("their_agents", "their_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["serve", "--db", "s.db", "--port", "0", *arguments], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_ends_its_streams_without_a_word(signal_number: int) -> None:
    command = ["serve", "--db", "s.db", "--port", "0", "--app", "their_agents:waiting"]
    command += ["--origin", "https://chat.example", "--requests-per-minute", "9", "--streams-per-user", "2"]
    with Process("-c", MAIN, *command) as process:
        line = process.stdout.readline()
        assert line.startswith("serving waiting on http://127.0.0.1:")
        url = line.split()[3].rstrip(";")
        assert httpx.get(f"{url}/ok", trust_env=False, timeout=60).json() == {"ok": True}
        asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
        assert httpx.options(f"{url}/threads", headers=asked, trust_env=False, timeout=60).status_code == 200
        with ExitStack() as stack:
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
            client.post("/threads", json={"thread_id": "t"})
            asked = {"assistant_id": "waiting", "input": {"messages": []}, "stream_mode": "custom"}
            of_thread = stack.enter_context(client.stream("GET", "/threads/t/stream"))
            of_run = stack.enter_context(client.stream("POST", "/threads/t/runs/stream", json=asked))
            texts = [response.iter_lines() for response in (of_run, of_thread)]
            assert all('data: {"waiting":true,"frozen":true}' in lines for lines in texts)
            os.kill(process.pid, signal_number)
            assert ['"ServerEnded"' in "".join(lines) for lines in texts] == [True, True]
        assert process.wait(30) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--app", "their_agents:failing"], "'their_agents:failing' cannot be loaded: RuntimeError: no key (their_ag"),
        (["--app", "their_agents:number"], "is of type int"),
        (["--app", "their_agents:graf"], "module 'their_agents' has no 'graf'"),
        (["--app", "nowhere.agents:graph"], "there is no module 'nowhere'"),
        (["--app", "their_broken:graph"], "ModuleNotFoundError: No module named 'their_missing' (their_broken.py, lin"),
        (["--app", "./their_agents.py:graph"], "write a module as Python imports it"),
        (["--app", "their_agents"], "write a module as Python imports it"),
        (["--app", "=their_agents:graph"], "has no name before ="),
        (["--app", "their_agents:graph", "--app", "their_agents:graph"], "two of --app are named 'graph'"),
        (["--auth", "their_agents:number"], "name a function of the request"),
        (["--auth", "their_agents:caller", "--user", "ada"], "give one of them"),
        (["--host", "0.0.0.0"], "give --auth MODULE:NAME"),
        (["--host", "::"], "give --auth MODULE:NAME"),
        (["--host", "not a host"], "no address of this machine"),
        (["--user", ""], "--user"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(arguments: list[str], error: str) -> None:
    result = serve(*arguments)
    assert result.exit_code != 0
    assert error in result.stderr
    assert "Traceback" not in result.output


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = serve("--port", str(other.getsockname()[1]))
    assert "choose another one with --port" in result.stderr


def test_graphs_are_named_by_their_attribute_or_as_given() -> None:
    assert graph_names(("a.b:graph", "support=a:make", "a:Agents.sales")) == {
        "graph": "a.b:graph",
        "support": "a:make",
        "sales": "a:Agents.sales",
    }


@pytest.mark.parametrize(
    "name", ["graph", "builder", "make", "with_config", "later", "opened", "held", "Agents.support"]
)
def test_an_app_is_a_graph_a_builder_or_a_function_of_any_kind(name: str) -> None:
    target = f"their_agents:{name}"

    async def load() -> Any:
        async with AsyncExitStack() as stack:
            found = await compiled_graph(target, import_object("--app", target), stack)
            assert import_object("--app", "their_agents:ended") == []
        return found

    assert isinstance(asyncio.run(load()), Pregel)
    assert import_object("--app", "their_agents:ended") == [name] * (name in ("opened", "held"))
