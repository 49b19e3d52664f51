"""What is remembered, and the index it is found by."""
