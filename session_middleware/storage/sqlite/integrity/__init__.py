"""Checks of a database: its file, its rows and checksums, and the relations between its rows."""
