"""A module imports only from layers below its own, and no import is circular.

An import inside a function counts, an import under ``TYPE_CHECKING`` does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import session_middleware

PACKAGE = Path(session_middleware.__file__).parent

LAYERS = (  # the lowest first: a module imports from the layers above it in this list, and from its own folder
    "errors",
    "display",
    "models",
    "settings",
    "lifecycle",
    "storage",
    "runtime",
    "checkpoint",
    "recording",
    "memory",
    "exports",
    "experiments",
    "session",
    "user_sessions",
    "sessions",
    "integrations",
    "importers",
    "cli",
)


def _modules() -> dict[str, Path]:
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


MODULES = _modules()


def _imports(node: ast.AST) -> Iterator[ast.ImportFrom | ast.Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom | ast.Import):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _imports(child)


def _imported(module: str) -> set[str]:
    """The modules of the package that a module imports; ``__init__`` for the package itself."""
    found = set()
    for node in _imports(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module} has a relative import"
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        for path in paths:
            package, _, inner = path.partition(".")
            if package == PACKAGE.name:
                found.add(inner if inner in MODULES else inner.rpartition(".")[0] or "__init__")
    return found


@cache
def graph() -> dict[str, set[str]]:
    return {module: _imported(module) for module in MODULES}


def test_the_top_level_has_only_layers() -> None:
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top == {"__init__", *LAYERS}


def test_every_module_imports_only_from_lower_layers_and_its_own_folder() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imports in graph().items()
        for imported in imports - {"__init__"}
        if module != "__init__" and imported.partition(".")[0] not in _visible_to(module.partition(".")[0])
    ]
    assert wrong == []


def _visible_to(layer: str) -> tuple[str, ...]:
    return LAYERS[: LAYERS.index(layer) + 1]


def test_no_import_is_circular() -> None:
    TopologicalSorter(graph()).prepare()


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("storage.protocol", "storage.sql"),
        ("storage.search", "storage.sql"),
        ("storage.sql", "storage.factory"),
        ("storage.sql", "storage.sqlite"),
        ("storage.sql", "storage.postgres"),
        ("storage.sqlite", "storage.postgres"),
        ("storage.postgres", "storage.sqlite"),
    ],
)
def test_within_storage_the_lower_module_does_not_depend_on_the_higher(lower: str, higher: str) -> None:
    reached, left = set(), [module for module in MODULES if f"{module}.".startswith(f"{lower}.")]
    while left:
        for imported in graph()[left.pop()] - reached:
            reached.add(imported)
            left.append(imported)
    assert [module for module in sorted(reached) if f"{module}.".startswith(f"{higher}.")] == []


def test_the_operations_in_sql_import_no_driver() -> None:
    wrong = [
        module
        for module, path in MODULES.items()
        if f"{module}.".startswith("storage.sql.")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and {alias.name for alias in node.names} & {"sqlite3", "psycopg"}
    ]
    assert wrong == []


def test_the_package_itself_is_imported_by_outer_layers_only() -> None:
    importing = {module.partition(".")[0] for module, imports in graph().items() if "__init__" in imports}
    assert importing <= {"integrations", "importers", "cli"}


SHARED = ("callers", "cursors", "fastapi_errors", "open_runs", "opentelemetry_spans")


def test_integrations_and_importers_do_not_import_each_other() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imports in graph().items()
        for imported in imports
        if module.startswith("integrations.")
        and imported.startswith(("integrations.", "importers."))
        and imported.split(".")[1] not in (module.split(".")[1], *SHARED)
    ]
    assert wrong == []
