"""The branches of a session, which edits and other answers begin, and the family of its forks, each as a tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from session_middleware.models import Branch, Message
from session_middleware.session import Session

_MOST_BRANCHES = 100  # the latest
_MOST_IN_FAMILY = 200


@dataclass(frozen=True)
class BranchNode:
    """A branch with the first message that it has of its own, and the branches that begin on it."""

    id: str
    begins_with: Message | None
    created_at: datetime
    is_current: bool
    parent_seq: int = 0
    children: list[BranchNode] = field(default_factory=list)


@dataclass(frozen=True)
class FamilyNode:
    """A session and its forks."""

    session: Session
    is_shown: bool  # it is the session of the page
    children: list[FamilyNode] = field(default_factory=list)


class Branches(NamedTuple):
    """A session's branches and forks, each as a tree."""

    root: BranchNode
    hidden: int  # branches that are too many
    family: list[FamilyNode]
    family_size: int


async def branches_of(session: Session) -> Branches:
    """The trees that the view of branches shows."""
    every = await session.abranches()
    shown = every[-_MOST_BRANCHES:]
    root = BranchNode("main", await _first(session), session.created_at, session.branch == "main")
    nodes = {"main": root}
    for branch in shown:
        message = await _first(session, branch)
        nodes[branch.id] = BranchNode(
            branch.id, message, branch.created_at, session.branch == branch.id, branch.parent_seq
        )
    for branch in shown:
        nodes.get(branch.parent_id, root).children.append(nodes[branch.id])
    family = await session.afamily(limit=_MOST_IN_FAMILY)
    return Branches(root, len(every) - len(shown), _family_tree(family, session), len(family))


async def _first(session: Session, branch: Branch | None = None) -> Message | None:
    if branch is None:
        found = await session.amessages(branch="main", limit=1, subgraphs=False)
    else:
        found = await session.amessages(branch=branch.id, after=branch.parent_seq, limit=1, subgraphs=False)
    return found[0] if found else None


def _family_tree(sessions: Sequence[Session], shown: Session) -> list[FamilyNode]:
    """The roots of the family; a fork whose source was deleted, or is not the caller's, is one too."""
    ids = {session.id for session in sessions}
    children: dict[str | None, list[Session]] = defaultdict(list)
    for session in sessions:
        children[session.parent_id if session.parent_id in ids else None].append(session)

    def node(session: Session) -> FamilyNode:
        return FamilyNode(session, session.id == shown.id, list(map(node, children[session.id])))

    return list(map(node, children[None]))
