"""What is listed is what LangGraph's own saver lists: filters, pages and threads, however odd their names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from session_middleware import SessionError, Sessions
from tests.support import agents
from tests.support.agents import human
from tests.support.saver_machine import assert_same

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


def assert_lists_equal(savers: Any, where: Any, *, limit: int | None = None, **options: Any) -> int:
    """InMemorySaver lists one namespace after the other; all of LangGraph's that are databases list by id."""
    ours = list(savers[0].list(where, limit=limit, **options))
    theirs = sorted(savers[1].list(where, **options), key=id_of, reverse=True)
    theirs = theirs if limit is None else theirs[: max(0, limit)]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same(mine, other)
    return len(ours)


def id_of(found: Any) -> str:
    return str(found.config["configurable"]["checkpoint_id"])


def test_a_filter_finds_what_langgraphs_own_saver_finds(savers: Any) -> None:
    fill(savers)
    places = cycle((config(), config(namespace=None), config("u", "sub:1")))
    for wanted in FILTERS:
        assert_lists_equal(savers, None, filter=wanted)
        assert_lists_equal(savers, next(places), filter=wanted)
        assert_lists_equal(savers, config(), filter=wanted, limit=1)


DOTTED: list[dict[str, Any]] = [
    {"parents.sub": "p"},
    {"parents": {"sub": "p"}},
    {"deep.a": {}},
    {"deep.a": {"b": [1, {"c": None}]}},
    {"deep.a.b": [1, {"c": None}]},
    {"deep.a.b.c": None},
    {"deep.a.x": None},
    {"source.x": None},
    {"deep.n": 1},
    {"deep.n": True},
    {"deep.n": 1.0},
    {"deep.n": "1"},
    {"deep.yes": True},
    {"deep.yes": 1},
    {"deep.no": False},
    {"deep.no": None},
    {"deep.nothing": None},
    {"deep.text": "a.b"},
    {"deep.n": 1, "source": "loop"},
    {"deep.n": 1, "source": "input"},
    {"a-b.c_d": "x"},
    {"deep.id": UUID(int=1)},
    {"step": None},
    {"step": True},
]


async def test_dots_in_a_filter_reach_into_values_as_in_langgraphs_saver_for_sqlite(storage_url: str) -> None:
    given: list[Any] = [
        {"source": "loop", "step": 1, "parents": {"sub": "p"}, "a-b": {"c_d": "x"}},
        {"source": "loop", "step": 2, "deep": {"a": {}, "n": 1, "yes": True, "no": False, "nothing": None}},
        {"source": "input", "step": 3, "deep": {"a": {"b": [1, {"c": None}]}, "n": "1", "text": "a.b"}},
        {"source": "fork", "step": 4, "deep": {"n": 1.0, "id": str(UUID(int=1)), "yes": 1, "no": 0}},
        {"source": "fork"},
    ]
    with Sessions(storage_url) as sessions, SqliteSaver.from_conn_string(":memory:") as theirs:
        for number, metadata in enumerate(given * 2):
            for saver in (sessions.checkpointer, theirs):
                where = config("tu"[number % 2], ("", "sub:1")[number % 3 == 0])
                put(saver, where, f"{number:03}", dict(metadata), number, value=number)
        for wanted, where in product(DOTTED, (config(), config("u", namespace=None), None)):
            found = [id_of(one) for one in sessions.checkpointer.list(where, filter=wanted)]
            assert found == [id_of(one) for one in theirs.list(where, filter=wanted)]
            assert found == [id_of(one) async for one in sessions.checkpointer.alist(where, filter=wanted)]
            paged = [id_of(one) for one in sessions.checkpointer.list(where, filter=wanted, limit=2)]
            assert paged == found[:2]
            after = config(checkpoint_id="006")
            assert [id_of(one) for one in sessions.checkpointer.list(where, filter=wanted, before=after)] == [
                id_of(one) for one in theirs.list(where, filter=wanted, before=after)
            ]


