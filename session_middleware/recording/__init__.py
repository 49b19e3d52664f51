"""The record: what was said and done, written as it happens."""
