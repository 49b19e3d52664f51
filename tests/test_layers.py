"""A module imports only from layers below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import session_middleware

PACKAGE = Path(session_middleware.__file__).parent

LAYERS = {  # the longest prefix wins
    "errors": 0,
    "findings": 0,
    "model": 0,
    "notebook": 0,
    "plain": 0,
    "run_ends": 0,
    "settings": 0,
    "wording": 0,
    "lifecycle": 1,
    "storage.state": 0,
    "storage.seen": 0,
    "storage.visit": 0,
    "storage.port": 1,
    "storage.reporting": 1,
    "storage.conversations": 1,
    "timeline": 1,
    "following": 3,
    "reports": 3,
    "storage.upkeep": 1,
    "storage.memory_port": 1,
    "storage.words": 0,
    "storage.stemming": 0,
    "storage.dates": 0,
    "storage.ranking": 0,
    "storage": 2,
    "explaining": 2,
    "hooks": 2,
    "names": 1,
    "pulse": 2,
    "resources": 2,
    "turns": 2,
    "visits": 2,
    "checkpoint": 3,
    "recording": 3,
    "session_storage": 3,
    "memory": 3,
    "attaching": 3,
    "guarded": 4,
    "living": 4,
    "operating": 4,
    "parts": 4,
    "session": 4,
    "sweeping": 4,
    "sessions": 4,
    "cli": 5,
    "doctor": 5,
    "terminal": 5,
    "upkeep_commands": 5,
    "render_health": 5,
    "integrations": 5,
    "importing": 5,
    "sources": 5,
    "render": 5,
    "listing": 5,
    "chat": 5,
    "__init__": 6,
}
WITHIN_A_LAYER = {  # pairs in one layer, or out of its order, that may lean on each other this way round
    ("findings", "model"),
    ("model", "wording"),
    ("notebook", "findings"),
    ("notebook", "model"),
    ("notebook", "wording"),
    ("settings", "errors"),
    ("storage.state", "storage.seen"),
    ("storage.state", "storage.visit"),
    ("storage.visit", "storage.seen"),
    ("storage.visit", "model"),
    ("timeline", "model"),
    ("storage.port", "storage.reporting"),
    ("storage.port", "storage.conversations"),
    ("storage.conversations", "storage.seen"),
    ("storage.reporting", "timeline"),
    ("sessions", "session"),
    ("reports", "recording"),
    ("settings", "model"),
    ("guarded", "living"),
    ("guarded", "session"),
    ("guarded", "sessions"),
    ("session", "living"),
    ("guarded", "parts"),
    ("living", "parts"),
    ("operating", "parts"),
    ("session", "parts"),
    ("sessions", "parts"),
    ("sweeping", "parts"),
    ("sessions", "guarded"),
    ("names", "storage.upkeep"),
    ("operating", "living"),
    ("operating", "session"),
    ("operating", "sweeping"),
    ("sessions", "living"),
    ("sessions", "operating"),
    ("sessions", "session"),
    ("sessions", "sweeping"),
    ("sweeping", "living"),
    ("explaining", "storage"),
    ("hooks", "storage"),
    ("pulse", "storage"),
    ("resources", "storage"),
    ("turns", "pulse"),
    ("turns", "storage"),
    ("turns", "visits"),
    ("visits", "pulse"),
    ("visits", "storage"),
    ("storage.port", "storage.upkeep"),
    ("storage.port", "storage.memory_port"),
    ("storage.words", "storage.stemming"),
    ("storage.words", "storage.dates"),
    ("attaching", "checkpoint"),
    ("attaching", "recording"),
    ("recording", "checkpoint"),  # it is the witness that the checkpointer asks for
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _home(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in LAYERS:
            return prefix
    raise AssertionError(f"{module} has no layer: give it one in LAYERS and in ARCHITECTURE.md")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("session_middleware"):
            base = node.module.removeprefix("session_middleware").removeprefix(".")
            for name in node.names:
                deeper = f"{base}.{name.name}".removeprefix(".")
                is_module = (PACKAGE / Path(*deeper.split("."))).with_suffix(".py").exists()
                found.add(deeper if is_module or not base else base)
    return {module for module in found if "." in module or module in LAYERS}


def test_every_module_imports_only_from_layers_below_its_own() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = _module(path)
        if module == "__init__":
            continue
        home = _home(module)
        for imported in _imports(path):
            other = _home(imported)
            allowed = other == home or LAYERS[other] < LAYERS[home] or (home, other) in WITHIN_A_LAYER
            if not allowed and LAYERS[home] < 5:
                wrong.append(f"{module} (layer {LAYERS[home]}) imports {imported} (layer {LAYERS[other]})")
    assert wrong == []


def test_no_file_outgrows_five_hundred_lines() -> None:
    long = {
        str(p.relative_to(PACKAGE)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500
    }
    assert long == {}
