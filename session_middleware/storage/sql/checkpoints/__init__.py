"""What the checkpointer restores state from: checkpoints, writes, and the pieces they share."""
