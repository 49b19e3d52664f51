"""The notebooks run from their first cell to their last, and what they show is what happens."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

# Times, durations, and the tag of recalled text.
CHANGING = re.compile(r"\d{4}-\d\d-\d\d([T ][\d:.+Z]+)?|(?<=_ms=)[\d.]+|(?<=<|/)memory-[0-9a-f]+")
FOLDER = Path(__file__).parents[2] / "notebooks"


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.execute(path, folder)


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [output.get("text") or str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
            found.append(CHANGING.sub("<changing>", "".join(parts)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_shows_what_happens(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    kept = outputs(nbformat.read(path, as_version=4))
    assert any(kept), "the notebook is to be committed with its outputs: make docs"
    assert outputs(execute(path, tmp_path)) == kept
