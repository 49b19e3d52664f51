"""`python -m session_middleware.cli`."""

from session_middleware.cli.main import main

if __name__ == "__main__":
    main()
