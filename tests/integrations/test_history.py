"""What is listed is what LangGraph's own saver lists: filters, pages and threads, however odd their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver

from session_middleware import SessionError, Sessions
from tests.integrations import agents
from tests.integrations.agents import human
from tests.integrations.equal_machine import assert_same

ODD = {
    "dots": "a.b",
    "quotes": 'it\'s "so"',
    "sql": "'); DROP TABLE checkpoints; --",
    "path": "$.a[0]",
    "pattern": "a%_*?[",
    "unicode": "naïve ☃ 𝄞",
    "NUL": "a\0b",
    "separator": "a\x1fb",
    "separators": "a|b:c|d",
    "empty": "",
    "space": " \n",
    "surrogate": "a\ud800",
}
METADATA: list[dict[str, Any]] = [
    {"source": "input", "step": -1},
    {"source": "loop", "step": 0, "score": 1, "a.b": 1, "nothing": None},
    {"source": "loop", "step": 1, "score": 1.0, "a.b": "1", "nothing": 0, "a": {"b": 1}},
    {"source": "loop", "step": 2, "score": True, "tags": ["x", "y"], "deep": {"a": {"b": [1, {"c": None}]}}},
    {"source": "update", "step": 3, "score": "1", "tags": [], "deep": {"a": {}}, "nothing": False},
    {"source": "fork", "step": 4, "score": 0.1, "tags": ["y", "x"], "deep": {}, "nothing": ""},
    {"source": "loop", "step": 5, **{key: key for key in ODD.values() if key.isprintable()}, "NUL": "a\0b", "a\0b": 2},
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"source": "loop"},
    {"source": "loop", "step": 1},
    {"source": "loop", "step": 99},
    {"source": None},
    {"step": -1},
    {"step": "1"},
    {"step": {"$gt": 1}},
    *({"score": score} for score in (1, 1.0, True, "1", 0.1, 0.1 + 1e-9, None)),
    *({"nothing": nothing} for nothing in (None, 0, False, "", [], {})),
    *({"tags": tags} for tags in (["x", "y"], ["x"], ("x", "y"), [], "x")),
    *({"deep": deep} for deep in ({"a": {"b": [1, {"c": None}]}}, {"a": {"b": [1]}}, {"a": {}}, {}, None)),
    {"deep.a": {}},
    {"a": {"b": 1}},
    {"a.b": 1},
    {"a.b": 1, "score": 1, "nothing": None, "absent": None},
    {"absent": None},
    {"NUL": "a\0b"},
    {"a\0b": 2},
    *({odd: odd} for odd in ODD.values()),
    *({odd: None} for odd in ODD.values()),
]


@pytest.fixture
def savers(storage_url: str) -> Iterator[tuple[Any, InMemorySaver]]:
    with Sessions(storage_url) as sessions:
        yield sessions.checkpointer, InMemorySaver()


def config(thread_id: str = "t", namespace: str | None = "", checkpoint_id: str | None = None) -> Any:
    named = {"checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {"thread_id": thread_id, **{name: v for name, v in named.items() if v is not None}}}


def put(saver: Any, where: Any, checkpoint_id: str, metadata: Any, version: int, **values: Any) -> Any:
    versions = dict.fromkeys(values, version)
    checkpoint = {**empty_checkpoint(), "ts": "2026-01-01T00:00:00+00:00", "id": checkpoint_id}
    checkpoint.update(channel_values=values, channel_versions=versions)
    return saver.put(where, checkpoint, metadata, versions)


def fill(savers: Any) -> list[str]:
    """Two threads, each with two namespaces whose checkpoint ids interleave; the ids of the first."""
    ids = [str(uuid6(clock_seq=number)) for number in range(8 * len(METADATA))]
    names = [(thread, ns) for thread in ("t", "u") for ns in ("", "sub:1")]
    for number, checkpoint_id in enumerate(ids):
        where = config(*names[number % 4])
        for saver in savers:
            metadata = METADATA[number // 4 % len(METADATA)]
            put(saver, where, checkpoint_id, metadata, number, value=number, text=[str(number)])
    return ids


def assert_lists_equal(savers: Any, where: Any, **options: Any) -> int:
    ours, theirs = (list(saver.list(where, **options)) for saver in savers)
    ours, theirs = sorted_alike(ours, theirs) if where is None else (ours, theirs)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(mine, other)
    return len(ours)


def sorted_alike(*lists: Any) -> Any:
    """InMemorySaver has the threads in the order of their first checkpoint, we by their ids."""
    return ([*sorted(found, key=lambda one: sorted(one.config["configurable"].items()))] for found in lists)


def test_a_filter_finds_what_langgraphs_own_saver_finds(savers: Any) -> None:
    fill(savers)
    for wanted in FILTERS:
        for where in (config(), config(namespace=None), config("u", "sub:1"), None):
            assert_lists_equal(savers, where, filter=wanted)
        assert_lists_equal(savers, config(), filter=wanted, limit=1)


def test_a_limit_counts_what_passes_the_filter_and_not_what_is_looked_at(savers: Any) -> None:
    ids = fill(savers)
    for limit in (None, -1, 0, 1, 2, 13, 14, 15, 1000):
        for options in ({}, {"filter": {"source": "loop"}}, {"before": config(checkpoint_id=ids[30])}):
            found = assert_lists_equal(savers, config(), limit=limit, **options)
            assert limit is None or found <= max(0, limit)


def test_before_is_a_point_in_time_whosever_config_names_it(savers: Any) -> None:
    ids = fill(savers)
    for before in (
        *(config(checkpoint_id=ids[place]) for place in (0, 4, 20, -4)),
        config("t", "sub:1", ids[21]),
        config("u", "sub:1", ids[23]),
        config("nobody", "nowhere", ids[22]),
        config(checkpoint_id="0"),
        config(checkpoint_id="z"),
        config(),
        {"configurable": {}},
    ):
        for where in (config(), config(namespace=None), config("u", "sub:1"), config("u", "none"), None):
            assert_lists_equal(savers, where, before=before)
            assert_lists_equal(savers, where, before=before, limit=3, filter={"source": "loop"})


def test_a_config_that_names_a_checkpoint_lists_that_one(savers: Any) -> None:
    ids = fill(savers)
    for where in (config(checkpoint_id=ids[8]), config(namespace=None, checkpoint_id=ids[9]), config("t", "", ids[9])):
        assert_lists_equal(savers, where)
        assert_lists_equal(savers, where, before=config(checkpoint_id=ids[8]))


async def test_every_thread_is_listed_whole_where_no_config_is_given(savers: Any) -> None:
    ids = fill(savers)
    assert assert_lists_equal(savers, None) == len(ids)
    found = [one async for one in savers[0].alist(None)]
    for mine, again in zip(savers[0].list(None), found, strict=True):
        assert_same(mine, again)
    places = [(one.config["configurable"]["thread_id"], one.config["configurable"]["checkpoint_ns"]) for one in found]
    assert places == sorted(places)
    assert len(list(savers[0].list(None, limit=5))) == 5


def test_a_graphs_history_is_the_same_at_every_edge(storage_url: str) -> None:
    with Sessions(storage_url) as sessions:
        graphs = [agents.own_subgraph(checkpointer=saver) for saver in (sessions.checkpointer, InMemorySaver())]
        for graph in graphs:
            for turn in range(4):
                given = {**config(), "metadata": {"turn": turn, "a.b": f"{turn}.0", "odd": turn % 2 == 1}}
                graph.invoke(human(f"turn {turn}", id=f"h{turn}"), given)
        states = [list(graph.get_state_history(config())) for graph in graphs]
        for options in (
            {"filter": {"turn": 2}},
            {"filter": {"turn": 2, "a.b": "2.0"}},
            {"filter": {"odd": True, "source": "loop"}, "limit": 3},
            {"filter": {"a": {"b": "2.0"}}},
            {"filter": {"a.b": None}},
        ):
            found = [list(graph.get_state_history(config(), **options)) for graph in graphs]
            assert [seen(one) for one in found[0]] == [seen(one) for one in found[1]]
        for place in (0, 7, -1):
            for limit in (None, 0, 1, 5, 100):
                found = [
                    list(graph.get_state_history(config(), before=history[place].config, limit=limit))
                    for graph, history in zip(graphs, states, strict=True)
                ]
                assert [seen(one) for one in found[0]] == [seen(one) for one in found[1]]


def seen(state: Any) -> Any:
    texts = [message.text for message in state.values.get("messages", [])]
    return texts, state.values.get("draft"), state.next, state.metadata["step"], state.metadata.get("turn")


# Odd names


PARTS = ("thread", "namespace", "checkpoint", "channel", "task", "path", "metadata")
BROKEN: dict[tuple[str, str], str] = {}


def odd_parts() -> list[Any]:
    params = []
    for part in PARTS:
        for name, odd in ODD.items():
            if (part, name) != ("checkpoint", "empty"):  # no id at all, for LangGraph
                reason = BROKEN.get((part, name))
                marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
                params.append(pytest.param(part, odd, id=f"{part}-{name}", marks=marks))
    return params


@pytest.mark.parametrize(("part", "odd"), odd_parts())
def test_an_odd_name_is_kept_or_refused_and_never_takes_for_another(part: str, odd: str) -> None:
    """Beside each stands a plain one, which must not change."""
    plain = {"thread": "t", "namespace": "n", "checkpoint": "c", "channel": "v", "task": "k", "path": "p"}
    with Sessions(":memory:") as sessions:
        savers, outcomes = (sessions.checkpointer, InMemorySaver()), []
        for saver in savers:
            store(saver, plain, "plain one")
            try:
                outcomes.append(store(saver, {**plain, part: odd}, "odd"))
            except (SessionError, TypeError, UnicodeError) as error:
                outcomes.append(error)
        ours, theirs = outcomes
        if isinstance(ours, Exception):
            assert isinstance(ours, SessionError)
            assert odd in ("", "a\0b", "a\ud800"), "there is no reason to refuse it"
            savers = savers[0], InMemorySaver()
            for saver in savers:
                store(saver, plain, "plain one")
        elif not isinstance(theirs, Exception):
            assert_same(savers[0].get_tuple(ours), savers[1].get_tuple(theirs))
        where = config(plain["thread"], plain["namespace"], plain["checkpoint"])
        assert_same(savers[0].get_tuple(where), savers[1].get_tuple(where))


def store(saver: Any, names: dict[str, str], text: str) -> Any:
    metadata = {"source": "loop", "step": 1, **({names["metadata"]: names["metadata"]} if "metadata" in names else {})}
    values = {names["channel"]: [HumanMessage(text, id="m")], "other": text}
    where = put(saver, config(names["thread"], names["namespace"]), names["checkpoint"], metadata, len(text), **values)
    saver.put_writes(where, [(names["channel"], [text]), ("other", text)], names["task"], names["path"])
    return where
