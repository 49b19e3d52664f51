"""Programs of npm that tests run, at the versions that `tests/node/package.json` pins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[1] / "node"


def program(name: str) -> Path:
    """The program of this name. Skips the test where it is not installed, except in CI."""
    return _installed(name, _FOLDER / "node_modules" / ".bin" / name)


def package(name: str) -> Path:
    """The folder of a package. Skips the test as `program` does."""
    return _installed(name, _FOLDER / "node_modules" / name)


def script(name: str, *, uses: str) -> list[str | Path]:
    """The command of a script in `tests/node` that uses a package. Skips the test as `program` does."""
    _installed(uses, _FOLDER / "node_modules" / uses)
    return ["node", _FOLDER / name]


def _installed(name: str, found: Path) -> Path:
    if not found.exists() or shutil.which("node") is None:
        advice = f"{name} is not installed: run npm install --prefix tests/node --no-package-lock"
        pytest.fail(advice) if os.environ.get("CI") else pytest.skip(advice)
    return found
