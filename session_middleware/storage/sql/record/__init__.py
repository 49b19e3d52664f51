"""The record: messages, calls, runs, and reports over them."""
