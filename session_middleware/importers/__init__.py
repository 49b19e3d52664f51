"""Copies of other savers' databases."""
