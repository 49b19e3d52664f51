"""A page of a session's record: in one order, and as one tree.

The order is `seq`. The tree is what ran inside what: runs, then the nodes of a graph and of the
graphs inside it by their namespaces, so that subgraphs, parallel branches and each branch of a
fan-out stand apart. A page knows the runs its records belong to, also those that began on an
earlier page, so every page is a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from session_middleware.display.html import MAX_ROWS, table_html
from session_middleware.display.text import plural, second_text
from session_middleware.models import Event, Message, ModelCall, Run, ToolCall
from session_middleware.storage.types import Record


@dataclass(frozen=True, slots=True)
class Node:
    """One record, or a part of a graph that records stand under."""

    name: str  # "run", "message", "tool_call", "model_call", "event", or the name of a graph's node
    record: Record | None = None  # None: a part of a graph
    namespace: str = ""
    children: list[Node] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it, each with its depth, in order."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


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
        nodes = [placed for root in self.tree for placed in root.walk()]
        rows = [_row(depth, node) for depth, node in nodes[:MAX_ROWS]]
        return table_html(["seq", "time (UTC)", "what"], rows, len(nodes) - len(rows))

    @property
    def tree(self) -> list[Node]:
        """The page as a tree: what belongs to no run, and runs with what was said and done in them."""
        roots: list[Node] = []
        places: dict[tuple[str, str], Node] = {}
        for entry in self:
            if isinstance(entry, Run):
                self._run(entry.id, roots, places)
                continue
            siblings = roots
            if entry.run_id is not None and entry.run_id in self._runs:
                siblings = self._run(entry.run_id, roots, places).children
            namespace = getattr(entry, "checkpoint_ns", "")
            siblings = _inside(namespace, entry.run_id or "", siblings, places)
            siblings.append(Node(kind_of(entry), entry, namespace))
        return roots

    def _run(self, run_id: str, roots: list[Node], places: dict[tuple[str, str], Node]) -> Node:
        key = (run_id, "")
        if key not in places:
            places[key] = Node("run", self._runs[run_id])
            roots.append(places[key])
        return places[key]


def _inside(namespace: str, run_id: str, siblings: list[Node], places: dict[tuple[str, str], Node]) -> list[Node]:
    """What stands beside a record of this namespace; the nodes that lead there are made."""
    path = ""
    for part in namespace.split("|") if namespace else ():
        path = f"{path}|{part}" if path else part
        key = (run_id, path)
        if key not in places:
            places[key] = Node(part.partition(":")[0], namespace=path)
            siblings.append(places[key])
        siblings = places[key].children
    return siblings


def _row(depth: int, node: Node) -> list[str]:
    inset, record = "\N{EM SPACE}" * depth, node.record
    if record is None:
        return ["", "", f"{inset}{node.name}"]
    kind = record.role if isinstance(record, Message) else node.name.replace("_", " ")
    moment = record.created_at if isinstance(record, (Message, Event)) else record.started_at
    return [str(record.seq), "" if moment is None else second_text(moment), f"{inset}{kind}: {record.line}"]


def kind_of(entry: Record) -> str:
    """The kind of a record, as in the name of its table: ``"message"``, ``"tool_call"`` …"""
    return _KINDS[type(entry)]


_KINDS: dict[type, str] = {
    Message: "message",
    ToolCall: "tool_call",
    ModelCall: "model_call",
    Run: "run",
    Event: "event",
}
