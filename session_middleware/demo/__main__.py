"""``python -m session_middleware.demo``: the tour, as ``session-middleware demo``."""

from session_middleware.cli import main

if __name__ == "__main__":
    main(["demo"])
