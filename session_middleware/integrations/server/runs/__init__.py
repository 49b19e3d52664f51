"""Runs in LangGraph's API: the routes, a run in this process, and what all server processes know of it."""
