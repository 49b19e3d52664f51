"""Whom a memory is for: scopes as namespaces, and which namespaces are in reach of whom.

A namespace that begins with ``session``, ``user`` or ``group`` is owned by the id that follows; all
others are the application's own, open to every run. Pure functions of names and ids, so that the
store, `session.memory` and the tools cannot come to different answers.
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
    """The ids whose memories are in reach; `session`, `user` and `group` are the scopes that have an owner."""

    session: str | None = None
    user: str | None = None
    group: str | None = None  # for which new memories are kept
    groups: frozenset[str] = frozenset()  # further ones whose memories are seen

    def of(self, scope: str) -> set[str]:
        """All ids of a scope; none of one that nobody owns."""
        own: str | None = getattr(self, scope, None)
        return {*([own] if own else ()), *(self.groups if scope == "group" else ())}


OWNED = frozenset({"session", "user", "group"})
ALWAYS = "always"  # the label, below a scope's namespace, of what belongs into every prompt


def is_always(namespace: Namespace) -> bool:
    """Whether what is there belongs into every prompt of its scope."""
    return len(namespace) == (3 if namespace[0] in OWNED else 2) and namespace[-1] == ALWAYS


def both_of(namespace: Namespace, *, always: bool) -> tuple[Namespace, Namespace]:
    """Where something of a scope is, and where it is not, as it does or does not belong into every prompt."""
    with_label = (*namespace, ALWAYS)
    return (with_label, namespace) if always else (namespace, with_label)


def namespace_of(scope: Scope, owners: Owners) -> Namespace:
    """The namespace of a scope.

    Raises:
        MemoryScopeUnavailable: there is no id to keep it under.
        InvalidMemoryArgument: a scope nobody knows.
    """
    check_members("scope", [scope], SCOPES)
    if scope not in OWNED:
        return (scope,)
    owner: str | None = getattr(owners, scope)
    if not owner:
        raise MemoryScopeUnavailable(scope, session_id=owners.session)
    return (scope, owner)


def visible_namespaces(owners: Owners, scopes: Sequence[Scope] = SCOPES) -> list[Namespace]:
    """The namespaces of these scopes, without those that nobody here has an id for. Raises `InvalidMemoryArgument`."""
    check_members("scopes", scopes, SCOPES)
    found: list[Namespace] = []
    for scope in scopes:
        owned = [(scope, owner) for owner in sorted(owners.of(scope))]
        found += owned if scope in OWNED else [namespace_of(scope, owners)]
    return found


def is_visible(namespace: Namespace, owners: Owners) -> bool:
    """Whether a run of these owners may use it: the bare ``("user",)`` would be everybody's, so not."""
    if not namespace or namespace[0] not in OWNED:
        return True
    return len(namespace) > 1 and namespace[1] in owners.of(namespace[0])


def check_namespace(namespace: Namespace, owners: Owners) -> None:
    """Refuse what belongs to another session, user or group. Raises `MemoryAccessDenied`."""
    if not is_visible(namespace, owners):
        raise MemoryAccessDenied(namespace, owner=getattr(owners, namespace[0]))
