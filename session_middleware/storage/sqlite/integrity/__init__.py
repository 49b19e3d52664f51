"""Checking a database: its file, its rows against their checksums, and its rows against each other."""
