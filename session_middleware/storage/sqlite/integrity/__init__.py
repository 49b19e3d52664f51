"""Checks of a database: its file, its rows by checksum, and the relations between its rows."""
