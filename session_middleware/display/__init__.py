"""Recorded values as text and as HTML."""
