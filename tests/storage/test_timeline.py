"""A page of records as a tree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from session_middleware.models import Event, Message, ModelCall, Run, ToolCall
from session_middleware.storage.timeline import Node, Timeline
from session_middleware.storage.types import Record

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
T: dict[str, Any] = {"session_id": "t"}


def run(seq: int, id: str) -> Run:
    return Run(seq=seq, id=id, outcome="ok", started_at=NOON, **T)


def said(seq: int, text: str, namespace: str = "", run_id: str = "r1") -> Message:
    given = {"role": "user", "message_id": f"m{seq}", "created_at": NOON, "checkpoint_ns": namespace}
    return Message(seq=seq, text=text, run_id=run_id, **given, **T)


def asked(seq: int, namespace: str, run_id: str = "r1") -> ModelCall:
    return ModelCall(seq=seq, id=f"k{seq}", model="small", checkpoint_ns=namespace, run_id=run_id, **T)


def did(seq: int, namespace: str = "") -> ToolCall:
    given = {"tool_call_id": f"c{seq}", "name": "search", "status": "ok", "checkpoint_ns": namespace}
    return ToolCall(seq=seq, run_id="r1", **given, **T)


def shape(nodes: list[Node]) -> list[Any]:
    """Names, and under each what is below it."""
    return [(node.name, shape(node.children)) if node.children else node.name for node in nodes]


def page(*entries: Record) -> Timeline:
    return Timeline(entries)


def test_runs_hold_what_was_said_and_done_in_them() -> None:
    opened = Event(seq=1, kind="opened", run_id="r1", created_at=NOON, **T)
    titled = Event(seq=9, kind="titled", created_at=NOON, **T)
    tree = page(opened, run(2, "r1"), said(3, "hi"), did(4), run(5, "r2"), said(6, "ho", run_id="r2"), titled).tree
    assert shape(tree) == [("run", ["event", "message", "tool_call"]), ("run", ["message"]), "event"]


def test_subgraphs_hold_what_happened_in_them() -> None:
    tree = page(
        run(1, "r1"), said(2, "hi"), asked(3, "team:7|model:8"), did(4, "team:7"), said(5, "bye", "team:7")
    ).tree
    assert shape(tree) == [("run", ["message", ("team", [("model", ["model_call"]), "tool_call", "message"])])]


def test_branches_of_a_fan_out_stand_apart_though_their_records_alternate() -> None:
    tree = page(run(1, "r1"), asked(2, "say:1"), asked(3, "say:2"), said(4, "a", "say:1"), said(5, "b", "say:2")).tree
    assert shape(tree) == [("run", [("say", ["model_call", "message"]), ("say", ["model_call", "message"])])]


def test_the_same_node_in_two_runs_is_two() -> None:
    tree = page(run(1, "r1"), asked(2, "say:1"), run(3, "r2"), asked(4, "say:1", run_id="r2")).tree
    assert shape(tree) == [("run", [("say", ["model_call"])])] * 2


def test_a_page_that_begins_inside_a_run_has_it_as_its_root() -> None:
    tree = Timeline([said(7, "go on")], [run(2, "r1")]).tree
    assert shape(tree) == [("run", ["message"])]
    assert tree[0].record == run(2, "r1")


def test_a_record_of_a_run_that_has_no_row_stands_by_itself() -> None:
    assert shape(page(said(1, "hi", run_id="gone")).tree) == ["message"]


def test_every_record_is_in_the_tree_once_and_a_walk_tells_how_deep() -> None:
    entries = [run(1, "r1"), said(2, "hi"), asked(3, "team:7|model:8"), did(4, "team:7"), said(5, "bye")]
    walked = [(depth, node) for root in page(*entries).tree for depth, node in root.walk()]
    assert sorted(node.record.seq for _, node in walked if node.record) == [1, 2, 3, 4, 5]
    assert [(depth, node.name) for depth, node in walked] == [
        *((0, "run"), (1, "message"), (1, "team"), (2, "model"), (3, "model_call"), (2, "tool_call"), (1, "message"))
    ]
