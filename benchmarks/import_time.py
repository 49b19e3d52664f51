"""How long importing takes: beside a bare Python, and beside the libraries that are needed anyway.

    python -m benchmarks.import_time [--quick] [--runs 15]

Each measurement is a whole new process, from its start to its end. The libraries are found in the
package's own source: what the modules that `Sessions` brings in import, and nothing else.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.run import Figure, arguments, machine, middle, show

ROOT = Path(__file__).parents[1]
PACKAGE = "session_middleware"
_WARM_UP = 1  # rounds that fill the machine's caches and are not counted
BARE, EMPTY_DOOR, DOOR, LIBRARIES = "pass", f"import {PACKAGE}", f"from {PACKAGE} import Sessions", ""


def _start(code: str) -> str:
    """Run code in a new Python; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def libraries() -> list[str]:
    """The import statements of the modules behind `Sessions` that are not of this package."""
    listing = f"{DOOR}; import sys; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('{PACKAGE}')))"
    found = {
        statement
        for file in _start(listing).split()
        for statement in _imports(ast.parse(Path(file).read_text(encoding="utf-8")).body)
    }
    return sorted(found)


def _imports(body: list[ast.stmt]) -> Iterator[str]:
    """Those at a module's top level, which are carried out when it is imported."""
    for node in body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [node.module or ""]
        else:
            continue
        if not names[0].startswith(PACKAGE):
            yield ast.unparse(node)


def measure(runs: int) -> dict[str, float]:
    """Milliseconds of each."""
    code = {name: name for name in (BARE, EMPTY_DOOR, DOOR)} | {LIBRARIES: "\n".join(libraries())}
    seconds: dict[str, list[float]] = {name: [] for name in code}
    for _ in range(runs + _WARM_UP):
        for name, text in code.items():
            start = time.perf_counter()
            _start(text)
            seconds[name].append(time.perf_counter() - start)
    return {name: middle(taken[_WARM_UP:]) for name, taken in seconds.items()}


def report(*, quick: bool, runs: int | None = None) -> None:
    runs = runs or (3 if quick else 15)
    taken = measure(runs)
    bare = taken[BARE]
    show(
        f"Import: whole processes, a bare Python taken off where said (medians of {runs})",
        [
            Figure(EMPTY_DOOR, taken[EMPTY_DOOR], "ms", "bare Python", bare),
            Figure("  less a bare Python", taken[EMPTY_DOOR] - bare, "ms", "bare Python", bare, aim_of_ours=20),
            Figure(DOOR, taken[DOOR] - bare, "ms", "the libraries it needs", taken[LIBRARIES] - bare, aim=1.15),
            Figure("  its own part", taken[DOOR] - taken[LIBRARIES], "ms", "the libraries", taken[LIBRARIES] - bare),
        ],
        judged=not quick,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int)
    options = parser.parse_args()
    print(machine())
    report(quick=options.quick, runs=options.runs)


if __name__ == "__main__":
    main()
