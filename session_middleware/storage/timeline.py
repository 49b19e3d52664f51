"""A page of a session's record: in one order, and as one tree.

The order is `seq`. The tree groups the records by run, and in a run by the namespaces of graph nodes and subgraphs, so
that parallel branches stand apart. A page also has the runs of its records that began on an earlier page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from typing import Any

from session_middleware.display.frames import data_frame
from session_middleware.display.html import MAX_ROWS, TreeRow, tree_html
from session_middleware.display.text import duration_text, plural, second_text, visible_line
from session_middleware.models import Event, Message, ModelCall, Question, Run, ToolCall
from session_middleware.storage.types import Record


@dataclass(frozen=True, slots=True)
class Node:
    """One record, or a node of a graph with the records in it."""

    name: str  # "run", "message", "tool_call", "model_call", "question", "event", or the name of a graph's node
    record: Record | None = None  # None: a node of a graph
    namespace: str = ""
    children: list[Node] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it, each with its depth, in order."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


class Tree(list[Node]):
    """The roots of a page. Its ``repr`` has a line for each node, and a notebook shows bars of durations too."""

    def __repr__(self) -> str:
        shown, hidden = self._shown()
        lines = [visible_line(f"{'  ' * depth}{_line(node)}") for _, depth, node in shown]
        return "\n".join([*lines, f"and {hidden:,} more"] if hidden else lines)

    def _repr_html_(self) -> str:
        shown, hidden = self._shown()
        return tree_html(["seq", "time (UTC)", "what", "duration"], (_row(*each) for each in shown), hidden)

    def _shown(self) -> tuple[list[tuple[Node, int, Node]], int]:
        """Roots, depths and nodes, and the number of the nodes that are too many."""
        nodes = [(root, depth, node) for root in self for depth, node in root.walk()]
        return nodes[:MAX_ROWS], max(len(nodes) - MAX_ROWS, 0)


class Timeline(list[Record]):
    """Records by `seq`. Get the next page with ``timeline(after=page[-1].seq)``."""

    def __init__(self, entries: Iterable[Record] = (), runs: Iterable[Run] = ()) -> None:
        super().__init__(entries)
        self._runs = {run.id: run for run in (*runs, *(entry for entry in self if isinstance(entry, Run)))}

    def __repr__(self) -> str:
        if not self:
            return "<Timeline: no records>"
        return (
            f"<Timeline of {self[0].session_id!r}: {plural(len(self), 'record')}, seq {self[0].seq} to {self[-1].seq}>"
        )

    def _repr_html_(self) -> str:
        return self.tree._repr_html_()

    def to_pandas(self) -> Any:
        """A DataFrame with a row per record: what all kinds have. Raises `MissingExtra` if pandas is not installed."""
        rows = (
            {"seq": record.seq, "run_id": record.run_id, "kind": kind_of(record), "time": record.moment}
            | {"duration_ms": getattr(record, "duration_ms", None), "line": record.line}
            for record in self
        )
        return data_frame(rows, ("seq", "run_id", "kind", "time", "duration_ms", "line"))

    @property
    def tree(self) -> Tree:
        """The page as a tree: the records that belong to no run, and the runs with their records by namespace."""
        root = Node("")
        nodes: dict[tuple[str, ...], Node] = {}

        def inner(parent: Node, *key: str, name: str, record: Record | None = None, namespace: str = "") -> Node:
            if key not in nodes:
                nodes[key] = Node(name, record, namespace)
                parent.children.append(nodes[key])
            return nodes[key]

        for entry in self:
            node, run_id = root, (entry.id if isinstance(entry, Run) else entry.run_id) or ""
            if run_id in self._runs:
                node = inner(root, run_id, name="run", record=self._runs[run_id])
            if isinstance(entry, Run):
                continue
            namespace = getattr(entry, "checkpoint_ns", "")
            for path in accumulate(namespace.split("|"), "{}|{}".format) if namespace else ():
                name = path.rpartition("|")[2].partition(":")[0]
                node = inner(node, run_id, path, name=name, namespace=path)
            node.children.append(Node(kind_of(entry), entry, namespace))
        return Tree(root.children)


_TIMED = (Run, ToolCall, ModelCall)


def _line(node: Node) -> str:
    record = node.record
    if record is None:
        return node.name
    kind = record.role if isinstance(record, Message) else node.name.replace("_", " ")
    return f"{kind}: {record.line}"


def _row(root: Node, depth: int, node: Node) -> TreeRow:
    record = node.record
    if record is None:
        return TreeRow(("", ""), depth, node.name)
    moment = record.moment
    cells = (str(record.seq), "" if moment is None else second_text(moment))
    row = TreeRow(cells, depth, _line(node), _hidden(record))
    if isinstance(record, _TIMED) and record.duration_ms is not None:
        return row._replace(bar=_bar(record, root.record), title=duration_text(record.duration_ms))
    return row


def _bar(record: Run | ToolCall | ModelCall, run: Record | None) -> tuple[float, float] | None:
    """The begin and the length of a record as fractions of its run's; ``None``: the run's are not known."""
    if not isinstance(run, Run) or not run.duration_ms or not record.duration_ms or record.started_at is None:
        return None
    begin = (record.started_at - run.started_at) / timedelta(milliseconds=run.duration_ms)
    return begin, record.duration_ms / run.duration_ms


def _hidden(record: Record) -> str:
    """What the line of a record leaves out, with line breaks."""
    if isinstance(record, ToolCall):
        outcome = "error" if record.error is not None else "result"
        parts = {"arguments": record.arguments, outcome: getattr(record, outcome)}
        return "\n".join(f"{name}: {_indented(value)}" for name, value in parts.items() if value is not None)
    full = record.describe(full=True)
    return "" if full == record.line else full


def _indented(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)


_KINDS: dict[type, str] = {
    Message: "message",
    ToolCall: "tool_call",
    ModelCall: "model_call",
    Run: "run",
    Question: "question",
    Event: "event",
}


def kind_of(entry: Record) -> str:
    """The kind of a record, as in the name of its table: ``"message"``, ``"tool_call"`` …"""
    return _KINDS[type(entry)]