async def test_a_list_over_many_pages_is_in_one_order_and_goes_on_where_it_was(storage_url: str) -> None:
    """Three threads, whose namespaces have checkpoints of the same age; one is copied, so ids are there twice."""
    with Sessions(storage_url) as sessions, SqliteSaver.from_conn_string(":memory:") as theirs:
        for number in range(300):  # one more page than the first, where all namespaces are listed
            where = config("tuv"[number % 3], f"sub:{number % 5}" if number % 4 else "")
            for saver in (sessions.checkpointer, theirs):
                put(saver, where, f"{number:05}", {"even": number % 2 == 0}, number, value=number)
        for where in (None, config("t", namespace=None), config("u")):
            for options in ({}, {"filter": {"even": True}}, {"before": config(checkpoint_id="00275")}, {"limit": 270}):
                expected = [id_of(one) for one in theirs.list(where, **options)]
                assert [id_of(one) for one in sessions.checkpointer.list(where, **options)] == expected
                assert [id_of(one) async for one in sessions.checkpointer.alist(where, **options)] == expected
        sessions.checkpointer.copy_thread("t", "copy")
        ids = [id_of(one) for one in sessions.checkpointer.list(None)]
        assert ids == sorted(ids, reverse=True)
        assert len(ids) == 300 + 100
        names = {(one.config["configurable"]["thread_id"], id_of(one)) for one in sessions.checkpointer.list(None)}
        assert len(names) == len(ids)


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


def test_an_empty_checkpoint_id_is_none(savers: Any) -> None:
    first, latest = fill(savers)[0], str(uuid6(clock_seq=1))
    empty = config(checkpoint_id="")
    for saver in savers:
        put(saver, config(checkpoint_id=first), latest, METADATA[0], 1000, text=["latest"])
        saver.put_writes(config(checkpoint_id=first), [("sum", 1)], "task")
    assert_same(*(saver.get_tuple(empty) for saver in savers))
    assert assert_lists_equal(savers, empty) == assert_lists_equal(savers, config(), before=empty) > 1
    ours, theirs = (saver.get_delta_channel_history(config=empty, channels=["sum"]) for saver in savers)
    assert [*ours["sum"]["writes"]] == theirs["sum"]["writes"] == [("task", "sum", 1)]


async def test_every_thread_is_listed_whole_where_no_config_is_given(savers: Any) -> None:
    ids = fill(savers)
    assert assert_lists_equal(savers, None) == len(ids)
    found = [one async for one in savers[0].alist(None)]
    for mine, again in zip(savers[0].list(None), found, strict=True):
        assert_same(mine, again)
    assert [id_of(one) for one in found] == sorted(ids, reverse=True)
    assert [id_of(one) for one in savers[0].list(None, limit=5)] == sorted(ids, reverse=True)[:5]


def test_a_filter_names_the_owner_of_the_listed_sessions(each_engine: str) -> None:
    with Sessions(each_engine, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        for thread, owner in (("a", {"user_id": "alice"}), ("b", {"user_id": "bob", "group_id": "team"}), ("c", {})):
            graph.invoke(human("hi"), sessions.config(thread, **owner))

        def listed(limit: int | None = None, **owner: Any) -> list[str]:
            found = sessions.checkpointer.list(None, filter=owner, limit=limit)
            return [each.config["configurable"]["thread_id"] for each in found]

        assert (set(listed()), set(listed(user_id="alice"))) == ({"a", "b", "c"}, {"a"})
        assert listed(user_id="alice", limit=2) == ["a", "a"]
        assert set(listed(group_id="team")) == set(listed(user_id="bob", group_id="team")) == {"b"}
        assert set(listed(user_id=None)) == {"c"}
        assert len(listed(user_id="bob", source="loop")) < len(listed(user_id="bob"))
        for other in ("mallory", 5, ["alice"], "a\ud800"):
            assert listed(user_id=other) == []


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


def test_checkpoints_of_one_list_share_no_messages(storage_url: str) -> None:
    with Sessions(storage_url) as sessions:
        graph = agents.own_subgraph(checkpointer=sessions.checkpointer)
        for turn in range(3):
            graph.invoke(human(f"turn {turn}", id=f"h{turn}"), config())
        found = [each for state in graph.get_state_history(config()) for each in state.values.get("messages", [])]
        before = [message.model_copy(deep=True) for message in found]
        for number, message in enumerate(found):
            message.content = f"changed {number}"
            message.additional_kwargs["number"] = number
            message.model_fields_set.discard("name")
        assert [message.additional_kwargs["number"] for message in found] == list(range(len(found)))
        again = [each for state in graph.get_state_history(config()) for each in state.values.get("messages", [])]
        assert again == before
        assert all("name" in message.model_fields_set for message in again)


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
