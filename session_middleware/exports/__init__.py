"""Sessions as files for people."""
