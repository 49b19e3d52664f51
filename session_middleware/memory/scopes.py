"""Scopes as namespaces, and the namespaces that a session, user or group may use. Pure functions.

A namespace that begins with ``session``, ``user`` or ``group`` is owned by the id that follows. One that begins with
``langgraph``, a label that LangGraph reserves, has a server's notes about the session whose id follows. They are
deleted with the session, and no run may use them. All other namespaces belong to the application, and every run may
use them. The store, `session.memory` and the tools share these rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, get_args

from session_middleware.errors import MemoryAccessDenied, MemoryScopeUnavailable
from session_middleware.models import Scope
from session_middleware.storage.validation import check_members

Namespace: TypeAlias = tuple[str, ...]

SCOPES: tuple[Scope, ...] = get_args(Scope)


class Owners(NamedTuple):
    """The ids whose memories a caller may use; `session`, `user` and `group` are the scopes with an owner."""

    session: str | None = None
    user: str | None = None
    group: str | None = None  # of new memories
    groups: frozenset[str] = frozenset()  # whose memories are found too
    may_use_others: bool = True  # the namespaces without an owner, which belong to the application

    def of(self, scope: str) -> set[str]:
        """All ids of a scope; none for a scope without owners."""
        own: str | None = getattr(self, scope, None)
        return {*([own] if own else ()), *(self.groups if scope == "group" else ())}


OWNED = frozenset({"session", "user", "group"})
RESERVED = "langgraph"
ALWAYS = "always"  # the label, below a scope's namespace, of items that belong to every prompt


def is_always(namespace: Namespace) -> bool:
    """Whether the items of this namespace belong to every prompt of their scope."""
    return len(namespace) == (3 if namespace[0] in OWNED else 2) and namespace[-1] == ALWAYS


def both_of(namespace: Namespace, *, always: bool) -> tuple[Namespace, Namespace]:
    """The namespaces with and without the label `ALWAYS`; first the one that `always` selects."""
    with_label = (*namespace, ALWAYS)
    return (with_label, namespace) if always else (namespace, with_label)


def namespace_of(scope: Scope, owners: Owners) -> Namespace:
    """The namespace of a scope.

    Raises:
        MemoryScopeUnavailable: the scope has no id.
        InvalidMemoryArgument: an unknown scope.
    """
    check_members("scope", [scope], SCOPES)
    if scope not in OWNED:
        return (scope,)
    owner: str | None = getattr(owners, scope)
    if not owner:
        raise MemoryScopeUnavailable(scope, session_id=owners.session)
    return (scope, owner)


def visible_namespaces(owners: Owners, scopes: Sequence[Scope] = SCOPES) -> list[Namespace]:
    """The namespaces of those of these scopes that have an id. Raises `InvalidMemoryArgument`."""
    check_members("scopes", scopes, SCOPES)
    found: list[Namespace] = []
    for scope in scopes:
        owned = [(scope, owner) for owner in sorted(owners.of(scope))]
        found += owned if scope in OWNED else [namespace_of(scope, owners)]
    return found


def is_visible(namespace: Namespace, owners: Owners) -> bool:
    """Whether a run of these owners may use a namespace. The bare ``("user",)`` is open to no run."""
    if not namespace:  # of a search in all visible namespaces
        return True
    if namespace[0] not in OWNED:
        return owners.may_use_others and namespace[0] != RESERVED
    return len(namespace) > 1 and namespace[1] in owners.of(namespace[0])


def check_namespace(namespace: Namespace, owners: Owners) -> None:
    """Raises `MemoryAccessDenied` for a namespace of another session, user or group."""
    if not is_visible(namespace, owners):
        raise MemoryAccessDenied(namespace, owner=getattr(owners, namespace[0], owners.user))
