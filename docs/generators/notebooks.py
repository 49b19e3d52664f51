"""A notebook with its outputs as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "text/html" in data:
            html = "".join(data["text/html"]).replace("\n", " ")
            yield f'<div class="output">{html}</div>'
        elif "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            yield f'<img class="output" alt="a plot" src="data:image/png;base64,{image}">'
        else:
            yield "```text\n" + "".join(data["text/plain"]).rstrip("\n") + "\n```"
