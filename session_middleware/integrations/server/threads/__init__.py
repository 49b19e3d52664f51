"""Threads in LangGraph's API: the routes of sessions and of their states."""
