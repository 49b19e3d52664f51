"""Retrieval memory: the store, the scopes, and what a session remembers."""
