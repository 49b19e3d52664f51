"""The record of runs: messages, tool calls and model calls, written while a run is in progress."""
