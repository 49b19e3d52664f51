"""The checkpointer: LangGraph's saver contract over pieces that are each stored once."""
