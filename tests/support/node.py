"""Programs of npm that tests run, at the versions that `tests/node/package.json` pins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[1] / "node"


def program(name: str) -> Path:
    """The program of this name. Skips the test where it is not installed, except in CI."""
    found = _FOLDER / "node_modules" / ".bin" / name
    if not found.exists():
        advice = f"{name} is not installed: run npm install --prefix tests/node --no-package-lock"
        pytest.fail(advice) if os.environ.get("CI") else pytest.skip(advice)
    return found
