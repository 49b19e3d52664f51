"""Run the notebooks and keep their outputs: ``python notebooks/execute.py``."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook, run in `folder` from its first cell to its last."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=120, coalesce_streams=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the run, which would change each time
    return notebook


if __name__ == "__main__":
    import tempfile

    for path in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(path.name)
